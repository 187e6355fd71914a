"""``eastwest policy test``: the cases beside an estate's policies, and how much of the table they look at.

Exit codes: 0 all cases pass and cover enough, 1 they do not, or files have mistakes, 2 wrong usage, 3 no answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.estate_source import applied, from_files
from eastwest.cli.options import AsJson, counted, ensure_file, examples, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eastwest.policy.cases import Coverage, Outcome

EXIT_FAILED = 1
TEST_EXAMPLES = examples(
    "eastwest policy test estate",
    "eastwest policy test estate --min-allowing 80 --min-policies 100 --junit results.xml",
    "eastwest policy test estate --data data",
)


def run_tests(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The estate, with cases in its tests/.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", readable=False, help="Run the cases on what this server has applied instead."
        ),
    ] = None,
    min_coverage: Annotated[
        float, typer.Option("--min-coverage", metavar="PERCENT", min=0, max=100, help="Of cells; fail below it.")
    ] = 0,
    min_allowing: Annotated[
        float,
        typer.Option(metavar="PERCENT", min=0, max=100, help="Of cells that allow something; fail below it."),
    ] = 0,
    min_policies: Annotated[
        float, typer.Option(metavar="PERCENT", min=0, max=100, help="Of policies that decide a case; fail below it.")
    ] = 0,
    uncovered: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many cells to list that no case looks at.")
    ] = 10,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML for CI there, too.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Run the cases of DIR/tests on the compiled table, which answers as every enforcement point does."""
    from eastwest.cli.estate import read_directory
    from eastwest.errors import InvalidInput, NotFound
    from eastwest.policy.case_files import read_cases
    from eastwest.policy.cases import run_cases
    from eastwest.policy.junit import junit as as_junit

    if junit is not None:
        ensure_file(junit)
    found = from_files(read_directory(directory)) if data is None else applied(data)
    files = {f"tests/{path.name}": path.read_bytes() for path in sorted((directory / "tests").glob("*.yaml"))}
    for other in sorted((directory / "tests").glob("*.yml")):
        raise InvalidInput(f"nobody reads {other}", fix=f"call it {other.stem}.yaml")
    cases = read_cases(files)
    if not cases:
        raise NotFound(f"there are no cases in {directory}/tests", fix=f"write some into {directory}/tests/NAME.yaml")
    outcome = run_cases(cases, found.estate, found.compiled)
    if junit is not None:
        junit.write_text(as_junit(outcome), encoding="utf-8")
    short = list(_short(outcome.coverage, min_coverage, min_allowing, min_policies))
    if as_json:
        print_json({"ok": not outcome.failed and not short, "short": short, **_plain(outcome, uncovered)})
    else:
        _show(outcome, directory, uncovered)
        for each in short:
            print(each)
    if outcome.failed or short:
        raise typer.Exit(EXIT_FAILED)


def _short(coverage: Coverage, cells: float, allowing: float, policies: float) -> Iterator[str]:
    """What is covered less than was asked for."""
    for percent, least, what in (
        (coverage.percent, cells, "of cells"),
        (coverage.allowing_percent, allowing, "of cells that allow something"),
        (coverage.policies_percent, policies, "of policies"),
    ):
        if percent < least:
            yield f"covered are {percent:.1f}% {what}, less than {least:g}%"


def _show(outcome: Outcome, directory: Path, uncovered: int) -> None:
    from eastwest.cli.table import print_table, printable

    for result in outcome.failed:
        print(printable(f"FAILED {directory}/{result.where}: {result.case}"))
        print(printable(f"    expected {result.expected}"))
        for failure in result.failures:
            print(printable(f"    {failure}"))
    coverage = outcome.coverage
    passed = len(outcome.results) - len(outcome.failed)
    print(f"{counted(len(outcome.results), 'case')}: {passed} passed, {len(outcome.failed)} failed")
    print(
        f"coverage: {coverage.covered} of {coverage.cells} cells ({coverage.percent:.1f}%), "
        f"{coverage.allowing_covered} of {coverage.allowing} that allow something, "
        f"{coverage.policies - len(coverage.policies_unnamed)} of {coverage.policies} policies"
    )
    if coverage.gaps and uncovered:
        print(f"\nnot looked at by any case, the riskiest first ({coverage.cells - coverage.covered} in all):")
        rows = [
            (str(gap.weight), gap.operation, gap.sensitivity, gap.outcome, _who(gap.callers))
            for gap in coverage.gaps[:uncovered]
        ]
        print_table(("WEIGHT", "OPERATION", "SENSITIVITY", "THE TABLE SAYS", "CALLERS"), rows)
    if coverage.policies_unnamed and uncovered:
        print(f"\npolicies that decided no case: {', '.join(coverage.policies_unnamed[:uncovered])}")


def _who(callers: tuple[str, ...]) -> str:
    return callers[0] if len(callers) == 1 else f"{callers[0]} and {len(callers) - 1} more"


def _plain(outcome: Outcome, uncovered: int) -> dict[str, Any]:
    coverage = outcome.coverage
    return {
        "cases": [
            {
                "case": result.case,
                "file": result.where.file,
                "line": result.where.line,
                "passed": result.passed,
                "callers": result.asked,
                "expected": result.expected,
                "failures": [{"caller": failure.caller, "got": failure.told} for failure in result.failures],
            }
            for result in outcome.results
        ],
        "coverage": {
            "percent": round(coverage.percent, 2),
            "cells": coverage.cells,
            "covered": coverage.covered,
            "allowing": coverage.allowing,
            "allowing_covered": coverage.allowing_covered,
            "allowing_percent": round(coverage.allowing_percent, 2),
            "classes": coverage.classes,
            "policies": coverage.policies,
            "policies_percent": round(coverage.policies_percent, 2),
            "policies_uncovered": list(coverage.policies_unnamed),
            "uncovered": [
                {
                    "operation": gap.operation,
                    "sensitivity": gap.sensitivity,
                    "weight": gap.weight,
                    "outcome": gap.outcome,
                    "callers": list(gap.callers),
                }
                for gap in coverage.gaps[:uncovered]
            ],
        },
    }
