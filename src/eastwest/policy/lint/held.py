"""Which policies hold at which questions: what the table does not tell, as it names one deciding policy each time.

Cedar is asked about each kind of caller, operation, tenant and token that policies can tell apart, permits and forbids
apart from each other. What comes out is few: sets of permits and forbids that hold together, and where.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import cedarpy
from cedarpy import pst

from eastwest.policy.analysis import Analysis, analyse
from eastwest.policy.cells import Slice, caller_texts
from eastwest.policy.estate import Demand, Estate, ForeignWorkload, Operation, Service, Workload
from eastwest.policy.judge import Entities, fresh_text
from eastwest.policy.lint.tree import Compared, compared_with_tenant, said_of
from eastwest.policy.operations import can_be_tenant, method_of, tenant_source
from eastwest.policy.schema import (
    ACTION,
    DOMAIN,
    ENVIRONMENT,
    RESERVED_ATTRIBUTES,
    SERVICE,
    WORKLOAD,
    cedar_entities,
    uid,
)

MAX_QUESTIONS = 20_000
"""About one kind of caller at one kind of operation; where there would be more, all that may hold counts as needed."""
BATCH = 5_000
"""Questions that are held as answers at one time."""
Policies = frozenset[str]
_NONE: Policies = frozenset()
Caller = Workload | ForeignWorkload


@dataclass(frozen=True, slots=True)
class Kind:
    """Callers that policies cannot tell apart."""

    callers: tuple[Caller, ...]

    @property
    def first(self) -> Caller:
        """The one that is asked about."""
        return self.callers[0]


@dataclass(frozen=True, slots=True)
class Alike:
    """Operations at which the same policies may hold, and nothing that these look at differs."""

    operations: list[tuple[Service, Operation]]


@dataclass(frozen=True, slots=True)
class Holding:
    """Permits and forbids that hold together for a kind of caller at some operations, for some tenant and token.

    Only questions that the operations' own demands let through are asked. Where forbids hold, permits that are known to
    allow something elsewhere may be missing.
    """

    kind: Kind
    places: list[Alike]
    permits: Policies
    forbids: Policies

    @property
    def allowed(self) -> bool:
        """Whether the call is."""
        return bool(self.permits) and not self.forbids

    @property
    def operations(self) -> Iterator[tuple[Service, Operation]]:
        """Where."""
        for place in self.places:
            yield from place.operations


@dataclass(frozen=True, slots=True)
class Held:
    """All that holds where a permit may. ``unasked``: policies that fail, or that tell too much apart to be asked.

    ``forbidding``: sets of forbids that hold together somewhere, with a permit or without; where each is alone
    somewhere, larger sets may be missing.
    """

    holdings: tuple[Holding, ...]
    unasked: Policies
    forbidding: frozenset[Policies]


def what_holds(estate: Estate, callers: Collection[Caller] | None = None) -> Held:
    """Ask about the whole estate; or only about some ``callers`` of it, and then only what they are allowed.

    Rules in report mode are left out, as they decide nothing.
    """
    asking = _Asking(estate, estate.callers if callers is None else callers)
    if callers is not None:
        asking.alive.update(policy.id for policy in estate.policies)
    return asking.all()


_Found = frozenset[tuple[Policies, Policies]]
_Head = dict[tuple[str, str] | None, int]


class _Asking:
    def __init__(self, estate: Estate, callers: Collection[Caller]) -> None:
        self._estate = estate
        self._callers = callers
        self.alive: set[str] = set()
        """Permits of which nothing more is to be found out where a forbid holds."""
        self._policies = [analyse(policy) for policy in estate.policies if not policy.report]
        self._entities = Entities(estate.schema, cedar_entities(estate))
        self._environments = {w.spiffe_id: w.environment for w in estate.workloads}
        self._parts: dict[int, _Part] = {}
        self._texts = frozenset(t for caller in estate.callers for t in caller_texts(caller)) | frozenset(
            service.owner for service in estate.services
        )
        self._permits = sum(1 << i for i, p in enumerate(self._policies) if p.policy.effect == "permit")
        self._bit = {p.policy.id: 1 << i for i, p in enumerate(self._policies)}

    def all(self) -> Held:
        """Questions that no policy tells apart are asked once."""
        kinds: dict[int, list[Kind]] = {}
        for kind in _kinds(self._callers, self._policies):
            kinds.setdefault(self._admitting(kind), []).append(kind)
        answers: dict[tuple[int, Hashable], tuple[Kind, _Found, list[Alike]]] = {}
        unasked: set[str] = set()
        forbidding: set[Policies] = set()
        settled = 0  # forbids of which nothing more is to be found out where no permit may hold
        for chosen, place in self._places():
            for mask, members in kinds.items():
                applying = chosen & mask
                if not applying & (self._permits | ~settled):
                    continue
                part = self._part(applying)
                key = self._key(applying, *place.operations[0])
                fresh: dict[Hashable, list[Kind]] = {}
                for kind in members:
                    known = answers.get((id(kind), key))
                    if known is None:
                        fresh.setdefault(part.seen_of(kind), []).append(kind)
                    else:
                        known[2].append(place)
                first = [alike[0] for alike in fresh.values()]
                told = self._ask(part, first, *place.operations[0])
                for alike, found in zip(fresh.values(), told, strict=True):
                    for kind in alike:
                        answers[id(kind), key] = kind, found or frozenset(), [place]
                    if found is None:
                        unasked |= {policy.policy.id for policy in part.policies}
                    for _, forbids in found or ():
                        forbidding.add(forbids)
                        if len(forbids) == 1:
                            settled |= self._bit[next(iter(forbids))]
        for part in self._parts.values():
            unasked |= part.failing
        holdings = [
            Holding(kind, places, permits, forbids)
            for kind, found, places in answers.values()
            for permits, forbids in found
            if permits
        ]
        return Held(tuple(holdings), frozenset(unasked), frozenset(forbidding - {frozenset()}))

    def _places(self) -> Iterator[tuple[int, Alike]]:
        alike: dict[Hashable, tuple[int, Alike]] = {}
        for service in self._estate.services:
            for operation in service.operations:
                chosen = 0 if operation.sensitivity is None else self._applying(service, operation)
                if chosen:
                    key = self._key(chosen, service, operation)
                    alike.setdefault(key, (chosen, Alike([])))[1].operations.append((service, operation))
        yield from alike.values()

    def _admitting(self, kind: Kind) -> int:
        """The policies whose head lets callers of a kind through."""
        mask = self._heads[0].get(None, 0)
        for name in _names(kind):
            mask |= self._heads[0].get(name, 0)
        return mask

    @cached_property
    def _heads(self) -> tuple[_Head, _Head, _Head]:
        """For the three lines of heads: which policies each name lets through, one bit each; None: every name."""
        found: tuple[_Head, _Head, _Head] = ({}, {}, {})
        for i, policy in enumerate(self._policies):
            for heads, scope in zip(found, (policy.principal, policy.action, policy.resource), strict=True):
                for name in () if scope.never else [None] if scope.among is None else scope.among:
                    heads[name] = heads.get(name, 0) | 1 << i
        return found

    def _applying(self, service: Service, operation: Operation) -> int:
        here = self._environments[service.workload]
        action = ((ACTION, operation.name), (ACTION, str(operation.sensitivity)))
        resource = ((SERVICE, service.service), (DOMAIN, service.domain), (ENVIRONMENT, here))
        masks = []
        for heads, names in zip(self._heads[1:], (action, resource), strict=True):
            mask = heads.get(None, 0)
            for name in names:
                mask |= heads.get(name, 0)
            masks.append(mask)
        return masks[0] & masks[1]

    def _part(self, chosen: int) -> _Part:
        if chosen not in self._parts:
            self._parts[chosen] = _Part(
                [p for i, p in enumerate(self._policies) if chosen >> i & 1], self._entities, self.alive
            )
        return self._parts[chosen]

    def _key(self, chosen: int, service: Service, operation: Operation) -> Hashable:
        """All that answers of these policies can depend on, apart from the caller."""
        part, source = self._part(chosen).slice, tenant_source(service, operation)
        named = part.by_operation or part.by_world
        return (
            chosen,
            self._environments[service.workload] if "environment" in part.of_service else "",
            service.domain if "domain" in part.of_service else "",
            service.owner if "owner" in part.of_service else "",
            None if source is None else (bool(source.path), source.claim),
            operation.demands,
            (operation.name, operation.sensitivity) if named else "",
            service.service if part.by_service or part.by_world else "",
            method_of(operation) if part.by_method else "",
        )

    def _ask(
        self, part: _Part, kinds: Sequence[Kind], service: Service, operation: Operation
    ) -> Iterator[_Found | None]:
        """What holds for each kind; None where that would take too many questions."""
        questions = [self._questions(part, kind, service, operation) for kind in kinds]
        every = [question for some in questions for question in some or ()]
        answers = part.holding(every)
        for some in questions:
            if some is None:
                yield None
                continue
            # A call at which a policy fails is refused, whatever else holds.
            yield frozenset(told for told in itertools.islice(answers, len(some)) if told is not None)

    def _questions(
        self, part: _Part, kind: Kind, service: Service, operation: Operation
    ) -> list[dict[str, Any]] | None:
        source = tenant_source(service, operation)
        texts = part.slice.texts | part.texts_of(kind) | {service.owner, method_of(operation)}
        if part.slice.reads_others:
            texts |= self._texts
        if part.slice.uses_tokens:
            texts |= {operation.name, service.service}
        tenants: list[str | None] = [None]
        if source is not None:
            said = part.tenants_of(kind)
            named = sorted(t for t in (texts if said is None else said) if can_be_tenant(source, t))
            tenants = [fresh_text("any-other", texts), *named]
        tokens = list(_tokens(part, texts, operation))
        if len(tenants) * len(tokens) > MAX_QUESTIONS:
            return None
        return [
            _question(kind.first.spiffe_id, service, operation, tenant, token) for tenant in tenants for token in tokens
        ]


class _Part:
    """Policies that may hold together, ready to be asked."""

    def __init__(self, policies: Sequence[Analysis], entities: Entities, alive: set[str]) -> None:
        self.policies = policies
        self.slice = Slice(policies, entities)
        self._entities = entities
        self._alive = alive
        self._permits = [p for p in policies if p.policy.effect == "permit"]
        self.failing: set[str] = set()
        self._sets: dict[bool, cedarpy.PolicySet] = {}
        said = [said_of(p.policy) for p in policies]
        self._whole = any(one.principal_itself for one in said) or self.slice.reads_others
        bound = {"tenants"} if any(p.is_bound for p in policies) else set()
        self._looks = tuple(sorted(bound.union(*(one.principal_attributes for one in said))))

    def seen_of(self, kind: Kind) -> Hashable:
        """What these policies can see of a caller, apart from their heads."""
        if self._whole:
            return id(kind)
        return tuple(_values(kind.first, name) for name in self._looks)

    def texts_of(self, kind: Kind) -> frozenset[str]:
        """What they can compare of it with something else."""
        if self._whole:
            return frozenset(caller_texts(kind.first))
        return frozenset(text for name in self._looks for text in _values(kind.first, name) or ())

    @cached_property
    def _compared(self) -> list[Compared | None]:
        return [compared_with_tenant(policy.tree) for policy in self.policies]

    def tenants_of(self, kind: Kind) -> frozenset[str] | None:
        """Texts that they may compare the tenant with; None: any that there is."""
        if not self.slice.uses_tenant:
            return frozenset()
        compared = self._compared
        if self.slice.uses_tokens or any(one is None for one in compared):
            return None
        names = {name for one in compared if one is not None for name in one.attributes}
        texts = {text for one in compared if one is not None for text in one.texts}
        return frozenset(texts.union(*(_values(kind.first, name) or () for name in names)))

    def holding(self, questions: Sequence[dict[str, Any]]) -> Iterator[tuple[Policies, Policies] | None]:
        """Permits and forbids that hold at each question; None where a policy fails, which ``failing`` then has."""
        for start in range(0, len(questions), BATCH):
            some = list(questions[start : start + BATCH])
            answers = self._asked(some, permits=False)
            # Cedar names forbids alone where one holds: only then are permits asked by themselves.
            self._alive.update(name for answer in answers if answer.allowed for name in answer.reasons)
            forbidden = [i for i, answer in enumerate(answers) if answer.reasons and not answer.allowed]
            if self._alive.issuperset(p.policy.id for p in self._permits):
                forbidden = []
            again = self._asked([some[i] for i in forbidden], permits=True) if forbidden else []
            permits = dict(zip(forbidden, again, strict=False))
            for i, answer in enumerate(answers):
                if answer.failed:
                    yield None
                elif answer.allowed:
                    yield answer.reasons, _NONE
                else:
                    yield (permits[i].reasons if i in permits else _NONE), answer.reasons

    def _asked(self, questions: list[dict[str, Any]], *, permits: bool) -> list[_Told]:
        if permits not in self._sets:
            chosen = self._permits if permits else self.policies
            trees = {p.policy.id: replace(p.tree, id=p.policy.id) for p in chosen}
            whole = pst.PolicySet(templates={}, static_policies=trees, template_links=())
            self._sets[permits] = cedarpy.PolicySet.from_pst(whole)
        found = []
        for answer in cedarpy.is_authorized_batch(questions, self._sets[permits], self._entities.handle, None):
            errors = answer.diagnostics.errors
            for error in errors:
                self.failing |= {p.policy.id for p in self.policies if f"`{p.policy.id}`" in error}
            found.append(_Told(answer.allowed, frozenset(answer.diagnostics.reasons), bool(errors)))
        return found


class _Told(NamedTuple):
    allowed: bool
    reasons: Policies
    failed: bool


def _values(caller: Caller, name: str) -> tuple[str, ...] | None:
    """What a caller's attribute says, sorted; None where it has none."""
    value = getattr(caller, name) if name in RESERVED_ATTRIBUTES else caller.attributes.get(name)
    return (value,) if isinstance(value, str) else None if value is None else tuple(sorted(value))


