"""Creating, changing and finding registration entries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from eastwest.entropy import Entropy, random_uuid
from eastwest.errors import AlreadyExists, Error, FailedPrecondition, NotFound, PermissionDenied
from eastwest.registry.entry import Entry, Key, Origin
from eastwest.registry.estate import EstatePlan, plan_estate
from eastwest.registry.index import Index
from eastwest.registry.listing import EntryFilter, Page, paginate
from eastwest.registry.rules import Rules
from eastwest.registry.state import State
from eastwest.spiffe.id import TrustDomain

Edit = Callable[[Entry], Entry]


class SimilarEntry(AlreadyExists):
    """An entry with the same SPIFFE ID, parent and selectors, or the same id, is there."""


class UnknownEntry(NotFound):
    """No entry has this id."""


class KeptByEstate(FailedPrecondition):
    """The entry comes from the estate's files and can only be changed there."""


class KeptByOther(PermissionDenied):
    """The entry is kept by another hand than the controller that wants to change it."""


CONTROLLER_PREFIX = "controller:"


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes entries: what is noted as ``managed_by``, and what they may change.

    ``permits`` is given an entry before and after (None: it is not there) and raises ``PermissionDenied``.
    """

    managed_by: str = ""
    permits: Callable[[Entry | None, Entry | None], None] = lambda _before, _after: None

    def check(self, before: Entry | None, after: Entry | None) -> None:
        """Raise the refusal, if any; a controller may change only what it made."""
        if (
            before is not None
            and self.managed_by.startswith(CONTROLLER_PREFIX)
            and before.managed_by != self.managed_by
        ):
            raise KeptByOther(
                f"entry {before.id} for {before.spiffe_id} is kept by {before.managed_by or 'api'}, "
                f"not by {self.managed_by}",
                fix="leave it to whoever keeps it",
            )
        self.permits(before, after)


ANYBODY = Writer()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item of a batch: ``entry`` as it is now (``SimilarEntry``: the one in the way), or why not."""

    entry: Entry | None
    error: Error | None = None


Record = Callable[[Sequence[Outcome]], Awaitable[None]]
"""Writes down what a batch is about to do. When it raises, nothing of the batch takes effect."""


async def _unrecorded(_outcomes: Sequence[Outcome]) -> None: ...


