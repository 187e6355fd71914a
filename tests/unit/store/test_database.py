"""The SQLite engine: durability order, group commit, isolation of failures, refusals at start."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from eastwest.clock import SystemClock
from eastwest.errors import Corrupt, FailedPrecondition, Internal, Unavailable
from eastwest.store.database import Database
from eastwest.store.migrations import Migration, known_migrations

NOTES = Migration(
    1, "notes", "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT); CREATE TABLE note (text TEXT UNIQUE);"
)


@pytest.fixture
async def database(tmp_path):
    database = open_notes(tmp_path)
    yield database
    await database.close()


def open_notes(folder: Path, trust_domain: str = "saas.example", migrations=(NOTES,)) -> Database:
    return Database.open(folder / "db", trust_domain=trust_domain, clock=SystemClock(), migrations=migrations)


def insert(text: str):
    return lambda c: c.execute("INSERT INTO note VALUES (?)", (text,)).rowcount


def notes(connection: sqlite3.Connection) -> list[str]:
    return [text for (text,) in connection.execute("SELECT text FROM note ORDER BY rowid")]


async def test_a_write_is_read_back_and_survives_reopening(tmp_path):
    first = open_notes(tmp_path)
    assert await first.write(insert("one")) == 1
    assert await first.read(notes) == first.read_now(notes) == ["one"]
    await first.close()
    await first.close()
    second = open_notes(tmp_path)
    assert await second.read(notes) == ["one"]
    await second.close()


async def test_the_file_and_its_companions_are_private_and_wal_full(tmp_path, database):
    await database.write(insert("one"))
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert modes == {"db": 0o600, "db-wal": 0o600, "db-shm": 0o600}
    pragmas = await database.write(
        lambda c: [c.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "synchronous", "foreign_keys")]
    )
    assert pragmas == ["wal", 2, 1]


def test_a_file_open_to_others_is_closed_to_them(tmp_path):
    (tmp_path / "db").touch(mode=0o644)
    database = open_notes(tmp_path)
    assert stat.S_IMODE((tmp_path / "db").stat().st_mode) == 0o600
    asyncio.run(database.close())


async def test_what_waits_is_committed_in_one_transaction(database):
    entered, release = threading.Event(), threading.Event()
    commits: list[int] = []

    def block(connection):
        entered.set()
        assert release.wait(10)

    def change_counter(connection):
        # data_version of another connection moves once per commit; the first sight of it opens the reader.
        return connection.execute("PRAGMA data_version").fetchone()[0]

    before = database.read_now(change_counter)
    first = asyncio.create_task(database.write(block))
    await asyncio.to_thread(entered.wait)
    waiting = [asyncio.create_task(database.write(insert(str(i)))) for i in range(100)]
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(first, *waiting)
    commits.append(database.read_now(change_counter) - before)
    assert commits == [1]
    assert len(await database.read(notes)) == 100


async def test_one_failing_operation_leaves_its_neighbours_alone(database):
    def half(connection):
        insert("half")(connection)
        raise ValueError("mine")

    results = await asyncio.gather(
        *(database.write(op) for op in (insert("a"), half, insert("a"), lambda c: next(iter(())), insert("b"))),
        return_exceptions=True,
    )
    assert [type(r) for r in results] == [int, ValueError, sqlite3.IntegrityError, Internal, int]
    assert await database.read(notes) == ["a", "b"]


async def test_an_operation_that_commits_by_itself_fails_its_group_and_the_next_one_works(database):
    with pytest.raises(Internal, match="ended the transaction"):
        await database.write(lambda c: c.execute("COMMIT"))
    assert await database.write(insert("after")) == 1


async def test_readers_cannot_write_and_hold_one_snapshot(database):
    with pytest.raises(Internal, match="tried to write"):
        await database.read(insert("no"))
    await database.write(insert("one"))
    loop = asyncio.get_running_loop()

    def twice(connection):
        before = notes(connection)
        asyncio.run_coroutine_threadsafe(database.write(insert("two")), loop).result(10)
        return before, notes(connection)

    assert await database.read(twice) == (["one"], ["one"])
    assert database.read_now(notes) == ["one", "two"]


async def test_a_cancelled_operation_that_has_not_begun_does_not_run(database):
    entered, release = threading.Event(), threading.Event()

    def block(connection):
        entered.set()
        assert release.wait(10)

    first = asyncio.create_task(database.write(block))
    await asyncio.to_thread(entered.wait)
    second = asyncio.create_task(database.write(insert("never")))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    release.set()
    await first
    await database.write(insert("later"))
    assert await database.read(notes) == ["later"]


async def test_closing_finishes_what_was_handed_in_then_refuses(tmp_path):
    database = open_notes(tmp_path)
    tasks = [asyncio.create_task(database.write(insert(str(i)))) for i in range(10)]
    await asyncio.sleep(0)
    await database.close()
    assert await asyncio.gather(*tasks) == [1] * 10
    for use in (database.write, database.read):
        with pytest.raises(Unavailable, match="closed"):
            await use(notes)
    with pytest.raises(Unavailable, match="closed"):
        database.read_now(notes)


async def test_a_full_disk_is_unavailable_until_there_is_space(database):
    await database.write(insert("before"))
    await database.write(lambda c: c.execute("PRAGMA max_page_count = 8").fetchone())
    big = "x" * 100_000
    results = await asyncio.gather(database.write(insert(big)), database.write(insert("s")), return_exceptions=True)
    assert isinstance(results[0], Unavailable)
    assert "full" in str(results[0])
    with pytest.raises(Unavailable):
        await database.write(insert(big))
    stored = await database.read(notes)
    assert stored == ["before", *(["s"] if results[1] == 1 else [])]
    await database.write(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone())
    assert await database.write(insert(big)) == 1


_FILE_LIMIT = """
import asyncio, resource, sys
from pathlib import Path
from eastwest.clock import SystemClock
from eastwest.errors import Unavailable
from eastwest.store.database import Database
from eastwest.store.migrations import Migration

