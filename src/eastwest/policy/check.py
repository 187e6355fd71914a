"""Whether the parts of an estate fit each other: names that are used exist, and what must agree does."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from eastwest.policy.decode import Path
from eastwest.policy.enforcement import MtlsMode, TenantSource
from eastwest.policy.estate import (
    Administrator,
    AttributeValue,
    Operation,
    Profile,
    Right,
    Service,
    Settings,
    Waiver,
    Workload,
)
from eastwest.policy.forms import duration
from eastwest.policy.lint.rules import ABOUT_SERVICES, LINTS
from eastwest.policy.naming import RULE as NAMING_RULE
from eastwest.policy.naming import Naming
from eastwest.policy.operations import (
    OWN_SERVICE,
    can_be_tenant,
    likely_tenant,
    matcher,
    tenant_source,
    wire_form,
)
from eastwest.policy.parts import Parts
from eastwest.policy.problems import Findings, Position, suggest, suggest_id
from eastwest.policy.schema import RESERVED_ATTRIBUTES
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.selector import Selector
from eastwest.spiffe.selector_schema import WELL_KNOWN, ImpossibleSelector

UNSEEN_CALLER = "unseen-caller"
"""The rule that every registered caller of a service was seen before it turns strict (``eastwest.ledger.breaks``)."""
BUILT_IN_PROFILES = frozenset({"agent", "server"})
_OURS = frozenset({"unix", "systemd"})
"""Types of selectors that our agent's attestors make."""
LIMITS = ("domains", "environments", "spiffe_ids", "nodes", "selectors", "with_selectors", "dns")
_LIMITABLE = {
    # Right → the limits that can hold for it.
    Right.READ: frozenset[str](),
    Right.WORKLOADS: frozenset(LIMITS),
    Right.SERVICES: frozenset({"domains"}),
    Right.POLICIES: frozenset({"domains"}),
    Right.WAIVERS: frozenset({"domains"}),
    Right.APPROVALS: frozenset({"domains"}),
    Right.CONTAINMENT: frozenset({"domains", "environments", "spiffe_ids"}),
    Right.TOKENS: frozenset({"environments"}),
    Right.MINT: frozenset({"domains", "environments", "spiffe_ids", "dns"}),
}
_IDENTITIES = (Right.WORKLOADS, Right.MINT, Right.TOKENS)
"""Rights by which an administrator comes to identities of its own."""
_ATTRIBUTE = re.compile(r"[a-z][a-z0-9_]{0,62}")
_CEDAR_WORDS = frozenset({"true", "false", "if", "then", "else", "in", "is", "like", "has"})


def check_references(
    settings: Settings,
    places: dict[Path, Position],
    profiles: Parts[Profile],
    workloads: Parts[Workload],
    services: Parts[Service],
    waivers: Parts[Waiver],
    findings: Findings,
) -> None:
    """Write a finding for everything that does not fit."""
    naming = Naming.of(settings, waivers.items.values(), services.items.values())
    checker = _Checker(settings, profiles, workloads, services, findings, naming)
    checker.settings(places)
    for profile in profiles.items:
        checker.profile(profile)
    for workload in workloads.items:
        checker.workload(workload)
    checker.attribute_types()
    for service in services.items:
        checker.service(service)
    checker.listeners()
    for name, waiver in waivers.items.items():
        scope, where = waiver.applies_to, waivers.at(name, "applies_to")
        given = [one for one in (scope.service, scope.workload, scope.policy or None) if one is not None]
        if scope.rule == UNSEEN_CALLER and scope.service is not None and not scope.policy:
            given = given[:1]  # some callers of a service may be meant
        if len(given) != 1:
            findings.error(where, "a waiver needs exactly one of service and workload, or a policy", "keep one")
        elif scope.policy and scope.rule not in LINTS:
            findings.error(where, f"rule {scope.rule!r} is not about policies", "write service: NAME")
        elif given == [scope.workload] and scope.rule not in {NAMING_RULE, *LINTS} - ABOUT_SERVICES:
            findings.error(where, f"rule {scope.rule!r} is about services", "write service: NAME")
        elif scope.service is not None and services.lacks(scope.service):
            checker.unknown("service", scope.service, services.named, waivers.at(name, "applies_to", "service"))


