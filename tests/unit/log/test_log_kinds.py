"""The catalogue of kinds: complete, published, explained, and what the server may append."""

import ast
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest

from eastwest.log.kind import Type, UndeclaredEntry
from eastwest.log.kinds import KINDS
from eastwest.log.schema import log_schema, schema_text
from eastwest.server.journal import Journal
from eastwest.testing import FakeClock
from eastwest.testing.log import MemoryLog

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src/eastwest"
KIND = re.compile(r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$")
TIME = "2026-11-22T10:00:00.000000Z"


def test_the_published_schema_is_the_catalogue_s():
    published = (ROOT / "docs/reference/log-schema.json").read_text()
    assert published == schema_text(), "run `make generate`"
    jsonschema.Draft202012Validator.check_schema(json.loads(published))


def appended():
    """Every text that is handed to a journal, or to an event for one, as its kind; by file."""
    found = {}
    for path in [*SOURCE.glob("server/**/*.py"), *SOURCE.glob("issuance/*.py"), *SOURCE.glob("witness/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            kind = node.args[0]
            if called in {"record", "Event", "event", "note", "tell"} and isinstance(kind, ast.Constant):
                found[kind.value] = path.name
    return found


def test_every_kind_that_is_appended_is_in_the_catalogue():
    found = {kind: file for kind, file in appended().items() if isinstance(kind, str) and KIND.match(kind)}
    assert len(found) > 15
    assert {kind: file for kind, file in found.items() if kind not in KINDS} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_explained_with_its_fields(kind):
    page = (ROOT / "docs/reference/log.md").read_text()
    assert f"`{kind}`" in page
    for name in KINDS[kind].fields:
        assert f"`{name}`" in page, f"{kind}: {name}"


async def test_the_journal_refuses_what_is_not_declared():
    log, clock = MemoryLog(), FakeClock()
    journal = Journal(log, clock)
    with pytest.raises(UndeclaredEntry, match="no kind"):
        await journal.record("node.greeted", actor="a", subject="b")
    with pytest.raises(UndeclaredEntry, match="no field password"):
        await journal.record("node.banned", actor="a", subject="b", password="x")
    with pytest.raises(UndeclaredEntry, match="lacks level"):
        await journal.record("log_level.changed", actor="a", subject="b")
    assert log.size == 0
    await journal.record("node.banned", actor="a", subject="b")
    assert log.size == 1


EXAMPLES = {
    Type.TEXT: "x",
    Type.HEX: "00ff",
    Type.DECIMAL: "12",
    Type.BASE64: "AA==",
    Type.TIME: TIME,
    Type.INTEGER: 1,
    Type.FLAG: True,
    Type.TEXTS: ["a"],
    Type.TEXT_MAP: {"a": "b"},
    Type.OBJECT: {"a": [1]},
}
WRONG = {Type.TEXT: 1, Type.HEX: "XY", Type.DECIMAL: "a", Type.BASE64: "*", Type.TIME: "now", Type.INTEGER: 1.5}
WRONG |= {Type.FLAG: "true", Type.TEXTS: "a", Type.TEXT_MAP: {"a": 1}, Type.OBJECT: []}


def example(kind):
    entry = {"v": 1, "kind": kind.name, "time": TIME, "actor": "a", "subject": "s"}
    return entry | {name: (one.choices or (EXAMPLES[one.type],))[0] for name, one in kind.fields.items()}


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_the_schema_takes_such_an_entry_and_no_other(kind):
    validator = jsonschema.Draft202012Validator(log_schema())
    entry = example(kind)
    validator.validate(entry)
    assert not validator.is_valid(entry | {"extra": 1})
    assert not validator.is_valid(entry | {"v": 2})
    assert not validator.is_valid(entry | {"time": "2026-11-22T10:00:00Z"})
    for name, one in kind.fields.items():
        assert not validator.is_valid(entry | {name: WRONG[one.type]}), name
        without = {key: value for key, value in entry.items() if key != name}
        assert validator.is_valid(without) == one.optional, name


def test_times_of_entries_fit_the_schema():
    from eastwest.log.entry import timestamp

    entry = example(KINDS["node.banned"]) | {"time": timestamp(datetime(2026, 1, 1, tzinfo=UTC))}
    jsonschema.Draft202012Validator(log_schema()).validate(entry)
