"""``eastwest policy export``: the compiled table for other enforcement points, and for review.

Exit codes: 0 done, 1 the estate has errors, 2 wrong usage, 3 the server does not answer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eastwest.cli.impact import IMPACT_EXAMPLES, impact
from eastwest.cli.options import AsJson, examples, print_json, run
from eastwest.cli.policy_lint import LINT_EXAMPLES, lint
from eastwest.cli.policy_test import TEST_EXAMPLES, run_tests
from eastwest.cli.rollout import ROLLOUT_EXAMPLES, pause, promote, resume, rollback, status, versions
from eastwest.cli.suggest import SUGGEST_EXAMPLES, suggest

if TYPE_CHECKING:
    from eastwest.policy.exports.model import Exported
    from eastwest.policy.table import CompiledPolicy

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Policies: try, judge, test and suggest them; what is in force where, and back.",
)


@app.callback()
def _policy() -> None:
    """Keeps the noun when it has only one verb."""


app.command(epilog=ROLLOUT_EXAMPLES["status"])(status)
app.command(epilog=ROLLOUT_EXAMPLES["versions"])(versions)
app.command(epilog=ROLLOUT_EXAMPLES["promote"])(promote)
app.command(epilog=ROLLOUT_EXAMPLES["pause"])(pause)
app.command(epilog=ROLLOUT_EXAMPLES["resume"])(resume)
app.command(epilog=ROLLOUT_EXAMPLES["rollback"])(rollback)
app.command(epilog=IMPACT_EXAMPLES)(impact)
app.command(epilog=SUGGEST_EXAMPLES)(suggest)
app.command(epilog=LINT_EXAMPLES)(lint)
app.command("test", epilog=TEST_EXAMPLES)(run_tests)


@app.command(
    epilog=examples(
        "eastwest policy export estate --format table",
        "eastwest policy export estate --format istio --service billing",
        "eastwest policy export --data data --format rego --out policy",
    )
)
def export(
    context: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The directory that holds estate.yaml."),
    ] = None,
    wanted: Annotated[
        str, typer.Option("--format", metavar="NAME", help="istio, linkerd, kubernetes, cilium, rego or table.")
    ] = "table",
    service: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this service; may be repeated.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            envvar="EASTWEST_DATA",
            readable=False,
            help="What this server has applied, instead of an estate's files.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Write files there, instead of printing.")
    ] = None,
    *,
    json: AsJson = False,
) -> None:
    """Write the policy in a format that other tools read; what a format cannot say is denied there, and told."""
    from eastwest.policy.exports.formats import FORMATS
    from eastwest.policy.exports.model import reported

    if wanted not in FORMATS:
        raise typer.BadParameter(f"{wanted[:80]!r} is none of {', '.join(FORMATS)}", param_hint="--format")
    given = context.get_parameter_source("data")
    if directory is not None and given is not None and given.name == "COMMANDLINE":
        raise typer.BadParameter("it is either a directory or --data of a server, not both", param_hint="DIR")
    compiled = _compiled(directory, data)
    exported = FORMATS[wanted](compiled, service or ())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in exported.files.items():
            (out / name).write_text(text, encoding="utf-8")
    if json:
        print_json(_report(exported, compiled, wanted, out))
        return
    if out is None:
        for text in exported.files.values():
            print(text, end="")
    else:
        for name in exported.files:
            print(out / name)
    for one in exported.narrower:
        print(f"narrower: {one}", file=sys.stderr)
    if left_out := reported(compiled):
        print(f"report mode: {left_out}", file=sys.stderr)


def _compiled(directory: Path | None, data: Path | None) -> CompiledPolicy:
    from eastwest.cli.estate import read_directory
    from eastwest.errors import NotFound
    from eastwest.policy.load import load_estate
    from eastwest.policy.table import compile_estate

    if directory is not None:
        return compile_estate(load_estate(read_directory(directory)))
    if data is None:
        raise typer.BadParameter("say which estate: a directory, or --data of a server", param_hint="DIR")

    from eastwest.cli.admin import AdminClient

    async def applied() -> dict[str, bytes] | None:
        async with AdminClient.connect(data) as admin:
            status = await admin.estate_status()
            return status["files"] if status else None

    files = run(applied)
    if files is None:
        raise NotFound("the server has no estate yet", fix="eastwest apply DIR --data DATA")
    return compile_estate(load_estate(files))


def _report(exported: Exported, compiled: CompiledPolicy, wanted: str, out: Path | None) -> dict[str, object]:
    return {
        "format": wanted,
        "version": compiled.version,
        "in_report_mode": compiled.summary.report,
        "files": {name: text if out is None else str(out / name) for name, text in exported.files.items()},
        "narrower": [
            {"service": n.service, "operation": n.operation, "callers": list(n.callers), "reason": n.reason}
            for n in exported.narrower
        ],
    }
