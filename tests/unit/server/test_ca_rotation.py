"""The CA's keeper and calendar on a real store and log, with a clock that lets years pass in a second."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ca_world import DAY, ME, Above, World, holder, make

from eastwest.errors import FailedPrecondition, NotFound
from eastwest.pki.confirmation import NotConfirmed
from eastwest.pki.rotation.state import Kind, Source, Stage
from eastwest.pki.signer import KeyAlgorithm
from eastwest.plugins.disk_keys import DiskKeyStore
from eastwest.server.ca.rotator import BLOCKED_SECONDS, Rotator
from eastwest.store.authority import StateMoved
from eastwest.testing.ca import TestCA


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await make(tmp_path)
    yield made
    await made.stack.aclose()


async def test_the_logs_public_keys_are_written_again_where_they_are_missing(world: World) -> None:
    files = [world.data / "server" / name for name in ("log.vkey", "log.ml-dsa-44.vkey")]
    told = [file.read_text() for file in files]
    files[0].unlink()
    await world.reopen()
    assert [file.read_text() for file in files] == told


async def test_a_root_goes_through_its_stages_and_its_keys_with_it(world: World) -> None:
    keeper = world.keeper
    old = keeper.state.active_root
    assert old is not None
    at_first = keeper.trust.bundle
    told = []
    keeper.trust.subscribe(told.append)
    prepared = (await keeper.prepare(Kind.X509, ME)).item
    assert keeper.signing is not None
    assert keeper.signing.authorities[""].roots == (old.certificate,)
    assert len(keeper.trust.bundle.x509_authorities) == 2
    assert keeper.trust.bundle.sequence == at_first.sequence + 1
    assert told == [keeper.trust.bundle]
    keeper.holders = lambda: [holder(at_first.sequence)]
    with pytest.raises(NotConfirmed, match=r"spiffe://td\.test/spire/agent/a"):
        await keeper.activate(Kind.X509, prepared.id, ME)
    keeper.holders = lambda: [holder(keeper.state.sequence)]
    await keeper.activate(Kind.X509, prepared.id, ME)
    assert keeper.signing.authorities[""].roots != (old.certificate,)
    await keeper.taint(Kind.X509, old.id, ME)
    assert [root.tainted for root in keeper.trust.bundle.x509_authorities] == [True, False]
    keeper.holders = lambda: [holder(keeper.state.sequence - 1)]
    with pytest.raises(NotConfirmed):
        await keeper.revoke(Kind.X509, old.id, ME)
    keeper.holders = lambda: [holder(keeper.state.sequence, tainted=1)]
    with pytest.raises(NotConfirmed, match="holds 1 tainted"):
        await keeper.revoke(Kind.X509, old.id, ME)
    keeper.holders = lambda: [holder(keeper.state.sequence)]
    assert old.key in world.keys
    await keeper.revoke(Kind.X509, old.id, ME)
    assert keeper.state.roots == (keeper.state.active_root,)
    assert world.keys == set(keeper.state.key_names())


async def test_only_prepared_is_activated_only_old_tainted_only_tainted_revoked(world: World) -> None:
    keeper = world.keeper
    root, jwt = keeper.state.active_root, keeper.state.active_jwt
    assert root is not None
    assert jwt is not None
    for kind, authority_id in ((Kind.X509, root.id), (Kind.ISSUING, root.issuing[0].id), (Kind.JWT, jwt.id)):
        for change in (keeper.activate, keeper.taint, keeper.revoke, keeper.discard):
            with pytest.raises(FailedPrecondition, match="is active: only what is"):
                await change(kind, authority_id, ME)
        with pytest.raises(NotFound):
            await keeper.taint(kind, "00", ME)
        prepared = (await keeper.prepare(kind, ME)).item
        assert prepared.stage is Stage.PREPARED
        with pytest.raises(FailedPrecondition, match="prepared already"):
            await keeper.prepare(kind, ME)
        for change in (keeper.taint, keeper.revoke):
            with pytest.raises(FailedPrecondition, match="is prepared: only what is"):
                await change(kind, prepared.id, ME)
        await keeper.discard(kind, prepared.id, ME)
    assert world.keys == set(keeper.state.key_names())


async def test_issuing_cas_rotate_below_the_same_root_and_nobody_need_confirm(world: World) -> None:
    keeper = world.keeper
    await keeper.want(["prod", "edge"], ME)
    assert set(keeper.state.issuing()) == {"", "prod", "edge"}
    assert keeper.awaiting == frozenset()
    old = keeper.state.issuing()["prod"]
    keeper.holders = lambda: [holder(0)]
    prepared = (await keeper.prepare(Kind.ISSUING, ME, "prod")).item
    sequence = keeper.state.sequence
    await keeper.activate(Kind.ISSUING, prepared.id, ME)
    assert keeper.state.issuing()["prod"].id == prepared.id
    assert keeper.state.sequence == sequence
    await keeper.taint(Kind.ISSUING, old.id, ME)
    assert keeper.trust.tainted_issuing == (old.id,)
    assert keeper.trust.bundle.sequence == sequence + 1
    assert not any(root.tainted for root in keeper.trust.bundle.x509_authorities)
    keeper.holders = lambda: [holder(keeper.state.sequence, stock=True, issuer=old.id)]
    with pytest.raises(NotConfirmed):
        await keeper.revoke(Kind.ISSUING, old.id, ME)
    keeper.holders = lambda: [holder(keeper.state.sequence, stock=True, issuer=prepared.id)]
    await keeper.revoke(Kind.ISSUING, old.id, ME)
    assert keeper.trust.tainted_issuing == ()
    root = (await keeper.prepare(Kind.X509, ME)).item
    assert {ca.environment for ca in root.issuing} == {"", "prod", "edge"}
    with pytest.raises(FailedPrecondition, match="no environment 'moon'"):
        await keeper.prepare(Kind.ISSUING, ME, "moon")


async def test_force_goes_ahead_and_says_so_in_the_log(world: World) -> None:
    keeper = world.keeper
    keeper.holders = lambda: [holder(0)]
    prepared = (await keeper.prepare(Kind.JWT, ME)).item
    await keeper.activate(Kind.JWT, prepared.id, ME, force=True)
    [*_, record] = await world.records("ca.activated")
    assert record["forced"] is True
    assert "spiffe://td.test/spire/agent/a" in record["unconfirmed"]
    assert record["authority_id"] == prepared.id


@pytest.mark.parametrize("kind", [Kind.JWT, Kind.X509])
async def test_those_outside_who_cannot_confirm_are_given_time(world: World, kind: Kind) -> None:
    keeper, clock = world.keeper, world.clock
    keeper.publish_wait = lambda asked: 600 if asked is kind else 0
    prepared = (await keeper.prepare(kind, ME)).item
    usable = int(clock.now().timestamp()) + 600
    assert keeper.usable_at(kind, prepared) == usable
    with pytest.raises(NotConfirmed, match=r"published for 0 s.*wait 600 s more"):
        await keeper.activate(kind, prepared.id, ME)
    clock.advance(599)
    with pytest.raises(NotConfirmed, match=r"published for 599 s.*wait 1 s more"):
        await keeper.activate(kind, prepared.id, ME)
    await world.reopen()
    keeper = world.keeper
    keeper.publish_wait = lambda asked: 600 if asked is kind else 0
    with pytest.raises(NotConfirmed, match="published for 599 s"):
        await keeper.activate(kind, prepared.id, ME)
    clock.advance(1)
    assert (await keeper.activate(kind, prepared.id, ME)).item.stage is Stage.ACTIVE
    assert keeper.usable_at(kind, keeper.state.active_jwt if kind is Kind.JWT else keeper.state.active_root) == 0
    [*_, record] = await world.records("ca.activated")
    assert record["forced"] is False


async def test_force_records_everybody_who_was_not_waited_for(world: World) -> None:
    keeper = world.keeper
    keeper.publish_wait = lambda _kind: 600
    keeper.holders = lambda: [holder(0)]
    prepared = (await keeper.prepare(Kind.JWT, ME)).item
    await keeper.activate(Kind.JWT, prepared.id, ME, force=True)
    [*_, record] = await world.records("ca.activated")
    assert record["forced"] is True
    assert "spiffe://td.test/spire/agent/a" in record["unconfirmed"]
    assert "published for 0 s" in record["unconfirmed"]


async def test_the_calendar_gives_those_outside_time_too(tmp_path: Path) -> None:
    world = await make(tmp_path, jwt_key_days=30)
    keeper, clock = world.keeper, world.clock
    keeper.publish_wait = lambda _kind: 600
    rotator = Rotator(keeper, clock, automatic=True)
    assert keeper.state.active_jwt is not None
    # Nobody looked for a long time: both steps are due at once.
    clock.advance(keeper.state.active_jwt.not_after - clock.now().timestamp() - 3 * DAY)
    while await rotator.turn() == 0.0:
        pass
    prepared = keeper.state.prepared_jwt
    assert prepared is not None
    assert await rotator.turn() == BLOCKED_SECONDS
    assert any("published for" in problem for problem in keeper.problems.values())
    clock.advance(600)
    while await rotator.turn() == 0.0:
        pass
    assert keeper.state.active_jwt.id == prepared.id
    assert keeper.problems == {}
    await world.stack.aclose()


@pytest.mark.parametrize("kind", list(Kind))
async def test_a_store_that_fails_changes_nothing_and_a_restart_clears_away(world: World, kind: Kind) -> None:
    keeper = world.keeper
    state, bundle, keys = keeper.state, keeper.trust.bundle, world.keys
    # Somebody else's write: the same as a disk that fails between the record and the commit.
    await keeper._store.save(state, keeper._revision)
    with pytest.raises(StateMoved):
        await keeper.prepare(kind, ME)
    assert keeper.trust.bundle == bundle
    await world.reopen()
    assert world.keeper.state.roots == state.roots
    assert world.keeper.state.jwt == state.jwt
    assert world.keys == keys


async def test_a_kill_after_keys_were_made_leaves_none_of_them(world: World) -> None:
    names = await world.keeper.intend("root", "issuing", "jwt")
    store = DiskKeyStore(world.data / "server" / "keys")
    stranger = "somebody-elses"
    for name in [*names[:2], stranger]:
        store.create(name, KeyAlgorithm.EC_P256)
    await world.reopen()
    assert not set(names) & world.keys
    assert stranger in world.keys
    assert world.keeper.state.loose == ()


async def test_sequence_and_state_survive_restarts(world: World) -> None:
    prepared = (await world.keeper.prepare(Kind.X509, ME)).item
    bundle = world.keeper.trust.bundle
    await world.reopen()
    assert world.keeper.trust.bundle == bundle
    assert world.keeper.state.prepared_root is not None
    assert world.keeper.state.prepared_root.id == prepared.id
    await world.keeper.activate(Kind.X509, prepared.id, ME)
    with pytest.raises(NotFound):
        world.keeper.state.root("ff")


async def test_by_the_calendar_for_twelve_years(tmp_path: Path) -> None:
    world = await make(tmp_path, root_days=1000, intermediate_days=200, jwt_key_days=60)
    keeper, clock = world.keeper, world.clock
    rotator = Rotator(keeper, clock, automatic=True)
    keeper.holders = lambda: [holder(keeper.state.sequence)]
    roots, cas, jwts = set(), set(), set()
    highest = 0
    step = 2 * DAY
    for _ in range(12 * 365 * DAY // step):
        clock.advance(step)
        while await rotator.turn() == 0.0:
            pass
        state, now = keeper.state, int(clock.now().timestamp())
        root, jwt = state.active_root, state.active_jwt
        assert root is not None
        assert jwt is not None
        assert keeper.problems == {}
        for living in (root, jwt, *state.issuing().values()):
            # A leaf of four hours never needs to be cut short.
            assert living.not_after > now + DAY
        assert all(found.not_after + 3 * DAY >= now for found in (*state.roots, *state.jwt))
        highest = max(highest, len(state.roots))
        roots.add(root.id)
        cas.add(state.issuing()[""].id)
        jwts.add(jwt.id)
    years = 12 * 365
    assert years // 1000 <= len(roots) <= years // 950 + 2
    assert len(cas) >= years // 200
    assert len(jwts) >= years // 60
    assert highest == 2
    assert world.keys == set(keeper.state.key_names())
    await world.stack.aclose()


async def test_the_calendar_waits_for_confirmation_until_no_time_is_left(tmp_path: Path) -> None:
    world = await make(tmp_path, root_days=100, intermediate_days=100, jwt_key_days=3650)
    keeper, clock = world.keeper, world.clock
    rotator = Rotator(keeper, clock, automatic=True)
    old = keeper.state.active_root
    assert old is not None
    keeper.holders = lambda: [holder(1)]
    clock.advance(71 * DAY)
    await rotator.turn()
    assert keeper.state.prepared_root is not None
    clock.advance(23 * DAY)
    pause = await rotator.turn()
    assert pause < 60
    assert keeper.state.active_root == old
    [problem] = keeper.problems.values()
    assert "activating the next root is due and waits" in problem
    assert "spiffe://td.test/spire/agent/a" in problem
    clock.advance(5 * DAY + DAY // 2)
    await rotator.turn()
    assert keeper.state.active_root != old
    assert keeper.problems == {}
    records = await world.records("ca.activated")
    assert records[-1]["by_schedule_at_last"] is True
    assert records[-1]["forced"] is True
    await world.stack.aclose()


async def test_a_manual_ca_only_says_what_is_due(tmp_path: Path) -> None:
    world = await make(tmp_path, root_days=100, intermediate_days=100, jwt_key_days=3650)
    rotator = Rotator(world.keeper, world.clock, automatic=False)
    before = world.keeper.state
    world.clock.advance(80 * DAY)
    await rotator.turn()
    assert world.keeper.state == before
    assert any("preparing the next root is due" in text for text in world.keeper.problems.values())
    await world.stack.aclose()


async def test_below_an_upstream_by_the_calendar_through_a_change_of_its_root(tmp_path: Path) -> None:
    world = await make(tmp_path, intermediate_days=60)
    keeper, clock = world.keeper, world.clock
    above = keeper.maker.upstream = Above(clock)
    keeper.holders = lambda: [holder(keeper.state.sequence)]
    await keeper.want(["prod"], ME)
    prepared = (await keeper.prepare(Kind.X509, ME)).item
    assert prepared.source is Source.UPSTREAM
    await keeper.activate(Kind.X509, prepared.id, ME)
    assert set(keeper.state.issuing()) == {"", "prod"}
    rotator = Rotator(keeper, clock, automatic=True)

    async def pass_by(days: int) -> None:
        for _ in range(days):
            clock.advance(DAY)
            while await rotator.turn() == 0.0:
                pass

    first = keeper.state.issuing()
    await pass_by(100)
    assert keeper.state.active_root is not None
    assert keeper.state.active_root.id == prepared.id
    assert {ca.id for ca in keeper.state.issuing().values()}.isdisjoint({ca.id for ca in first.values()})
    above.ca = TestCA("td.test", clock.now())
    await pass_by(70)
    assert keeper.problems == {}
    assert keeper.state.active_root.certificate == above.ca.root
    assert set(keeper.state.issuing()) == {"", "prod"}
    assert [root.stage for root in keeper.state.roots] == [Stage.OLD, Stage.OLD, Stage.ACTIVE]
    assert world.keys == set(keeper.state.key_names())
    await world.stack.aclose()


async def test_an_upstream_that_is_away_costs_no_keys_and_no_hurry(tmp_path: Path) -> None:
    world = await make(tmp_path)
    keeper = world.keeper
    above = keeper.maker.upstream = Above(world.clock)
    prepared = (await keeper.prepare(Kind.X509, ME)).item
    await keeper.activate(Kind.X509, prepared.id, ME)
    above.is_away = True
    await keeper.want(["prod"], ME)
    rotator = Rotator(keeper, world.clock, automatic=True)
    assert await rotator.turn() == BLOCKED_SECONDS
    assert "an environment has no issuing CA yet: out to lunch" in keeper.problems["environments"]
    assert keeper.awaiting == {"prod"}
    assert world.keys == set(keeper.state.key_names())
    above.is_away = False
    await rotator.turn()
    assert keeper.awaiting == frozenset()
    assert keeper.problems == {}
    await world.stack.aclose()


async def test_the_rotator_wakes_by_itself_and_when_told(tmp_path: Path) -> None:
    world = await make(tmp_path, root_days=100, intermediate_days=100, jwt_key_days=3650)
    keeper, clock = world.keeper, world.clock
    keeper.holders = lambda: [holder(1)]
    rotator = Rotator(keeper, clock, automatic=True)
    running = asyncio.create_task(rotator.run())

    async def until(condition) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)
                clock.advance(DAY)

    await until(lambda: keeper.state.prepared_root is not None)
    await until(lambda: keeper.problems)
    keeper.holders = lambda: [holder(keeper.state.sequence)]
    rotator.changed.set()
    async with asyncio.timeout(10):
        while keeper.problems:
            await asyncio.sleep(0.01)
    assert keeper.state.prepared_root is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await world.stack.aclose()
