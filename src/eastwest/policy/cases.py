"""``eastwest policy test``: cases run on the compiled table, and how much of the table they look at.

The table answers as every enforcement point does, in strict mode. Callers that no answer of the table tells apart are
one class, so that one of each stands for all; a cell is a class at an operation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from eastwest.policy.case_files import Callers, Case, WrittenCase
from eastwest.policy.enforcement import Cell, OperationRules, Sidecar, TenantSource, Verdict
from eastwest.policy.estate import Estate, Operation, Service
from eastwest.policy.normalise import Refused, normalise
from eastwest.policy.operations import can_be_tenant, matcher, tenant_source, wire_form
from eastwest.policy.oracle import Decision, lookup
from eastwest.policy.problems import Findings, Position, suggest, suggest_id
from eastwest.policy.reach import WEIGHTS, Held, ways
from eastwest.policy.table import CompiledPolicy
from eastwest.policy.transaction import NoToken, Presented, Token

ANY_VALUE = "x"
"""What stands for path parameters that no decision depends on."""
MAX_GAPS = 10_000
"""How many cells without a case are listed."""
_CERTIFICATE = "c" * 64
_NEVER = 1 << 40  # Unix seconds


@dataclass(frozen=True, slots=True)
class Failure:
    """A caller that did not fare as expected; ``caller`` "" for a plaintext call."""

    caller: str
    told: str  # the decision, in words

    def __str__(self) -> str:
        return f"{self.caller or 'plaintext'}: {self.told}"


@dataclass(frozen=True, slots=True)
class Result:
    """One case: how many callers were asked about, and those that were decided otherwise than expected."""

    case: str
    where: Position
    asked: int
    expected: str
    failures: tuple[Failure, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every caller fared as expected."""
        return not self.failures


@dataclass(frozen=True, slots=True)
class Uncovered:
    """A cell that no case looks at. ``outcome``: ``allow``, ``allow with step-up`` or ``with approval``, ``deny``."""

    operation: str
    sensitivity: str
    weight: int
    outcome: str
    callers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the table cases look at; ``allowing`` counts cells where anything is allowed. Riskiest gap first,
    at most ``MAX_GAPS`` of them.
    """

    classes: int
    cells: int
    covered: int
    allowing: int
    allowing_covered: int
    policies: int
    policies_unnamed: tuple[str, ...]
    gaps: tuple[Uncovered, ...]

    @property
    def percent(self) -> float:
        """Of cells."""
        return 100.0 * self.covered / self.cells if self.cells else 100.0

    @property
    def allowing_percent(self) -> float:
        """Of cells where anything is allowed."""
        return 100.0 * self.allowing_covered / self.allowing if self.allowing else 100.0

    @property
    def policies_percent(self) -> float:
        """Of policies that decided some case."""
        named = self.policies - len(self.policies_unnamed)
        return 100.0 * named / self.policies if self.policies else 100.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run."""

    results: tuple[Result, ...]
    coverage: Coverage

    @property
    def failed(self) -> tuple[Result, ...]:
        """Cases that did not come out as expected."""
        return tuple(result for result in self.results if not result.passed)


def run_cases(cases: Sequence[WrittenCase], estate: Estate, compiled: CompiledPolicy) -> Outcome:
    """Run all. Raises ``EstateInvalid`` with every case that speaks of what the estate does not have."""
    table = _Table(estate, compiled)
    findings = Findings()
    calls = [_Caller(table, findings).calls(written) for written in cases]
    findings.raise_errors()
    seen = _Seen()
    results = tuple(_judged(written, made, table, seen) for written, made in zip(cases, calls, strict=True))
    return Outcome(results, _coverage(table, seen))


@dataclass(frozen=True, slots=True)
class _Made:
    """A call as an enforcement point sees it. ``meant``: the operation that the case names."""

    caller: str | None
    service: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    presented: Presented
    meant: str = ""
    refused: str = ""  # why no enforcement point would read the request


