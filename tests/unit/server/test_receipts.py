"""Receipts are of the very entry that was asked for, and nobody's waiting keeps others from theirs."""

import asyncio
from hashlib import sha256

import pytest
from witness_world import OurLog

from eastwest.api.eastwest.log.v1 import log_pb2 as pb
from eastwest.errors import InvalidInput, NotFound
from eastwest.log.entry import Entry, encode
from eastwest.log.index import term_hash
from eastwest.log.proof import LogProof
from eastwest.server.receipts import AT_ONCE, Receipts
from eastwest.store.log_index import SqliteLogIndex, catch_up
from eastwest.testing.clock import FakeClock

AGENT = "spiffe://test.example/spire/agent/x"
OTHER = "spiffe://test.example/spire/agent/y"


def issued(clock, certificate, serial, node=AGENT):
    facts = {"certificate_sha256": certificate, "serial": serial, "node": node}
    return encode(Entry("x509_svid.issued", {"time": clock.now(), "actor": node, "subject": "s", **facts}))


def alike(field):
    """Two values that an index cannot tell apart: they share the bits that it keeps."""
    seen = {}
    for number in range(1_000_000):
        value = sha256(str(number).encode()).hexdigest()
        first = seen.setdefault(term_hash(field, value), value)
        if first != value:
            return first, value
    raise AssertionError("a million values, and no two alike")


class World:
    def __init__(self, ours, receipts, path):
        self.ours, self.receipts, self.path = ours, receipts, path

    async def add(self, *entries):
        log = self.ours.log
        await log.append(entries)
        await log.flush()
        raw = await log.entries(0, log.size)
        index = SqliteLogIndex.open(self.path)
        leaf = log._reader(log.checkpoint).leaf
        list(catch_up(index, log.key.name, log.size, lambda start, end: raw[start:end], leaf))
        index.close()
        self.receipts.wake()

    async def find(self, agent=AGENT, **wanted):
        return await self.receipts._find(pb.ProveRequest(**wanted), agent)


@pytest.fixture
async def world(tmp_path):
    ours = OurLog(tmp_path / "data", FakeClock())
    await ours.open()
    receipts = Receipts(ours.log, tmp_path / "index.db", ours.journal)
    yield World(ours, receipts, tmp_path / "index.db")
    receipts.close()
    await ours.close()


async def test_an_index_that_takes_two_values_for_one_gives_nobody_the_wrong_receipt(world):
    first, second = alike("certificate_sha256")
    serial, same = alike("serial")
    clock = world.ours.clock
    await world.add(issued(clock, first, serial.lstrip("0")), issued(clock, second, same.lstrip("0")))
    for number, (certificate, wanted) in enumerate(((first, serial), (second, same))):
        raw = await world.ours.log.entry(number)
        for question in ({"certificate_sha256": bytes.fromhex(certificate)}, {"serial": wanted}):
            index, entry, proof = await world.find(**question)
            assert (index, entry) == (number, raw)
            LogProof.parse(proof).verify(entry, world.ours.log.key)
    answers = await world.receipts._find_many([second, first, "00" * 32], AGENT)
    assert [(one.index, bool(one.proof)) for one in answers] == [(1, True), (0, True), (0, False)]


async def test_what_is_another_s_is_as_if_it_were_not_there(world):
    await world.add(issued(world.ours.clock, "aa" * 32, "1"), issued(world.ours.clock, "bb" * 32, "2", OTHER))
    for question in ({"index": 1}, {"serial": "2"}, {"certificate_sha256": bytes.fromhex("bb" * 32)}):
        with pytest.raises(NotFound, match="no published checkpoint covers such an entry of this caller's"):
            await world.find(**question)
        assert (await world.find("", **question))[0] == 1, "an administrator sees it"
    answers = await world.receipts._find_many(["bb" * 32], AGENT)
    assert not answers[0].entry


async def test_those_who_wait_for_what_never_comes_keep_nobody_from_a_receipt(world):
    await world.add(issued(world.ours.clock, "aa" * 32, "1"))
    waiting = [asyncio.create_task(world.find(index=1000 + number)) for number in range(4 * AT_ONCE)]
    waiting += [asyncio.create_task(world.receipts._find_many(["cc" * 32], AGENT)) for _ in range(AT_ONCE)]
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        assert (await world.find(serial="1"))[0] == 0
    assert not any(one.done() for one in waiting)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("question", [{"index": 2**63}, {"index": 2**64 - 1}, {"serial": "zz"}, {}])
async def test_questions_that_name_no_entry_are_refused(world, question):
    await world.add(issued(world.ours.clock, "aa" * 32, "1"))
    with pytest.raises(InvalidInput):
        await world.find(**question)


async def test_what_is_pruned_is_left_out_and_harms_no_other(world):
    clock = world.ours.clock
    await world.add(*(issued(clock, f"{n:064x}", f"{n:x}") for n in range(1, 258)))
    await world.ours.log.prune(256)
    answers = await world.receipts._find_many([f"{256:064x}", f"{257:064x}"], AGENT)
    assert [bool(one.proof) for one in answers] == [False, True]
