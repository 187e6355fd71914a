"""How far a principal reaches: what the table lets it do, and what the services that it reaches may do in turn.

The model is that of an intruder: whoever holds an identity may do what it may do; whoever can do more at a service than
an ``open`` operation may come to hold that service's identity, with all its rights. What must be brought (a token, an
approval) holds the intruder up but is reached all the same, and told apart. Services in permissive mode refuse nobody.
Foreign trust domains' services are not looked into: their table is elsewhere.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from eastwest.policy.enforcement import Inbound, MtlsMode, OperationRules
from eastwest.policy.estate import Estate, Operation, Sensitivity
from eastwest.policy.reach import ACROSS_TENANTS, WEIGHTS, Held, Tenants, Way, ways
from eastwest.policy.table import CompiledPolicy

PERMISSIVE = "permissive mode"
"""In ``Reached.policies``: no policy, the service refuses nobody."""
LADDER = (
    Sensitivity.OPEN,
    Sensitivity.READ,
    Sensitivity.RESTRICTED_READ,
    Sensitivity.MUTATE,
    Sensitivity.CONTROL,
)
"""From what nobody minds to what everybody does."""


class Step(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One call on a path: who calls which operation of whom, and what has to be brought for it."""

    caller: str
    operation: str
    callee: str
    held: Held


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that is reached, in the best way: fewest calls that are held up, then fewest calls.

    ``weight`` is the operation's risk, doubled where ``across`` tenants that are not the principal's own. ``tenants``
    is empty where it is not per tenant. ``held``: what the hardest call of the path has to bring.
    """

    operation: str
    service: str
    sensitivity: Sensitivity | None
    data: str
    tenants: str
    across: bool
    weight: int
    held: Held
    hops: int
    policies: tuple[str, ...]
    path: tuple[Step, ...]


class Blast(msgspec.Struct, frozen=True, kw_only=True):
    """What ``principals`` reach together, the riskiest first. ``identities`` are those that they may come to hold
    and use.
    """

    principals: tuple[str, ...]
    tenants: tuple[str, ...]
    identities: tuple[str, ...]
    reached: tuple[Reached, ...]

    @property
    def weight(self) -> int:
        """Risk that nothing holds up."""
        return sum(one.weight for one in self.reached if one.held is Held.NOTHING)

    @property
    def held_weight(self) -> int:
        """Risk behind a token or an approval."""
        return sum(one.weight for one in self.reached if one.held is not Held.NOTHING)

    def paths(self, limit: int) -> tuple[Reached, ...]:
        """The riskiest operations with how they are reached; what nothing holds up comes first among equals."""
        return self.reached[:limit]

    def to_dict(self, limit: int | None = None) -> dict[str, Any]:
        """Plain data; at most ``limit`` of what is reached, counted whole."""
        return {
            "principals": list(self.principals),
            "tenants": list(self.tenants),
            "weight": self.weight,
            "held_weight": self.held_weight,
            "operations": len(self.reached),
            "direct": sum(one.hops == 1 for one in self.reached),
            "held": sum(one.held is not Held.NOTHING for one in self.reached),
            "across_tenants": sum(one.across for one in self.reached),
            "by_sensitivity": dict(sorted(Counter(str(r.sensitivity or "unclassified") for r in self.reached).items())),
            "by_data": dict(sorted(Counter(r.data for r in self.reached if r.data).items())),
            "identities": list(self.identities),
            "reached": msgspec.to_builtins(self.reached[:limit]),
        }


class World:
    """Who may call what, ready to be walked from any principal. Making one reads the whole table once."""

    def __init__(self, compiled: CompiledPolicy, estate: Estate, *, as_strict: bool = False) -> None:
        """``as_strict``: as if every service were strict."""
        self._tenants = {c.spiffe_id: _tenants(c.attributes.get("tenants", ())) for c in estate.callers}
        self._operations = {o.name: o for s in estate.services for o in s.operations}
        self._hosts = {s.service: s.workload for s in estate.services}
        self._as_strict = as_strict
        self._inbound = [inbound for sidecar in compiled.sidecars.values() for inbound in sidecar.inbound]

    @property
    def principals(self) -> Collection[str]:
        """Every caller that policies know."""
        return self._tenants.keys()

    def blast(
        self, principals: Iterable[str], *, contained: Collection[str] = (), through: Sensitivity = Sensitivity.READ
    ) -> Blast:
        """What ``principals`` reach together; not what they serve themselves.

        ``contained`` ones call nobody, their services take no calls, and no transaction counts that they began or
        approved.

        ``through``: the least sensitivity of an operation by which its service's identity is thought to be had.
        """
        start = tuple(sorted(set(principals)))
        own = tuple(sorted({tenant for one in start for tenant in self._tenants.get(one, ())}))
        calls = self._calls(frozenset(start), frozenset(contained))
        held = self._walk(start, calls, through)
        best: dict[str, tuple[tuple[object, ...], Reached]] = {}
        for identity, (cost, path) in held.items():
            for inbound, operation, way in calls.get(identity, ()):
                rank = max(cost[2], way.held.rank)
                key = (cost[0] + (way.held is not Held.NOTHING), cost[1] + 1, rank, tuple(s.operation for s in path))
                known = best.get(operation.name)
                if known is None or key < known[0]:
                    whole = (*path, self._step(identity, inbound, operation, way))
                    best[operation.name] = key, self._reached(inbound, operation, way, whole)
        unbound = self._unbound(own, held, calls)
        found = [self._weighed(one, one.operation in unbound) for _, one in best.values()]
        found.sort(key=lambda r: (-r.weight, r.held.rank, r.hops, r.operation))
        return Blast(
            principals=start,
            tenants=own,
            identities=tuple(sorted(held.keys() - set(start) - set(contained))),
            reached=tuple(found),
        )

    def _calls(self, start: frozenset[str], contained: frozenset[str]) -> dict[str, list[_Call]]:
        """What they, and whoever serves, may call. Operations share their cells, which are looked through once."""
        calls: dict[str, list[_Call]] = {}
        of_cells: dict[tuple[int, bool], list[tuple[str, Way]]] = {}
        free = (start | frozenset(self._hosts.values())) - contained
        for inbound in self._inbound:
            if self._hosts[inbound.service] in start | contained:
                continue
            if inbound.mode is MtlsMode.PERMISSIVE and not self._as_strict:
                for operation in inbound.operations:
                    tenants = None if operation.tenant is None else Tenants(any_other=True)
                    way = Way(Held.NOTHING, tenants, (PERMISSIVE,))
                    for caller in free:
                        calls.setdefault(caller, []).append((inbound, operation, way))
                continue
            for operation in inbound.operations:
                claim = operation.tenant is not None and operation.tenant.claim
                key = id(operation.cells), claim
                if key not in of_cells:
                    of_cells[key] = [
                        (caller, way)
                        for cell in operation.cells
                        for way in ways(operation, cell, contained)
                        for caller in cell.callers
                        if caller in free
                    ]
                for caller, way in of_cells[key]:
                    calls.setdefault(caller, []).append((inbound, operation, way))
        return calls

    def _walk(self, start: tuple[str, ...], calls: Mapping[str, list[_Call]], through: Sensitivity) -> _Held:
        """Identities that come to be held, each with the cheapest path to it; no path meets an identity twice."""
        least = LADDER.index(through)
        found: _Held = {}
        waiting: list[tuple[_Cost, tuple[Step, ...], str]] = [((0, 0, 0), (), one) for one in start]
        heapq.heapify(waiting)
        while waiting:
            cost, path, identity = heapq.heappop(waiting)
            if identity in found:
                continue
            found[identity] = cost, path
            steps: dict[str, tuple[_Cost, Step]] = {}
            for inbound, operation, way in calls.get(identity, ()):
                host = self._hosts[inbound.service]
                if host in found or LADDER.index(self._sensitivity(operation)) < least:
                    continue
                held = way.held is not Held.NOTHING
                dearer = (cost[0] + held, cost[1] + 1, max(cost[2], way.held.rank))
                step = self._step(identity, inbound, operation, way)
                if host not in steps or (dearer, step) < steps[host]:
                    steps[host] = dearer, step
            for host, (dearer, step) in steps.items():
                heapq.heappush(waiting, (dearer, (*path, step), host))
        return found

    def _unbound(self, own: tuple[str, ...], held: _Held, calls: Mapping[str, list[_Call]]) -> frozenset[str]:
        """Operations that some identity held may call for tenants that are not ``own``."""
        return frozenset(
            operation.name
            for identity in held
            for _, operation, way in calls.get(identity, ())
            if way.tenants is not None and way.tenants.beyond(own)
        )

    def _step(self, caller: str, inbound: Inbound, operation: OperationRules, way: Way) -> Step:
        return Step(caller=caller, operation=operation.name, callee=self._hosts[inbound.service], held=way.held)

    def _reached(self, inbound: Inbound, operation: OperationRules, way: Way, path: tuple[Step, ...]) -> Reached:
        written = self._written(operation)
        return Reached(
            operation=operation.name,
            service=inbound.service,
            sensitivity=written.sensitivity if written else None,
            data=(written.data or "") if written else "",
            tenants=str(way.tenants) if way.tenants is not None else "",
            across=False,
            weight=WEIGHTS[written.sensitivity if written else None],
            held=max((step.held for step in path), key=lambda held: held.rank),
            hops=len(path),
            policies=way.policies,
            path=path,
        )

    @staticmethod
    def _weighed(one: Reached, across: bool) -> Reached:
        if not across:
            return one
        return msgspec.structs.replace(one, across=True, weight=one.weight * ACROSS_TENANTS)

    def _written(self, operation: OperationRules) -> Operation | None:
        return self._operations.get(operation.name)

    def _sensitivity(self, operation: OperationRules) -> Sensitivity:
        written = self._written(operation)
        # Only a permissive service lets anybody do what nobody has classified.
        return (written.sensitivity if written else None) or Sensitivity.READ


_Call = tuple[Inbound, OperationRules, Way]
_Cost = tuple[int, int, int]  # calls that are held up, calls, the hardest that one has to bring
_Held = dict[str, tuple[_Cost, tuple[Step, ...]]]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """The same principals before and after: what is no longer reached, and what newly is (by operation)."""

    before: Blast
    after: Blast

    @property
    def gone(self) -> tuple[Reached, ...]:
        """Reached before, and not after."""
        kept = {one.operation for one in self.after.reached}
        return tuple(one for one in self.before.reached if one.operation not in kept)

    @property
    def gained(self) -> tuple[Reached, ...]:
        """Reached after, and not before."""
        known = {one.operation for one in self.before.reached}
        return tuple(one for one in self.after.reached if one.operation not in known)

    @property
    def changed(self) -> tuple[tuple[Reached, Reached], ...]:
        """Reached before and after, with another weight or held otherwise."""
        before = {one.operation: one for one in self.before.reached}
        pairs = ((before[one.operation], one) for one in self.after.reached if one.operation in before)
        return tuple((old, new) for old, new in pairs if (old.weight, old.held) != (new.weight, new.held))


def selected(estate: Estate, selectors: Collection[str]) -> tuple[str, ...]:
    """Identities that a process with these selectors may have, as far as they say: each has them all."""
    wanted = set(selectors)
    return tuple(w.spiffe_id for w in estate.workloads if wanted <= set(w.selectors))


def _tenants(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value
