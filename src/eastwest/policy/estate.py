"""The estate as checked values: what ``estate.yaml``, profiles, workloads, services, policies and waivers say.

Field names are those of the files. ``eastwest.policy.load.load_estate`` makes these; once it has returned an
``Estate``, names refer to things that exist and texts have their forms, and nobody checks them again.
The forms of texts (``SpiffeIdText`` and the like) are enforced by ``eastwest.policy.forms``.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from eastwest.policy.enforcement import MtlsMode, Recording
from eastwest.policy.failures import IDENTITY_CLASSES, FailureClass
from eastwest.policy.problems import Position, Problem

SpiffeIdText = Annotated[str, Meta(pattern=r"^spiffe://[a-z0-9._-]+(/[a-zA-Z0-9._-]+)*$", extra={"form": "spiffe-id"})]
TrustDomainText = Annotated[str, Meta(pattern=r"^[a-z0-9._-]+$", max_length=255, extra={"form": "trust-domain"})]
NameText = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", extra={"form": "name"})]
OwnerText = Annotated[str, Meta(pattern=r"^[a-z]+:\S+$", extra={"form": "owner"})]
SelectorText = Annotated[str, Meta(pattern=r"^[^:]+:.+$", extra={"form": "selector"})]
DurationText = Annotated[str, Meta(pattern=r"^([1-9][0-9]*[smhd])+$", extra={"form": "duration"})]
OperationText = Annotated[
    str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*:[a-z0-9][a-z0-9-]*:[a-z0-9][a-z0-9-]*$", extra={"form": "operation"})
]
PathText = Annotated[str, Meta(pattern=r"^/[^?#%*]*$", max_length=1024, extra={"form": "path"})]
MethodText = Annotated[str, Meta(pattern=r"^[A-Z]{1,16}$", extra={"form": "method"})]
GrpcText = Annotated[
    str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*/[A-Za-z_][A-Za-z0-9_]*$", extra={"form": "grpc-method"})
]
HeaderText = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*$", extra={"form": "header"})]
ParameterText = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", extra={"form": "parameter"})]
AddressText = Annotated[str, Meta(extra={"form": "ip"})]
EndpointText = Annotated[str, Meta(pattern=r"^.+:[0-9]{1,5}$", extra={"form": "endpoint"})]
SocketPathText = Annotated[str, Meta(pattern=r"^/", max_length=107, extra={"form": "socket-path"})]
DnsText = Annotated[str, Meta(max_length=253, extra={"form": "dns"})]
DnsPatternText = Annotated[str, Meta(max_length=253, extra={"form": "dns-pattern"})]
NamingText = Annotated[str, Meta(pattern=r"^/", extra={"form": "naming"})]
IdPatternText = Annotated[str, Meta(pattern=r"^spiffe://", extra={"form": "id-pattern"})]
AdministratorText = Annotated[str, Meta(pattern=r"^(unix:uid:[0-9]+|spiffe://.+)$", extra={"form": "administrator"})]
NodeText = Annotated[str, Meta(pattern=r"^(group:[a-z0-9][a-z0-9-]*|spiffe://.+)$", extra={"form": "node"})]
HttpsUrlText = Annotated[str, Meta(pattern=r"^https://\S+$", max_length=2048, extra={"form": "https-url"})]
BundleFileText = Annotated[str, Meta(pattern=r"^federation/[^/]+\.json$", extra={"form": "bundle-file"})]
PolicyIdText = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", extra={"form": "policy-id"})]
Port = Annotated[int, Meta(ge=1, le=65535)]
ProseText = Annotated[str, Meta(min_length=1, max_length=4096)]
AttributeValue = str | tuple[str, ...]


class EnvironmentKind(enum.StrEnum):
    """Where the workloads of an environment run."""

    KUBERNETES = "kubernetes"
    VM = "vm"
    EDGE = "edge"


class Sensitivity(enum.StrEnum):
    """What an operation could do; each is also a group of actions in Cedar."""

    OPEN = "open"
    READ = "read"
    RESTRICTED_READ = "restricted-read"
    MUTATE = "mutate"
    CONTROL = "control"


class Demand(enum.StrEnum):
    """What a call must bring beyond a permitted identity: a transaction token, one with an approval, an unused one."""

    STEP_UP = "step-up"
    APPROVAL = "approval"
    SINGLE_USE = "single-use"


PRODUCTION = frozenset({"prod", "production"})
"""Names of environments that are production where nothing else is said."""


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A world of its own, such as production: rights do not flow between environments.

    ``production`` unset: it is if it is called so. Only lints read it.
    """

    name: NameText
    kind: EnvironmentKind
    naming: NamingText | None = None
    production: bool | msgspec.UnsetType = msgspec.UNSET  # unset is not written, so that older versions stay the same

    @property
    def is_production(self) -> bool:
        """Whether it is declared, or else called, production."""
        return self.name in PRODUCTION if self.production is msgspec.UNSET else bool(self.production)


