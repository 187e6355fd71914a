"""Entries of the Eastwest admin API: what SPIRE's messages cannot say, dry runs, waiting for agents, explanations."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
from eastwest.api.eastwest.control.v1 import control_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.clock import Clock
from eastwest.errors import Error, InvalidInput
from eastwest.registry.entries import Edit, Outcome, Record
from eastwest.registry.entry import Attributes, Entry
from eastwest.registry.explain import explain
from eastwest.registry.listing import EntryFilter
from eastwest.registry.node import Node
from eastwest.registry.registry import Registry
from eastwest.rpc.service import Call, UnaryHandler
from eastwest.rpc.spire import entry_from_proto, entry_to_proto
from eastwest.rpc.status import status_of
from eastwest.server.control import ControlHub, Key
from eastwest.server.gate import Gate
from eastwest.server.journal import Journal
from eastwest.server.spire.entry import EDITABLE, MAX_BATCH, edit_of, note_entries
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.selector import Selector

MAX_PAGE = 1000
MAX_WAIT = 600_000  # milliseconds
MAX_SELECTORS = 10_000
_OWN_FIELDS = ("owner", "attributes")


class ManagedEntries:
    """Handlers for the service ``Admin``; writing goes through the same registry as SPIRE's API."""

    def __init__(self, registry: Registry, hub: ControlHub, journal: Journal, clock: Clock, gate: Gate) -> None:
        self._registry = registry
        self._hub = hub
        self._journal = journal
        self._clock = clock
        self._gate = gate

    def handlers(self) -> Mapping[str, UnaryHandler]:
        """By method name."""
        return {
            "ListEntries": self._list,
            "WriteEntries": self._write,
            "WaitForEntries": self._wait,
            "ExplainEntries": self._explain,
        }

    async def _list(self, request: pb.ListEntriesRequest, call: Call) -> pb.ListEntriesResponse:
        caller = await self._gate.administrator(call)
        wanted = EntryFilter(
            spiffe_id=SpiffeId.parse(request.spiffe_id) if request.spiffe_id else None,
            parent_id=SpiffeId.parse(request.parent_id) if request.parent_id else None,
            managed_by=caller.managed_by if caller.sees_only_own else request.managed_by or None,
        )
        size = min(request.page_size, MAX_PAGE) if request.page_size > 0 else MAX_PAGE
        page = self._registry.entries.list(wanted, page_size=size, page_token=request.page_token)
        return pb.ListEntriesResponse(entries=map(managed, page.items), next_page_token=page.next_token)

    async def _write(self, request: pb.WriteEntriesRequest, call: Call) -> pb.WriteEntriesResponse:
        caller = await self._gate.administrator(call)
        size = len(request.create) + len(request.update) + len(request.delete)
        if size > MAX_BATCH:
            raise InvalidInput(f"a batch has at most {MAX_BATCH} items, not {size}")
        entries, now, dry = self._registry.entries, self._clock.now(), request.dry_run
        writer = caller.writer(entries.rules)

        def record(kind: str) -> Record:
            return partial(note_entries, self._journal, self._registry.nodes, kind, caller.name)

        drafts = [_draft(message) for message in request.create]
        good = [draft for draft in drafts if isinstance(draft, Entry)]
        made = iter(await entries.create(good, now, record("entry.created"), writer, dry_run=dry))
        outcomes = [next(made) if isinstance(draft, Entry) else Outcome(None, draft) for draft in drafts]
        edits = [(change.entry.entry.id, _edit(change)) for change in request.update]
        outcomes += await entries.update(edits, now, record("entry.changed"), writer, dry_run=dry)
        outcomes += await entries.delete(list(request.delete), record("entry.deleted"), writer, dry_run=dry)
        reply = pb.WriteEntriesResponse(version=self._registry.version)
        for outcome in outcomes:
            reply.results.add(status=_status(outcome), entry=None if outcome.entry is None else managed(outcome.entry))
        return reply

    async def _wait(self, request: pb.WaitForEntriesRequest, call: Call) -> pb.WaitForEntriesResponse:
        await self._gate.administrator(call)
        if len(request.entries) > MAX_BATCH or not 0 <= request.timeout_ms <= MAX_WAIT:
            raise InvalidInput(f"wait for at most {MAX_BATCH} entries, at most {MAX_WAIT} ms")
        awaited = {item.id: item.revision for item in request.entries}
        try:
            async with asyncio.timeout(request.timeout_ms / 1000):
                while (reply := self._progress(awaited)).pending:
                    await self._hub.heard()
        except TimeoutError:
            return self._progress(awaited)
        return reply

    def _progress(self, awaited: Mapping[str, int]) -> pb.WaitForEntriesResponse:
        """Which agents hold all that is awaited, as far as they have acknowledged."""
        concerned: dict[SpiffeId, list[tuple[str, int]]] = {}
        gone = [(entry_id, revision) for entry_id, revision in awaited.items() if revision < 0]
        for agent in self._hub.streams if gone else ():
            concerned[agent] = list(gone)
        for entry_id, revision in awaited.items():
            entry = self._registry.entries.get(entry_id)
            if entry is not None and revision >= 0:
                for agent in self._registry.holders([entry]):
                    concerned.setdefault(agent, []).append((entry_id, revision))
        reply = pb.WaitForEntriesResponse()
        for agent, wanted in sorted(concerned.items()):
            if not self._hub.serves(agent):
                reply.unknown.append(str(agent))
                continue
            held = self._hub.acknowledged(agent)
            done = held is not None and all(_holds(held, entry_id, revision) for entry_id, revision in wanted)
            (reply.acknowledged if done else reply.pending).append(str(agent))
        return reply

    async def _explain(self, request: pb.ExplainEntriesRequest, call: Call) -> pb.ExplainEntriesResponse:
        await self._gate.administrator(call)
        if len(request.selectors) > MAX_SELECTORS:
            raise InvalidInput(f"at most {MAX_SELECTORS} selectors are explained")
        selectors = frozenset(map(Selector.parse, request.selectors))
        node = None
        if request.node:
            node = self._registry.nodes.get(SpiffeId.parse(request.node))
            if node is None:
                raise InvalidInput(f"no node {request.node[:200]} is known", fix="see eastwest node list")
        explanation = explain(selectors, self._beside(node))
        body = msgspec.to_builtins(explanation) | {"words": explanation.words}
        return pb.ExplainEntriesResponse(explanation=msgspec.json.encode(body))

    def _beside(self, node: Node | None) -> Iterable[tuple[Entry, str]]:
        """All workload entries, each with why this node does not serve it."""
        now = self._clock.now()
        reached = None if node is None else {entry.id for entry in self._registry.reachable(node)}
        for entry in self._registry.entries.list().items:
            if entry.is_node_alias or entry.is_probe:
                continue
            obstacle = ""
            if entry.is_expired(now):
                obstacle = "the entry has ended"
            elif node is not None and node.banned:
                obstacle = f"the node {node.spiffe_id} is banned"
            elif node is not None and reached is not None and entry.id not in reached:
                obstacle = self._why_not_here(entry, node)
            elif node is None and not self._registry.holders([entry]):
                obstacle = f"no known node reaches {entry.parent_id}"
            yield entry, obstacle

    def _why_not_here(self, entry: Entry, node: Node) -> str:
        aliases = self._registry.entries.list(EntryFilter(spiffe_id=entry.parent_id)).items
        lacking = [sorted(alias.selectors - node.selectors) for alias in aliases if alias.is_node_alias]
        if not lacking:
            return f"it belongs on {entry.parent_id}, and this node is {node.spiffe_id}"
        nearest = min(lacking, key=len)
        return f"this node is not in {entry.parent_id}: it lacks {', '.join(map(str, nearest))}"


