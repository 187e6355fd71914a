"""Which registered identity a process would be given if it asked: the likely name of one that called without any."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from eastwest import errors
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.peers.finder import Describe
from eastwest.attest.workload import WorkloadAttestor, gather_evidence
from eastwest.clock import Clock
from eastwest.rpc.peer import Peer

SECONDS = 0.1
"""For all attestors together; a peer whose executable is still being hashed then has no likely identity yet."""


def likely_identity(attestors: Sequence[WorkloadAttestor], knowledge: Knowledge, clock: Clock) -> Describe:
    """Asks the attestors as for a caller of the agent's socket, and the entries of this node."""

    async def describe(pid: int, _started: int) -> str:
        try:
            with Peer.of_pid(pid) as process:
                async with asyncio.timeout(SECONDS):
                    evidence = await gather_evidence(process, attestors)
        except (errors.Error, TimeoutError):
            return ""
        now = clock.now()
        entries = [e for e in knowledge.state.matching(evidence.selectors) if not e.is_expired(now)]
        # The narrowest entry says most about the process.
        return max(((len(e.selectors), str(e.spiffe_id)) for e in entries), default=(0, ""))[1]

    return describe
