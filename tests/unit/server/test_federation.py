"""Federation against real endpoints: the poller, the judge of what they say, and what is kept when they lie."""

import asyncio
import dataclasses
import json
import ssl
from base64 import b64encode
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from eastwest.clock import SystemClock
from eastwest.errors import AlreadyExists, FailedPrecondition, LogUnavailable, NotFound
from eastwest.pki.jwks import export_bundle
from eastwest.registry.entry import Origin
from eastwest.registry.federation import (
    MAX_DOCUMENT,
    BundleRefused,
    EndpointProfile,
    Intended,
    InvalidRelationship,
    KeptByEstate,
    Relationship,
    check_bundle,
    read_document,
    refresh_seconds,
    retry_seconds,
)
from eastwest.rpc.tls import web_context
from eastwest.server.federation.client import FetchFailed, fetch, web_trust
from eastwest.server.federation.endpoint import bundle_endpoint
from eastwest.server.federation.keeper import Federation
from eastwest.server.federation.poll import BundlePoller
from eastwest.server.journal import Journal
from eastwest.server.public.https import PublicListener
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.store.database import Database
from eastwest.store.federation import SqliteFederation
from eastwest.testing.ca import TestCA
from eastwest.testing.clock import FakeClock
from eastwest.testing.entropy import SeededEntropy

OWN, PARTNER = TrustDomain("saas.example"), TrustDomain("partner.example")
ENDPOINT_ID = PARTNER.id("/spire/server")
ADMIN = "unix:uid:0"


class Recorder:
    """Keeps what is recorded; or has no room left."""

    def __init__(self) -> None:
        self.entries: list[dict] = []
        self.full = False

    async def append(self, entries):
        if self.full:
            raise LogUnavailable("no space left")
        self.entries += [json.loads(entry) for entry in entries]
        return range(len(entries))

    @property
    def changes(self) -> list[str]:
        return [entry["change"] for entry in self.entries if entry["kind"] == "federation.changed"]


class Endpoint:
    """A bundle endpoint that says what tests want it to say."""

    def __init__(self, ca: TestCA) -> None:
        self.ca = ca
        self.bundle = ca.bundle
        self.port = 0
        self.answer = None  # a Response in place of the bundle

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/"

    @asynccontextmanager
    async def serving(self, spiffe_id: SpiffeId = ENDPOINT_ID, *, port: int = 0):
        svid, key = self.ca.svid(spiffe_id.path, timedelta(hours=1))
        chain, pem = TestCA.pem(svid, key)

        async def get(request):
            if self.answer is not None:
                return self.answer
            app = bundle_endpoint(lambda: self.bundle)
            return await app.routes[0].endpoint(request)

        listener = PublicListener(Starlette(routes=[Route("/", get)]), "test", tls=web_context(chain, pem))
        self.port = listener.bind("127.0.0.1", port)
        task = asyncio.create_task(listener.run())
        try:
            yield self
        finally:
            listener.stop()
            await task


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA("partner.example", datetime.now(UTC) - timedelta(minutes=5), lifetime=timedelta(days=1))


@pytest.fixture
async def world(tmp_path, ca):
    clock = SystemClock()
    recorder = Recorder()
    async with AsyncExitStack() as stack:
        database = Database.open(tmp_path / "db", trust_domain=OWN.name, clock=clock)
        stack.push_async_callback(database.close)

        async def opened() -> Federation:
            return await Federation.open(OWN, SqliteFederation(database), Journal(recorder, clock), clock)

        yield recorder, opened


def relationship(endpoint: Endpoint, **changed) -> Relationship:
    values = {
        "trust_domain": PARTNER,
        "endpoint_url": endpoint.url,
        "profile": EndpointProfile.SPIFFE,
        "endpoint_spiffe_id": ENDPOINT_ID,
    }
    return Relationship(**(values | changed))


def poller(federation: Federation, trust: ssl.SSLContext | None = None) -> BundlePoller:
    return BundlePoller(federation, trust or web_trust(""), SystemClock(), SeededEntropy())