def managed(entry: Entry) -> pb.ManagedEntry:
    """An entry with all that is known of it."""
    return pb.ManagedEntry(
        entry=entry_to_proto(entry),
        managed_by=entry.managed_by or entry.origin.value,
        environment=entry.environment,
        owner=entry.owner,
        profile=entry.profile,
        attributes=[
            pb.Attribute(
                name=name, values=[value] if isinstance(value, str) else value, list=not isinstance(value, str)
            )
            for name, value in entry.attributes
        ],
    )


def _draft(message: pb.ManagedEntry) -> Entry | Error:
    try:
        return replace(entry_from_proto(message.entry), owner=message.owner, attributes=_attributes(message.attributes))
    except Error as error:
        return error


def _attributes(messages: Sequence[pb.Attribute]) -> Attributes:
    found: dict[str, str | tuple[str, ...]] = {}
    for message in messages:
        if message.name in found:
            raise InvalidInput(f"attribute {message.name[:80]!r} is given twice")
        if not message.list and len(message.values) != 1:
            raise InvalidInput(f"attribute {message.name[:80]!r} needs one value, or must be a list")
        found[message.name] = tuple(message.values) if message.list else message.values[0]
    return tuple(sorted(found.items()))


def _edit(change: pb.WriteEntriesRequest.Change) -> Edit:
    fields = list(change.fields)

    def edit(current: Entry) -> Entry:
        unknown = [name for name in fields if name not in EDITABLE and name not in _OWN_FIELDS]
        if unknown:
            raise InvalidInput(f"an entry has no field {unknown[0][:80]!r} to change")
        mask = None if not fields else types_pb2.EntryMask(**{name: True for name in fields if name in EDITABLE})
        edited = edit_of(change.entry.entry, mask)(current)
        if not fields or "owner" in fields:
            edited = replace(edited, owner=change.entry.owner)
        if not fields or "attributes" in fields:
            edited = replace(edited, attributes=_attributes(change.entry.attributes))
        return edited

    return edit


def _status(outcome: Outcome) -> types_pb2.Status:
    if outcome.error is None:
        return types_pb2.Status(code=0, message="OK")
    return types_pb2.Status(code=status_of(outcome.error).value, message=str(outcome.error))


def _holds(held: Mapping[Key, object], entry_id: str, revision: int) -> bool:
    item = held.get(Key(control_pb2.ResourceName.KIND_ENTRY, entry_id))
    if revision < 0:
        return item is None
    token = getattr(item, "token", None)
    return isinstance(token, tuple) and token[1] >= revision
