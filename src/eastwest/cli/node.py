"""``eastwest node``: the nodes that have attested."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, print_json, run

app = typer.Typer(no_args_is_help=True, help="Attested nodes: list, ban, evict.")

NodeId = Annotated[str, typer.Argument(metavar="ID", help="The agent's SPIFFE ID.")]


@app.command("list")
def list_nodes(data: DataDir, *, as_json: AsJson = False) -> None:
    """Show every attested node: how it proved itself, until when its certificate runs, and whether it is banned."""
    from eastwest.cli.spire import SpireAdmin

    async def work() -> list[Any]:
        async with SpireAdmin.connect(data) as spire:
            return await spire.nodes()

    nodes = [
        {
            "id": f"spiffe://{node.id.trust_domain}{node.id.path}",
            "attestation": node.attestation_type,
            "expires_at": datetime.fromtimestamp(node.x509svid_expires_at, UTC).isoformat(),
            "banned": node.banned,
            "selectors": [f"{selector.type}:{selector.value}" for selector in node.selectors],
            "agent_version": node.agent_version,
        }
        for node in run(work)
    ]
    if as_json:
        print_json({"nodes": nodes})
        return
    for node in nodes:
        state = "BANNED" if node["banned"] else f"until {node['expires_at']}"
        print(f"{node['id']}  ({node['attestation']}, {state}, {node['agent_version'] or 'version unknown'})")
    print(f"{len(nodes)} nodes")


@app.command()
def ban(data: DataDir, node: NodeId) -> None:
    """Shut a node out at once: it gets nothing more and may not attest again until it is evicted."""
    _change(data, node, "ban")
    print(f"banned {node}")


@app.command()
def evict(data: DataDir, node: NodeId) -> None:
    """Forget a node: it gets nothing more, and may join again with new evidence."""
    _change(data, node, "evict")
    print(f"evicted {node}")


def _change(data: Any, node: str, verb: str) -> None:
    from eastwest.cli.spire import SpireAdmin
    from eastwest.spiffe.id import SpiffeId

    spiffe_id = SpiffeId.parse(node)

    async def work() -> None:
        async with SpireAdmin.connect(data) as spire:
            await getattr(spire, verb)(spiffe_id)

    run(work)
