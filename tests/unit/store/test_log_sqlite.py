"""The log on SQLite: publishing, healing after a crash, refusing what disagrees, failing closed."""

import asyncio
import shutil
import sqlite3

import pytest

from eastwest.clock import SystemClock
from eastwest.errors import Corrupt, LogUnavailable, Unavailable
from eastwest.log.note import NoteKey
from eastwest.log.verify import verify_log
from eastwest.store.database import Database
from eastwest.store.log import SqliteLog
from eastwest.store.log_files import LogDirectory
from eastwest.store.log_rows import pack, unpack
from eastwest.testing.clock import FakeClock
from eastwest.testing.log import ORIGIN, TestSigner

SIGNER = TestSigner()
KEY = NoteKey.of(ORIGIN, SIGNER)


class Place:
    """A folder with a database and a log in it, opened and closed at will."""

    def __init__(self, folder):
        self.folder = folder
        self.files = LogDirectory(folder / "log")

    async def open(self, clock=None, signer=SIGNER):
        clock = clock or SystemClock()
        self.database = Database.open(self.folder / "db", trust_domain="test.example", clock=clock)
        try:
            self.log = await SqliteLog.open(
                self.database, self.folder / "log", origin=ORIGIN, signer=signer, clock=clock
            )
        except BaseException:
            await self.database.close()
            raise
        return self.log

    async def crash(self):
        """Stop without publishing anything more."""
        self.log._thread.shutdown()
        await self.database.close()

    async def close(self):
        await self.log.close()
        await self.database.close()

    def sql(self, statement, *values):
        with sqlite3.connect(self.folder / "db") as connection:
            connection.create_function("edited", 4, edited)
            connection.execute(statement, values)
        connection.close()

    def verify(self):
        report = verify_log(self.files, KEY, list(self.files.paths()))
        assert report.ok, [str(p) for p in report.problems]
        return report.checkpoint.size

    async def refuse(self, match, signer=SIGNER):
        with pytest.raises(Corrupt, match=match) as caught:
            await self.open(signer=signer)
        assert caught.value.fix


def edited(data, packed, old, new):
    """What a forger makes of stored entries: packed again as they were."""
    changed = (unpack(data, 0) if packed else data).replace(old.encode(), new.encode())
    return pack(changed) if packed else changed


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def batch(count, start=0):
    return [b"entry %d" % i for i in range(start, start + count)]


async def filled(place, *counts):
    log = await place.open()
    start = 0
    for count in counts:
        await log.append(batch(count, start))
        await log.flush()
        start += count
    return log


async def test_a_fresh_log_publishes_an_empty_checkpoint(place):
    log = await place.open()
    assert place.verify() == 0 == log.checkpoint.size
    await place.close()
    await place.open()
    await place.close()


@pytest.mark.parametrize("counts", [(255,), (256,), (257,), (1, 254, 1, 1), (500, 500), (3,) * 100])
async def test_published_tiles_verify_after_every_checkpoint_and_after_reopening(place, counts):
    log = await place.open()
    total = 0
    for count in counts:
        await log.append(batch(count, total))
        await log.flush()
        total += count
        assert place.verify() == total
    await place.close()
    log = await place.open()
    assert (log.size, log.checkpoint.size, log.repaired) == (total, total, ())
    assert await log.entries(0, total) == batch(total)
    await log.append([b"more"])
    await log.flush()
    assert place.verify() == total + 1
    await place.close()


async def test_a_large_log_with_three_levels_of_tiles(place):
    log = await filled(place, 65_535, 1, 1)
    assert place.verify() == 65_537
    assert "tile/2/000.p/1" in set(place.files.paths())
    await place.close()
    log = await place.open()
    assert log.size == 65_537
    await place.close()


async def test_partial_tiles_stay_until_the_full_one_is_there(place):
    await filled(place, 10, 10)
    assert {"tile/0/000.p/10", "tile/0/000.p/20", "tile/entries/000.p/10"} <= set(place.files.paths())
    await place.log.append(batch(240, 20))
    await place.log.flush()
    assert set(place.files.paths()) == {
        "checkpoint",
        "tile/0/000",
        "tile/0/001.p/4",
        "tile/1/000.p/1",
        "tile/entries/000",
        "tile/entries/001.p/4",
    }
    await place.close()


