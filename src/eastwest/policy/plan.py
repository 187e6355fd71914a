"""The plan of an estate: what is wrong with it, what it amounts to, and what it would change."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cedarpy
import msgspec
from cedarpy import pst

from eastwest.policy.analysis import Analysis, Scope, analyse
from eastwest.policy.cedar import locate
from eastwest.policy.cells import Memory
from eastwest.policy.check import UNSEEN_CALLER
from eastwest.policy.diff import Difference, compare, compare_registrations
from eastwest.policy.enforcement import MtlsMode, Verdict
from eastwest.policy.estate import EnvironmentKind, Estate, Sensitivity
from eastwest.policy.lint.rules import LINTS
from eastwest.policy.load import load_estate
from eastwest.policy.naming import RULE as NAMING_RULE
from eastwest.policy.naming import Naming
from eastwest.policy.problems import EstateInvalid, Position, Problem, Severity, ordered
from eastwest.policy.schema import ACTION, DOMAIN, ENVIRONMENT, SERVICE
from eastwest.policy.table import CompiledPolicy, Summary, compile_estate
from eastwest.spiffe.id import SpiffeId

OPEN_DOORS = frozenset({"workload-api", "spire-api"})
"""Doors that this version has; profiles may name others already."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of planning. With errors there is no compiled policy, and nothing may be applied.

    ``previous`` is the version compared with ("" when there was none), ``difference`` None without one.
    """

    problems: tuple[Problem, ...]
    estate: Estate | None = None
    compiled: CompiledPolicy | None = None
    previous: str = ""
    difference: Difference | None = None

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What must be mended first."""
        return tuple(p for p in self.problems if p.severity is Severity.ERROR)

    @property
    def ok(self) -> bool:
        """Whether the estate may be applied."""
        return not self.errors

    @property
    def version(self) -> str:
        """The content hash of the planned policy, hex; "" with errors."""
        return self.compiled.version if self.compiled is not None and self.ok else ""

    @property
    def summary(self) -> Summary | None:
        """Counts of the planned policy."""
        return self.compiled.summary if self.compiled is not None else None

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data that JSON can hold."""
        return {
            "ok": self.ok,
            "version": self.version,
            "previous_version": self.previous,
            "problems": [
                {
                    "severity": p.severity.value,
                    "file": p.where.file,
                    "line": p.where.line,
                    "column": p.where.column,
                    "message": p.message,
                    "fix": p.fix,
                }
                for p in self.problems
            ],
            "summary": msgspec.to_builtins(self.summary),
            "difference": msgspec.to_builtins(self.difference),
        }


def plan_files(
    files: Mapping[str, bytes],
    today: dt.date,
    previous: Mapping[str, bytes] | CompiledPolicy | None = None,
    memory: Memory | None = None,
) -> Plan:
    """Plan the estate in ``files`` (relative path to content) against what is applied now, if anything is.

    Never raises for a mistake in the files: mistakes are the plan's problems. ``previous`` are the applied
    estate's files, or its compiled policy. ``memory`` of earlier plans makes this one quicker and no different.
    """
    memory = memory or Memory()
    try:
        estate = load_estate(files)
        compiled = compile_estate(estate, memory)
    except EstateInvalid as error:
        return Plan(problems=error.problems)
    problems = [*estate.notes, *compiled.problems, *not_enforced_yet(estate), *_unclassified(estate)]
    problems += [*_dates(estate, today), *_unbound(estate, compiled), *_wide(estate)]
    problems += _on_trial(estate, compiled, today)
    before: CompiledPolicy | None = None
    applied: Estate | None = None
    if isinstance(previous, CompiledPolicy):
        before = previous
    elif previous is not None:
        try:
            applied = load_estate(previous)
            before = compile_estate(applied, memory)
        except EstateInvalid as error:
            problems.append(
                Problem(
                    Severity.WARNING,
                    Position("estate.yaml"),
                    f"the applied estate cannot be read by this version, so nothing is compared: {error.message}",
                )
            )
    difference = compare(before, compiled) if before else None
    if difference is not None and applied is not None:
        if applied.settings.trust_domain != estate.settings.trust_domain:
            problems.append(_other_server(applied, estate))
        difference = msgspec.structs.replace(difference, registrations_changed=compare_registrations(applied, estate))
    return Plan(
        problems=ordered(problems),
        estate=estate,
        compiled=compiled,
        previous=before.version if before else "",
        difference=difference,
    )


def _other_server(applied: Estate, estate: Estate) -> Problem:
    return Problem(
        Severity.ERROR,
        Position("estate.yaml"),
        f"the estate is of {estate.settings.trust_domain}, the applied one of {applied.settings.trust_domain}",
        "apply it to its own server",
    )


def not_enforced_yet(estate: Estate) -> Iterator[Problem]:
    """A note for everything that the estate says and this version does not act on."""

    def note(where: Position, message: str, fix: str = "") -> Problem:
        return Problem(Severity.NOTE, where, message, fix)

    for environment in estate.settings.environments:
        if environment.kind is not EnvironmentKind.VM:
            where = estate.position("environment", environment.name)
            yield note(where, f"environment {environment.name!r}: kind {environment.kind} has no agent of its own yet")
    for profile in estate.profiles:
        where = estate.position("profile", profile.profile)
        closed = [door for door in profile.doors if door not in OPEN_DOORS]
        if closed:
            yield note(where, f"profile {profile.profile!r}: not enforced yet, no door {', '.join(closed)}")
    for waiver in estate.waivers:
        if waiver.applies_to.rule in {NAMING_RULE, UNSEEN_CALLER, *LINTS}:
            continue
        yield note(
            estate.position("waiver", waiver.waiver), f"waiver {waiver.waiver!r} is not enforced yet: no rule reads it"
        )
    for service in estate.services:
        classes = sorted({o.data for o in service.operations if o.data})
        if classes:
            yield note(
                estate.position("service", service.service),
                f"service {service.service!r}: data classes ({', '.join(classes)}) are kept; no rule reads them yet",
            )
        if service.listen.until is not None:
            yield note(
                estate.position("mode", service.service),
                f"service {service.service!r}: until is a reminder; nothing turns strict by itself yet",
            )


def _unclassified(estate: Estate) -> Iterator[Problem]:
    for operation in (o for service in estate.services for o in service.operations if o.sensitivity is None):
        yield Problem(
            Severity.WARNING,
            estate.position("operation", operation.name),
            f"{operation.name} has no sensitivity, so it is refused to everybody (UNCLASSIFIED_OPERATION)",
            "say sensitivity: open, read, restricted-read, mutate or control",
        )


def _unbound(estate: Estate, compiled: CompiledPolicy) -> Iterator[Problem]:
    """Callers without tenants that a policy silent about tenants admits to everybody's: rarely what was meant."""
    unbound = {caller.spiffe_id for caller in estate.callers if "tenants" not in caller.attributes}
    silent = {policy.id for policy in estate.policies if analyse(policy).is_bound}
    found: dict[str, tuple[set[str], set[str]]] = {}
    operations = (o for s in compiled.sidecars.values() for i in s.inbound for o in i.operations)
    for operation, cell in ((o, c) for o in operations for c in o.cells if c.tenants is not None):
        rule = cell.tenants.otherwise if cell.tenants is not None else operation.otherwise
        callers = unbound.intersection(cell.callers)
        if rule.verdict is Verdict.ALLOW and rule.policy in silent and callers:
            names, at = found.setdefault(rule.policy, (set(), set()))
            names.update(callers)
            at.add(operation.name)
    for policy, (names, at) in sorted(found.items()):
        yield Problem(
            Severity.NOTE,
            estate.position("policy", policy),
            f"policy {policy!r} lets {_some(names)} do {_some(at)} for every tenant: they have no tenants of their own",
            'give them tenants, look at context.tenant, or say @tenants("any")',
        )


