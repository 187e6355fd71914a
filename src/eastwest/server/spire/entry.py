"""``spire.api.server.entry.v1.Entry``: registration for administrators, synchronisation for agents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from eastwest.api.spire.api.server.entry.v1 import entry_pb2 as pb
from eastwest.api.spire.api.types import types_pb2
from eastwest.clock import Clock
from eastwest.errors import Error, InvalidInput, NotFound
from eastwest.registry.entries import Edit, Outcome
from eastwest.registry.entry import Entry
from eastwest.registry.listing import EntryFilter
from eastwest.registry.node import AGENT_PREFIX
from eastwest.registry.nodes import Nodes
from eastwest.registry.registry import Registry
from eastwest.rpc.service import Call, Service
from eastwest.rpc.spire import (
    entry_from_proto,
    entry_to_proto,
    id_from_proto,
    masked,
    match_from_proto,
    selectors_from_proto,
)
from eastwest.rpc.status import status_of
from eastwest.server.gate import AgentCaller, Gate
from eastwest.server.journal import Event, Journal
from eastwest.spiffe.id import SpiffeId, TrustDomain

PAGE = 500
"""Entries in one answer; agents written in Go refuse messages over 4 MiB."""
MAX_BATCH = 10_000
JOIN_TOKEN_PREFIX = f"{AGENT_PREFIX}join_token/"
HIDDEN = "(not-joined)"
_SERVICE = pb.DESCRIPTOR.services_by_name["Entry"]
_SYNC_FIELDS = (
    "id",
    "spiffe_id",
    "selectors",
    "federates_with",
    "admin",
    "downstream",
    "revision_number",
    "store_svid",
    "hint",
    "additional_attributes",
    "created_at",
)
EDITABLE = {
    # Mask field of SPIRE's message → fields of our entry.
    "spiffe_id": ("spiffe_id",),
    "parent_id": ("parent_id",),
    "selectors": ("selectors",),
    "x509_svid_ttl": ("x509_svid_ttl",),
    "jwt_svid_ttl": ("jwt_svid_ttl",),
    "federates_with": ("federates_with",),
    "admin": ("admin",),
    "downstream": ("downstream",),
    "expires_at": ("expires_at",),
    "dns_names": ("dns_names",),
    "store_svid": ("store_svid",),
    "hint": ("hint",),
    "additional_attributes": ("disable_x509_svid_prefetch", "jwt_svid_include_jti"),
}


class EntryService:
    """Translates between SPIRE's messages and the registry."""

    def __init__(
        self, registry: Registry, journal: Journal, clock: Clock, gate: Gate, taints: Callable[[], int] = lambda: 0
    ) -> None:
        """``taints`` counts how often an issuing CA was tainted. A stock agent hears of that by no other way than an
        entry whose revision has changed: it then makes the SVID anew.
        """
        self._taints = taints
        self._registry = registry
        self._journal = journal
        self._clock = clock
        self._gate = gate

    def service(self) -> Service:
        """The gRPC service."""
        return Service(
            _SERVICE,
            {
                "CountEntries": self._count,
                "ListEntries": self._list,
                "GetEntry": self._get,
                "BatchCreateEntry": self._create,
                "BatchUpdateEntry": self._update,
                "BatchDeleteEntry": self._delete,
                "GetAuthorizedEntries": self._authorized,
                "SyncAuthorizedEntries": self._sync,
            },
            guard=self._gate.enter,
        )

    async def _count(self, request: pb.CountEntriesRequest, call: Call) -> pb.CountEntriesResponse:
        caller = await self._gate.administrator(call)
        wanted = _filter(request.filter)
        if caller.sees_only_own:
            wanted = replace(wanted, managed_by=caller.managed_by)
        return pb.CountEntriesResponse(count=self._registry.entries.count(wanted))

    async def _list(self, request: pb.ListEntriesRequest, call: Call) -> pb.ListEntriesResponse:
        caller = await self._gate.administrator(call)
        wanted = _filter(request.filter)
        if caller.sees_only_own:
            wanted = replace(wanted, managed_by=caller.managed_by)
        page = self._registry.entries.list(
            wanted,
            page_size=min(request.page_size, 1000) if request.page_size > 0 else 0,
            page_token=request.page_token,
        )
        mask = request.output_mask if request.HasField("output_mask") else None
        return pb.ListEntriesResponse(
            entries=[masked(entry_to_proto(entry), mask) for entry in page.items], next_page_token=page.next_token
        )

    async def _get(self, request: pb.GetEntryRequest, call: Call) -> types_pb2.Entry:
        await self._gate.admin(call)
        entry = self._registry.entries.get(request.id)
        if entry is None:
            raise NotFound("entry not found")
        return masked(entry_to_proto(entry), request.output_mask if request.HasField("output_mask") else None)

    async def _create(self, request: pb.BatchCreateEntryRequest, call: Call) -> pb.BatchCreateEntryResponse:
        caller = await self._gate.administrator(call)
        _check_batch(len(request.entries))
        drafts = [_try(lambda message=message: entry_from_proto(message)) for message in request.entries]
        record = partial(note_entries, self._journal, self._registry.nodes, "entry.created", caller.name)
        entries = self._registry.entries
        good = [draft for draft in drafts if isinstance(draft, Entry)]
        created = iter(await entries.create(good, self._clock.now(), record, caller.writer(entries.rules)))
        outcomes = [next(created) if isinstance(draft, Entry) else Outcome(None, draft) for draft in drafts]
        mask = request.output_mask if request.HasField("output_mask") else None
        reply = pb.BatchCreateEntryResponse()
        for outcome in outcomes:
            reply.results.add(status=_status(outcome), entry=_shown(outcome, mask))
        return reply

    async def _update(self, request: pb.BatchUpdateEntryRequest, call: Call) -> pb.BatchUpdateEntryResponse:
        caller = await self._gate.administrator(call)
        _check_batch(len(request.entries))
        mask = request.input_mask if request.HasField("input_mask") else None
        edits = [(message.id, edit_of(message, mask)) for message in request.entries]
        record = partial(note_entries, self._journal, self._registry.nodes, "entry.changed", caller.name)
        entries = self._registry.entries
        outcomes = await entries.update(edits, self._clock.now(), record, caller.writer(entries.rules))
        output = request.output_mask if request.HasField("output_mask") else None
        reply = pb.BatchUpdateEntryResponse()
        for outcome in outcomes:
            reply.results.add(status=_status(outcome), entry=_shown(outcome, output))
        return reply

    async def _delete(self, request: pb.BatchDeleteEntryRequest, call: Call) -> pb.BatchDeleteEntryResponse:
        caller = await self._gate.administrator(call)
        _check_batch(len(request.ids))
        record = partial(note_entries, self._journal, self._registry.nodes, "entry.deleted", caller.name)
        entries = self._registry.entries
        outcomes = await entries.delete(list(request.ids), record, caller.writer(entries.rules))
        reply = pb.BatchDeleteEntryResponse()
        for entry_id, outcome in zip(request.ids, outcomes, strict=True):
            reply.results.add(status=_status(outcome), id=entry_id)
        return reply

    async def _authorized(self, request: pb.GetAuthorizedEntriesRequest, call: Call) -> pb.GetAuthorizedEntriesResponse:
        agent = await self._gate.agent(call)
        mask = request.output_mask if request.HasField("output_mask") else None
        entries = self._authorized_entries(agent)
        return pb.GetAuthorizedEntriesResponse(entries=[masked(entry_to_proto(entry), mask) for entry in entries])

    async def _sync(self, _request: None, call: Call) -> None:
        """Pages of revisions, then the entries asked for by id; or, when they fit, all entries at once."""
        agent = await self._gate.agent(call)
        first = await call.receive()
        if first is None:
            raise InvalidInput("the first request is missing")
        if first.ids:
            raise InvalidInput("the first request names no ids")
        mask = first.output_mask if first.HasField("output_mask") else None
        if mask is not None and not mask.revision_number:
            raise InvalidInput("the output mask must ask for revision_number")
        entries = self._authorized_entries(agent)
        if len(entries) <= PAGE:
            await call.send(pb.SyncAuthorizedEntriesResponse(entries=[_synced(entry, mask) for entry in entries]))
            return
        for start in range(0, len(entries), PAGE):
            revisions = [
                pb.EntryRevision(id=entry.id, revision_number=entry.revision, created_at=entry.created_at)
                for entry in entries[start : start + PAGE]
            ]
            more = start + PAGE < len(entries)
            await call.send(pb.SyncAuthorizedEntriesResponse(entry_revisions=revisions, more=more))
        by_id = {entry.id: entry for entry in entries}
        async for request in call:
            found = [by_id[entry_id] for entry_id in request.ids if entry_id in by_id]
            for start in range(0, max(len(found), 1), PAGE):
                part = [_synced(entry, mask) for entry in found[start : start + PAGE]]
                more = start + PAGE < len(found)
                await call.send(pb.SyncAuthorizedEntriesResponse(entries=part, more=more))

    def _authorized_entries(self, agent: AgentCaller) -> Sequence[Entry]:
        """What an agent may serve, with revisions that grow with the entry and with every taint."""
        entries = self._registry.authorized(agent.id, self._clock.now()).entries
        taints = self._taints()
        return [replace(entry, revision=entry.revision + taints) for entry in entries] if taints else entries