class Domain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the business and who answers for it."""

    name: NameText
    owners: tuple[OwnerText, ...]


class NodeGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes that may run the same workloads, told by the selectors of their attestation."""

    name: NameText
    environment: NameText
    selectors: tuple[SelectorText, ...]


class Right(enum.StrEnum):
    """What an administrator may do. ``workloads`` is registration, by the estate's files and by API alike."""

    EVERYTHING = "everything"
    READ = "read"
    WORKLOADS = "workloads"
    SERVICES = "services"
    POLICIES = "policies"
    APPROVALS = "approvals"
    PROFILES = "profiles"
    WAIVERS = "waivers"
    TOKENS = "tokens"
    NODES = "nodes"
    MINT = "mint"
    CA = "ca"
    FEDERATION = "federation"
    LOGS = "logs"
    VERIFY = "verify"
    CONTAINMENT = "containment"


class Administrator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of ``administrators``: who may do what, and where. Several rows for one ``who`` add up.

    Limits that are empty limit nothing; all that are not must hold. ``selectors`` are patterns (``*`` stands for any
    text) one of which each selector must fit; ``with_selectors`` must all be there. A row with any limit gives no DNS
    names but those that ``dns`` covers. What a ``controller`` registers is kept in its name, and it touches nothing
    else.
    """

    who: AdministratorText
    may: Annotated[tuple[Right, ...], Meta(min_length=1)]
    domains: tuple[NameText, ...] = ()
    environments: tuple[NameText, ...] = ()
    spiffe_ids: tuple[IdPatternText, ...] = ()
    nodes: tuple[NodeText, ...] = ()
    selectors: tuple[SelectorText, ...] = ()
    with_selectors: tuple[SelectorText, ...] = ()
    dns: tuple[DnsPatternText, ...] = ()
    controller: NameText | None = None


class ForeignWorkload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A caller from a federated trust domain, and what policies know of it: the same as of our own workloads."""

    spiffe_id: SpiffeIdText
    environment: NameText
    domain: NameText
    owner: OwnerText
    attributes: dict[str, AttributeValue] = {}


