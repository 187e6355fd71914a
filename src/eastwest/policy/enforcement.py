"""What an enforcement point is told: the compiled table of one workload, as plain data.

The server compiles these from the estate and Cedar (``eastwest.policy.table``); they travel as canonical
JSON to the agent, which turns them into Envoy resources (``eastwest.mesh``). Nothing here is specific to a proxy.
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec


class Verdict(enum.StrEnum):
    """The answer to a call."""

    ALLOW = "allow"
    DENY = "deny"


class DecisionCode(enum.StrEnum):
    """Why a call was allowed or refused: stable names that callers, ledgers and dashboards may rely on."""

    ALLOWED = "ALLOWED"
    MTLS_REQUIRED = "MTLS_REQUIRED"  # plaintext, or TLS without a certificate, at a strict port
    CERTIFICATE_REFUSED = "CERTIFICATE_REFUSED"  # a certificate came and did not verify
    SERVER_REFUSED = "SERVER_REFUSED"  # the caller's side refused the certificate that the service showed
    UNKNOWN_CALLER = "UNKNOWN_CALLER"  # proved who it is; nobody has registered it
    UNLISTED_OPERATION = "UNLISTED_OPERATION"  # no operation of the service matches method and path
    OPERATION_NOT_PERMITTED = "OPERATION_NOT_PERMITTED"  # no policy permits this caller this operation
    FORBIDDEN_BY_POLICY = "FORBIDDEN_BY_POLICY"  # a forbid policy says no
    TENANT_MISSING = "TENANT_MISSING"  # the operation needs a tenant and the request names none (or two)
    TENANT_NOT_PERMITTED = "TENANT_NOT_PERMITTED"  # the caller may do this, but not for this tenant
    STEP_UP_REQUIRED = "STEP_UP_REQUIRED"  # would be allowed with a step-up token
    APPROVAL_REQUIRED = "APPROVAL_REQUIRED"  # would be allowed with an approval
    POLICY_ERROR = "POLICY_ERROR"  # a policy failed while it was evaluated: denied, alarm
    UNCLASSIFIED_OPERATION = "UNCLASSIFIED_OPERATION"  # nobody has said yet how sensitive the operation is
    TOKEN_INVALID = "TOKEN_INVALID"  # noqa: S105 - a code; what was brought is no token of this trust domain, or several
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105 - a code; its time is over
    TOKEN_WRONG_ACTION = "TOKEN_WRONG_ACTION"  # noqa: S105 - a code; it was made for another operation
    TOKEN_WRONG_RESOURCE = "TOKEN_WRONG_RESOURCE"  # noqa: S105 - a code; for another service
    TOKEN_WRONG_CALLER = "TOKEN_WRONG_CALLER"  # noqa: S105 - a code; for another workload
    TOKEN_WRONG_KEY = "TOKEN_WRONG_KEY"  # noqa: S105 - a code; for another certificate of the caller
    TOKEN_WRONG_TENANT = "TOKEN_WRONG_TENANT"  # noqa: S105 - a code; for another tenant
    TOKEN_USED = "TOKEN_USED"  # noqa: S105 - a code; it counts once, and was used, or its approval was withdrawn
    CHECK_UNAVAILABLE = "CHECK_UNAVAILABLE"  # whether the token was used before cannot be found out now
    RECORD_UNAVAILABLE = "RECORD_UNAVAILABLE"  # the service wants every call recorded, and now none can be
    CALLER_CONTAINED = "CALLER_CONTAINED"  # the caller is cut off; enforced in every mode
    TOKEN_CONTAINED = "TOKEN_CONTAINED"  # noqa: S105 - a code; who asked for, began or approved it is cut off
    IDENTITY_CONTAINED = "IDENTITY_CONTAINED"  # the service itself is cut off, and takes no calls


class Recording(enum.StrEnum):
    """``required``: a call that cannot be recorded is refused. ``best-effort``: it goes on, and the loss is counted."""

    BEST_EFFORT = "best-effort"
    REQUIRED = "required"


class MtlsMode(enum.StrEnum):
    """``permissive``: plaintext and mTLS on one port, decisions only reported. ``strict``: enforced."""

    PERMISSIVE = "permissive"
    STRICT = "strict"


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One outcome: verdict, code, and the id of the policy that decided ("" when none did).

    ``token``: what holds instead where the call brings a transaction token; None: tokens make no difference here, and
    nobody looks at one.
    """

    verdict: Verdict
    code: DecisionCode
    policy: str = ""
    token: TokenRules | None = None


class OriginRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Outcomes by the workload (SPIFFE ID) that began the token's transaction."""

    by_origin: dict[str, Rule] = {}
    otherwise: Rule

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.by_origin)), self.otherwise))


class TokenRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Outcomes with a valid transaction token that was made for exactly this call (``eastwest.policy.transaction``).

    A token without an approval gets ``unapproved``; one with, what holds for its approver.
    """

    unapproved: OriginRules
    approved_by: dict[str, OriginRules] = {}
    approved: OriginRules  # by anybody else

    def __hash__(self) -> int:
        return hash((self.unapproved, tuple(sorted(self.approved_by)), self.approved))


class TenantRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Outcomes that depend on the tenant: exact tenant names, and what holds for any other tenant."""

    by_tenant: dict[str, Rule] = {}
    otherwise: Rule


