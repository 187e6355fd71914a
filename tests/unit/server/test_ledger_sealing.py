"""Sealing: nothing lost and nothing twice wherever it is interrupted; changed files found; pruning by policy."""

import random
import shutil

import msgspec
import pytest

from eastwest.errors import Corrupt, Exhausted, LogUnavailable, Unavailable
from eastwest.ledger.query import DecisionQuery
from eastwest.ledger.segment import PRUNED, SEALED, Found, compare_segments, rows_of
from eastwest.log.entry import decode
from eastwest.log.ports import Pruned
from eastwest.server.config import LedgerSettings
from eastwest.server.journal import Journal
from eastwest.server.ledger.keeper import EXPORTS_AT_ONCE, Ledger
from eastwest.store.ledger_reader import LedgerReader
from eastwest.store.ledger_worker import Question, answer, file_hash
from eastwest.testing import FakeClock
from eastwest.testing.ledgers import decision
from eastwest.testing.log import Failure, MemoryLog

DAY = 86_400


class World:
    """A ledger that can be opened again and again on the same directory and the same log."""

    def __init__(self, directory, **settings):
        self.directory, self.settings = directory, LedgerSettings(**settings)
        self.clock, self.log = FakeClock(), MemoryLog()
        self.ledger = None

    async def open(self):
        await self.close()
        self.ledger = await Ledger.open(
            self.directory,
            trust_domain="saas.example",
            settings=self.settings,
            max_rows=10_000,
            log=self.log,
            journal=Journal(self.log, self.clock),
            clock=self.clock,
        )
        self.ledger.sealer._worker = self.ledger._questions = InProcess(self.directory)
        return self.ledger

    async def close(self):
        if self.ledger is not None:
            await self.ledger.close()
            self.ledger = None

    def entries(self):
        decoded = [decode(raw) for raw in self.log.stored]
        return [(i, e.kind, facts(e.body)) for i, e in enumerate(decoded) if e.kind in {SEALED, PRUNED}]

    def files(self):
        names = [str(path.relative_to(self.directory)) for path in self.directory.rglob("*.parquet")]
        return {name: Found(*file_hash(self.directory / name)) for name in names}

    def report(self):
        return compare_segments(self.entries(), self.files())

    def problems(self):
        return [str(problem) for problem in self.report().problems]


class InProcess:
    """The worker's own code without its process, which these tests are not about."""

    def __init__(self, directory):
        self.reader, self.directory = LedgerReader(directory, scratch=directory / "tmp", threads=1), directory

    async def ask(self, question: Question):
        found = answer(self.reader, self.directory, question)
        if found.error:
            raise Unavailable(found.error[1])
        return found

    async def close(self):
        self.reader.close()


def facts(body):
    return {name: value for name, value in body.items() if name not in {"time", "actor", "subject"}}


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path / "ledger")
    await made.open()
    yield made
    await made.close()


async def rows(ledger):
    found = []
    while page := await ledger.search(DecisionQuery(after=found[-1]["row"] if found else 0, limit=5000)):
        found += page
    return found


class Killed(BaseException):
    """As if the process had ended here: nothing of the program may catch it."""


class Deadly:
    """Something that ends the process before or after the so-manieth call of one of its methods."""

    def __init__(self, inner, point):
        self._inner, self._point = inner, point

    def __getattr__(self, name):
        method = getattr(self._inner, name)
        if not callable(method):
            return method

        async def called(*args, **kwargs):
            self._point.pass_by(name, "before")
            done = await method(*args, **kwargs)
            self._point.pass_by(name, "after")
            return done

        return called


class Point:
    """Where to die."""

    def __init__(self, name, side, times=1):
        self.name, self.side, self.left = name, side, times

    def pass_by(self, name, side):
        if (name, side) == (self.name, self.side):
            self.left -= 1
            if self.left == 0:
                raise Killed

    def lay_in(self, sealer):
        sealer._store, sealer._journal = Deadly(sealer._store, self), Deadly(sealer._journal, self)
        sealer._worker = Deadly(sealer._worker, self)


async def test_a_kill_at_any_point_of_sealing_loses_nothing_and_doubles_nothing(tmp_path):
    """Rounds follow each other on the same ledger, as crashes do."""
    world = World(tmp_path / "ledger")
    steps = ("plan", "previous", "ask", "written", "record", "sealed")
    points = [Point(name, side, times) for times in (1, 2) for name in steps for side in ("before", "after")]
    random.Random(6).shuffle(points)
    for given, point in enumerate(points, 1):
        ledger = await world.open()
        await ledger.add("a", "s", given, [decision(given, reference=f"r{given}.{n}") for n in range(3)])
        worker = ledger.sealer._worker
        point.lay_in(ledger.sealer)
        with pytest.raises(Killed):
            await ledger.sealer.seal(2)
        ledger.sealer._worker = worker
        found = [row["reference"] for row in await rows(ledger)]
        assert found == [f"r{turn}.{n}" for turn in range(1, given + 1) for n in range(3)], (point.name, point.side)
    ledger = await world.open()
    await ledger.sealer.seal(2)
    assert await ledger.waiting() == 0
    assert world.problems() == []
    assert world.report().rows == len(points) * 3
    assert len({entry[2]["segment"] for entry in world.entries()}) == len(world.entries()), "each is logged once"
    await world.close()


