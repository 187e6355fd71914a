"""Transaction tokens at a real sidecar: which count, by which code the others are refused, and what the ledger says."""

import asyncio
import hashlib
import ssl
import time
from base64 import urlsafe_b64encode
from uuid import uuid4

import grpclib.client
import msgspec
import pytest
from envoy_mesh import TD, Ca, Http, Mesh, Reply, spiffe
from google.protobuf.wrappers_pb2 import StringValue
from grpclib.exceptions import GRPCError
from multidict import MultiDict

from eastwest.mesh import names
from eastwest.mesh.secrets import Identity
from eastwest.mesh.snapshot import Snapshot
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    GrpcMatch,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    OriginRules,
    Rule,
    Sidecar,
    TenantRules,
    TenantSource,
    TokenRules,
    Verdict,
)
from eastwest.policy.transaction import Token
from eastwest.testing.ports import free_port
from eastwest.testing.tokens import TokenMint

CLIENT, OTHER, SERVICE = spiffe("client"), spiffe("other"), spiffe("service")
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="with-token")
PLAIN = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="without")
FORBID = Rule(verdict=Verdict.DENY, code=DecisionCode.FORBIDDEN_BY_POLICY, policy="chain")
APPROVAL = Rule(verdict=Verdict.DENY, code=DecisionCode.APPROVAL_REQUIRED)
WRONG_TENANT = Rule(verdict=Verdict.DENY, code=DecisionCode.TENANT_NOT_PERMITTED)


def everywhere(rule: Rule) -> OriginRules:
    return OriginRules(otherwise=rule)


def step_up(token: TokenRules) -> Rule:
    return Rule(verdict=Verdict.DENY, code=DecisionCode.STEP_UP_REQUIRED, token=token)


ANY_TOKEN = step_up(TokenRules(unapproved=everywhere(ALLOW), approved=everywhere(ALLOW)))
BY_APPROVAL = step_up(
    TokenRules(
        unapproved=everywhere(APPROVAL),
        approved_by={"unix:uid:0": OriginRules(by_origin={OTHER: FORBID}, otherwise=ALLOW)},
        approved=everywhere(FORBID),
    )
)


def operation(name: str, path: str, *cells: Cell, method: str = "POST", **more) -> OperationRules:
    return OperationRules(name=f"svc:{name}:do", match=HttpMatch(method=method, path=path), cells=cells, **more)


def for_client(rule: Rule) -> Cell:
    return Cell(callers=(CLIENT,), rule=rule)


def by_tenant(**rules: Rule) -> Cell:
    otherwise = rules.pop("otherwise", WRONG_TENANT)
    return Cell(callers=(CLIENT,), tenants=TenantRules(by_tenant=rules, otherwise=otherwise))


OPERATIONS = (
    operation("refund", "/refund", for_client(ANY_TOKEN)),
    operation("free", "/free", for_client(PLAIN)),
    operation("wipe", "/wipe", for_client(BY_APPROVAL)),
    operation("once", "/once", for_client(ANY_TOKEN), single_use=True),
    operation(
        "path", "/t/{tenant}/x", by_tenant(acme=ANY_TOKEN, otherwise=ANY_TOKEN), tenant=TenantSource(path="tenant")
    ),
    operation("last", "/t/{tenant}", by_tenant(acme=PLAIN, otherwise=ANY_TOKEN), tenant=TenantSource(path="tenant")),
    operation("deep", "/o/{org}/t/{tenant}/x", by_tenant(otherwise=ANY_TOKEN), tenant=TenantSource(path="tenant")),
    operation(
        "header",
        "/header",
        by_tenant(acme=ANY_TOKEN, globex=PLAIN, otherwise=ANY_TOKEN),
        tenant=TenantSource(header="x-tenant"),
    ),
    operation("claim", "/claim", by_tenant(acme=PLAIN, globex=BY_APPROVAL), tenant=TenantSource(claim=True)),
)


def fingerprint(identity: Identity) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(identity.chain.decode())).hexdigest()


def tampered(token: str) -> str:
    """Another signature."""
    head, payload, signature = token.split(".")
    return f"{head}.{payload}.{signature[::-1]}"


def unsigned(token: str) -> str:
    header = urlsafe_b64encode(b'{"alg":"none","typ":"txntoken+jwt"}').rstrip(b"=").decode()
    return f"{header}.{token.split('.')[1]}."


