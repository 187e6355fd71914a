"""``eastwest server``: create the authority, run it, check it."""

from __future__ import annotations

from typing import Annotated

import typer

from eastwest.cli.options import AsJson, DataDir, report_findings, run, start_logging

app = typer.Typer(no_args_is_help=True, help="The authority: create, run and check it.")

Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port for agents; 0 takes a free one.")]
Address = Annotated[str | None, typer.Option("--address", help="Address for agents; 127.0.0.1 unless told.")]


@app.command()
def init(
    data: DataDir,
    trust_domain: Annotated[str, typer.Option(metavar="TD", help="The trust domain's name, such as saas.example.")],
    port: Port = None,
    address: Address = None,
) -> None:
    """Make a new trust domain: root, issuing CA, token key, log key, and server.toml."""
    from eastwest.clock import SystemClock
    from eastwest.entropy import SystemEntropy
    from eastwest.server.config import ServerFile
    from eastwest.server.init import init_server

    given = {"agent_port": port, "agent_address": address}
    # The flags' types are those of the fields; a dictionary cannot say so.
    file = ServerFile(trust_domain=trust_domain, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    loaded = init_server(data, file, SystemClock(), SystemEntropy())
    print(f"initialised trust domain {trust_domain} in {data}")
    print(f"  issuing CA  {loaded.authority.key_id}, until {loaded.authority.not_after:%Y-%m-%d}")
    print(f"  log         {loaded.log_key.vkey}")
    print(f"next: eastwest server run --data {data}")


@app.command("run")
def run_command(
    data: DataDir,
    port: Port = None,
    address: Address = None,
    health_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port for health and metrics.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the authority until it is told to stop."""
    import asyncio
    from functools import partial

    import uvloop

    from eastwest.clock import SystemClock
    from eastwest.entropy import SystemEntropy
    from eastwest.server.app import run_server
    from eastwest.server.config import ServerConfig

    start_logging(log_level)
    config = ServerConfig.load(data, agent_port=port, agent_address=address, health_port=health_port)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_server(config, SystemClock(), SystemEntropy(), partial(print, flush=True)))


@app.command()
def check(data: DataDir, *, as_json: AsJson = False) -> None:
    """Look for what would keep the server from starting or from being trusted; exit 1 when something is found."""
    from eastwest.clock import SystemClock
    from eastwest.server.check import check_server

    findings = run(lambda: check_server(data, SystemClock()))
    report_findings(findings, as_json=as_json)
