"""Every way in which the log's database and files can be tampered with: what notices it, and which entry it names.

"at start" is ``SqliteLog.open``, "by verify" is ``eastwest log verify --data``, which anyone may run at any time. A log
of 21 bundles: the start looks at all hashes above the entries, but at the entries of the last 16 bundles only.
"""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from eastwest.clock import SystemClock
from eastwest.errors import Corrupt, LogUnavailable
from eastwest.log.note import NoteKey
from eastwest.log.proven import ProvenReader
from eastwest.log.tiles import decode_bundle, encode_bundle
from eastwest.log.verify import verify_log
from eastwest.store.database import Database
from eastwest.store.log import SqliteLog
from eastwest.store.log_check import verify_database
from eastwest.store.log_files import LogDirectory
from eastwest.store.log_rows import pack, unpack
from eastwest.testing.log import ORIGIN, TestSigner

SIZE = 5300
KEY = NoteKey.of(ORIGIN, TestSigner())


async def opened(folder, mark=None):
    database = Database.open(folder / "db", trust_domain="test.example", clock=SystemClock())
    try:
        log = await SqliteLog.open(
            database, folder / "log", origin=ORIGIN, signer=TestSigner(), clock=SystemClock(), mark=mark
        )
    except BaseException:
        await database.close()
        raise
    return database, log


async def grown(folder, *sizes, mark=None):
    database, log = await opened(folder, mark)
    for size in sizes:
        start = log.size
        await log.append([b"entry %d of the log" % i for i in range(start, start + size)])
        await log.flush()
        while await log.pack():
            pass
    await log.close()
    await database.close()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A log whose entries came in all ways: large appends, single ones, and a partial bundle at the end."""
    folder = tmp_path_factory.mktemp("log")
    asyncio.run(grown(folder, 2000, *[3] * 200, 2400, *[30] * 10))
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(pristine, copy)
    return copy


def sql(folder, *statements):
    connection = sqlite3.connect(folder / "db")
    connection.create_function("edited", 4, _edited)
    connection.create_function("flipped", 1, lambda raw: raw[:90] + bytes([raw[90] ^ 1]) + raw[91:])
    for statement in statements:
        assert connection.execute(statement).rowcount, f"nothing was changed by {statement}"
    connection.commit()
    connection.close()


def _edited(data, packed, old, new):
    changed = (unpack(data, 0) if packed else data).replace(old.encode(), new.encode())
    return pack(changed) if packed else changed


def flip(path, place=None):
    """One bit of one byte."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if place is None else place] ^= 1
    path.write_bytes(raw)


def rebundled(path, change):
    entries = decode_bundle(path.read_bytes())
    path.write_bytes(encode_bundle(change(entries)))


def swapped(entries):
    entries[3], entries[4] = entries[4], entries[3]
    return entries


def dropped(folder, table):
    with sqlite3.connect(folder / "db") as connection:
        connection.execute(f"DROP TABLE {table}")
    connection.close()


def swap_rows(folder, first, second):
    """Two rows of entries change places, hashes and all."""
    with sqlite3.connect(folder / "db") as connection:
        rows = {
            at: connection.execute("SELECT hashes, data, packed FROM log_segment WHERE first = ?", (at,)).fetchone()
            for at in (first, second)
        }
        assert len(rows[first][0]) == len(rows[second][0])
        for at, other in ((first, second), (second, first)):
            connection.execute(
                "UPDATE log_segment SET hashes = ?, data = ?, packed = ? WHERE first = ?", (*rows[other], at)
            )
    connection.close()


@dataclass(frozen=True)
class Case:
    """What is done, and who says what about it. ``start`` "" means: the log opens all the same."""

    damage: Callable
    start: str
    verify: str
    mends: bool = False
    """The start makes it good from the database."""


