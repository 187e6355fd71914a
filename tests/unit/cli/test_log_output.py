"""Entries may hold what a refused caller asked for: shown, it commands neither a terminal nor a spreadsheet."""

import csv
import io
from datetime import UTC, datetime

import pytest

from eastwest.cli.log_reading import line, readable
from eastwest.cli.log_search import print_csv
from eastwest.log.entry import Entry, encode

TIME = datetime(2026, 11, 22, 10, tzinfo=UTC)


def entry(text):
    return encode(Entry("issuance.denied", {"time": TIME, "actor": "a", "subject": text}))


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;x\x07", "a\r\nb", "\x9b31m", "\u202e", "a\x00b", "\x7f"])
def test_nothing_in_an_entry_commands_a_terminal(text, capsys):
    for shown in (line(7, readable(entry(text))), line(7, [text]), line(7, {"kind": text, "time": 5})):
        assert shown.isprintable()
    print_csv([(7, entry(text))])
    [_, row] = capsys.readouterr().out.splitlines()
    assert row.isprintable()


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+1", "-1"])
def test_no_cell_begins_as_a_formula(text, capsys):
    print_csv([(7, entry(text))])
    [names, row] = csv.reader(io.StringIO(capsys.readouterr().out))
    assert row[names.index("subject")] == f"'{text}"
