"""The registry's state: memory that follows the store, and the news of each change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from eastwest.registry.authorized import holders
from eastwest.registry.entry import Entry
from eastwest.registry.index import Index
from eastwest.registry.node import JoinToken, Node
from eastwest.registry.ports import Batch, PrivilegedSvid, RegistryStore
from eastwest.spiffe.id import SpiffeId

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """What a listener hears, after it is durable and in memory.

    ``agents``: known nodes whose authorized entries may differ now (none is missing; some may turn out the
    same). ``ended``: nodes that were banned or removed, whose streams should close. ``entries``: ids that
    were created, updated or deleted.
    """

    version: int
    agents: frozenset[SpiffeId]
    ended: frozenset[SpiffeId]
    entries: frozenset[str]


Listener = Callable[[Change], None]


class State:
    """Holds the index, and changes it only after the store has.

    All changes go through ``commit``, which must run inside ``in_turn``. Reads of ``index`` between awaits
    always see a whole version.
    """

    def __init__(self, store: RegistryStore) -> None:
        self.store = store
        self.index = Index()
        self.svids: dict[str, PrivilegedSvid] = {}
        self.version = 0
        self._listeners: list[Listener] = []

    async def load(self) -> None:
        """Fill the index from the store; call once, before anything else."""
        snapshot = await self.store.load()
        for node in snapshot.nodes:
            self.index.put_node(node)
        for entry in snapshot.entries:
            self.index.put_entry(entry)
        self.version = snapshot.version
        self.svids = {svid.serial: svid for svid in snapshot.svids}

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` after every change, in order; the function returned ends that."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    async def in_turn(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run ``operation`` with nobody else deciding or writing meanwhile."""
        return await self.store.in_turn(operation)

    async def commit(
        self,
        *,
        put_entries: Iterable[Entry] = (),
        drop_entries: Iterable[str] = (),
        put_nodes: Iterable[Node] = (),
        drop_nodes: Iterable[SpiffeId] = (),
        use_tokens: Iterable[JoinToken] = (),
    ) -> None:
        """Store a batch, follow it in memory, tell the listeners. A failure of the store changes nothing."""
        batch = Batch(
            self.version + 1,
            tuple(put_entries),
            tuple(drop_entries),
            tuple(put_nodes),
            tuple(drop_nodes),
            tuple(use_tokens),
        )
        if batch == Batch(batch.version):
            return
        await self.store.apply(batch)
        self._notify(self._follow(batch))

    def _follow(self, batch: Batch) -> Change:
        index = self.index
        touched_ids = frozenset((*batch.drop_entries, *(entry.id for entry in batch.put_entries)))
        # An agent lost something only along paths that stood before, and gained only along paths that stand after.
        before = [entry for entry_id in touched_ids if (entry := index.entries.get(entry_id)) is not None]
        agents = holders(index, before)
        ended = {node.spiffe_id for node in batch.put_nodes if node.banned} | set(batch.drop_nodes)
        agents |= {node.spiffe_id for node in batch.put_nodes if _differs(index.nodes.get(node.spiffe_id), node)}
        for entry_id in batch.drop_entries:
            index.drop_entry(entry_id)
        for entry in batch.put_entries:
            index.put_entry(entry)
        for spiffe_id in batch.drop_nodes:
            index.drop_node(spiffe_id)
        for node in batch.put_nodes:
            index.put_node(node)
        agents |= holders(index, batch.put_entries)
        self.version = batch.version
        return Change(batch.version, frozenset(agents - ended), frozenset(ended), touched_ids)

    def _notify(self, change: Change) -> None:
        failure: Exception | None = None
        for listener in tuple(self._listeners):
            try:
                listener(change)
            except Exception as error:  # noqa: BLE001 - one listener's mistake must not keep the news from others
                failure = failure or error
        if failure is not None:
            raise failure


def _differs(old: Node | None, new: Node) -> bool:
    return old is None or old.banned != new.banned or old.selectors != new.selectors
