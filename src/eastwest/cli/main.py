"""The ``eastwest`` command: joins the nouns and turns every error into one sentence and an exit code.

0  done            2  wrong usage
1  refused, or the check found problems     3  a server or agent did not answer
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from eastwest import __version__
from eastwest.cli import agent, bundle, decisions, estate, log, mesh, server, sidecar, token
from eastwest.cli.demo import command as demo
from eastwest.errors import Code, Error

EXIT_REFUSED = 1
EXIT_UNREACHABLE = 3

app = typer.Typer(
    name="eastwest",
    help="Identity, mTLS, policy and evidence for calls between services.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(server.app, name="server", help="The authority: create, run and check it.")
app.add_typer(agent.app, name="agent", help="The agent of one node: run and check it.")
app.add_typer(sidecar.app, name="sidecar", help="Run Envoy beside a workload.")
app.add_typer(token.app, name="token", help="Join tokens for new nodes.")
app.add_typer(bundle.app, name="bundle", help="The trust bundle.")
app.add_typer(mesh.app, name="mesh", help="What every sidecar was told and has acknowledged.")
app.add_typer(log.app, name="log", help="The transparency log: show, prove, verify.")
app.add_typer(estate.estate_app, name="estate", help="The estate's own formats.")
app.command("plan")(estate.plan)
app.command("apply")(estate.apply)
app.command("decisions")(decisions.decisions)
app.command("demo")(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"eastwest {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line; never shows a traceback for an error that has a name."""
    try:
        app()
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        unreachable = error.code in {Code.UNAVAILABLE, Code.LOG_UNAVAILABLE}
        sys.exit(EXIT_UNREACHABLE if unreachable else EXIT_REFUSED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_REFUSED)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