@dataclass(slots=True)
class _Seen:
    cells: set[tuple[int, str]] = field(default_factory=set)
    policies: set[str] = field(default_factory=set)


class _Table:
    """The compiled table by names, and its classes of callers."""

    def __init__(self, estate: Estate, compiled: CompiledPolicy) -> None:
        self.estate = estate
        self.callers = {caller.spiffe_id: caller for caller in estate.callers}
        self.services = {service.service: service for service in estate.services}
        self.operations = {o.name: (s, o) for s in estate.services for o in s.operations}
        self.sidecars: dict[str, Sidecar] = {
            inbound.service: sidecar for sidecar in compiled.sidecars.values() for inbound in sidecar.inbound
        }
        self.rules: dict[str, OperationRules] = {
            o.name: o for sidecar in compiled.sidecars.values() for i in sidecar.inbound for o in i.operations
        }
        self.class_of = _classes(self.callers, {id(o.cells): o.cells for o in self.rules.values()}.values())
        self.classes: dict[int, list[str]] = {}
        for caller, number in self.class_of.items():
            self.classes.setdefault(number, []).append(caller)

    def decide(self, made: _Made) -> Decision:
        sidecar = self.sidecars[made.service]
        return lookup(
            sidecar, made.caller, made.service, made.method, made.path, made.headers, made.presented, _CERTIFICATE
        )


def _classes(callers: Iterable[str], tables: Iterable[tuple[Cell, ...]]) -> dict[str, int]:
    """A number for each caller: equal for those that share a cell, or the lack of one, at every operation."""
    class_of = dict.fromkeys(callers, 0)
    sizes = {0: len(class_of)}
    for cell in (cell for cells in tables for cell in cells):
        within: dict[int, list[str]] = {}
        for caller in cell.callers:
            if caller in class_of:
                within.setdefault(class_of[caller], []).append(caller)
        for number, members in within.items():
            if len(members) < sizes[number]:
                sizes[number] -= len(members)
                fresh = len(sizes)
                sizes[fresh] = len(members)
                class_of.update(dict.fromkeys(members, fresh))
    return class_of


