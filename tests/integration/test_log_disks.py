"""The log on a disk that is full, and on one that is read-only: real file systems in a mount namespace of our own."""

import json
import shutil
import subprocess
import sys

import pytest
from server_process import ServerProcess, eastwest

# Runs with a tmpfs of 8 MB at argv[1]; prints what came of it as JSON.
SCRIPT = """
import asyncio, json, subprocess, sys
from pathlib import Path
from eastwest.clock import SystemClock
from eastwest.errors import Corrupt, LogUnavailable, Unavailable
from eastwest.log.verify import verify_log
from eastwest.store.database import Database
from eastwest.store.log import SqliteLog
from eastwest.store.log_files import LogDirectory
from eastwest.testing.log import ORIGIN, TestSigner

disk = Path(sys.argv[1])

def mount(*options):
    subprocess.run(["mount", *options, disk], check=True)

def opened():
    database = Database.open(disk / "db", trust_domain="test.example", clock=SystemClock())
    return database, SqliteLog.open(database, disk / "log", origin=ORIGIN, signer=TestSigner(), clock=SystemClock())

def verified(log):
    files = LogDirectory(disk / "log")
    report = verify_log(files, log.key, list(files.paths()))
    return [str(problem) for problem in report.problems], report.checkpoint.size

async def main():
    said = {}
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs")
    database, opening = opened()
    log = await opening
    released = []
    try:
        for number in range(2000):
            batch = [b"entry %d.%d " % (number, i) + bytes(2000) for i in range(3)]
            released += zip(await log.append(batch), batch)
            try:
                await log.flush()
            except Unavailable as error:
                said["publishing on a full disk"] = str(error)
    except LogUnavailable as error:
        said["appending on a full disk"] = str(error)
    said["released"] = len(released)
    said["lost"] = sum([await log.entry(index) != entry for index, entry in released])
    await log.close()
    await database.close()
    database, opening = opened()
    try:
        log = await opening
        said["opening on a full disk"] = "opened"
        await log.close()
    except Exception as error:
        said["opening on a full disk"] = f"{type(error).__name__}: {error}"
    await database.close()
    mount("-o", "remount,size=30m")
    database, opening = opened()
    log = await opening
    said["lost with space again"] = sum([await log.entry(index) != entry for index, entry in released])
    said["repaired"], said["size"] = verified(log)
    await log.append([b"with space again"])
    await log.flush()
    said["goes on"] = verified(log)
    # The log's public directory alone, under a log that is open.
    public = disk / "log"
    subprocess.run(["mount", "--bind", public, public], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", public], check=True)
    await log.append([b"while the files cannot be written"])
    before = (public / "checkpoint").read_bytes()
    try:
        await log.flush()
    except Unavailable as error:
        said["publishing on a read-only disk"] = str(error)
    said["signed meanwhile"] = (public / "checkpoint").read_bytes() != before
    said["read read-only"] = len(await log.entries(0, 10))
    said["prove read-only"] = (await log.prove(0))[:8]
    subprocess.run(["umount", public], check=True)
    await log.flush()
    said["published afterwards"] = verified(log)
    await log.close()
    await database.close()
    # The whole disk, before anything is opened.
    mount("-o", "remount,ro")
    try:
        database, opening = opened()
        try:
            await opening
            said["open read-only"] = "opened"
        finally:
            await database.close()
    except Unavailable as error:
        said["open read-only"] = str(error)
    said["verify read-only"] = verified(log)
    print(json.dumps(said))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    unshare = shutil.which("unshare")
    own = [unshare, "--user", "--map-root-user", "--mount"]
    if unshare is None or subprocess.run([*own, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a file system of our own (unshare --user --mount)")
    ran = subprocess.run([*own, sys.executable, "-c", SCRIPT, disk], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_full_disk_refuses_and_loses_nothing(said):
    assert "full" in said["appending on a full disk"]
    assert said["released"] > 100
    assert said["lost"] == said["lost with space again"] == 0


def test_a_server_on_a_full_disk_says_so_or_opens(said):
    assert said["opening on a full disk"] == "opened" or "Unavailable" in said["opening on a full disk"]


def test_with_space_again_the_log_is_whole_and_goes_on(said):
    assert said["repaired"] == []
    assert said["size"] >= said["released"]
    problems, size = said["goes on"]
    assert (problems, size) == ([], said["size"] + 1)


def test_files_that_cannot_be_written_keep_nothing_from_being_recorded_and_nothing_is_signed(said):
    assert "Read-only file system" in said["publishing on a read-only disk"]
    assert said["signed meanwhile"] is False
    assert said["read read-only"] == 10
    assert said["prove read-only"] == "c2sp.org"
    assert said["published afterwards"] == [[], said["goes on"][1] + 1]


def test_a_read_only_disk_is_named_when_the_log_is_opened_and_the_log_still_verifies(said):
    assert "db" in said["open read-only"]
    assert "cannot be" in said["open read-only"]
    assert said["verify read-only"] == said["published afterwards"]


def test_a_database_that_is_gone_is_not_taken_for_a_new_server(tmp_path):
    server = ServerProcess(tmp_path)
    server.init()
    server.start()
    server.stop()
    for file in (tmp_path / "server").glob("server.db*"):
        file.unlink()
    told = eastwest("server", "run", "--data", tmp_path)
    assert told.returncode == 1
    assert "server.db: the database is gone or empty, and the log's public files are here" in told.stderr
    assert "Traceback" not in told.stderr
