"""Signing requests checked in other processes: the same answers, in order, whatever happens to the processes."""

import asyncio
import os
import signal

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from eastwest.errors import Unavailable
from eastwest.pki.csr import CsrDefect, InvalidCsr, make_csr, verify_csr
from eastwest.pki.signer import KeyAlgorithm, SubjectKey, UnsupportedKey
from eastwest.process import csr_workers
from eastwest.process.csr_workers import CHUNK, CsrWorkers
from eastwest.spiffe.id import SpiffeId

ID = SpiffeId.parse("spiffe://td.test/a")
P256 = (KeyAlgorithm.EC_P256,)
CSR = make_csr(ec.generate_private_key(ec.SECP256R1()), ID)
OTHER = make_csr(ec.generate_private_key(ec.SECP384R1()), ID)


def outcome(der, allowed):
    try:
        return verify_csr(der, allowed)
    except (InvalidCsr, UnsupportedKey) as error:
        return error


def told(answer):
    if isinstance(answer, SubjectKey):
        return answer
    return type(answer), answer.message, answer.fix, answer.where, getattr(answer, "defect", None)


@pytest.fixture
async def workers(monkeypatch):
    monkeypatch.setattr(csr_workers, "PAUSE_SECONDS", 0.01)
    workers = CsrWorkers(2)
    workers.start()
    yield workers
    await workers.close()
    assert not workers.pids


async def test_answers_are_those_of_the_check_itself_and_in_order(workers):
    flipped = CSR[:-1] + bytes([CSR[-1] ^ 1])
    asked = [(CSR, P256), (flipped, P256), (OTHER, P256), (b"no CSR", P256), (OTHER, (KeyAlgorithm.EC_P384,))] * 30
    found = await workers.check(asked)
    assert len(found) == len(asked)
    assert [told(answer) for answer in found] == [told(outcome(*each)) for each in asked]
    assert {getattr(answer, "defect", None) for answer in found} >= {CsrDefect.WRONG_SIGNATURE}
    assert await workers.check([]) == []


async def test_a_worker_that_ends_is_replaced_and_its_work_done_elsewhere(workers):
    await workers.check([(CSR, P256)])
    running = asyncio.create_task(workers.check([(CSR, P256)] * 4000))
    await asyncio.sleep(0)
    victims = set(workers.pids)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        assert all(isinstance(answer, SubjectKey) for answer in await running)
        while len(workers.pids) < 2:
            await asyncio.sleep(0.01)
    assert not victims & workers.pids


async def test_what_ends_every_worker_is_given_up_and_the_rest_goes_on(workers, monkeypatch):
    # A chunk that no worker can read stands for one that makes each of them end.
    real = csr_workers._encoder.encode

    class Encoder:
        def encode(self, asked):
            return b"\xc1" if asked[0][0] == b"poison" else real(asked)

    monkeypatch.setattr(csr_workers, "_encoder", Encoder())
    async with asyncio.timeout(20):
        poisoned, good = await asyncio.gather(
            workers.check([(b"poison", P256)] * 3), workers.check([(CSR, P256)] * (2 * CHUNK))
        )
    assert [type(answer) for answer in poisoned] == [Unavailable] * 3
    assert all(isinstance(answer, SubjectKey) for answer in good)


async def test_a_worker_that_hangs_is_taken_for_dead(workers, monkeypatch):
    await workers.check([(CSR, P256)])
    monkeypatch.setattr(csr_workers, "STUCK_SECONDS", 0.3)
    for pid in workers.pids:
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(csr_workers, "TRIES", 100)
    async with asyncio.timeout(30):
        assert isinstance((await workers.check([(CSR, P256)]))[0], SubjectKey)


async def test_a_small_job_does_not_wait_behind_a_large_one(workers):
    await workers.check([(CSR, P256)])
    large = asyncio.create_task(workers.check([(CSR, P256)] * 3000))
    await asyncio.sleep(0)
    await workers.check([(CSR, P256)] * 16)
    assert not large.done()
    await large


async def test_after_the_end_nothing_waits_forever():
    workers = CsrWorkers(1)
    workers.start()
    waiting = asyncio.create_task(workers.check([(CSR, P256)] * 2000))
    await asyncio.sleep(0)
    await workers.close()
    async with asyncio.timeout(5):
        assert any(isinstance(answer, Unavailable) for answer in await waiting)
    with pytest.raises(Unavailable):
        await workers.check([(CSR, P256)])
