"""Tables that lose nothing: on a terminal long names are folded, elsewhere they are plain aligned lines.

Where a terminal is too narrow even for that, each row is a block of named values.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

WORD = 28
"""Characters of a cell that is never folded: a time has 27, the longest code 24."""
GAP = 3
"""Columns between two cells, at most."""
INDENT = "  "
EMPTY = "-"
"""What stands in an empty cell, so that columns can be counted."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` under ``columns``; no cell is ever cut short, and no word folded."""
    shown = [[printable(cell) or EMPTY for cell in row] for row in rows]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    if room and _needs(columns, shown, WORD) <= room:
        _on_terminal(columns, shown)
    elif room and _needs(columns, shown) > room:
        for line in blocks(columns, shown, room):
            print(line)
    else:
        for line in plain_lines([columns, *shown]):
            print(line)


def _needs(columns: Sequence[str], rows: Sequence[Sequence[str]], longest: int = sys.maxsize) -> int:
    """Columns of a terminal that a table takes whose cells are folded after ``longest`` characters."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    return sum(min(width, longest) + GAP for width in widths)


def blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[str]:
    """Each row as lines of named values: the first cell heads it, the others fill lines of ``room`` columns.

    A value that is longer than a line has one of its own, whole, and empty cells are left out: each has a name here.
    """
    lines: list[str] = []
    for row in rows:
        lines.append(f"{columns[0]}: {row[0]}")
        line = ""
        for name, cell in zip(columns[1:], row[1:], strict=True):
            if cell == EMPTY:
                continue
            told = f"{INDENT}{name}: {cell}"
            if line and len(line) + len(told) > room:
                lines.append(line)
                line = ""
            line += told
        lines += [line] if line else []
    return lines


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