async def test_a_relationship_is_recorded_kept_and_followed(world, ca) -> None:
    recorder, opened = world
    federation = await opened()
    told: list[int] = []
    federation.subscribe(lambda: told.append(len(federation.bundles)))
    async with Endpoint(ca).serving() as endpoint:
        await federation.create(relationship(endpoint), ca.bundle, ADMIN)
        assert federation.bundles == {PARTNER: ca.bundle}
        assert await poller(federation).refresh(PARTNER) is False  # the same content is no change
        endpoint.bundle = dataclasses.replace(ca.bundle, sequence=7, refresh_hint=60)
        assert await poller(federation).refresh(PARTNER) is True
    assert recorder.changes == ["relationship_created", "bundle_changed", "bundle_changed"]
    assert recorder.entries[0]["actor"] == ADMIN
    assert recorder.entries[2]["actor"] == "spiffe://saas.example/spire/server"
    assert recorder.entries[2]["sequence"] == 7
    assert told == [1, 1]
    again = await opened()
    assert again.bundles[PARTNER].sequence == 7
    assert again.relationships == federation.relationships
    await again.delete(PARTNER, ADMIN)
    assert (again.bundles, again.relationships) == ({}, {})
    assert recorder.changes[3:] == ["relationship_deleted", "bundle_deleted"]
    assert (await opened()).bundles == {}


def _liars(ca: TestCA):
    other = TestCA("other.example", datetime.now(UTC) - timedelta(minutes=5))
    own = TestCA("saas.example", datetime.now(UTC) - timedelta(minutes=5))
    old = TestCA("partner.example", datetime.now(UTC) - timedelta(days=9000))
    leaf, _ = ca.svid("/web", timedelta(hours=1))
    damaged = json.loads(export_bundle(ca.bundle))
    damaged["keys"][0]["x5c"] = ["AAAA"]
    bad_key = json.loads(export_bundle(dataclasses.replace(ca.bundle, sequence=6)))
    bad_key["keys"][1]["x"] = "AAAA"
    as_bundle = {
        "lower sequence": (ca.bundle, "sequence 1, and 5 is held"),
        "of another trust domain": (other.bundle, "another trust domain"),
        "of ours": (own.bundle, "another trust domain"),
        "ended": (old.bundle, "has ended"),
        "without roots": (dataclasses.replace(ca.bundle, x509_authorities=(), sequence=6), "no X.509 authority"),
        "a leaf": (
            dataclasses.replace(
                ca.bundle, sequence=6, x509_authorities=(type(ca.bundle.x509_authorities[0])(leaf.chain[0]),)
            ),
            "not a CA certificate",
        ),
    }
    raw = {
        "empty": (b"", "cannot be read"),
        "an object": (b"{}", "cannot be read"),
        "no keys": (b'{"keys": [], "spiffe_sequence": 9}', "no X.509 authority"),
        "not JSON": (b"<html>", "cannot be read"),
        "a damaged root": (json.dumps(damaged).encode(), "cannot be read"),
        "a damaged key": (json.dumps(bad_key).encode(), "cannot be read"),
        "huge": (b'{"keys": [' + b" " * MAX_DOCUMENT + b"]}", "larger than"),
        "negative sequence": (b'{"keys": [], "spiffe_sequence": -1}', "no X.509 authority"),
        "a float sequence": (b'{"keys": [], "spiffe_sequence": 1e99}', "cannot be read"),
        "deep": (b'{"keys": ' + b"[" * 100_000, "cannot be read"),
    }
    cases = {name: (export_bundle(bundle), reason) for name, (bundle, reason) in as_bundle.items()}
    return [(name, *case) for name, case in {**cases, **raw}.items()]


async def test_an_endpoint_that_lies_changes_nothing(world, ca) -> None:
    recorder, opened = world
    federation = await opened()
    held = dataclasses.replace(ca.bundle, sequence=5)
    async with Endpoint(ca).serving() as endpoint:
        await federation.create(relationship(endpoint), held, ADMIN)
        before = len(recorder.entries)
        for name, document, reason in _liars(ca):
            endpoint.answer = Response(document)
            with pytest.raises((BundleRefused, FetchFailed), match=reason):
                await poller(federation).refresh(PARTNER)
            assert reason in federation.status(PARTNER).problem, name
            assert federation.bundles[PARTNER] == held, name
        failures = federation.status(PARTNER).failures
        assert failures == len(_liars(ca))
        endpoint.answer = Response(status_code=500)
        with pytest.raises(FetchFailed, match="status 500"):
            await poller(federation).refresh(PARTNER)
        endpoint.answer = RedirectResponse("https://elsewhere.example/")
        with pytest.raises(FetchFailed, match="status 307"):
            await poller(federation).refresh(PARTNER)
        assert len(recorder.entries) == before
        endpoint.answer = None
        endpoint.bundle = dataclasses.replace(held, sequence=6)
        assert await poller(federation).refresh(PARTNER)
        status = federation.status(PARTNER)
        assert (status.problem, status.failures) == ("", 0)
        assert status.succeeded_at is not None