def _wide(estate: Estate) -> Iterator[Problem]:
    """Permits that ask nothing of the caller and let it change things: rarely meant, and easily written."""
    environments = {w.spiffe_id: w.environment for w in estate.workloads}
    for policy in map(analyse, estate.policies):
        if policy.policy.effect != "permit" or policy.principal != Scope() or _has_condition(policy):
            continue
        opened = [
            operation.sensitivity
            for service in estate.services
            for operation in service.operations
            if operation.sensitivity is not None
            and policy.action.covers(frozenset({(ACTION, operation.name), (ACTION, operation.sensitivity.value)}))
            and policy.resource.covers(
                frozenset(
                    {
                        (SERVICE, service.service),
                        (DOMAIN, service.domain),
                        (ENVIRONMENT, environments[service.workload]),
                    }
                )
            )
        ]
        changing = [one for one in (Sensitivity.CONTROL, Sensitivity.MUTATE) if one in opened]
        counts = ", ".join(f"{opened.count(one)} of them {one}" for one in changing)
        if counts or (policy.action == Scope() and policy.resource == Scope()):
            callers = len(estate.callers)
            yield Problem(
                Severity.WARNING,
                estate.position("policy", policy.policy.id),
                f"policy {policy.policy.id!r} permits every caller, whoever it is: {callers} callers x {len(opened)} "
                f"operations{', ' + counts if counts else ''}",
                "name the callers that need it, or their domain or environment, or add a condition",
            )


