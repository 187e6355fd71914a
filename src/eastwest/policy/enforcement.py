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
    UNKNOWN_CALLER = "UNKNOWN_CALLER"  # proved who it is; nobody has registered it
    UNLISTED_OPERATION = "UNLISTED_OPERATION"  # no operation of the service matches method and path
    OPERATION_NOT_PERMITTED = "OPERATION_NOT_PERMITTED"  # no policy permits this caller this operation
    FORBIDDEN_BY_POLICY = "FORBIDDEN_BY_POLICY"  # a forbid policy says no
    TENANT_MISSING = "TENANT_MISSING"  # the operation needs a tenant and the request names none (or two)
    TENANT_NOT_PERMITTED = "TENANT_NOT_PERMITTED"  # the caller may do this, but not for this tenant
    STEP_UP_REQUIRED = "STEP_UP_REQUIRED"  # would be allowed with a step-up token
    APPROVAL_REQUIRED = "APPROVAL_REQUIRED"  # would be allowed with an approval
    POLICY_ERROR = "POLICY_ERROR"  # a policy failed while it was evaluated: denied, alarm


class MtlsMode(enum.StrEnum):
    """``permissive``: plaintext and mTLS on one port, decisions only reported. ``strict``: enforced."""

    PERMISSIVE = "permissive"
    STRICT = "strict"


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One outcome: verdict, code, and the id of the policy that decided ("" when none did)."""

    verdict: Verdict
    code: DecisionCode
    policy: str = ""


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
    """Where a request says its tenant: a path parameter or a header (lower-case name)."""

    path: str = ""
    header: str = ""


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
    cells: tuple[Cell, ...] = ()
    otherwise: Rule = Rule(verdict=Verdict.DENY, code=DecisionCode.OPERATION_NOT_PERMITTED)


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


class Outbound(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One service that the workload's application may reach by name."""

    service: str
    spiffe_id: str  # the server must prove to be this
    endpoints: tuple[str, ...]  # host:port
    protocol: Literal["http", "tcp"]
    post_quantum: bool = False  # the server must prove it by an ML-DSA-65 key below an ML-DSA-65 root


class Sidecar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything the sidecars of one workload enforce. ``version`` is the policy version's content hash (hex)."""

    spiffe_id: str
    version: str
    known_callers: tuple[str, ...]  # SPIFFE IDs of all registered workloads, sorted
    inbound: tuple[Inbound, ...] = ()
    outbound: tuple[Outbound, ...] = ()
    federated_callers: tuple[str, ...] = ()  # foreign trust domains some of whose workloads a policy admits here


def encode_sidecar(sidecar: Sidecar) -> bytes:
    """Canonical JSON: equal tables give equal bytes."""
    return msgspec.json.encode(sidecar, order="deterministic")


def decode_sidecar(data: bytes) -> Sidecar:
    """The inverse of ``encode_sidecar``; raises ``msgspec.ValidationError`` on anything else."""
    return msgspec.json.decode(data, type=Sidecar)
