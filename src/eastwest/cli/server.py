"""``eastwest server``: create the authority, run it, check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eastwest.cli.options import AsJson, DataDir, examples, print_json, report_findings, run, start_logging, utc

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The authority: create, run and check it.")

Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Port for agents; 0 takes a free one.")]
Address = Annotated[str | None, typer.Option("--address", help="Address for agents; 127.0.0.1 unless told.")]


@app.command(
    epilog=examples(
        "eastwest server init --data data --trust-domain shop.example",
        "eastwest server init --data data --trust-domain shop.example --offline-root root.pem",
    )
)
def init(
    data: DataDir,
    trust_domain: Annotated[str, typer.Option(metavar="TD", help="The trust domain's name, such as saas.example.")],
    port: Port = None,
    address: Address = None,
    offline_root: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="PEM", help="The root, where its key is kept elsewhere."),
    ] = None,
    ca_key: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Key type of root and issuing CAs: ec-p256, ec-p384, ed25519.")
    ] = None,
    post_quantum: Annotated[
        bool | None, typer.Option("--post-quantum", help="A second root beside it, for ML-DSA-65 keys.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, metavar="FILE", help="A server.toml written beforehand, instead of flags."
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Make a new trust domain: root, issuing CA, token key, log key, and server.toml."""
    import msgspec

    from eastwest.cli.pem import read_root
    from eastwest.clock import SystemClock
    from eastwest.entropy import SystemEntropy
    from eastwest.server.config import ServerFile, read_file
    from eastwest.server.init import init_server

    given = {"agent_port": port, "agent_address": address, "ca_key": ca_key, "post_quantum": post_quantum}
    wanted = {name: value for name, value in given.items() if value is not None}
    try:
        file = msgspec.convert({"trust_domain": trust_domain, **wanted}, ServerFile)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(str(error)) from None
    text = None
    if config is not None:
        text = config.read_bytes()
        file = read_file(text, str(config), {})
        if given != dict.fromkeys(given) or file.trust_domain != trust_domain:
            raise typer.BadParameter(f"{config} and the flags differ: leave out the other flags")
    root = read_root(offline_root) if offline_root is not None else None
    made = run(lambda: init_server(data, file, SystemClock(), SystemEntropy(), root, text))
    below = made.not_after is None and not file.upstream
    following = f"eastwest ca export-csr --data {data} > issuing.csr" if below else f"eastwest server run --data {data}"
    if as_json:
        until = int(made.not_after.timestamp()) if made.not_after is not None else 0
        issuing = {"id": made.issuing_id, "not_after": utc(until)} if until else None
        told = {"trust_domain": trust_domain, "data": str(data), "issuing_ca": issuing, "log_vkey": made.log_key.vkey}
        print_json(told | {"next": following})
        return
    print(f"initialised trust domain {trust_domain} in {data}")
    if made.not_after is not None:
        print(f"  issuing CA  {made.issuing_id}, until {made.not_after:%Y-%m-%d}")
    print(f"  log         {made.log_key.vkey}")
    if below:
        print("the root is offline, so its issuing CA must be signed there:")
    print(f"next: {following}")


@app.command(
    "run",
    epilog=examples(
        "eastwest server run --data data", "eastwest server run --data data --address 10.0.0.5 --port 8081"
    ),
)
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
