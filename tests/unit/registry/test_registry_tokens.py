"""Join tokens work once, in time, and are nowhere in clear."""

import asyncio
import hashlib
from datetime import datetime, timedelta

import pytest

from eastwest.errors import AlreadyExists, Code, FailedPrecondition, InvalidInput, Unavailable
from eastwest.plugins.join_token import JoinTokenAttestor
from eastwest.registry.node import JoinToken, Node
from eastwest.registry.nodes import NodeBanned
from eastwest.registry.registry import Registry
from eastwest.registry.tokens import InvalidJoinToken
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.store.database import Database
from eastwest.store.registry import SqliteRegistryStore
from eastwest.testing.clock import START, FakeClock
from eastwest.testing.entropy import SeededEntropy
from eastwest.testing.registry import MemoryRegistryStore

TD = TrustDomain("saas.example")


@pytest.fixture
def store():
    return MemoryRegistryStore()


@pytest.fixture
async def registry(store):
    return await Registry.open(TD, store, SeededEntropy())


class NoChallenge:
    """An agent that has shown its key and expects no question."""

    address = "192.0.2.1"
    spki = b"its key"

    async def __call__(self, _question: bytes) -> bytes:
        raise AssertionError("a join token needs no challenge")


async def join(registry: Registry, value: str, key: bytes, now: datetime = START) -> JoinToken:
    """What the server does between a token and a node."""
    token = await registry.tokens.check(value, key, now)
    agent = TD.id(f"/spire/agent/join_token/{value}")
    registry.nodes.ensure_may_attest(agent, "join_token", token)
    node = Node(spiffe_id=agent, attestation_type="join_token", serial_current="1", not_after=1)
    await registry.nodes.record_attestation(node, token)
    await registry.tokens.bring_along(token, agent, now)
    return token


async def test_of_many_attempts_one_succeeds(registry):
    token = await registry.tokens.create(START, group="prod-nodes")
    attempts = await asyncio.gather(
        *(join(registry, token.value, f"key {number}".encode()) for number in range(10)), return_exceptions=True
    )
    assert [attempt.group for attempt in attempts if not isinstance(attempt, Exception)] == ["prod-nodes"]
    refusals = [attempt for attempt in attempts if isinstance(attempt, Exception)]
    assert all(isinstance(refusal, InvalidJoinToken | FailedPrecondition) for refusal in refusals)


async def test_a_failure_that_is_the_servers_burns_no_token(registry, store):
    token = await registry.tokens.create(START)
    store.fail_next = Unavailable("the disk is full")
    with pytest.raises(Unavailable):
        await join(registry, token.value, b"key")
    await join(registry, token.value, b"another key, for nobody has joined yet")


async def test_an_answer_lost_on_the_way_is_asked_for_again_by_the_same_key(registry):
    token = await registry.tokens.create(START, alias=TD.id("/extra"))
    agent = TD.id(f"/spire/agent/join_token/{token.value}")
    await join(registry, token.value, b"key")
    await join(registry, token.value, b"key")
    assert registry.entries.count() == 1
    with pytest.raises(InvalidJoinToken):
        await registry.tokens.check(token.value, b"another key", START)
    with pytest.raises(InvalidJoinToken):
        await registry.tokens.check(token.value, b"key", START + timedelta(seconds=600))
    await registry.nodes.note_seen(agent, START)
    with pytest.raises(InvalidJoinToken):  # it has its certificate: whoever asks now is somebody else
        await registry.tokens.check(token.value, b"key", START)


async def test_a_used_token_lets_no_evicted_or_banned_node_back(registry):
    for shut_out in (registry.nodes.evict, registry.nodes.ban):
        token = await registry.tokens.create(START)
        await join(registry, token.value, b"key")
        await shut_out(TD.id(f"/spire/agent/join_token/{token.value}"))
        with pytest.raises((InvalidJoinToken, NodeBanned)):
            await join(registry, token.value, b"key")