class Entries:
    """The entries of a registry. Batches are answered item by item, in order; what succeeds is stored together.

    ``record`` is awaited before a batch is stored. Every method that changes something returns once the change is
    durable, visible and told to listeners.
    """

    def __init__(self, trust_domain: TrustDomain, state: State, entropy: Entropy) -> None:
        self._trust_domain = trust_domain
        self._state = state
        self._entropy = entropy
        self.rules = Rules()

    def get(self, entry_id: str) -> Entry | None:
        """The entry with this id."""
        return self._state.index.entries.get(entry_id)

    def count(self, wanted: EntryFilter | None = None) -> int:
        """How many entries the filter admits."""
        if wanted is None or wanted == EntryFilter():
            return len(self._state.index.entries)
        return len(self.list(wanted).items)

    def list(self, wanted: EntryFilter | None = None, *, page_size: int = 0, page_token: str = "") -> Page[Entry]:
        """Entries that the filter admits, by id. An entry created meanwhile may be missed; none comes twice."""
        index = self._state.index
        wanted = wanted or EntryFilter()
        narrowed: Iterable[Entry]
        if wanted.spiffe_id is not None:
            narrowed = _after(index.named(wanted.spiffe_id), page_token)
        elif wanted.parent_id is not None:
            narrowed = _after(index.children(wanted.parent_id), page_token)
        else:
            narrowed = index.entries.after(page_token or None)
        return paginate(narrowed, wanted.admits, lambda entry: entry.id, page_size)

    async def create(
        self,
        drafts: Sequence[Entry],
        now: datetime,
        record: Record = _unrecorded,
        writer: Writer = ANYBODY,
        *,
        dry_run: bool = False,
    ) -> Sequence[Outcome]:
        """Create entries; a draft without an id gets one. Revision, creation time and environment are set here.

        With ``dry_run`` everything is judged and nothing recorded or changed, here as below. Errors of items:
        ``InvalidEntry``, ``ImpossibleSelector``, ``SimilarEntry``, and what ``writer`` refuses.
        """
        return await self._state.in_turn(lambda: self._create(drafts, now, record, writer, dry_run=dry_run))

    async def update(
        self,
        edits: Sequence[tuple[str, Edit]],
        now: datetime,
        record: Record = _unrecorded,
        writer: Writer = ANYBODY,
        *,
        dry_run: bool = False,
    ) -> Sequence[Outcome]:
        """Change entries by id. Each edit gets the entry as it is and returns it as it should be.

        Id, creation time, origin and keeper stay; the revision grows by one if the content differs. Errors of items:
        those of ``create``, ``UnknownEntry``, ``KeptByEstate``, ``KeptByOther``, and what an edit raises of ``Error``.
        """
        return await self._state.in_turn(lambda: self._update(edits, now, record, writer, dry_run=dry_run))

    async def delete(
        self, ids: Sequence[str], record: Record = _unrecorded, writer: Writer = ANYBODY, *, dry_run: bool = False
    ) -> Sequence[Outcome]:
        """Delete entries. Errors of items: ``UnknownEntry``, ``KeptByEstate``, and what ``writer`` refuses."""
        return await self._state.in_turn(lambda: self._delete(ids, record, writer, dry_run=dry_run))

    def check(self, entry: Entry, now: datetime) -> None:
        """Raise what ``create`` would say of the entry itself, whatever else is registered."""
        entry.check(self._trust_domain)
        self.rules.check(entry, now.date())

    def plan_estate(self, intended: Iterable[Entry], now: datetime, rules: Rules | None = None) -> EstatePlan:
        """What ``replace_estate`` would do; raises as it would, or as ``rules`` demand."""
        return plan_estate(self._state.index, self._trust_domain, intended, now, rules or Rules())

    async def replace_estate(self, intended: Sequence[Entry], now: datetime) -> EstatePlan:
        """Make ``intended`` the whole of the estate's entries, at once; see ``eastwest.registry.estate``.

        Rules are not asked again: they judged the estate when it was applied (``plan_estate``), and a server must
        start with what is in force even when a waiver has ended since.
        """

        async def operation() -> EstatePlan:
            plan = self.plan_estate(intended, now)
            await self._state.commit(
                put_entries=(*plan.create, *(after for _, after in plan.update)),
                drop_entries=[entry.id for entry in plan.delete],
            )
            return plan

        return await self._state.in_turn(operation)

    async def expire(self, now: datetime) -> int:
        """Delete entries whose end has come; return how many. ``next_end`` says when to come back."""

        async def operation() -> int:
            over = [entry_id for entry_id, end in self._state.index.ends().items() if end <= now.timestamp()]
            await self._state.commit(drop_entries=over)
            return len(over)

        return await self._state.in_turn(operation)

    def next_end(self) -> int | None:
        """The earliest ``expires_at`` of any entry (Unix seconds), or ``None``."""
        return min(self._state.index.ends().values(), default=None)

    async def _create(
        self, drafts: Sequence[Entry], now: datetime, record: Record, writer: Writer, *, dry_run: bool
    ) -> Sequence[Outcome]:
        overlay = _Overlay(self._state.index)
        outcomes: list[Outcome] = []
        for draft in drafts:
            entry = replace(
                draft,
                id=draft.id or random_uuid(self._entropy),
                revision=0,
                created_at=int(now.timestamp()),
                origin=Origin.API,
                environment=self.rules.environment_of(draft.spiffe_id),
                managed_by=writer.managed_by or draft.managed_by or Origin.API.value,
            )
            outcomes.append(self._admit(overlay, entry, None, now, writer))
        if not dry_run:
            await record(outcomes)
            await self._state.commit(put_entries=overlay.puts.values())
        return outcomes

    async def _update(
        self,
        edits: Sequence[tuple[str, Edit]],
        now: datetime,
        record: Record,
        writer: Writer,
        *,
        dry_run: bool,
    ) -> Sequence[Outcome]:
        overlay = _Overlay(self._state.index)
        outcomes: list[Outcome] = []
        for entry_id, edit in edits:
            kept = overlay.get(entry_id)
            refusal = _refusal(entry_id, kept)
            if kept is None or refusal is not None:
                outcomes.append(Outcome(kept, refusal))
                continue
            try:
                edited = edit(kept)
            except Error as error:
                outcomes.append(Outcome(kept, error))
                continue
            edited = replace(
                edited,
                id=kept.id,
                created_at=kept.created_at,
                origin=kept.origin,
                managed_by=kept.managed_by,
                environment=(
                    kept.environment
                    if edited.spiffe_id == kept.spiffe_id
                    else self.rules.environment_of(edited.spiffe_id)
                ),
                revision=kept.revision,
            )
            if edited == kept:
                outcomes.append(Outcome(kept))
                continue
            edited = replace(edited, revision=kept.revision + 1)
            outcomes.append(self._admit(overlay, edited, kept, now, writer))
        if not dry_run:
            await record(outcomes)
            await self._state.commit(put_entries=overlay.puts.values())
        return outcomes

    async def _delete(self, ids: Sequence[str], record: Record, writer: Writer, *, dry_run: bool) -> Sequence[Outcome]:
        drops: dict[str, None] = {}
        outcomes: list[Outcome] = []
        for entry_id in ids:
            kept = None if entry_id in drops else self.get(entry_id)
            refusal = _refusal(entry_id, kept)
            if refusal is None:
                try:
                    writer.check(kept, None)
                except Error as error:
                    refusal = error
            outcomes.append(Outcome(kept, refusal))
            if refusal is None:
                drops[entry_id] = None
        if not dry_run:
            await record(outcomes)
            await self._state.commit(drop_entries=drops)
        return outcomes

    def _admit(self, overlay: _Overlay, entry: Entry, before: Entry | None, now: datetime, writer: Writer) -> Outcome:
        """Take the entry in, new (``before`` None) or in place of ``before``; or the outcome that says why not."""
        try:
            entry.check(self._trust_domain)
            writer.check(before, entry)
            self.rules.check(entry, now.date())
            self.rules.check_federation(entry, before)
        except Error as error:
            return Outcome(None, error)
        same_id = overlay.get(entry.id) if before is None else None
        similar = overlay.similar(entry.key) or same_id
        if similar is not None and (similar is same_id or similar.id != entry.id):
            return Outcome(
                similar,
                SimilarEntry(
                    f"entry {similar.id} for {similar.spiffe_id} has the same id, or the same parent and selectors",
                    fix="update that entry, or delete it first",
                ),
            )
        overlay.put(entry)
        return Outcome(entry)


