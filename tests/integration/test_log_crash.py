"""kill -9 of a process that appends and publishes, again and again: nothing acknowledged is lost."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time

from eastwest.clock import SystemClock
from eastwest.log.note import NoteKey
from eastwest.log.proof import verify_consistency
from eastwest.log.verify import verify_log
from eastwest.store.database import Database
from eastwest.store.log import SqliteLog
from eastwest.store.log_files import LogDirectory
from eastwest.testing.log import ORIGIN, TestSigner

KILLS = 15
KEY = NoteKey.of(ORIGIN, TestSigner())

# Appends from several tasks in batches of changing size and publishes without a pause. Prints
# "<index> <text>" for each entry once its append has returned.
WRITER = """
import asyncio, os, sys
from pathlib import Path
from eastwest.clock import SystemClock
from eastwest.store.database import Database
from eastwest.store.log import SqliteLog
from eastwest.testing.log import ORIGIN, TestSigner

async def main(folder, life):
    database = Database.open(folder / "db", trust_domain="test.example", clock=SystemClock())
    log = await SqliteLog.open(database, folder / "log", origin=ORIGIN, signer=TestSigner(), clock=SystemClock())
    os.write(1, b"ready\\n")

    async def append(task):
        for turn in range(1_000_000):
            entries = [f"{life}.{task}.{turn}.{i}".encode() for i in range(1 + (turn * 7 + task) % 90)]
            indices = await log.append(entries)
            os.write(1, b"".join(b"%d %s\\n" % pair for pair in zip(indices, entries)))

    async def publish():
        while True:
            await log.flush()
            await asyncio.sleep(0)

    await asyncio.gather(publish(), *(append(task) for task in range(3)))

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


async def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path):
    acknowledged: dict[int, bytes] = {}
    files = LogDirectory(tmp_path / "log")
    chance = random.Random(20261122)
    checkpoints = []
    for life in range(KILLS):
        acknowledged.update(_live_and_die(tmp_path, life, chance.uniform(0.02, 0.3)))
        # As the crash left it: whatever checkpoint there is, is right.
        report = verify_log(files, KEY, list(files.paths()))
        assert report.ok, [str(problem) for problem in report.problems]
        checkpoints.append(report.checkpoint)
    assert len(acknowledged) > 1000

    database = Database.open(tmp_path / "db", trust_domain="test.example", clock=SystemClock())
    log = await SqliteLog.open(database, tmp_path / "log", origin=ORIGIN, signer=TestSigner(), clock=SystemClock())
    report = verify_log(files, KEY, list(files.paths()))
    assert report.ok, [str(problem) for problem in report.problems]
    assert report.checkpoint.size == log.size
    stored = await log.entries(0, log.size)
    assert {index: stored[index] for index in acknowledged} == acknowledged
    assert len(set(stored)) == len(stored) == log.size
    _assert_one_history(files, [*checkpoints, report.checkpoint])
    await log.close()
    await database.close()


def _live_and_die(folder, life, seconds) -> dict[int, bytes]:
    """Run a writer, kill it after a while, and return what it had acknowledged."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(life)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        first = process.stdout.readline()
        assert first == b"ready\n", process.stderr.read().decode()
        # Read while it runs: a full pipe would stop it at a place that is always the same.
        os.set_blocking(process.stdout.fileno(), False)
        said, end = b"", time.monotonic() + seconds
        while time.monotonic() < end:
            said += process.stdout.read() or b""
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.set_blocking(process.stdout.fileno(), True)
        said += process.stdout.read()
        assert not process.stderr.read()
    whole = said[: said.rfind(b"\n") + 1]
    return {int(index): entry for index, entry in (line.split(b" ", 1) for line in whole.splitlines())}


def _assert_one_history(files, checkpoints) -> None:
    from eastwest.log.proof import consistency_proof
    from eastwest.log.tiles import TileReader

    for old, new in itertools.pairwise(checkpoints):
        proof = consistency_proof(old.size, new.size, TileReader(files, new.size).node)
        verify_consistency(old.size, new.size, proof, old.root, new.root)
