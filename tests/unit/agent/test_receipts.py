"""Receipts of an agent: one for each certificate held, kept with it, replaced with it, gone with it."""

import asyncio
import hashlib
import json
import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from eastwest.agent.backoff import Backoff
from eastwest.agent.changes import Changes
from eastwest.agent.receipts import BATCH, Receipts, read_receipt
from eastwest.api.eastwest.log.v1 import log_pb2 as pb
from eastwest.clock import SystemClock
from eastwest.errors import Unavailable


@dataclass(frozen=True)
class Svid:
    id: str
    chain: tuple[bytes, ...]


def held(entry_id, certificate):
    return SimpleNamespace(entry_id=entry_id, svid=Svid(f"spiffe://x/{entry_id}", (certificate,)))


class Identities:
    """What an agent holds, as receipts see it."""

    def __init__(self):
        self.changes = Changes()
        self.holding = {}

    def everything(self):
        return tuple(self.holding.values())

    def hold(self, entry_id, certificate):
        self.holding[entry_id] = held(entry_id, certificate)
        self.changes.bump()

    def drop(self, entry_id):
        del self.holding[entry_id]
        self.changes.bump()


class Server:
    """Answers for what it knows; ``asked`` are the hashes of each call."""

    def __init__(self):
        self.away = False
        self.unknown = set()
        self.asked = []
        self.lie = False

    async def prove(self, hashes):
        self.asked.append(list(hashes))
        if self.away:
            raise Unavailable("away")
        return [self._answer(one.hex()) for one in hashes]

    def _answer(self, sha256):
        if sha256 in self.unknown:
            return pb.ProveResponse()
        about = "00" * 32 if self.lie else sha256
        return pb.ProveResponse(index=7, entry=json.dumps({"certificate_sha256": about}).encode(), proof="a proof")


class Hurry(SystemClock):
    """Waits for nothing, but lets others run."""

    async def sleep(self, seconds):
        await asyncio.sleep(0.001 if seconds else 0)


@pytest.fixture
async def world(tmp_path):
    identities, server = Identities(), Server()
    tasks = []

    def start():
        receipts = Receipts(server, identities, tmp_path / "r", Hurry(), Backoff(random.Random(1)))
        tasks.append(asyncio.create_task(receipts.run()))
        return receipts

    yield SimpleNamespace(identities=identities, server=server, start=start, folder=tmp_path / "r", tasks=tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def kept(folder):
    return {one.spiffe_id: one.certificate_sha256 for path in folder.glob("*.json") if (one := read_receipt(path))}


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


async def test_it_is_kept_replaced_and_dropped_with_its_certificate(world):
    world.identities.hold("a", b"one")
    receipts = world.start()
    await until(lambda: kept(world.folder) == {"spiffe://x/a": sha256(b"one")})
    world.identities.hold("a", b"two")
    world.identities.hold("b", b"three")
    await until(lambda: kept(world.folder) == {"spiffe://x/a": sha256(b"two"), "spiffe://x/b": sha256(b"three")})
    await until(lambda: receipts.lacking == 0)
    world.identities.drop("a")
    await until(lambda: kept(world.folder) == {"spiffe://x/b": sha256(b"three")})
    assert world.folder.stat().st_mode & 0o777 == 0o700


async def test_a_restart_asks_only_for_what_is_lacking(world):
    world.identities.hold("a", b"one")
    world.start()
    await until(lambda: kept(world.folder))
    world.tasks.pop().cancel()
    world.server.asked.clear()
    (world.folder / "b.receipt.json").write_text("torn")
    world.identities.hold("b", b"two")
    world.start()
    await until(lambda: len(kept(world.folder)) == 2)
    assert world.server.asked == [[hashlib.sha256(b"two").digest()]]


async def test_a_server_that_is_away_or_behind_is_asked_again(world):
    world.server.away = True
    world.server.unknown = {sha256(b"one")}
    world.identities.hold("a", b"one")
    world.identities.hold("b", b"two")
    receipts = world.start()
    await until(lambda: len(world.server.asked) > 2)
    world.server.away = False
    await until(lambda: kept(world.folder) == {"spiffe://x/b": sha256(b"two")})
    await until(lambda: receipts.lacking == 1)
    world.server.unknown.clear()
    await until(lambda: receipts.lacking == 0)


async def test_a_receipt_for_another_certificate_is_not_kept(world):
    world.server.lie = True
    world.identities.hold("a", b"one")
    world.start()
    await until(lambda: len(world.server.asked) > 1)
    assert not kept(world.folder)


async def test_many_are_asked_for_in_batches(world):
    for number in range(BATCH + 5):
        world.identities.hold(f"e{number}", str(number).encode())
    receipts = world.start()
    await until(lambda: receipts.lacking == 0)
    assert [len(asked) for asked in world.server.asked[:2]] == [BATCH, 5]


async def test_an_entry_s_name_leads_nowhere_else(world, tmp_path):
    world.identities.hold("../../outside", b"one")
    world.start()
    await until(lambda: kept(world.folder))
    assert [path.parent for path in tmp_path.rglob("*.json")] == [world.folder]
