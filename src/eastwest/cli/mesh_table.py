"""How ``eastwest mesh status`` reads to a person."""

from __future__ import annotations

from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
from eastwest.cli.table import print_table, printable

SHORT = 12
"""Characters of a version that are shown."""


def behind(reply: pb.GetMeshStatusResponse) -> list[str]:
    """One sentence for each connected sidecar or agent that does not run what is intended."""
    found = []
    for agent in reply.agents:
        if agent.connected and agent.acknowledged_number != agent.intended_number:
            found.append(
                f"agent {agent.agent_id} has acknowledged update {agent.acknowledged_number} of {agent.intended_number}"
            )
        for sidecar in agent.sidecars:
            if sidecar.error:
                found.append(f"sidecar {sidecar.node_id} refused its configuration: {sidecar.error}")
            elif sidecar.connected and sidecar.acknowledged_version != sidecar.intended_version:
                found.append(f"sidecar {sidecar.node_id} has not acknowledged {sidecar.intended_version[:SHORT]}")
    return found


def print_status(reply: pb.GetMeshStatusResponse, late: list[str]) -> None:
    """Each agent with a table of its sidecars, then what is behind."""
    print(f"policy version {reply.policy_version[:SHORT] or '(none applied)'}")
    for agent in reply.agents:
        state = "connected" if agent.connected else "away"
        print(f"agent {agent.agent_id}: {state}, update {agent.acknowledged_number} of {agent.intended_number}")
        if agent.sidecars:
            columns = ("sidecar", "SPIFFE ID", "intended", "acknowledged", "state")
            print_table(columns, [_sidecar(sidecar) for sidecar in agent.sidecars])
    for sentence in late:
        print(f"behind: {printable(sentence)}")
    if not late:
        print("in step" if reply.agents else "no agent has connected since the server started")


def _sidecar(sidecar: pb.GetMeshStatusResponse.Sidecar) -> tuple[str, ...]:
    state = "refused" if sidecar.error else "connected" if sidecar.connected else "away"
    intended, acknowledged = sidecar.intended_version[:SHORT], sidecar.acknowledged_version[:SHORT]
    return sidecar.node_id, sidecar.spiffe_id, intended, acknowledged, state