async def test_an_endpoint_proves_itself_before_it_is_asked(world, ca) -> None:
    _, opened = world
    federation = await opened()
    impostor = TestCA("partner.example", datetime.now(UTC) - timedelta(minutes=5), lifetime=timedelta(days=1))
    endpoint, false = Endpoint(ca), Endpoint(impostor)
    async with endpoint.serving(PARTNER.id("/somebody/else")):
        await federation.create(relationship(endpoint), ca.bundle, ADMIN)
        with pytest.raises(FetchFailed, match=r"proved to be spiffe://partner.example/somebody/else"):
            await poller(federation).refresh(PARTNER)
    async with false.serving(port=endpoint.port):
        with pytest.raises(FetchFailed, match="did not prove itself"):
            await poller(federation).refresh(PARTNER)
    with pytest.raises(FetchFailed, match="cannot be reached"):
        await poller(federation).refresh(PARTNER)
    assert federation.bundles[PARTNER] == ca.bundle


async def test_web_endpoints_are_verified_by_the_web_roots_and_the_host_name(world, ca, tmp_path) -> None:
    _, opened = world
    federation = await opened()
    roots = tmp_path / "roots.pem"
    roots.write_text(ssl.DER_cert_to_PEM_cert(ca.root))
    async with Endpoint(ca).serving() as endpoint:
        web = relationship(endpoint, profile=EndpointProfile.WEB, endpoint_spiffe_id=None)
        await federation.create(web, None, ADMIN)
        with pytest.raises(FetchFailed, match="did not prove itself"):
            await poller(federation).refresh(PARTNER)  # the machine's roots do not know this CA
        with pytest.raises(FetchFailed, match=r"(?i)hostname"):  # an X.509-SVID names no host
            await poller(federation, web_trust(str(roots))).refresh(PARTNER)
    assert federation.bundles == {}


async def test_a_silent_endpoint_is_given_up() -> None:
    async def silent(reader, writer) -> None:
        while await reader.read(4096):
            pass
        writer.close()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(FetchFailed, match="did not answer within"):
            await fetch(f"https://127.0.0.1:{port}/", web_trust(""), None, timeout=0.2)
        await ended.wait()
    finally:
        server.close()


async def test_without_a_first_bundle_the_problem_says_so(world, ca) -> None:
    _, opened = world
    federation = await opened()
    async with Endpoint(ca).serving() as endpoint:
        await federation.create(relationship(endpoint), None, ADMIN)
        with pytest.raises(FailedPrecondition, match=r"no bundle of partner\.example is known"):
            await poller(federation).refresh(PARTNER)
        await federation.set_bundle(ca.bundle, ADMIN)
        assert await poller(federation).refresh(PARTNER) is False
    with pytest.raises(NotFound):
        await poller(federation).refresh(TrustDomain("nobody.example"))


async def test_the_poller_follows_relationships_by_itself(world, ca) -> None:
    _, opened = world
    federation = await opened()
    changed = asyncio.Event()
    async with Endpoint(ca).serving() as endpoint:
        endpoint.bundle = dataclasses.replace(ca.bundle, sequence=3)
        running = asyncio.create_task(poller(federation).run())
        await federation.create(relationship(endpoint), ca.bundle, ADMIN)
        federation.subscribe(changed.set)
        async with asyncio.timeout(10):
            await changed.wait()
        assert federation.bundles[PARTNER].sequence == 3
        while federation.status(PARTNER).next_at is None:
            await asyncio.sleep(0)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_cannot_be_recorded_does_not_happen(world, ca) -> None:
    recorder, opened = world
    federation = await opened()
    recorder.full = True
    async with Endpoint(ca).serving() as endpoint:
        with pytest.raises(LogUnavailable):
            await federation.create(relationship(endpoint), ca.bundle, ADMIN)
    assert (federation.relationships, federation.bundles) == ({}, {})
    assert (await opened()).relationships == {}


