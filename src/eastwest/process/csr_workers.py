"""Signing requests checked in processes of their own: the larger half of what issuing a certificate costs.

The workers hold no key and no secret; what comes from outside is parsed away from those that do. They talk over
pipes in MessagePack, and end when their standard input does.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from typing import Any, BinaryIO

import msgspec
import structlog

from eastwest.errors import Error, Unavailable
from eastwest.pki.csr import CsrDefect, InvalidCsr, verify_csr
from eastwest.pki.signer import KeyAlgorithm, SubjectKey, UnsupportedKey

CHUNK = 32
"""Requests that a worker gets at once."""
IN_FLIGHT = 2
"""Chunks that a worker has at most, so that a small job does not wait behind a whole batch."""
STUCK_SECONDS = 30.0
"""After which a worker that has not answered is taken for dead."""
TRIES = 2
"""Workers that may end over a chunk before it is given up."""
PAUSE_SECONDS = 1.0
"""Before a worker that has ended is replaced once more."""

Answer = tuple[str, bytes, bytes] | tuple[str, str, str, str, str]
"""Algorithm, SubjectPublicKeyInfo, key bits; or the kind of refusal, message, fix, where, defect."""
_encoder = msgspec.msgpack.Encoder()
_questions = msgspec.msgpack.Decoder(list[tuple[bytes, list[KeyAlgorithm]]])
_answers = msgspec.msgpack.Decoder(list[list[Any]])

_log = structlog.get_logger()


class _Chunk:
    __slots__ = ("body", "done", "size", "tries")

    def __init__(self, requests: Sequence[tuple[bytes, Collection[KeyAlgorithm]]]) -> None:
        self.size = len(requests)
        self.body = _encoder.encode([(der, list(allowed)) for der, allowed in requests])
        self.done: asyncio.Future[list[SubjectKey | Error]] = asyncio.get_running_loop().create_future()
        self.tries = 0


class CsrWorkers:
    """Serves ``eastwest.issuance.ports.CsrChecks`` with ``number`` processes."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._tasks: list[asyncio.Task[None]] = []
        self._queue: list[tuple[int, int, _Chunk]] = []  # small jobs first, then in order
        self._order = count()
        self._room: deque[asyncio.Future[None]] = deque()
        self.pids: set[int] = set()
        self._closed = False

    def start(self) -> None:
        """Start the workers; what is asked meanwhile waits."""
        self._tasks = [asyncio.create_task(self._keep()) for _ in range(self._number)]

    async def close(self) -> None:
        """End the workers; whoever waits is told ``Unavailable``."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._queue:
            self._give_up(heappop(self._queue)[2])

    async def check(self, requests: Sequence[tuple[bytes, Collection[KeyAlgorithm]]]) -> Sequence[SubjectKey | Error]:
        if self._closed:
            raise Unavailable("the server is stopping")
        chunks = [_Chunk(requests[start : start + CHUNK]) for start in range(0, len(requests), CHUNK)]
        for chunk in chunks:
            self._enqueue(len(requests), chunk)
        found: list[SubjectKey | Error] = []
        for chunk in chunks:
            found += await chunk.done
        return found

    def _enqueue(self, size: int, chunk: _Chunk) -> None:
        heappush(self._queue, (size, next(self._order), chunk))
        while self._room:
            waiter = self._room.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _keep(self) -> None:
        while True:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "eastwest.process.csr_workers",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=2**20,
            )
            self.pids.add(process.pid)
            in_flight: deque[tuple[int, _Chunk]] = deque()
            try:
                await self._serve(process, in_flight)
            except (OSError, asyncio.IncompleteReadError, msgspec.MsgspecError, ValueError):
                _log.warning("csr_worker.ended", pid=process.pid)
            finally:
                self.pids.discard(process.pid)
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                self._hand_back(in_flight)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _serve(self, process: asyncio.subprocess.Process, in_flight: deque[tuple[int, _Chunk]]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        answer: asyncio.Task[bytes] | None = None
        more: asyncio.Future[None] | None
        waited: list[asyncio.Future[Any]]
        try:
            while True:
                while self._queue and len(in_flight) < IN_FLIGHT:
                    size, _, chunk = heappop(self._queue)
                    in_flight.append((size, chunk))
                    process.stdin.write(len(chunk.body).to_bytes(4) + chunk.body)
                if answer is None:
                    answer = asyncio.create_task(_read(process.stdout))
                if len(in_flight) < IN_FLIGHT:
                    more = asyncio.get_running_loop().create_future()
                    self._room.append(more)
                    waited = [answer, more]
                else:
                    more = None
                    waited = [answer]
                patience = STUCK_SECONDS if in_flight else None
                done, _ = await asyncio.wait(waited, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise ValueError("no answer in time")
                if more is not None:
                    more.cancel()
                if answer.done():
                    body, answer = answer.result(), None
                    if not in_flight:
                        raise ValueError("an answer to nothing")
                    found = [_read_answer(each) for each in _answers.decode(body)]
                    if len(found) != in_flight[0][1].size:
                        raise ValueError("not as many answers as questions")
                    _, chunk = in_flight.popleft()
                    if not chunk.done.done():
                        chunk.done.set_result(found)
        finally:
            if answer is not None:
                answer.cancel()
                with suppress(asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
                    await answer

    def _hand_back(self, in_flight: deque[tuple[int, _Chunk]]) -> None:
        for place, (size, chunk) in enumerate(in_flight):
            chunk.tries += place == 0  # the first is what it was at
            if self._closed or chunk.tries >= TRIES:
                self._give_up(chunk)
            else:
                self._enqueue(size, chunk)

    def _give_up(self, chunk: _Chunk) -> None:
        if not chunk.done.done():
            error = Unavailable("the signing request could not be checked: its worker ended")
            chunk.done.set_result([error] * chunk.size)


async def _read(stream: asyncio.StreamReader) -> bytes:
    return await stream.readexactly(int.from_bytes(await stream.readexactly(4)))


def _read_answer(answer: list[Any]) -> SubjectKey | Error:
    match answer:
        case [str(algorithm), bytes(spki), bytes(bits)]:
            return SubjectKey(KeyAlgorithm(algorithm), spki, bits)
        case ["csr", str(message), str(fix), str(where), str(defect)]:
            return InvalidCsr(message, defect=CsrDefect(defect), fix=fix, where=where)
        case ["key", str(message), str(fix), str(where), ""]:
            return UnsupportedKey(message, fix=fix, where=where)
    raise ValueError("no answer")


def _answer(der: bytes, allowed: Collection[KeyAlgorithm]) -> Answer:
    try:
        key = verify_csr(der, allowed)
    except InvalidCsr as error:
        return "csr", error.message, error.fix, error.where, error.defect
    except UnsupportedKey as error:
        return "key", error.message, error.fix, error.where, ""
    return key.algorithm, key.spki, key.bits


def _work(questions: BinaryIO, answers: BinaryIO) -> None:
    while len(head := questions.read(4)) == 4:
        asked = _questions.decode(questions.read(int.from_bytes(head)))
        body = _encoder.encode([_answer(der, allowed) for der, allowed in asked])
        answers.write(len(body).to_bytes(4) + body)
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the server ends its workers itself
    _work(sys.stdin.buffer, sys.stdout.buffer)
