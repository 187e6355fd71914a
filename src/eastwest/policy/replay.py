"""What a compiled policy says to a call that the ledger has on record: exactly, or not at all.

A row holds what its own rules looked at. Other rules may look at more: then every call that the row can stand for is
decided, and where the answers are not one answer the row is ``Unsure``, with the reason. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from eastwest.policy.enforcement import (
    DecisionCode,
    Inbound,
    OperationRules,
    Recording,
    Rule,
    TenantSource,
    Verdict,
)
from eastwest.policy.operations import can_be_tenant, wire_form
from eastwest.policy.paths import Template
from eastwest.policy.recorded import (
    ANY_CALL,
    CUT,
    MISSING,
    UNKNOWN,
    Answer,
    Good,
    Input,
    RecordedToken,
    ServiceRules,
    Unsure,
    domain_of,
)
from eastwest.policy.rematch import possible_operations
from eastwest.policy.table import CompiledPolicy

__all__ = ["Answer", "Input", "Replayer", "Unsure", "decide"]

REPLACED = "!"
"""What a proxy's log has in place of each byte that is no text: what is no tenant may then look like one."""
NAMED_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
"""Methods that a proxy's log has names for; a row of any other has none."""
_AT_THE_DOOR = frozenset(
    {DecisionCode.MTLS_REQUIRED, DecisionCode.CERTIFICATE_REFUSED, DecisionCode.UNLISTED_OPERATION}
)
_CONTAINED = frozenset({DecisionCode.CALLER_CONTAINED, DecisionCode.TOKEN_CONTAINED, DecisionCode.IDENTITY_CONTAINED})
_AUTHORITY = ("unknown_authority", "unknown_trust_domain", "authority_left", "not_verified")


def decide(compiled: CompiledPolicy, given: Input, recorded: CompiledPolicy | None = None) -> Answer | Unsure:
    """Decide a recorded call by ``compiled``; for many, keep a ``Replayer`` of each.

    ``recorded``: the rules under which the row was made, which say which requests its operation's name stood for and
    at what the decision looked; None: they were these.
    """
    return Replayer(compiled).decide(given, None if recorded is None else Replayer(recorded))


class Replayer:
    """Decides recorded calls by one compiled policy."""

    def __init__(self, compiled: CompiledPolicy, *, report: bool = False) -> None:
        """``report``: as it would be if rules in report mode were enforced."""
        self.compiled = compiled
        self._places = {
            i.service: (sidecar, _reported(i) if report else i)
            for sidecar in compiled.sidecars.values()
            for i in sidecar.inbound
        }
        self._services: dict[str, ServiceRules] = {}
        self._known: dict[int, frozenset[str]] = {}
        self._possible: dict[tuple[int, str, str], tuple[OperationRules | None, ...]] = {}
        self._kept: dict[int, ServiceRules] = {}

    def inbound(self, service: str) -> Inbound | None:
        """The rules of a service, or None."""
        found = self._places.get(service)
        return found[1] if found is not None else None

    def decide(self, given: Input, recorded: Replayer | None = None) -> Answer | Unsure:
        """See ``decide``."""
        here = self.service(given.service)
        if here is None:
            return Unsure(f"the estate has no service {given.service} any more")
        was = here if recorded is None or recorded is self else recorded.service(given.service)
        if was is None:
            return Unsure(f"the rules under which it was recorded have no service {given.service}")
        return _Call(self, here, was, given).decide()

    def possible(self, here: ServiceRules, was: ServiceRules, name: str) -> tuple[OperationRules | None, ...]:
        """The operations to which a request recorded as ``name`` may belong; None among them: to none."""
        key = (id(was), here.inbound.service, name)
        if key not in self._possible:
            self._kept[id(was)] = was  # so that its id stays its own
            self._possible[key] = possible_operations(here.inbound.operations, was.inbound.operations, name)
        return self._possible[key]

    def service(self, name: str) -> ServiceRules | None:
        """The rules of a service, ready to be looked up."""
        found = self._services.get(name)
        if found is None and (place := self._places.get(name)) is not None:
            sidecar, inbound = place
            key = id(sidecar.known_callers)
            if key not in self._known:
                self._known[key] = frozenset(sidecar.known_callers)
            found = self._services[name] = ServiceRules(sidecar, inbound, self._known[key])
        return found