async def note_entries(journal: Journal, nodes: Nodes, kind: str, actor: str, outcomes: Sequence[Outcome]) -> None:
    """Record what a batch is about to do to entries: one event for each that will change."""
    changed = [outcome.entry for outcome in outcomes if outcome.error is None and outcome.entry is not None]
    await journal.record_all([Event(kind, actor, str(entry.spiffe_id), _facts(entry, nodes)) for entry in changed])


def _facts(entry: Entry, nodes: Nodes) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "entry": entry.id,
        "revision": entry.revision,
        "parent": _parent(entry.parent_id, nodes),
        "selectors": [str(selector) for selector in sorted(entry.selectors)],
        "managed_by": entry.managed_by,
    }
    # What gives rights is told when it is there.
    return facts | {name: True for name in ("admin", "downstream") if getattr(entry, name)}


def _parent(parent: SpiffeId, nodes: Nodes) -> str:
    """A parent's name for the log. One that is named by a join token and has not joined yet is that token."""
    if parent.path.startswith(JOIN_TOKEN_PREFIX) and nodes.get(parent) is None:
        return f"spiffe://{parent.trust_domain.name}{JOIN_TOKEN_PREFIX}{HIDDEN}"
    return str(parent)


def _check_batch(size: int) -> None:
    if size > MAX_BATCH:
        raise InvalidInput(f"a batch has at most {MAX_BATCH} items, not {size}")


