"""What each Envoy has counts until it says something newer or its process ends, also after a restart of the agent."""

import asyncio
from pathlib import Path

from agent_parts import AGENT, CA, ENTRY, Processes, entry
from test_agent_reports import CALLER, SHOP, node

from eastwest.agent.cache import Cache
from eastwest.agent.changes import Changes
from eastwest.agent.envoys import LOOK_EVERY, SECRETS_ABSENT, Envoys, Given
from eastwest.agent.xds import SidecarStatus
from eastwest.mesh.subscription import SessionStatus
from eastwest.testing.clock import FakeClock
from eastwest.testing.entropy import SeededEntropy

SHOP_ID = "spiffe://saas.example/shop"
CHAIN = CA.svid("/shop")[0].chain


def envoys(processes: Processes, clock: FakeClock) -> Envoys:
    return Envoys(clock, Changes(), processes)


def test_a_sidecar_that_left_counts_until_its_process_ends() -> None:
    processes = Processes()
    known = envoys(processes, FakeClock())
    known.told("n", 42, SHOP_ID, Given(3))
    known.left("n", 42)
    known.forget_ended()
    assert known.given("n", 42) == Given(3)
    processes.started[42] = 2000  # the pid is another's now
    known.forget_ended()
    assert known.given("n", 42) is None


def test_a_new_stream_counts_as_the_last_one_did_until_it_says_more() -> None:
    known = envoys(Processes(), FakeClock())
    known.told("n", 42, SHOP_ID, Given(3))
    known.left("n", 42)
    assert known.told("n", 42, SHOP_ID, None)
    assert known.given("n", 42) == Given(3)
    assert [connected for _, connected in known.sidecars()] == [True]
    assert known.told("n", 42, SHOP_ID, Given(4))
    assert not known.told("n", 42, SHOP_ID, Given(4))
    assert known.given("n", 42) == Given(4)


def test_one_that_never_acknowledged_anything_is_not_waited_for() -> None:
    known = envoys(Processes(), FakeClock())
    assert not known.told("n", 42, SHOP_ID, None)
    known.left("n", 42)
    assert known.everything() == ()


async def test_a_stream_of_secrets_counts_for_a_while_after_its_end_or_until_the_next_one() -> None:
    clock = FakeClock()
    known = envoys(Processes(), clock)
    one, two, three = object(), object(), object()
    for stream in (one, two):
        known.taken(stream, 42, SHOP_ID, Given(3))
    for stream in (one, two):
        known.ended(stream)
    known.taken(three, 42, SHOP_ID, Given(4))
    assert sorted(envoy.sequence for envoy in known.secrets_alone()) == [3, 4]
    await clock.elapse(SECRETS_ABSENT + 1)
    known.forget_ended()
    assert [envoy.sequence for envoy in known.secrets_alone()] == [4]


async def test_ended_processes_are_noticed_by_themselves() -> None:
    clock, processes = FakeClock(), Processes()
    known = envoys(processes, clock)
    watching = asyncio.ensure_future(known.run())
    known.told("n", 42, SHOP_ID, Given(3))
    known.left("n", 42)
    await clock.elapse(2 * LOOK_EVERY)
    assert known.everything()
    processes.started.clear()
    await clock.elapse(2 * LOOK_EVERY)
    assert not known.everything()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def test_they_are_remembered_over_a_restart_where_their_process_runs(tmp_path: Path) -> None:
    processes = Processes()
    processes.started[43] = 1001
    known = envoys(processes, FakeClock())
    known.told("n", 42, SHOP_ID, Given(3, (CHAIN,)))
    known.told("m", 43, SHOP_ID, Given(3))
    known.taken(object(), 42, SHOP_ID, Given(2))
    cache = Cache(tmp_path, AGENT, None, SeededEntropy())
    cache.save_envoys(known.everything())
    del processes.started[43]
    after = envoys(processes, FakeClock())
    after.restore(cache.load_envoys())
    assert after.given("n", 42) == Given(3, (CHAIN,))
    assert after.given("m", 43) is None
    assert [envoy.sequence for envoy in after.secrets_alone()] == [2]


def test_damaged_ones_are_none(tmp_path: Path) -> None:
    cache = Cache(tmp_path, AGENT, None, SeededEntropy())
    known = envoys(Processes(), FakeClock())
    known.told("n", 42, SHOP_ID, Given(3))
    cache.save_envoys(known.everything())
    (file,) = (path for path in tmp_path.iterdir() if path.name == "envoys")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert cache.load_envoys() == ()


def session(given: Given | None) -> SessionStatus:
    return SessionStatus("n", "v1", "v1", (), (), given)


async def test_the_server_hears_of_one_that_is_away_while_its_entry_is_there() -> None:
    async with node() as local:
        local.processes.started[CALLER.pid] = 1000
        local.apply(entries=(entry("shop"),), sidecars=(SHOP,))
        local.sidecars.report(SidecarStatus(CALLER, session(Given(3)), connected=True))
        (status,) = local.sidecars.statuses()
        assert status.bundle_sequence == 0, "an agent that died now would not know of it any more"
        local.sidecars.envoys.saved(local.sidecars.envoys.everything())
        local.sidecars.report(SidecarStatus(CALLER, session(Given(3)), connected=False))
        (status,) = local.sidecars.statuses()
        assert (status.connected, status.bundle_sequence) == (False, 3)
        local.apply(remove=((ENTRY, "shop"),))
        (status,) = local.sidecars.statuses()
        assert (status.connected, status.bundle_sequence) == (False, 0)
