"""The token service without a network: keys over kills and years, the rate, and answers when something is away."""

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import jwt
import pytest
from token_world import CONSOLE, ESTATE, TD, form

from eastwest.entropy import SystemEntropy
from eastwest.errors import FailedPrecondition, Unavailable
from eastwest.issuance.transaction import Targets
from eastwest.log.entry import decode
from eastwest.pki.compact import parse
from eastwest.pki.signer import KeyAlgorithm
from eastwest.pki.token_keys import Calendar
from eastwest.plugins.disk_keys import DiskKeyStore
from eastwest.policy.estate import Right
from eastwest.policy.load import load_estate
from eastwest.policy.table import compile_estate
from eastwest.process.signing import ThreadSigningPool
from eastwest.registry.administrators import Administrator, Grant, full
from eastwest.server.journal import Journal
from eastwest.server.tokens.approvals import MAX_PENDING, Approvals, Lifetimes
from eastwest.server.tokens.endpoint import Endpoint, Rates
from eastwest.server.tokens.exchange import Exchange
from eastwest.server.tokens.http2 import Asked
from eastwest.server.tokens.keys import TokenKeys
from eastwest.spiffe.id import TrustDomain
from eastwest.store.database import Database
from eastwest.store.tokens import SqliteTokens
from eastwest.testing import FakeClock, TestCA
from eastwest.testing.log import Failure, MemoryLog

DOMAIN = TrustDomain("td.test")
CALENDAR = Calendar(period=7 * 86_400, lead=600, kept=365)
MANY_RATES = Rates(1000.0, 1000.0, 1000.0)
FORM = "application/x-www-form-urlencoded"
MANY = ESTATE | {
    "workloads/all.yaml": ESTATE["workloads/all.yaml"].replace(
        "[acme, globex]", json.dumps([f"t{number}" for number in range(MAX_PENDING + 5)])
    )
}
SIDECARS = compile_estate(load_estate({name: text.encode() for name, text in MANY.items()})).sidecars


class Away:
    """A key store that stops to answer when it is told so."""

    def __init__(self, store: DiskKeyStore) -> None:
        self._store = store
        self.is_away = False

    def __getattr__(self, name: str):
        if self.is_away:
            raise Unavailable("the key store does not answer")
        return getattr(self._store, name)


class OnlyElliptic:
    """A key store without keys of RSA."""

    def __init__(self, store: DiskKeyStore) -> None:
        self.create, self.load, self.delete, self.names = store.create, store.load, store.delete, store.names


class World:
    """The service on a real database and real keys on disk."""

    def __init__(self, directory, clock: FakeClock) -> None:
        self.clock = clock
        self.log = MemoryLog()
        self.disk = DiskKeyStore(directory / "keys")
        self.store = Away(self.disk)
        self.database = Database.open(directory / "db", trust_domain="td.test", clock=clock)
        self.tokens = SqliteTokens(self.database)
        self.journal = Journal(self.log, clock)
        self.keys = TokenKeys(DOMAIN, self.tokens, self.store, CALENDAR, self.journal, clock, SystemEntropy())
        self.changes = 0
        self.keys.on_change = self.changed
        self.pool = ThreadSigningPool()
        self.administrators = {"unix:uid:0": full("unix:uid:0")}

    def changed(self) -> None:
        self.changes += 1

    @property
    def published(self) -> list[str]:
        return [key["kid"] for key in json.loads(self.keys.document)["keys"]]

    def endpoint(self, rates: Rates = MANY_RATES) -> Endpoint:
        targets = Targets(SIDECARS.values())
        self.approvals = Approvals(
            self.tokens,
            lambda: targets,
            lambda _service: "shop",
            self.administrators.get,
            Lifetimes(3600, 900),
            self.journal,
            self.clock,
            SystemEntropy(),
        )
        exchange = Exchange(
            DOMAIN,
            lambda: targets,
            self.keys,
            self.approvals,
            self.journal,
            self.clock,
            SystemEntropy(),
            self.pool,
            120,
        )
        return Endpoint(DOMAIN, exchange, self.clock, rates)

    async def recorded(self, kind: str) -> list[dict]:
        entries = [decode(raw) for raw in await self.log.entries(0, self.log.size)]
        return [dict(entry.body) for entry in entries if entry.kind == kind]

    async def close(self) -> None:
        self.pool.close()
        await self.database.close()


@asynccontextmanager
async def opened(directory, clock: FakeClock):
    world = World(directory, clock)
    try:
        await world.keys.open()
        yield world
    finally:
        await world.close()