class _Caller:
    """Makes the calls of a case, or says what is wrong with it."""

    def __init__(self, table: _Table, findings: Findings) -> None:
        self._table = table
        self._findings = findings

    def calls(self, written: WrittenCase) -> tuple[_Made, ...]:
        case = written.case
        if case.policy is not None and case.policy not in {p.id for p in self._table.estate.policies}:
            fix = suggest(case.policy, [p.id for p in self._table.estate.policies])
            self._findings.error(written.at("policy"), f"there is no policy {case.policy[:80]!r}", fix)
        callers = self._callers(written)
        if case.request is not None:
            return tuple(made for caller in callers for made in self._requested(written, caller))
        known = self._table.operations.get(case.operation or "")
        if known is None:
            where, name = written.at("operation"), case.operation or ""
            self._findings.error(where, f"there is no operation {name!r}", suggest(name, self._table.operations))
            return ()
        return tuple(made for caller in callers for made in self._named(written, *known, caller))

    def _callers(self, written: WrittenCase) -> list[str | None]:
        case, known = written.case, self._table.callers
        if case.callers is not None:
            return [*self._many(written, case.callers)]
        if case.caller is not None and case.caller not in known and case.code != "UNKNOWN_CALLER":
            fix = suggest_id(case.caller, known, otherwise="register it, or expect code: UNKNOWN_CALLER")
            self._findings.error(written.at("caller"), f"nobody registered {case.caller}", fix)
        return [case.caller]

    def _many(self, written: WrittenCase, wanted: Callers) -> Iterator[str]:
        settings = self._table.estate.settings
        for name, kind, there in (
            (wanted.domain, "domain", [d.name for d in settings.domains]),
            (wanted.environment, "environment", [e.name for e in settings.environments]),
        ):
            if name is not None and name not in there:
                where = written.at("callers", kind)
                self._findings.error(where, f"unknown {kind} {name!r}", suggest(name, there))
        for one in wanted.but:
            if one not in self._table.callers:
                fix = suggest_id(one, self._table.callers, otherwise="remove it")
                self._findings.error(written.at("callers", "except"), f"nobody registered {one}", fix)
        told: set[int] = set()
        empty = True
        for name, caller in self._table.callers.items():
            if name in wanted.but or wanted.domain not in {None, caller.domain}:
                continue
            if wanted.environment in {None, caller.environment}:
                empty = False
                if self._table.class_of[name] not in told:  # others of its class fare alike
                    told.add(self._table.class_of[name])
                    yield name
        if empty:
            self._findings.error(written.at("callers"), "no caller is meant", "name a domain that has workloads")

    def _requested(self, written: WrittenCase, caller: str | None) -> Iterator[_Made]:
        request = written.case.request
        assert request is not None
        if request.service not in self._table.services:
            where = written.at("request", "service")
            fix = suggest(request.service, self._table.services)
            self._findings.error(where, f"there is no service {request.service!r}", fix)
            return
        method, path, headers = request.method or "", request.path or "", tuple(request.headers.items())
        presented = self._presented(written, caller, None)
        if method:
            read = normalise(method, path, [("host", request.service), *headers])
            if isinstance(read, Refused):
                yield _Made(caller, request.service, method, path, headers, presented, refused=read.reason)
                return
            path, headers = read.path, tuple(read.headers)
        yield _Made(caller, request.service, method, path, headers, presented)

    def _named(
        self, written: WrittenCase, service: Service, operation: Operation, caller: str | None
    ) -> Iterator[_Made]:
        case, source = written.case, tenant_source(service, operation)
        form = wire_form(matcher(operation))
        values: dict[str, str] = {}
        headers: tuple[tuple[str, str], ...] = ()
        if case.tenant is not None and source is None:
            self._findings.error(written.at("tenant"), f"{operation.name} is not per tenant", "remove tenant")
            return
        if case.tenant is not None and source is not None and not can_be_tenant(source, case.tenant):
            self._findings.error(
                written.at("tenant"), f"no request can name {case.tenant[:80]!r} there", "name another"
            )
            return
        if source is not None and source.path:
            if case.tenant is None:
                self._findings.error(written.at(), f"{operation.name} is per tenant", "say tenant: NAME")
                return
            values[source.path] = case.tenant
        elif source is not None and source.header and case.tenant is not None:
            headers = ((source.header, case.tenant),)
        method, path = "", ""
        if form is not None:
            method = form[0]
            path = "/" + "/".join(values.get(name, ANY_VALUE) if name else text for text, name in form[1].segments)
        presented = self._presented(written, caller, (service, operation, source))
        yield _Made(caller, service.service, method, path, headers, presented, meant=operation.name)

    def _presented(
        self, written: WrittenCase, caller: str | None, call: tuple[Service, Operation, TenantSource | None] | None
    ) -> Presented:
        case, said = written.case, written.case.token
        if said is None:
            return NoToken.MISSING
        if said.expired:
            return NoToken.EXPIRED
        if said.operation is None and call is None:
            fix = "write operation: below token"
            self._findings.error(written.at("token"), "the token of a request has to say what it is for", fix)
            return NoToken.MISSING
        action = said.operation or (call[1].name if call is not None else "")
        tenant = said.tenant if said.tenant is not None else case.tenant or ""
        return Token(
            id="case",
            transaction="case",
            caller=caller or "",
            certificate=_CERTIFICATE,
            action=action,
            resource=self._host(action),
            origin=said.begun_by or caller or "",
            expires=_NEVER,
            tenant=tenant,
            approval="case" if said.approved_by else "",
            approver=said.approved_by or "",
        )

    def _host(self, operation: str) -> str:
        known = self._table.operations.get(operation)
        return operation.partition(":")[0] if known is None else known[0].service


