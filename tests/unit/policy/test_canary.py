"""Canaries: who is stood for, what is asked, and that every answer of a table is asked for."""

import msgspec
import pytest

from eastwest.errors import InvalidInput
from eastwest.policy.canary import (
    MAX_CANARIES,
    REFUSED_HANDSHAKE,
    canary_of,
    checks,
    is_canary,
    represented,
    stranger,
    with_canaries,
)
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    GrpcMatch,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Rule,
    Sidecar,
    TcpMatch,
    TenantRules,
    TenantSource,
    Verdict,
)
from eastwest.policy.oracle import lookup
from eastwest.registry.entry import Entry
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector

TD = "td.test"
A, B, C, SVC = (f"spiffe://{TD}/{name}" for name in ("a", "b", "c", "svc"))
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
OTHER = Rule(verdict=Verdict.DENY, code=DecisionCode.TENANT_NOT_PERMITTED)
STEP_UP = Rule(verdict=Verdict.DENY, code=DecisionCode.STEP_UP_REQUIRED, policy="p")
BY_HEADER = OperationRules(
    name="svc:things:list",
    match=HttpMatch(method="GET", path="/things"),
    tenant=TenantSource(header="x-tenant"),
    cells=(Cell(callers=(A, B), tenants=TenantRules(by_tenant={"acme": ALLOW}, otherwise=OTHER)),),
)
BY_METHOD = OperationRules(
    name="svc:things:change", match=GrpcMatch(method="svc.Things/Change"), cells=(Cell(callers=(B,), rule=STEP_UP),)
)
INBOUND = Inbound(
    service="svc",
    address="127.0.0.1",
    port=1,
    protocol="http",
    mode=MtlsMode.STRICT,
    upstream="tcp:127.0.0.1:2",
    operations=(BY_HEADER, BY_METHOD),
)
SIDECAR = Sidecar(spiffe_id=SVC, version="v", known_callers=(A, B, C), inbound=(INBOUND,))


def test_a_canary_stands_in_the_cells_of_whom_it_stands_for_and_nowhere_else():
    table, known = with_canaries(INBOUND, SIDECAR.known_callers, TD)
    whole = msgspec.structs.replace(SIDECAR, known_callers=known, inbound=(table,))
    assert represented(INBOUND, SIDECAR.known_callers, TD) == (A, C, B)
    for caller in (A, B, C):
        for method, path, headers in (
            ("GET", "/things", (("x-tenant", "acme"),)),
            ("GET", "/things", (("x-tenant", "else"),)),
            ("GET", "/things", ()),
            ("POST", "/svc.Things/Change", ()),
            ("GET", "/nothing", ()),
        ):
            asked = ("svc", method, path, headers)
            assert lookup(whole, canary_of(TD, caller), *asked) == lookup(SIDECAR, caller, *asked)
    assert lookup(whole, stranger(TD), "svc", "GET", "/things")[1] is DecisionCode.UNKNOWN_CALLER
    assert [o.name for o in table.operations] == [o.name for o in INBOUND.operations]


def test_every_answer_is_asked_for():
    asked = checks(SIDECAR, INBOUND, TD, ["svc:things:list"])
    answers = {(check.operation, check.expected) for check in asked if check.kind == "operation"}
    assert answers == {
        ("svc:things:list", "ALLOWED"),
        ("svc:things:list", "TENANT_NOT_PERMITTED"),
        ("svc:things:list", "TENANT_MISSING"),
        ("svc:things:list", "OPERATION_NOT_PERMITTED"),
        ("svc:things:change", "STEP_UP_REQUIRED"),
        ("svc:things:change", "OPERATION_NOT_PERMITTED"),
        ("", "UNLISTED_OPERATION"),
    }
    others = {check.kind: check.expected for check in asked if check.kind != "operation"}
    assert others == {
        "unknown-caller": "UNKNOWN_CALLER",
        "plaintext": "MTLS_REQUIRED",
        "no-certificate": REFUSED_HANDSHAKE,
        "foreign-root": REFUSED_HANDSHAKE,
        "wrong-trust-domain": REFUSED_HANDSHAKE,
        "expired": REFUSED_HANDSHAKE,
    }
    assert {check.reads for check in asked if check.operation == "svc:things:list"} == {True}
    assert {check.reads for check in asked if check.operation == "svc:things:change"} == {False}


def test_plaintext_is_not_tried_where_it_is_let_in_and_a_tcp_service_has_handshakes_alone():
    permissive = msgspec.structs.replace(INBOUND, mode=MtlsMode.PERMISSIVE)
    assert "plaintext" not in {check.kind for check in checks(SIDECAR, permissive, TD, [])}
    tcp = msgspec.structs.replace(
        INBOUND, protocol="tcp", operations=(OperationRules(name="svc:sessions:open", match=TcpMatch()),)
    )
    assert with_canaries(tcp, SIDECAR.known_callers, TD) == (tcp, SIDECAR.known_callers)
    assert {check.expected for check in checks(SIDECAR, tcp, TD, [])} == {REFUSED_HANDSHAKE}


def test_few_stand_for_many():
    callers = tuple(f"spiffe://{TD}/w{n:04}" for n in range(2000))
    operations = tuple(
        OperationRules(
            name=f"svc:o{n}:read",
            match=HttpMatch(method="GET", path=f"/o{n}"),
            cells=(Cell(callers=callers[n:], rule=ALLOW),) if n else (Cell(callers=callers, rule=ALLOW),),
        )
        for n in range(500)
    )
    many = msgspec.structs.replace(INBOUND, operations=operations)
    assert len(represented(many, callers, TD)) <= MAX_CANARIES


def test_nobody_else_can_have_such_a_name():
    assert is_canary(TD, canary_of(TD, A))
    assert not is_canary(TD, A)
    assert not is_canary(TD, canary_of("else.test", A))
    trust_domain = TrustDomain(TD)
    entry = Entry(
        spiffe_id=SpiffeId.parse(stranger(TD)),
        parent_id=trust_domain.id("/spire/agent/x"),
        selectors=frozenset({Selector("unix", "uid:1")}),
    )
    with pytest.raises(InvalidInput, match="/eastwest/canary"):
        entry.check(trust_domain)