def _try(parse: object) -> Entry | Error:
    try:
        return parse()  # type: ignore[operator, no-any-return]
    except Error as error:
        return error


def edit_of(message: types_pb2.Entry, mask: types_pb2.EntryMask | None) -> Edit:
    """How an entry changes: the masked fields come from the message, all of them without a mask."""

    def edit(current: Entry) -> Entry:
        # What the mask leaves out may be absent from the message, so it is read from the entry as it is.
        whole = entry_to_proto(current)
        for field in EDITABLE:
            if mask is None or getattr(mask, field):
                whole.ClearField(field)  # type: ignore[arg-type]
                source = types_pb2.Entry()
                source.CopyFrom(message)
                for other in [f.name for f, _ in message.ListFields() if f.name != field]:
                    source.ClearField(other)  # type: ignore[arg-type]
                whole.MergeFrom(source)
        parsed = entry_from_proto(whole)
        names = [name for field in EDITABLE for name in EDITABLE[field]]
        return replace(current, **{name: getattr(parsed, name) for name in names})

    return edit


def _filter(message: pb.ListEntriesRequest.Filter | pb.CountEntriesRequest.Filter) -> EntryFilter:
    def given(name: str) -> bool:
        return message.HasField(name)  # type: ignore[arg-type]

    federates = message.by_federates_with
    return EntryFilter(
        spiffe_id=id_from_proto(message.by_spiffe_id, "by_spiffe_id") if given("by_spiffe_id") else None,
        parent_id=id_from_proto(message.by_parent_id, "by_parent_id") if given("by_parent_id") else None,
        selectors=(
            (
                frozenset(selectors_from_proto(message.by_selectors.selectors)),
                match_from_proto(message.by_selectors.match),
            )
            if given("by_selectors")
            else None
        ),
        federates_with=(
            (frozenset(TrustDomain.parse(name) for name in federates.trust_domains), match_from_proto(federates.match))
            if given("by_federates_with")
            else None
        ),
        hint=message.by_hint.value if given("by_hint") else None,
        # SPIRE's command line always sends it, and false has always meant every entry.
        downstream=True if message.by_downstream.value else None,
    )


def _synced(entry: Entry, mask: types_pb2.EntryMask | None) -> types_pb2.Entry:
    message = entry_to_proto(entry)
    return masked(message, mask) if mask is not None else masked(message, types_pb2.EntryMask(), _SYNC_FIELDS)


def _status(outcome: Outcome) -> types_pb2.Status:
    if outcome.error is None:
        return types_pb2.Status(code=0, message="OK")
    return types_pb2.Status(code=status_of(outcome.error).value, message=str(outcome.error))


def _shown(outcome: Outcome, mask: types_pb2.EntryMask | None) -> types_pb2.Entry | None:
    return None if outcome.entry is None else masked(entry_to_proto(outcome.entry), mask)