def _judged(written: WrittenCase, calls: Iterable[_Made], table: _Table, seen: _Seen) -> Result:
    case, failures, asked = written.case, [], 0
    for made in calls:
        asked += 1
        caller = made.caller or ""
        if made.refused:  # before anything is decided, so it has no code
            if case.expect is not Verdict.DENY or case.code is not None or case.policy is not None:
                failures.append(Failure(caller, f"no enforcement point reads the request: {made.refused}"))
            continue
        decision = table.decide(made)
        _, _, policy, operation = decision
        if caller in table.class_of and operation:
            seen.cells.add((table.class_of[caller], operation))
        if policy:
            seen.policies.add(policy)
        if made.meant and operation not in {"", made.meant}:
            failures.append(Failure(caller, f"the request belongs to {operation}; give a request instead"))
        elif not _as_expected(case, decision):
            failures.append(Failure(caller, _words(decision)))
    return Result(case.case, written.at(), asked, _expected(case), tuple(failures))


def _words(decision: Decision) -> str:
    verdict, code, policy, _ = decision
    told = str(verdict) if verdict is Verdict.ALLOW else f"{verdict} {code}"
    return f"{told} by {policy}" if policy else told


def _as_expected(case: Case, decision: Decision) -> bool:
    verdict, code, policy, _ = decision
    return (
        verdict is case.expect
        and (case.code is None or code is case.code)
        and (case.policy is None or policy == case.policy)
    )


def _expected(case: Case) -> str:
    said = f"{case.expect}{f' {case.code}' if case.code is not None else ''}"
    return f"{said} by {case.policy}" if case.policy is not None else said


def _coverage(table: _Table, seen: _Seen) -> Coverage:
    outcomes = {name: _outcomes(table, operation) for name, operation in table.rules.items()}
    allowing = {(number, name) for name, said in outcomes.items() for number in said}
    cells = len(table.classes) * len(table.rules)
    enforced = sorted(policy.id for policy in table.estate.policies if not policy.report)
    return Coverage(
        classes=len(table.classes),
        cells=cells,
        covered=len(seen.cells),
        allowing=len(allowing),
        allowing_covered=len(allowing & seen.cells),
        policies=len(enforced),
        policies_unnamed=tuple(name for name in enforced if name not in seen.policies),
        gaps=tuple(itertools.islice(_gaps(table, seen, outcomes), MAX_GAPS)),
    )


def _gaps(table: _Table, seen: _Seen, outcomes: Mapping[str, Mapping[int, str]]) -> Iterator[Uncovered]:
    """What allows something first, then what is refused; the riskiest first in both. There can be millions."""
    names = sorted(table.rules, key=lambda name: (-WEIGHTS[table.operations[name][1].sensitivity], name))
    for refused in (False, True):
        for name in names:
            sensitivity = table.operations[name][1].sensitivity
            said = outcomes[name]
            chosen = table.classes.keys() - said.keys() if refused else said.keys()
            for number in sorted(chosen, key=lambda one: table.classes[one][0]):
                if (number, name) not in seen.cells:
                    yield Uncovered(
                        name,
                        str(sensitivity or "unclassified"),
                        WEIGHTS[sensitivity],
                        said.get(number, "deny"),
                        tuple(table.classes[number]),
                    )


def _outcomes(table: _Table, operation: OperationRules) -> Mapping[int, str]:
    """What the table says to each class at an operation, where it allows anything."""
    found: dict[int, str] = {}
    for cell in operation.cells:
        allowed = ways(operation, cell)
        if allowed and cell.callers[0] in table.class_of:
            held = allowed[0].held
            words = "allow" if held is Held.NOTHING else f"allow with {held}"
            found.update(dict.fromkeys({table.class_of[c] for c in cell.callers if c in table.class_of}, words))
    return found
