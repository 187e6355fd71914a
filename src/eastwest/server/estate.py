"""The estate in force: from files to registered entries, profiles and what every sidecar enforces.

Invariant: a version is recorded in the log, then stored, then takes effect; a server that dies in between finishes
the job at its next start, because everything is derived again from the stored files.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from eastwest.clock import Clock
from eastwest.errors import FailedPrecondition, InvalidInput, NotFound
from eastwest.issuance.issuer import Issuer
from eastwest.pki.profile import Profile, ProfileConfig
from eastwest.policy.enforcement import encode_sidecar
from eastwest.policy.estate import Estate, Workload
from eastwest.policy.forms import duration
from eastwest.policy.load import load_estate
from eastwest.policy.plan import plan_files
from eastwest.policy.problems import EstateInvalid
from eastwest.policy.table import CompiledPolicy, compile_estate
from eastwest.registry.entry import Entry, Origin
from eastwest.registry.groups import group_entries, group_id
from eastwest.registry.registry import Registry
from eastwest.server.journal import Journal
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.store.estate import AppliedEstate, SqliteEstates

ANY_VERSION = "*"
MAX_FILES = 5000
MAX_BYTES = 16 * 1024 * 1024 - 64 * 1024


@dataclass(frozen=True, slots=True)
class SidecarConfig:
    """One workload's compiled rules as they travel, the hash that tells them apart, and the services in them."""

    token: bytes
    data: bytes
    services: tuple[str, ...]


class EstateKeeper:
    """Holds the estate in force and puts new ones in force."""

    def __init__(
        self,
        trust_domain: TrustDomain,
        store: SqliteEstates,
        registry: Registry,
        issuer: Issuer,
        journal: Journal,
        clock: Clock,
    ) -> None:
        self._trust_domain = trust_domain
        self._store = store
        self._registry = registry
        self._issuer = issuer
        self._journal = journal
        self._clock = clock
        self._turn = asyncio.Lock()
        self._estate: Estate | None = None
        self._compiled: CompiledPolicy | None = None
        self.applied: AppliedEstate | None = None
        self.sidecars: Mapping[SpiffeId, SidecarConfig] = {}
        self.on_change: Callable[[], None] = lambda: None

    @property
    def version(self) -> str:
        """The content hash of the policy in force, or "" before the first."""
        return self._compiled.version if self._compiled else ""

    async def load(self) -> None:
        """Bring back what was in force; call once at start."""
        applied = await self._store.current()
        if applied is None:
            return
        estate, compiled = await asyncio.to_thread(_compile, applied.files)
        await self._put_in_force(applied, estate, compiled)

    async def apply(self, files: dict[str, bytes], expected: str, actor: str) -> dict[str, Any]:
        """Check, record, store and put in force; returns the plan that was carried out.

        Raises ``EstateInvalid`` with every problem, or ``FailedPrecondition`` when another version than ``expected``
        (``*``: any) is in force.
        """
        if len(files) > MAX_FILES or sum(map(len, files.values())) > MAX_BYTES:
            raise InvalidInput(f"an estate has at most {MAX_FILES} files and {MAX_BYTES} bytes")
        async with self._turn:
            if expected not in {ANY_VERSION, self.version}:
                raise FailedPrecondition(
                    f"version {self.version[:12] or '(none)'} is in force, not {expected[:12] or '(none)'}",
                    fix="plan again, then apply",
                )
            now = self._clock.now()
            plan = await asyncio.to_thread(plan_files, files, now.date(), self._compiled)
            estate, compiled = plan.estate, plan.compiled
            if not plan.ok or estate is None or compiled is None:
                raise EstateInvalid(plan.errors)
            if estate.settings.trust_domain != self._trust_domain.name:
                raise FailedPrecondition(
                    f"the estate is of {estate.settings.trust_domain}, this server of {self._trust_domain}",
                    where="estate.yaml",
                    fix="apply it to its own server",
                )
            self._registry.entries.plan_estate(registrations(estate, self._trust_domain), now)
            await self._record(compiled, estate, files, actor)
            applied = AppliedEstate(compiled.version, files, now, actor)
            await self._store.save(applied)
            await self._put_in_force(applied, estate, compiled)
            return plan.to_dict()

    def check_group(self, name: str) -> None:
        """Raise ``NotFound`` when the estate in force has no such node group."""
        groups = [group.name for group in self._estate.settings.node_groups] if self._estate else []
        if name not in groups:
            known = ", ".join(sorted(groups)) or "none; apply an estate first"
            raise NotFound(f"the estate has no node group {name!r}", fix=f"known: {known}")

    async def _record(self, compiled: CompiledPolicy, estate: Estate, files: Mapping[str, bytes], actor: str) -> None:
        modes = {service.service: service.listen.mtls.value for service in estate.services}
        await self._journal.record(
            "policy.activated",
            actor=actor,
            subject=self._trust_domain.uri,
            version=compiled.version,
            previous=self.version,
            files={name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
            modes=modes,
        )

    async def _put_in_force(self, applied: AppliedEstate, estate: Estate, compiled: CompiledPolicy) -> None:
        self._issuer.replace(profiles=[_profile(profile) for profile in estate.profiles])
        await self._registry.entries.replace_estate(registrations(estate, self._trust_domain), self._clock.now())
        sidecars = {}
        for spiffe_id, sidecar in compiled.sidecars.items():
            data = encode_sidecar(sidecar)
            sidecars[SpiffeId.parse(spiffe_id)] = SidecarConfig(
                hashlib.sha256(data).digest(), data, tuple(inbound.service for inbound in sidecar.inbound)
            )
        self.sidecars = sidecars
        self._estate, self._compiled, self.applied = estate, compiled, applied
        self.on_change()


def registrations(estate: Estate, trust_domain: TrustDomain) -> list[Entry]:
    """The registration entries that an estate intends."""
    entries = []
    for group in estate.settings.node_groups:
        selectors = [Selector.parse(text) for text in group.selectors]
        entries += group_entries(trust_domain, group.name, selectors)
    return entries + [_registration(workload, trust_domain) for workload in estate.workloads]


def _registration(workload: Workload, trust_domain: TrustDomain) -> Entry:
    group = workload.node.removeprefix("group:")
    parent = group_id(trust_domain, group) if group != workload.node else SpiffeId.parse(workload.node)
    return Entry(
        spiffe_id=SpiffeId.parse(workload.spiffe_id),
        parent_id=parent,
        selectors=frozenset(Selector.parse(text) for text in workload.selectors),
        x509_svid_ttl=int(duration(workload.ttl).total_seconds()) if workload.ttl else 0,
        dns_names=workload.dns_names,
        hint=workload.hint,
        profile=workload.profile,
        owner=workload.owner,
        origin=Origin.ESTATE,
    )


def _profile(profile: Any) -> Profile:
    return Profile.from_config(msgspec.convert(msgspec.to_builtins(profile), ProfileConfig))


def _compile(files: Mapping[str, bytes]) -> tuple[Estate, CompiledPolicy]:
    estate = load_estate(files)
    return estate, compile_estate(estate)
