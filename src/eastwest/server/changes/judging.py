"""What an estate opens against the one that changes are compared with, and who may give the words that it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from eastwest.errors import Internal
from eastwest.policy.cells import Memory
from eastwest.policy.estate import Estate, ForeignWorkload
from eastwest.policy.load import load_estate
from eastwest.policy.risk import Requirement, Widening, required, widenings
from eastwest.policy.table import CompiledPolicy, compile_estate
from eastwest.registry.administrators import Administrator, Administrators
from eastwest.registry.changes import Change, Deciders, whose
from eastwest.server.changes.history import History
from eastwest.server.estate import EstateKeeper
from eastwest.server.tables import Table
from eastwest.store.estate import Activation, AppliedEstate, SqliteEstates

FIRST_DEPTH = 100
"""Versions that are looked through at first for the one before a break-glass."""
MAX_GAINS = 200
"""Callers that a report names for each thing that is opened; it counts them all."""
Standing = Callable[[str, Administrators], Administrator | None]
"""Whom a gate would find by a name, given the rows of some estate."""


@dataclass(frozen=True, slots=True)
class Base:
    """The version that changes are compared with: that in force, or during a break-glass the one before it."""

    version: str
    estate: Estate
    compiled: CompiledPolicy
    began: float = 0  # Unix seconds at which the break-glass began; 0: there is none


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a version opens, whose words that needs, and who may give them."""

    base: str
    version: str
    found: tuple[Widening, ...]
    requirements: tuple[Requirement, ...]
    deciders: Deciders
    always: bool  # two persons, even where there is no second one

    def missing(self, without: Collection[str]) -> list[Requirement]:
        """The words that nobody could give but those who stand behind the change themselves."""
        return [one for one in self.requirements if not self.deciders.eligible(one, without)]


