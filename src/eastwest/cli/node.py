"""``eastwest node``: the nodes that have attested."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, counted, print_json, run, utc

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Attested nodes: list, show, ban, evict, purge.")

DAY = 86400
NodeId = Annotated[str, typer.Argument(metavar="ID", help="The agent's SPIFFE ID.")]


@app.command("list")
def list_nodes(data: DataDir, *, as_json: AsJson = False) -> None:
    """Show every attested node: how it proved itself, until when its certificate runs, and whether it is banned."""
    nodes = _nodes(data)
    if as_json:
        print_json({"nodes": nodes})
        return
    for node in nodes:
        state = "BANNED" if node["banned"] else f"until {node['expires_at']}"
        away = "" if node["connected"] or node["banned"] else ", not connected"
        print(f"{node['id']}  ({node['attestation']}, {state}, {node['agent_version'] or 'version unknown'}{away})")
    print(counted(len(nodes), "node"))


@app.command()
def show(data: DataDir, node: NodeId, *, as_json: AsJson = False) -> None:
    """Show all that is known of one node, with the groups that it belongs to."""
    [found] = _nodes(data, node)
    if as_json:
        print_json(found)
        return
    state = "banned" if found["banned"] else "connected" if found["connected"] else "not connected"
    again = "attests again in place of renewing" if found["can_reattest"] else "renews; its evidence works once"
    print(found["id"])
    for label, value in (
        ("state", state),
        ("attested", f"by {found['attestation']}, {found['attested_at'] or 'time unknown'}; {again}"),
        ("certificate", f"until {found['expires_at']}, serial {found['serial'] or 'none'}"),
        ("last seen", found["last_seen"] or "never"),
        ("version", found["agent_version"] or "unknown"),
        ("groups", ", ".join(found["groups"]) or "none"),
        ("aliases", ", ".join(found["aliases"]) or "none"),
    ):
        print(f"  {label:<12} {value}")
    for selector in found["selectors"]:
        print(f"  {'selector':<12} {selector}")


@app.command()
def ban(data: DataDir, node: NodeId, *, as_json: AsJson = False) -> None:
    """Shut a node out at once: it gets nothing more and may not attest again until it is evicted."""
    _change(data, node, "ban")
    _tell(node, "banned", as_json=as_json)


@app.command()
def evict(data: DataDir, node: NodeId, *, as_json: AsJson = False) -> None:
    """Forget a node: it gets nothing more, and may join again with its evidence, or with a new token."""
    _change(data, node, "evict")
    _tell(node, "evicted", as_json=as_json)


@app.command()
def purge(
    data: DataDir,
    expired_for: Annotated[
        int, typer.Option(min=0, max=36500, metavar="DAYS", help="How long their certificates must have ended.")
    ] = 30,
    *,
    every_kind: Annotated[
        bool,
        typer.Option("--every-kind", help="Also nodes trusted on first use; whoever comes first takes their place."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget nodes that ended long ago and can be forgotten without harm. Banned ones stay."""
    from eastwest.cli.admin import AdminClient
    from eastwest.clock import SystemClock

    async def work() -> list[str]:
        ended_before = int(SystemClock().now().timestamp()) - expired_for * DAY
        async with AdminClient.connect(data) as admin:
            return await admin.purge_nodes(ended_before, every_kind=every_kind, dry_run=dry_run)

    chosen = run(work)
    if as_json:
        print_json({"nodes": chosen, "dry_run": dry_run})
        return
    for node in chosen:
        print(f"{'would be purged' if dry_run else 'purged'} {node}")
    print(counted(len(chosen), "node"))


def _nodes(data: Any, node: str = "") -> list[dict[str, Any]]:
    from eastwest.cli.admin import AdminClient

    async def work() -> list[Any]:
        async with AdminClient.connect(data) as admin:
            return await admin.nodes(node)

    return [_described(each) for each in run(work)]


def _described(node: Any) -> dict[str, Any]:
    agent = node.agent
    return {
        "id": f"spiffe://{agent.id.trust_domain}{agent.id.path}",
        "attestation": agent.attestation_type,
        "expires_at": utc(agent.x509svid_expires_at),
        "serial": agent.x509svid_serial_number,
        "banned": agent.banned,
        "can_reattest": agent.can_reattest,
        "selectors": [f"{selector.type}:{selector.value}" for selector in agent.selectors],
        "agent_version": agent.agent_version,
        "attested_at": utc(node.attested_at),
        "last_seen": utc(node.last_seen),
        "connected": node.connected,
        "groups": list(node.groups),
        "aliases": list(node.aliases),
    }


def _tell(node: str, state: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"id": node, "state": state})
    else:
        print(f"{state} {node}")


def _change(data: Any, node: str, verb: str) -> None:
    from eastwest.cli.spire import SpireAdmin
    from eastwest.spiffe.id import SpiffeId

    spiffe_id = SpiffeId.parse(node)

    async def work() -> None:
        async with SpireAdmin.connect(data) as spire:
            await getattr(spire, verb)(spiffe_id)

    run(work)
