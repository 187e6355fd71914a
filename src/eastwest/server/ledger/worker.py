"""The server's end of a ledger worker: started when it is needed, ended when it has been idle, killed when stuck."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from eastwest import errors
from eastwest.errors import Error, Unavailable
from eastwest.store.ledger_worker import Answer, Question

IDLE_SECONDS = 30.0
"""After which a worker is ended: it starts again in a fifth of a second, and meanwhile its memory is free."""
MAX_SECONDS = 300.0
"""For one task."""
MAX_ANSWER = 64 * 1024 * 1024

_log = structlog.get_logger()
_answers = msgspec.json.Decoder(Answer)
_ERRORS: dict[str, type[Error]] = {
    kind.code: kind
    for kind in (
        errors.InvalidInput,
        errors.NotFound,
        errors.Corrupt,
        errors.Exhausted,
        errors.FailedPrecondition,
        errors.Internal,
    )
}


class LedgerWorker:
    """One worker process on a ledger's directory, one task at a time."""

    def __init__(self, directory: Path, *, memory_mb: int, threads: int) -> None:
        self._arguments = (str(directory), str(memory_mb), str(threads))
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    async def ask(self, question: Question) -> Answer:
        """Have it done. Raises the worker's error; ``Unavailable`` where the worker ended or took too long."""
        async with self._turn:
            if self._closed:
                raise Unavailable("the server is stopping")
            if self._idle is not None:
                self._idle.cancel()
            try:
                async with asyncio.timeout(MAX_SECONDS):
                    answer = await self._exchange_again(question)
            except (OSError, asyncio.IncompleteReadError, TimeoutError, msgspec.MsgspecError, ValueError) as error:
                _log.warning("ledger.worker_failed", task=question.task, error=repr(error)[:300])
                await self._end()
                raise Unavailable(f"the ledger's worker did not answer: {type(error).__name__}") from None
            except asyncio.CancelledError:
                await self._end()  # its answer would be taken for that to the next question
                raise
            self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._rest)
        if answer.error is not None:
            code, message, fix = answer.error
            raise _ERRORS.get(code, Unavailable)(message, fix=fix)
        return answer

    async def close(self) -> None:
        """End the process; harmless when repeated."""
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
        await self._end()

    async def _exchange_again(self, question: Question) -> Answer:
        """Ask; a worker that turns out to have ended is replaced once. Every task may be done twice."""
        try:
            return await self._exchange(question)
        except (OSError, asyncio.IncompleteReadError):
            await self._end()
            return await self._exchange(question)

    async def _exchange(self, question: Question) -> Answer:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "eastwest.store.ledger_worker",
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        body = msgspec.json.encode(question)
        process.stdin.write(len(body).to_bytes(4) + body)
        await process.stdin.drain()
        size = int.from_bytes(await process.stdout.readexactly(4))
        if size > MAX_ANSWER:
            raise ValueError("an answer over the bound")
        return _answers.decode(await process.stdout.readexactly(size))

    def _rest(self) -> None:
        """Nothing to do for a while: the process ends when its input does."""
        if not self._turn.locked() and self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process = None

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