def _has_condition(policy: Analysis) -> bool:
    """Whether the policy as it was written may depend on anything beyond its head."""
    trees = cedarpy.policies_to_pst(policy.policy.text).static_policies.values()
    always = (pst.When(pst.BoolLit(True)), pst.Unless(pst.BoolLit(False)))
    return any(clause not in always for tree in trees for clause in tree.clauses)


def _some(names: set[str]) -> str:
    first, *others = sorted(names)
    return first if not others else f"{first} and {len(others)} more"


def _on_trial(estate: Estate, compiled: CompiledPolicy, today: dt.date) -> Iterator[Problem]:
    """Every rule in report mode, and where such rules would change an answer."""
    changed = sorted(i.service for s in compiled.sidecars.values() for i in s.inbound if i.report)
    would = f"; rules in report mode would change answers of {_some(set(changed))}" if changed else ""
    for policy in estate.policies:
        if not policy.report or policy.until is None:
            continue
        at = locate(estate.position("policy", policy.id), policy.text, "@", "until")
        if policy.until < today:
            message = f"policy {policy.id!r} was to report only until {policy.until}, which has passed"
            yield Problem(Severity.WARNING, at, message, "remove @mode and @until, or write a later date")
        else:
            yield Problem(
                Severity.NOTE,
                at,
                f"policy {policy.id!r} only reports until {policy.until}: it decides nothing yet"
                + (would or ", and no answer would change"),
            )


def _dates(estate: Estate, today: dt.date) -> Iterator[Problem]:
    for service in estate.services:
        until = service.listen.until
        if service.listen.mtls is not MtlsMode.PERMISSIVE or (until is not None and until >= today):
            continue
        where = estate.position("mode", service.service)
        if until is None:  # no mistake of the files alone: an estate of before that has none is still read
            message = f"service {service.service!r} is permissive without an end"
            yield Problem(Severity.ERROR, where, message, "add until: year-month-day beside mtls")
        else:
            message = f"service {service.service!r} was to be permissive until {until}, which has passed"
            yield Problem(Severity.WARNING, where, message, "write mtls: strict, or a later date")
    naming = Naming.of(estate.settings, estate.waivers, estate.services)
    for workload in estate.workloads:
        spiffe_id = SpiffeId.parse(workload.spiffe_id)
        complaint = naming.complaint(spiffe_id, today)
        if complaint is not None:
            yield Problem(Severity.ERROR, estate.position("workload", workload.spiffe_id), *complaint)
    for waiver in estate.waivers:
        if waiver.until < today:
            yield Problem(
                Severity.WARNING,
                estate.position("waiver", waiver.waiver),
                f"waiver {waiver.waiver!r} ended on {waiver.until}",
                "remove it, or have it renewed",
            )