async def test_the_estates_relationships_are_changed_there_alone(world, ca) -> None:
    recorder, opened = world
    federation = await opened()
    kept = Relationship(PARTNER, "https://partner.example/", origin=Origin.ESTATE)
    await federation.replace_estate([Intended(kept, ca.bundle)], ADMIN)
    assert federation.bundles == {PARTNER: ca.bundle}
    for refused in (
        federation.delete(PARTNER, ADMIN),
        federation.update(PARTNER, lambda one: one, None, ADMIN),
        federation.delete_bundle(PARTNER, ADMIN),
    ):
        with pytest.raises(KeptByEstate, match=r"estate\.yaml"):
            await refused
    before = len(recorder.entries)
    await federation.replace_estate([Intended(kept, ca.bundle)], ADMIN)  # nothing differs, nothing is recorded
    assert len(recorder.entries) == before
    newer = dataclasses.replace(ca.bundle, sequence=9)
    await federation.set_bundle(newer, ADMIN)
    await federation.replace_estate([Intended(kept, ca.bundle)], ADMIN)
    assert federation.bundles == {PARTNER: newer}, "the bundle to begin with does not take a newer one's place"
    await federation.replace_estate([], ADMIN)
    assert (federation.relationships, federation.bundles) == ({}, {})


async def test_estate_and_api_do_not_take_each_others_relationships(world, ca) -> None:
    _, opened = world
    federation = await opened()
    await federation.create(Relationship(PARTNER, "https://partner.example/"), ca.bundle, ADMIN)
    intended = [Intended(Relationship(PARTNER, "https://other.example/", origin=Origin.ESTATE))]
    with pytest.raises(AlreadyExists, match="made by API"):
        federation.check_estate(intended)
    await federation.replace_estate([], ADMIN)
    assert PARTNER in federation.relationships, "an estate without it leaves it alone"
    with pytest.raises(AlreadyExists):
        await federation.create(Relationship(PARTNER, "https://partner.example/"), None, ADMIN)


@pytest.mark.parametrize(
    "changed",
    [
        {"trust_domain": OWN},
        {"endpoint_url": "http://partner.example/"},
        {"endpoint_url": ""},
        {"endpoint_url": "https://"},
        {"endpoint_url": "https://user:word@partner.example/"},
        {"endpoint_url": "https://partner.example/?a=b"},
        {"endpoint_url": "https://partner.example/#a"},
        {"endpoint_url": "https://partner.example:99999/"},
        {"endpoint_url": "https://partner.example/\r\nx: y"},
        {"profile": EndpointProfile.SPIFFE, "endpoint_spiffe_id": None},
        {"profile": EndpointProfile.SPIFFE, "endpoint_spiffe_id": OWN.id("/web")},
        {"profile": EndpointProfile.WEB, "endpoint_spiffe_id": ENDPOINT_ID},
    ],
)
def test_a_relationship_that_breaks_a_rule_is_refused(changed) -> None:
    good = {"trust_domain": PARTNER, "endpoint_url": "https://partner.example:8443/bundle"}
    Relationship(**good).check(OWN)
    with pytest.raises(InvalidRelationship):
        Relationship(**(good | changed)).check(OWN)


def test_a_bundle_of_our_own_name_is_never_taken() -> None:
    own = TestCA("saas.example", datetime.now(UTC))
    with pytest.raises(BundleRefused, match="own trust domain"):
        check_bundle(own.bundle, OWN, datetime.now(UTC))


def test_waits_are_bounded(ca) -> None:
    hints = {0: 300, 1: 10, 10: 10, 77: 77, 86400: 86400, 10**9: 86400}
    for hint, seconds in hints.items():
        assert refresh_seconds(dataclasses.replace(ca.bundle, refresh_hint=hint)) == seconds
    assert [retry_seconds(n, 300.0) for n in (1, 2, 3, 5, 6, 10**6)] == [10, 20, 40, 160, 300, 300]
    assert retry_seconds(1, 10.0) == 10


async def test_the_endpoint_serves_the_document_and_knows_its_etag(ca) -> None:
    bundle = dataclasses.replace(ca.bundle, refresh_hint=300)
    sent: list[dict] = []

    async def call(method: str, headers: list[tuple[bytes, bytes]]) -> tuple[dict, bytes]:
        sent.clear()
        scope = {"type": "http", "method": method, "path": "/", "headers": headers, "query_string": b""}

        async def receive():
            return {"type": "http.request"}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        return sent[0], b"".join(message.get("body", b"") for message in sent[1:])

    app = bundle_endpoint(lambda: bundle)
    start, body = await call("GET", [])
    headers = dict(start["headers"])
    assert (start["status"], headers[b"content-type"]) == (200, b"application/json")
    assert headers[b"cache-control"] == b"public, max-age=150"
    read = read_document(PARTNER, body)
    assert [a.der for a in read.x509_authorities] == [ca.root]
    assert (read.sequence, read.refresh_hint) == (1, 300)
    start, body = await call("GET", [(b"if-none-match", b'"other", W/' + headers[b"etag"])])
    assert (start["status"], body) == (304, b"")
    bundle = dataclasses.replace(bundle, sequence=2)
    start, body = await call("GET", [(b"if-none-match", headers[b"etag"])])
    assert start["status"] == 200
    assert json.loads(body)["spiffe_sequence"] == 2
    start, _ = await call("POST", [])
    assert start["status"] == 405


