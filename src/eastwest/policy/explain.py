"""Why a call is allowed or refused: which policy, which of its parts, and which single change would make it pass.

Nothing is concluded by reading policies: Cedar is asked about each part of each, and what is said to unlock a call has
been looked up in the table that sidecars enforce, or, where it is a change of the estate, asked of Cedar with it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from eastwest.errors import NotFound
from eastwest.policy.analysis import analyse
from eastwest.policy.cells import caller_texts
from eastwest.policy.enforcement import DecisionCode, Inbound, MtlsMode, OperationRules, Rule, Verdict
from eastwest.policy.estate import Estate, ForeignWorkload, Operation, Policy, Service, Workload
from eastwest.policy.explain_codes import MEANING
from eastwest.policy.judge import Brought, Entities, Request, cedar_request, fresh_text
from eastwest.policy.operations import can_be_tenant, match_text, matcher, method_of, tenant_source, wire_form
from eastwest.policy.oracle import Call, Decision, Oracle, in_table
from eastwest.policy.parts_of_policies import Part, conditions_of, parts_of
from eastwest.policy.problems import suggest, suggest_id
from eastwest.policy.schema import ACTION, DOMAIN, ENVIRONMENT, SERVICE, WORKLOAD, cedar_entities, cedar_schema
from eastwest.policy.table import CompiledPolicy
from eastwest.policy.transaction import NoToken, Presented, Token

MAX_NAMED = 10
"""Tenants, approvers and callers that an explanation lists at most."""
_FILLER = "any"
_CERTIFICATE = "0" * 64
_NEVER = 1 << 40
Unlocking = Literal["step-up", "approval", "origin", "tenant", "attribute", "caller", "policy"]


class Asked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call, made or thought of. ``tenant`` "" where it names none; ``token`` where it brings one made for it."""

    caller: str = ""  # SPIFFE ID; "" where the peer proved nothing
    service: str = ""
    operation: str = ""
    tenant: str = ""
    method: str = ""
    path: str = ""
    token: bool = False
    approver: str = ""
    origin: str = ""  # "" is the caller itself


