"""What goes back to the server: decisions, and how far sidecars have come."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from agent_parts import CA, ENTRY, SIDECAR, TD, Processes, SigningServer, entry, update

from eastwest import errors
from eastwest.agent.backoff import Backoff, until_answered
from eastwest.agent.callers import Attested
from eastwest.agent.decisions import Decisions
from eastwest.agent.identities import Identities
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.sidecars import Sidecars
from eastwest.agent.spool import MIN_LIMIT, Spool
from eastwest.agent.state import State
from eastwest.agent.xds import SidecarStatus
from eastwest.clock import Clock, SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.ledger.record import Decision, Lost, LostReason
from eastwest.mesh.action import inbound_version
from eastwest.mesh.names import CLUSTER, EXTENSION, SECRET, operations_filter, tokens_filter
from eastwest.mesh.settings import Settings
from eastwest.mesh.subscription import Refusal, SessionStatus
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Outbound,
    Rule,
    Sidecar,
    TenantRules,
    TenantSource,
    Verdict,
)
from eastwest.registry.containment import Contained
from eastwest.spiffe.selector import Selector
from eastwest.testing.ca import TestCA
from eastwest.testing.clock import FakeClock

ME = frozenset({Selector("unix", "user:shop")})
INBOUND = Inbound(
    service="shop",
    address="127.0.0.1",
    port=1234,
    protocol="http",
    mode=MtlsMode.STRICT,
    upstream="unix:/x",
    operations=(),
)
SHOP = Sidecar(
    spiffe_id="spiffe://saas.example/shop",
    version="v1",
    known_callers=("spiffe://saas.example/shop",),
    inbound=(INBOUND,),
)
CALLER = Attested(("spiffe://saas.example/shop",), 42, ME, "/run/shop/out.sock")


def decision(code: DecisionCode = DecisionCode.ALLOWED, reference: str = "r") -> Decision:
    verdict = Verdict.ALLOW if code is DecisionCode.ALLOWED else Verdict.DENY
    return Decision(
        time=CA.now, service="s", verdict=verdict, code=code, mode=MtlsMode.STRICT, enforced=True, reference=reference
    )


def rows_of(server: SigningServer) -> list[Decision | Lost]:
    return [row for _, _, body in server.reports for row in msgspec.json.decode(body, type=list[Decision | Lost])]


@asynccontextmanager
async def reporting(server: SigningServer, path: Path, clock: Clock | None = None) -> AsyncIterator[Decisions]:
    clock = clock or SystemClock()
    decisions = Decisions(server, clock, random.Random(1), Spool(path, 1 << 20, clock, SystemEntropy()))
    await decisions.open()
    yield decisions
    await decisions.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_decisions_are_counted_batched_and_sent_until_stored(tmp_path: Path) -> None:
    server = SigningServer(FakeClock(CA.now))
    async with reporting(server, tmp_path) as decisions:
        for _ in range(4):
            decisions.record([decision()])
        decisions.record([decision(DecisionCode.UNKNOWN_CALLER)])
        server.down = True
        running = asyncio.ensure_future(decisions.run())
        await until(lambda: decisions.status.waiting == 5)
        assert server.reports == []
        server.down = False
        await until(lambda: decisions.reported == 5)
        running.cancel()
    told = sorted((row.code, row.count, row.first) for row in rows_of(server) if isinstance(row, Decision))
    assert told == [("ALLOWED", 1, True), ("ALLOWED", 3, False), ("UNKNOWN_CALLER", 1, False)]
    assert decisions.lost == 0


async def test_rows_that_the_server_refuses_do_not_hold_up_the_rest_and_are_confessed(tmp_path: Path) -> None:
    class Choosy(SigningServer):
        async def report(self, spool: str, sequence: int, rows: bytes) -> int:
            if b"bad" in rows:
                raise errors.InvalidInput("the report is malformed")
            return await super().report(spool, sequence, rows)

    server = Choosy(FakeClock(CA.now))
    async with reporting(server, tmp_path) as decisions:
        decisions.record([decision(DecisionCode.UNKNOWN_CALLER, "bad")])
        await decisions.flush()
        decisions.record([decision(DecisionCode.UNKNOWN_CALLER, "good")])
        await decisions.flush()
        assert (decisions.reported, decisions.lost) == (2, 1)
    lost, kept = rows_of(server)
    assert (lost.count, lost.cause) == (1, LostReason.REFUSED)
    assert kept.reference == "good"


@pytest.mark.parametrize("days", [-3_000, 3_000, 0])
async def test_a_decision_of_a_time_that_cannot_be_is_of_when_it_came(tmp_path: Path, days: int) -> None:
    """A workload that made a time up would end up in other people's stores, which have no place for all of them."""
    clock, server = FakeClock(CA.now), SigningServer(FakeClock(CA.now))
    told = msgspec.structs.replace(decision(DecisionCode.UNKNOWN_CALLER), time=CA.now + timedelta(days=days))
    async with reporting(server, tmp_path, clock) as decisions:
        decisions.record([told])
        await decisions.flush()
    assert [row.time for row in rows_of(server)] == [CA.now]


