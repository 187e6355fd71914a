"""Decisions for people and for spreadsheets: what a peer chose stays a value."""

import csv
import io
import sys
from datetime import UTC, datetime, timedelta

import pytest
import typer
from typer.testing import CliRunner

from eastwest.cli.decisions.command import app
from eastwest.cli.decisions.filters import moment_of
from eastwest.cli.decisions.show import print_csv, print_rows, print_totals, write_pieces
from eastwest.errors import InvalidInput
from eastwest.testing.ledgers import HOSTILE, WEB

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
COMMANDS = ("\x1b", "\x07", "\u202e", "\x00")


def edge(**fields):
    counts = {"count": 2, "allowed": 1, "denied": 1, "reported": 0}
    named = {"caller": WEB, "claimed": False, "service": "orders", "operation": "orders.list"}
    return (
        named | counts | {"first": "2026-11-22T10:00:00Z", "last": "2026-11-22T10:00:01Z", "modes": ["strict"]} | fields
    )


def row(**fields):
    needed = {"row": 1, "kind": "decision", "time": "2026-11-22T10:00:00Z", "service": "orders", "code": "ALLOWED"}
    return needed | {"verdict": "allow", "mode": "strict", "enforced": True, "caller": WEB} | fields


class Terminal(io.TextIOWrapper):
    """Standard output as a person has it."""

    def isatty(self):
        return True


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_a_peer_chose_commands_a_terminal(text, monkeypatch, capsys):
    print_rows([row(caller=text, tenant=text), row(kind="lost", service=text)], as_json=False, follow=False)
    print_totals([edge(caller=text)])
    printed = capsys.readouterr().out
    terminal = Terminal(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", terminal)
    print_csv([edge(caller=text)])
    printed += terminal.buffer.getvalue().decode()
    assert printed
    assert not any(command in printed for command in COMMANDS)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_no_cell_of_csv_is_a_formula(text, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", output)
    print_csv([edge(caller=text)])
    [found] = csv.DictReader(io.StringIO(output.buffer.getvalue().decode(), newline=""))
    assert found["caller"] == f"'{text}"


async def pieces(*parts, fail=False):
    for part in parts:
        yield part
    if fail:
        raise InvalidInput("in the midst")


async def test_an_export_is_whole_or_not_there(tmp_path):
    target = tmp_path / "export"
    with pytest.raises(InvalidInput):
        await write_pieces(pieces(b"half", fail=True), target)
    assert list(tmp_path.iterdir()) == []
    await write_pieces(pieces(b"a", b"b"), target)
    assert target.read_bytes() == b"ab"


async def test_an_export_to_a_terminal_is_harmless_also_where_a_character_is_split(monkeypatch):
    terminal = Terminal(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", terminal)
    await write_pieces(pieces("\u20ac\x1b[2J".encode()[:2], "\u20ac\x1b[2J".encode()[2:]), None)
    assert terminal.buffer.getvalue().decode() == "\u20ac\ufffd[2J"


def test_times_are_written_as_people_do():
    assert moment_of("90m", NOW) == NOW - timedelta(minutes=90)
    assert moment_of("7d", NOW) == NOW - timedelta(days=7)
    assert moment_of("2026-11-22", NOW) == datetime(2026, 11, 22, tzinfo=UTC)
    assert moment_of("2026-11-22T10:00:00+02:00", NOW) == datetime(2026, 11, 22, 8, tzinfo=UTC)
    for text in ("yesterday", "", "9999999d", "999999d", "2026-13-01"):
        with pytest.raises(typer.BadParameter, match="is no time"):
            moment_of(text, NOW)


@pytest.mark.parametrize("words", [["--service", "orders", "top"], ["--ledger", ".", "edges"]])
def test_filters_before_a_command_are_refused_and_not_forgotten(words):
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert "unexpected extra argument" in found.output


def test_without_a_command_it_is_a_search():
    assert "search [OPTIONS]" in CliRunner().invoke(app, ["--verdict", "deny", "--limit", "0"]).output
    assert "export" in CliRunner().invoke(app, ["--help"]).output
