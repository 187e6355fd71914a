"""Small estates of every kind, invented from a seed: the ground on which all enforcement points are compared.

Each has all that can make a difference to a decision: overlapping templates, every source of tenants, attributes
that look like tenants, demands, policies that permit, forbid and fail. ``eastwest.testing.calls`` calls them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

TRUST_DOMAIN = "t.example"
FOREIGN = "f.example"
TENANTS = ("acme", "globex", "a.b", "x~1", "ACME", "*", "any-other", "GET", "acme|globex", "-")
"""Names of tenants; some cannot stand in a path, some are texts of another meaning elsewhere."""
TEXTS = ("gold", "acme", "*", "münchen", "группа", "a,b", "", "globex")
"""Values of attributes that are not tenants, though some read alike."""
APPROVERS = ("unix:uid:0", f"spiffe://{TRUST_DOMAIN}/prod/d1/admin", "someone-else")
HEADER = "x-tenant"

_OWNERS = ("group:red", "group:blue", "group:rouge-é")
_SENSITIVITIES = ("open", "read", "restricted-read", "mutate", "control", "")
_METHODS = ("GET", "POST", "DELETE", "PATCH")
_TEMPLATES = (
    "/",
    "/h",
    "/t/{tenant}",
    "/t/all",
    "/t/{tenant}/i",
    "/t/{tenant}/{item}",
    "/{tenant}/x",
    "/t/all/i",
    "/s/{item}/",
    "/v1.0/a+b/{item}",
    "/A(b)/$c'",
    "/{tenant}/{item}/{part}/x",
    "/o/{item}/t/{tenant}",
)
_GRPC = ("pkg.v1.Shop/Get", "pkg.v1.Shop/List", "Shop/Get")


_TOKENS = (("",), ("", "approver"), ("approver",), ("", "origin"), ("", "approver", "origin"))


_REPORT = '@mode("report") @until("2100-01-01")'


@dataclass(frozen=True)
class Shape:
    """A service's unchanging part: a listener in Envoy is not made anew for another policy."""

    name: str
    protocol: str = "http"
    tenant: str = ""  # "path", "header" or "claim"
    grpc: bool = False


SHAPES = (
    Shape("bypath", tenant="path"),
    Shape("byheader", tenant="header"),
    Shape("byclaim", tenant="claim"),
    Shape("plain"),
    Shape("calls", tenant="header", grpc=True),
    Shape("wire", protocol="tcp"),
)


@dataclass(frozen=True)
class Route:
    """One operation on the wire; ``method`` and ``template`` are empty for TCP.

    ``tenant`` says where its calls name a tenant: "path", "header", "claim", or "" where they need none.
    """

    service: str
    operation: str
    method: str
    template: str
    tenant: str = ""


@dataclass(frozen=True)
class RandomEstate:
    """An estate as files, and what a caller would want to know of it. ``callers`` are all that are registered."""

    files: dict[str, bytes]
    callers: tuple[str, ...]
    routes: tuple[Route, ...]
    policies: tuple[str, ...]

    @property
    def services(self) -> tuple[str, ...]:
        """Names of the services."""
        return tuple(dict.fromkeys(route.service for route in self.routes))


def random_estate(
    random: Random, *, shapes: Sequence[Shape] = (), policies: int = 8, report: float = 0.0
) -> RandomEstate:
    """An estate of one to six callers, services of ``shapes`` (without any: some of ``SHAPES``) and up to
    ``policies`` policies, of which a share of ``report`` is in report mode.
    """
    chosen = shapes or random.sample(SHAPES, random.randint(1, 3))
    words = _Words(tuple(random.sample(TENANTS, 4)), tuple(random.sample(TEXTS, 3)))
    workloads = [_workload(random, i, words) for i in range(random.randint(1, 4))]
    foreign = [_foreign(random, i, words) for i in range(random.randint(0, 2))]
    routes: list[Route] = []
    files: dict[str, Any] = {"workloads/all.yaml": {"workloads": workloads}}
    for i, shape in enumerate(chosen):
        files[f"services/{shape.name}.yaml"] = _service(random, shape, random.choice(workloads), 8000 + i, routes)
    federation = [{"trust_domain": FOREIGN, "workloads": foreign}] if foreign else []
    files["estate.yaml"] = {
        "trust_domain": TRUST_DOMAIN,
        "environments": [{"name": "prod", "kind": "vm"}, {"name": "staging", "kind": "vm"}],
        "domains": [{"name": "d1", "owners": ["group:red"]}, {"name": "d2", "owners": ["group:blue"]}],
        "federation": federation,
    }
    callers = tuple(w["spiffe_id"] for w in (*workloads, *foreign))
    writer = _Policies(random, callers, routes, words)
    texts = tuple(writer.policy(f"p{i}") for i in range(random.randint(1, policies)))
    if report:
        texts = tuple(f"{_REPORT}\n{text}" if random.random() < report else text for text in texts)
    encoded = {name: json.dumps(value).encode() for name, value in files.items()}  # JSON is YAML
    encoded["policies/all.cedar"] = "\n".join(texts).encode()
    return RandomEstate(encoded, callers, tuple(routes), texts)