class ForeignService(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A service of a federated trust domain that workloads of ``environment`` reach by its name."""

    service: NameText
    workload: SpiffeIdText
    environment: NameText
    protocol: Literal["http", "tcp"]
    endpoints: Annotated[tuple[EndpointText, ...], Meta(min_length=1)]


class Federation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A foreign trust domain: where its bundle comes from, who of it may be admitted, what of it may be called.

    ``bundle`` is the one to begin with, and without ``endpoint`` the only one. With neither, the relationship is
    kept by API.
    """

    trust_domain: TrustDomainText
    endpoint: HttpsUrlText | None = None
    profile: Literal["https_web", "https_spiffe"] = "https_web"
    endpoint_spiffe_id: SpiffeIdText | None = None
    bundle: BundleFileText | None = None
    workloads: tuple[ForeignWorkload, ...] = ()
    services: tuple[ForeignService, ...] = ()


class SloEdge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One caller of one service."""

    caller: SpiffeIdText
    service: NameText


class Slo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How reliably identity works: in ``window`` at least ``objective`` percent of calls do not fail by ``classes``.

    Exactly one of ``domain`` (whose services are called), ``service`` and ``edge``.
    """

    name: NameText
    domain: NameText | None = None
    service: NameText | None = None
    edge: SloEdge | None = None
    classes: Annotated[tuple[FailureClass, ...], Meta(min_length=1)] = IDENTITY_CLASSES
    objective: Annotated[float, Meta(ge=50, le=99.999)] = 99.9
    window: DurationText = "30d"


class Ring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some enforcement points that get new rules before others: those of ``domains``, or ``share`` percent of all.

    Exactly one of the two.
    """

    name: NameText
    domains: tuple[NameText, ...] = ()
    share: Annotated[int, Meta(ge=1, le=100)] | None = None


class Rollout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How new rules get to enforcement points: ring by ring, each watched for ``soak``; the rest is the last ring.

    ``brake``: denials that nobody meant bring the rules before back by themselves.
    """

    rings: tuple[Ring, ...] = ()
    soak: DurationText = "10m"
    advance: Literal["manual", "automatic"] = "manual"
    brake: bool = True


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Administrators who answer together for what names the group as its owner."""

    name: OwnerText
    members: Annotated[tuple[AdministratorText, ...], Meta(min_length=1)]


class Changes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How changes of the estate are agreed to.

    ``two_person``: what to do with a change that needs another's approval where there is no other administrator who
    could give it: let it through with a warning, or refuse it ``always``.
    """

    two_person: Literal["where-possible", "always"] = "where-possible"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``estate.yaml``: what the other files may refer to."""

    trust_domain: TrustDomainText
    naming: NamingText | None = None
    environments: tuple[Environment, ...]
    domains: tuple[Domain, ...]
    node_groups: tuple[NodeGroup, ...] = ()
    administrators: tuple[Administrator, ...] = ()
    federation: tuple[Federation, ...] = ()
    slos: tuple[Slo, ...] = ()
    rollout: Rollout | None = None
    groups: tuple[Group, ...] = ()
    changes: Changes = Changes()


class Lifetime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long certificates live, such as ``1h``."""

    default: DurationText
    max: DurationText


class ProfileNames(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which names a certificate of the profile carries."""

    spiffe_id: Literal["exactly-one"] = "exactly-one"
    dns: tuple[DnsPatternText, ...] = ()


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``profiles/*.yaml``: an issuance profile."""

    profile: NameText
    doors: tuple[Literal["workload-api", "spire-api", "acme", "est", "kubernetes", "gateway"], ...]
    environments: tuple[NameText, ...] = ()
    keys: tuple[Literal["ec-p256", "ec-p384", "ed25519", "ml-dsa-65"], ...]
    lifetime: Lifetime
    names: ProfileNames = ProfileNames()
    usage: tuple[Literal["server", "client"], ...] = ("server", "client")
    revocation: Literal["by-expiry-and-containment", "crl"] = "by-expiry-and-containment"


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of ``workloads/*.yaml``: an identity, who may have it, and what policies know of it."""

    spiffe_id: SpiffeIdText
    environment: NameText
    domain: NameText
    owner: OwnerText
    node: NodeText
    selectors: Annotated[tuple[SelectorText, ...], Meta(min_length=1)]
    profile: NameText
    attributes: dict[str, AttributeValue] = {}
    dns_names: tuple[DnsText, ...] = ()
    federates_with: tuple[TrustDomainText, ...] = ()
    ttl: DurationText | None = None
    hint: Annotated[str, Meta(max_length=1024)] = ""
    period: DurationText | msgspec.UnsetType = msgspec.UNSET  # how often it calls at least; unset is not written

    @property
    def tenants(self) -> tuple[str, ...]:
        """The tenants that the workload serves."""
        value = self.attributes.get("tenants", ())
        return (value,) if isinstance(value, str) else value


class WorkloadsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``workloads/*.yaml``."""

    workloads: tuple[Workload, ...]


class Listen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a service's sidecar listens, and how strictly; ``until`` says when permissive mode should end."""

    port: Port
    protocol: Literal["http", "tcp"]
    mtls: MtlsMode
    until: dt.date | None = None
    address: AddressText = "127.0.0.1"


class Upstream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the application itself listens: exactly one of the two."""

    unix: SocketPathText | None = None
    tcp: EndpointText | None = None


class TenantFrom(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a request names its tenant: exactly one of a path parameter, a header and its transaction token."""

    path: ParameterText | None = None
    header: HeaderText | None = None
    claim: bool = False


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an operation is recognised: ``method`` and ``path``, or ``grpc``, or ``tcp: true``."""

    method: MethodText | None = None
    path: PathText | None = None
    grpc: GrpcText | None = None
    tcp: bool = False


class Operation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The unit of authorization, named ``service:resource:verb``. Without a sensitivity it is refused to everybody."""

    name: OperationText
    match: Match
    sensitivity: Sensitivity | None = None
    data: NameText | None = None
    demands: tuple[Demand, ...] = ()


class Service(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``services/*.yaml``: something that is called."""

    service: NameText
    workload: SpiffeIdText
    owner: OwnerText
    domain: NameText
    listen: Listen
    upstream: Upstream
    tenant: TenantFrom | None = None
    endpoints: tuple[EndpointText, ...] = ()
    recording: Recording = Recording.BEST_EFFORT
    operations: Annotated[tuple[Operation, ...], Meta(min_length=1)]


class WaiverScope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a waiver excuses: one rule, for one service, one policy, or the workloads whose SPIFFE IDs fit a pattern."""

    rule: NameText
    service: NameText | None = None
    workload: IdPatternText | None = None
    policy: PolicyIdText | msgspec.UnsetType = msgspec.UNSET  # unset is not written, as above


class Waiver(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``waivers/*.yaml``: an exception with an owner and an end."""

    waiver: NameText
    owner: OwnerText
    applies_to: WaiverScope
    reason: ProseText
    until: dt.date


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """One Cedar policy: its annotations, its text as written, and its canonical JSON (without comments).

    ``report``: it decides nothing yet, what it would change is recorded; that is meant to last ``until`` then.
    """

    id: str
    owner: str
    reason: str
    effect: Literal["permit", "forbid"]
    text: str
    canonical: str
    report: bool = False
    until: dt.date | None = None


class Estate(msgspec.Struct, frozen=True, kw_only=True):
    """All that is intended, checked; lists are sorted by name.

    ``positions`` says where each thing was written, by kind and name; ``notes`` holds warnings and notes.
    Neither takes part in ``content``.
    """

    settings: Settings
    profiles: tuple[Profile, ...]
    workloads: tuple[Workload, ...]
    services: tuple[Service, ...]
    policies: tuple[Policy, ...]
    waivers: tuple[Waiver, ...]
    schema: str  # the generated Cedar schema
    positions: Mapping[tuple[str, str], Position] = {}
    notes: tuple[Problem, ...] = ()
    bundles: Mapping[str, bytes] = {}  # files of federation/ that the settings name, by path
    registered: tuple[ForeignWorkload, ...] = ()  # callers that no file names, added by the server

    @property
    def callers(self) -> tuple[Workload | ForeignWorkload, ...]:
        """Every principal known to policies, by SPIFFE ID: ours, federated ones, those registered with an owner."""
        foreign = (workload for one in self.settings.federation for workload in one.workloads)
        return tuple(sorted((*self.workloads, *foreign, *self.registered), key=lambda caller: caller.spiffe_id))

    def position(self, kind: str, name: str) -> Position:
        """Where the ``workload``, ``service``, ``operation``, ``policy``, ``profile`` or ``waiver`` was written."""
        return self.positions.get((kind, name), Position("estate.yaml"))


def content(estate: Estate) -> bytes:
    """Canonical JSON of what the estate says; files, their order and comments make no difference."""
    policies = sorted((p.id, p.canonical) for p in estate.policies)
    settings = msgspec.Raw(_said(estate.settings, NEWER))
    parts = (settings, estate.profiles, estate.workloads, estate.services, policies, estate.waivers)
    said = msgspec.json.encode(parts, order="deterministic")
    return said + msgspec.json.encode(estate.bundles, order="deterministic") if estate.bundles else said


NEWER = ("slos", "rollout", "groups", "changes")
"""Settings that came later: without them an estate is the version that it was before there were any."""


def _said(value: msgspec.Struct, newer: Collection[str]) -> bytes:
    """Canonical JSON of a struct, as msgspec writes it, without those of the ``newer`` fields that say nothing."""
    members = [
        b'"%s":%s' % (field.encode_name.encode(), msgspec.json.encode(said, order="deterministic"))
        for field in msgspec.structs.fields(value)
        for said in [getattr(value, field.name)]
        if field.name not in newer or said != field.default
    ]
    return b"{" + b",".join(members) + b"}"