def check_attributes(attributes: Mapping[str, AttributeValue], at: Callable[..., Position], findings: Findings) -> None:
    """Write a finding for each attribute that policies could not use; ``at(key, ...)`` is where one was written."""
    header = TenantSource(header="any")
    for key, value in attributes.items():
        where = at(key)
        if key in RESERVED_ATTRIBUTES:
            findings.error(where, f"attribute {key!r} is a field of its own", f"remove it; set {key}: instead")
        elif not _ATTRIBUTE.fullmatch(key) or key in _CEDAR_WORDS:
            findings.error(where, f"{key[:80]!r} is not an attribute name", "use a-z, 0-9 and _")
        elif key == "tenants":
            if isinstance(value, str):
                findings.error(where, "tenants must be a list", f'write tenants: ["{value}"]')
                continue
            for i, tenant in enumerate(value):
                if not can_be_tenant(header, tenant):
                    findings.error(
                        at(key, i),
                        f"{tenant[:80]!r} is not a tenant that a request can name",
                        "use visible ASCII without spaces and commas",
                    )


class _Checker:
    def __init__(
        self,
        settings: Settings,
        profiles: Parts[Profile],
        workloads: Parts[Workload],
        services: Parts[Service],
        findings: Findings,
        naming: Naming,
    ) -> None:
        self._naming = naming
        self._settings = settings
        self._profiles = profiles
        self._workloads = workloads
        self._services = services
        self._findings = findings
        self._environments = {e.name for e in settings.environments}
        self._domains = {d.name for d in settings.domains}
        self._groups = {g.name: g for g in settings.node_groups}

    def unknown(self, what: str, name: str, known: Iterable[str], where: Position) -> None:
        self._findings.error(
            where,
            f"unknown {what} {name!r}",
            suggest(name, known, otherwise=f"declare the {what}, or correct the name"),
        )

    def settings(self, places: dict[Path, Position]) -> None:
        rows = (
            ("environments", [e.name for e in self._settings.environments]),
            ("domains", [d.name for d in self._settings.domains]),
            ("node_groups", [g.name for g in self._settings.node_groups]),
        )
        for key, names in rows:
            for i, name in enumerate(names):
                if name in names[:i]:
                    where = places[key, i, "name"]
                    self._findings.error(where, f"{name!r} is declared twice in {key}", "keep one")
        for i, group in enumerate(self._settings.node_groups):
            if group.environment not in self._environments:
                where = places["node_groups", i, "environment"]
                self.unknown("environment", group.environment, self._environments, where)
        for i, administrator in enumerate(self._settings.administrators):
            self._administrator(administrator, i, places)
        administrators = self._settings.administrators
        root = [row for row in administrators if row.who == "unix:uid:0"]
        if root and not any(Right.EVERYTHING in row.may for row in administrators):
            self._findings.error(
                places["administrators",],
                "nobody may do everything, so this could never be changed again",
                "add a row with may: [everything]",
            )

    def _administrator(self, row: Administrator, index: int, places: dict[Path, Position]) -> None:
        for key, known, what in (
            ("domains", self._domains, "domain"),
            ("environments", self._environments, "environment"),
        ):
            for j, name in enumerate(getattr(row, key)):
                if name not in known:
                    self.unknown(what, name, known, places["administrators", index, key, j])
        given = [key for key in LIMITS if getattr(row, key)]
        for j, right in enumerate(row.may):
            useless = [key for key in given if key not in _LIMITABLE.get(right, ())]
            if useless and right is not Right.READ:
                self._findings.error(
                    places["administrators", index, "may", j],
                    f"{right} cannot be limited by {', '.join(useless)}",
                    f"give {row.who} another row with may: [{right}] and what limits it",
                )
        for j, node in enumerate(row.nodes):
            kind, _, group = node.partition(":")
            if kind == "group" and group not in self._groups:
                self.unknown("node group", group, self._groups, places["administrators", index, "nodes", j])
        if Right.APPROVALS in row.may:
            self._approver(row, places["administrators", index, "may", row.may.index(Right.APPROVALS)])

    def _approver(self, row: Administrator, where: Position) -> None:
        """Nobody approves what it is to do itself, but the server cannot know whose hands an identity is in."""
        others = [r for r in self._settings.administrators if r.who == row.who]
        if any(Right.EVERYTHING in other.may for other in others):
            return
        beside = [
            right
            for right in _IDENTITIES
            if any(
                right in other.may
                and (not row.domains or not other.domains or not set(row.domains).isdisjoint(other.domains))
                for other in others
            )
        ]
        if beside:
            self._findings.warning(
                where,
                f"{row.who} may approve what identities do that it makes itself: "
                f"it has approvals beside {', '.join(beside)} over the same domains",
                "give approvals to somebody else, or limit the rows to domains apart",
            )

    def profile(self, name: str) -> None:
        profile, at = self._profiles.items[name], self._profiles.at
        if name in BUILT_IN_PROFILES:
            self._findings.error(
                at(name, "profile"), f"profile {name!r} is built in and cannot be changed", "choose another name"
            )
        for i, environment in enumerate(profile.environments):
            if environment not in self._environments:
                self.unknown("environment", environment, self._environments, at(name, "environments", i))
        if duration(profile.lifetime.default) > duration(profile.lifetime.max):
            self._findings.error(
                at(name, "lifetime", "default"),
                f"the default lifetime {profile.lifetime.default} is longer than the longest, {profile.lifetime.max}",
                "raise max or lower default",
            )

    def workload(self, name: str) -> None:
        workload = self._workloads.items[name]
        self._identity(name, workload)
        self._placement(name, workload)
        self._issuance(name, workload)
        self._attributes(name, workload)
        for i, text in enumerate(workload.selectors):
            self._selector(text, self._workloads.at(name, "selectors", i))

    def service(self, name: str) -> None:
        service, at = self._services.items[name], self._services.at
        if name == OWN_SERVICE:
            self._findings.error(at(name, "service"), f"{name!r} is the server's own service", "choose another name")
        if service.domain not in self._domains:
            self.unknown("domain", service.domain, self._domains, at(name, "domain"))
        if self._workloads.lacks(service.workload):
            self._findings.error(
                at(name, "workload"),
                f"service {name!r} names the workload {service.workload}, which nobody registered",
                suggest_id(service.workload, self._workloads.named, otherwise="declare it in workloads/"),
            )
        owner = self._workloads.items.get(service.workload)
        if owner is not None and service.domain in self._domains and owner.domain != service.domain:
            self._findings.warning(
                at(name, "domain"),
                f"service {name!r} is of domain {service.domain}, its workload of {owner.domain}",
                "policies see both; give them the same domain unless that is meant",
            )
        self._service_ports(name, service)
        self._operations(name, service)

    def attribute_types(self) -> None:
        """An attribute is a text for all workloads or a list for all: Cedar's types are per entity type."""
        first: dict[str, tuple[type, str]] = {}
        for name, workload in self._workloads.items.items():
            for key, value in workload.attributes.items():
                kind, holder = first.setdefault(key, (type(value), name))
                if kind is not type(value) and key != "tenants":
                    self._findings.error(
                        self._workloads.at(name, "attributes", key),
                        f"attribute {key!r} is a {_kind(type(value))} here and a {_kind(kind)} at {holder}",
                        "write the same kind everywhere",
                    )

    def listeners(self) -> None:
        """Two services cannot listen on one port of one sidecar."""
        seen: dict[tuple[str, str, int], str] = {}
        for name, service in self._services.items.items():
            owner = self._workloads.items.get(service.workload)
            for place in (service.workload, owner.node if owner else service.workload):
                other = seen.setdefault((place, service.listen.address, service.listen.port), name)
                if other == name:
                    continue
                same = self._services.items[other].workload == service.workload
                where = self._services.at(name, "listen", "port")
                message = (
                    f"services {other!r} and {name!r} both listen on {service.listen.address}:{service.listen.port}"
                )
                if same:
                    self._findings.error(where, f"{message} at one workload", "give each its own port")
                elif place != service.workload:
                    self._findings.warning(
                        where, f"{message} in {place}", "on one node only one of them can; give each its own port"
                    )

    def _identity(self, name: str, workload: Workload) -> None:
        where = self._workloads.at(name, "spiffe_id")
        spiffe_id = SpiffeId.parse(name)
        if spiffe_id.trust_domain.name != self._settings.trust_domain:
            self._findings.error(
                where,
                f"{name} is of another trust domain than the estate, {self._settings.trust_domain}",
                f"write spiffe://{self._settings.trust_domain}{spiffe_id.path}",
            )
        if spiffe_id.is_reserved:
            kept = spiffe_id.reserved
            self._findings.error(where, f"{name} lies under {kept}, which servers and agents keep", "use another path")
            return
        template = self._naming.templates.get(workload.environment)
        if template is None or self._naming.waiver(spiffe_id) is not None:
            return
        segments, parts = template[1:].split("/"), spiffe_id.path[1:].split("/")
        facts = {"{environment}": workload.environment, "{domain}": workload.domain}
        if len(parts) != len(segments):
            wanted = "/".join(facts.get(segment, segment) for segment in segments)
            self._findings.error(
                where,
                f"{name} does not follow the naming {template}",
                f"write {spiffe_id.trust_domain.uri}/{wanted}, or add a waiver with rule: {NAMING_RULE}",
            )
            return
        for segment, part in zip(segments, parts, strict=True):
            expected = facts.get(segment, part if segment.startswith("{") else segment)
            if part != expected:
                self._findings.error(
                    where,
                    f"{name} says {part!r} where the naming {template} gives {expected!r}",
                    "correct the ID, or the workload's environment or domain",
                )

    def _placement(self, name: str, workload: Workload) -> None:
        at = self._workloads.at
        if workload.environment not in self._environments:
            self.unknown("environment", workload.environment, self._environments, at(name, "environment"))
        if workload.domain not in self._domains:
            self.unknown("domain", workload.domain, self._domains, at(name, "domain"))
        kind, _, group = workload.node.partition(":")
        if kind == "group":
            if group not in self._groups:
                self.unknown("node group", group, self._groups, at(name, "node"))
            elif workload.environment in self._environments:
                other = self._groups[group].environment
                if other != workload.environment:
                    self._findings.error(
                        at(name, "node"),
                        f"node group {group!r} is of environment {other!r}, the workload of {workload.environment!r}",
                        "use a node group of the same environment",
                    )
        elif SpiffeId.parse(workload.node).trust_domain.name != self._settings.trust_domain:
            self._findings.error(at(name, "node"), "the node is of another trust domain", "name a node of this one")

    def _issuance(self, name: str, workload: Workload) -> None:
        at = self._workloads.at
        if self._profiles.lacks(workload.profile) and workload.profile != "workload":
            self.unknown("profile", workload.profile, [*self._profiles.named, "workload"], at(name, "profile"))
        profile = self._profiles.items.get(workload.profile)
        if profile is None:
            return
        if profile.environments and workload.environment not in profile.environments:
            self._findings.error(
                at(name, "profile"),
                f"profile {workload.profile!r} is not for environment {workload.environment!r}",
                f"its environments: {', '.join(profile.environments)}",
            )
        if workload.ttl is not None and duration(workload.ttl) > duration(profile.lifetime.max):
            self._findings.error(
                at(name, "ttl"),
                f"ttl {workload.ttl} is longer than profile {workload.profile!r} allows, {profile.lifetime.max}",
                f"write {profile.lifetime.max} or less",
            )
        for i, dns in enumerate(workload.dns_names):
            if not any(_dns_matches(pattern, dns) for pattern in profile.names.dns):
                allowed = ", ".join(profile.names.dns) or "none"
                self._findings.error(
                    at(name, "dns_names", i),
                    f"profile {workload.profile!r} does not allow the DNS name {dns!r}",
                    f"allowed: {allowed}",
                )

    def _attributes(self, name: str, workload: Workload) -> None:
        check_attributes(workload.attributes, partial(self._workloads.at, name, "attributes"), self._findings)

    def _selector(self, text: str, where: Position) -> None:
        selector = Selector.parse(text)
        try:
            WELL_KNOWN.check(selector)
        except ImpossibleSelector as error:
            # A type that nobody knows here may be a plug-in's on the server, which judges it again.
            report = self._findings.error if selector.type in WELL_KNOWN.types else self._findings.warning
            report(where, error.message, error.fix)
            return
        if selector.type not in _OURS:
            self._findings.warning(
                where,
                f"no attestor of this version makes selectors of type {selector.type!r}",
                "it matches only where a plug-in or a stock SPIRE agent vouches for it",
            )

    def _service_ports(self, name: str, service: Service) -> None:
        at = self._services.at
        if (service.upstream.unix is None) == (service.upstream.tcp is None):
            self._findings.error(at(name, "upstream"), "upstream needs exactly one of unix and tcp", "keep one")
        if service.tenant is not None:
            said = (service.tenant.path is not None, service.tenant.header is not None, service.tenant.claim)
            if sum(said) != 1:
                self._findings.error(
                    at(name, "tenant"), "tenant needs exactly one of path, header and claim", "keep one"
                )
            if service.listen.protocol == "tcp":
                self._findings.error(
                    at(name, "tenant"), "a TCP service has no requests that could name a tenant", "remove tenant"
                )
        if service.listen.mtls is MtlsMode.STRICT and service.listen.until is not None:
            self._findings.error(
                at(name, "listen", "until"), "until says when permissive mode ends, and this is strict", "remove until"
            )

    def _operations(self, name: str, service: Service) -> None:
        at = self._services.at
        names: set[str] = set()
        for i, operation in enumerate(service.operations):
            if operation.name.partition(":")[0] != name:
                self._findings.error(
                    at(name, "operations", i, "name"),
                    f"operation {operation.name!r} does not begin with its service's name",
                    f"write {name}:{operation.name.partition(':')[2]}",
                )
            if operation.name in names:
                self._findings.error(
                    at(name, "operations", i, "name"), f"operation {operation.name!r} is declared twice", "rename one"
                )
            names.add(operation.name)
        good = [self._match(name, service, i, o) for i, o in enumerate(service.operations)]
        if all(good):
            self._recognition(name, service)
            self._tenant_source(name, service)

    def _match(self, name: str, service: Service, index: int, operation: Operation) -> bool:
        where = self._services.at(name, "operations", index, "match")
        match = operation.match
        http = match.method is not None or match.path is not None
        if http + (match.grpc is not None) + match.tcp != 1 or (http and (match.method is None or match.path is None)):
            self._findings.error(
                where,
                f"the match of {operation.name!r} must be method and path, or grpc, or tcp: true",
                "write one of the three",
            )
            return False
        if match.tcp != (service.listen.protocol == "tcp"):
            wanted = "match: {tcp: true}" if service.listen.protocol == "tcp" else "method and path, or grpc"
            self._findings.error(where, f"{operation.name!r} does not fit protocol {service.listen.protocol}", wanted)
            return False
        return True

    def _recognition(self, name: str, service: Service) -> None:
        """Each request belongs to one operation; where two templates meet, the leftmost literal wins."""
        at = self._services.at
        if service.listen.protocol == "tcp" and len(service.operations) > 1:
            self._findings.error(
                at(name, "operations", 1), "a TCP service has one operation: any connection is it", "keep one"
            )
            return
        by_method: dict[str, list[int]] = {}
        forms = [wire_form(matcher(o)) for o in service.operations]
        for i, (operation, form) in enumerate(zip(service.operations, forms, strict=True)):
            if form is None:
                continue
            where = at(name, "operations", i, "match")
            for j in by_method.setdefault(form[0], []):
                other = forms[j]
                if other is None or not form[1].overlaps(other[1]):
                    continue
                first = service.operations[j].name
                if form[1].shape == other[1].shape:
                    self._findings.error(
                        where, f"{operation.name!r} matches the same requests as {first!r}", "change or remove one"
                    )
                else:
                    self._findings.note(
                        where,
                        f"some requests match both {first!r} and {operation.name!r}",
                        "the one with the leftmost plain segment is taken",
                    )
            by_method[form[0]].append(i)

    def _tenant_source(self, name: str, service: Service) -> None:
        """A tenant that is read from the wrong place, or from none, opens every tenant's data to every caller."""
        at = self._services.at
        forms = [wire_form(matcher(o)) for o in service.operations]
        parameters = {parameter for form in forms if form is not None for parameter in form[1].parameters}
        if service.tenant is None:
            likely = likely_tenant(parameters)
            if likely:
                self._findings.warning(
                    at(name, "service"),
                    f"service {name!r} has paths with {{{likely}}} and does not say that this is the tenant, "
                    "so every caller may act for every tenant",
                    f"write tenant: {{path: {likely}}}",
                )
            return
        wanted = service.tenant.path
        if wanted is None:
            return
        if wanted not in parameters:
            self._findings.error(
                at(name, "tenant", "path"),
                f"no operation of {name!r} has the parameter {{{wanted}}}, so no call would be held to a tenant",
                _meant_parameter(wanted, parameters),
            )
            return
        for i, operation in enumerate(service.operations):
            if operation.sensitivity != "open" and tenant_source(service, operation) is None:
                self._findings.warning(
                    at(name, "operations", i, "match"),
                    f"{operation.name!r} is not per tenant: its path has no {{{wanted}}}",
                    "add the parameter if the operation touches one tenant's data",
                )


def _meant_parameter(wanted: str, parameters: Collection[str]) -> str:
    """The fix for a tenant's parameter that no path has."""
    likely = likely_tenant(parameters)
    braces = [f"{{{parameter}}}" for parameter in parameters]
    close = difflib.get_close_matches(f"{{{wanted}}}", braces, n=1, cutoff=0.6) or ([f"{{{likely}}}"] if likely else [])
    if close:
        return f"did you mean {close[0]}?"
    return (
        "parameters of its paths: " + ", ".join(sorted(braces)) if braces else "remove tenant: no path has parameters"
    )


def _dns_matches(pattern: str, name: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return pattern in {"*", name}


def _kind(kind: type) -> str:
    return "text" if kind is str else "list"
