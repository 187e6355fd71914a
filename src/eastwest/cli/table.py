"""Tables that lose nothing: on a terminal long names are folded, elsewhere they are plain aligned lines."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

WORD = 28
"""Characters of a cell that is never folded: a time has 27, the longest code 24."""
GAP = 3
"""Columns between two cells, at most."""
EMPTY = "-"
"""What stands in an empty cell, so that columns can be counted."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` under ``columns``; no cell is ever cut short, and no word folded."""
    shown = [[printable(cell) or EMPTY for cell in row] for row in rows]
    if sys.stdout.isatty() and _fits(columns, shown):
        _on_terminal(columns, shown)
        return
    for line in plain_lines([columns, *shown]):
        print(line)


def _fits(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a terminal has room for all columns with long cells folded; else its own wrapping reads better."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    return sum(min(width, WORD) + GAP for width in widths) <= shutil.get_terminal_size().columns


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

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, *cells in zip(columns, *rows, strict=True):
        # What is read or copied as one word stays one: codes, times, counts. Names give way.
        short = max(map(len, (column, *cells))) <= WORD
        table.add_column(column, overflow="fold", no_wrap=short)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