class Applied(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A policy as it stands to the call: all parts that do not hold, or those that do where all of them do."""

    policy: str
    effect: str
    where: str
    reason: str
    applies: bool
    parts: tuple[Part, ...] = ()
    report: bool = False


class Unlock(msgspec.Struct, frozen=True, kw_only=True):
    """A change with which the call would be allowed; of two that are needed together, the first. It was tried."""

    change: Unlocking
    value: str
    sentence: str


class Opinion(msgspec.Struct, frozen=True, kw_only=True):
    """What rules in report mode would make of the call."""

    verdict: Verdict
    code: DecisionCode
    policy: str
    where: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An answer with its reasons; for administrators, never for the caller."""

    asked: Asked
    version: str
    verdict: Verdict
    code: DecisionCode
    meaning: str
    fix: str
    enforced: bool  # false: only reported, as the service is permissive
    policy: str = ""
    where: str = ""
    deciding: Applied | None = None
    forbids: tuple[Applied, ...] = ()  # that apply
    nearest: Applied | None = None  # the permit about this operation, if any is, that fails in the fewest parts
    unlocks: tuple[Unlock, ...] = ()
    together: tuple[Unlock, ...] = ()  # where no single change does: another tenant or caller, and a token
    step_up: bool = False  # a transaction token alone would unlock it
    approval: bool = False  # a token with somebody's approval would
    report: Opinion | None = None
    hints: tuple[str, ...] = ()


class Explainer:
    """Explains calls of one estate."""

    def __init__(self, estate: Estate, compiled: CompiledPolicy) -> None:
        """``compiled`` is the estate's."""
        self._estate = estate
        self.compiled = compiled
        self._services = {service.service: service for service in estate.services}
        self._callers = {caller.spiffe_id: caller for caller in estate.callers}
        self._environments = {w.spiffe_id: w.environment for w in estate.workloads}
        self._operations = {o.name: (s, o) for s in estate.services for o in s.operations}
        self._inbound = {i.service: i for s in compiled.sidecars.values() for i in s.inbound}
        self._policies = {policy.id: policy for policy in estate.policies}
        self._entities: Entities | None = None

    def explain(self, asked: Asked, told: DecisionCode | None = None, cause: str = "") -> Explanation:
        """Explain a call.

        ``told``: the code that it got where that was no matter of policy, such as a failed handshake or a used token,
        and ``cause`` the record's. Raises ``NotFound`` for a service or operation that the estate does not have.
        """
        asked = self._completed(asked)
        inbound = self._served(asked.service)
        if told is not None and told not in _OF_POLICY:
            plain = self._plain(asked, inbound, told, self._hints(asked, inbound, told, cause))
            return self._with_a_good_token(plain, inbound) if told in _OF_THE_TOKEN else plain
        if not asked.caller:
            code = DecisionCode.MTLS_REQUIRED
            return self._plain(asked, inbound, code, self._hints(asked, inbound, code, cause))
        if asked.caller not in self._callers:
            code = DecisionCode.UNKNOWN_CALLER
            return self._plain(asked, inbound, code, self._hints(asked, inbound, code, cause))
        if not asked.operation:
            code = DecisionCode.UNLISTED_OPERATION
            return self._plain(asked, inbound, code, self._hints(asked, inbound, code, cause))
        return self._decided(asked, inbound)

    def decision(self, asked: Asked, *, report: bool = False) -> Decision:
        """What the table says of a call of a registered caller and a listed operation."""
        inbound = self._served(asked.service)
        service, operation = self._operations[asked.operation]
        rules = (inbound.report or inbound.operations) if report else inbound.operations
        found = next(rule for rule in rules if rule.name == operation.name)
        return in_table(found, *_call(service, operation, asked))

    # Without a policy

    def _plain(self, asked: Asked, inbound: Inbound, code: DecisionCode, hints: Iterable[str]) -> Explanation:
        meaning, fix = MEANING[code]
        return Explanation(
            asked=asked,
            version=self.compiled.version,
            verdict=Verdict.ALLOW if code is DecisionCode.ALLOWED else Verdict.DENY,
            code=code,
            meaning=meaning,
            fix=fix,
            enforced=inbound.mode is not MtlsMode.PERMISSIVE or code in _IN_EVERY_MODE,
            hints=tuple(hints),
        )

    def _hints(self, asked: Asked, inbound: Inbound, code: DecisionCode, cause: str) -> Iterator[str]:
        if cause:
            yield f"cause: {cause}"
        if code is DecisionCode.UNKNOWN_CALLER:
            yield suggest_id(asked.caller, self._callers, otherwise=f"no registered name is like {asked.caller}")
        if code is DecisionCode.UNLISTED_OPERATION:
            yield from _nearest_listed(asked, inbound)
        if code.startswith("TOKEN_") and asked.operation in self._operations:
            good = msgspec.structs.replace(asked, token=True)
            if asked.caller in self._callers and self.decision(good)[0] is Verdict.ALLOW:
                yield "a token made for this call, brought by this caller with its present certificate, would count"

    def _completed(self, asked: Asked) -> Asked:
        if not asked.operation:
            return asked
        if asked.operation not in self._operations:
            fix = suggest(asked.operation, self._operations, otherwise="eastwest explain names an operation")
            raise NotFound(f"the estate has no operation {asked.operation[:80]!r}", fix=fix)
        service, operation = self._operations[asked.operation]
        return msgspec.structs.replace(asked, service=service.service, method=method_of(operation))

    def _served(self, service: str) -> Inbound:
        if service not in self._inbound:
            raise NotFound(f"the estate has no service {service[:80]!r}", fix=suggest(service, self._inbound))
        return self._inbound[service]

    # With policies

    def _decided(self, asked: Asked, inbound: Inbound) -> Explanation:
        verdict, code, policy, _ = self.decision(asked)
        service, operation = self._operations[asked.operation]
        told = self._plain(asked, inbound, code, self._about(asked, service, operation, code))
        if operation.sensitivity is None:
            return told
        applied = self.applied(asked, service, operation)
        enforced = [one for one in applied if not one.report]
        forbids = tuple(one for one in enforced if one.effect == "forbid" and one.applies)
        deciding = next((one for one in enforced if one.policy == policy), None)
        nearest = None
        permits = [one for one in enforced if one.effect == "permit"]
        # Where one applies it is a forbid, or what the operation demands, that stands in the way.
        if verdict is Verdict.DENY and not any(one.applies for one in permits):
            nearest = min(permits, key=lambda one: (_distance(one), one.policy), default=None)
            if deciding is not None and deciding.effect == "permit":
                nearest = deciding  # with a token it would apply
        unlocks = tuple(self._unlocks(asked, service, operation, forbids, nearest)) if verdict is Verdict.DENY else ()
        together = tuple(self._together(asked, service, operation)) if verdict is Verdict.DENY and not unlocks else ()
        step_up = any(one.change == "step-up" for one in unlocks)
        meaning, fix = told.meaning, told.fix
        if code is DecisionCode.STEP_UP_REQUIRED and not step_up:
            # The first of several things that are wanting.
            meaning, fix = "it needs a transaction token for this call, and more than that: see what unlocks it", ""
            if any(one.change == "approval" for one in unlocks):
                meaning, fix = "it needs a transaction token for this call that somebody has approved", _APPROVED_FIX
        return msgspec.structs.replace(
            told,
            meaning=meaning,
            fix=fix,
            policy=policy,
            where=self._place(policy),
            deciding=deciding,
            forbids=forbids,
            nearest=nearest,
            unlocks=unlocks,
            together=together,
            step_up=step_up,
            approval=any(one.change == "approval" for one in unlocks),
            report=self._opinion(asked, inbound, code),
        )

    def _about(self, asked: Asked, service: Service, operation: Operation, code: DecisionCode) -> Iterator[str]:
        source = tenant_source(service, operation)
        if code is DecisionCode.TENANT_MISSING and source is not None:
            where = (
                "in its transaction token"
                if source.claim
                else f"in the header {source.header}, once"
                if source.header
                else f"in the path, as {{{source.path}}}"
            )
            yield f"{operation.name} looks for the tenant {where}"
        if code in {DecisionCode.STEP_UP_REQUIRED, DecisionCode.APPROVAL_REQUIRED} and operation.demands:
            yield f"{operation.name} demands {', '.join(operation.demands)} of whoever is permitted"
        if asked.tenant and source is None:
            yield f"{operation.name} is not per tenant, so no tenant can make a difference"
        elif asked.tenant and source is not None and not can_be_tenant(source, asked.tenant):
            yield f"{asked.tenant[:80]!r} is nothing that a request can name as its tenant"

    def _opinion(self, asked: Asked, inbound: Inbound, code: DecisionCode) -> Opinion | None:
        if not inbound.report:
            return None
        verdict, other, policy, _ = self.decision(asked, report=True)
        if other is code:
            return None
        return Opinion(verdict=verdict, code=other, policy=policy, where=self._place(policy))

    def _place(self, policy: str) -> str:
        return str(self._estate.position("policy", policy)) if policy in self._policies else ""

    def applied(self, asked: Asked, service: Service, operation: Operation) -> list[Applied]:
        """Every policy as it stands to the call."""
        caller = self._callers[asked.caller]
        here = self._environments[service.workload]
        sensitivity = operation.sensitivity.value if operation.sensitivity is not None else ""
        names = {
            "principal": frozenset(
                {(WORKLOAD, caller.spiffe_id), (DOMAIN, caller.domain), (ENVIRONMENT, caller.environment)}
            ),
            "action": frozenset({(ACTION, operation.name), (ACTION, sensitivity)}),
            "resource": frozenset({(SERVICE, service.service), (DOMAIN, service.domain), (ENVIRONMENT, here)}),
        }
        request = cedar_request(*self._request(asked, service, operation))
        said = {
            "principal": {
                **caller.attributes,
                "environment": caller.environment,
                "domain": caller.domain,
                "owner": caller.owner,
            },
            "resource": {"environment": here, "domain": service.domain, "owner": service.owner},
            "context": msgspec.json.decode(request["context"]),
        }
        if self._entities is None:
            self._entities = Entities(self._estate.schema, cedar_entities(self._estate))
        placed = [(policy, self._estate.position("policy", policy.id)) for policy in self._estate.policies]
        conditions = conditions_of(placed, request, self._entities, said)
        found = []
        for policy, start in placed:
            parts = [*parts_of(policy, start, names), *conditions[policy.id]]
            failed = tuple(part for part in parts if not part.holds)
            found.append(
                Applied(
                    policy=policy.id,
                    effect=policy.effect,
                    where=str(start),
                    reason=policy.reason,
                    applies=not failed,
                    parts=failed or tuple(parts),
                    report=policy.report,
                )
            )
        return found

    @staticmethod
    def _request(asked: Asked, service: Service, operation: Operation) -> tuple[Request, Brought | None]:
        tenant = asked.tenant if tenant_source(service, operation) is not None and asked.tenant else None
        brought = Brought(asked.approver, asked.origin or asked.caller) if asked.token else None
        return (
            Request(
                caller=asked.caller,
                operation=operation.name,
                service=service.service,
                method=method_of(operation),
                path="/",
                tenant=tenant,
                demands=operation.demands,
            ),
            brought,
        )

    def _with_a_good_token(self, plain: Explanation, inbound: Inbound) -> Explanation:
        """The refusal of a token, with what policies say of the call without it, and which tokens would count."""
        asked = msgspec.structs.replace(plain.asked, token=False, approver="", origin="")
        if asked.caller not in self._callers or asked.operation not in self._operations:
            return plain
        found = self._decided(asked, inbound)
        if found.verdict is Verdict.ALLOW:
            return plain
        unlocks = tuple(one for one in found.unlocks if one.change in {"step-up", "approval", "origin"})
        return msgspec.structs.replace(
            found,
            asked=plain.asked,
            code=plain.code,
            meaning=plain.meaning,
            fix=plain.fix,
            enforced=plain.enforced,
            hints=plain.hints,
            unlocks=unlocks,
            together=(),
            report=None,
        )

    # What would help

    def _unlocks(
        self,
        asked: Asked,
        service: Service,
        operation: Operation,
        forbids: tuple[Applied, ...],
        nearest: Applied | None,
    ) -> Iterator[Unlock]:
        changes = [*self._by_token(asked, service, operation), *self._by_tenant(asked, service, operation)]
        changes += self._by_caller(asked, service, operation)
        count: dict[str, int] = {}
        for changed, unlock in changes:
            if count.get(unlock.change, 0) < MAX_NAMED and self.decision(changed)[0] is Verdict.ALLOW:
                count[unlock.change] = count.get(unlock.change, 0) + 1
                yield unlock
        yield from self._by_estate(asked, service, operation, forbids, nearest)

    def _together(self, asked: Asked, service: Service, operation: Operation) -> Iterator[Unlock]:
        """Another tenant, or another caller, with a token: what no single change of the call does."""
        count = 0
        for changed, first in [
            *self._by_tenant(asked, service, operation),
            *self._by_caller(asked, service, operation),
        ]:
            for both, second in self._by_token(changed, service, operation):
                if self.decision(both)[0] is Verdict.ALLOW:
                    yield msgspec.structs.replace(first, sentence=f"{first.sentence}, {second.sentence}")
                    count += 1
                    break  # the least that does
            if count >= MAX_NAMED:
                return

    def _by_token(self, asked: Asked, service: Service, operation: Operation) -> Iterator[tuple[Asked, Unlock]]:
        if operation.match.tcp:
            return  # a connection brings no token
        change = msgspec.structs.replace
        names = self._texts(asked, service, operation)
        if not asked.token:
            sentence = "with a transaction token for this call (step-up)"
            yield change(asked, token=True), Unlock(change="step-up", value="", sentence=sentence)
        if not asked.approver:
            anybody = fresh_text("any-approver", names)
            for approver in (anybody, *_approvers(self._rules(service, operation))):
                who = "anybody who may" if approver == anybody else approver
                yield (
                    change(asked, token=True, approver=approver),
                    Unlock(change="approval", value=who, sentence=f"with a token that {who} has approved"),
                )
        for origin in _origins(self._rules(service, operation)):
            yield (
                change(asked, token=True, origin=origin),
                Unlock(change="origin", value=origin, sentence=f"with a token of a transaction that {origin} began"),
            )

    def _by_tenant(self, asked: Asked, service: Service, operation: Operation) -> Iterator[tuple[Asked, Unlock]]:
        source = tenant_source(service, operation)
        if source is None:
            return
        rules = self._rules(service, operation)
        cell = next((cell for cell in rules.cells if asked.caller in cell.callers), None)
        named = sorted(cell.tenants.by_tenant) if cell is not None and cell.tenants is not None else []
        own = self._callers[asked.caller].attributes.get("tenants", ())
        others = [*named, *(own if not isinstance(own, str) else (own,))]
        for tenant in dict.fromkeys(others):
            if tenant != asked.tenant and can_be_tenant(source, tenant):
                yield (
                    msgspec.structs.replace(asked, tenant=tenant),
                    Unlock(change="tenant", value=tenant, sentence=f"for the tenant {tenant}"),
                )
        if not asked.tenant:
            other = fresh_text("any-other", self._texts(asked, service, operation))
            yield (
                msgspec.structs.replace(asked, tenant=other),
                Unlock(change="tenant", value="any other", sentence="for any tenant that no policy names"),
            )

    def _by_caller(self, asked: Asked, service: Service, operation: Operation) -> Iterator[tuple[Asked, Unlock]]:
        cells = self._rules(service, operation).cells
        for caller in (caller for cell in cells for caller in cell.callers[:MAX_NAMED]):
            if caller != asked.caller:
                sentence = f"asked by {caller}"
                yield (
                    msgspec.structs.replace(asked, caller=caller),
                    Unlock(change="caller", value=caller, sentence=sentence),
                )

    def _by_estate(
        self,
        asked: Asked,
        service: Service,
        operation: Operation,
        forbids: tuple[Applied, ...],
        nearest: Applied | None,
    ) -> Iterator[Unlock]:
        """Changes of the estate, tried with Cedar itself."""
        caller = self._callers[asked.caller]
        if forbids and len({one.policy for one in forbids}) == 1:
            without = tuple(p for p in self._estate.policies if p.id != forbids[0].policy)
            if self._allows(msgspec.structs.replace(self._estate, policies=without), asked, service, operation):
                name = forbids[0].policy
                yield Unlock(change="policy", value=name, sentence=f"without the policy {name} ({forbids[0].where})")
        for name, value in self._attributes(asked, caller, nearest):
            changed = msgspec.structs.replace(caller, attributes={**caller.attributes, name: value})
            if self._allows(self.with_caller(changed), asked, service, operation):
                shown = value if isinstance(value, str) else ", ".join(value)
                yield Unlock(
                    change="attribute",
                    value=f"{name}: {shown}",
                    sentence=f"if {caller.spiffe_id} had the attribute {name}: {shown}",
                )

    def _attributes(
        self, asked: Asked, caller: Workload | ForeignWorkload, nearest: Applied | None
    ) -> Iterator[tuple[str, str | tuple[str, ...]]]:
        """What the caller's attributes might be, by the parts of the nearest permit that read them."""
        read = {
            path.split(".")[1]
            for part in (nearest.parts if nearest is not None else ())
            for path in part.values
            if path.startswith("principal.")
        }
        if asked.tenant and (not read or "tenants" in read or any(p.kind == "tenants" for p in _parts(nearest))):
            own = caller.attributes.get("tenants", ())
            yield "tenants", (*((own,) if isinstance(own, str) else own), asked.tenant)
        texts = sorted(_literals(self._policies[nearest.policy])) if nearest is not None else []
        kinds = {name: value for other in self._estate.callers for name, value in other.attributes.items()}
        for name in sorted(read - {"environment", "domain", "owner", "tenants"}):
            for text in texts[:MAX_NAMED]:
                as_text = isinstance(kinds.get(name, ""), str)
                held = caller.attributes.get(name, ())
                yield name, text if as_text else (*((held,) if isinstance(held, str) else held), text)

    def with_caller(self, changed: Workload | ForeignWorkload) -> Estate:
        """The estate with other attributes of a caller."""
        estate = self._replaced(changed)
        return msgspec.structs.replace(estate, schema=cedar_schema(estate.services, estate.callers))

    def _replaced(self, changed: Workload | ForeignWorkload) -> Estate:
        replace = msgspec.structs.replace
        if isinstance(changed, Workload):
            mine = tuple(changed if w.spiffe_id == changed.spiffe_id else w for w in self._estate.workloads)
            return replace(self._estate, workloads=mine)
        registered = tuple(changed if w.spiffe_id == changed.spiffe_id else w for w in self._estate.registered)
        federation = tuple(
            replace(one, workloads=tuple(changed if w.spiffe_id == changed.spiffe_id else w for w in one.workloads))
            for one in self._estate.settings.federation
        )
        settings = replace(self._estate.settings, federation=federation)
        return replace(self._estate, registered=registered, settings=settings)

    @staticmethod
    def _allows(estate: Estate, asked: Asked, service: Service, operation: Operation) -> bool:
        return Oracle(estate).at(operation, *_call(service, operation, asked))[0] is Verdict.ALLOW

    def _rules(self, service: Service, operation: Operation) -> OperationRules:
        return next(o for o in self._inbound[service.service].operations if o.name == operation.name)

    def _texts(self, asked: Asked, service: Service, operation: Operation) -> set[str]:
        every = {text for policy in self._estate.policies for text in _literals(policy)}
        return every | {*caller_texts(self._callers[asked.caller]), service.owner, operation.name, service.service}


_OF_POLICY = frozenset(
    {
        DecisionCode.ALLOWED,
        DecisionCode.OPERATION_NOT_PERMITTED,
        DecisionCode.FORBIDDEN_BY_POLICY,
        DecisionCode.TENANT_MISSING,
        DecisionCode.TENANT_NOT_PERMITTED,
        DecisionCode.STEP_UP_REQUIRED,
        DecisionCode.APPROVAL_REQUIRED,
        DecisionCode.POLICY_ERROR,
        DecisionCode.UNCLASSIFIED_OPERATION,
    }
)
"""Codes that policies and the table give; all others are about connections, tokens and states."""


_OF_THE_TOKEN = frozenset(
    {
        DecisionCode.TOKEN_INVALID,
        DecisionCode.TOKEN_EXPIRED,
        DecisionCode.TOKEN_WRONG_ACTION,
        DecisionCode.TOKEN_WRONG_RESOURCE,
        DecisionCode.TOKEN_WRONG_CALLER,
        DecisionCode.TOKEN_WRONG_KEY,
        DecisionCode.TOKEN_WRONG_TENANT,
        DecisionCode.TOKEN_USED,
    }
)
"""Codes of calls that another token would have let in, or may have."""
_APPROVED_FIX = MEANING[DecisionCode.APPROVAL_REQUIRED][1]


_IN_EVERY_MODE = frozenset(
    {
        DecisionCode.CERTIFICATE_REFUSED,
        DecisionCode.SERVER_REFUSED,
        DecisionCode.CALLER_CONTAINED,
        DecisionCode.TOKEN_CONTAINED,
        DecisionCode.IDENTITY_CONTAINED,
    }
)
"""Codes of refusals that permissive services make too: handshakes that fail, and who is contained."""


def _call(service: Service, operation: Operation, asked: Asked) -> tuple[Call, dict[str, str]]:
    """The call as an enforcement point sees it, and its path's parameters."""
    source = tenant_source(service, operation)
    form = wire_form(matcher(operation))
    parameters: dict[str, str] = {}
    method = path = ""
    headers: tuple[tuple[str, str], ...] = ()
    if form is not None:
        method = form[0]
        parameters = dict.fromkeys(form[1].parameters, _FILLER)
        if source is not None and source.path:
            # A path always names a tenant; without one that anybody means it is one that nobody names.
            parameters[source.path] = asked.tenant or _FILLER
        path = "/" + "/".join(parameters[name] if name else literal for literal, name in form[1].segments)
    if source is not None and source.header and asked.tenant:
        headers = ((source.header, asked.tenant),)
    presented: Presented = NoToken.MISSING
    if asked.token:
        presented = Token(
            id="explained",
            transaction="explained",
            caller=asked.caller,
            certificate=_CERTIFICATE,
            action=operation.name,
            resource=service.service,
            origin=asked.origin or asked.caller,
            expires=_NEVER,
            tenant=asked.tenant if source is not None else "",
            approval="explained" if asked.approver else "",
            approver=asked.approver,
        )
    return Call(asked.caller, service.service, method, path, headers, presented, _CERTIFICATE), parameters


def _nearest_listed(asked: Asked, inbound: Inbound) -> Iterator[str]:
    """Operations that the request may have meant: by another method, or with the most alike path."""
    forms = [(o, form) for o in inbound.operations if (form := wire_form(o.match)) is not None]
    other = [o for o, form in forms if form[0] != asked.method and form[1].match(asked.path) is not None]
    if other:
        yield f"that path is {', '.join(f'{o.name} ({match_text(o)})' for o in other[:MAX_NAMED])}, by another method"
        return
    texts = {match_text(o): o.name for o, _ in forms}
    close = difflib.get_close_matches(f"{asked.method} {asked.path}"[:512], texts, n=1, cutoff=0.0)
    for text in close:
        yield f"the nearest that is listed is {texts[text]} ({text})"


def _distance(applied: Applied) -> tuple[int, int, int]:
    """How far a permit is from the call: one about another operation or service is farther than any about this one.

    Then by failed parts; of equally many those in the head weigh more, as nothing a caller brings changes them.
    """
    elsewhere = sum(part.kind in {"action", "resource"} for part in applied.parts)
    heads = elsewhere + sum(part.kind == "principal" for part in applied.parts)
    return elsewhere, len(applied.parts), heads


def _parts(applied: Applied | None) -> tuple[Part, ...]:
    return applied.parts if applied is not None else ()


def _literals(policy: Policy) -> frozenset[str]:
    return analyse(policy).texts


def _every(operation: OperationRules) -> Iterator[Rule]:
    for cell in operation.cells:
        if cell.rule is not None:
            yield cell.rule
        elif cell.tenants is not None:
            yield from (cell.tenants.otherwise, *cell.tenants.by_tenant.values())


def _approvers(operation: OperationRules) -> list[str]:
    return sorted({name for rule in _every(operation) if rule.token is not None for name in rule.token.approved_by})


def _origins(operation: OperationRules) -> list[str]:
    tokens = [rule.token for rule in _every(operation) if rule.token is not None]
    groups = (g for t in tokens for g in (t.unapproved, t.approved, *t.approved_by.values()))
    return sorted({origin for group in groups for origin in group.by_origin})


def explanation_json(explanation: Explanation) -> Mapping[str, Any]:
    """The explanation as plain data that JSON can hold."""
    found: dict[str, Any] = msgspec.to_builtins(explanation)
    return found
