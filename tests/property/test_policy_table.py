"""The compiled table gives Cedar's own answer, for random small estates and random requests."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eastwest.policy.enforcement import DecisionCode, Verdict, decode_sidecar, encode_sidecar
from eastwest.policy.load import load_estate
from eastwest.policy.oracle import Oracle, lookup
from eastwest.policy.table import compile_estate
from eastwest.policy.transaction import NoToken, Token

CERTIFICATE = "0" * 64
TENANTS = ["acme", "globex", "initech"]
OWNERS = ["group:red", "group:blue"]
APPROVERS = ["unix:uid:0", "spiffe://t.example/prod/d1/w0", "group:red"]
SENSITIVITIES = ["open", "read", "restricted-read", "mutate", "control"]
TEMPLATES = ["/", "/h", "/t/{tenant}", "/t/{tenant}/i", "/t/{tenant}/{item}", "/{tenant}/x", "/t/all/i", "/s/{item}"]
METHODS = ["GET", "POST", "DELETE"]
DEMANDS = [
    "demands: [step-up], ",
    "demands: [approval], ",
    "demands: [step-up, approval], ",
    "demands: [single-use], ",
]


@dataclass(frozen=True)
class World:
    files: dict[str, bytes]
    workloads: list[str]
    services: list[str]
    policies: list[str]
    routes: list[tuple[str, str, str, str]]  # service, method, template, operation


def make_world(random: Random) -> World:
    """A small estate; invented with ``random``, so that hypothesis shrinks to a seed."""
    files = {
        "estate.yaml": (
            "trust_domain: t.example\n"
            "environments: [{name: prod, kind: vm}, {name: staging, kind: vm}]\n"
            "domains: [{name: d1, owners: [group:red]}, {name: d2, owners: [group:blue]}]\n"
        )
    }
    workloads, lines = [], ["workloads:"]
    placement = {}
    for i in range(random.randint(1, 5)):
        environment, domain = random.choice(["prod", "prod", "staging"]), random.choice(["d1", "d2"])
        name = f"spiffe://t.example/{environment}/{domain}/w{i}"
        workloads.append(name)
        placement[name] = domain
        lines.append(
            f"  - {{spiffe_id: {name}, environment: {environment}, domain: {domain}, owner: '{random.choice(OWNERS)}', "
            f"node: spiffe://t.example/spire/agent/n, selectors: ['unix:uid:{i}'], profile: workload, "
            f"attributes: {{{_attributes(random)}}}}}"
        )
    files["workloads/all.yaml"] = "\n".join(lines)
    services, operations, routes = [], [], []
    for i in range(random.randint(1, 3)):
        name, workload = f"s{i}", random.choice(workloads)
        services.append(name)
        files[f"services/{name}.yaml"] = _service(
            random, name, workload, placement[workload], 8000 + i, operations, routes
        )
    foreign = _foreign(random)
    files["estate.yaml"] += foreign
    workloads += [f"spiffe://f.example/w{i}" for i in range(2) if f"/w{i}" in foreign]
    policies = [_policy(random, f"p{i}", workloads, services, operations) for i in range(random.randint(1, 7))]
    files["policies/all.cedar"] = "\n".join(policies)
    return World({k: v.encode() for k, v in files.items()}, workloads, services, policies, routes)


def _foreign(random: Random) -> str:
    """Callers of a federated trust domain, sometimes."""
    rows = [
        f"{{spiffe_id: spiffe://f.example/w{i}, environment: {random.choice(['prod', 'staging'])}, "
        f"domain: {random.choice(['d1', 'd2'])}, owner: '{random.choice(OWNERS)}', "
        f"attributes: {{{_attributes(random)}}}}}"
        for i in range(random.randint(0, 2))
    ]
    return f"federation: [{{trust_domain: f.example, workloads: [{', '.join(rows)}]}}]\n" if rows else ""


def _attributes(random: Random) -> str:
    parts = []
    if random.random() < 0.7:
        parts.append(f"tenants: {random.sample(TENANTS, random.randint(0, 3))}")
    if random.random() < 0.4:
        parts.append(f"tier: '{random.choice(['gold', 'acme'])}'")
    return ", ".join(parts)


def _service(random: Random, name: str, workload: str, domain: str, port: int, operations, routes) -> str:
    path, header, claim = "tenant: {path: tenant}", "tenant: {header: x-tenant}", "tenant: {claim: true}"
    source = random.choice(["", path, path, header, claim])
    rows = []
    for i, template in enumerate(random.sample(TEMPLATES, random.randint(1, 4))):
        operation = f"{name}:r{i}:do"
        method = random.choice(METHODS)
        operations.append(operation)
        routes.append((name, method, template, operation))
        classified = f"sensitivity: {random.choice(SENSITIVITIES)}, " if random.random() < 0.95 else ""
        rows.append(
            f"  - {{name: '{operation}', {random.choice(DEMANDS) if random.random() < 0.3 else ''}{classified}"
            f"match: {{method: {method}, path: '{template}'}}}}"
        )
    if source == path and not any("{tenant}" in row for row in rows):
        source = ""  # a parameter that no path has is a mistake, and told
    return (
        f"service: {name}\nworkload: {workload}\nowner: '{random.choice(OWNERS)}'\ndomain: {domain}\n"
        f"listen: {{port: {port}, protocol: http, mtls: strict}}\nupstream: {{tcp: '127.0.0.1:{port + 1000}'}}\n"
        f"{source}\noperations:\n" + "\n".join(rows) + "\n"
    )


def _policy(random: Random, name: str, workloads: list[str], services: list[str], operations: list[str]) -> str:
    principal = random.choice(
        [
            "principal",
            "principal is Workload",
            f'principal == Workload::"{random.choice(workloads)}"',
            'principal in Domain::"d1"',
            'principal is Workload in Environment::"prod"',
        ]
    )
    some = ", ".join(f'Action::"{o}"' for o in random.sample(operations, random.randint(1, len(operations))))
    action = random.choice(
        ["action", "action", f"action in [{some}]", f'action == Action::"{random.choice(operations)}"']
    )
    resource = random.choice(
        ["resource", "resource", 'resource in Domain::"d2"', 'resource in Environment::"prod"', "resource is Service"]
    )
    effect = random.choice(["permit", "permit", "permit", "forbid"])
    conditions = [
        f"{random.choice(['when', 'when', 'unless'])} {{ {_condition(random, workloads, services, operations, 2)} }}"
        for _ in range(random.choice([0, 1, 1, 2]))
    ]
    any_tenant = ' @tenants("any")' if effect == "permit" and random.random() < 0.2 else ""
    head = f'@id("{name}") @owner("group:x") @reason("r"){any_tenant}'
    return f"{head}\n{effect} ({principal}, {action}, {resource}) {' '.join(conditions)};"


def _condition(random: Random, workloads: list[str], services: list[str], operations: list[str], depth: int) -> str:
    if depth and random.random() < 0.5:
        parts = [_condition(random, workloads, services, operations, depth - 1) for _ in range(2)]
        return random.choice(["({}) && ({})", "({}) || ({})", "!({}) && ({})", "if ({}) then ({}) else false"]).format(
            *parts
        )
    tenant = random.choice(TENANTS)
    other = f'Workload::"{random.choice(workloads)}"'
    demanded = "context has step_up && context.step_up has tenant && context.step_up"
    by_tenant = [
        "principal has tenants && context has tenant && principal.tenants.contains(context.tenant)",
        "principal has tenants && context has tenant && !principal.tenants.contains(context.tenant)",
        f'context has tenant && context.tenant == "{tenant}"',
        f'context has tenant && ["{tenant}", "other"].contains(context.tenant)',
        "context has tenant && principal has tier && principal.tier == context.tenant",
        "principal has tenants && context has tenant && [context.tenant].containsAll(principal.tenants)",
    ]
    return random.choice(
        [
            *by_tenant * 3,
            f'principal has tenants && principal.tenants.contains("{tenant}")',
            "principal.environment == resource.environment",
            "principal.owner == resource.owner",
            'principal.owner like "group:r*"',
            f'principal == Workload::"{random.choice(workloads)}"',
            f'resource == Service::"{random.choice(services)}"',
            f'action == Action::"{random.choice(operations)}"',
            'action in Action::"read" || action in Action::"open"',
            'context.method == "GET"',
            f'Workload::"{random.choice(workloads)}".owner == principal.owner',
            f"context has tenant && {other} has tenants && {other}.tenants.contains(context.tenant)",
            "context has step_up",
            "context has approval",
            f'context has step_up && context.step_up.action == "{random.choice(operations)}"',
            f"{demanded}.tenant == (if context has tenant then context.tenant else principal.owner)",
            f'context has approval && context.approval.approver == "{random.choice(APPROVERS)}"',
            f'context has step_up && context.step_up.approver == "{random.choice(APPROVERS)}"',
            f'context has transaction && context.transaction.origin == "{random.choice(workloads)}"',
            "context has approval && context.approval.approver == principal.owner",
            "context has transaction && [resource.owner, principal.owner].contains(context.transaction.origin)",
            "context has approval && context.approval has approver",
            "9223372036854775807 + 1 == 0",
            "context has tenant && context.tenant == context.method",
            "true",
        ]
    )


def _requests(random: Random, world: World, count: int):
    names = [*TENANTS, "other", "any-other", "unheard-of", "gold", "GET"]
    for _ in range(count):
        caller = random.choice([*world.workloads, *world.workloads, "spiffe://t.example/prod/d1/nobody", None])
        service, method, template, operation = random.choice(world.routes)
        if random.random() < 0.1:
            method = random.choice(METHODS)
        path = template.replace("{tenant}", random.choice(names)).replace("{item}", random.choice(["i", "acme"]))
        if random.random() < 0.15:
            path = random.choice([path + "/", path + "?a=/b", "/t/ac%6De", "/t/../x", "/t//i", "", "*", "/t/a b/i"])
        headers = random.choice(
            [
                [],
                [("X-Tenant", random.choice(names))],
                [("x-tenant", random.choice(names))],
                [("x-tenant", random.choice(TENANTS))],
                [("x-tenant", "")],
                [("x-tenant", "acme"), ("x-tenant", "acme")],
                [("x-tenant", "acme, globex")],
            ]
        )
        presented = random.choice([NoToken.MISSING, _token(random, world, caller, service, operation, path, names)])
        if random.random() < 0.05:
            presented = random.choice([NoToken.EXPIRED, NoToken.INVALID])
        yield caller, service, method, path, headers, presented, CERTIFICATE


def _token(random: Random, world: World, caller: str | None, service: str, operation: str, path: str, names) -> Token:
    """Mostly one that counts for the call; sometimes one thing is wrong with it."""
    segments = [segment for segment in path.split("/") if segment in names]
    token = Token(
        id="j",
        transaction="t",
        caller=caller or "",
        certificate=CERTIFICATE,
        action=operation,
        resource=service,
        origin=random.choice([*world.workloads, "spiffe://t.example/elsewhere", *OWNERS]),
        expires=1,
        tenant=random.choice(["", "", *segments * 3, random.choice(names)]),
        approver=random.choice(["", *APPROVERS, "unix:uid:77"]),
    )
    wrong = random.choice([None] * 9 + ["caller", "certificate", "action", "resource"])
    return msgspec.structs.replace(token, **{wrong: "another"}) if wrong else token


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(min_value=0, max_value=2**32))
def test_table_equals_cedar(seed: int) -> None:
    random = Random(seed)
    world = make_world(random)
    estate = load_estate(world.files)
    compiled = compile_estate(estate)
    sidecars = {i.service: decode_sidecar(encode_sidecar(s)) for s in compiled.sidecars.values() for i in s.inbound}
    oracle = Oracle(estate)
    for request in _requests(random, world, 30):
        expected = oracle.decide(*request)
        assert lookup(sidecars[request[1]], *request) == expected, (request, "\n".join(world.policies))
        if expected[0] is Verdict.ALLOW and request[0].startswith("spiffe://f.example/"):
            assert sidecars[request[1]].federated_callers == ("f.example",), "admitted, so its bundle is trusted"


@settings(max_examples=12, deadline=None)
@given(st.integers(min_value=0, max_value=2**32))
def test_order_and_layout_of_files_do_not_matter(seed: int) -> None:
    random = Random(seed)
    world = make_world(random)
    policies = random.sample(world.policies, len(world.policies))
    shuffled = dict(random.sample(sorted(world.files.items()), len(world.files)))
    shuffled["policies/all.cedar"] = b"// moved\n" + "\n\n\n".join(policies[:2]).encode()
    shuffled["policies/more.cedar"] = "\n".join(policies[2:]).encode()
    first, second = compile_estate(load_estate(world.files)), compile_estate(load_estate(shuffled))
    assert first.version == second.version
    assert {k: encode_sidecar(s) for k, s in first.sidecars.items()} == {
        k: encode_sidecar(s) for k, s in second.sidecars.items()
    }


def test_the_generator_reaches_every_code() -> None:
    # Whether a token was used before, and whether a certificate verifies, no table can say.
    handshakes = {DecisionCode.CERTIFICATE_REFUSED, DecisionCode.SERVER_REFUSED}
    stateful = {DecisionCode.TOKEN_USED, DecisionCode.CHECK_UNAVAILABLE, DecisionCode.RECORD_UNAVAILABLE}
    contained = {DecisionCode.CALLER_CONTAINED, DecisionCode.TOKEN_CONTAINED, DecisionCode.IDENTITY_CONTAINED}
    wanted = set(DecisionCode) - handshakes - stateful - contained
    codes = set()
    for seed in range(80):
        if {code for _, code in codes} == wanted:
            break
        random = Random(seed)
        world = make_world(random)
        compiled = compile_estate(load_estate(world.files))
        sidecars = {i.service: s for s in compiled.sidecars.values() for i in s.inbound}
        codes |= {lookup(sidecars[r[1]], *r)[:2] for r in _requests(random, world, 30)}
    assert {code for _, code in codes} == wanted
    assert {code for verdict, code in codes if verdict is Verdict.ALLOW} == {DecisionCode.ALLOWED}


@pytest.mark.parametrize("seed", range(8))
def test_cells_name_each_caller_once(seed: int) -> None:
    compiled = compile_estate(load_estate(make_world(Random(seed)).files))
    for sidecar in compiled.sidecars.values():
        for operation in (o for i in sidecar.inbound for o in i.operations):
            callers = [c for cell in operation.cells for c in cell.callers]
            assert len(callers) == len(set(callers))
            assert all((cell.rule is None) != (cell.tenants is None) for cell in operation.cells)
