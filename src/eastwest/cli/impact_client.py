"""Where an impact report or a suggestion comes from: a running server, or a directory of segments without one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
from google.protobuf.message import Message

from eastwest.ledger.query import DecisionQuery

if TYPE_CHECKING:
    from eastwest.store.ledger_replay import Progress

Tell = Callable[[str, int, int], None]
"""Phase, rows done, and rows in all (0 while that is not known)."""


async def ask_server(data: Path, task: str, files: Mapping[str, bytes], query: DecisionQuery, tell: Tell) -> Any:
    """The report of a running server on what it has recorded, against the estate in force there."""
    from eastwest.api.eastwest.impact.v1 import impact_pb2 as pb
    from eastwest.cli.admin import admin_channel
    from eastwest.rpc.client import method

    service = pb.DESCRIPTOR.services_by_name["Impact"]
    asked = msgspec.json.encode(query)
    request: Message = pb.SuggestRequest(query=asked)
    if task == "impact":
        request = pb.ReplayRequest(files=files, query=asked)
    channel = admin_channel(data)
    pieces = bytearray()
    try:
        async with channel.stream(method(service, "Replay" if task == "impact" else "Suggest")) as stream:
            await stream.send_message(request, end=True)
            async for reply in stream:
                if reply.phase:
                    tell(reply.phase, reply.done, reply.total)
                pieces += reply.piece
    finally:
        channel.close()
    return msgspec.json.decode(pieces)


async def ask_files(
    ledger: Path,
    task: str,
    files: Mapping[str, bytes],
    before: Mapping[str, bytes] | None,
    query: DecisionQuery,
    tell: Tell,
) -> Any:
    """The same from segments on disk; ``before``: the estate to compare with (None: with what was recorded)."""
    from eastwest.store.ledger_replay import Job, Replay

    def told(progress: Progress) -> None:
        tell(progress.phase, progress.done, progress.total)

    found = dict(before) if before is not None else None
    job = Job(task=task, directory=str(ledger), query=query, files=dict(files), before=found)
    return await asyncio.to_thread(lambda: Replay(job, told).run())


class Shown(AbstractContextManager[Any]):
    """A bar on standard error while it works; nothing where that is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("asking", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._progress.stop()

    def tell(self, phase: str, done: int, total: int) -> None:
        """One step."""
        self._progress.update(self._task, description=phase, completed=done, total=total or None)
