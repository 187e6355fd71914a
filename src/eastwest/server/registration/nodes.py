"""What administrators ask about nodes beyond SPIRE's API: groups, and when a node was last heard of."""

from __future__ import annotations

from collections.abc import Mapping

from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
from eastwest.clock import Clock
from eastwest.registry.node import Node
from eastwest.registry.nodes import UnknownNode
from eastwest.registry.registry import Registry
from eastwest.rpc.service import Call, UnaryHandler
from eastwest.rpc.spire import agent_to_proto
from eastwest.server.control import ControlHub
from eastwest.server.gate import Gate
from eastwest.server.journal import Journal
from eastwest.server.registration.purge import purge_nodes
from eastwest.spiffe.id import SpiffeId

MAX_PAGE = 1000


class NodeQueries:
    """The part of the admin API that lists nodes, and forgets old ones."""

    def __init__(self, registry: Registry, hub: ControlHub, journal: Journal, clock: Clock, gate: Gate) -> None:
        self._journal = journal
        self._clock = clock
        self._registry = registry
        self._hub = hub
        self._gate = gate

    def handlers(self) -> Mapping[str, UnaryHandler]:
        """By method of ``eastwest.admin.v1.Admin``."""
        return {"ListNodes": self._list, "PurgeNodes": self._purge}

    async def _list(self, request: pb.ListNodesRequest, call: Call) -> pb.ListNodesResponse:
        await self._gate.admin(call)
        if request.spiffe_id:
            wanted = SpiffeId.parse(request.spiffe_id)
            node = self._registry.nodes.get(wanted)
            if node is None:
                raise UnknownNode(f"no node {wanted} is known", fix="list the nodes: eastwest node list")
            return pb.ListNodesResponse(nodes=[self._described(node)])
        size = max(1, min(request.page_size or MAX_PAGE, MAX_PAGE))
        page = self._registry.nodes.list(page_size=size, page_token=request.page_token)
        return pb.ListNodesResponse(nodes=map(self._described, page.items), next_page_token=page.next_token)

    async def _purge(self, request: pb.PurgeNodesRequest, call: Call) -> pb.PurgeNodesResponse:
        actor = await self._gate.admin(call)
        ended_before = min(request.ended_before, int(self._clock.now().timestamp()))
        nodes = self._registry.nodes.expired(ended_before, every_kind=request.every_kind)
        gone = nodes if request.dry_run else await purge_nodes(self._registry, self._journal, actor, nodes)
        return pb.PurgeNodesResponse(spiffe_ids=[str(node.spiffe_id) for node in gone])

    def _described(self, node: Node) -> pb.ListNodesResponse.Node:
        return pb.ListNodesResponse.Node(
            agent=agent_to_proto(node),
            attested_at=node.attested_at,
            last_seen=node.last_seen,
            connected=self._hub.serves(node.spiffe_id),
            groups=self._registry.groups_of(node.spiffe_id),
            aliases=self._registry.aliases_of(node.spiffe_id),
        )