async def test_what_was_committed_but_not_published_is_published_at_start(place):
    log = await filled(place, 300)
    await log.append(batch(400, 300))
    await place.crash()
    assert place.verify() == 300
    log = await place.open()
    assert place.verify() == log.checkpoint.size == 700
    await place.close()


@pytest.mark.parametrize("step", ["tiles", "swap", "half of the tiles"])
async def test_a_crash_at_any_step_of_publishing_heals(place, step):
    log = await filled(place, 300)
    await log.append(batch(400, 300))
    log._write_tiles(300, 700)
    if step == "half of the tiles":
        (place.folder / "log/tile/0/002.p/188").unlink()
        (place.folder / "log/.new").write_bytes(b"unfinished")
    if step == "swap":
        await log._database.write(
            lambda c: c.execute("UPDATE log_published SET size = 700, root = ?", (_root(c),)).rowcount
        )
    await place.crash()
    assert place.verify() == 300
    await place.open()
    assert place.verify() == 700
    await place.close()


def _root(connection):
    from eastwest.store.log_rows import read_head

    return read_head(connection).root


async def test_missing_public_files_are_written_again_and_named(place):
    await filled(place, 300)
    await place.close()
    (place.folder / "log/tile/0/001.p/44").unlink()
    log = await place.open()
    assert log.repaired == ("tile/0/001.p/44",)
    assert place.verify() == 300
    await place.close()
    shutil.rmtree(place.folder / "log")
    await place.open()
    assert place.verify() == 300
    await place.close()


async def test_a_database_rolled_back_is_refused(place):
    await filled(place, 300)
    await place.close()
    shutil.copy(place.folder / "db", place.folder / "old")
    await place.open()
    await place.log.append(batch(10, 300))
    await place.close()
    shutil.copy(place.folder / "old", place.folder / "db")
    before = (place.folder / "log/checkpoint").read_bytes()
    await place.refuse("rolled back")
    (place.folder / "log/checkpoint").unlink()
    await place.refuse("rolled back")
    (place.folder / "log/checkpoint").write_bytes(before)
    place.verify()


async def test_a_new_database_beside_an_old_log_is_refused(place):
    await filled(place, 3)
    await place.close()
    for file in place.folder.glob("db*"):
        file.unlink()
    await place.refuse("rolled back")