def certificate(clock: FakeClock, path: str = "/prod/shop/console") -> bytes:
    svid, _ = TestCA("td.test", clock.now()).svid(path)
    return svid.chain[0]


async def ask(endpoint: Endpoint, der: bytes, operation: str, **more: object) -> tuple[int, dict]:
    answer = await endpoint(der, Asked("POST", "/token", FORM, urlencode(form(operation, **more)).encode()))
    return answer.status, json.loads(answer.body)


async def test_keys_follow_each_other_for_a_month_and_over_restarts(tmp_path) -> None:
    clock = FakeClock()
    seen: list[str] = []
    for _ in range(40):
        async with opened(tmp_path, clock) as world:
            signing = (await world.keys.signer()).key_id
            assert signing in world.published
            if signing not in seen:
                seen.append(signing)
            assert len(world.published) <= 2
            assert len(world.disk.names()) == len(world.published)
        clock.advance(20 * 3600)
    assert len(seen) == 5


async def test_a_successor_is_told_before_it_signs_and_the_old_key_stays_a_while(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        [first] = world.published
        clock.advance(CALENDAR.period - CALENDAR.lead - 1)
        await world.keys.turn()
        assert world.published == [first]
        changes = world.changes
        clock.advance(1)
        await world.keys.turn()
        assert world.changes > changes
        assert len(world.published) == 2
        clock.advance(CALENDAR.lead - 1)
        assert (await world.keys.signer()).key_id == first
        clock.advance(1)
        second = (await world.keys.signer()).key_id
        assert second != first
        clock.advance(CALENDAR.kept)
        await world.keys.turn()
        assert set(world.published) == {first, second}
        clock.advance(1)
        await world.keys.turn()
        assert world.published == [second]
        assert len(world.disk.names()) == 1
        assert [entry["key_id"] for entry in await world.recorded("token_key.published")] == [first, second]
        assert [entry["key_id"] for entry in await world.recorded("token_key.dropped")] == [first]


async def test_a_key_from_before_rsa_signs_and_verifies_until_its_successor_does(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        # As a server without RSA keys has made it.
        world.keys._keys = OnlyElliptic(world.disk)
        clock.advance(CALENDAR.period)
        await world.keys.turn()
        older = world.keys._ring.keys[-1].id  # published in the order of ids
    async with opened(tmp_path, clock) as world:
        clock.advance(CALENDAR.lead)
        signer = await world.keys.signer()
        assert signer.key_id == older
        assert signer.algorithm is KeyAlgorithm.EC_P256
        status, said = await ask(world.endpoint(), certificate(clock), "billing:reports:make")
        assert (status, jwt.get_unverified_header(said["access_token"])["alg"]) == (200, "ES256")
        assert parse(said["access_token"], 4096).is_signed_by(world.keys.public)
        clock.advance(CALENDAR.period)
        await world.keys.turn()
        clock.advance(CALENDAR.lead)
        assert parse(said["access_token"], 4096).is_signed_by(world.keys.public)
        status, said = await ask(world.endpoint(), certificate(clock), "billing:reports:make")
        assert (status, jwt.get_unverified_header(said["access_token"])["alg"]) == (200, "RS256")
        # A store that keeps no such keys says so, and what would help.
        world.keys._signers.clear()
        world.keys._keys = OnlyElliptic(world.disk)
        with pytest.raises(FailedPrecondition, match="go back to the key store"):
            await world.keys.signer()


async def test_what_an_interrupted_change_left_is_cleared_away(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        [first] = world.published
        # Killed after the key was made, and before it was recorded.
        world.log.fail_next(Failure.REFUSED)
        clock.advance(CALENDAR.period)
        with pytest.raises(Unavailable):
            await world.keys.turn()
        assert world.published == [first]
        assert len(world.disk.names()) == 2
    async with opened(tmp_path, clock) as world:
        assert len(world.published) == 2
        assert len(world.disk.names()) == 2
        # A key of somebody else in the same store is left alone.
        world.disk.create("token-of-another", KeyAlgorithm.EC_P256)
    async with opened(tmp_path, clock) as world:
        assert "token-of-another" in world.disk.names()


async def test_a_key_store_that_is_away_is_told_and_tried_again(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        keeping = asyncio.create_task(world.keys.keep())
        await clock.elapse(1)
        world.store.is_away = True
        await clock.elapse(CALENDAR.period)
        async with asyncio.timeout(10):
            while not world.keys.problem:
                await asyncio.sleep(0.01)
        assert "does not answer" in world.keys.problem
        # The old key signs on meanwhile.
        assert (await world.keys.signer()).key_id in world.published
        world.store.is_away = False
        async with asyncio.timeout(10):
            while world.keys.problem:
                await clock.elapse(30)
                await asyncio.sleep(0.01)
        assert len(world.published) == 2
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_a_caller_that_asks_too_often_waits(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        endpoint = world.endpoint(Rates(rate=2, burst=2))
        console, web = certificate(clock), certificate(clock, "/prod/shop/web")
        assert [(await ask(endpoint, console, "billing:reports:make"))[0] for _ in range(3)] == [200, 200, 429]
        status, said = await ask(endpoint, console, "billing:reports:make")
        assert (status, said["error"], said["code"]) == (429, "temporarily_unavailable", "EXHAUSTED")
        # Others do not, and it may again soon.
        assert (await ask(endpoint, web, "billing:invoices:read", tenant="t1"))[0] == 200
        clock.advance(0.5)
        assert (await ask(endpoint, console, "billing:reports:make"))[0] == 200


async def test_certificates_of_one_caller_have_a_bound_together(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        endpoint = world.endpoint(Rates(rate=1, burst=2, caller_rate=2))
        for _ in range(2):
            mine = certificate(clock)
            assert [(await ask(endpoint, mine, "billing:reports:make"))[0] for _ in range(3)] == [200, 200, 429]
        status, said = await ask(endpoint, certificate(clock), "billing:reports:make")
        assert status == 429
        assert "requests by spiffe://td.test/prod/shop/console" in said["error_description"]
        assert (await ask(endpoint, certificate(clock, "/prod/shop/web"), "billing:invoices:read", tenant="t1"))[
            0
        ] == 200


async def test_tokens_that_nothing_demands_count_too(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        endpoint, web = world.endpoint(Rates()), certificate(clock, "/prod/shop/web")
        # A read without demands, which the policy allows as it is.
        answers = [(await ask(endpoint, web, "billing:invoices:read", tenant="t1"))[0] for _ in range(51)]
        assert answers == [200] * 50 + [429]
        clock.advance(1)
        answers = [(await ask(endpoint, web, "billing:invoices:read", tenant="t1"))[0] for _ in range(6)]
        assert answers == [200] * 5 + [429]


async def test_what_cannot_be_recorded_is_not_given(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        endpoint, console = world.endpoint(), certificate(clock)
        world.log.fail_next(Failure.REFUSED)
        status, said = await ask(endpoint, console, "billing:reports:make")
        assert (status, said["error"], said["code"]) == (503, "temporarily_unavailable", "LOG_UNAVAILABLE")
        assert "access_token" not in said
        world.log.fail_next(Failure.REFUSED)
        status, said = await ask(endpoint, console, "billing:credits:create", tenant="t1", reason="x")
        assert (status, said["code"]) == (503, "LOG_UNAVAILABLE")
        assert not await world.approvals.listed("", "", 10)
        assert (await ask(endpoint, console, "billing:reports:make"))[0] == 200


ADJUST = "billing:adjustments:create"


async def approved(world: World, endpoint: Endpoint, console: bytes) -> str:
    """The id of an approval of one adjustment, granted by root."""
    _, said = await ask(endpoint, console, ADJUST, tenant="t1", reason="x")
    await world.approvals.grant(said["approval"], full("unix:uid:0"), "fine")
    return said["approval"]


async def test_an_approval_is_not_spent_on_a_token_that_nobody_got(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        endpoint, console = world.endpoint(), certificate(clock)
        approval = await approved(world, endpoint, console)
        world.log.fail_next(Failure.REFUSED)
        status, said = await ask(endpoint, console, ADJUST, tenant="t1")
        assert (status, said["code"]) == (503, "LOG_UNAVAILABLE")
        assert (await world.approvals.get(approval)).spent_at == 0
        answers = await asyncio.gather(*(ask(endpoint, console, ADJUST, tenant="t1") for _ in range(5)))
        assert sorted(status for status, _ in answers) == [200, 403, 403, 403, 403]
        assert len(await world.recorded("token.minted")) == 1
        assert (await world.approvals.get(approval)).spent_at


async def test_an_approval_holds_while_its_approver_may_approve(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        endpoint, console = world.endpoint(), certificate(clock)
        approval = await approved(world, endpoint, console)
        for administrators in (
            {},
            {"unix:uid:0": Administrator("unix:uid:0", (Grant(frozenset({Right.READ})),))},
            {"unix:uid:0": Administrator("unix:uid:0", (Grant(frozenset({Right.APPROVALS}), frozenset({"base"})),))},
        ):
            world.administrators.clear()
            world.administrators.update(administrators)
            status, said = await ask(endpoint, console, ADJUST, tenant="t1")
            assert (status, said["error"]) == (403, "approval_required")
            status, said = await ask(endpoint, console, ADJUST, tenant="t1", approval=approval)
            assert (status, said["error"], said["code"]) == (403, "access_denied", "APPROVAL_REQUIRED")
            assert "unix:uid:0, who granted" in said["error_description"]
        world.administrators["unix:uid:0"] = Administrator(
            "unix:uid:0", (Grant(frozenset({Right.APPROVALS}), frozenset({"shop"})),)
        )
        assert (await ask(endpoint, console, ADJUST, tenant="t1"))[0] == 200


async def test_not_too_many_approvals_wait(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        endpoint, console = world.endpoint(), certificate(clock)
        for number in range(MAX_PENDING):
            status, _ = await ask(endpoint, console, "billing:credits:create", tenant=f"t{number}", reason="x")
            assert status == 403
        status, said = await ask(endpoint, console, "billing:credits:create", tenant=f"t{MAX_PENDING}", reason="x")
        assert (status, said["code"]) == (429, "EXHAUSTED")
        status, _ = await ask(endpoint, console, "billing:credits:create", tenant="t3", reason="x")
        assert status == 403, "the one that waits is named"
        assert len(await world.recorded("approval.requested")) == MAX_PENDING
        clock.advance(3600)
        console = certificate(clock)
        status, said = await ask(endpoint, console, "billing:credits:create", tenant="t3", reason="x")
        assert (status, said["error"]) == (403, "approval_required")


async def test_certificates_that_prove_nobody_here(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        endpoint = world.endpoint()
        foreign, _ = TestCA("td.test.evil", clock.now()).svid("/prod/shop/console")
        status, said = await ask(endpoint, foreign.chain[0], "billing:reports:make")
        assert (status, said["error"], said["code"]) == (401, "invalid_client", "CERTIFICATE_REFUSED")
        ended = certificate(clock)
        clock.advance(86_400 * 30)
        status, said = await ask(endpoint, ended, "billing:reports:make")
        assert (status, said["code"]) == (401, "CERTIFICATE_REFUSED")


async def test_a_mistake_of_ours_is_an_answer_too(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        endpoint, console = world.endpoint(), certificate(clock)
        await world.database.close()
        status, _ = await ask(endpoint, console, "billing:credits:create", tenant="t1", reason="x")
        assert status == 503
        answer = await endpoint(b"no certificate at all", Asked("POST", "/token", FORM, b""))
        assert answer.status == 500
        assert json.loads(answer.body)["error"] == "server_error"


async def test_a_single_use_token_is_remembered_until_nobody_would_take_it(tmp_path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as world:
        now = int(clock.now().timestamp())
        store = world.tokens
        answers = await asyncio.gather(*(store.use("billing", "t1", now + 60, "", now) for _ in range(50)))
        assert answers.count(True) == 1
        assert await store.use("billing", "t2", now + 90, "", now + 60)
        assert not await store.use("billing", "t1", now + 60, "", now + 60)
        # Nobody uses up what is another service's.
        assert await store.use("ledger", "t1", now + 60, "", now + 60)
        assert await store.use("billing", "t3", now + 400, "", now + 61)
        rows = await world.database.read(lambda c: c.execute("SELECT token_id FROM used_tokens").fetchall())
        assert {row[0] for row in rows} == {"t2", "t3"}


async def test_minted_tokens_verify_by_the_published_keys(tmp_path) -> None:
    clock = FakeClock(datetime.now(UTC) + timedelta(seconds=1))
    async with opened(tmp_path, clock) as world:
        endpoint = world.endpoint()
        status, said = await ask(endpoint, certificate(clock), "billing:reports:make")
        assert status == 200
        keys = jwt.PyJWKSet.from_json(world.keys.document.decode())
        kid = jwt.get_unverified_header(said["access_token"])["kid"]
        options = {"verify_iat": False}
        claims = jwt.decode(
            said["access_token"], keys[kid], algorithms=["RS256"], audience=TD, issuer=TD, options=options
        )
        assert claims["sub"] == CONSOLE
