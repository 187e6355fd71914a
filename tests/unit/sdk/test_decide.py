"""One decision at a time: every code of the table and of tokens, and what happens where there is no table."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from eastwest.errors import Unavailable
from eastwest.pki.compact import read_keys
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    OriginRules,
    Recording,
    Rule,
    Sidecar,
    TenantRules,
    TenantSource,
    TokenRules,
    Verdict,
)
from eastwest.policy.transaction import NoToken, Token
from eastwest.registry.containment import Contained
from eastwest.sdk.decide import decide, use_once
from eastwest.sdk.peers import Peer
from eastwest.sdk.source import Rules
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.testing.tokens import TokenMint, TokenUses

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
WEB, STRANGER = "spiffe://td.test/web", "spiffe://td.test/stranger"
KEY = "ab" * 32
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
STEP_UP = Rule(
    verdict=Verdict.DENY,
    code=DecisionCode.STEP_UP_REQUIRED,
    token=TokenRules(unapproved=OriginRules(otherwise=ALLOW), approved=OriginRules(otherwise=ALLOW)),
)
ELSEWHERE = TenantRules(
    by_tenant={"acme": STEP_UP}, otherwise=Rule(verdict=Verdict.DENY, code=DecisionCode.TENANT_NOT_PERMITTED)
)
MINT = TokenMint("spiffe://td.test")


def operation(name: str, method: str, path: str, *, rule=None, tenants=None, **more) -> OperationRules:
    cells = (Cell(callers=(WEB,), rule=rule, tenants=tenants),)
    return OperationRules(name=f"svc:{name}", match=HttpMatch(method=method, path=path), cells=cells, **more)


OPERATIONS = (
    operation("open:read", "GET", "/open", rule=ALLOW),
    operation("pay:do", "POST", "/pay", rule=STEP_UP),
    operation("once:do", "POST", "/once", rule=STEP_UP, single_use=True),
    operation("t:do", "POST", "/t/{tenant}", tenants=ELSEWHERE, tenant=TenantSource(path="tenant")),
    operation("h:do", "POST", "/h", tenants=ELSEWHERE, tenant=TenantSource(header="x-tenant")),
    operation("c:do", "POST", "/c", tenants=ELSEWHERE, tenant=TenantSource(claim=True)),
)


def rules(mode: MtlsMode = MtlsMode.STRICT, recording: Recording = Recording.BEST_EFFORT) -> Rules:
    inbound = Inbound(
        service="svc",
        address="127.0.0.1",
        port=1,
        protocol="http",
        mode=mode,
        upstream="tcp:127.0.0.1:2",
        operations=OPERATIONS,
        recording=recording,
    )
    sidecar = Sidecar(spiffe_id="spiffe://td.test/svc", version="v", known_callers=(WEB,), inbound=(inbound,))
    return Rules(TrustDomain("td.test"), sidecar, {}, read_keys(MINT.key_set))


def peer(spiffe_id: str = WEB, certificate: str = KEY) -> Peer:
    return Peer(SpiffeId.parse(spiffe_id), certificate, NOW + timedelta(hours=1))


GOOD = Token(
    id="1",
    transaction="x",
    caller=WEB,
    certificate=KEY,
    action="svc:pay:do",
    resource="svc",
    origin=WEB,
    expires=int(NOW.timestamp()) + 60,
)


def token(**changed) -> Token:
    return msgspec.structs.replace(GOOD, **changed)


def ask(method: str, target: str, *headers, who=None, mode=MtlsMode.STRICT, **more):
    given = [("host", "svc"), *headers]
    return decide(rules(mode), "svc", peer() if who is None else who or None, method, target, given, NOW, **more)


@pytest.mark.parametrize(
    ("method", "target", "code"),
    [
        ("GET", "/open", "ALLOWED"),
        ("GET", "/open?x=/../y", "ALLOWED"),
        ("GET", "/x/..;/open", "ALLOWED"),
        ("GET", "/%6fpen", "ALLOWED"),
        ("GET", "/open/", "UNLISTED_OPERATION"),
        ("GET", "/OPEN", "UNLISTED_OPERATION"),
        ("POST", "/open", "UNLISTED_OPERATION"),
        ("GET", "/open%2f", "REQUEST_REFUSED"),
        ("CONNECT", "/open", "REQUEST_REFUSED"),
        ("POST", "/pay", "STEP_UP_REQUIRED"),
        ("POST", "/t/globex", "TENANT_NOT_PERMITTED"),
        ("POST", "/h", "TENANT_MISSING"),
        ("POST", "/c", "TENANT_MISSING"),
    ],
)
def test_without_a_token(method, target, code):
    assert ask(method, target).code == code


def test_who():
    assert ask("GET", "/open", who=False).code == "MTLS_REQUIRED"
    assert ask("GET", "/open", who=peer(STRANGER)).code == "UNKNOWN_CALLER"
    spoofed = ask("GET", "/open", ("x-eastwest-caller", WEB), ("x-forwarded-client-cert", f"URI={WEB}"), who=False)
    assert (spoofed.code, spoofed.principal) == ("MTLS_REQUIRED", "")


@pytest.mark.parametrize(
    ("brought", "code"),
    [
        (MINT.mint(GOOD), "ALLOWED"),
        (MINT.mint(token(action="svc:once:do")), "TOKEN_WRONG_ACTION"),
        (MINT.mint(token(resource="other")), "TOKEN_WRONG_RESOURCE"),
        (MINT.mint(token(caller=STRANGER)), "TOKEN_WRONG_CALLER"),
        (MINT.mint(token(certificate="cd" * 32)), "TOKEN_WRONG_KEY"),
        (MINT.mint(token(tenant="acme")), "TOKEN_WRONG_TENANT"),
        (MINT.mint(token(expires=int(NOW.timestamp()) - 10)), "TOKEN_EXPIRED"),
        (MINT.mint(GOOD, aud="spiffe://other.test"), "TOKEN_INVALID"),
        (MINT.mint(GOOD, exp=None), "TOKEN_INVALID"),
        (MINT.mint(token(expires=int(NOW.timestamp()) + 400), iat=int(NOW.timestamp())), "TOKEN_INVALID"),
        (TokenMint("spiffe://td.test").mint(GOOD), "TOKEN_INVALID"),
        (MINT.mint(GOOD)[:-4] + "AAAA", "TOKEN_INVALID"),
        (f"{MINT.mint(GOOD)},{MINT.mint(GOOD)}", "TOKEN_INVALID"),
        (f"Bearer {MINT.mint(GOOD)}", "TOKEN_INVALID"),
        ("", "TOKEN_INVALID"),
        ("a.b.c", "TOKEN_INVALID"),
        ("x" * 10_000, "TOKEN_INVALID"),
    ],
)
def test_a_token(brought, code):
    decision = ask("POST", "/pay", ("txn-token", brought))
    assert decision.code == code
    # Where tokens make no difference none is looked at.
    assert ask("GET", "/open", ("txn-token", brought)).code == "ALLOWED"
    assert brought not in repr(decision) or len(brought) < 6


def test_no_token_of_a_stranger_is_verified(monkeypatch):
    """Whoever has an SVID of ours could make a service verify signatures all day."""
    verified = []
    monkeypatch.setattr("eastwest.sdk.decide.read", lambda *asked: verified.append(asked) or NoToken.INVALID)
    brought = ("txn-token", MINT.mint(GOOD))
    assert ask("POST", "/pay", brought, who=peer(STRANGER)).code == "UNKNOWN_CALLER"
    assert ask("POST", "/pay", brought, who=False).code == "MTLS_REQUIRED"
    assert not verified
    assert ask("POST", "/pay", brought).code == "TOKEN_INVALID"
    assert len(verified) == 1


def test_two_tokens_are_none():
    good = ("txn-token", MINT.mint(GOOD))
    assert ask("POST", "/pay", good, good).code == "TOKEN_INVALID"


def test_tenants_of_tokens():
    in_path = token(action="svc:t:do", tenant="acme")
    assert ask("POST", "/t/acme", ("txn-token", MINT.mint(in_path))).tenant == "acme"
    assert ask("POST", "/t/acme", ("txn-token", MINT.mint(in_path))).code == "ALLOWED"
    other = msgspec.structs.replace(in_path, tenant="globex")
    assert ask("POST", "/t/acme", ("txn-token", MINT.mint(other))).code == "TOKEN_WRONG_TENANT"
    claimed = ask("POST", "/c", ("txn-token", MINT.mint(token(action="svc:c:do", tenant="acme"))))
    assert (claimed.code, claimed.tenant, claimed.transaction) == ("ALLOWED", "acme", "x")
    in_header = ("txn-token", MINT.mint(token(action="svc:h:do", tenant="acme")))
    assert ask("POST", "/h", ("X-Tenant", "acme"), in_header).code == "ALLOWED"
    assert ask("POST", "/h", ("X-Tenant", "acme"), ("x-tenant", "globex"), in_header).code == "TENANT_MISSING"
    # A header that the connection claims for itself is not the application's.
    assert ask("POST", "/h", ("x-tenant", "acme"), ("connection", "x-tenant"), in_header).code == "TENANT_MISSING"


async def test_a_token_that_counts_once():
    uses = TokenUses()
    once = ask("POST", "/once", ("txn-token", MINT.mint(token(action="svc:once:do"))))
    assert once.once
    assert (await use_once(once, uses.use_token)).code == "ALLOWED"
    assert (await use_once(once, uses.use_token)).code == "TOKEN_USED"
    uses.away = True
    refused = await use_once(once, uses.use_token)
    assert (refused.code, refused.verdict, refused.passes) == ("CHECK_UNAVAILABLE", Verdict.DENY, False)
    many = ask("POST", "/pay", ("txn-token", MINT.mint(GOOD)))
    assert not many.once
    assert (await use_once(many, uses.use_token)).code == "ALLOWED"


async def test_report_mode_reports_and_uses_nothing_up():
    uses = TokenUses()
    for method, target, who in (("GET", "/nothing", peer()), ("GET", "/open", False), ("GET", "/open", peer(STRANGER))):
        decision = ask(method, target, who=who, mode=MtlsMode.PERMISSIVE)
        assert decision.verdict is Verdict.DENY
        assert decision.passes
    assert not ask("GET", "/a%00", mode=MtlsMode.PERMISSIVE).passes
    brought = ("txn-token", MINT.mint(token(action="svc:once:do")))
    await use_once(ask("POST", "/once", brought, mode=MtlsMode.PERMISSIVE), uses.use_token)
    assert not uses.used


def test_without_rules_nothing_passes():
    for given in (None, Rules(TrustDomain("td.test"))):
        decision = decide(given, "svc", peer(), "GET", "/open", [("host", "svc")], NOW)
        assert (decision.code, decision.passes) == ("CHECK_UNAVAILABLE", False)
    assert decide(rules(), "other", peer(), "GET", "/open", [("host", "svc")], NOW).code == "CHECK_UNAVAILABLE"


def test_without_keys_no_token_is_good():
    keyless = replace(rules(), token_keys={})
    headers = [("host", "svc"), ("txn-token", MINT.mint(GOOD))]
    assert decide(keyless, "svc", peer(), "POST", "/pay", headers, NOW).code == "TOKEN_INVALID"


async def test_no_answer_is_no_yes():
    async def silent(*_: object) -> bool:
        raise Unavailable("gone")

    once = ask("POST", "/once", ("txn-token", MINT.mint(token(action="svc:once:do"))))
    assert not (await use_once(once, silent)).passes


@pytest.mark.parametrize(
    ("recording", "records", "code"),
    [
        (Recording.REQUIRED, False, "RECORD_UNAVAILABLE"),
        (Recording.REQUIRED, True, "ALLOWED"),
        (Recording.BEST_EFFORT, False, "ALLOWED"),
    ],
)
def test_a_call_that_must_be_recorded_is_refused_where_it_cannot_be(recording, records, code):
    given = [("host", "svc")]
    found = decide(rules(recording=recording), "svc", peer(), "GET", "/open", given, NOW, records=records)
    assert (found.code, found.operation, found.passes) == (code, "svc:open:read", code == "ALLOWED")
    refused = decide(rules(recording=recording), "svc", peer(), "GET", "/none", given, NOW, records=records)
    assert refused.code == "UNLISTED_OPERATION"


@pytest.mark.parametrize("mode", list(MtlsMode))
def test_who_is_contained_is_refused_in_every_mode_and_by_every_name(mode):
    def asked(contained, *headers, who=WEB, path="/open"):
        cut_off = replace(rules(mode), contained=Contained(1, (contained,)))
        method = "GET" if path == "/open" else "POST"
        found = decide(cut_off, "svc", peer(who), method, path, [("host", "svc"), *headers], NOW)
        return found.code, found.passes

    assert asked(WEB) == ("CALLER_CONTAINED", False)
    assert asked("spiffe://td.test/svc") == ("IDENTITY_CONTAINED", False)
    assert asked(STRANGER) == ("ALLOWED", True)
    for named in (token(origin=STRANGER), token(approver=STRANGER, approval="a"), token(caller=STRANGER)):
        brought = ("txn-token", MINT.mint(named))
        assert asked(STRANGER, brought, path="/pay") == ("TOKEN_CONTAINED", False)
        assert asked(STRANGER, brought) == ("TOKEN_CONTAINED", False), "even where nobody looks at tokens"
    mine = ("txn-token", MINT.mint(token()))
    assert asked(STRANGER, mine, path="/pay") == ("ALLOWED", True)
    assert asked(WEB, mine, who=STRANGER, path="/pay") == ("TOKEN_CONTAINED", False)