class World:
    """A service whose operations look at tokens, its callers, and a mint."""

    def __init__(self, tmp_path) -> None:
        self.ca = Ca()
        self.mesh = Mesh(tmp_path, {TD: self.ca.pem})
        self.mint = TokenMint(f"spiffe://{TD}")
        self.mesh.token_keys = self.mint.key_set
        self.port = free_port()
        self.identity = self.ca.identity(CLIENT)
        self.certificate = fingerprint(self.identity)

    async def start(self) -> None:
        self.app = await self.mesh.app("svc")
        inbound = Inbound(
            service="svc",
            address="127.0.0.1",
            port=self.port,
            protocol="http",
            mode=MtlsMode.STRICT,
            upstream=f"unix:{self.app.path}",
            operations=OPERATIONS,
        )
        sidecar = Sidecar(spiffe_id=SERVICE, version="v1", known_callers=(CLIENT, OTHER, SERVICE), inbound=(inbound,))
        self.workload = await self.mesh.add(sidecar, self.ca.identity(SERVICE))
        await self.mesh.settled()
        self.http = await self.mesh.tls(self.port, self.identity)

    def token(self, name: str = "refund", **changed) -> Token:
        made = Token(
            id=uuid4().hex,
            transaction="txn-1",
            caller=CLIENT,
            certificate=self.certificate,
            action=f"svc:{name}:do",
            resource="svc",
            origin=CLIENT,
            expires=int(time.time()) + 120,
        )
        return msgspec.structs.replace(made, **changed)

    async def send(self, path: str, *tokens: Token | str, http: Http | None = None, tenant: str = "") -> Reply:
        texts = [self.mint.mint(token) if isinstance(token, Token) else token for token in tokens]
        headers = [("txn-token", text) for text in texts]
        headers += [("x-tenant", tenant)] if tenant else []
        return await (http or self.http).ask("POST", path, *headers)

    async def enforce(self, *operations: OperationRules, mode: MtlsMode = MtlsMode.STRICT, known=()) -> None:
        before = self.workload.sidecar
        inbound = msgspec.structs.replace(before.inbound[0], operations=operations or OPERATIONS, mode=mode)
        callers = known or before.known_callers
        self.mesh.publish(
            self.workload,
            msgspec.structs.replace(
                before, version=f"{before.version}+", inbound=(inbound,), known_callers=tuple(callers)
            ),
        )
        await self.mesh.settled()

    async def keys(self, key_set: bytes) -> None:
        """Verify by ``key_set`` from now on."""
        self.mesh.token_keys = key_set
        self.mesh.publish(self.workload)
        name = names.tokens_filter("svc")
        wanted = self.workload.snapshots.value.of_type(names.EXTENSION)[name].version
        await self.mesh.until(
            lambda: (names.EXTENSION, name, wanted) in self.workload.status.session.acked,
            lambda: f"{self.workload.status}",
        )

    async def row(self, reply: Reply):
        return await self.mesh.decision(lambda d: d.reference == reply.headers["x-request-id"])


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    try:
        await world.start()
        yield world
    finally:
        await world.mesh.close()