class Judging:
    """Judges estates against the one in force."""

    def __init__(
        self,
        keeper: EstateKeeper,
        store: SqliteEstates,
        standing: Standing,
        full: Callable[[], Collection[str]],
    ) -> None:
        """``full`` gives the SPIFFE IDs of entries with ``admin``."""
        self._keeper = keeper
        self._store = store
        self._standing = standing
        self._full = full
        self._history = History(store)

    async def judge(self, estate: Estate, compiled: CompiledPolicy) -> Judgement:
        """The judgement on a version that was compiled from its files."""
        base = await self.base()
        if base is None:
            return Judgement("", compiled.version, (), (), Deciders((), lambda _name: None, ()), always=False)
        whole = await self._whole(estate, compiled)
        past = await self._history.past()
        found = await asyncio.to_thread(widenings, base.compiled, whole[1], base.estate, whole[0], past)
        settings = base.estate.settings
        return Judgement(
            base.version,
            compiled.version,
            found,
            required(found),
            self.deciders(base.estate),
            always=settings.changes.two_person == "always",
        )

    def deciders(self, estate: Estate) -> Deciders:
        """Who decides by the rows of an estate."""
        rows = Administrators()
        rows.replace(estate.settings.administrators)
        names = {row.who for row in estate.settings.administrators}.union(self._full())
        return Deciders(names, lambda name: self._standing(name, rows), estate.settings.groups)

    async def base(self) -> Base | None:
        """What changes are compared with; None before the first estate."""
        newest = self._keeper.tables.newest
        if newest is None:
            return None
        before = await self.before_emergency()
        if before is None:
            return Base(newest.version, _known(newest), newest.whole)
        applied, began = before
        estate = await asyncio.to_thread(load_estate, applied.files)
        compiled = await asyncio.to_thread(compile_estate, estate, Memory())
        whole = await self._whole(estate, compiled)
        return Base(applied.version, whole[0], whole[1], began)

    async def base_version(self) -> str:
        """Its version, "" before the first."""
        before = await self.before_emergency()
        return self._keeper.version if before is None else before[0].version

    async def base_of(self, change: Change, base: str) -> str:
        """``base``, or "" where another version was in force since the change was requested: nothing revives it."""
        for row in await self._store.versions(FIRST_DEPTH):
            if row.version == change.base:
                if row.applied_at.timestamp() <= (change.base_since or change.requested_at):
                    return base
            elif not is_emergency(row):
                break
        return ""

    async def since(self, base: str) -> float:
        """When the version that changes are compared with was put in force; Unix seconds."""
        rows = await self._store.versions(FIRST_DEPTH)
        return next((row.applied_at.timestamp() for row in rows if row.version == base), 0.0)

    async def before_emergency(self) -> tuple[AppliedEstate, float] | None:
        """The version that comes back after the break-glass, and when that began; None while there is none."""
        applied = self._keeper.applied
        return await self._before(applied) if applied is not None and is_emergency(applied) else None

    async def newly(self, applied: AppliedEstate, table: Table) -> tuple[Widening, ...]:
        """What the version opens by break-glass alone; nothing where it was applied otherwise."""
        if not is_emergency(applied):
            return ()
        found, _ = await self._before(applied)
        estate = await asyncio.to_thread(load_estate, found.files)
        compiled = await asyncio.to_thread(compile_estate, estate, Memory())
        old, new = await self._whole(estate, compiled), await self._whole(table.estate, table.compiled)
        return await asyncio.to_thread(widenings, old[1], new[1], old[0], new[0])

    async def _before(self, applied: AppliedEstate) -> tuple[AppliedEstate, float]:
        """The last version that was not applied by break-glass, and when the first one after it was."""
        depth = FIRST_DEPTH
        while True:
            history = await self._store.versions(depth)
            # A version that came back by itself has its own past, not that of what it came back from.
            own = next((i for i, row in enumerate(history) if row.version == applied.version and not row.cause), 0)
            began = history[own].applied_at.timestamp() if history else 0.0
            for row in history[own:]:
                if not is_emergency(row):
                    found = await self._store.find(row.version)
                    if found is None:
                        raise Internal(f"version {row.version[:12]} is listed and not there")
                    return found, began
                began = row.applied_at.timestamp()
            if len(history) < depth:  # never: the first version of all needs no break-glass
                raise Internal("no version is there that was not applied by break-glass")
            depth *= 10

    async def _whole(self, estate: Estate, compiled: CompiledPolicy) -> tuple[Estate, CompiledPolicy]:
        """The same with the callers that entries registered by API make known under it."""
        registered: tuple[ForeignWorkload, ...] = self._keeper.tables.known(estate)
        if not registered:
            return estate, compiled
        whole = msgspec.structs.replace(estate, registered=registered)
        return whole, await asyncio.to_thread(compile_estate, whole, Memory())


def _known(table: Table) -> Estate:
    return msgspec.structs.replace(table.estate, registered=table.registered)


def is_emergency(row: AppliedEstate | Activation) -> bool:
    """Whether a version was applied by break-glass."""
    return row.standing is not None and bool(row.standing.break_glass)


def told(judgement: Judgement, without: Collection[str]) -> dict[str, Any]:
    """The judgement as commands show it, where ``without`` stand behind the change."""
    return {
        "version": judgement.version,
        "base": judgement.base,
        "widenings": told_widenings(judgement.found),
        "required_approvals": [
            {
                "domain": one.domain,
                "owner": one.owner,
                "of": whose(one),
                "why": one.why,
                "approvers": judgement.deciders.eligible(one, without),
            }
            for one in judgement.requirements
        ],
        "nobody_could_approve": bool(judgement.missing(without)),
        "two_person": "always" if judgement.always else "where-possible",
    }


def told_widenings(found: Collection[Widening]) -> list[Mapping[str, Any]]:
    """What is opened, as commands show it: the first callers by name, all of them counted."""
    return [
        {
            "kind": one.kind,
            "subject": one.subject,
            "why": one.why,
            "domain": one.domain,
            "owner": one.owner,
            "sensitivity": one.sensitivity,
            "needs_approval": one.needs,
            "callers": len({gain.caller for gain in one.gains}),
            "gains": [msgspec.to_builtins(gain) for gain in one.gains[:MAX_GAINS]],
        }
        for one in found
    ]