CASES = {
    "a flipped byte in an old tile": Case(
        lambda f: flip(f / "log/tile/0/001"), "", r"tile/0/001: hash \d+ of level 0 differs from the entries"
    ),
    "a flipped byte in a recent tile": Case(
        lambda f: flip(f / "log/tile/0/018"), r"tile/0/018 exists and differs", r"tile/0/018: hash \d+ of level 0"
    ),
    "a flipped byte in an upper tile": Case(
        lambda f: flip(f / "log/tile/1/000.p/20", 5 * 32), r"tile/1/000.p/20 exists and differs", r"hash 5 of level 1"
    ),
    "a flipped byte in an old bundle": Case(
        lambda f: flip(f / "log/tile/entries/001", 3), "", r"tile/entries/001: entry 256 was changed"
    ),
    "a flipped byte in a recent bundle": Case(
        lambda f: flip(f / "log/tile/entries/018", 3),
        r"tile/entries/018 exists",
        r"entries/018: entry 4608 was changed",
    ),
    "a flipped length in a bundle": Case(
        lambda f: flip(f / "log/tile/entries/002", 0), "", r"tile/entries/002: (entry \d+ of )?the bundle"
    ),
    "a flipped byte in the last bundle": Case(
        lambda f: flip(f / "log/tile/entries/020.p/180", 3), r"entries/020.p/180 exists", r"entry 5120 was changed"
    ),
    "reordered entries in a bundle": Case(
        lambda f: rebundled(f / "log/tile/entries/003", swapped), "", r"entries/003: entry 771 was changed"
    ),
    "a cut bundle": Case(
        lambda f: rebundled(f / "log/tile/entries/001", lambda e: e[:200]),
        "",
        r"entries/001: .* has 200 entries, not 256",
    ),
    "two bundles exchanged": Case(
        lambda f: [
            (f / "log/tile/entries/001").rename(f / "x"),
            (f / "log/tile/entries/002").rename(f / "log/tile/entries/001"),
            (f / "x").rename(f / "log/tile/entries/002"),
        ],
        "",
        r"tile/entries/001: entry 256 was changed",
    ),
    "an old bundle removed": Case(
        lambda f: (f / "log/tile/entries/001").unlink(), "", r"tile/entries/001: the entry bundle is missing"
    ),
    "a recent bundle removed": Case(
        lambda f: (f / "log/tile/entries/018").unlink(),
        "",
        r"tile/entries/018: the entry bundle is missing",
        mends=True,
    ),
    "the checkpoint's root changed": Case(
        lambda f: flip(f / "log/checkpoint", 40), "the last checkpoint was changed", "checkpoint: "
    ),
    "the checkpoint's size changed": Case(
        lambda f: (f / "log/checkpoint").write_bytes(
            (f / "log/checkpoint").read_bytes().replace(b"\n5300\n", b"\n5299\n")
        ),
        "the last checkpoint was changed",
        "checkpoint: the .*signature of .* is false",
    ),
    "the checkpoint removed": Case(
        lambda f: (f / "log/checkpoint").unlink(), "", "checkpoint: the log has no file", mends=True
    ),
    "an old entry changed in the database": Case(
        lambda f: sql(
            f, "UPDATE log_segment SET data = edited(data, packed, 'entry 700 ', 'entry 7X0 ') WHERE first = 512"
        ),
        "",
        "server.db: entry 700 is not the one in the log",
    ),
    "a recent entry changed in the database": Case(
        lambda f: sql(
            f, "UPDATE log_segment SET data = edited(data, packed, 'entry 4700 ', 'entry 4X00 ') WHERE first = 4608"
        ),
        "entry 4700 in the database was changed",
        "server.db: entry 4700 is not the one in the log",
    ),
    "an old entry changed in a packed bundle": Case(
        lambda f: sql(f, "UPDATE log_bundle SET data = edited(data, 1, 'entry 2100 ', 'entry 2X00 ') WHERE n = 8"),
        "entry 2100 in the database was changed",
        "server.db: entry 2100 is not the one in the log",
    ),
    "a flipped byte in a packed bundle": Case(
        lambda f: sql(
            f,
            "UPDATE log_segment SET data = flipped(data) WHERE first = 0",
        ),
        "",
        r"server.db: entr(ies from 0 on|y \d+ is not)",
    ),
    "a hash changed in the database": Case(
        lambda f: sql(
            f, "UPDATE log_segment SET hashes = CAST(zeroblob(32) || substr(hashes, 33) AS BLOB) WHERE first = 256"
        ),
        "",
        "server.db: the hash of entry 256 is not the one in the log",
    ),
    "a recent hash changed in the database": Case(
        lambda f: sql(
            f, "UPDATE log_segment SET hashes = CAST(zeroblob(32) || substr(hashes, 33) AS BLOB) WHERE first = 4608"
        ),
        "hashes of tile/0/018 in the database do not give the root",
        "server.db: the hash of entry 4608 is not the one in the log",
    ),
    "an upper hash changed in the database": Case(
        lambda f: sql(f, "UPDATE log_node SET hash = zeroblob(32) WHERE level = 1 AND n = 7"),
        "hashes of tile/0/007 in the database|entries in the database do not give the root",
        "server.db: (the hashes of tile/0/007|the 5300 entries)",
    ),
    "the head changed": Case(
        lambda f: sql(f, "UPDATE log_head SET edge = zeroblob(length(edge))"),
        "do not give the root stored",
        "server.db: the 5300 entries in the database do not give the root stored",
    ),
    "a table dropped in the database": Case(
        lambda f: dropped(f, "log_node"),
        "no such table: log_node",
        "server.db: the database was changed: no such table",
    ),
    "entries taken away as if they had been pruned": Case(
        lambda f: sql(f, "UPDATE log_bundle SET data = NULL WHERE n = 8"),
        "",
        "server.db: lacks entries 2048 to 2303, which were not pruned",
    ),
    "reordered entries in the database": Case(
        lambda f: swap_rows(f, 256, 512), "", "server.db: entry 256 is not the one in the log"
    ),
    "reordered recent entries in the database": Case(
        lambda f: swap_rows(f, 4608, 4352),
        "tile/0/01[78] in the database do not give the root",
        "server.db: entry 4352",
    ),
    "a deleted tail in the database": Case(
        lambda f: sql(f, "DELETE FROM log_segment WHERE first >= 5120"),
        "lacks entries from 5120 to 5299",
        "server.db: the database lacks entries from 5120",
    ),
    "a deleted middle in the database": Case(
        lambda f: sql(f, "DELETE FROM log_segment WHERE first = 256"), "", "lacks entries from 256 to 511"
    ),
    "a tail deleted everywhere in the database": Case(
        lambda f: sql(
            f,
            "DELETE FROM log_segment WHERE first >= 5120",
            "UPDATE log_head SET size = 5120, edge = substr(edge, 1, 64)",
        ),
        "5300 entries was signed, the database holds 5120",
        "server.db: the database lacks entries from 5120",
    ),
}