@dataclass(frozen=True)
class _Words:
    """The texts of one estate: few, so that the same come together in many places."""

    tenants: tuple[str, ...]
    texts: tuple[str, ...]


def _workload(random: Random, number: int, words: _Words) -> dict[str, Any]:
    environment, domain = random.choice(["prod", "prod", "staging"]), random.choice(["d1", "d2"])
    return {
        "spiffe_id": f"spiffe://{TRUST_DOMAIN}/{environment}/{domain}/w{number}",
        "environment": environment,
        "domain": domain,
        "owner": random.choice(_OWNERS),
        "node": f"spiffe://{TRUST_DOMAIN}/spire/agent/n",
        "selectors": [f"unix:uid:{number}"],
        "profile": "workload",
        "attributes": _attributes(random, words),
    }


def _foreign(random: Random, number: int, words: _Words) -> dict[str, Any]:
    return {
        "spiffe_id": f"spiffe://{FOREIGN}/w{number}",
        "environment": random.choice(["prod", "staging"]),
        "domain": random.choice(["d1", "d2"]),
        "owner": random.choice(_OWNERS),
        "attributes": _attributes(random, words),
    }


def _attributes(random: Random, words: _Words) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if random.random() < 0.75:
        found["tenants"] = random.sample(words.tenants, random.randint(0, 3))
    if random.random() < 0.4:
        found["tier"] = random.choice(words.texts)
    if random.random() < 0.3:
        found["regions"] = random.sample(words.texts, random.randint(0, 3))
    return found


def _service(random: Random, shape: Shape, workload: dict[str, Any], port: int, routes: list[Route]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "service": shape.name,
        "workload": workload["spiffe_id"],
        "owner": random.choice(_OWNERS),
        "domain": workload["domain"],
        "listen": {"port": port, "protocol": shape.protocol, "mtls": "strict"},
        "upstream": {"tcp": f"127.0.0.1:{port + 1000}"},
    }
    if shape.tenant:
        found["tenant"] = {"path": "tenant"} if shape.tenant == "path" else {shape.tenant: True}
    if shape.tenant == "header":
        found["tenant"] = {"header": HEADER}
    operations = []
    for i, (method, template, match) in enumerate(_matches(random, shape)):
        operation = {"name": f"{shape.name}:r{i}:do", "match": match} | _class(random, first=i == 0)
        if shape.protocol == "tcp":  # a connection brings no token
            operation.pop("demands", None)
        operations.append(operation)
        source = shape.tenant
        if source and (template.find("{tenant}") < 0 if source == "path" else operation.get("sensitivity") == "open"):
            source = ""
        routes.append(Route(shape.name, operation["name"], method, template, source))
    return found | {"operations": operations}


def _class(random: Random, *, first: bool) -> dict[str, Any]:
    # The first is per tenant wherever the service has tenants, so that listeners stay the same.
    sensitivity = random.choice(_SENSITIVITIES[1:-1] if first else _SENSITIVITIES)
    found: dict[str, Any] = {"sensitivity": sensitivity} if sensitivity else {}
    if random.random() < 0.4:
        found["demands"] = random.choice(
            [["step-up"], ["approval"], ["step-up", "approval"], ["step-up", "single-use"]]
        )
    return found


def _matches(random: Random, shape: Shape) -> list[tuple[str, str, dict[str, Any]]]:
    if shape.protocol == "tcp":
        return [("", "", {"tcp": True})]
    found: list[tuple[str, str, dict[str, Any]]] = []
    templates = random.sample(_TEMPLATES, random.randint(1, 5))
    if shape.tenant == "path" and not any("{tenant}" in template for template in templates):
        templates[0] = "/t/{tenant}"  # a source that no path has is a mistake, and told
    for template in templates:
        method = random.choice(_METHODS)
        found.append((method, template, {"method": method, "path": template}))
        if random.random() < 0.2:  # the same path by another method is another operation
            other = random.choice([m for m in _METHODS if m != method])
            found.append((other, template, {"method": other, "path": template}))
    if shape.grpc:
        found += [("POST", f"/{name}", {"grpc": name}) for name in random.sample(_GRPC, random.randint(1, 3))]
        random.shuffle(found)
    return found