async def test_what_comes_from_elsewhere_as_lost_is_told_with_the_rest(tmp_path: Path) -> None:
    server = SigningServer(FakeClock(CA.now))
    lost = Lost(time=CA.now, until=CA.now, count=7, cause=LostReason.PROXY_DROPPED, node="n")
    async with reporting(server, tmp_path) as decisions:
        decisions.confess([lost])
        await decisions.flush()
    assert rows_of(server) == [lost]


async def test_whether_decisions_are_kept_is_told_when_it_changes(tmp_path: Path) -> None:
    server = SigningServer(FakeClock(CA.now))
    server.down = True
    clock = SystemClock()
    heard: list[bool] = []
    spool = Spool(tmp_path / "spool", MIN_LIMIT, clock, SystemEntropy())
    decisions = Decisions(server, clock, random.Random(1), spool, heard.append)
    await decisions.open()
    number = 0
    while decisions.status.records:
        for _ in range(200):
            number += 1
            # A service each: beyond a bound, refusals of one are counted.
            refused = decision(DecisionCode.UNKNOWN_CALLER, str(number))
            decisions.record([msgspec.structs.replace(refused, service=str(number))])
        with pytest.raises(errors.Unavailable):
            await decisions.flush()
    assert heard == [False]
    assert "% full" in decisions.problems()[0]
    assert decisions.lost == 0
    server.down = False
    await decisions.flush()
    assert heard == [False, True]
    assert decisions.problems() == []
    assert sum(row.count for row in rows_of(server)) == number
    await decisions.close()


def test_backoff_grows_to_its_bound_and_starts_again() -> None:
    backoff = Backoff(random.Random(1), first=1.0, most=10.0)
    delays = [backoff.delay() for _ in range(12)]
    assert 0.75 <= delays[0] <= 1.25
    assert all(delay <= 12.5 for delay in delays)
    assert min(delays[6:]) >= 7.5
    backoff.reset()
    assert backoff.delay() <= 1.25


async def test_only_unavailability_is_waited_out() -> None:
    clock = FakeClock()
    answers: list[object] = [errors.Unavailable("a"), errors.Unavailable("b"), 3]

    async def once() -> int:
        answer = answers.pop(0)
        if isinstance(answer, errors.Error):
            raise answer
        assert isinstance(answer, int)
        return answer

    waiting = asyncio.ensure_future(until_answered(once, "x", 60, clock, random.Random(1)))
    await clock.elapse(5)
    assert waiting.result() == 3
    answers[:] = [errors.InvalidInput("no")]
    with pytest.raises(errors.InvalidInput):
        await until_answered(once, "x", 60, clock, random.Random(1))
    answers[:] = [errors.Unavailable("gone")] * 100
    waiting = asyncio.ensure_future(until_answered(once, "x", 60, clock, random.Random(1)))
    await clock.elapse(70)
    with pytest.raises(errors.Unavailable, match="x, tried for 60 s: gone"):
        waiting.result()


