"""What is minted would be allowed, and what would be allowed is minted: by the table that enforcement points obey."""

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from token_world import BILLING, CONSOLE, ESTATE, LEDGER, TD, WEB

from eastwest.issuance.presented import read
from eastwest.issuance.transaction import (
    MAX_CHAIN,
    Approval,
    ApprovalNeeded,
    Caller,
    Targets,
    TokenRefused,
    Wanted,
    accepts_approver,
    approvable,
    mint,
    permit,
)
from eastwest.pki.signer import KeyAlgorithm, SoftwareSigner, generate_private_key
from eastwest.policy.enforcement import Verdict
from eastwest.policy.load import load_estate
from eastwest.policy.operations import wire_form
from eastwest.policy.oracle import lookup
from eastwest.policy.table import compile_estate
from eastwest.policy.transaction import MAX_LIFE, SKEW, NoToken, Token, claims
from eastwest.testing.entropy import SeededEntropy
from eastwest.testing.tokens import TokenMint

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SIGNER = SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P256))
KEYS = {SIGNER.key_id: SIGNER.public_key}
SIDECARS = compile_estate(load_estate({name: text.encode() for name, text in ESTATE.items()})).sidecars
TARGETS = Targets(SIDECARS.values())
OPERATIONS = [rules for sidecar in SIDECARS.values() for inbound in sidecar.inbound for rules in inbound.operations]
CERTIFICATE = "ab" * 32


def made(caller: str, wanted: Wanted, incoming: Token | None = None, approver: str = "", life: int = 120):
    approval = Approval("a1", approver, NOW + timedelta(minutes=15)) if approver else None
    granted = permit(TARGETS, caller, wanted, incoming, approval)
    token, unsigned = mint(granted, Caller(caller, CERTIFICATE), incoming, SIGNER, TD, NOW, SeededEntropy(1), life)
    return token, unsigned.finish(SIGNER.sign(unsigned.message)).token


def incoming_for(service: str, tenant: str = "", origin: str = CONSOLE) -> Token:
    return Token(
        id="i",
        transaction="t",
        caller=origin,
        certificate=CERTIFICATE,
        action=f"{service}:x:y",
        resource=service,
        origin=origin,
        expires=int(NOW.timestamp()) + 60,
        tenant=tenant,
        chain=(origin,),
    )


@pytest.mark.parametrize("rules", OPERATIONS, ids=lambda rules: rules.name)
def test_what_is_minted_is_allowed_and_nothing_else_would_be(rules) -> None:
    service = rules.name.partition(":")[0]
    sidecar = SIDECARS[TARGETS.workload_of(service)]
    method, template = wire_form(rules.match)
    minted = refused = 0
    tenants = ["acme", "globex", "other"] if rules.tenant else [""]
    approvers = ["", "unix:uid:0", f"{TD}/prod/shop/owner"]
    for caller, tenant, approver, origin in product([WEB, CONSOLE, BILLING, LEDGER], tenants, approvers, ["", CONSOLE]):
        filled = [literal or {"tenant": tenant}.get(name, "eu") for literal, name in template.segments]
        path = "/" + "/".join(filled)
        serves = next((s for s in ("billing", "ledger") if TARGETS.workload_of(s) == caller), "")
        if origin and not serves:
            continue
        incoming = incoming_for(serves, tenant) if origin else None
        try:
            token, text = made(caller, Wanted(rules.name, tenant), incoming, approver)
        except TokenRefused:
            refused += 1
            # No token of this caller would have helped: not even one that nobody makes.
            token = Token(
                id="x",
                transaction="t",
                caller=caller,
                certificate=CERTIFICATE,
                action=rules.name,
                resource=service,
                origin=origin or caller,
                expires=int(NOW.timestamp()) + 60,
                tenant=tenant,
                approver=approver,
                approval="a1" if approver else "",
            )
            verdict = lookup(sidecar, caller, service, method, path, (), token, CERTIFICATE)[0]
            assert verdict is Verdict.DENY, (caller, tenant, approver, origin)
            continue
        minted += 1
        assert read(text, KEYS, TD, NOW) == token
        verdict = lookup(sidecar, caller, service, method, path, (), token, CERTIFICATE)[0]
        assert verdict is Verdict.ALLOW, (caller, tenant, approver, origin)
    assert minted
    assert refused


def test_a_refusal_says_what_would_help() -> None:
    with pytest.raises(TokenRefused, match="only in a transaction that another workload began") as raised:
        made(BILLING, Wanted("ledger:entries:write", "acme"))
    assert "subject_token" in raised.value.fix
    with pytest.raises(TokenRefused, match="may not do billing:reports:make, whatever token it brings"):
        made(WEB, Wanted("billing:reports:make"))
    with pytest.raises(TokenRefused, match="no service has the operation 'billing:report:make'") as raised:
        made(CONSOLE, Wanted("billing:report:make"))
    assert raised.value.fix == "did you mean 'billing:reports:make'?"
    with pytest.raises(TokenRefused) as raised:
        made(CONSOLE, Wanted("x"))
    assert "billing:reports:make" not in raised.value.fix, "names are not told to whom guesses"
    with pytest.raises(TokenRefused, match="is not registered") as raised:
        approvable(TARGETS, f"{TD}/prod/shop/consol", Wanted("billing:credits:create", "acme"))
    assert raised.value.fix == f"did you mean '{CONSOLE}'?"