class Cell(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The outcome for some callers at one operation: exactly one of ``rule`` and ``tenants`` is set."""

    callers: tuple[str, ...]  # SPIFFE IDs, sorted
    rule: Rule | None = None
    tenants: TenantRules | None = None


class TenantSource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a request says its tenant: a path parameter, a header (lower-case name), or its transaction token."""

    path: str = ""
    header: str = ""
    claim: bool = False


class HttpMatch(msgspec.Struct, frozen=True, kw_only=True, tag="http", tag_field="type"):
    """Method and path template with whole-segment ``{parameters}``."""

    method: str
    path: str


class GrpcMatch(msgspec.Struct, frozen=True, kw_only=True, tag="grpc", tag_field="type"):
    """A gRPC method as ``package.Service/Method``: POST to ``/package.Service/Method`` on the wire."""

    method: str


class TcpMatch(msgspec.Struct, frozen=True, kw_only=True, tag="tcp", tag_field="type"):
    """Any connection to the port."""


class OperationRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One operation and who may do it. Known callers in no cell get ``otherwise``."""

    name: str  # service:resource:verb
    match: HttpMatch | GrpcMatch | TcpMatch
    tenant: TenantSource | None = None  # set when the operation is per tenant
    single_use: bool = False  # a token counts for one call
    cells: tuple[Cell, ...] = ()
    otherwise: Rule = Rule(verdict=Verdict.DENY, code=DecisionCode.OPERATION_NOT_PERMITTED)
    emergency: dict[str, tuple[str, ...]] = {}
    """Callers that are allowed what they are by break-glass alone, with the tenants (none: any). Changes no answer."""


class Inbound(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One service's listener at its workload's sidecar."""

    service: str
    address: str  # to bind, such as 127.0.0.1
    port: int
    protocol: Literal["http", "tcp"]
    mode: MtlsMode
    upstream: str  # unix:/path/app.sock or tcp:127.0.0.1:5432
    operations: tuple[OperationRules, ...]
    post_quantum: bool = False  # only callers with ML-DSA-65 keys below ML-DSA-65 roots, hybrid key exchange only
    recording: Recording = Recording.BEST_EFFORT
    report: tuple[OperationRules, ...] = ()
    """The operations as they would be with the rules in report mode; empty where these change nothing here."""


class Outbound(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One service that the workload's application may reach by name."""

    service: str
    spiffe_id: str  # the server must prove to be this
    endpoints: tuple[str, ...]  # host:port
    protocol: Literal["http", "tcp"]
    post_quantum: bool = False  # the server must prove it by an ML-DSA-65 key below an ML-DSA-65 root


class Sidecar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything the sidecars of one workload enforce. ``version`` is a hash (hex) of all the rest."""

    spiffe_id: str
    version: str
    known_callers: tuple[str, ...]  # SPIFFE IDs of all registered workloads, sorted; none where nothing is served
    inbound: tuple[Inbound, ...] = ()
    outbound: tuple[Outbound, ...] = ()
    federated_callers: tuple[str, ...] = ()  # foreign trust domains some of whose workloads a policy admits here


def uses_tokens(inbound: Inbound) -> bool:
    """Whether a transaction token can make a difference to any answer of the service."""
    for operation in (*inbound.operations, *inbound.report):
        if operation.cells and operation.tenant is not None and operation.tenant.claim:
            return True
        for cell in operation.cells:
            tenants = cell.tenants
            rules = (cell.rule,) if tenants is None else (tenants.otherwise, *tenants.by_tenant.values())
            if any(rule is not None and rule.token is not None for rule in rules):
                return True
    return False


def unrecordable(sidecar: Sidecar) -> Sidecar:
    """What holds while no decision can be recorded: services that require it permit nobody anything."""
    inbound = tuple(_refusing(i) if i.recording is Recording.REQUIRED else i for i in sidecar.inbound)
    return sidecar if inbound == sidecar.inbound else msgspec.structs.replace(sidecar, inbound=inbound)


def _refusing(inbound: Inbound) -> Inbound:
    # Where operations look for their tenant stays, as listeners log by it: they must not change for this.
    refused = Rule(verdict=Verdict.DENY, code=DecisionCode.RECORD_UNAVAILABLE)
    operations = tuple(msgspec.structs.replace(o, cells=(), otherwise=refused) for o in inbound.operations)
    return msgspec.structs.replace(inbound, operations=operations, report=())


def encode_sidecar(sidecar: Sidecar) -> bytes:
    """Canonical JSON: equal tables give equal bytes."""
    return msgspec.json.encode(sidecar, order="deterministic")


def decode_sidecar(data: bytes) -> Sidecar:
    """The inverse of ``encode_sidecar``; raises ``msgspec.ValidationError`` on anything else."""
    return msgspec.json.decode(data, type=Sidecar)
