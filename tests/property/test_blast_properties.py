"""The blast radius equals brute force on random graphs, never shrinks by a permit nor grows by containment."""

from __future__ import annotations

import itertools
from random import Random

import msgspec
import pytest

from eastwest.policy.blast import PERMISSIVE, World
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    OriginRules,
    Rule,
    Sidecar,
    TenantRules,
    TenantSource,
    TokenRules,
    Verdict,
)
from eastwest.policy.estate import (
    Estate,
    Listen,
    Match,
    Operation,
    Sensitivity,
    Service,
    Settings,
    Upstream,
    Workload,
)
from eastwest.policy.reach import Held
from eastwest.policy.table import CompiledPolicy, Summary

GRAPHS = 1_000
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
DENY = Rule(verdict=Verdict.DENY, code=DecisionCode.OPERATION_NOT_PERMITTED)
RANK = {Held.NOTHING: 0, Held.STEP_UP: 1, Held.APPROVAL: 2}


def with_token(*, approval: bool) -> Rule:
    token = TokenRules(
        unapproved=OriginRules(otherwise=DENY if approval else ALLOW), approved=OriginRules(otherwise=ALLOW)
    )
    code = DecisionCode.APPROVAL_REQUIRED if approval else DecisionCode.STEP_UP_REQUIRED
    return Rule(verdict=Verdict.DENY, code=code, policy="p", token=token)


def workload(number: int, tenants: tuple[str, ...]) -> Workload:
    return Workload(
        spiffe_id=f"spiffe://t.example/w{number}",
        environment="prod",
        domain="d",
        owner="group:d",
        node="group:n",
        selectors=(f"unix:uid:{number}",),
        profile="workload",
        attributes={"tenants": tenants} if tenants else {},
    )


class Graph:
    """Workloads that each serve one service of a few operations, and who may call these, how and for whom."""

    def __init__(self, random: Random) -> None:
        self.size = random.randint(2, 7)
        tenants = [tuple(random.sample(("a", "b", "c"), random.randint(0, 2))) for _ in range(self.size)]
        self.workloads = tuple(workload(i, tenants[i]) for i in range(self.size))
        self.modes = [random.choice([MtlsMode.STRICT] * 7 + [MtlsMode.PERMISSIVE]) for _ in range(self.size)]
        self.operations = {
            (i, j): random.choice(tuple(Sensitivity)) for i in range(self.size) for j in range(random.randint(1, 3))
        }
        self.per_tenant = {key: random.random() < 0.4 for key in self.operations}
        # (caller, service, operation) → what a call brings, for which tenants ("*": any other)
        self.calls: dict[tuple[int, int, int], tuple[Held, str]] = {}
        for (service, operation), caller in itertools.product(self.operations, range(self.size)):
            if random.random() < 0.25:
                held = random.choice([Held.NOTHING] * 3 + [Held.STEP_UP, Held.APPROVAL])
                self.calls[caller, service, operation] = held, random.choice("abc*")

    def world(self) -> World:
        sidecars = {w.spiffe_id: self._sidecar(i, w) for i, w in enumerate(self.workloads)}
        summary = Summary(**dict.fromkeys((f.name for f in msgspec.structs.fields(Summary) if f.required), 0))
        return World(CompiledPolicy(version="", sidecars=sidecars, summary=summary), self._estate())

    def _sidecar(self, i: int, host: Workload) -> Sidecar:
        rules = tuple(self._rules(i, j) for service, j in self.operations if service == i)
        inbound = Inbound(
            service=f"s{i}",
            address="127.0.0.1",
            port=8000 + i,
            protocol="http",
            mode=self.modes[i],
            upstream="unix:/x",
            operations=rules,
        )
        return Sidecar(spiffe_id=host.spiffe_id, version="", known_callers=(), inbound=(inbound,))

    def _rules(self, i: int, j: int) -> OperationRules:
        cells = []
        for (caller, service, operation), (held, tenant) in self.calls.items():
            if (service, operation) != (i, j):
                continue
            rule = ALLOW if held is Held.NOTHING else with_token(approval=held is Held.APPROVAL)
            name = (self.workloads[caller].spiffe_id,)
            if not self.per_tenant[i, j]:
                cells.append(Cell(callers=name, rule=rule))
            elif tenant == "*":
                cells.append(Cell(callers=name, tenants=TenantRules(otherwise=rule)))
            else:
                cells.append(Cell(callers=name, tenants=TenantRules(by_tenant={tenant: rule}, otherwise=DENY)))
        return OperationRules(
            name=f"s{i}:r{j}:do",
            match=HttpMatch(method="GET", path=f"/{j}"),
            tenant=TenantSource(header="x-tenant") if self.per_tenant[i, j] else None,
            cells=tuple(cells),
        )

    def _estate(self) -> Estate:
        services = tuple(
            Service(
                service=f"s{i}",
                workload=w.spiffe_id,
                owner="group:d",
                domain="d",
                listen=Listen(port=8000 + i, protocol="http", mtls=self.modes[i]),
                upstream=Upstream(unix="/x"),
                operations=tuple(
                    Operation(name=f"s{i}:r{j}:do", match=Match(method="GET", path=f"/{j}"), sensitivity=sensitivity)
                    for (service, j), sensitivity in self.operations.items()
                    if service == i
                ),
            )
            for i, w in enumerate(self.workloads)
        )
        settings = Settings(trust_domain="t.example", environments=(), domains=())
        return Estate(
            settings=settings,
            profiles=(),
            workloads=self.workloads,
            services=services,
            policies=(),
            waivers=(),
            schema="",
        )

    def can(self, caller: int, service: int, operation: int) -> tuple[Held, str] | None:
        if self.modes[service] is MtlsMode.PERMISSIVE:
            return Held.NOTHING, "*"
        return self.calls.get((caller, service, operation))


