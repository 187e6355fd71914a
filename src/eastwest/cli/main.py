"""The ``eastwest`` command: joins the nouns and turns every error into one sentence and an exit code.

0  done            2  wrong usage
1  refused, or the check found problems     3  a server or agent did not answer
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command

from eastwest import __version__
from eastwest.errors import Code, Error

EXIT_REFUSED = 1
EXIT_UNREACHABLE = 3
USAGE = "USAGE"
"""The code of wrong usage in JSON, which no server ever sends."""

# Name → module and the Typer application or the function in it, in the order that help shows.
COMMANDS = {
    "demo": ("eastwest.cli.demo.command", "demo"),
    "server": ("eastwest.cli.server", "app"),
    "agent": ("eastwest.cli.agent", "app"),
    "sidecar": ("eastwest.cli.sidecar", "app"),
    "token": ("eastwest.cli.token", "app"),
    "entry": ("eastwest.cli.entry", "app"),
    "node": ("eastwest.cli.node", "app"),
    "ca": ("eastwest.cli.ca", "app"),
    "bundle": ("eastwest.cli.bundle", "app"),
    "federation": ("eastwest.cli.federation", "app"),
    "jwt": ("eastwest.cli.jwt", "app"),
    "certificate": ("eastwest.cli.certificate", "app"),
    "approval": ("eastwest.cli.approval", "app"),
    "change": ("eastwest.cli.change", "app"),
    "contain": ("eastwest.cli.containment", "contain"),
    "release": ("eastwest.cli.containment", "release"),
    "containment": ("eastwest.cli.containment", "app"),
    "transaction": ("eastwest.cli.transaction", "app"),
    "plan": ("eastwest.cli.estate", "plan"),
    "apply": ("eastwest.cli.estate", "apply"),
    "estate": ("eastwest.cli.estate", "estate_app"),
    "service": ("eastwest.cli.service", "app"),
    "policy": ("eastwest.cli.policy", "app"),
    "blast": ("eastwest.cli.blast", "blast"),
    "mesh": ("eastwest.cli.mesh", "app"),
    "mtls": ("eastwest.cli.mtls", "app"),
    "explain": ("eastwest.cli.explain_decision", "explain"),
    "decisions": ("eastwest.cli.decisions.command", "app"),
    "failures": ("eastwest.cli.failures", "app"),
    "verify": ("eastwest.cli.verify", "app"),
    "log": ("eastwest.cli.log", "app"),
    "evidence": ("eastwest.cli.evidence.command", "app"),
    "witness": ("eastwest.cli.witness", "app"),
}


class Nouns(TyperGroup):
    """Imports a noun's module only when it is named, so that every command starts quickly."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        imported = importlib.import_module(module)
        target = getattr(imported, attribute)
        if not isinstance(target, typer.Typer):
            single = typer.Typer(add_completion=False)
            single.command(cmd_name, epilog=getattr(imported, "EXAMPLES", {}).get(cmd_name))(target)
            target = single
        command = get_command(target)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="eastwest",
    cls=Nouns,
    help="Identity, mTLS, policy and evidence for calls between services.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    """Run the command line; never shows a traceback for an error that has a name.

    Under ``--json`` an error is one JSON object on standard error, wrong usage included; exit codes are the same.
    """
    as_json = "--json" in sys.argv[1:]
    try:
        # Without the standalone mode wrong usage is raised to here, and an exit code is what is returned.
        sys.exit(app(standalone_mode=not as_json))
    except Error as error:
        # People are told the kind by the sentence, and the exact code where there is one to look up.
        message = error.message if as_json or not error.reason else f"{error.reason}: {error.message}"
        _tell(error.reason or error.code, message, error.fix, error.where, as_json=as_json)
        unreachable = error.code in {Code.UNAVAILABLE, Code.LOG_UNAVAILABLE}
        sys.exit(EXIT_UNREACHABLE if unreachable else EXIT_REFUSED)
    except TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "eastwest")
        _tell(USAGE, error.format_message(), f"see {command} --help", as_json=as_json)
        sys.exit(error.exit_code)
    except PermissionError as error:
        fix = "run it as its owner, or as root"
        _tell(Code.PERMISSION_DENIED, "this user may not open it", fix, str(error.filename), as_json=as_json)
        sys.exit(EXIT_REFUSED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_REFUSED)
    except OSError as error:
        if error.filename is None:
            raise
        _tell(Code.NOT_FOUND, error.strerror or str(error), "check the path", str(error.filename), as_json=as_json)
        sys.exit(EXIT_REFUSED)
    except KeyboardInterrupt:
        sys.exit(130)


def _tell(code: str, message: str, fix: str = "", where: str = "", *, as_json: bool) -> None:
    if as_json:
        import msgspec

        told = {"error": {"code": code, "message": message, "fix": fix, "where": where}}
        print(msgspec.json.encode(told).decode(), file=sys.stderr)
        return
    print(f"error: {f'{where}: ' if where else ''}{message}{f' ({fix})' if fix else ''}", file=sys.stderr)


if __name__ == "__main__":
    main()