class Node:
    """Sidecars over identities that a test server signs."""

    def __init__(self) -> None:
        self.clock = FakeClock(CA.now)
        self.knowledge = Knowledge(State(TD))
        self.identities = Identities(SigningServer(self.clock), self.knowledge, self.clock, random.Random(1))
        self.processes = Processes()
        settings = Settings(egress_socket="egress.sock")
        self.sidecars = Sidecars(self.knowledge, self.identities, settings, self.clock, self.processes)

    def apply(self, **changes: object) -> None:
        number = self.knowledge.state.number + 1
        bundles = changes.pop("bundles", (CA.bundle,))
        self.knowledge.set(self.knowledge.state.apply(update(number, full=number == 1, bundles=bundles, **changes)))
        self.sidecars.on_state()
        self.identities.on_state(self.knowledge.state)


@asynccontextmanager
async def node() -> AsyncIterator[Node]:
    made = Node()
    signing = asyncio.ensure_future(made.identities.run())
    yield made
    signing.cancel()
    await asyncio.gather(signing, return_exceptions=True)


async def test_a_sidecar_is_followed_from_nothing_to_its_end() -> None:
    async with node() as local:
        local.apply(entries=(entry("shop"),))
        snapshots = local.sidecars.snapshots(CALLER)
        assert (await anext(snapshots)).version == ""
        local.apply(sidecars=(SHOP,))
        first = await anext(snapshots)
        assert first.version == "v1"
        assert b"/run/shop/out.sock" in b"".join(r.body for named in first.resources.values() for r in named.values())
        # Somebody else's affairs do not make another snapshot.
        local.apply(entries=(entry("other"),))
        local.apply(sidecars=(msgspec.structs.replace(SHOP, version="v2"),))
        assert (await anext(snapshots)).version == "v2"
        local.apply(remove=((SIDECAR, SHOP.spiffe_id),))
        assert (await anext(snapshots)).version == ""
        local.apply(remove=((ENTRY, "shop"),))
        with pytest.raises(StopAsyncIteration):
            await anext(snapshots)


async def test_keys_of_tokens_go_to_those_who_look_at_tokens() -> None:
    may = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED)
    asking = OperationRules(
        name="shop:x:do",
        match=HttpMatch(method="GET", path="/x"),
        tenant=TenantSource(claim=True),
        cells=(Cell(callers=CALLER.spiffe_ids, tenants=TenantRules(otherwise=may)),),
    )
    needs = msgspec.structs.replace(INBOUND, operations=(asking,))
    async with node() as local:

        def keys(text: bytes) -> None:
            local.knowledge.set(replace(local.knowledge.state, token_keys=text))

        local.apply(entries=(entry("shop"),), sidecars=(SHOP,))
        snapshots = local.sidecars.snapshots(CALLER)
        first = await anext(snapshots)
        keys(b"first keys")
        local.apply(sidecars=(msgspec.structs.replace(SHOP, version="v2"),))
        unneeded = await anext(snapshots)
        assert first.changed_from(unneeded) == {}
        local.apply(sidecars=(msgspec.structs.replace(SHOP, version="v3", inbound=(needs,)),))
        needed = await anext(snapshots)
        assert b"first keys" in needed.of_type(EXTENSION)[tokens_filter("shop")].body
        keys(b"second keys")
        after = await anext(snapshots)
        assert after.changed_from(needed) == {EXTENSION: (tokens_filter("shop"),)}
        assert b"second keys" in after.of_type(EXTENSION)[tokens_filter("shop")].body


