"""What Envoy decides is what the table says: random tables and requests against a plain reading of the table."""

import random
import re

import msgspec
import pytest
from envoy_mesh import TD, Ca, Mesh, spiffe

from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Rule,
    Sidecar,
    TenantRules,
    TenantSource,
    Verdict,
)
from eastwest.testing.ports import free_port

CALLERS = [spiffe(f"caller-{n}") for n in range(5)]
KNOWN = CALLERS[:4]
TENANTS = ["acme", "globex", "a.b", "x~y", "other", "acme2"]
WORDS = ["a", "b", "ab", "users", "user", "v1.0", "x-y"]
METHODS = ["GET", "POST", "PUT"]
RULES = [
    Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p1"),
    Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p2|odd%name"),
    Rule(verdict=Verdict.DENY, code=DecisionCode.FORBIDDEN_BY_POLICY, policy="f1"),
    Rule(verdict=Verdict.DENY, code=DecisionCode.OPERATION_NOT_PERMITTED),
    Rule(verdict=Verdict.DENY, code=DecisionCode.POLICY_ERROR, policy="f2"),
]
OTHER_TENANT = Rule(verdict=Verdict.DENY, code=DecisionCode.TENANT_NOT_PERMITTED)


def random_operation(rng: random.Random, number: int) -> OperationRules:
    segments = [rng.choice([*WORDS, "{p}"]) for _ in range(rng.randint(1, 4))]
    names = iter(["one", "two", "three", "four"])
    segments = [f"{{{next(names)}}}" if s == "{p}" else s for s in segments]
    parameters = [s[1:-1] for s in segments if s.startswith("{")]
    source = rng.choice([None, TenantSource(header="x-tenant"), *(TenantSource(path=p) for p in parameters)])
    cells, callers = [], rng.sample(KNOWN, rng.randint(0, 4))
    while callers:
        size = rng.randint(1, len(callers))
        group, callers = tuple(sorted(callers[:size])), callers[size:]
        if source and rng.random() < 0.7:
            by_tenant = {t: rng.choice(RULES) for t in rng.sample(TENANTS[:4], rng.randint(0, 3))}
            cells.append(Cell(callers=group, tenants=TenantRules(by_tenant=by_tenant, otherwise=OTHER_TENANT)))
        else:
            cells.append(Cell(callers=group, rule=rng.choice(RULES)))
    return OperationRules(
        name=f"svc:op{number}:do",
        match=HttpMatch(method=rng.choice(METHODS), path="/" + "/".join(segments)),
        tenant=source,
        cells=tuple(cells),
        otherwise=rng.choice(RULES[2:]),
    )


def naive(operations, caller: str, method: str, path: str, tenants: list[str]) -> tuple[str, str, str, str]:
    """(code, policy, operation, tenant) by reading the table from top to bottom."""
    if caller not in KNOWN:
        return "UNKNOWN_CALLER", "", "", ""
    best = None
    for index, operation in enumerate(operations):
        template = operation.match.path.split("/")
        parts = path.split("?", maxsplit=1)[0].split("/")
        if operation.match.method != method or len(template) != len(parts):
            continue
        found = {}
        for want, got in zip(template, parts, strict=True):
            if want.startswith("{"):
                if not re.fullmatch(r"[A-Za-z0-9._~-]+", got):
                    break
                found[want[1:-1]] = got
            elif want != got:
                break
        else:
            rank = ([want.startswith("{") for want in template], index)
            if best is None or rank < best[0]:
                best = rank, operation, found
    if best is None:
        return "UNLISTED_OPERATION", "", "", ""
    _, operation, found = best
    tenant = ""
    if operation.tenant:
        tenant = found.get(operation.tenant.path, "") if operation.tenant.path else ",".join(tenants)
    for cell in operation.cells:
        if caller in cell.callers:
            rule = cell.rule
            if rule is None:
                assert cell.tenants is not None
                if not tenant or "," in tenant:
                    return "TENANT_MISSING", "", operation.name, tenant
                rule = cell.tenants.by_tenant.get(tenant, cell.tenants.otherwise)
            return rule.code, rule.policy, operation.name, tenant
    return operation.otherwise.code, operation.otherwise.policy, operation.name, tenant


