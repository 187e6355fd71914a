"""Pruning: recorded first, proofs stay, verification accepts what the log itself tells and nothing else."""

import json
import shutil
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from eastwest.cli.decisions.verification import verify_ledger
from eastwest.cli.log import app
from eastwest.errors import Corrupt, InvalidInput
from eastwest.log.entry import Entry, decode, encode
from eastwest.log.note import NoteKey
from eastwest.log.ports import Pruned
from eastwest.log.proof import LogProof
from eastwest.log.verify import verify_log
from eastwest.server.config import LedgerSettings
from eastwest.server.journal import Journal
from eastwest.server.ledger.keeper import Ledger
from eastwest.server.log_retention import Retention, prune
from eastwest.store.database import Database
from eastwest.store.log import SqliteLog
from eastwest.store.log_files import LogDirectory
from eastwest.testing.clock import FakeClock
from eastwest.testing.ledgers import AGENT, sample
from eastwest.testing.log import ORIGIN, TestSigner

KEY = NoteKey.of(ORIGIN, TestSigner())
DOMAIN = "spiffe://test.example"


def entry(index, time):
    facts = {"time": time, "actor": f"{DOMAIN}/agent", "subject": f"{DOMAIN}/w{index % 9}", "before": index}
    return encode(Entry("test.entry", facts))