def test_what_an_approval_would_change() -> None:
    credit = Wanted("billing:credits:create", "acme")
    with pytest.raises(ApprovalNeeded):
        permit(TARGETS, CONSOLE, credit)
    assert approvable(TARGETS, CONSOLE, credit).service == "billing"
    rotate = Wanted("billing:keys:rotate")
    with pytest.raises(ApprovalNeeded):
        permit(TARGETS, CONSOLE, rotate)
    with pytest.raises(TokenRefused, match="no policy accepts an approval"):
        made(CONSOLE, rotate, approver="unix:uid:0")
    assert not accepts_approver(TARGETS, CONSOLE, rotate, "unix:uid:0")
    assert accepts_approver(TARGETS, CONSOLE, rotate, f"{TD}/prod/shop/owner")
    assert not accepts_approver(TARGETS, WEB, rotate, f"{TD}/prod/shop/owner")
    assert not accepts_approver(TARGETS, CONSOLE, Wanted("billing:nothing:do"), "unix:uid:0")
    for wanted in (
        Wanted("billing:credits:create", "other"),
        Wanted("billing:nothing:do"),
        Wanted("billing:credits:create"),
    ):
        with pytest.raises(TokenRefused):
            approvable(TARGETS, CONSOLE, wanted)
    with pytest.raises(TokenRefused):
        approvable(TARGETS, f"{TD}/nobody", credit)


def test_no_token_outlives_its_approval_or_five_minutes() -> None:
    token, _ = made(CONSOLE, Wanted("billing:reports:make"), life=9999)
    assert token.expires == int(NOW.timestamp()) + MAX_LIFE
    soon = Approval("a1", "unix:uid:0", NOW + timedelta(seconds=7))
    granted = permit(TARGETS, CONSOLE, Wanted("billing:credits:create", "acme"), None, soon)
    token, _ = mint(granted, Caller(CONSOLE, CERTIFICATE), None, SIGNER, TD, NOW, SeededEntropy(2))
    assert token.expires == int(NOW.timestamp()) + 7


def test_a_chain_has_an_end() -> None:
    incoming = incoming_for("billing", "acme")
    for length in range(1, MAX_CHAIN):
        chained = Token(**{**_fields(incoming), "chain": (CONSOLE,) * length})
        token, _ = made(BILLING, Wanted("ledger:entries:write", "acme"), chained)
        assert token.chain == (*chained.chain, BILLING)
        assert token.origin == CONSOLE
    with pytest.raises(TokenRefused, match="16 workloads"):
        made(BILLING, Wanted("ledger:entries:write", "acme"), Token(**{**_fields(incoming), "chain": (CONSOLE,) * 16}))


SELF_SERVING = Targets(
    compile_estate(
        load_estate(
            {
                name: text.encode()
                for name, text in {
                    **ESTATE,
                    "services/billing.yaml": ESTATE["services/billing.yaml"]
                    + '  - {name: "billing:health:read", match: {method: GET, path: /healthz}, sensitivity: read}\n',
                    "services/ledger.yaml": ESTATE["services/ledger.yaml"]
                    + '  - {name: "ledger:health:read", match: {method: GET, path: /healthz}, sensitivity: read}\n',
                    "policies/health.cedar": """
@id("all-look-at-health") @owner("group:shop") @reason("whether it lives is no secret")
permit (principal, action in [Action::"billing:health:read", Action::"ledger:health:read"], resource);
""",
                }.items()
            }
        )
    ).sidecars.values()
)


def hop(caller: str, wanted: Wanted, incoming: Token | None, now: datetime) -> Token:
    """The token of one more call, made when the one before was at its end."""
    granted = permit(SELF_SERVING, caller, wanted, incoming)
    return mint(granted, Caller(caller, CERTIFICATE), incoming, SIGNER, TD, now, SeededEntropy(3))[0]


def called(token: Token, **changed: object) -> Token:
    """What a service reads of a token that it was called with."""
    return Token(**{**_fields(token), **changed})


def test_a_transaction_keeps_its_tenant_through_hops_without_one() -> None:
    begun = called(made(CONSOLE, Wanted("billing:invoices:read", "acme"))[0])
    assert begun.transaction_tenant == "acme"
    between = hop(BILLING, Wanted("ledger:health:read"), begun, NOW)
    assert (between.tenant, between.transaction_tenant) == ("", "acme")
    # Said by a service of another workload, and come back: the tenant is still the transaction's.
    back = called(between, resource="billing")
    assert hop(BILLING, Wanted("ledger:entries:write", "acme"), back, NOW).transaction_tenant == "acme"
    with pytest.raises(TokenRefused, match="of another tenant"):
        hop(BILLING, Wanted("ledger:entries:write", "globex"), back, NOW)
    # A token of a release before this one has no such claim, but a tenant.
    with pytest.raises(TokenRefused, match="of another tenant"):
        hop(BILLING, Wanted("ledger:entries:write", "globex"), called(begun, transaction_tenant=""), NOW)


