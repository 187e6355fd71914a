"""Every store of the registry keeps the same promises; the next adapter joins by one more opener."""

import asyncio
from dataclasses import replace

import pytest

from eastwest.errors import AlreadyExists, FailedPrecondition
from eastwest.registry.entry import Entry, Origin
from eastwest.registry.node import JoinToken, Node
from eastwest.registry.ports import Batch, PrivilegedSvid, RegistryStore, Snapshot
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.store.database import Database
from eastwest.store.registry import SqliteRegistryStore
from eastwest.testing.clock import FakeClock
from eastwest.testing.registry import MemoryRegistryStore

TD = TrustDomain("store.test")
AGENT = TD.id("/spire/agent/join_token/t1")

ENTRY = Entry(
    id="e1",
    spiffe_id=TD.id("/prod/billing"),
    parent_id=AGENT,
    selectors=frozenset({Selector("unix", "uid:1000"), Selector("unix", 'path:/a "b"\n\0:c')}),
    x509_svid_ttl=60,
    jwt_svid_ttl=61,
    federates_with=(TrustDomain("a.test"), TrustDomain("b.test")),
    admin=True,
    downstream=True,
    expires_at=2_000_000_000,
    dns_names=("z.internal", "a.internal"),
    revision=7,
    store_svid=True,
    hint="höchst",
    created_at=1_900_000_000,
    disable_x509_svid_prefetch=True,
    jwt_svid_include_jti=True,
    profile="special",
    owner="group:commerce",
    origin=Origin.ESTATE,
    environment="prod",
    managed_by="estate",
    attributes=(("kind", 'a "b"'), ("tenants", ("acme", "globex"))),
)
PLAIN = Entry(id="e2", spiffe_id=TD.id("/w"), parent_id=AGENT, selectors=frozenset({Selector("unix", "uid:1")}))
NODE = Node(
    spiffe_id=AGENT,
    attestation_type="join_token",
    serial_current="340282366920938463463374607431768211455",
    not_after=1_900_003_600,
    serial_new="5",
    new_not_after=1_900_007_200,
    banned=True,
    can_reattest=True,
    selectors=frozenset({Selector("join_token", "group:prod")}),
    agent_version="0.1.0",
)


class Sqlite:
    """Opens the same file again and again, as restarts do."""

    def __init__(self, folder):
        self._path = folder / "store.db"
        self._database = None

    async def open(self) -> RegistryStore:
        await self.close()
        self._database = Database.open(self._path, trust_domain=TD.name, clock=FakeClock())
        return SqliteRegistryStore(self._database)

    async def close(self) -> None:
        if self._database is not None:
            await self._database.close()


class Memory:
    """Its one object stands for the disk."""

    def __init__(self, _folder):
        self._store = MemoryRegistryStore()

    async def open(self) -> RegistryStore:
        return self._store

    async def close(self) -> None:
        pass


@pytest.fixture(params=[Memory, Sqlite])
async def opener(request, tmp_path):
    opener = request.param(tmp_path)
    yield opener
    await opener.close()


@pytest.fixture
async def store(opener) -> RegistryStore:
    return await opener.open()


def sets(snapshot: Snapshot):
    return set(snapshot.entries), set(snapshot.nodes), snapshot.version


async def test_a_new_store_is_empty(store):
    assert sets(await store.load()) == (set(), set(), 0)


async def test_every_field_survives_a_restart(opener):
    store = await opener.open()
    await store.apply(
        Batch(
            1,
            put_entries=(ENTRY, PLAIN),
            put_nodes=(NODE, replace(NODE, spiffe_id=TD.id("/spire/agent/x/2"), selectors=frozenset())),
        )
    )
    before = await store.load()
    again = await opener.open()
    assert sets(await again.load()) == sets(before)
    assert set(before.entries) == {ENTRY, PLAIN}
    assert NODE in before.nodes
    assert before.version == 1


async def test_privileged_svids_are_kept_until_they_end(opener):
    store = await opener.open()
    early, late = PrivilegedSvid("340282366920938463463374607431768211455", "e1", 100), PrivilegedSvid("2", "e2", 200)
    await store.save_svids([early, late], 50)
    assert set((await (await opener.open()).load()).svids) == {early, late}
    store = await opener.open()
    again = PrivilegedSvid("3", "e1", 300)
    await store.save_svids([again], 100)
    assert set((await store.load()).svids) == {late, again}