def _tokens(part: _Part, texts: Iterable[str], operation: Operation) -> Iterator[tuple[str, str] | None]:
    """Kinds of tokens that make a difference: None, and pairs of approver and origin; only those that suffice."""
    wanted = set(operation.demands)
    if not wanted:
        yield None
    if not wanted and not part.slice.uses_tokens:
        return
    known = frozenset(texts)
    open_ended = any(p.reads_attributes for p in part.policies)
    literals = sorted(part.slice.texts | known if open_ended else part.slice.texts)
    approvers = [fresh_text("any-approver", known)]
    approvers += [t for t in literals if t] if any(p.reads_approver for p in part.policies) else []
    if Demand.APPROVAL not in wanted:
        approvers.insert(0, "")
    origins = [fresh_text("any-origin", known)]
    origins += literals if any(p.reads_origin for p in part.policies) else []
    yield from ((approver, origin) for approver in approvers for origin in origins)


def _question(
    caller: str, service: Service, operation: Operation, tenant: str | None, token: tuple[str, str] | None
) -> dict[str, Any]:
    of_tenant = {} if tenant is None else {"tenant": tenant}
    context: dict[str, Any] = {"path": "/", "method": method_of(operation)} | of_tenant
    if token is not None:
        approver, origin = token
        said = {"action": operation.name, "resource": service.service, "approver": approver}
        context["step_up"] = said | of_tenant
        context["transaction"] = {"id": "transaction", "origin": origin}
        if approver:
            context["approval"] = {"id": "approval", "approver": approver}
    return {
        "principal": uid(WORKLOAD, caller),
        "action": uid(ACTION, operation.name),
        "resource": uid(SERVICE, service.service),
        "context": json.dumps(context),
    }


def _kinds(callers: Iterable[Caller], policies: Sequence[Analysis]) -> Iterator[Kind]:
    named = frozenset(name for p in policies for name in p.callers)
    groups: dict[Hashable, list[Caller]] = {}
    for caller in callers:
        said = tuple(sorted((k, v if isinstance(v, str) else tuple(sorted(v))) for k, v in caller.attributes.items()))
        alone = caller.spiffe_id if caller.spiffe_id in named else ""
        key = (caller.environment, caller.domain, caller.owner, said, alone)
        groups.setdefault(key, []).append(caller)
    for members in groups.values():
        yield Kind(tuple(members))


def _names(kind: Kind) -> frozenset[tuple[str, str]]:
    first = kind.first
    return frozenset({(WORKLOAD, first.spiffe_id), (DOMAIN, first.domain), (ENVIRONMENT, first.environment)})