async def test_rules_are_known_by_service_and_by_version() -> None:
    async with node() as local:
        local.apply(entries=(entry("shop"),), sidecars=(SHOP,))
        version = inbound_version(INBOUND)
        assert local.sidecars.current(CALLER, "shop") is local.sidecars.version(version)
        assert local.sidecars.current(CALLER, "other") is None
        local.apply(remove=((SIDECAR, SHOP.spiffe_id),))
        assert local.sidecars.current(CALLER, "shop") is None
        assert local.sidecars.version(version) is not None


async def test_statuses_name_versions_and_refusals() -> None:
    async with node() as local:
        local.apply(entries=(entry("shop"),), sidecars=(SHOP,))
        seen = local.sidecars.changes.count
        refusal = Refusal("type", ("inbound/shop",), "no good")
        session = SessionStatus("node-1", "v1", "v0", (), (refusal,))
        local.sidecars.report(SidecarStatus(CALLER, session, connected=True))
        local.sidecars.report(SidecarStatus(CALLER, session, connected=True))
        assert local.sidecars.changes.count == seen + 1
        (status,) = local.sidecars.statuses()
        assert (status.acknowledged_version, status.intended_version) == ("v0", "v1")
        assert status.error == "inbound/shop: no good"
        local.sidecars.report(SidecarStatus(CALLER, session, connected=False))
        assert [s.connected for s in local.sidecars.statuses()] == [False]
        # The same node again, as another process, takes the place of the one that left.
        again = Attested(CALLER.spiffe_ids, 43, ME)
        local.sidecars.report(SidecarStatus(again, SessionStatus("node-1", "v1", "v1", (), ()), connected=True))
        (status,) = local.sidecars.statuses()
        assert (status.connected, status.acknowledged_version, status.error) == (True, "v1", "")


async def test_a_config_that_cannot_be_built_is_told_and_the_last_one_stays() -> None:
    async with node() as local:
        local.apply(entries=(entry("shop"),), sidecars=(SHOP,))
        snapshots = local.sidecars.snapshots(CALLER)
        assert (await anext(snapshots)).version == "v1"
        nowhere = Outbound(service="far", spiffe_id="spiffe://saas.example/far", endpoints=("h",), protocol="http")
        local.apply(sidecars=(msgspec.structs.replace(SHOP, version="v2", outbound=(nowhere,)),))
        waiting = asyncio.ensure_future(anext(snapshots))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        local.sidecars.report(SidecarStatus(CALLER, SessionStatus("n", "v1", "v1", (), ()), connected=True))
        assert "'h' is not an address" in local.sidecars.statuses()[0].error
        local.apply(sidecars=(msgspec.structs.replace(SHOP, version="v3"),))
        assert (await waiting).version == "v3"
        assert local.sidecars.statuses()[0].error == ""


def contain(local: Node, generation: int, *names: str) -> None:
    local.knowledge.set(replace(local.knowledge.state, contained=Contained(generation, names)))


async def test_a_deny_does_not_wait_until_new_rules_can_be_built() -> None:
    async with node() as local:
        local.apply(entries=(entry("shop"),), sidecars=(SHOP,))
        snapshots = local.sidecars.snapshots(CALLER)
        first = await anext(snapshots)
        nowhere = Outbound(service="far", spiffe_id="spiffe://saas.example/far", endpoints=("h",), protocol="http")
        local.apply(sidecars=(msgspec.structs.replace(SHOP, version="v2", outbound=(nowhere,)),))
        contain(local, 1, "spiffe://saas.example/notify")
        denied = await anext(snapshots)
        assert (denied.version, denied.contained) == ("v1", 1)
        assert denied.changed_from(first) == {EXTENSION: (operations_filter("shop"),)}
        assert b"CALLER_CONTAINED" in denied.of_type(EXTENSION)[operations_filter("shop")].body
        contain(local, 2, SHOP.spiffe_id)
        own = await anext(snapshots)
        assert b"IDENTITY_CONTAINED" in own.of_type(EXTENSION)[operations_filter("shop")].body
        assert SHOP.spiffe_id not in own.of_type(SECRET), "nor does its key"
        contain(local, 3)
        local.apply(sidecars=(msgspec.structs.replace(SHOP, version="v3"),))
        assert (await anext(snapshots)).changed_from(first) == {}


