"""What changes between two compiled versions, in the terms that owners think in: who may newly do what, for whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from eastwest.policy.enforcement import (
    DecisionCode,
    Inbound,
    MtlsMode,
    OperationRules,
    Rule,
    Sidecar,
    TenantRules,
    TenantSource,
    Verdict,
)
from eastwest.policy.estate import Estate
from eastwest.policy.operations import match_text, tenant_source_text
from eastwest.policy.table import CompiledPolicy

ANY_OTHER = "*"
"""In ``Access.tenant``: every tenant that is not listed beside it."""


class Access(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One caller at one operation for one tenant ("" where the operation is not per tenant), and what now holds.

    ``brings``: "" where nothing is needed, else what the call must bring: ``token``, ``approval`` or ``approval by
    NAME``, with ``, begun by ID`` where only transactions of that workload count; and ``header NAME`` where that has
    to name the tenant. At operations whose tenant is in the token, the token has to name it.
    """

    operation: str
    caller: str
    tenant: str
    code: DecisionCode
    policy: str = ""
    brings: str = ""


class ModeChange(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A service whose port goes from one mTLS mode to the other."""

    service: str
    before: MtlsMode
    after: MtlsMode


class ServiceChange(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A service that stays, and which of its facts differ."""

    service: str
    changed: tuple[str, ...]


class OperationChange(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """An operation that stays by name, and what it was and is now, as people read it.

    ``field``: ``match`` (other requests), ``tenant source`` (where these name their tenant), ``tokens count``.
    """

    operation: str
    field: str
    before: str
    after: str


class RegistrationChange(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A workload, node group or profile that stays, and which of its facts differ: who may get which certificate."""

    kind: str
    name: str
    changed: tuple[str, ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that differs; verdicts are those of strict mode, whatever the mode is."""

    newly_allowed: tuple[Access, ...] = ()
    newly_denied: tuple[Access, ...] = ()
    modes: tuple[ModeChange, ...] = ()
    workloads_added: tuple[str, ...] = ()
    workloads_removed: tuple[str, ...] = ()
    services_added: tuple[str, ...] = ()
    services_removed: tuple[str, ...] = ()
    services_changed: tuple[ServiceChange, ...] = ()
    operations_added: tuple[str, ...] = ()
    operations_removed: tuple[str, ...] = ()
    operations_changed: tuple[OperationChange, ...] = ()
    registrations_changed: tuple[RegistrationChange, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether enforcement stays the same."""
        return self == Difference()


def compare(old: CompiledPolicy, new: CompiledPolicy) -> Difference:
    """What ``new`` changes against ``old``."""
    before, after = _Version(old), _Version(new)
    allowed: list[Access] = []
    denied: list[Access] = []
    for name in sorted(before.operations.keys() | after.operations.keys()):
        changes = _access_changes(name, before.operations.get(name), after.operations.get(name))
        for access, is_allowed in changes:
            (allowed if is_allowed else denied).append(access)
    common = sorted(before.services.keys() & after.services.keys())
    modes = [
        ModeChange(service=name, before=before.services[name].mode, after=after.services[name].mode)
        for name in common
        if before.services[name].mode is not after.services[name].mode
    ]
    changed = [
        ServiceChange(service=name, changed=fields)
        for name in common
        if (fields := tuple(_service_changes(name, before, after)))
    ]
    return Difference(
        newly_allowed=tuple(sorted(allowed)),
        newly_denied=tuple(sorted(denied)),
        modes=tuple(modes),
        workloads_added=_only(after.sidecars, before.sidecars),
        workloads_removed=_only(before.sidecars, after.sidecars),
        services_added=_only(after.services, before.services),
        services_removed=_only(before.services, after.services),
        services_changed=tuple(changed),
        operations_added=_only(after.operations, before.operations),
        operations_removed=_only(before.operations, after.operations),
        operations_changed=tuple(_operation_changes(before, after)),
    )


def compare_registrations(old: Estate, new: Estate) -> tuple[RegistrationChange, ...]:
    """What differs in who may get which certificate: no compiled policy has that."""
    return (
        *_registrations("group", "name", old.settings.node_groups, new.settings.node_groups),
        *_registrations("profile", "profile", old.profiles, new.profiles),
        *_registrations("workload", "spiffe_id", old.workloads, new.workloads),
        *_federations(old, new),
    )


def _federations(old: Estate, new: Estate) -> Iterator[RegistrationChange]:
    """Whom we trust at all: told when it comes and goes too, because no workload of ours need change with it."""
    before = {one.trust_domain: one for one in old.settings.federation}
    after = {one.trust_domain: one for one in new.settings.federation}
    for name in sorted(before.keys() | after.keys()):
        then, now = before.get(name), after.get(name)
        if then is None or now is None:
            yield RegistrationChange(kind="federation", name=name, changed=("added" if then is None else "removed",))
            continue
        changed = [f for f in now.__struct_fields__ if getattr(then, f) != getattr(now, f)]
        content = [estate.bundles.get(one.bundle or "") for estate, one in ((old, then), (new, now))]
        if content[0] != content[1] and "bundle" not in changed:
            changed.append("bundle")
        if changed:
            yield RegistrationChange(kind="federation", name=name, changed=tuple(changed))


def _registrations(kind: str, key: str, old: Sequence[Any], new: Sequence[Any]) -> Iterator[RegistrationChange]:
    before = {getattr(item, key): item for item in old}
    for item in new:
        then = before.get(getattr(item, key), item)
        changed = tuple(f for f in item.__struct_fields__ if getattr(then, f) != getattr(item, f))
        if changed:
            yield RegistrationChange(kind=kind, name=getattr(item, key), changed=changed)


class _Version:
    """A compiled version by name."""

    def __init__(self, compiled: CompiledPolicy) -> None:
        self.sidecars: dict[str, Sidecar] = compiled.sidecars
        self.services: dict[str, Inbound] = {}
        self.workloads: dict[str, str] = {}
        self.endpoints: dict[str, tuple[str, ...]] = {}
        seen: set[int] = set()  # most workloads of an environment reach the same services
        for sidecar in compiled.sidecars.values():
            for inbound in sidecar.inbound:
                self.services[inbound.service] = inbound
                self.workloads[inbound.service] = sidecar.spiffe_id
            reached = () if id(sidecar.outbound) in seen else sidecar.outbound
            seen.add(id(sidecar.outbound))
            for outbound in reached:
                self.endpoints[outbound.service] = outbound.endpoints
        self.operations: dict[str, OperationRules] = {
            o.name: o for inbound in self.services.values() for o in inbound.operations
        }


def _access_changes(name: str, old: OperationRules | None, new: OperationRules | None) -> Iterator[tuple[Access, bool]]:
    """Pairs of access and whether it is newly allowed; others are newly denied."""
    if old is not None and new is not None and (old.cells, old.tenant) == (new.cells, new.tenant):
        return
    before, after = _by_caller(old), _by_caller(new)
    per_tenant = any(o is not None and o.tenant is not None for o in (old, new))
    for caller in sorted(before.keys() | after.keys()):
        was = before.get(caller, _NOBODY if old is None else old.otherwise)
        now = after.get(caller, _NOBODY if new is None else new.otherwise)
        if was == now and _source(old) == _source(new):
            continue
        tenants = [""]
        if per_tenant:
            tenants = [*sorted(_exceptions(was).keys() | _exceptions(now).keys()), ANY_OTHER]
        for tenant in tenants:
            then, rule = _rule(was, tenant), _rule(now, tenant)
            before_by, after_by = _ways(then, _source(old)), _ways(rule, _source(new))
            for brings in sorted(before_by.keys() ^ after_by.keys()):
                gained = brings in after_by
                told = after_by[brings] if gained else rule
                code, policy = (told.code, told.policy) if brings == "" or gained else (told.code, "")
                if not gained and after_by and _names_no_tenant(brings, _source(new)):
                    code, policy = DecisionCode.TENANT_MISSING, ""
                access = Access(operation=name, caller=caller, tenant=tenant, code=code, policy=policy, brings=brings)
                yield access, gained


def _ways(rule: Rule, source: TenantSource | None) -> dict[str, Rule]:
    """How the call can be made, by what it must bring: nothing more, where nothing is enough."""
    ways = _ways_by_token(rule)
    if source is None or source.path:
        return ways
    if source.header:
        header = f"header {source.header}"
        return {f"{brings} and {header}" if brings else header: told for brings, told in ways.items()}
    # No call does without a token, and what this brings about is decided by the rule for tokens if there is one.
    if rule.token is None:
        return {"token": rule} if ways else {}
    return _ways_by_token(msgspec.structs.replace(rule, verdict=Verdict.DENY))


def _names_no_tenant(brings: str, source: TenantSource | None) -> bool:
    """Whether the call leaves out the tenant, or the token that would name it."""
    if source is None or source.path:
        return False
    return brings == "" if source.claim else not brings.endswith(f"header {source.header}")


def _source(operation: OperationRules | None) -> TenantSource | None:
    return None if operation is None else operation.tenant


def _ways_by_token(rule: Rule) -> dict[str, Rule]:
    """The same, apart from the tenant."""
    if rule.verdict is Verdict.ALLOW:
        return {"": rule}
    if rule.token is None:
        return {}
    by_approver = {"token": rule.token.unapproved, "approval": rule.token.approved}
    by_approver |= {f"approval by {name}": origins for name, origins in rule.token.approved_by.items()}
    ways: dict[str, Rule] = {}
    for brings, origins in by_approver.items():
        by_origin = {"": origins.otherwise} | {f", begun by {o}": told for o, told in origins.by_origin.items()}
        ways |= {brings + origin: told for origin, told in by_origin.items() if told.verdict is Verdict.ALLOW}
    if "token" in ways:
        # Whoever needs no approval is not told what one would do.
        ways = {brings: told for brings, told in ways.items() if not brings.startswith("approval")}
    return ways


_NOBODY = Rule(verdict=Verdict.DENY, code=DecisionCode.UNLISTED_OPERATION)


def _by_caller(operation: OperationRules | None) -> dict[str, Rule | TenantRules]:
    outcomes: dict[str, Rule | TenantRules] = {}
    for cell in operation.cells if operation is not None else ():
        outcome = cell.rule if cell.rule is not None else cell.tenants
        if outcome is not None:
            outcomes.update(dict.fromkeys(cell.callers, outcome))
    return outcomes


def _exceptions(outcome: Rule | TenantRules) -> dict[str, Rule]:
    return {} if isinstance(outcome, Rule) else outcome.by_tenant


def _rule(outcome: Rule | TenantRules, tenant: str) -> Rule:
    return outcome if isinstance(outcome, Rule) else outcome.by_tenant.get(tenant, outcome.otherwise)


def _service_changes(name: str, before: _Version, after: _Version) -> Iterator[str]:
    old, new = before.services[name], after.services[name]
    if before.workloads[name] != after.workloads[name]:
        yield "workload"
    for field in ("address", "port", "protocol", "upstream", "recording"):
        if getattr(old, field) != getattr(new, field):
            yield field
    if before.endpoints.get(name) != after.endpoints.get(name):
        yield "endpoints"
    old_forms = {o.name: (o.match, o.tenant) for o in old.operations}
    new_forms = {o.name: (o.match, o.tenant) for o in new.operations}
    if any(old_forms[o] != new_forms[o] for o in old_forms.keys() & new_forms.keys()):
        yield "operations"


def _operation_changes(before: _Version, after: _Version) -> Iterator[OperationChange]:
    for name in sorted(before.operations.keys() & after.operations.keys()):
        old, new = before.operations[name], after.operations[name]
        for field, then, now in (
            ("match", match_text(old), match_text(new)),
            ("tenant source", tenant_source_text(old), tenant_source_text(new)),
            ("tokens count", *("once" if o.single_use else "until they expire" for o in (old, new))),
        ):
            if then != now:
                yield OperationChange(operation=name, field=field, before=then or "none", after=now or "none")


def _only(these: Mapping[str, object], those: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(sorted(these.keys() - those.keys()))