async def test_a_token_counts_for_exactly_the_call_it_was_made_for(world):
    now = int(time.time())
    cases = [
        ("STEP_UP_REQUIRED", []),
        ("", [world.token()]),
        ("", [world.token(expires=now - 2)]),  # clocks may differ by so much
        ("TOKEN_EXPIRED", [world.token(expires=now - 30)]),
        ("TOKEN_INVALID", [world.token(expires=now + 400)]),
        ("TOKEN_INVALID", [""]),
        ("TOKEN_INVALID", ["a.b.c"]),
        ("TOKEN_INVALID", ["\xff\xfe"]),
        ("TOKEN_INVALID", [tampered(world.mint.mint(world.token()))]),
        ("TOKEN_INVALID", [TokenMint(f"spiffe://{TD}").mint(world.token())]),  # somebody else's key
        ("TOKEN_INVALID", [unsigned(world.mint.mint(world.token()))]),
        ("TOKEN_INVALID", [world.mint.mint(world.token(), iss="spiffe://far.test")]),
        ("TOKEN_INVALID", [world.mint.mint(world.token(), aud="spiffe://far.test")]),
        ("TOKEN_INVALID", [world.mint.mint(world.token(), exp=None)]),
        ("TOKEN_INVALID", [world.mint.mint(world.token(), nbf=now + 60)]),
        ("TOKEN_INVALID", [world.mint.mint(world.token(), txn=None)]),
        ("TOKEN_INVALID", [world.mint.mint(world.token(), tctx=None)]),
        ("TOKEN_INVALID", [world.token(), world.token()]),
        ("TOKEN_INVALID", [world.token(), "a.b.c"]),
        ("TOKEN_INVALID", ["a.b.c", world.token()]),
        ("TOKEN_INVALID", [world.token(expires=now - 30), world.token(expires=now - 30)]),
        ("TOKEN_INVALID", [",".join([world.mint.mint(world.token())] * 2)]),
        ("TOKEN_INVALID", ["Bearer " + world.mint.mint(world.token())]),
        ("TOKEN_WRONG_ACTION", [world.token("once")]),
        ("TOKEN_WRONG_RESOURCE", [world.token(resource="svc2")]),
        ("TOKEN_WRONG_CALLER", [world.token(caller=OTHER)]),
        ("TOKEN_WRONG_KEY", [world.token(certificate="00" * 32)]),
        ("TOKEN_WRONG_TENANT", [world.token(tenant="acme")]),
        # The first that fails says why.
        ("TOKEN_EXPIRED", [world.token("once", expires=now - 30)]),
        ("TOKEN_WRONG_ACTION", [world.token("once", resource="x", caller=OTHER)]),
        ("TOKEN_WRONG_RESOURCE", [world.token(resource="x", caller=OTHER)]),
        ("TOKEN_WRONG_CALLER", [world.token(caller=OTHER, certificate="00" * 32)]),
        ("TOKEN_WRONG_KEY", [world.token(certificate="00" * 32, tenant="acme")]),
    ]
    for code, tokens in cases:
        reply = await world.send("/refund", *tokens)
        assert (reply.status, reply.code) == (403 if code else 200, code), tokens
        row = await world.row(reply)
        assert (row.code, row.operation, row.enforced) == (code or "ALLOWED", "svc:refund:do", True), tokens
        assert row.policy == ("" if code else "with-token")
    passed = [headers for _, _, headers in world.app.seen]
    assert len(passed) == 2, "nothing else reached the application"


async def test_the_certificate_of_the_connection_is_what_the_token_is_bound_to(world):
    renewed = await world.mesh.tls(world.port, world.ca.identity(CLIENT))
    assert (await world.send("/refund", world.token(), http=renewed)).code == "TOKEN_WRONG_KEY"
    stolen = await world.mesh.tls(world.port, world.ca.identity(OTHER))
    assert (await world.send("/refund", world.token(), http=stolen)).code == "OPERATION_NOT_PERMITTED"


async def test_a_token_is_for_one_tenant(world):
    wrong = "TOKEN_WRONG_TENANT"
    for path, name, asked, said, code in (
        ("/t/acme/x", "path", "", "acme", ""),
        ("/t/acme/x?t=/t/zap/x", "path", "", "acme", ""),
        ("/t/acme/x", "path", "", "zap", wrong),
        ("/t/acme/x", "path", "", "", wrong),
        ("/t/acme/x", "path", "", "/t/acme/x", wrong),
        ("/t/zap/x", "path", "", "zap", ""),  # no tenant that the table names
        ("/t/zap/x", "path", "", "acme", wrong),
        ("/t/zap/x", "path", "", "za", wrong),
        ("/t/za/x", "path", "", "zap", wrong),
        ("/t/zap", "last", "", "zap", ""),
        ("/t/zap?", "last", "", "zap", ""),
        ("/t/zap", "last", "", "za", wrong),
        ("/t/acme", "last", "", "anything", ""),  # nobody looks at tokens for this tenant
        ("/o/x/t/zap/x", "deep", "", "zap", ""),  # the tenant comes after another parameter
        ("/o/x/t/zap/x", "deep", "", "x", wrong),
        ("/o/zap/t/x/x", "deep", "", "zap", wrong),
        ("/header", "header", "acme", "acme", ""),
        ("/header", "header", "acme", "zap", wrong),
        ("/header", "header", "zap", "zap", ""),
        ("/header", "header", "zap", "acme", wrong),
        ("/header", "header", "zap", "", wrong),
        ("/header", "header", "globex", "acme", ""),  # nobody looks
        ("/header", "header", "", "acme", "TENANT_MISSING"),
        ("/header", "header", "acme,zap", "acme", "TENANT_MISSING"),
        ("/header", "header", "a b", "a b", "TENANT_MISSING"),
    ):
        reply = await world.send(path, world.token(name, tenant=said), tenant=asked)
        assert (reply.code, reply.status) == (code, 403 if code else 200), (path, asked, said)