def verify(folder):
    """What ``eastwest log verify --data`` finds."""
    files = LogDirectory(folder / "log")
    report = verify_log(files, KEY, list(files.paths()))
    problems = list(report.problems)
    if report.checkpoint is not None:
        with sqlite3.connect(folder / "db") as connection:
            problems += verify_database(connection, ProvenReader(files, report.checkpoint), "server.db")
        connection.close()
    return problems


def test_the_untouched_log_verifies(folder):
    assert verify(folder) == []


@pytest.mark.parametrize("name", CASES)
async def test_tampering_is_noticed_and_named(folder, name):
    import re

    case = CASES[name]
    case.damage(folder)
    problems = [str(problem) for problem in verify(folder)]
    if case.verify:
        assert any(re.search(case.verify, problem) for problem in problems), problems
    before = (folder / "log/checkpoint").read_bytes() if (folder / "log/checkpoint").exists() else b""
    if case.start:
        with pytest.raises(Corrupt, match=case.start) as caught:
            await opened(folder)
        assert caught.value.fix
        assert (folder / "log/checkpoint").read_bytes() == before, "something was signed"
        return
    assert case.verify, "nothing would notice it"
    database, log = await opened(folder)
    if case.mends:
        assert verify(folder) == []
    else:
        assert (folder / "log/checkpoint").read_bytes() == before
    await log.close()
    await database.close()


