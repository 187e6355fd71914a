"""Attested nodes: letting them in, following their certificates, shutting them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from eastwest.errors import InvalidInput, NotFound, PermissionDenied
from eastwest.registry.listing import NodeFilter, Page, paginate
from eastwest.registry.node import AGENT_PREFIX, SEEN_STEP, JoinToken, Node
from eastwest.registry.state import State
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector


class UnknownNode(NotFound):
    """No such node has attested, or it was evicted."""


class NodeBanned(PermissionDenied):
    """An operator shut the node out."""


class NodeKnown(PermissionDenied):
    """The node attested before in a way that works only once."""


class Nodes:
    """The nodes of a registry. A change has returned once it is durable, visible and told to listeners."""

    def __init__(self, trust_domain: TrustDomain, state: State) -> None:
        self._trust_domain = trust_domain
        self._state = state

    def get(self, agent_id: SpiffeId) -> Node | None:
        """The node with this agent ID, banned or not."""
        return self._state.index.nodes.get(agent_id)

    def count(self, wanted: NodeFilter | None = None) -> int:
        """How many nodes the filter admits."""
        if wanted is None or wanted == NodeFilter():
            return len(self._state.index.nodes)
        return len(self.list(wanted).items)

    def list(self, wanted: NodeFilter | None = None, *, page_size: int = 0, page_token: str = "") -> Page[Node]:
        """Nodes that the filter admits, by SPIFFE ID; a malformed page token raises ``MalformedSpiffeId``."""
        start = SpiffeId.parse(page_token) if page_token else None
        admits = (wanted or NodeFilter()).admits
        return paginate(self._state.index.nodes.after(start), admits, lambda node: str(node.spiffe_id), page_size)

    def ensure_may_attest(self, agent_id: SpiffeId, kind: str = "", token: JoinToken | None = None) -> None:
        """Raise ``NodeBanned``, or ``NodeKnown`` when the node is known and cannot attest again by this evidence.

        ``kind``: the attestor, which must be the one that let the node in. ``token``: the checked join token; it may
        bring back a node that has never been seen, for ``Tokens.check`` has compared the keys. Ask before a
        certificate is issued; ``record_attestation`` asks once more. Raises ``InvalidInput`` for what is no agent.
        """
        if not agent_id.is_member_of(self._trust_domain) or not agent_id.path.startswith(AGENT_PREFIX):
            raise InvalidInput(f"{agent_id} is not an agent's ID in {self._trust_domain}")
        node = self.get(agent_id)
        if node is None:
            return
        if node.banned:
            raise NodeBanned(f"{agent_id} is banned", fix="evict the agent to let it attest again")
        if kind and node.attestation_type != kind:
            raise NodeKnown(
                f"{agent_id} came in by {node.attestation_type}, which {kind} cannot replace",
                fix="evict the agent, or let the attestors give different IDs",
            )
        if not node.can_reattest and (token is None or node.last_seen):
            raise NodeKnown(
                f"{agent_id} has attested already and its kind of evidence works only once",
                fix="evict the agent, then join with new evidence",
            )

    async def record_attestation(self, node: Node, token: JoinToken | None = None) -> None:
        """Keep a node that has just attested, with the serial and end of the certificate it was given.

        ``token``, the join token it came by, is used up in the same step.
        """

        async def operation() -> None:
            self.ensure_may_attest(node.spiffe_id, node.attestation_type, token)
            known = self.get(node.spiffe_id)
            fresh = replace(node, serial_new="", new_not_after=0, banned=False)
            if known is not None:
                version = node.agent_version or known.agent_version
                fresh = replace(fresh, agent_version=version, last_seen=known.last_seen)
            await self._state.commit(put_nodes=[fresh], use_tokens=[token] if token is not None else [])

        await self._state.in_turn(operation)

    async def note_seen(self, agent_id: SpiffeId, now: datetime) -> None:
        """Keep that the node called; durably at the first call, then every ``SEEN_STEP`` seconds."""
        node, moment = self.get(agent_id), int(now.timestamp())
        if node is not None and not node.last_seen <= moment < node.last_seen + SEEN_STEP:
            await self._change(agent_id, lambda node: replace(node, last_seen=moment))

    def expired(self, ended_before: int, *, every_kind: bool = False) -> Sequence[Node]:
        """Nodes all of whose certificates ended before that moment (Unix seconds); never banned ones.

        Only those that can be forgotten without harm: they can prove themselves again, or came by a join token, which
        nobody can show a second time. ``every_kind``: also those that are trusted because they came first, whose
        place anybody with the same evidence could take.
        """
        return [
            node
            for node in self._state.index.nodes.after(None)
            if max(node.not_after, node.new_not_after) < ended_before
            and not node.banned
            and (every_kind or node.can_reattest or node.attestation_type == "join_token")
        ]

    async def record_renewal(self, agent_id: SpiffeId, serial: str, not_after: int) -> None:
        """Keep a renewed certificate; it becomes the current one when the agent first uses it (``promote``)."""
        await self._change(agent_id, lambda node: replace(node, serial_new=serial, new_not_after=not_after))

    async def promote(self, agent_id: SpiffeId, serial: str) -> None:
        """Make the renewed certificate the current one; no error if that is done or overtaken."""

        def promoted(node: Node) -> Node:
            if not serial or node.serial_new != serial:
                return node
            return replace(node, serial_current=serial, not_after=node.new_not_after, serial_new="", new_not_after=0)

        await self._change(agent_id, promoted)

    async def set_agent_version(self, agent_id: SpiffeId, version: str) -> None:
        """Keep what the agent says of itself; at most 128 characters of it."""
        await self._change(agent_id, lambda node: replace(node, agent_version=version[:128]))

    async def set_selectors(self, agent_id: SpiffeId, selectors: frozenset[Selector]) -> None:
        """Replace what is known of the node."""
        await self._change(agent_id, lambda node: replace(node, selectors=selectors))

    async def ban(self, agent_id: SpiffeId) -> None:
        """Shut a node out: it may neither call nor attest again until it is evicted."""

        async def operation() -> None:
            node = self.get(agent_id)
            if node is None:
                raise _unknown(agent_id)
            if not node.banned:
                await self._state.commit(put_nodes=[replace(node, banned=True)])

        await self._state.in_turn(operation)

    async def evict(self, agent_id: SpiffeId) -> None:
        """Forget a node, with the extra identities that its join token brought. It may attest again."""

        async def operation() -> None:
            if self.get(agent_id) is None:
                raise _unknown(agent_id)
            await self._forget([agent_id])

        await self._state.in_turn(operation)

    async def purge(self, nodes: Iterable[Node]) -> Sequence[Node]:
        """Forget nodes that are still as given; those that changed meanwhile stay. Returns the forgotten."""

        async def operation() -> Sequence[Node]:
            unchanged = [node for node in nodes if self.get(node.spiffe_id) == node]
            await self._forget([node.spiffe_id for node in unchanged])
            return unchanged

        return await self._state.in_turn(operation)

    async def _forget(self, agents: Sequence[SpiffeId]) -> None:
        own = [
            entry.id
            for agent_id in agents
            for entry in self._state.index.children(agent_id)
            if entry.selectors == frozenset({node_selector(agent_id)})
        ]
        await self._state.commit(drop_nodes=agents, drop_entries=own)

    async def _change(self, agent_id: SpiffeId, change: Callable[[Node], Node]) -> None:
        async def operation() -> None:
            node = self.get(agent_id)
            if node is None:
                raise _unknown(agent_id)
            if node.banned:
                raise NodeBanned(f"{agent_id} is banned", fix="evict the agent to let it attest again")
            changed = change(node)
            if changed != node:
                await self._state.commit(put_nodes=[changed])

        await self._state.in_turn(operation)


def node_selector(agent_id: SpiffeId) -> Selector:
    """The selector of an extra identity that belongs to one node; no workload ever has it."""
    return Selector("spiffe_id", str(agent_id))


def _unknown(agent_id: SpiffeId) -> UnknownNode:
    return UnknownNode(f"no node {agent_id} is known", fix="see eastwest node list")
