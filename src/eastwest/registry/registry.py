"""The registry as the server uses it: three collections, and the answers that need more than one of them.

    registry = await Registry.open(trust_domain, store, entropy)
    registry.subscribe(lambda change: wake(change.agents))
    [outcome] = await registry.entries.create([draft], now)
    registry.authorized(agent_id, now).entries

Invariants:

- Memory follows the store: a change is durable before it is visible, and visible before listeners hear of it.
- Listeners hear every change, in order, with all the agents that it concerns; nothing is polled.
- Reads never wait, and between two awaits they see one whole version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from eastwest.entropy import Entropy
from eastwest.registry.authorized import Authorized, closure, holders, reaches
from eastwest.registry.entries import Entries
from eastwest.registry.entry import Entry
from eastwest.registry.groups import group_name
from eastwest.registry.node import Node, Verdict, judge
from eastwest.registry.nodes import NodeBanned, Nodes, UnknownNode
from eastwest.registry.ports import RegistryStore
from eastwest.registry.privileged import Privileged
from eastwest.registry.state import Listener, State
from eastwest.registry.tokens import Tokens
from eastwest.spiffe.id import SpiffeId, TrustDomain


class Registry:
    """Who may have what, in one trust domain. Make it with ``open``."""

    def __init__(self, trust_domain: TrustDomain, state: State, entropy: Entropy) -> None:
        self.trust_domain = trust_domain
        self._state = state
        self.entries = Entries(trust_domain, state, entropy)
        self.nodes = Nodes(trust_domain, state)
        self.privileged = Privileged(state)
        self.tokens = Tokens(trust_domain, state, self.entries, entropy)

    @classmethod
    async def open(cls, trust_domain: TrustDomain, store: RegistryStore, entropy: Entropy) -> Registry:
        """Read the store and be ready to answer."""
        state = State(store)
        await state.load()
        return cls(trust_domain, state, entropy)

    @property
    def version(self) -> int:
        """Grows by one with every change and never goes back, restarts included."""
        return self._state.version

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` after every change; the function returned ends that. It must be quick and not raise."""
        return self._state.subscribe(listener)

    def judge(self, agent_id: SpiffeId, serial: str, not_after: datetime, now: datetime) -> Verdict:
        """Whether an agent that showed this certificate may call; follow ``promote`` with ``nodes.promote``."""
        return judge(self.nodes.get(agent_id), serial, not_after, now)

    def authorized(self, agent_id: SpiffeId, now: datetime) -> Authorized:
        """All that the agent may issue; raises ``UnknownNode`` or ``NodeBanned``, never answers with a part."""
        entries = closure(self._state.index, self._admitted(agent_id))
        return Authorized(tuple(entry for entry in entries if not entry.is_expired(now)), self.version)

    def find_authorized(self, agent_id: SpiffeId, entry_id: str, now: datetime) -> Entry | None:
        """The entry with this id if the agent may issue it; raises as ``authorized`` does."""
        node = self._admitted(agent_id)
        entry = self.entries.get(entry_id)
        if entry is None or entry.is_expired(now) or not reaches(self._state.index, node, entry):
            return None
        return entry

    def reachable(self, node: Node) -> list[Entry]:
        """Every entry in the closure of a node, whether it may be issued now or not."""
        return closure(self._state.index, node)

    def holders(self, entries: Iterable[Entry]) -> set[SpiffeId]:
        """Every known node that reaches at least one of the entries."""
        return holders(self._state.index, entries)

    def groups_of(self, agent_id: SpiffeId) -> tuple[str, ...]:
        """Names of the node groups that the node belongs to, sorted; none for an unknown node."""
        node = self.nodes.get(agent_id)
        if node is None:
            return ()
        names = {group_name(alias.spiffe_id) for alias in self._state.index.aliases_of(node)}
        return tuple(sorted(names - {""}))

    def aliases_of(self, agent_id: SpiffeId) -> tuple[str, ...]:
        """SPIFFE IDs of the node aliases that the node matches, groups included, sorted; none for an unknown node."""
        node = self.nodes.get(agent_id)
        aliases = self._state.index.aliases_of(node) if node is not None else ()
        return tuple(sorted({str(alias.spiffe_id) for alias in aliases}))

    def _admitted(self, agent_id: SpiffeId) -> Node:
        node = self.nodes.get(agent_id)
        if node is None:
            raise UnknownNode(f"no node {agent_id} is known", fix="attest again")
        if node.banned:
            raise NodeBanned(f"{agent_id} is banned", fix="evict the agent to let it attest again")
        return node
