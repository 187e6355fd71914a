"""What each Envoy has counts until it says something newer or its process ends, also after a restart of the agent."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from agent_parts import AGENT, CA, ENTRY, Processes, entry
from test_agent_reports import CALLER, SHOP, node

from eastwest.agent.cache import Cache
from eastwest.agent.callers import Attested
from eastwest.agent.changes import Changes
from eastwest.agent.envoys import (
    LOOK_EVERY,
    MAX_ENVOYS,
    MAX_OF_PROCESS,
    MAX_STREAMS_OF_PROCESS,
    SECRETS_ABSENT,
    Envoys,
    Given,
)
from eastwest.agent.sidecars import MAX_BEHIND, MAX_ERROR, MAX_NODE_ID
from eastwest.agent.xds import SidecarStatus
from eastwest.errors import Exhausted
from eastwest.mesh.subscription import Refusal, SessionStatus
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


EVIL_ID = "spiffe://saas.example/evil"
LOCK = "\U0001f512"


def full(known: Envoys, spiffe_id: str = EVIL_ID) -> list[tuple[str, int]]:
    """As many sidecars as one SPIFFE ID gets, in as many processes as it takes."""
    admitted = []
    with pytest.raises(Exhausted, match="no room for one more"):
        for number in range(MAX_ENVOYS):
            key = (f"x{number}", 1000 + number // MAX_OF_PROCESS)
            known.admit(*key, spiffe_id)
            admitted.append(key)
    return admitted


def test_a_process_is_few_sidecars_and_its_last_names_go_first() -> None:
    known = envoys(Processes(), FakeClock())
    for number in range(MAX_OF_PROCESS):
        known.admit(str(number), 42, EVIL_ID)
        known.told(str(number), 42, EVIL_ID, Given(1))
    with pytest.raises(Exhausted, match="pid 42"):
        known.admit("one more", 42, EVIL_ID)
    known.admit("0", 42, EVIL_ID)  # another stream of one that is known
    known.left("3", 42)
    known.admit("one more", 42, EVIL_ID)
    assert known.given("3", 42) is None
    assert known.given("4", 42) == Given(1)


def test_nobody_is_forgotten_for_the_sake_of_many_others() -> None:
    """Whoever could push an honest sidecar out of the report would have a rotation go on without it."""
    known = envoys(Processes(), FakeClock())
    known.admit("honest", 42, SHOP_ID)
    known.told("honest", 42, SHOP_ID, Given(3))
    for key in full(known):
        known.told(*key, EVIL_ID, Given(9))
    assert known.given("honest", 42) == Given(3)
    known.admit("another", 43, SHOP_ID)
    for number in range(MAX_ENVOYS):
        name = f"spiffe://saas.example/evil/{number}"
        try:
            known.admit("x", 5000 + number, name)
        except Exhausted:
            break
    else:
        pytest.fail("there is no bound")
    assert {key for key, _ in known._open.items()} >= {("honest", 42), ("another", 43)}


def test_streams_of_secrets_are_not_forgotten_for_others_either() -> None:
    known = envoys(Processes(), FakeClock())
    honest = object()
    known.taken(honest, 42, SHOP_ID, Given(3))
    streams = [object() for _ in range(MAX_STREAMS_OF_PROCESS)]
    for stream in streams:
        known.taken(stream, 1000, EVIL_ID, Given(9))
    known.taken(streams[0], 1000, EVIL_ID, Given(10))
    with pytest.raises(Exhausted, match="pid 1000"):
        known.taken(object(), 1000, EVIL_ID, Given(9))
    with pytest.raises(Exhausted, match="no room"):
        for number in range(MAX_ENVOYS):
            known.taken(object(), 2000 + number, EVIL_ID, Given(9))
    known.taken(object(), 43, SHOP_ID, Given(3))
    assert sum(envoy.spiffe_id == SHOP_ID for envoy in known.secrets_alone()) == 2


async def test_a_refused_sidecar_leaves_no_trace() -> None:
    async with node() as local:
        local.apply(entries=(entry("shop"),), sidecars=(SHOP,))
        for number in range(MAX_OF_PROCESS):
            local.sidecars.report(SidecarStatus(CALLER, replace(session(None), node_id=str(number)), connected=True))
        refused = replace(session(Given(3)), node_id="one more")
        with pytest.raises(Exhausted):
            local.sidecars.report(SidecarStatus(CALLER, refused, connected=True))
        local.sidecars.report(SidecarStatus(CALLER, refused, connected=False))
        assert len(local.sidecars.statuses()) == MAX_OF_PROCESS
        assert all(status.connected for status in local.sidecars.statuses())


async def test_a_report_is_bounded_in_bytes() -> None:
    async with node() as local:
        local.apply(entries=(entry("shop"),), sidecars=(SHOP,))
        refusal = Refusal("t", ("name",), LOCK * 2000)
        told = replace(session(Given(3)), node_id="1" + LOCK * 2000, refusals=(refusal,))
        local.sidecars.report(SidecarStatus(CALLER, told, connected=True))
        (status,) = local.sidecars.statuses()
        assert MAX_NODE_ID - 4 < len(status.node_id.encode()) <= MAX_NODE_ID
        assert MAX_ERROR - 4 < len(status.error.encode()) <= MAX_ERROR
        assert status.node_id.startswith("1" + LOCK)


async def test_whoever_takes_secrets_alone_is_named_while_it_is_behind() -> None:
    async with node() as local:
        local.apply(entries=(entry("shop"),), sidecars=(SHOP,))
        streams = [object(), object()]
        for stream in streams:
            local.sidecars.taken(stream, CALLER, Given(3))
        local.sidecars.envoys.saved(local.sidecars.envoys.everything())
        assert local.sidecars.behind(3) == ([], 3)
        local.sidecars.taken(streams[0], CALLER, Given(4))
        (named,), sequence = local.sidecars.behind(4)
        assert (named.spiffe_id, named.node_id) == (SHOP_ID, f"pid {CALLER.pid}, secrets alone")
        assert (named.connected, named.bundle_sequence, sequence) == (True, 3, 4)
        many = [Attested(CALLER.spiffe_ids, 5000 + number, CALLER.selectors) for number in range(MAX_BEHIND + 1)]
        for number, caller in enumerate(many):
            local.sidecars.taken(object(), caller, Given(3 if number else 2))
        local.sidecars.envoys.saved(local.sidecars.envoys.everything())
        named_first, sequence = local.sidecars.behind(4)
        assert [status.bundle_sequence for status in named_first[:2]] == [2, 3]
        assert (len(named_first), sequence) == (MAX_BEHIND, 3)