class World:
    """A log with a day between each hundred entries."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = FakeClock()
        self.files = LogDirectory(folder / "server/log")

    async def __aenter__(self):
        (self.folder / "server").mkdir(exist_ok=True)
        (self.folder / "server/log.vkey").write_text(KEY.vkey)
        self.database = Database.open(self.folder / "server/server.db", trust_domain="test.example", clock=self.clock)
        self.log = await SqliteLog.open(
            self.database, self.folder / "server/log", origin=ORIGIN, signer=TestSigner(), clock=self.clock
        )
        self.journal = Journal(self.log, self.clock)
        return self

    async def __aexit__(self, *_):
        await self.log.close()
        await self.database.close()

    async def grow(self, days):
        for _ in range(days):
            self.clock.advance(86_400)
            now = self.clock.now()
            await self.log.append([entry(self.log.size + i, now) for i in range(100)])
        await self.log.flush()
        while await self.log.pack():
            pass

    def retention(self, days):
        return Retention(self.log, self.files, self.journal, self.clock, days, DOMAIN)

    def report(self):
        return verify_log(self.files, KEY, list(self.files.paths()))

    def bundles(self):
        return sorted(path for path in self.files.paths() if "entries" in path)


@pytest.fixture
async def world(tmp_path):
    async with World(tmp_path) as world:
        await world.grow(20)
        yield world


async def test_what_is_old_goes_and_every_proof_stays(world):
    entries = await world.log.entries(0, 2000)
    old_checkpoint = world.report().checkpoint
    # Ten days are kept: entries of the days before, in whole bundles.
    assert await world.retention(10).once(world.clock.now()) == 3
    kept = 3 * 256
    assert await world.log.pruned_before() == kept
    assert world.bundles()[0] == "tile/entries/003"
    with pytest.raises(Pruned, match="removed by the log's retention"):
        await world.log.entry(700)
    assert list(await world.log.entries(kept, 2000)) == entries[kept:]
    # The record of it.
    record = decode(await world.log.entry(2000))
    assert (record.kind, record.body["from"], record.body["before"], record.body["keep_days"]) == (
        "log.pruned",
        0,
        kept,
        10,
    )
    # An entry that somebody kept is proven as before, and the log verifies.
    for index in (0, 767, 768, 1999):
        LogProof.parse(await world.log.prove(index)).verify(entries[index], KEY)
    report = world.report()
    assert report.ok, [str(problem) for problem in report.problems]
    assert report.pruned == kept
    assert report.checkpoint.size == old_checkpoint.size + 1
    assert "Minimum index: 768" in (world.folder / "server/log/retention").read_text()
    # Nothing is due again, until time has passed.
    assert await world.retention(10).once(world.clock.now()) == 0
    await world.grow(5)
    assert await world.retention(10).once(world.clock.now()) == 2
    assert world.report().ok


async def test_it_survives_a_restart_and_goes_on(world):
    await world.retention(5).once(world.clock.now())
    pruned = await world.log.pruned_before()
    await world.log.close()
    await world.database.close()
    async with World(world.folder) as again:
        assert again.log.repaired == ()
        assert await again.log.pruned_before() == pruned
        await again.log.append([b"more"])
        await again.log.flush()
        assert again.report().ok
        assert again.report().pruned == pruned


async def test_a_crash_between_record_and_removal_is_finished(world):
    facts = {"actor": DOMAIN, "subject": DOMAIN, "reason": "a test"}
    await prune(world.log, world.journal, 512, **facts)
    # As if the process had died after the database, before the files.
    (world.folder / "server/log/tile/entries").mkdir(exist_ok=True)
    shutil.copy(world.folder / "server/log/tile/entries/002", world.folder / "server/log/tile/entries/001")
    assert await world.retention(10_000).once(world.clock.now()) == 1
    assert world.bundles()[0] == "tile/entries/002"


async def test_bundles_that_are_gone_without_a_record_are_defects(world):
    for index in (0, 1):
        (world.folder / f"server/log/tile/entries/00{index}").unlink()
    messages = [str(problem) for problem in world.report().problems]
    assert messages == [f"tile/entries/00{index}: the entry bundle is missing" for index in (0, 1)]
    # A record of the first does not cover the second, and one with a false root covers nothing.
    root = (await world.log.root_of(256)).hex()
    facts = {"actor": DOMAIN, "subject": DOMAIN, "from": 0, "reason": "a test"}
    await world.journal.record("log.pruned", before=256, root=root, **facts)
    await world.log.flush()
    assert [problem.where for problem in world.report().problems] == ["tile/entries/001"]
    await world.journal.record("log.pruned", before=512, root=root, **facts)
    await world.log.flush()
    found = [str(problem) for problem in world.report().problems]
    assert any("entry 2001 tells of a pruning before 512 with a root that the tree never had" in line for line in found)
    assert "tile/entries/001: the entry bundle is missing" in found


async def test_a_pruning_of_what_comes_later_is_refused(world):
    for before in (100, 2048, 1 << 20):
        with pytest.raises(InvalidInput):
            await world.log.prune(before)
    facts = {"actor": DOMAIN, "subject": DOMAIN, "from": 0, "reason": "a test", "root": "00" * 32}
    await world.journal.record("log.pruned", before=1 << 20, **facts)
    await world.log.flush()
    assert any("a pruning that cannot be" in str(problem) for problem in world.report().problems)


async def test_commands_see_what_was_pruned(world):
    def call(*args, code=0):
        result = CliRunner().invoke(app, [*map(str, args), "--data", str(world.folder)], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.stdout

    moment = world.clock.now() - timedelta(days=9)
    would = json.loads(call("prune", "--before", f"{moment:%Y-%m-%dT%H:%M:%SZ}", "--dry-run", "--json"))
    assert would == {"from": 0, "before": 768, "entries": 768, "pruned": False}
    assert "the server's database has the same entries" in call("verify")
    await world.retention(10).once(world.clock.now())
    told = call("verify")
    assert "entries below 768 are pruned, as an entry of the log says" in told
    assert json.loads(call("verify", "--json"))["minimum_index"] == 768
    found = json.loads(call("search", "--subject", f"{DOMAIN}/w3", "--limit", 1000, "--json"))
    assert {hit["index"] for hit in found["entries"]} == {i for i in range(768, 2000) if i % 9 == 3}
    assert decode(await world.log.entry(2000)).body["root"] == (await world.log.root_of(768)).hex()


async def test_the_ledger_is_judged_by_what_the_log_still_tells(world):
    folder = world.folder / "server/ledger"
    ledger = await Ledger.open(
        folder,
        trust_domain="test.example",
        settings=LedgerSettings(),
        max_rows=1000,
        log=world.log,
        journal=world.journal,
        clock=world.clock,
    )
    try:
        for number in (1, 2, 3):
            await ledger.add(AGENT, "s", number, sample())
            await ledger.seal_now()
            await world.grow(10)
    finally:
        await ledger.close()
    report, _ = verify_ledger(world.folder, None, None, None)
    assert (report.ok, report.sealed, report.unproven) == (True, 3, ())
    await world.retention(15).once(world.clock.now())
    report, _ = verify_ledger(world.folder, None, None, None)
    assert report.ok, report.problems
    # What was sealed 30 and 20 days ago has no entry any more; what was sealed 10 days ago has.
    assert (report.sealed, len(report.unproven)) == (1, 2)
    kept = next(path for path in folder.rglob("*.parquet") if str(path.relative_to(folder)) not in report.unproven)
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert not verify_ledger(world.folder, None, None, None)[0].ok
    # A bundle that the log does not call pruned is no excuse.
    bundles = [path for path in world.bundles() if ".p/" not in path]
    (world.files.root / bundles[0]).unlink()
    with pytest.raises(Corrupt, match="says it was pruned up to"):
        verify_ledger(world.folder, None, None, None)
