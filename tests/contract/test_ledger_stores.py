"""The ledger's stores against their contract: hot rows alone, segments alone, both, and a copied directory."""

import pytest
import pytest_asyncio

from eastwest.server.config import LedgerSettings
from eastwest.server.journal import Journal
from eastwest.server.ledger.keeper import Ledger
from eastwest.store.ledger_reader import LedgerReader
from eastwest.testing import FakeClock
from eastwest.testing.ledgers import AGENT, LedgerContract, sample
from eastwest.testing.log import MemoryLog

pytestmark = pytest.mark.asyncio(loop_scope="module")


class OfDirectory:
    """A reader of files, as the port has it."""

    def __init__(self, directory):
        self._reader = LedgerReader(directory)

    async def search(self, query):
        return self._reader.search(query)

    async def top(self, query, by):
        return self._reader.top(query, by)

    async def edges(self, query):
        return self._reader.edges(query)

    async def close(self):
        self._reader.close()


async def opened(directory):
    clock, log = FakeClock(), MemoryLog()
    return await Ledger.open(
        directory,
        trust_domain="saas.example",
        settings=LedgerSettings(),
        max_rows=1000,
        log=log,
        journal=Journal(log, clock),
        clock=clock,
    )


@pytest_asyncio.fixture(scope="class", loop_scope="module")
async def store(request, tmp_path_factory):
    store = await request.cls.fill(tmp_path_factory.mktemp("data") / "ledger")
    yield store
    await store.close()


class TestHotRows(LedgerContract):
    @staticmethod
    async def fill(directory):
        ledger = await opened(directory)
        await ledger.add(AGENT, "s", 1, sample())
        return ledger


class TestSegments(LedgerContract):
    @staticmethod
    async def fill(directory):
        ledger = await opened(directory)
        await ledger.add(AGENT, "s", 1, sample())
        assert len(await ledger.sealer.seal(3)) == -(-len(sample()) // 3)
        return ledger


class TestSegmentsAndHotRows(LedgerContract):
    @staticmethod
    async def fill(directory):
        ledger = await opened(directory)
        await ledger.add(AGENT, "s", 1, sample()[:6])
        assert len(await ledger.sealer.seal(5)) == 2
        await ledger.add(AGENT, "s", 2, sample()[6:])
        return ledger


class TestADirectory(LedgerContract):
    @staticmethod
    async def fill(directory):
        ledger = await opened(directory)
        await ledger.add(AGENT, "s", 1, sample())
        await ledger.sealer.seal(4)
        await ledger.close()
        (directory / "hot.db").unlink()
        return OfDirectory(directory)
