"""``eastwest sidecar``: Envoy beside a workload, with everything it enforces coming from the node's agent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from eastwest.cli.options import DataDir

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Run Envoy beside a workload.")


@app.callback()
def _sidecar() -> None: ...


@app.command("run")
def run_command(
    data: DataDir,
    egress_socket: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The application's way out; ./egress.sock unless told."),
    ] = None,
    admin_socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Envoy's own administration; envoy.sock beside the way out.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, metavar="N", help="Envoy's worker threads.")] = 1,
    node_id: Annotated[str | None, typer.Option(metavar="NAME", help="How `eastwest mesh status` names it.")] = None,
    envoy: Annotated[Path | None, typer.Option(metavar="PATH", help="Another Envoy than the one installed.")] = None,
    uid: Annotated[int | None, typer.Option(min=0, help="Become this user first (as root).")] = None,
    gid: Annotated[int | None, typer.Option(min=0, help="Become this group first (as root); the user's own.")] = None,
    log_level: Annotated[str, typer.Option(help="Envoy's: debug, info, warning or error.")] = "warning",
) -> None:
    """Become the workload's Envoy, which asks the agent under DIR what to do and who it is."""
    from eastwest.agent.sidecar_process import SidecarProcess

    agent_socket = data.absolute() / "agent" / "agent.sock"
    if not agent_socket.exists():
        print(f"no agent serves {agent_socket} yet: Envoy waits for it, and serves nothing before", file=sys.stderr)
    SidecarProcess(
        agent_socket=agent_socket,
        egress_socket=(egress_socket or Path("egress.sock")).absolute(),
        admin_socket=admin_socket.absolute() if admin_socket is not None else None,
        node_id=node_id or "",
        concurrency=concurrency,
        binary=envoy,
        uid=uid,
        gid=gid,
        log_level=log_level,
    ).become()
