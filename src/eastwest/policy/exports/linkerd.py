"""Linkerd: a ``Server`` for each service, ``HTTPRoute``s with their ``AuthorizationPolicy`` and who they are for.

Linkerd gives a request to one route, and where several match it decides by rules of its own. So the routes here are
disjoint: requests of different routes differ. A route's header match is satisfied by any one of repeated headers, so
nothing is allowed by a header.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from eastwest.policy.enforcement import Inbound, MtlsMode, OperationRules, Sidecar
from eastwest.policy.exports.grants import Grant, grants
from eastwest.policy.exports.labels import LABEL, label
from eastwest.policy.exports.model import Exported, Narrower, chosen, metadata, preamble, yaml_text
from eastwest.policy.exports.regions import Part, Region, cut, region
from eastwest.policy.operations import wire_form
from eastwest.policy.paths import Template
from eastwest.policy.table import CompiledPolicy

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
"""What a route can name."""
MAX_PATH = 1024
MATCHES = 8
RULES = 16
TENANTS_PER_MATCH = 16
_GROUP = "policy.linkerd.io"
_SENTENCES = (
    "It denies what it does not allow. Linkerd does not normalise paths: whatever is not plain matches no route.",
    "The proxies' identities must be the SPIFFE IDs below. Probes of the kubelet stay allowed by Linkerd itself.",
)
Callers = tuple[str, ...]
Match = dict[str, Any]
Documents = list[dict[str, Any]]


def export_linkerd(compiled: CompiledPolicy, services: Collection[str] = ()) -> Exported:
    """Servers, routes and authorizations for the services named, or all."""
    documents: list[tuple[Sequence[str], dict[str, Any]]] = []
    narrower: list[Narrower] = []
    comments = preamble("linkerd", compiled, *_SENTENCES)
    for sidecar, inbound in chosen(compiled, services):
        service = _Service(sidecar, inbound)
        first, *rest = service.documents()
        narrower += service.narrower
        documents.append(([*comments, *(f"narrower: {one}" for one in service.narrower)], first))
        documents += [((), document) for document in rest]
        comments = []
    return Exported({"linkerd.yaml": yaml_text(documents)}, tuple(narrower))


class _Service:
    def __init__(self, sidecar: Sidecar, inbound: Inbound) -> None:
        self._sidecar = sidecar
        self._inbound = inbound
        self._name = f"eastwest-{inbound.service}"
        self.narrower: list[Narrower] = []

    def documents(self) -> Documents:
        """All objects of the service, its server first."""
        if self._inbound.protocol == "tcp":
            everybody = sorted({c for o in self._inbound.operations for c in self._connecting(o)})
            return [self._server(), *self._authorization(self._name, "Server", self._name, everybody)]
        routes: dict[Callers, list[Match]] = {}
        before: list[tuple[str, Template]] = []
        for operation in self._inbound.operations:
            form = wire_form(operation.match)
            if form is None:
                continue
            for callers, match in self._matches(operation, form, before):
                routes.setdefault(callers, []).append(match)
            before.append(form)
        made: Documents = []
        for number, (callers, matches) in enumerate(sorted(routes.items()), 1):
            for part, start in enumerate(range(0, len(matches), RULES * MATCHES)):
                name = f"{self._name}-{number}" + (f"-{part + 1}" if part else "")
                made.append(self._route(name, matches[start : start + RULES * MATCHES]))
                made += self._authorization(name, "HTTPRoute", name, callers)
        return [self._server(), *made]

    def _server(self) -> dict[str, Any]:
        tcp = self._inbound.protocol == "tcp"
        permissive = self._inbound.mode is MtlsMode.PERMISSIVE
        return {
            "apiVersion": f"{_GROUP}/v1beta3",
            "kind": "Server",
            "metadata": metadata(self._name, self._sidecar.version, self.narrower),
            "spec": {
                "podSelector": {"matchLabels": {LABEL: label(self._sidecar.spiffe_id)}},
                "port": self._inbound.port,
                "proxyProtocol": "opaque" if tcp else "unknown",
                "accessPolicy": "audit" if permissive else "deny",
            },
        }

    def _route(self, name: str, matches: Sequence[Match]) -> dict[str, Any]:
        return {
            "apiVersion": f"{_GROUP}/v1beta3",
            "kind": "HTTPRoute",
            "metadata": metadata(name, self._sidecar.version, ()),
            "spec": {
                "parentRefs": [{"group": _GROUP, "kind": "Server", "name": self._name}],
                "rules": [
                    {"matches": list(matches[start : start + MATCHES])} for start in range(0, len(matches), MATCHES)
                ],
            },
        }

    def _authorization(self, name: str, kind: str, target: str, callers: Sequence[str]) -> Documents:
        if not callers:
            return []
        group = _GROUP
        return [
            {
                "apiVersion": f"{group}/v1alpha1",
                "kind": "MeshTLSAuthentication",
                "metadata": metadata(name, self._sidecar.version, ()),
                "spec": {"identities": list(callers)},
            },
            {
                "apiVersion": f"{group}/v1alpha1",
                "kind": "AuthorizationPolicy",
                "metadata": metadata(name, self._sidecar.version, ()),
                "spec": {
                    "targetRef": {"group": group, "kind": kind, "name": target},
                    "requiredAuthenticationRefs": [{"group": group, "kind": "MeshTLSAuthentication", "name": name}],
                },
            },
        ]

    def _connecting(self, operation: OperationRules) -> Iterator[str]:
        granted, refused = grants(operation)
        for one in refused:
            self._leave(operation, one.callers, one.reason)
        for grant in granted:
            yield from grant.callers

    def _matches(
        self, operation: OperationRules, form: tuple[str, Template], before: Sequence[tuple[str, Template]]
    ) -> Iterator[tuple[Callers, Match]]:
        """Callers and matches of one operation; requests of operations that come before it are cut away."""
        method, template = form
        granted, refused = grants(operation)
        for one in refused:
            self._leave(operation, one.callers, one.reason)
        usable = [grant for grant in granted if self._usable(operation, method, grant)]
        for callers, regions in _partition(operation, template, usable).items():
            pieces: list[Region] | None = regions
            for verb, other in before:
                if pieces is not None and verb == method and other.overlaps(template):
                    pieces = cut(pieces, other)
            if pieces is None:
                self._leave(operation, callers, "too many templates overlap with its own")
                continue
            for piece in pieces:
                match = _match(method, piece)
                if match is None:
                    self._leave(operation, callers, f"its path takes an expression longer than {MAX_PATH} characters")
                else:
                    yield callers, match

    def _usable(self, operation: OperationRules, method: str, grant: Grant) -> bool:
        reason = ""
        if method not in METHODS:
            reason = f"a route of Linkerd cannot name the method {method}"
        elif operation.tenant is not None and operation.tenant.header and (grant.only or grant.but is not None):
            reason = "its tenant is in a header, and Linkerd takes any one of repeated headers"
        elif grant.tokenless:
            reason = "only calls without a transaction token are allowed, and no route can ask for that"
        if reason:
            self._leave(operation, grant.callers, reason)
        return not reason

    def _leave(self, operation: OperationRules, callers: Callers, reason: str) -> None:
        self.narrower.append(Narrower(self._inbound.service, operation.name, callers, reason))


def _partition(
    operation: OperationRules, template: Template, granted: Sequence[Grant]
) -> Mapping[Callers, list[Region]]:
    """The operation's paths by who is allowed there; regions do not meet."""
    parameter = operation.tenant.path if operation.tenant is not None else ""
    if not parameter:
        callers = tuple(sorted({caller for grant in granted for caller in grant.callers}))
        return {callers: [region(template)]} if callers else {}
    named = sorted({tenant for grant in granted for tenant in (*(grant.only or ()), *(grant.but or ()))})
    by_callers: dict[Callers, list[str]] = {}
    for tenant in named:
        allowed = tuple(sorted({caller for grant in granted if grant.allows(tenant) for caller in grant.callers}))
        by_callers.setdefault(allowed, []).append(tenant)
    found: dict[Callers, list[Region]] = {}
    for callers, tenants in by_callers.items():
        for start in range(0, len(tenants), TENANTS_PER_MATCH):
            part = Part(frozenset(tenants[start : start + TENANTS_PER_MATCH]))
            found.setdefault(callers, []).append(region(template, parameter, part))
    # Grants of the other tenants hold for whatever is not named.
    others = tuple(sorted({c for grant in granted if grant.only is None for c in grant.callers}))
    if others:
        found.setdefault(others, []).append(region(template, parameter, Part(None, frozenset(named))))
    found.pop((), None)
    return found


def _match(method: str, piece: Region) -> Match | None:
    literal = piece.literal
    value = literal if literal is not None else piece.regex()
    if len(value) > MAX_PATH:
        return None
    return {"method": method, "path": {"type": "Exact" if literal is not None else "RegularExpression", "value": value}}