async def test_an_identity_that_has_run_out_does_not_keep_a_deny_away() -> None:
    async with node() as local:
        local.apply(entries=(entry("shop"),), sidecars=(SHOP,))
        snapshots = local.sidecars.snapshots(CALLER)
        await anext(snapshots)
        local.identities._held.clear()
        contain(local, 1, "spiffe://saas.example/notify")
        denied = await anext(snapshots)
        assert b"CALLER_CONTAINED" in denied.of_type(EXTENSION)[operations_filter("shop")].body


async def test_an_envoy_that_cannot_do_report_mode_is_denied_by_what_it_has() -> None:
    may = Cell(callers=CALLER.spiffe_ids, rule=Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED))
    tried = OperationRules(name="shop:x:do", match=HttpMatch(method="GET", path="/x"), cells=(may,))
    reporting = msgspec.structs.replace(
        SHOP, version="v2", inbound=(msgspec.structs.replace(INBOUND, report=(tried,)),)
    )
    async with node() as local:
        local.apply(entries=(entry("shop"),), sidecars=(SHOP,))
        snapshots = local.sidecars.snapshots(CALLER)
        first = await anext(snapshots)
        local.apply(sidecars=(reporting,))
        beyond = await anext(snapshots)
        assert beyond.requires
        assert beyond.instead == first
        contain(local, 1, "spiffe://saas.example/notify")
        denied = await anext(snapshots)
        assert denied.instead is not None
        assert (denied.version, denied.instead.version, denied.instead.contained) == ("v2", "v1", 1)
        assert denied.instead.changed_from(first) == {EXTENSION: (operations_filter("shop"),)}


async def test_a_foreign_service_waits_for_its_bundle_and_nothing_waits_for_it() -> None:
    async with node() as local:
        local.apply(entries=(entry("shop"),), sidecars=(SHOP,))
        snapshots = local.sidecars.snapshots(CALLER)
        assert (await anext(snapshots)).version == "v1"
        foreign = Outbound(service="far", spiffe_id="spiffe://other.example/far", endpoints=("h:1",), protocol="http")
        local.apply(sidecars=(msgspec.structs.replace(SHOP, version="v2", outbound=(foreign,)),))
        without = await anext(snapshots)
        assert without.version == "v2", "the new rules do not wait"
        assert "remote/far" not in without.of_type(CLUSTER)
        local.sidecars.report(SidecarStatus(CALLER, SessionStatus("n", "v2", "v2", (), ()), connected=True))
        assert local.sidecars.statuses()[0].error == "no bundle verifies the servers of far"
        local.apply(bundles=(CA.bundle, TestCA("other.example").bundle))
        whole = await anext(snapshots)
        assert "remote/far" in whole.of_type(CLUSTER)
        assert "spiffe://other.example" in whole.of_type(SECRET)
        assert local.sidecars.statuses()[0].error == ""


async def test_any_envoy_gets_its_secrets_and_their_rotation() -> None:
    async with node() as local:
        local.apply(entries=(entry("shop"),))
        secrets = local.sidecars.secrets(CALLER)
        first = await anext(secrets)
        assert [identity.spiffe_id for identity in first.identities] == ["spiffe://saas.example/shop"]
        assert first.identities[0].key.startswith(b"-----BEGIN PRIVATE KEY-----\n")
        assert list(first.bundles) == ["saas.example"]
        local.apply(entries=(entry("shop", revision=1),))
        assert (await anext(secrets)).identities[0].chain != first.identities[0].chain
