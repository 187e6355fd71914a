"""How ``eastwest mesh status`` reads to a person."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb

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


def print_table(reply: pb.GetMeshStatusResponse, late: list[str]) -> None:
    """Agents and sidecars as a table, then what is behind."""
    console = Console()
    console.print(f"policy version {reply.policy_version[:SHORT] or '(none applied)'}")
    table = Table("agent", "sidecar", "SPIFFE ID", "intended", "acknowledged", "state")
    for agent in reply.agents:
        state = "connected" if agent.connected else "away"
        table.add_row(agent.agent_id, "", "", str(agent.intended_number), str(agent.acknowledged_number), state)
        for sidecar in agent.sidecars:
            state = "refused" if sidecar.error else "connected" if sidecar.connected else "away"
            intended, acknowledged = sidecar.intended_version[:SHORT], sidecar.acknowledged_version[:SHORT]
            table.add_row("", sidecar.node_id, sidecar.spiffe_id, intended, acknowledged, state)
    console.print(table)
    for sentence in late:
        console.print(f"[red]behind:[/red] {sentence}", highlight=False)