async def test_a_tenant_that_the_token_names(world):
    for said, code in (
        ("acme", ""),
        ("globex", "APPROVAL_REQUIRED"),
        ("zap", "TENANT_NOT_PERMITTED"),
        ("", "TENANT_MISSING"),
    ):
        reply = await world.send("/claim", world.token("claim", tenant=said))
        assert reply.code == code, said
        row = await world.row(reply)
        assert (row.code, row.tenant) == (code or "ALLOWED", said)
    assert (await world.send("/claim")).code == "TENANT_MISSING"
    assert (await world.send("/claim", tenant="acme")).code == "TENANT_MISSING"
    assert (await world.send("/claim", world.token("path", tenant="acme"))).code == "TOKEN_WRONG_ACTION"
    assert (await world.send("/claim", "a.b.c")).code == "TOKEN_INVALID"


async def test_who_approved_and_where_it_began(world):
    for approver, origin, code in (
        ("", CLIENT, "APPROVAL_REQUIRED"),
        ("unix:uid:0", CLIENT, ""),
        ("unix:uid:0", OTHER, "FORBIDDEN_BY_POLICY"),
        ("unix:uid:1", CLIENT, "FORBIDDEN_BY_POLICY"),
    ):
        token = world.token("wipe", approver=approver, origin=origin, approval="a1" if approver else "")
        reply = await world.send("/wipe", token)
        assert reply.code == code
        row = await world.row(reply)
        assert (row.code, row.transaction, row.approver) == (code or "ALLOWED", "txn-1", approver)
        assert token.id not in msgspec.json.encode(row).decode()
    misused = await world.send("/wipe", world.token("once", approver="unix:uid:0", approval="a1"))
    row = await world.row(misused)
    assert (row.code, row.transaction, row.approver) == ("TOKEN_WRONG_ACTION", "txn-1", "")
    foreign = await world.send("/wipe", world.token("wipe", caller=OTHER, transaction="txn-2"))
    row = await world.row(foreign)
    assert (row.code, row.transaction) == ("TOKEN_WRONG_CALLER", ""), "nobody joins a transaction of others"


async def test_where_tokens_make_no_difference_nobody_looks_at_one(world):
    forged = tampered(world.mint.mint(world.token()))
    for brought in (
        forged,
        world.mint.mint(world.token(expires=int(time.time()) - 30)),
        world.mint.mint(world.token("wipe", approver="x")),
    ):
        reply = await world.send("/free", brought)
        assert (reply.status, dict(reply.seen["headers"])["txn-token"]) == (200, brought)
        row = await world.row(reply)
        assert (row.code, row.policy, row.transaction, row.approver) == ("ALLOWED", "without", "", "")


async def test_claims_come_from_tokens_only_and_stay_in_the_sidecar(world):
    token = world.token()
    spoofed = [
        (f"x-eastwest-token-{name}", value)
        for name, value in (
            ("action", "svc:refund:do"),
            ("resource", "svc"),
            ("caller", CLIENT),
            ("certificate", world.certificate),
            ("id", "1"),
            ("transaction", "t"),
            ("origin", CLIENT),
            ("expires", "9999999999"),
            ("approver", "unix:uid:0"),
        )
    ]
    upper = [(name.upper(), value) for name, value in spoofed]
    for headers in (spoofed, upper):
        for brought in ([], [("txn-token", "a.b.c")], [("txn-token", world.mint.mint(world.token("once")))]):
            reply = await world.http.ask("POST", "/refund", *headers, *brought)
            assert reply.status == 403
        reply = await world.http.ask("POST", "/refund", *headers, ("txn-token", world.mint.mint(token)))
        assert reply.status == 200, "neither do they spoil a good one"
        seen = [name for name, _ in reply.seen["headers"]]
        assert [name for name in seen if name.startswith("x-eastwest-")] == ["x-eastwest-caller"]
        assert seen.count("txn-token") == 1
        approved = ("txn-token", world.mint.mint(world.token("wipe")))
        assert (await world.http.ask("POST", "/wipe", *headers, approved)).code == "APPROVAL_REQUIRED"


