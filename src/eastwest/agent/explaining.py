"""Why a process of this node has its identities, or none: asked by the node's operator, on a socket of its own.

The socket is root's and the agent's user's. It tells selectors of processes and names of entries, which no workload
may learn of another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from eastwest import errors
from eastwest.agent.knowledge import Knowledge
from eastwest.api.eastwest.agent.v1 import agent_pb2 as pb
from eastwest.attest.workload import WorkloadAttestor, gather_evidence
from eastwest.clock import Clock
from eastwest.registry.entry import Entry
from eastwest.registry.explain import explain
from eastwest.rpc.peer import Peer, peer_credentials
from eastwest.rpc.service import SMALL_MESSAGE, Call, Service

ADMIN_SOCKET_MODE = 0o600
_SERVICE = pb.DESCRIPTOR.services_by_name["NodeAdmin"]


def explain_service(attestors: Sequence[WorkloadAttestor], knowledge: Knowledge, clock: Clock) -> Service:
    """The gRPC service of the agent's admin socket."""

    async def guard(call: Call) -> None:
        _pid, uid, _gid = peer_credentials(call.socket)
        if uid not in {0, os.geteuid()}:
            raise errors.PermissionDenied(f"uid {uid} may not ask this agent about processes", fix="ask as root")

    async def explain_process(request: pb.ExplainProcessRequest, _call: Call) -> pb.ExplainProcessResponse:
        with Peer.of_pid(request.pid) as process:
            evidence = await gather_evidence(process, attestors)
        now = clock.now()

        def obstacle(entry: Entry) -> str:
            if entry.is_expired(now):
                return "the entry has ended"
            failed = sorted({s.type for s in entry.selectors - evidence.selectors} & set(evidence.failed))
            if failed:
                return f"attestor {failed[0]} cannot look now: {evidence.failed[failed[0]].message}"
            return ""

        entries = [(entry, obstacle(entry)) for entry in knowledge.state.entries.values() if not entry.is_node_alias]
        types = frozenset(attestor.name for attestor in attestors)
        explanation = explain(evidence.selectors, entries, types)
        words = list(explanation.words)
        words += [f"attestor {name} failed: {error.message}" for name, error in sorted(evidence.failed.items())]
        body = msgspec.to_builtins(explanation) | {
            "pid": request.pid,
            "attestors": sorted(types),
            "failed": {name: error.message for name, error in evidence.failed.items()},
            "state": knowledge.state.number,
            "words": words,
        }
        return pb.ExplainProcessResponse(explanation=msgspec.json.encode(body))

    return Service(_SERVICE, {"ExplainProcess": explain_process}, guard=guard, limit=SMALL_MESSAGE)
