"""Whether an administrator with limits may apply an estate: every object that differs must lie within them.

Objects are compared, before and after, not lines; but a file in which nothing of theirs stands may not differ at all,
comments included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from eastwest.policy.estate import Estate, Policy, Right, Service, Waiver, Workload
from eastwest.registry.administrators import Administrator, NotAllowed, Subject
from eastwest.registry.entry import Entry

_JUDGED = frozenset(
    {"settings", "profiles", "workloads", "services", "policies", "waivers", "schema", "positions", "notes"}
)


def check_scope(
    administrator: Administrator,
    before: Estate | None,
    after: Estate,
    files: tuple[Mapping[str, bytes], Mapping[str, bytes]],
    entry_of: Callable[[Workload], Entry],
) -> None:
    """Raise ``NotAllowed`` naming the first change outside of what the administrator may do.

    ``files`` are those in force and those to be; ``entry_of`` makes a workload's registration entry.
    """
    if administrator.has_everything:
        return
    _Scope(administrator, before, after, entry_of).check(*files)


class _Scope:
    def __init__(
        self, administrator: Administrator, before: Estate | None, after: Estate, entry_of: Callable[[Workload], Entry]
    ) -> None:
        self._admin = administrator
        self._sides = [side for side in (before, after) if side is not None]
        self._before = before
        self._after = after
        self._entry_of = entry_of
        self._changed_files: set[str] = set()

    def check(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
        if self._before is None or self._before.settings != self._after.settings:
            self._admin.require_unlimited(Right.EVERYTHING, "change estate.yaml")
        for name in sorted({field for side in self._sides for field in side.__struct_fields__} - _JUDGED):
            if self._before is None or getattr(self._before, name) != getattr(self._after, name):
                self._admin.require_unlimited(Right.EVERYTHING, f"change {name}")
        kinds: tuple[tuple[str, str, str, Callable[[Estate, Any], None]], ...] = (
            ("profiles", "profile", "profile", self._profile),
            ("workloads", "workload", "spiffe_id", self._workload),
            ("services", "service", "service", self._service),
            ("policies", "policy", "id", self._policy),
            ("waivers", "waiver", "waiver", self._waiver),
        )
        for plural, kind, key, judge in kinds:
            self._compare(plural, kind, key, judge)
        touched = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        for name in sorted(touched - self._changed_files):
            raise NotAllowed(
                f"{self._admin.name} may not change {name}: nothing in it that differs is theirs",
                fix="leave the file as it is in force",
            )

    def _compare(self, plural: str, kind: str, key: str, judge: Callable[[Estate, Any], None]) -> None:
        old = {getattr(item, key): item for item in getattr(self._before, plural)} if self._before else {}
        new = {getattr(item, key): item for item in getattr(self._after, plural)}
        for name in sorted({*old, *new}):
            if _same(old.get(name), new.get(name)):
                continue
            for side, items in ((self._before, old), (self._after, new)):
                if side is not None and name in items:
                    judge(side, items[name])
                    self._changed_files.add(side.position(kind, name).file)

    def _profile(self, _side: Estate, profile: Any) -> None:
        self._admin.require_unlimited(Right.PROFILES, f"change profile {profile.profile!r}")

    def _workload(self, _side: Estate, workload: Workload) -> None:
        self._admin.check_workload(self._entry_of(workload), workload.domain)

    def _service(self, side: Estate, service: Service) -> None:
        what = f"change service {service.service!r} of domain {service.domain}"
        self._admin.require_for(Right.SERVICES, Subject(domain=service.domain), what)
        owner = _domain_of(side, service.workload)
        if owner != service.domain:
            what = f"let service {service.service!r} be answered by {service.workload} of domain {owner or 'none'}"
            self._admin.require_for(Right.SERVICES, Subject(domain=owner), what)

    def _policy(self, side: Estate, policy: Policy) -> None:
        for domain in _resource_domains(side, policy):
            what = f"change policy {policy.id!r}, which is about " + (f"domain {domain}" if domain else "every domain")
            self._admin.require_for(Right.POLICIES, Subject(domain=domain), what)

    def _waiver(self, side: Estate, waiver: Waiver) -> None:
        scope = waiver.applies_to
        domains = [s.domain for s in side.services if s.service == scope.service]
        # A pattern of names may reach beyond any one domain.
        subject = Subject(domain=domains[0] if domains and scope.workload is None else "")
        self._admin.require_for(Right.WAIVERS, subject, f"change waiver {waiver.waiver!r}")


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Policy) and isinstance(new, Policy):
        # Comments and layout of a policy are its owner's as well.
        return msgspec.structs.asdict(old) == msgspec.structs.asdict(new)
    return bool(old == new)


def _domain_of(side: Estate, workload: str) -> str:
    return next((w.domain for w in side.workloads if w.spiffe_id == workload), "")


def _resource_domains(side: Estate, policy: Policy) -> Iterable[str]:
    """The domains that a policy's resource clause confines it to; ``""`` where it confines it to none."""
    services = {service.service: service.domain for service in side.services}
    domains = set()
    for tree in json.loads(policy.canonical)["staticPolicies"].values():
        clause = tree["resource"]
        entity = clause.get("entity") or (clause.get("in") or {}).get("entity") or {}
        if entity.get("type") == "Domain":
            domains.add(entity["id"])
        elif entity.get("type") == "Service":
            domains.add(services.get(entity["id"], ""))
        else:
            domains.add("")
    return sorted(domains)