class _Policies:
    """Writes policies about an estate; each passes strict validation."""

    def __init__(self, random: Random, callers: Sequence[str], routes: Sequence[Route], words: _Words) -> None:
        self._random = random
        self._words = words
        # What policies read of tokens; all of it together makes many kinds of tokens, which takes long to ask about.
        self._tokens = random.choices(_TOKENS, [3, 3, 3, 3, 1])[0]
        self._callers = callers
        self._services = list(dict.fromkeys(route.service for route in routes))
        self._operations = [route.operation for route in routes]

    def policy(self, name: str) -> str:
        random = self._random
        principal = random.choice(
            [
                *["principal"] * 4,
                "principal is Workload",
                f"principal == {self._caller()}",
                'principal in Domain::"d1"',
                'principal is Workload in Environment::"prod"',
            ]
        )
        some = random.sample(self._operations, random.randint(1, len(self._operations)))
        action = random.choice(
            [
                *["action"] * 3,
                f"action in [{', '.join(map(self._action, some))}]",
                f"action == {self._action(some[0])}",
                'action in Action::"read"',
                'action in [Action::"mutate", Action::"control"]',
            ]
        )
        resource = random.choice(
            [
                *["resource"] * 4,
                'resource in Domain::"d2"',
                'resource in Environment::"prod"',
                "resource is Service",
                f"resource == {self._service()}",
            ]
        )
        effect = random.choice(["permit"] * 5 + ["forbid"])
        tenants = ' @tenants("any")' if effect == "permit" and random.random() < 0.35 else ""
        conditions = [
            f"{random.choice(['when', 'when', 'unless'])} {{ {self._condition(2)} }}"
            for _ in range(random.choice([0, 0, 1, 1, 1, 2]))
        ]
        head = f'@id("{name}") @owner("group:x") @reason("r"){tenants}'
        return f"{head}\n{effect} ({principal}, {action}, {resource}) {' '.join(conditions)};"

    def _condition(self, depth: int) -> str:
        random = self._random
        if depth and random.random() < 0.5:
            parts = [self._condition(depth - 1) for _ in range(2)]
            form = random.choice(["({}) && ({})", "({}) || ({})", "!({}) && ({})", "if ({}) then ({}) else false"])
            return form.format(*parts)
        about = random.choice([self._about_tenant] * 4 + [self._about_token] * 3 + [self._about_the_rest] * 3)
        return random.choice(about())

    def _about_tenant(self) -> list[str]:
        tenant, other, whoever = (
            json.dumps(self._random.choice(self._words.tenants)),
            self._caller(),
            "principal has tenants",
        )
        named = "context has tenant"
        return [
            f"{whoever} && {named} && principal.tenants.contains(context.tenant)",
            f"{whoever} && {named} && principal.tenants.contains(context.tenant)",
            f"{whoever} && {named} && !principal.tenants.contains(context.tenant)",
            f"{named} && context.tenant == {tenant}",
            f"{named} && context.tenant != {tenant}",
            f'{named} && [{tenant}, "other"].contains(context.tenant)',
            f"{named} && principal has tier && principal.tier == context.tenant",
            f"{named} && principal has regions && principal.regions.contains(context.tenant)",
            f"{whoever} && {named} && [context.tenant].containsAll(principal.tenants)",
            f"{named} && {other} has tenants && {other}.tenants.contains(context.tenant)",
            f"{named} && context.tenant == context.method",
            f"{named} || {whoever}",
        ]

    def _about_token(self) -> list[str]:
        random = self._random
        approver, operation = random.choice(APPROVERS), random.choice(self._operations)
        origin = random.choice([*self._callers, f"spiffe://{TRUST_DOMAIN}/prod/d1/gateway"])
        held, begun, approved = "context has step_up", "context has transaction", "context has approval"
        of_tenant = f"{held} && context.step_up has tenant && context.step_up.tenant"
        service = random.choice(self._services)
        about = {
            "": [
                held,
                held,
                f'{held} && context.step_up.action == "{operation}"',
                f'{held} && context.step_up has resource && context.step_up.resource == "{service}"',
                f"{of_tenant} == (if context has tenant then context.tenant else principal.owner)",
                approved,
                approved,
                begun,
            ],
            "approver": [
                f'{held} && context.step_up.approver == "{approver}"',
                f'{approved} && context.approval.approver == "{approver}"',
                f'{approved} && context.approval.approver != "{approver}"',
                f"{approved} && principal.owner == context.approval.approver",
            ],
            "origin": [
                f'{begun} && context.transaction.origin == "{origin}"',
                f'{begun} && context.transaction.origin != "{origin}"',
                f'{begun} && ["{origin}", "{self._callers[0]}"].contains(context.transaction.origin)',
            ],
        }
        return about[random.choice(self._tokens)]

    def _about_the_rest(self) -> list[str]:
        random = self._random
        return [
            f"principal has tenants && principal.tenants.contains({json.dumps(random.choice(self._words.tenants))})",
            "principal has regions && principal.regions.isEmpty()",
            'principal has tier && principal.tier == "münchen"',
            "principal.environment == resource.environment",
            "principal.owner == resource.owner",
            'principal.owner like "group:r*"',
            f"principal == {self._caller()}",
            f"resource == {self._service()}",
            f"action == {self._action(random.choice(self._operations))}",
            'action in Action::"read" || action in Action::"open"',
            'context.method == "GET"',
            f"{self._caller()}.owner == principal.owner",
            "9223372036854775807 + 1 == 0",  # fails when it is asked
            "true",
        ]

    def _caller(self) -> str:
        return f'Workload::"{self._random.choice(self._callers)}"'

    def _service(self) -> str:
        return f'Service::"{self._random.choice(self._services)}"'

    @staticmethod
    def _action(name: str) -> str:
        return f'Action::"{name}"'