@pytest.mark.parametrize("failure", Failure)
async def test_a_log_that_fails_delays_sealing_and_is_asked_before_it_is_told_again(world, failure):
    await world.ledger.add("a", "s", 1, [decision(1), decision(2)])
    world.log.fail_next(failure)
    with pytest.raises(LogUnavailable):
        await world.ledger.sealer.seal(10)
    assert [row["row"] for row in await rows(world.ledger)] == [1, 2]
    await world.ledger.sealer.seal(10)
    assert [kind for _, kind, _ in world.entries()] == [SEALED]
    assert world.problems() == []


async def test_a_file_that_vanished_before_it_was_logged_is_written_again(world):
    await world.ledger.add("a", "s", 1, [decision(1)])
    world.log.fail_next(Failure.REFUSED)
    with pytest.raises(LogUnavailable):
        await world.ledger.sealer.seal(10)
    for path in world.directory.glob("dt=*"):
        shutil.rmtree(path)
    await world.ledger.sealer.seal(10)
    assert (world.report().sealed, world.problems()) == (1, [])


async def test_a_file_changed_between_its_entry_and_the_end_of_sealing_stops_it_with_the_rows_kept(world):
    await world.ledger.add("a", "s", 1, [decision(1)])
    world.log.fail_next(Failure.UNHEARD)
    with pytest.raises(LogUnavailable):
        await world.ledger.sealer.seal(10)
    [path] = world.directory.rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Corrupt, match="not the file that was sealed"):
        await world.ledger.sealer.seal(10)
    assert [row["row"] for row in await rows(world.ledger)] == [1]


@pytest.fixture
async def sealed(world):
    """Four segments of two rows."""
    for turn in range(1, 5):
        await world.ledger.add("a", "s", turn, [decision(turn, count=turn), decision(turn)])
        await world.ledger.sealer.seal(2)
        world.clock.advance(3600)
    assert (world.report().sealed, world.report().decisions, world.problems()) == (4, 14, [])
    return world


def paths(world):
    return sorted(world.directory.rglob("*.parquet"), key=lambda path: rows_of(str(path.relative_to(world.directory))))


async def test_a_flipped_byte_anywhere_is_located(sealed):
    path = paths(sealed)[2]
    whole = path.read_bytes()
    chance = random.Random(1)
    for place in [0, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(20))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        [problem] = sealed.report().problems
        assert problem.segment == str(path.relative_to(sealed.directory))
        assert problem.entry == sealed.entries()[2][0]
        assert "was changed" in problem.message
    path.write_bytes(whole)
    assert sealed.problems() == []


async def test_missing_cut_swapped_copied_and_foreign_segments_are_located(sealed):
    files = paths(sealed)
    names = [str(path.relative_to(sealed.directory)) for path in files]
    whole = [path.read_bytes() for path in files]

    files[1].unlink()
    assert sealed.problems()[0].startswith(f"{names[1]}: is missing: 2 rows from 2026-")
    files[1].write_bytes(whole[1])
    files[1].write_bytes(whole[1][:-10])
    assert sealed.problems() == [f"{names[1]}: was cut short: {len(whole[1]) - 10} of {len(whole[1])} bytes"]
    files[1].write_bytes(whole[2])
    files[2].write_bytes(whole[1])
    assert sealed.problems() == [
        f"{names[1]}: holds the content of {names[2]}",
        f"{names[2]}: holds the content of {names[1]}",
    ]
    files[1].write_bytes(whole[1])
    files[2].write_bytes(whole[2])
    extra = files[0].with_name("90-91.parquet")
    extra.write_bytes(whole[0])
    assert sealed.problems() == [f"{extra.relative_to(sealed.directory)}: is a copy of {names[0]}"]
    extra.write_bytes(b"PAR1")
    assert sealed.problems() == [f"{extra.relative_to(sealed.directory)}: is no segment that the log knows"]
    assert compare_segments(sealed.entries(), sealed.files(), pending=[str(extra.relative_to(sealed.directory))]).ok


async def test_a_log_that_contradicts_itself_about_segments_is_told(sealed):
    entries, files = sealed.entries(), sealed.files()
    assert "does not name the segment before" in str(compare_segments(entries[1:], files).problems[0])
    swapped = [entries[0], entries[2], entries[1], entries[3]]
    assert len(compare_segments(swapped, files).problems) >= 2
    twice = [*entries, (9, SEALED, entries[3][2])]
    assert any("sealed twice" in str(problem) for problem in compare_segments(twice, files).problems)
    with pytest.raises(Corrupt, match="entry 7"):
        compare_segments([(7, SEALED, {"segment": "x"})], files)