async def test_a_put_replaces_and_a_drop_removes(store):
    await store.apply(Batch(1, put_entries=(ENTRY, PLAIN), put_nodes=(NODE,)))
    changed, promoted = replace(ENTRY, hint="new", revision=8), replace(NODE, banned=False)
    await store.apply(Batch(2, put_entries=(changed,), drop_entries=("e2", "absent"), put_nodes=(promoted,)))
    assert sets(await store.load()) == ({changed}, {promoted}, 2)
    await store.apply(Batch(3, drop_nodes=(AGENT, TD.id("/spire/agent/absent/1"))))
    assert sets(await store.load()) == ({changed}, set(), 3)


async def test_similar_entries_are_never_kept_and_nothing_of_the_batch_is(store):
    await store.apply(Batch(1, put_entries=(ENTRY,)))
    with pytest.raises(AlreadyExists):
        await store.apply(Batch(2, put_entries=(PLAIN, replace(ENTRY, id="e3")), put_nodes=(NODE,)))
    assert sets(await store.load()) == ({ENTRY}, set(), 1)


async def test_entries_may_trade_keys_and_take_over_a_dropped_ones(store):
    a, b, c = ENTRY, PLAIN, replace(PLAIN, id="e3", spiffe_id=TD.id("/c"))
    await store.apply(Batch(1, put_entries=(a, b, c)))
    traded = (
        replace(a, spiffe_id=b.spiffe_id, selectors=b.selectors),
        replace(b, spiffe_id=a.spiffe_id, selectors=a.selectors),
    )
    heir = replace(c, id="e4")
    await store.apply(Batch(2, put_entries=(*traded, heir), drop_entries=("e3",)))
    assert sets(await store.load()) == ({*traded, heir}, set(), 2)


@pytest.mark.parametrize("version", [0, 1, 3])
async def test_a_batch_that_does_not_follow_is_refused(store, version):
    await store.apply(Batch(1, put_entries=(ENTRY,)))
    with pytest.raises(FailedPrecondition):
        await store.apply(Batch(version, drop_entries=("e1",)))
    assert sets(await store.load()) == ({ENTRY}, set(), 1)


async def test_a_token_is_used_by_one_key(opener):
    store = await opener.open()
    token = JoinToken(digest=b"\x01" * 32, expires_at=10, group="prod-nodes", alias=TD.id("/extra"))
    plain = JoinToken(digest=b"\x02" * 32, expires_at=20)
    await store.save_token(token)
    await store.save_token(plain)
    with pytest.raises(AlreadyExists):
        await store.save_token(replace(token, group="other"))
    store = await opener.open()
    assert await store.find_token(b"\x03" * 32) is None
    assert [await store.find_token(each.digest) for each in (token, plain)] == [token, plain]
    attempts = await asyncio.gather(
        *(store.apply(Batch(1, use_tokens=(replace(token, used_by=bytes([key]) * 32),))) for key in range(1, 9)),
        return_exceptions=True,
    )
    assert [type(attempt) for attempt in attempts].count(FailedPrecondition) == 7
    store = await opener.open()
    used = await store.find_token(token.digest)
    assert used == replace(token, used_by=used.used_by)
    assert used.used_by
    # The same key may come again, another may not, and what goes with a refused use does not happen either.
    await store.apply(Batch(2, use_tokens=(used,)))
    for wrong in (replace(used, used_by=b"\xee" * 32), replace(used, digest=b"\x03" * 32)):
        with pytest.raises(FailedPrecondition):
            await store.apply(Batch(3, put_entries=(ENTRY,), use_tokens=(wrong,)))
    assert sets(await store.load()) == (set(), set(), 2)
    assert await store.find_token(token.digest) == used


async def test_ended_tokens_are_dropped(store):
    for end in (10, 11, 12):
        await store.save_token(JoinToken(digest=bytes([end]) * 32, expires_at=end))
    assert await store.drop_tokens(11) == 2
    assert await store.find_token(bytes([11]) * 32) is None
    assert await store.find_token(bytes([12]) * 32) is not None


async def test_operations_take_turns_and_outlive_their_callers(store):
    seen: list[str] = []
    gate = asyncio.Event()

    def operation(name: str, wait: bool):
        async def run() -> str:
            seen.append(f"{name} begins")
            if wait:
                await gate.wait()
            seen.append(f"{name} ends")
            return name

        return run

    first = asyncio.create_task(store.in_turn(operation("first", True)))
    second = asyncio.create_task(store.in_turn(operation("second", False)))
    while not seen:
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert seen == ["first begins"]
    gate.set()
    assert await second == "second"
    assert seen == ["first begins", "first ends", "second begins", "second ends"]


async def test_an_operation_that_fails_gives_way_to_the_next(store):
    async def failing() -> None:
        raise AlreadyExists("no")

    async def working() -> int:
        return 1

    with pytest.raises(AlreadyExists):
        await store.in_turn(failing)
    assert await store.in_turn(working) == 1