class _Overlay:
    """The index as it will be once the items admitted so far are in."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.puts: dict[str, Entry] = {}
        self._by_key: dict[Key, Entry] = {}

    def get(self, entry_id: str) -> Entry | None:
        return self.puts.get(entry_id) or self._index.entries.get(entry_id)

    def similar(self, key: Key) -> Entry | None:
        if key in self._by_key:
            return self._by_key[key]
        kept = self._index.similar(key)
        # An update in this batch may have moved that entry to another key.
        return None if kept is None or kept.id in self.puts else kept

    def put(self, entry: Entry) -> None:
        earlier = self.puts.get(entry.id)
        if earlier is not None:
            del self._by_key[earlier.key]
        self.puts[entry.id] = entry
        self._by_key[entry.key] = entry


def _refusal(entry_id: str, kept: Entry | None) -> Error | None:
    if kept is None:
        return UnknownEntry(f"no entry has the id {entry_id[:80]!r}")
    if kept.origin is Origin.ESTATE:
        return KeptByEstate(
            f"entry {entry_id} for {kept.spiffe_id} comes from the estate's files",
            fix="change the workload there and run eastwest apply",
        )
    return None


def _after(entries: Iterable[Entry], page_token: str) -> list[Entry]:
    return sorted((entry for entry in entries if entry.id > page_token), key=lambda entry: entry.id)