async def test_segments_are_pruned_by_age_and_by_size_each_with_its_entry(tmp_path):
    world = World(tmp_path / "ledger", keep_days=2)
    ledger = await world.open()
    assert await ledger.kept_since() is None
    for turn in range(1, 5):
        await ledger.add("a", "s", turn, [decision(turn)])
        await ledger.sealer.seal(10)
        world.clock.advance(DAY)
    assert await ledger.kept_since() is None, "all that ever came is there"
    pruned = await ledger.sealer.prune()
    assert [(record.segment, record.reason) for record in pruned] == [
        (entry[2]["segment"], "keep_days") for entry in world.entries()[:2]
    ]
    assert [kind for _, kind, _ in world.entries()] == [SEALED] * 4 + [PRUNED] * 2
    assert [row["row"] for row in await rows(ledger)] == [3, 4]
    assert await ledger.kept_since() == decision(3).time, "who asks what was before is told that nobody knows"
    assert await ledger.sealer.prune() == []
    assert (world.report().sealed, world.report().pruned, world.problems()) == (2, 2, [])
    assert not (world.directory / pruned[0].segment).parent.parent.exists()

    world.settings = LedgerSettings(keep_mib=1)
    ledger = await world.open()
    ledger.sealer._settings = msgspec.structs.replace(world.settings, keep_mib=0)
    assert await ledger.sealer.prune() == [], "nothing is deleted unless it is told"
    await world.close()


async def test_a_kill_while_pruning_is_made_good(tmp_path):
    world = World(tmp_path / "ledger", keep_days=1)
    steps = [
        (name, side) for name in ("due", "record", "pruned", "leftovers", "forget") for side in ("before", "after")
    ]
    for step, (name, side) in enumerate(steps, 1):
        ledger = await world.open()
        await ledger.add("a", "s", step, [decision(step)])
        await ledger.sealer.seal(10)
        world.clock.advance(2 * DAY)
        worker = ledger.sealer._worker
        Point(name, side).lay_in(ledger.sealer)
        with pytest.raises(Killed):
            await ledger.sealer.prune()
        ledger.sealer._worker = worker
    ledger = await world.open()
    await ledger.sealer.prune()
    assert (world.files(), await rows(ledger)) == ({}, [])
    assert await ledger.kept_since() == world.clock.now(), "nothing is there of what came"
    assert (world.report().pruned, world.problems()) == (len(steps), [])
    await world.close()


async def test_a_lost_database_of_hot_rows_is_made_anew_from_files_and_log(sealed):
    before = await rows(sealed.ledger)
    await sealed.close()
    for path in sealed.directory.glob("hot.db*"):
        path.unlink()
    foreign = paths(sealed)[0]
    shutil.copy(foreign, foreign.with_name("70-71.parquet"))
    ledger = await sealed.open()
    assert await rows(ledger) == before
    await ledger.add("a", "s2", 1, [decision(9)])
    assert (await rows(ledger))[-1]["row"] == 72, "no number is given twice, not even one that a foreign file claims"
    await ledger.sealer.seal(10)
    foreign.with_name("70-71.parquet").unlink()
    assert (sealed.report().sealed, sealed.problems()) == (5, [])


async def test_a_log_that_is_pruned_does_not_keep_a_ledger_from_being_made_anew(sealed):
    """Entries of old segments may be gone from the log by its retention; the ledger opens, and knows the others."""
    known = await rows(sealed.ledger)
    await sealed.close()
    for path in sealed.directory.glob("hot.db*"):
        path.unlink()
    stored = [b"{}"] * (3 * 256) + sealed.log.stored

    class Pruning(MemoryLog):
        async def entries(self, start, end):
            if start < 2 * 256:
                raise Pruned(f"entry {start} was removed by the log's retention; its hash is kept")
            return await super().entries(start, end)

    sealed.log = Pruning()
    await sealed.log.append(stored)
    await sealed.open()
    assert await rows(sealed.ledger) == known


async def test_exports_that_nobody_reads_do_not_fill_the_disk_that_the_log_is_on(sealed):
    query = DecisionQuery()
    slow = [sealed.ledger.export(query, "jsonl") for _ in range(EXPORTS_AT_ONCE)]
    assert all([await anext(one) for one in slow])
    with pytest.raises(Exhausted, match="exports are under way"):
        await anext(sealed.ledger.export(query, "jsonl"))
    await slow[0].aclose()
    assert await anext(sealed.ledger.export(query, "jsonl"))
    assert len(list((sealed.directory / "tmp").glob("export-*"))) == EXPORTS_AT_ONCE


async def test_an_older_copy_of_the_hot_rows_tells_nothing_twice(world, tmp_path):
    await world.ledger.add("a", "s", 1, [decision(1), decision(2)])
    await world.close()
    shutil.copy(world.directory / "hot.db", tmp_path / "copy.db")
    ledger = await world.open()
    await ledger.sealer.seal(1)
    before = await rows(ledger)
    await world.close()
    for path in world.directory.glob("hot.db*"):
        path.unlink()
    shutil.copy(tmp_path / "copy.db", world.directory / "hot.db")
    ledger = await world.open()
    assert await rows(ledger) == before
    assert await ledger.waiting() == 0
    assert world.problems() == []