CHANGES = {
    "a missing tail": ("DELETE FROM log_segment WHERE first = 512", r"lacks entries from 512 to 599"),
    "a missing middle near the edge": ("DELETE FROM log_segment WHERE first = 256", "lacks entries from 256"),
    "an edited entry at the edge": (
        "UPDATE log_segment SET data = edited(data, packed, 'entry 599', 'entry 5X9')",
        "entry 599 in the database was changed",
    ),
    "an edited entry in a full tile": (
        "UPDATE log_segment SET data = edited(data, packed, 'entry 400', 'entry 4X0')",
        "entry 400 in the database was changed",
    ),
    "an added entry": ("INSERT INTO log_segment VALUES (600, zeroblob(32), x'000161', 0)", "beyond the 600"),
    "a cut entry": ("UPDATE log_segment SET data = substr(data, 3) WHERE first = 512", "were changed"),
    "an edited upper hash": ("UPDATE log_node SET hash = zeroblob(32) WHERE n = 1", "tile/0/001"),
    "a missing upper hash": ("DELETE FROM log_node WHERE n = 1", "tile/0/001|level 1"),
    "an edited size": ("UPDATE log_head SET size = 601", "makes no sense"),
    "an edited edge": ("UPDATE log_head SET edge = zeroblob(length(edge))", "do not give the root stored"),
    "a published size beyond the end": ("UPDATE log_published SET size = 601", "601 entries was signed"),
    "another published root": ("UPDATE log_published SET root = zeroblob(32)", "root that was signed"),
    "a published size before the checkpoint": ("UPDATE log_published SET size = 0, root = x'{empty}'", "rolled back"),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_database_that_was_changed_is_refused(place, name):
    statement, message = CHANGES[name]
    await filled(place, 600)
    await place.close()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    place.sql(statement.replace("{empty}", empty))
    await place.refuse(message)


async def test_a_changed_entry_with_its_hash_changed_too_is_refused(place):
    from eastwest.log.tree import leaf_hash

    await filled(place, 3)
    await place.close()
    place.sql("UPDATE log_segment SET data = x'000161000162000163'")
    hashes = b"".join(leaf_hash(e) for e in (b"a", b"b", b"c"))
    place.sql("UPDATE log_segment SET hashes = ?", hashes)
    await place.refuse("do not give the root")


@pytest.mark.parametrize(
    "path",
    ["checkpoint", "tile/0/000", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/001", "tile/entries/002.p/88"],
)
async def test_a_changed_public_file_is_refused_and_named(place, path):
    await filled(place, 600)
    await place.close()
    file = place.folder / "log" / path
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(Corrupt) as caught:
        await place.open()
    assert path in str(caught.value)
    assert not verify_log(place.files, KEY).ok


async def test_a_checkpoint_of_another_key_is_refused(place):
    await filled(place, 5)
    await place.close()
    await place.refuse("of another key", signer=TestSigner(b"\x05" * 32))


async def test_two_processes_on_one_log_do_not_fork_it(place):
    log = await filled(place, 5)
    other = Place(place.folder)
    rival = await other.open()
    await rival.append([b"theirs"])
    await rival.flush()
    await log.append([b"ours"])
    with pytest.raises(Corrupt, match="another process"):
        await log.flush()
    with pytest.raises(LogUnavailable, match="stopped: another process"):
        await log.append([b"more"])
    with pytest.raises(Corrupt, match="another process"):
        await log.flush()
    await other.close()
    await place.close()
    assert place.verify() in (6, 7)


async def test_a_full_disk_refuses_appends_and_nothing_is_half_stored(place):
    log = await filled(place, 5)
    await place.database.write(lambda c: c.execute("PRAGMA max_page_count = 1").fetchone())
    results = await asyncio.gather(*(log.append([b"x" * 60_000] * 10) for _ in range(3)), return_exceptions=True)
    assert [type(r) for r in results] == [LogUnavailable] * 3
    assert "full" in str(results[0])
    await place.database.write(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone())
    assert list(await log.append([b"again"])) == [5]
    await log.flush()
    assert place.verify() == 6
    await place.close()


async def test_a_closed_database_is_log_unavailable(place):
    log = await place.open()
    await place.database.close()
    with pytest.raises(LogUnavailable, match="closed"):
        await log.append([b"x"])
    await place.close()


async def test_an_unheard_compare_and_swap_is_not_taken_for_a_rival(place):
    log = await filled(place, 5)
    await log.append(batch(5, 5))
    write, failed = place.database.write, []

    async def unheard(operation):
        result = await write(operation)
        if not failed:
            failed.append(result)
            raise Unavailable("the answer got lost")
        return result

    place.database.write = unheard
    with pytest.raises(Unavailable):
        await log.flush()
    await write(lambda c: c.execute("SELECT 1").fetchone())
    place.database.write = write
    await log.append(batch(5, 10))
    await log.flush()
    assert place.verify() == 15
    await place.close()


async def test_run_publishes_within_a_second_and_outlives_errors(place):
    clock = FakeClock()
    log = await place.open(clock)
    errors = []
    task = asyncio.create_task(log.run(errors.append))
    await log.append([b"a"])
    await _until(lambda: log.checkpoint.size == 1)
    await log.append([b"b"])
    await _until(lambda: clock.sleeping)
    assert log.checkpoint.size == 1
    # A file where a folder must be: the tile cannot be written.
    blocker = place.folder / "log/tile/0/000.p"
    shutil.move(blocker, place.folder / "aside")
    blocker.write_bytes(b"")
    clock.advance(1)
    await _until(lambda: errors)
    assert isinstance(errors[0], Unavailable)
    blocker.unlink()
    shutil.move(place.folder / "aside", blocker)
    await _until(lambda: clock.sleeping)
    clock.advance(1)
    await _until(lambda: log.published_at == clock.now())
    assert place.verify() == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await place.close()


async def test_run_ends_when_the_log_is_corrupt(place):
    log = await filled(place, 1)
    errors = []
    place.sql("UPDATE log_published SET size = 0")
    await log.append([b"b"])
    await asyncio.wait_for(log.run(errors.append), 10)
    assert [type(error) for error in errors] == [Corrupt]
    await place.close()


async def test_a_changed_entry_deep_in_the_database_is_not_handed_out(place):
    log = await filled(place, 600)
    place.sql("UPDATE log_segment SET data = edited(data, packed, 'entry 7', 'entry X')")
    with pytest.raises(Corrupt, match="entry 7 in the database was changed"):
        await log.entry(7)
    await place.close()


async def _until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not come about")
