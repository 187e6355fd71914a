"""A job for ``eastwest.store.ledger_replay``: its process, what it says while it works, and its end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress

import msgspec
import structlog

from eastwest import errors
from eastwest.errors import Error, Unavailable
from eastwest.store.ledger_replay import Job, Outcome, Progress

MAX_SECONDS = 900.0
"""For one job."""
MAX_LINE = 256 * 1024 * 1024
"""Bytes of the report."""

_log = structlog.get_logger()
_lines = msgspec.json.Decoder(Progress | Outcome)
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
Tell = Callable[[Progress], None]


async def run_job(job: Job, tell: Tell) -> bytes:
    """Have it done; gives the report as JSON. Raises the job's error; ``Unavailable`` where the process failed.

    When this is cancelled, the process is killed.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "eastwest.store.ledger_replay",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE,
    )
    try:
        async with asyncio.timeout(MAX_SECONDS):
            return await _converse(process, job, tell)
    except (OSError, ValueError, TimeoutError, msgspec.MsgspecError) as error:
        _log.warning("impact.process_failed", error=repr(error)[:300])
        raise Unavailable(f"the replay did not come to its end: {type(error).__name__}") from None
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _converse(process: asyncio.subprocess.Process, job: Job, tell: Tell) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(await asyncio.to_thread(msgspec.msgpack.encode, job))
    await process.stdin.drain()
    process.stdin.close()
    async for line in process.stdout:
        said = _lines.decode(line)
        if isinstance(said, Progress):
            tell(said)
            continue
        if said.error is not None:
            code, message, fix, where = said.error
            raise _ERRORS.get(code, Unavailable)(message, fix=fix, where=where)
        return bytes(said.report)
    raise Unavailable("the replay ended without an answer", fix="see the server's log")
