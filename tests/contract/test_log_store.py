"""Every log keeps the contract: the one on SQLite and the one in memory."""

import pytest

from eastwest.clock import SystemClock
from eastwest.errors import LogUnavailable
from eastwest.store.database import Database
from eastwest.store.log import SqliteLog
from eastwest.testing.log import ORIGIN, Failure, LogStoreContract, MemoryLog, TestSigner, assert_verifies


class TestSqliteLog(LogStoreContract):
    @pytest.fixture
    async def log(self, tmp_path):
        database = Database.open(tmp_path / "db", trust_domain="test.example", clock=SystemClock())
        log = await SqliteLog.open(database, tmp_path / "log", origin=ORIGIN, signer=TestSigner(), clock=SystemClock())
        yield log
        await log.close()
        await database.close()


class TestMemoryLog(LogStoreContract):
    @pytest.fixture
    async def log(self):
        log = MemoryLog()
        yield log
        await log.flush()
        assert_verifies(log.files, log.key)

    async def test_named_failures(self, log):
        log.fail_next(Failure.REFUSED, Failure.UNHEARD)
        for stored in (0, 1):
            with pytest.raises(LogUnavailable):
                await log.append([b"a"])
            assert log.size == stored
        assert list(await log.append([b"b"])) == [1]
        log.fail_always(Failure.REFUSED)
        for _ in range(3):
            with pytest.raises(LogUnavailable):
                await log.append([b"c"])
        log.fail_always(None)
        assert list(await log.append([b"c"])) == [2]
