"""The log's first key: another one signs nothing in its name."""

import pytest

from eastwest.clock import SystemClock
from eastwest.errors import FailedPrecondition
from eastwest.log.entry import Entry, encode
from eastwest.log.note import NoteKey
from eastwest.server.config import ServerPaths
from eastwest.server.log.keys import check_first_key
from eastwest.store.database import Database
from eastwest.store.log import SqliteLog
from eastwest.testing.log import ORIGIN, TestSigner

KEY = NoteKey.of(ORIGIN, TestSigner())
OTHER = NoteKey.of(ORIGIN, TestSigner(b"another".ljust(32)))


@pytest.fixture
async def begun(tmp_path):
    """A log with its first entry: its database, and where its files are."""
    paths = ServerPaths(tmp_path)
    paths.home.mkdir()
    clock = SystemClock()
    database = Database.open(paths.database, trust_domain="test.example", clock=clock)
    log = await SqliteLog.open(database, paths.log, origin=ORIGIN, signer=TestSigner(), clock=clock)
    facts = {"time": clock.now(), "actor": "spiffe://test.example/spire/server", "subject": "spiffe://test.example"}
    await log.append([encode(Entry("log.opened", {**facts, "origin": ORIGIN, "vkey": KEY.vkey, "build": "0"}))])
    await log.close()
    paths.log_vkey.write_text(f"{KEY.vkey}\n")
    yield database, paths
    await database.close()


@pytest.mark.parametrize("told", [KEY, OTHER, None])
async def test_another_key_is_refused_whatever_the_file_says(begun, told):
    database, paths = begun
    paths.log_vkey.unlink() if told is None else paths.log_vkey.write_text(told.vkey)
    with pytest.raises(FailedPrecondition, match="the key log-1 is not the one that this log began with"):
        await check_first_key(database, paths, OTHER, "log-1")


@pytest.mark.parametrize("told", [f"{KEY.vkey}\n", f"{OTHER.vkey}\n", "damaged", None])
async def test_the_right_key_is_told_again_where_the_file_is_damaged(begun, told):
    database, paths = begun
    paths.log_vkey.unlink() if told is None else paths.log_vkey.write_text(told)
    await check_first_key(database, paths, KEY, "log-1")
    assert paths.log_vkey.read_text() == f"{KEY.vkey}\n"


async def test_where_the_first_entry_is_gone_the_file_decides(begun):
    database, paths = begun
    await database.write(lambda c: c.execute("DELETE FROM log_segment"))
    await check_first_key(database, paths, KEY, "log-1")
    with pytest.raises(FailedPrecondition):
        await check_first_key(database, paths, OTHER, "log-1")