class _Call:
    """One recorded call, at the rules of its service."""

    def __init__(self, replayer: Replayer, here: ServiceRules, was: ServiceRules, given: Input) -> None:
        self._replayer = replayer
        self._here = here
        self._was = was
        self._given = given
        self._token = RecordedToken(was, given)
        self._reason = ""
        self._split = "the record has too little of the request"

    def decide(self) -> Answer | Unsure:
        given, here = self._given, self._here
        door = self._at_the_door()
        if door is not None:
            return door
        if here.inbound.protocol != self._was.inbound.protocol:
            return Unsure(f"{given.service} speaks another protocol than when it was recorded")
        if given.claimed or given.caller not in here.known:
            return self._unknown_caller()
        found: dict[Answer, None] = {}
        likely: Answer | None = None
        for operation in self._operations():
            for answer in self._answers(operation):
                if isinstance(answer, Unsure):
                    self._reason, likely = self._reason or answer.reason, likely or answer.likely
                else:
                    found[answer] = None
        if len(found) == 1 and not self._reason:
            return next(iter(found))
        if len(found) == 1 and likely in {None, *found}:
            likely = next(iter(found))
        return Unsure(self._reason or self._split, likely)

    def _at_the_door(self) -> Answer | Unsure | None:
        """What was decided before any rule was asked; None where rules are."""
        given, here, was = self._given, self._here, self._was
        code = given.code
        refused = Answer(Verdict.DENY, code, "", given.operation)
        outage = code is DecisionCode.CHECK_UNAVAILABLE and not given.operation
        if code is DecisionCode.SERVER_REFUSED or code in _CONTAINED or outage:
            return refused  # by no policy, and so by none now
        if given.cause and code in _AT_THE_DOOR and not given.operation:
            trusted = here.sidecar.federated_callers, here.inbound.post_quantum
            if trusted != (was.sidecar.federated_callers, was.inbound.post_quantum) and _of_trust(given.cause):
                return Unsure("other authorities are trusted than when its certificate was refused")
            return refused
        if here.inbound.post_quantum and not was.inbound.post_quantum:
            return Unsure("whether the caller's key is post-quantum is not on record")
        if not given.caller and not given.claimed:
            return self._told(DecisionCode.MTLS_REQUIRED)
        domain = domain_of(given.caller)
        if not given.claimed and domain != here.trust_domain and domain not in here.sidecar.federated_callers:
            known = domain_of(given.caller) in was.sidecar.federated_callers
            if known:
                return Answer(Verdict.DENY, DecisionCode.CERTIFICATE_REFUSED)
        return None

    def _unknown_caller(self) -> Answer | Unsure:
        caller = self._given.caller
        if len(caller) >= CUT and any(name.startswith(caller) for name in self._here.known):
            return Unsure("the caller's name was cut")
        return self._told(DecisionCode.UNKNOWN_CALLER)

    def _told(self, code: DecisionCode, policy: str = "", operation: str = "") -> Answer:
        verdict = Verdict.ALLOW if code is DecisionCode.ALLOWED else Verdict.DENY
        return Answer(verdict, code, policy, operation, self._here.enforced)

    # Which operation

    def _operations(self) -> Iterable[OperationRules | None]:
        given, here, was = self._given, self._here, self._was
        if given.operation:
            if given.operation not in was.operations:
                self._reason = f"the rules under which it was recorded are not at hand: {given.operation} is unknown"
                return ()
            if here is was:
                return (here.operations[given.operation],)
            found = self._replayer.possible(here, was, given.operation)
            if len(found) > 1:
                self._split = f"requests that were {given.operation} are of several operations now"
            return found
        if here.inbound.protocol == "tcp":
            return (here.matching("", ""),)
        unlisted = given.code is DecisionCode.UNLISTED_OPERATION
        if given.counted or not given.path or len(given.path) >= CUT:
            if unlisted and (here is was or _same_matches(here.inbound, was.inbound)):
                return (None,)
            return (*here.inbound.operations, None)
        if not given.method:
            others = [o for o in here.inbound.operations if _method(o) not in NAMED_METHODS]
            return (*others, None)
        if unlisted and was.matching(given.method, given.path) is not None:
            return (None,)  # its path was an operation's, but the request was not of one host
        return (here.matching(given.method, given.path),)

    # What holds there

    def _answers(self, operation: OperationRules | None) -> Iterator[Answer | Unsure]:
        given, here = self._given, self._here
        if operation is None:
            yield self._told(DecisionCode.UNLISTED_OPERATION)
            return
        if given.code is DecisionCode.RECORD_UNAVAILABLE and here.inbound.recording is Recording.REQUIRED:
            yield self._told(DecisionCode.RECORD_UNAVAILABLE, "", operation.name)
            return
        cell = here.cell(operation, given.caller)
        if cell is None:
            yield self._by(operation.otherwise, operation)
            return
        if cell.rule is not None:
            yield from self._with_token(cell.rule, operation, "")
            return
        tenants, source = cell.tenants, operation.tenant
        if tenants is None or source is None:
            raise AssertionError("a cell has a rule, or tenants at an operation that has a tenant source")
        missing = self._told(DecisionCode.TENANT_MISSING, "", operation.name)
        if source.claim:
            brought = self._token.brought()
            if isinstance(brought, DecisionCode):
                yield self._misused(brought, operation, "")
            elif brought is MISSING:
                yield missing
            elif not isinstance(brought, Good):
                yield Unsure("whether a token came, which would name the tenant, is not on record", missing)
            elif operation.name != given.operation:
                yield self._told(DecisionCode.TOKEN_WRONG_ACTION, "", operation.name)
            elif not brought.tenant:
                yield missing
            else:
                rule = tenants.by_tenant.get(brought.tenant, tenants.otherwise)
                yield from self._with_token(rule, operation, brought.tenant)
            return
        tenant = self._tenant(operation, source)
        if tenant is None:
            yield missing
        elif isinstance(tenant, str):
            yield from self._with_token(tenants.by_tenant.get(tenant, tenants.otherwise), operation, tenant)
        else:
            if source.header:
                yield missing
            for rule in {*tenants.by_tenant.values(), tenants.otherwise}:
                yield from self._with_token(rule, operation, None)

    def _tenant(self, operation: OperationRules, source: TenantSource) -> str | object | None:
        """The tenant that the request named, None for none that counts, ``UNKNOWN`` where it is not on record."""
        given = self._given
        if not given.operation:
            form = wire_form(operation.match)
            if source.path and form is not None and given.path and not given.counted and len(given.path) < CUT:
                return (form[1].match(given.path) or {}).get(source.path, UNKNOWN)
            return UNKNOWN
        was = self._was.operations[given.operation]
        if given.counted or len(given.tenant) >= CUT or _place(was) != _place(operation):
            return UNKNOWN
        if source.path and not given.tenant:
            return UNKNOWN
        if given.code is DecisionCode.TENANT_MISSING or not can_be_tenant(source, given.tenant):
            return None
        if source.header and REPLACED in given.tenant and not self._looked_at_tenant(was):
            return UNKNOWN
        return given.tenant

    def _looked_at_tenant(self, operation: OperationRules) -> bool:
        """Whether the recorded decision took the tenant for one."""
        cell = self._was.cell(operation, self._given.caller)
        return cell is not None and cell.tenants is not None

    def _with_token(self, rule: Rule, operation: OperationRules, tenant: str | None) -> Iterator[Answer | Unsure]:
        """``tenant`` "" where the operation is not per tenant, None where it is not on record."""
        if rule.token is None:
            yield self._by(rule, operation)
            return
        given = self._given
        brought = self._token.brought()
        if brought is MISSING:
            yield self._by(rule, operation)
        elif isinstance(brought, DecisionCode):
            yield self._misused(brought, operation, tenant)
        elif not isinstance(brought, Good):
            yield Unsure("whether a transaction token came is not on record", self._by(rule, operation))
        elif operation.name != given.operation:
            yield self._told(DecisionCode.TOKEN_WRONG_ACTION, "", operation.name)
        elif tenant is None:
            yield Unsure("which tenant the request named is not on record")
        elif brought.tenant != tenant:
            yield self._told(DecisionCode.TOKEN_WRONG_TENANT, "", operation.name)
        else:
            for each in self._token.outcomes(rule, brought):
                yield self._once(self._by(each, operation), operation)

    def _by(self, rule: Rule, operation: OperationRules) -> Answer:
        return Answer(rule.verdict, rule.code, rule.policy, operation.name, self._here.enforced)

    def _misused(self, code: DecisionCode, operation: OperationRules, tenant: str | None) -> Answer | Unsure:
        """The answer to a token that did not count when it was recorded, and so does not count now."""
        given = self._given
        if code in ANY_CALL:
            return self._told(code, "", operation.name)
        if operation.name != given.operation:
            if code is DecisionCode.TOKEN_WRONG_ACTION:
                return Unsure("for which operation its token was made is not on record")
            return self._told(DecisionCode.TOKEN_WRONG_ACTION, "", operation.name)
        was = self._was.operations[given.operation]
        if code is DecisionCode.TOKEN_WRONG_TENANT and (tenant is None or _place(was) != _place(operation)):
            return Unsure("for which tenant its token was made is not on record")
        return self._told(code, "", operation.name)

    def _once(self, answer: Answer, operation: OperationRules) -> Answer | Unsure:
        """The answer to a token that counts once."""
        given, was = self._given, self._was
        if answer.verdict is not Verdict.ALLOW or not operation.single_use or not answer.enforced:
            return answer
        if given.code in {DecisionCode.TOKEN_USED, DecisionCode.CHECK_UNAVAILABLE}:
            return self._told(given.code, "", operation.name)
        looked = was.enforced and was.operations[given.operation].single_use
        if looked and given.code is DecisionCode.ALLOWED:
            return answer
        return Unsure("whether its token was used before is not on record", answer)


def _reported(inbound: Inbound) -> Inbound:
    return msgspec.structs.replace(inbound, operations=inbound.report) if inbound.report else inbound


def _place(operation: OperationRules) -> tuple[str, object] | None:
    """Where requests of the operation name their tenant, in a form that other operations' can be compared with."""
    source = operation.tenant
    if source is None:
        return None
    if source.claim:
        return "claim", ""
    if source.header:
        return "header", source.header
    form = wire_form(operation.match)
    parameters = form[1].segments if form is not None else ()
    return "path", next((i for i, (_, name) in enumerate(parameters) if name == source.path), -1)


def _same_matches(one: Inbound, other: Inbound) -> bool:
    return [o.match for o in one.operations] == [o.match for o in other.operations]


def _method(operation: OperationRules) -> str:
    form: tuple[str, Template] | None = wire_form(operation.match)
    return form[0] if form is not None else ""


def _of_trust(cause: str) -> bool:
    return cause.startswith((*_AUTHORITY, "other", "no_certificate"))