async def test_used_expired_and_unknown_are_refused_alike(registry):
    used = await registry.tokens.create(START)
    late = await registry.tokens.create(START, ttl=5)
    await join(registry, used.value, b"key")
    said = set()
    for value in (used.value, late.value, late.value, "never-made", "", ".", "..", "a/b", "a" * 256, "é"):
        with pytest.raises(InvalidJoinToken) as refused:
            await registry.tokens.check(value, b"other", START + timedelta(seconds=5))
        said.add(str(refused.value))
        assert refused.value.code is Code.INVALID_INPUT
    assert len(said) == 1


async def test_the_last_second_counts(registry):
    token = await registry.tokens.create(START, ttl=5)
    used = await join(registry, token.value, b"key", START + timedelta(seconds=4, milliseconds=999))
    assert used.expires_at == token.expires_at


@pytest.mark.parametrize(
    "wrong",
    [
        {"ttl": -1},
        {"ttl": 31 * 24 * 3600},
        {"value": "elevenchars"},
        {"value": "with/a/slash/in/its/text"},
        {"value": "x" * 256},
        {"group": "a/b"},
        {"group": "a b"},
        {"alias": TD.id("/spire/server")},
        {"alias": TrustDomain("other.test").id("/x")},
    ],
)
async def test_what_cannot_work_is_refused_when_the_token_is_made(registry, wrong):
    with pytest.raises(InvalidInput):
        await registry.tokens.create(START, **wrong)


async def test_a_value_of_ones_own_is_used_once(registry):
    # As short as SPIRE's test client makes them.
    token = await registry.tokens.create(START, value="test_token_7", ttl=60)
    assert (token.value, token.expires_at) == ("test_token_7", int(START.timestamp()) + 60)
    with pytest.raises(AlreadyExists):
        await registry.tokens.create(START, value="test_token_7")
    await registry.tokens.create(START + timedelta(seconds=60), value="test_token_7")


async def test_an_extra_identity_comes_and_goes_with_the_node(registry):
    token = await registry.tokens.create(START, alias=TD.id("/extra"))
    assert registry.entries.count() == 0, "the entry would hold the token's text while it still opens"
    await join(registry, token.value, b"key")
    agent = TD.id(f"/spire/agent/join_token/{token.value}")
    [extra] = registry.authorized(agent, START).entries
    assert extra.spiffe_id == TD.id("/extra")
    assert extra.selectors == {Selector("spiffe_id", str(agent))}
    await registry.nodes.evict(agent)
    assert registry.entries.count() == 0


async def test_the_text_of_a_token_is_nowhere(tmp_path):
    path = tmp_path / "store.db"
    database = Database.open(path, trust_domain=TD.name, clock=FakeClock())
    registry = await Registry.open(TD, SqliteRegistryStore(database), SeededEntropy())
    token = await registry.tokens.create(START, group="prod", alias=TD.id("/extra"))
    assert token.value not in repr(token)
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert hashlib.sha256(token.value.encode()).digest() in stored
    assert token.value.encode() not in stored
    await database.close()


async def test_the_attestor_gives_the_id_that_agents_expect(registry):
    clock = FakeClock()
    attestor = JoinTokenAttestor(registry.tokens, clock)
    token = await registry.tokens.create(clock.now(), group="prod-nodes")
    attested = await attestor.attest(token.value.encode(), NoChallenge())
    assert attested.path == f"/spire/agent/join_token/{token.value}"
    assert attested.selectors == {Selector("join_token", "group:prod-nodes")}
    assert not attested.can_reattest
    plain = await registry.tokens.create(clock.now())
    assert (await attestor.attest(plain.value.encode(), NoChallenge())).selectors == frozenset()
    clock.advance(601)
    late = await registry.tokens.create(START)
    for payload in (token.value.encode(), late.value.encode(), b"\xff\xfe", b"", b'{"token": "x"}'):
        with pytest.raises(InvalidJoinToken) as refused:
            await attestor.attest(payload, NoChallenge())
        assert late.value not in str(refused.value)
