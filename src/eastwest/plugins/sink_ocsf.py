"""Decisions as OCSF events in files of JSON lines, one file a day, for whatever ships files to a SIEM."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec

from eastwest.errors import FailedPrecondition, InvalidInput, Unavailable
from eastwest.ledger.export.ocsf import api_activity
from eastwest.ledger.export.ports import Row, SinkContext


class OcsfSink:
    """Serves ``eastwest.ledger.export.ports.Sink``. A day is that of the delivery, in UTC."""

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[export.ocsf]``. ``directory``: exists; its files are ``decisions-YYYY-MM-DD.jsonl``, mode 0640."""

        directory: str

    def __init__(self, options: Options, context: SinkContext) -> None:
        self._directory = Path(options.directory)
        if not self._directory.is_absolute():
            raise InvalidInput("directory is not absolute", fix="such as /var/log/eastwest")
        if not self._directory.is_dir():
            raise FailedPrecondition("directory does not exist", where=options.directory, fix="make it")
        self._context = context

    @classmethod
    def from_options(cls, options: Options, context: SinkContext) -> Self:
        """As the entry point makes it."""
        return cls(options, context)

    async def deliver(self, rows: Sequence[Row]) -> None:
        lines = b"".join(
            json.dumps(api_activity(row, self._context.version), separators=(",", ":")).encode() + b"\n" for row in rows
        )
        day = self._context.clock.now().strftime("%Y-%m-%d")
        await asyncio.to_thread(self._append, self._directory / f"decisions-{day}.jsonl", lines)

    async def close(self) -> None:
        """Nothing is held open between deliveries."""

    def _append(self, path: Path, lines: bytes) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            with os.fdopen(descriptor, "ab", buffering=0) as file:
                start = file.seek(0, os.SEEK_END)
                try:
                    _write_all(file.fileno(), lines)
                    os.fsync(file.fileno())
                except OSError:
                    # Half a line would spoil the next one.
                    os.ftruncate(file.fileno(), start)
                    raise
        except OSError as error:
            raise Unavailable(f"cannot be written: {error.strerror}", where=str(path)) from None


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