def random_request(rng: random.Random, operations) -> tuple[str, str, str, list[str]]:
    operation = rng.choice(operations)
    method = operation.match.method if rng.random() < 0.9 else rng.choice(METHODS)
    parts = [rng.choice([*TENANTS, *WORDS]) if s.startswith("{") else s for s in operation.match.path[1:].split("/")]
    if rng.random() < 0.15:
        parts[rng.randrange(len(parts))] = rng.choice([*WORDS, "a;b", "a%20b", "A", "a:b"])
    if rng.random() < 0.1:
        parts = parts[:-1] or ["zzz"]
    if rng.random() < 0.1:
        parts.append(rng.choice(WORDS))
    query = rng.choice(["", "", "?x=1", "?", "?a/b=../c"])
    tenants = rng.choices(TENANTS, k=rng.choice([0, 1, 1, 1, 1, 2]))
    return rng.choice(CALLERS), method, "/" + "/".join(parts) + query, tenants


@pytest.mark.parametrize("mode", list(MtlsMode))
async def test_envoy_agrees_with_the_table(tmp_path, mode):
    rng = random.Random(f"eastwest {mode}")
    ca, port = Ca(), free_port()
    mesh = Mesh(tmp_path, {TD: ca.pem})
    try:
        app = await mesh.app("svc")

        def table(number: int) -> Sidecar:
            operations = tuple(random_operation(rng, n) for n in range(rng.randint(1, 14)))
            # The header that names a tenant is a fact of the service, not of its policy: keep one operation with it.
            fixed = OperationRules(
                name="svc:fixed:do",
                match=HttpMatch(method="PATCH", path="/fixed"),
                tenant=TenantSource(header="x-tenant"),
            )
            inbound = Inbound(
                service="svc",
                address="127.0.0.1",
                port=port,
                protocol="http",
                mode=mode,
                upstream=f"unix:{app.path}",
                operations=(*operations, fixed),
            )
            return Sidecar(
                spiffe_id=spiffe("svc"), version=f"v{number}", known_callers=tuple(KNOWN), inbound=(inbound,)
            )

        workload = await mesh.add(table(0), ca.identity(spiffe("svc")))
        await mesh.settled()
        ways = {caller: await mesh.tls(port, ca.identity(caller)) for caller in CALLERS}
        expected = {}
        for number in range(1, 11):
            sidecar = table(number)
            mesh.publish(workload, sidecar)
            await mesh.settled()
            operations = sidecar.inbound[0].operations
            for _ in range(40):
                caller, method, path, tenants = random_request(rng, operations)
                want = naive(operations, caller, method, path, tenants)
                reply = await ways[caller].ask(method, path, *(("x-tenant", t) for t in tenants))
                passes = want[0] == "ALLOWED" or mode is MtlsMode.PERMISSIVE
                context = msgspec.json.encode(operations), caller, method, path, tenants
                assert (reply.status, reply.code) == ((200, "") if passes else (403, want[0])), context
                expected[reply.headers["x-request-id"]] = want, context
        await mesh.until(lambda: len({d.reference for d in mesh.decisions} & expected.keys()) == len(expected))
        for row in mesh.decisions:
            want, context = expected.get(row.reference, (None, None))
            if want:
                assert (row.code, row.policy, row.operation, row.tenant) == want, context
                assert row.enforced is (mode is MtlsMode.STRICT)
        assert {want[0] for want, _ in expected.values()} >= {
            "ALLOWED",
            "UNKNOWN_CALLER",
            "UNLISTED_OPERATION",
            "FORBIDDEN_BY_POLICY",
            "TENANT_NOT_PERMITTED",
            "TENANT_MISSING",
        }
    finally:
        await mesh.close()