async def test_keys_change_under_a_live_connection(world):
    old = world.mint.mint(world.token())

    async def codes(*tokens: str) -> list[str]:
        return [(await world.send("/refund", token)).code for token in tokens]

    assert await codes(old, old) == ["", ""]
    world.mint.rotate()
    new = world.mint.mint(world.token())
    assert await codes(new) == ["TOKEN_INVALID"]
    await world.keys(world.mint.key_set)
    assert await codes(old, new) == ["", ""]
    world.mint.forget()
    await world.keys(world.mint.key_set)
    assert await codes(old, new) == ["TOKEN_INVALID", ""], "a remembered token goes with its key"
    await world.keys(b"")
    assert await codes(new) == ["TOKEN_INVALID"]
    assert (await world.send("/refund")).code == "STEP_UP_REQUIRED"
    await world.keys(world.mint.key_set)
    assert await codes(new) == [""]
    http = await Http.unix(world.workload.admin)
    stats = (
        await http.ask("GET", "/stats?filter=lds.update_success|inbound.svc.tls.downstream_cx_total")
    ).body.decode()
    await http.close()
    assert "lds.update_success: 1" in stats
    assert "http.inbound.svc.tls.downstream_cx_total: 1" in stats


async def test_reports_refuse_nothing_and_use_nothing_up(world):
    await world.enforce(mode=MtlsMode.PERMISSIVE)
    once = world.token("once")
    for path, tokens, code in (
        ("/refund", [], "STEP_UP_REQUIRED"),
        ("/refund", [world.token()], "ALLOWED"),
        ("/refund", [world.token(expires=int(time.time()) - 30)], "TOKEN_EXPIRED"),
        ("/refund", ["a.b.c"], "TOKEN_INVALID"),
        ("/refund", [world.token(), world.token()], "TOKEN_INVALID"),
        ("/refund", [world.token(caller=OTHER)], "TOKEN_WRONG_CALLER"),
        ("/claim", [], "TENANT_MISSING"),
        ("/once", [once], "ALLOWED"),
        ("/once", [once], "ALLOWED"),
    ):
        reply = await world.send(path, *tokens)
        assert (reply.status, reply.code) == (200, ""), code
        row = await world.row(reply)
        assert (row.code, row.enforced) == (code, False)
    assert not world.mesh.token_uses.used
    plain = await world.mesh.plain(world.port)
    assert (await world.send("/refund", world.token(), http=plain)).status == 200
    await world.enforce(mode=MtlsMode.STRICT)
    assert [(await world.send("/once", once)).code for _ in range(2)] == ["", "TOKEN_USED"]


async def test_a_token_that_counts_once(world):
    uses = world.mesh.token_uses
    token = world.token("once", approval="a7")
    reply = await world.send("/once", token)
    assert reply.status == 200
    assert (await world.row(reply)).policy == "with-token"
    assert uses.used == {token.id: (token.expires, "a7", "svc:once:do")}
    again = await world.send("/once", token)
    assert (again.status, again.code) == (403, "TOKEN_USED")
    row = await world.row(again)
    assert (row.code, row.verdict, row.enforced, row.policy) == ("TOKEN_USED", Verdict.DENY, True, "")
    assert (row.operation, row.transaction) == ("svc:once:do", "txn-1")
    # What is refused for another reason uses nothing up.
    other = world.token("once")
    stranger = await world.mesh.tls(world.port, world.ca.identity(CLIENT))
    assert (await world.send("/once", other, http=stranger)).code == "TOKEN_WRONG_KEY"
    assert (await world.send("/once", other)).code == ""
    assert (await world.send("/once")).code == "STEP_UP_REQUIRED"
    uses.withdrawn.add("a8")
    assert (await world.send("/once", world.token("once", approval="a8"))).code == "TOKEN_USED"
    assert len(uses.used) == 2
    # Other operations ask nobody.
    many = world.token()
    assert [(await world.send("/refund", many)).code for _ in range(3)] == ["", "", ""]
    assert len(uses.used) == 2


async def test_of_calls_at_once_with_one_token_one_passes(world):
    text = world.mint.mint(world.token("once"))
    ways = [await world.mesh.tls(world.port, world.identity) for _ in range(8)]
    replies = await asyncio.gather(*(world.send("/once", text, http=http) for http in ways))
    assert sorted(reply.code for reply in replies) == ["", *["TOKEN_USED"] * 7]