STEP = Migration(1, "t", "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT); CREATE TABLE t (x BLOB);")

async def main(path):
    database = Database.open(path, trust_domain="a.example", clock=SystemClock(), migrations=[STEP])
    put = lambda c: c.execute("INSERT INTO t VALUES (zeroblob(50000))").lastrowid
    await database.write(put)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    failures = 0
    for _ in range(4):
        try:
            await database.write(put)
        except Unavailable:
            failures += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await database.write(put)
    count = await database.read(lambda c: c.execute("SELECT count(*) FROM t").fetchone()[0])
    await database.close()
    print(failures, count)

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_write_the_kernel_refuses_is_unavailable_and_recovers(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", _FILE_LIMIT, str(tmp_path / "db")], capture_output=True, text=True, check=True
    )
    failures, count = map(int, result.stdout.split())
    assert failures >= 3
    assert count == 6 - failures


async def test_another_trust_domain_is_refused_unchanged(tmp_path):
    database = open_notes(tmp_path)
    await database.close()
    before = (tmp_path / "db").read_bytes()
    with pytest.raises(FailedPrecondition, match=r"saas\.example, not other\.example"):
        open_notes(tmp_path, "other.example")
    assert (tmp_path / "db").read_bytes() == before


async def test_a_newer_schema_is_refused_with_both_numbers(tmp_path):
    newer = Migration(7, "later", "CREATE TABLE later (x INTEGER);")
    await open_notes(tmp_path, migrations=(NOTES, newer)).close()
    with pytest.raises(FailedPrecondition, match=r"version 0007.*up to 0001"):
        open_notes(tmp_path)
    await open_notes(tmp_path, migrations=(NOTES, newer)).close()


async def test_migrations_run_once_in_order_and_a_failing_one_leaves_no_trace(tmp_path):
    bad = Migration(2, "bad", "CREATE TABLE two (x INTEGER); INSERT INTO nowhere VALUES (1);")
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        open_notes(tmp_path, migrations=(NOTES, bad))
    good = Migration(2, "good", "CREATE TABLE two (x INTEGER)")
    database = open_notes(tmp_path, migrations=(good, NOTES))
    versions = await database.read(lambda c: c.execute("SELECT version, name FROM schema_version").fetchall())
    assert versions == [(1, "notes"), (2, "good")]
    await database.close()


def test_the_shipped_migrations_are_numbered_without_a_gap_from_one():
    versions = [step.version for step in known_migrations()]
    assert versions[0] == 1
    assert versions == sorted(set(versions))


def test_what_is_no_database_is_corrupt_and_a_folder_that_is_missing_unavailable(tmp_path):
    (tmp_path / "db").write_bytes(b"certainly not a database " * 100)
    before = (tmp_path / "db").read_bytes()
    with pytest.raises(Corrupt, match="no database"):
        open_notes(tmp_path)
    assert (tmp_path / "db").read_bytes() == before
    with pytest.raises(Unavailable, match="No such file"):
        open_notes(tmp_path / "missing")


async def test_the_shipped_schema_opens(tmp_path):
    database = Database.open(tmp_path / "db", trust_domain="saas.example", clock=SystemClock())
    tables = await database.read(lambda c: {n for (n,) in c.execute("SELECT name FROM sqlite_master")})
    assert {"meta", "schema_version", "log_segment", "log_head", "log_published"} <= tables
    await database.close()