_ROOT = TestCA("partner.example", datetime.now(UTC) - timedelta(minutes=5)).root
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
_KEY = st.fixed_dictionaries(
    {},
    optional={
        "use": st.sampled_from(["x509-svid", "jwt-svid", "wit-svid"]) | _JSON,
        "kty": st.sampled_from(["EC", "RSA", "OKP", "oct", "AKP"]) | _JSON,
        "crv": st.sampled_from(["P-256", "P-384", "P-521", "secp256k1", "Ed25519"]) | _JSON,
        "kid": st.text(max_size=8) | _JSON,
        "x": st.just("A" * 43) | st.text("AB-_=", max_size=50) | _JSON,
        "y": st.just("A" * 43) | st.text("AB-_=", max_size=50) | _JSON,
        "n": st.text("AB-_=", max_size=50) | _JSON,
        "e": st.just("AQAB") | _JSON,
        "d": st.just("A" * 43),
        "x5c": st.lists(st.binary(max_size=60).map(lambda raw: b64encode(raw).decode()) | _JSON, max_size=2) | _JSON,
    },
)
_DOCUMENT = st.fixed_dictionaries(
    {"keys": st.lists(_KEY, max_size=4) | _JSON},
    optional={"spiffe_sequence": _JSON, "spiffe_refresh_hint": _JSON, "more": _JSON},
)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=400) | _DOCUMENT.map(lambda document: json.dumps(document).encode()))
def test_whatever_comes_is_a_bundle_or_refused(document: bytes) -> None:
    try:
        bundle = read_document(PARTNER, document)
    except BundleRefused:
        return
    assert bundle.trust_domain == PARTNER
    # Nothing here has a CA certificate, so none of it may come into force.
    with pytest.raises(BundleRefused):
        check_bundle(bundle, OWN, datetime.now(UTC))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_root_is_refused_or_the_root(data) -> None:
    damaged = bytearray(_ROOT)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(_ROOT) - 1))] = data.draw(st.integers(0, 255))
    document = json.dumps(
        {"keys": [{"use": "x509-svid", "kty": "EC", "x5c": [b64encode(bytes(damaged)).decode()]}]}
    ).encode()
    try:
        bundle = read_document(PARTNER, document)
        check_bundle(bundle, OWN, datetime.now(UTC))
    except BundleRefused:
        return
    # What is taken can be handed on: agents read it, and our own exports hold it.
    assert read_document(PARTNER, export_bundle(bundle)).x509_authorities == bundle.x509_authorities


async def test_a_stale_bundle_is_told_of_in_time_and_across_a_restart(tmp_path, ca) -> None:
    clock = FakeClock(datetime.now(UTC))
    database = Database.open(tmp_path / "db", trust_domain=OWN.name, clock=clock)
    journal = Journal(Recorder(), clock)
    try:
        federation = await Federation.open(OWN, SqliteFederation(database), journal, clock)
        silent = relationship(Endpoint(ca), endpoint_url="https://silent.example/")
        await federation.create(silent, dataclasses.replace(ca.bundle, refresh_hint=300), ADMIN)
        assert federation.ages() == []
        await federation.note(PARTNER, None)
        good = clock.now()
        clock.advance(601)
        assert federation.warnings() == [], "it did not fail: nobody has looked"
        await federation.note(PARTNER, FetchFailed("no route"))
        [warning] = federation.warnings()
        assert "partner.example is not refreshed" in warning
        assert "no route" in warning
        again = await Federation.open(OWN, SqliteFederation(database), journal, clock)
        assert again.warnings() == [warning]
        assert again.ages() == [(PARTNER, 601.0, good.timestamp())]
        await again.note(PARTNER, None)
        assert again.warnings() == []
        # One that never answered counts from its first failure.
        changed = await again.update(
            PARTNER, lambda one: dataclasses.replace(one, endpoint_url="https://x.example"), None, ADMIN
        )
        assert again.ages() == []
        await again.note(PARTNER, FetchFailed("no route"))
        clock.advance(600)
        assert again.warnings() == []
        clock.advance(1)
        assert "last never" in again.warnings()[0]
        await again.delete(changed.trust_domain, ADMIN)
        assert again.warnings() == []
        assert await SqliteFederation(database).statuses() == {}
    finally:
        await database.close()