async def test_nothing_is_appended_or_signed_once_something_was_noticed(folder):
    database, log = await opened(folder)
    flip(folder / "log/tile/0/020.p/180")
    sql(folder, "UPDATE log_published SET root = zeroblob(32)")
    await log.append([b"one more"])
    before = (folder / "log/checkpoint").read_bytes()
    with pytest.raises(Corrupt):
        await log.flush()
    with pytest.raises(LogUnavailable, match="the log is stopped"):
        await log.append([b"and another"])
    with pytest.raises(Corrupt):
        await log.flush()
    assert (folder / "log/checkpoint").read_bytes() == before
    await log.close()
    await database.close()


async def test_an_old_copy_of_the_database_is_refused(folder, tmp_path):
    shutil.copy(folder / "db", tmp_path / "old")
    await grown(folder, 10)
    for file in folder.glob("db*"):
        file.unlink()
    shutil.copy(tmp_path / "old", folder / "db")
    before = (folder / "log/checkpoint").read_bytes()
    with pytest.raises(Corrupt, match="rolled back"):
        await opened(folder)
    assert (folder / "log/checkpoint").read_bytes() == before


async def test_an_old_copy_of_the_files_is_made_good_from_the_database_and_named(folder, tmp_path):
    shutil.copytree(folder / "log", tmp_path / "old")
    await grown(folder, 700)
    shutil.rmtree(folder / "log")
    shutil.copytree(tmp_path / "old", folder / "log")
    database, log = await opened(folder)
    assert "checkpoint" in log.repaired
    assert log.checkpoint.size == SIZE + 700
    assert verify(folder) == []
    await log.close()
    await database.close()


async def test_old_copies_of_both_are_noticed_by_the_mark_alone(folder, tmp_path):
    mark = tmp_path / "elsewhere"
    shutil.copytree(folder, tmp_path / "old")
    await grown(folder, 10, mark=mark)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "old", folder)
    assert verify(folder) == [], "by themselves they are in order"
    before = (folder / "log/checkpoint").read_bytes()
    with pytest.raises(Corrupt, match="an old copy of both was restored") as caught:
        await opened(folder, mark)
    assert str(mark) in str(caught.value)
    assert (folder / "log/checkpoint").read_bytes() == before
    # Another history of the same length is noticed too.
    await grown(folder, 10)
    sql(folder, "UPDATE log_published SET size = size")
    flip(mark, 45)
    with pytest.raises(Corrupt, match="the log's mark is no checkpoint of this log"):
        await opened(folder, mark)


async def test_a_mark_of_another_history_is_refused(folder, tmp_path):
    mark = tmp_path / "elsewhere"
    shutil.copytree(folder, tmp_path / "other")
    database, log = await opened(tmp_path / "other", mark)
    await log.append([b"only there"])
    await log.close()
    await database.close()
    await grown(folder, 1)
    with pytest.raises(Corrupt, match="do not give the root in the log's mark"):
        await opened(folder, mark)


def test_problems_name_entries_for_machines(folder):
    sql(folder, "UPDATE log_segment SET data = edited(data, packed, 'entry 700 ', 'entry 7X0 ') WHERE first = 512")
    assert [replace(problem, message="") for problem in verify(folder)] == [
        type(verify(folder)[0])("server.db", "", 700)
    ]