async def test_when_nobody_can_say_whether_a_token_was_used(world):
    world.mesh.token_uses.away = True
    reply = await world.send("/once", world.token("once"))
    assert (reply.status, reply.code) == (403, "CHECK_UNAVAILABLE")
    row = await world.row(reply)
    assert (row.code, row.verdict, row.enforced, row.policy) == ("CHECK_UNAVAILABLE", Verdict.DENY, True, "")
    world.mesh.token_uses.away = False
    world.mesh.token_uses.silent.set()
    began = time.monotonic()
    reply = await world.send("/once", world.token("once"))
    assert reply.code == "CHECK_UNAVAILABLE"
    assert time.monotonic() - began < 5
    world.mesh.token_uses.silent.clear()
    assert (await world.send("/once", world.token("once"))).code == ""
    await world.mesh.stop_agent()
    assert (await world.send("/once", world.token("once"))).code == "CHECK_UNAVAILABLE"
    assert (await world.send("/refund", world.token())).code == "", "all else is decided here"


async def test_while_the_question_about_use_is_not_asked_yet_nothing_passes_unasked(world):
    before = operation("once", "/once", for_client(ANY_TOKEN))
    await world.enforce(before)
    assert (await world.send("/once", world.token("once"))).code == ""
    old = world.workload.snapshots.value
    after = msgspec.structs.replace(before, single_use=True)
    inbound = msgspec.structs.replace(world.workload.sidecar.inbound[0], operations=(after,))
    sidecar = msgspec.structs.replace(world.workload.sidecar, version="v9", inbound=(inbound,))
    world.mesh.publish(world.workload, sidecar)
    whole = world.workload.snapshots.value
    # As it is between the push of the filters and that of the routes.
    mixed = {kind: old.of_type(kind) if kind == names.ROUTES else named for kind, named in whole.resources.items()}
    half = Snapshot.of("half", [resource for named in mixed.values() for resource in named.values()])
    world.workload.snapshots.set(half)
    await world.mesh.until(lambda: world.workload.status.session.version_acked == "half")
    token = world.token("once")
    reply = await world.send("/once", token)
    assert (reply.status, reply.code) == (403, "CHECK_UNAVAILABLE")
    assert (await world.row(reply)).code == "CHECK_UNAVAILABLE"
    world.workload.snapshots.set(whole)
    await world.mesh.settled()
    assert [(await world.send("/once", token)).code for _ in range(2)] == ["", "TOKEN_USED"]


async def test_callers_by_the_dozen_share_what_holds_for_them(world):
    callers = [spiffe(f"caller.{number}") for number in range(40)]
    cells = (Cell(callers=tuple(callers), rule=ANY_TOKEN), Cell(callers=(OTHER,), rule=PLAIN))
    await world.enforce(operation("refund", "/refund", *cells), known=(*callers, CLIENT, OTHER))
    for name in (callers[0], callers[39]):
        identity = world.ca.identity(name)
        http = await world.mesh.tls(world.port, identity)
        mine = world.token(caller=name, certificate=fingerprint(identity))
        assert (await world.send("/refund", mine, http=http)).code == ""
        assert (await world.send("/refund", world.token(), http=http)).code == "TOKEN_WRONG_CALLER"
        assert (await world.send("/refund", http=http)).code == "STEP_UP_REQUIRED"
    assert (await world.send("/refund")).code == "OPERATION_NOT_PERMITTED"
    plain = await world.mesh.tls(world.port, world.ca.identity(OTHER))
    assert (await world.row(await world.send("/refund", http=plain))).policy == "without"


async def test_grpc_metadata_carries_it(world):
    send = OperationRules(
        name="svc:notes:do", match=GrpcMatch(method="notes.v1.Notes/Send"), cells=(for_client(ANY_TOKEN),)
    )
    await world.enforce(send)
    context = world.mesh.context(world.identity)
    context.set_alpn_protocols(["h2"])
    channel = grpclib.client.Channel("127.0.0.1", world.port, ssl=context)
    call = grpclib.client.UnaryUnaryMethod(channel, "/notes.v1.Notes/Send", StringValue, StringValue)
    good = world.mint.mint(world.token("notes"))
    try:
        for metadata, told in (
            ([], "STEP_UP_REQUIRED"),
            ([("txn-token", "a.b.c")], "TOKEN_INVALID"),
            ([("txn-token", good), ("txn-token", good)], "TOKEN_INVALID"),
            ([("txn-token", world.mint.mint(world.token()))], "TOKEN_WRONG_ACTION"),
            ([("txn-token", good)], "UPSTREAM_UNAVAILABLE"),  # it passes; the application here does not speak HTTP/2
        ):
            with pytest.raises(GRPCError) as refused:
                await call(StringValue(value="x"), metadata=MultiDict(metadata), timeout=10)
            assert told in str(refused.value.message)
    finally:
        channel.close()