def brute_force(graph: Graph, start: int, contained: frozenset[int] = frozenset()):
    """Every loop-free path there is: by operation the best (calls held up, calls), and whether tenants are crossed."""
    best: dict[str, tuple[int, int]] = {}
    held_by: set[int] = set()

    def walk(path: tuple[int, ...], held: int) -> None:
        caller = path[-1]
        held_by.add(caller)
        if caller in contained:
            return
        for (service, operation), sensitivity in graph.operations.items():
            call = graph.can(caller, service, operation)
            if service == start or service in contained or call is None:
                continue
            cost = (held + (call[0] is not Held.NOTHING), len(path))
            name = f"s{service}:r{operation}:do"
            best[name] = min(best.get(name, cost), cost)
            if sensitivity is not Sensitivity.OPEN and service not in path:
                walk((*path, service), cost[0])

    walk((start,), 0)
    own = set(graph.workloads[start].attributes.get("tenants", ()))
    across = {
        f"s{service}:r{operation}:do"
        for caller in held_by - contained
        for service, operation in graph.operations
        if service != start and service not in contained and (call := graph.can(caller, service, operation)) is not None
        if graph.per_tenant[service, operation] and (call[1] == "*" or (own and call[1] not in own))
    }
    return best, across, held_by - {start}


WEIGHT = {"open": 1, "read": 2, "restricted-read": 4, "mutate": 5, "control": 8}


def test_it_equals_brute_force_on_random_graphs():
    held = hops = 0
    for seed in range(GRAPHS):
        graph = Graph(Random(seed))
        found = graph.world().blast([graph.workloads[0].spiffe_id])
        best, across, identities = brute_force(graph, 0)
        assert {r.operation: (sum(s.held is not Held.NOTHING for s in r.path), r.hops) for r in found.reached} == best
        assert {r.operation for r in found.reached if r.across} == across, seed
        assert found.identities == tuple(f"spiffe://t.example/w{i}" for i in sorted(identities))
        for one in found.reached:
            assert one.weight == WEIGHT[one.sensitivity] * (2 if one.across else 1)
            assert_is_a_path(graph, one)
            held += one.held is not Held.NOTHING
            hops += one.hops > 1
        order = [(-r.weight, RANK[r.held], r.hops) for r in found.reached]
        assert order == sorted(order)
    assert held > GRAPHS / 2
    assert hops > GRAPHS


def assert_is_a_path(graph, one):
    """From the principal, each call allowed, each caller the one that was called before, nobody twice."""
    callers = [step.caller for step in one.path]
    assert callers[0] == graph.workloads[0].spiffe_id
    assert callers[1:] == [step.callee for step in one.path[:-1]]
    assert len(set(callers)) == len(callers)
    assert one.path[-1].operation == one.operation
    for step in one.path:
        service, operation = (int(part[1:]) for part in step.operation.split(":")[:2])
        call = graph.can(int(step.caller.rpartition("w")[2]), service, operation)
        assert call is not None
        assert call[0] is step.held
    assert (one.policies == (PERMISSIVE,)) == (graph.modes[int(one.service[1:])] is MtlsMode.PERMISSIVE)


@pytest.mark.parametrize("seed", range(150))
def test_another_permit_never_shrinks_it(seed):
    random = Random(seed)
    graph = Graph(random)
    start = [graph.workloads[0].spiffe_id]
    before = graph.world().blast(start)
    missing = [
        (caller, *key) for key in graph.operations for caller in range(graph.size) if (caller, *key) not in graph.calls
    ]
    if missing:
        graph.calls[random.choice(missing)] = Held.NOTHING, random.choice("abc*")
    after = graph.world().blast(start)
    assert {r.operation for r in before.reached} <= {r.operation for r in after.reached}
    assert before.weight <= after.weight
    assert before.weight + before.held_weight <= after.weight + after.held_weight


@pytest.mark.parametrize("seed", range(150))
def test_containing_never_grows_it(seed):
    random = Random(seed)
    graph = Graph(random)
    start = [graph.workloads[0].spiffe_id]
    world = graph.world()
    before = world.blast(start)
    chosen = frozenset(random.sample(range(graph.size), random.randint(1, graph.size)))
    after = world.blast(start, contained={graph.workloads[i].spiffe_id for i in chosen})
    best, across, _ = brute_force(graph, 0, chosen)
    assert {r.operation for r in after.reached} == set(best) <= {r.operation for r in before.reached}
    assert {r.operation for r in after.reached if r.across} == across
    assert after.weight <= before.weight
    assert world.blast(start, contained=start).reached == ()