def test_a_transaction_without_a_tenant_takes_the_first_one() -> None:
    begun = called(made(CONSOLE, Wanted("billing:reports:make"))[0])
    assert begun.transaction_tenant == ""
    onward = hop(BILLING, Wanted("ledger:entries:write", "globex"), begun, NOW)
    assert onward.transaction_tenant == "globex"


def test_nobody_goes_on_with_a_transaction_to_itself() -> None:
    begun = made(CONSOLE, Wanted("billing:invoices:read", "acme"))[0]
    with pytest.raises(TokenRefused, match="goes on with a transaction to itself") as caught:
        hop(BILLING, Wanted("billing:health:read"), begun, NOW)
    assert (caught.value.error, caught.value.reason) == ("invalid_request", "INVALID_INPUT")
    assert hop(BILLING, Wanted("billing:health:read"), None, NOW).chain == (BILLING,)


def test_a_transaction_lasts_five_minutes_however_often_it_goes_on() -> None:
    start = int(NOW.timestamp())
    token = made(CONSOLE, Wanted("billing:reports:make"))[0]
    assert token.begun == start
    ends = []
    with pytest.raises(TokenRefused, match="began more than 300 seconds ago") as caught:
        while True:
            now = datetime.fromtimestamp(token.expires + SKEW, UTC)
            token = called(hop(BILLING, Wanted("ledger:health:read"), token, now), resource="billing")
            assert token.begun == start
            ends.append(token.expires - start)
    assert caught.value.reason == "TOKEN_EXPIRED"
    assert ends == [120 + SKEW + 120, MAX_LIFE]
    # Where nothing says when it began, as long ago as can be counts.
    old = called(token, begun=0, expires=start + 10)
    assert hop(BILLING, Wanted("ledger:health:read"), old, NOW).expires == start + 10


def test_what_a_token_says_of_its_transaction_survives_the_wire() -> None:
    token, text = made(CONSOLE, Wanted("billing:invoices:read", "acme"))
    found = read(text, KEYS, TD, NOW)
    assert isinstance(found, Token)
    assert (found.begun, found.transaction_tenant) == (int(NOW.timestamp()), "acme")
    assert found == token


def test_a_token_that_would_be_too_long_is_not_made() -> None:
    incoming = Token(**{**_fields(incoming_for("billing", "acme")), "chain": (f"{TD}/{'x' * 500}",) * 15})
    with pytest.raises(TokenRefused, match="more than 4096 bytes"):
        made(BILLING, Wanted("ledger:entries:write", "acme"), incoming)


BAD_TIMES = {
    "expired": ({"exp": -SKEW - 1}, NoToken.EXPIRED),
    "within the skew": ({"exp": -SKEW}, None),
    # What is left of its life is bounded, by the reader's clock; when it was made is the signer's word.
    "too long": ({"exp": MAX_LIFE + SKEW + 1, "iat": 0}, NoToken.INVALID),
    "as long as may be": ({"exp": MAX_LIFE + SKEW, "iat": 0}, None),
    "long, with little left": ({"exp": MAX_LIFE, "iat": -MAX_LIFE}, None),
    "from the future": ({"iat": SKEW + 1, "exp": 60}, None),
    "not yet": ({"nbf": SKEW + 1}, NoToken.INVALID),
    "not yet, within the skew": ({"nbf": SKEW}, None),
}


@pytest.mark.parametrize("case", BAD_TIMES)
def test_times(case: str) -> None:
    changed, outcome = BAD_TIMES[case]
    now = int(NOW.timestamp())
    maker = TokenMint(TD)
    token, _ = made(CONSOLE, Wanted("billing:reports:make"))
    said = claims(token, TD, now - 60) | {name: now + offset for name, offset in changed.items()}
    found = read(maker.sign(said), _keys(maker), TD, NOW)
    assert found is outcome if outcome is not None else isinstance(found, Token)


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "spiffe://other.test"},
        {"aud": "spiffe://other.test"},
        {"aud": ["spiffe://other.test"]},
        {"aud": [TD, 7]},
        {"exp": None},
        {"iat": "1"},
        {"iat": -1},
        {"exp": "1"},
        {"exp": True},
        {"tctx": None},
        {"tctx": {"action": "a"}},
        {"jti": None},
        {"sub": 7},
    ],
)
def test_claims_of_another_form_are_no_token(changed) -> None:
    maker = TokenMint(TD)
    token, _ = made(CONSOLE, Wanted("billing:reports:make"))
    said = claims(token, TD, int(NOW.timestamp())) | changed
    text = maker.sign({name: value for name, value in said.items() if value is not None})
    assert read(text, _keys(maker), TD, NOW) is NoToken.INVALID


def _keys(maker: TokenMint):
    from eastwest.pki.compact import read_keys

    return read_keys(maker.key_set)


def _fields(token: Token) -> dict:
    return {name: getattr(token, name) for name in token.__struct_fields__}
