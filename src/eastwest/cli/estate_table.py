"""A plan on a terminal: problems as lines that editors can follow, changed access as a table."""

from __future__ import annotations

import sys
from pathlib import Path

from eastwest.cli.table import print_table
from eastwest.policy.diff import Access
from eastwest.policy.plan import Plan
from eastwest.policy.render import (
    MAX_ROWS,
    access_lines,
    change_lines,
    problem_lines,
    tenant_text,
    verdict_lines,
)


def print_plan(plan: Plan, directory: Path) -> None:
    """Print the whole plan; lines only where standard output is no terminal."""
    for line in (*problem_lines(plan, f"{directory}/"), *verdict_lines(plan)):
        print(line)
    if not plan.ok or plan.difference is None:
        return
    for line in change_lines(plan.difference):
        print(line)
    if not sys.stdout.isatty():
        for line in access_lines(plan.difference):
            print(line)
        return
    _print_table("newly allowed", "green", plan.difference.newly_allowed)
    _print_table("newly denied", "red", plan.difference.newly_denied)


def _print_table(title: str, colour: str, rows: tuple[Access, ...]) -> None:
    if not rows:
        return
    from rich.console import Console

    Console().print(f"{title}:", style=colour)
    cells = [
        (row.caller, row.operation, tenant_text(row.tenant), row.brings, row.code.value, row.policy)
        for row in rows[:MAX_ROWS]
    ]
    print_table(("caller", "operation", "tenant", "brings", "code", "policy"), cells)
    if len(rows) > MAX_ROWS:
        print(f"and {len(rows) - MAX_ROWS} more; --json has all")
