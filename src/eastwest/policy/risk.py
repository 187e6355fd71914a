"""How risky a change is: what it newly allows, and whose word that needs.

Read from the two compiled tables and the two estates, never from what was edited: a right may widen without a policy
being touched. What narrows is no widening; where a thing can be read both ways it is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from eastwest.policy.applications import application, nodes_of
from eastwest.policy.enforcement import Inbound, MtlsMode, OperationRules
from eastwest.policy.estate import Estate, Operation, Sensitivity, Service
from eastwest.policy.gains import Gain, gains, holders
from eastwest.policy.loosened import loosened_identities, loosened_service, loosened_settings
from eastwest.policy.past import Past
from eastwest.policy.regions import Region, regions
from eastwest.policy.table import CompiledPolicy

RISKY = frozenset({Sensitivity.CONTROL, Sensitivity.MUTATE, Sensitivity.RESTRICTED_READ})
"""Whoever opens an operation of these needs its owner's word."""
_STRICTNESS = {one: rank for rank, one in enumerate(Sensitivity)}
ANYBODY = "*"
WHOLE = ""
"""The domain of what concerns the whole estate."""


class Widening(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One thing that the change makes wider.

    ``domain`` and ``owner`` are those of before (of the new thing, where there was none); ``WHOLE`` for what concerns
    the whole estate. ``needs``: whether their word is needed.
    """

    kind: str
    subject: str  # the operation, service, workload or setting
    why: str
    domain: str = WHOLE
    owner: str = ""
    sensitivity: str = ""
    needs: bool = False
    gains: tuple[Gain, ...] = ()  # who newly may, by name; ``*``: anybody


class Requirement(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Whose word the change needs: somebody's who decides for the domain (``WHOLE``: for all) and the owner."""

    domain: str
    owner: str
    why: str


def widenings(
    before: CompiledPolicy | None,
    after: CompiledPolicy,
    estate_before: Estate | None,
    estate_after: Estate,
    past: Past | None = None,
) -> tuple[Widening, ...]:
    """All that ``after`` allows and ``before`` did not, sorted. Of the first estate there is nothing to tell.

    ``past``: how what was not in ``before``, or had no class there, was classed in versions before that.
    """
    if before is None or estate_before is None:
        return ()
    return tuple(sorted(_Comparison(before, after, estate_before, estate_after, past or Past()).all()))


def required(found: Iterable[Widening]) -> tuple[Requirement, ...]:
    """Whose words these widenings need: one for each pair of domain and owner."""
    reasons: dict[tuple[str, str], list[Widening]] = defaultdict(list)
    for one in found:
        if one.needs:
            reasons[one.domain, one.owner].append(one)
    return tuple(
        Requirement(domain=domain, owner=owner, why=_summary(group))
        for (domain, owner), group in sorted(reasons.items())
    )


def _summary(found: list[Widening]) -> str:
    first, *rest = (f"{one.subject}: {one.why}" for one in found)
    return first if not rest else f"{first}; and {len(rest)} more"


class _Side:
    """One version by name."""

    def __init__(self, compiled: CompiledPolicy, estate: Estate) -> None:
        self.estate = estate
        self.services = {service.service: service for service in estate.services}
        self.inbound = {one.service: one for sidecar in compiled.sidecars.values() for one in sidecar.inbound}
        self.classes = {o.name: o.sensitivity for service in estate.services for o in service.operations}
        self.owners = {workload.spiffe_id: (workload.domain, workload.owner) for workload in estate.workloads}
        self.nodes = nodes_of(estate.workloads)
        self.applications = {name: application(service, self.nodes) for name, service in self.services.items()}


class _Shared(NamedTuple):
    """The strictest class that an operation's requests have by way of other services, and whose these are."""

    sensitivity: str
    owners: frozenset[tuple[str, str]]


class _Comparison:
    def __init__(
        self, before: CompiledPolicy, after: CompiledPolicy, estate_before: Estate, estate_after: Estate, past: Past
    ) -> None:
        self._before = _Side(before, estate_before)
        self._after = _Side(after, estate_after)
        self._past = past

    def all(self) -> Iterator[Widening]:
        for name in self._after.services:
            yield from self._service(name)
        yield from self._identities()
        for kind, why in loosened_settings(self._before.estate.settings, self._after.estate.settings):
            yield Widening(kind=kind, subject="estate.yaml", why=why, needs=True)

    def _service(self, name: str) -> Iterator[Widening]:
        was, now = self._before.services.get(name), self._after.services[name]
        old, new = self._before.inbound.get(name), self._after.inbound[name]
        if was == now and old == new and not self._retargeted(was, now):
            return
        operations = old.operations if old is not None else ()
        walked = list(regions(operations, new.operations))
        shared = self._shared(now, new)
        risk = self._risks(was, now, walked, shared)
        yield from self._access(was, now, operations, walked, risk, shared)
        yield from self._lowered(was, now, walked, risk)
        if was is not None:
            yield from self._loosened(was, now, old, new, risk)
        elif now.listen.mtls is MtlsMode.PERMISSIVE:
            why = "permissive: whoever reaches the port may do everything"
            for domain, owner in self._owners(was, now):
                yield self._of_service((domain, owner), (), now, "mode", why, risk)

    def _access(
        self,
        was: Service | None,
        now: Service,
        operations: Sequence[OperationRules],
        walked: Sequence[Region],
        risk: Mapping[str, str],
        shared: Mapping[str, _Shared],
    ) -> Iterator[Widening]:
        """What the table newly allows, by operation."""
        found: dict[tuple[str, str, str, str], set[Gain]] = defaultdict(set)
        owners = self._owners(was, now)
        known = {one.name for one in operations}
        for region in walked:
            told = gains(region)
            if region.before is not None and region.after.name not in known:
                told = (*told, *gains(Region(None, region.after)))  # what nobody had by this name is new
            others = shared[region.after.name].owners if was is not None and region.after.name in shared else ()
            for domain, owner in {*owners, *others} if told else ():
                found[region.after.name, domain, owner, self._said(region, risk)].update(told)
        for (operation, domain, owner, sensitivity), gained in found.items():
            callers = len({one.caller for one in gained})
            yield Widening(
                kind="access",
                subject=operation,
                why=f"{callers} caller{'s' if callers != 1 else ''} newly allowed ({sensitivity or 'unclassified'})",
                domain=domain,
                owner=owner,
                sensitivity=sensitivity,
                needs=sensitivity in RISKY,
                gains=tuple(sorted(gained)),
            )

    def _owners(self, was: Service | None, now: Service) -> list[tuple[str, str]]:
        """Who answers for what is opened: for the service as it was; for a new one, also for what lies behind it."""
        if was is not None:
            return [(was.domain, was.owner)]
        found = {(now.domain, now.owner)}
        found.update((one.domain, one.owner) for one in self._same_application(now))
        if now.workload in self._before.owners:
            found.add(self._before.owners[now.workload])
        return sorted(found)

    def _same_application(self, now: Service) -> list[Service]:
        """Other services of before behind which the same application stands."""
        before, here = self._before, self._after.applications[now.service]
        return [
            one
            for name, one in before.services.items()
            if name != now.service
            and ((one.workload, one.upstream) == (now.workload, now.upstream) or before.applications[name].may_be(here))
        ]

    def _shared(self, now: Service, new: Inbound) -> Mapping[str, _Shared]:
        """For each operation whose requests other services pass on to the same application: how they count there."""
        found: dict[str, _Shared] = {}
        for other in self._same_application(now):
            for region in regions(self._before.inbound[other.service].operations, new.operations):
                worst = self._earlier(region)
                if worst in RISKY:
                    known = found.get(region.after.name, _Shared("", frozenset()))
                    owners = known.owners | {(other.domain, other.owner)}
                    found[region.after.name] = _Shared(_strictest(known.sensitivity, worst), owners)
        return found

    def _risks(
        self, was: Service | None, now: Service, walked: Sequence[Region], shared: Mapping[str, _Shared]
    ) -> Mapping[str, str]:
        """For each operation the strictest class that its requests had behind the same application, now or earlier.

        Earlier versions are asked about what has no class now: so nothing is had for less by taking it away first.
        """
        found = {name: one.sensitivity for name, one in shared.items()}
        retargeted = was is None or self._retargeted(was, now)
        for region in walked:
            name = region.after.name
            by_name = None if self._before.classes.get(name) else self._past.of_name(name)
            known = self._earlier(region) and not retargeted
            by_requests = None if known else self._past.of_requests(now, self._after.nodes, region.after.match)
            found[name] = _strictest(found.get(name), by_name, by_requests)
        return found

    def _retargeted(self, was: Service, now: Service) -> bool:
        """Whether another application, or the same elsewhere, stands behind it than before."""
        places = self._before.applications[was.service], self._after.applications[now.service]
        return (was.workload, was.upstream) != (now.workload, now.upstream) or places[0] != places[1]

    def _earlier(self, region: Region) -> Sensitivity | None:
        """The class that the region's requests have before."""
        return None if region.before is None else self._before.classes.get(region.before.name)

    def _said(self, region: Region, risk: Mapping[str, str]) -> str:
        name = region.after.name
        before = self._before.classes
        return _strictest(self._after.classes.get(name), before.get(name), self._earlier(region), risk.get(name))

    def _lowered(
        self, was: Service | None, now: Service, walked: Sequence[Region], risk: Mapping[str, str]
    ) -> Iterator[Widening]:
        """Operations, and requests that were another's, that count for less from now on."""
        requests: dict[str, str] = {}
        for region in walked:
            requests[region.after.name] = _strictest(requests.get(region.after.name), self._earlier(region))
        same = {} if was is None or self._retargeted(was, now) else {o.name: o for o in was.operations}
        for operation in now.operations:
            name, after = operation.name, operation.sensitivity
            known = same.get(name)
            if known is not None and (known.match, known.sensitivity) == (operation.match, after):
                risk = {**risk, name: ""}  # it counted for less before
            told = (
                (self._before.classes.get(name) or "", ""),
                (requests.get(name, ""), "its requests were "),
                (risk.get(name, ""), "in an earlier version or in front of the same application "),
            )
            worst, what = max(told, key=lambda one: _STRICTNESS[Sensitivity(one[0])] if one[0] else -1)
            if after is None or worst not in RISKY or _STRICTNESS[after] >= _STRICTNESS[Sensitivity(worst)]:
                continue
            for owned in self._owners(was, now):
                yield self._of_operation(owned, name, "sensitivity", f"{what}{worst} → {after}", worst)

    def _loosened(
        self, was: Service, now: Service, old: Inbound | None, new: Inbound, risk: Mapping[str, str]
    ) -> Iterator[Widening]:
        owned = was.domain, was.owner
        for kind, why in loosened_service(was, now):
            yield self._of_service(owned, was.operations, now, kind, why, risk)
            for other in self._same_application(now) if kind == "mode" else ():
                yield self._of_service((other.domain, other.owner), other.operations, now, kind, why, {})
        if old is not None and old.post_quantum and not new.post_quantum:
            why = "classical certificates are accepted again"
            yield self._of_service(owned, was.operations, now, "post-quantum", why, risk)
        if self._retargeted(was, now):
            for other in self._same_application(now):
                why = f"{was.service} leads to the application of {other.service}"
                yield self._of_service((other.domain, other.owner), other.operations, now, "answered-by", why, risk)
        yield from self._demands(owned, old, new)

    def _demands(self, owned: tuple[str, str], old: Inbound | None, new: Inbound) -> Iterator[Widening]:
        rules = {one.name: one for one in old.operations} if old is not None else {}
        for now_rules in new.operations:
            was_rules = rules.get(now_rules.name)
            if was_rules is not None and was_rules.single_use and not now_rules.single_use:
                worst = _strictest(self._before.classes.get(now_rules.name), self._after.classes.get(now_rules.name))
                yield self._of_operation(owned, now_rules.name, "demand", "a token counts more than once", worst)

    def _identities(self) -> Iterator[Widening]:
        loosened = dict(loosened_identities(self._before.estate, self._after.estate))
        yield from self._administrators(loosened)
        if not loosened:
            return
        yield from self._servers(loosened)
        reach: dict[str, dict[tuple[str, str], list[str]]] = defaultdict(lambda: defaultdict(list))
        seen: dict[int, list[str]] = {}
        for name, inbound in self._after.inbound.items():
            owned = self._before.services.get(name) or self._after.services[name]
            for operation in inbound.operations:
                if id(operation.cells) not in seen:
                    seen[id(operation.cells)] = [c for c in holders(operation) if c in loosened]
                for caller in seen[id(operation.cells)]:
                    reach[caller][owned.domain, owned.owner].append(operation.name)
        for caller, why in loosened.items():
            for (domain, owner), operations in reach[caller].items():
                worst = _strictest(*(side.classes.get(o) for o in operations for side in (self._before, self._after)))
                more = f" and {len(operations) - 1} more" if len(operations) > 1 else ""
                yield Widening(
                    kind="identity",
                    subject=caller,
                    why=f"{why}; it may do {operations[0]}{more}",
                    domain=domain,
                    owner=owner,
                    sensitivity=worst,
                    needs=worst in RISKY,
                    gains=(Gain(caller=caller),),
                )

    def _administrators(self, loosened: Mapping[str, str]) -> Iterator[Widening]:
        """Who gets the identity of an administrator gets its rights, and its word."""
        settings = self._before.estate.settings
        names = {row.who for row in settings.administrators}.union(*(group.members for group in settings.groups))
        registered = {caller.spiffe_id for caller in self._before.estate.callers}
        new = {**{caller.spiffe_id: "it is registered" for caller in self._after.estate.callers}, **loosened}
        for name in sorted(names & new.keys()):
            if name in loosened or name not in registered:
                why = f"{new[name]}; it is an administrator"
                yield Widening(kind="identity", subject=name, why=why, needs=True, gains=(Gain(caller=name),))

    def _servers(self, loosened: Mapping[str, str]) -> Iterator[Widening]:
        """Who gets the identity of a service's workload answers in its name."""
        for name, was in self._before.services.items():
            now = self._after.services.get(name)
            if now is not None and now.workload in loosened:
                why = f"{loosened[now.workload]}; it answers in the name of {name}"
                yield self._of_service((was.domain, was.owner), was.operations, now, "answered-by", why, {})

    def _of_service(
        self,
        owned: tuple[str, str],
        operations: Sequence[Operation],
        now: Service,
        kind: str,
        why: str,
        risk: Mapping[str, str],
    ) -> Widening:
        names = {o.name for o in (*operations, *now.operations)}
        classes = [side.classes.get(name) for name in names for side in (self._before, self._after)]
        worst = _strictest(*classes, *risk.values())
        anybody = (Gain(caller=ANYBODY),) if kind == "mode" else ()
        return Widening(
            kind=kind,
            subject=now.service,
            why=why,
            domain=owned[0],
            owner=owned[1],
            sensitivity=worst,
            needs=worst in RISKY,
            gains=anybody,
        )

    @staticmethod
    def _of_operation(owned: tuple[str, str], name: str, kind: str, why: str, sensitivity: str) -> Widening:
        return Widening(
            kind=kind,
            subject=name,
            why=why,
            domain=owned[0],
            owner=owned[1],
            sensitivity=sensitivity,
            needs=sensitivity in RISKY,
        )


def _strictest(*classes: Sensitivity | str | None) -> str:
    """The strictest of the classes that are given; "" where none is."""
    known = [Sensitivity(one) for one in classes if one]
    return max(known, key=_STRICTNESS.__getitem__).value if known else ""
