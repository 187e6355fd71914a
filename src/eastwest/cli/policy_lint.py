"""``eastwest policy lint``: what is likely wrong with an estate that is valid.

Exit codes: 0 nothing as bad as --fail-on, 1 findings, or the estate has errors, 2 wrong usage, 3 no server answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eastwest.cli.estate_source import AppliedData, MaybeDirectory, source
from eastwest.cli.options import AsJson, counted, ensure_file, examples, print_json

if TYPE_CHECKING:
    from eastwest.policy.lint.run import Report

EXIT_FINDINGS = 1
LINT_EXAMPLES = examples(
    "eastwest policy lint estate",
    "eastwest policy lint estate --fail-on error --sarif lint.sarif",
    "eastwest policy lint --data data",
)


def lint(
    context: typer.Context,
    directory: MaybeDirectory = None,
    data: AppliedData = None,
    fail_on: Annotated[
        str, typer.Option("--fail-on", metavar="LEVEL", help="Exit with 1 from here on: error, warning or note.")
    ] = "warning",
    rule: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this rule; may be repeated.")] = None,
    sarif: Annotated[
        Path | None, typer.Option("--sarif", metavar="FILE", help="Write SARIF 2.1.0 for code scanning there, too.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Judge an estate: rights too wide, reads less guarded than writes, rules without effect, owners nobody knows."""
    from eastwest.cli.estate import _today
    from eastwest.policy.lint.rules import CATALOGUE, Level
    from eastwest.policy.lint.run import lint as judge
    from eastwest.policy.lint.run import only

    if fail_on not in list(Level):
        raise typer.BadParameter(f"{fail_on[:80]!r} is none of {', '.join(Level)}", param_hint="--fail-on")
    for name in rule or ():
        if name not in CATALOGUE:
            raise typer.BadParameter(f"{name[:80]!r} is none of {', '.join(CATALOGUE)}", param_hint="--rule")
    if sarif is not None:
        ensure_file(sarif)
    found = source(context, directory, data, registrations=True)
    level = Level(fail_on)
    report = only(judge(found.estate, found.compiled, _today(), found.registrations), rule or ())
    if sarif is not None:
        _write_sarif(report, directory, sarif)
    failed = bool(report.at_least(level))
    if as_json:
        print_json({"ok": not failed, **report.to_dict()})
    else:
        _show(report, directory)
    if failed:
        raise typer.Exit(EXIT_FINDINGS)


def _show(report: Report, directory: Path | None) -> None:
    from eastwest.cli.table import print_table, printable

    base = f"{directory}/" if directory is not None else ""
    if report.findings:
        rows = [(f.level.value, f.rule, f"{base}{f.where}") for f in report.findings]
        print_table(("LEVEL", "RULE", "WHERE"), rows)
        print()
        for finding in report.findings:
            print(printable(f"{base}{finding.where}: {finding.message}"))
            print(printable(f"    fix: {finding.fix}"))
        print()
    for finding in report.waived:
        print(printable(f"waived by {finding.waiver}: {finding.message} [{finding.rule}]"))
    counts = report.to_dict()["counts"]
    said = ", ".join(counted(counts[level], level) for level in ("error", "warning", "note"))
    print(f"{said}; {counted(len(report.waived), 'finding')} waived")


def _write_sarif(report: Report, directory: Path | None, out: Path) -> None:
    import msgspec

    from eastwest import __version__
    from eastwest.policy.lint.sarif import sarif

    base = f"{directory.as_posix()}/" if directory is not None and not directory.is_absolute() else ""
    made = sarif(report, __version__, "" if base == "./" else base)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(made)) + b"\n")
