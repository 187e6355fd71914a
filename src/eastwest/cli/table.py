"""Tables that lose nothing: on a terminal they fold what is too wide, elsewhere they are plain aligned lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence

EMPTY = "-"
"""What stands in an empty cell, so that columns can be counted."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` under ``columns``; no cell is ever cut short."""
    shown = [[printable(cell) or EMPTY for cell in row] for row in rows]
    if sys.stdout.isatty():
        _on_terminal(columns, shown)
        return
    for line in plain_lines([columns, *shown]):
        print(line)


def plain_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line a row: columns as wide as their widest cell, two spaces between, nothing at the end."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def printable(text: str) -> str:
    """``text`` on one line, without what could command a terminal: parts of it may come from a hostile request."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _on_terminal(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
