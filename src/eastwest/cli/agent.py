"""``eastwest agent``: run the agent of a node, and check what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eastwest.cli.options import AsJson, DataDir, examples, report_findings, run, start_logging

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The agent of one node: run and check it.")

Server = Annotated[str | None, typer.Option("--server", metavar="HOST:PORT", help="Where the server listens.")]
BundleFile = Annotated[
    Path | None, typer.Option("--bundle", metavar="FILE", help="The trust bundle: PEM, or SPIFFE JSON.")
]
TrustDomainName = Annotated[
    str | None, typer.Option("--trust-domain", metavar="TD", help="Only where the bundle does not say it.")
]
NodeAttestorName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="How this node proves itself; join_token. Its options are in --config."),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML with the same settings; flags win over it.")
]


@app.command(
    "run",
    epilog=examples(
        "eastwest agent run --data agent --server 10.0.0.5:8081 --bundle bundle.pem --join-token-file token",
        "eastwest agent run --data agent --config agent.toml",
    ),
)
def run_command(
    data: DataDir,
    server: Server = None,
    join_token: Annotated[
        str | None,
        typer.Option("--join-token", metavar="T", envvar="EASTWEST_JOIN_TOKEN", help="For the first start, once."),
    ] = None,
    join_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with the join token, out of others' sight.")
    ] = None,
    bundle: BundleFile = None,
    trust_domain: TrustDomainName = None,
    node_attestor: NodeAttestorName = None,
    config: ConfigFile = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    wait: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long to wait for the server at the start; 60.")
    ] = None,
    health_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Loopback port for /healthz and /metrics; 0 takes a free one."),
    ] = None,
) -> None:
    """Run the agent until it is told to stop."""
    import asyncio

    import uvloop

    from eastwest.agent import app as agent
    from eastwest.agent import config as settings_of

    settings = settings_of.override(
        settings_of.read_config(config),
        server=server,
        join_token_file=_text(join_token_file),
        bundle=_text(bundle),
        trust_domain=trust_domain,
        node_attestor=node_attestor,
        log_level=log_level,
        wait=wait,
        health_port=health_port,
    )
    checked = settings_of.check(settings, data, join_token or "", _where(config))
    start_logging(settings.log_level)

    def ready(line: str) -> None:
        print(line, flush=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(agent.run(checked, ready=ready))


@app.command()
def check(
    data: DataDir,
    server: Server = None,
    bundle: BundleFile = None,
    trust_domain: TrustDomainName = None,
    node_attestor: NodeAttestorName = None,
    config: ConfigFile = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Look for what keeps the agent from starting or workloads from reaching it; exit 1 when something is found."""
    from eastwest.agent import config as settings_of
    from eastwest.agent.check import check_agent
    from eastwest.clock import SystemClock
    from eastwest.entropy import SystemEntropy

    settings = settings_of.override(
        settings_of.read_config(config),
        server=server,
        bundle=_text(bundle),
        trust_domain=trust_domain,
        node_attestor=node_attestor,
    )
    findings = run(lambda: check_agent(data, settings, SystemClock(), SystemEntropy(), _where(config)))
    report_findings(findings, as_json=as_json)


def _where(config: Path | None) -> str:
    return str(config) if config is not None else "the agent's settings"


@app.command("why-no-identity")
def why_no_identity(
    data: DataDir,
    pid: Annotated[int, typer.Option(help="The process, as the agent sees it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Say which selectors a process of this node has, which entries it nearly matches, and what is missing."""
    from eastwest.cli.explain import explain_process, show_explanation

    show_explanation(explain_process(data, pid), as_json=as_json)


@app.command(
    epilog=examples(
        "eastwest agent receipt --data agent",
        "eastwest agent receipt spiffe://shop.example/web --data agent --out receipts",
    )
)
def receipt(
    data: DataDir,
    spiffe_id: Annotated[str, typer.Argument(metavar="SPIFFE-ID", help="Only of this identity.")] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each entry and its proof as files into this directory.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """The log's receipts for the certificates that the agent holds: list them, or carry them away."""
    from eastwest.cli.agent_receipts import show_receipts

    show_receipts(data, spiffe_id, out, as_json=as_json)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
