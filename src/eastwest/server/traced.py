"""The log as issuance sees it, each append a span of its own."""

from __future__ import annotations

from collections.abc import Sequence

from eastwest.log.ports import Recorder
from eastwest.rpc import tracing


class TracedRecorder:
    """Serves ``eastwest.log.ports.Recorder`` by another one."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def append(self, entries: Sequence[bytes]) -> Sequence[int]:
        with tracing.span("log.append", entries=len(entries)):
            return await self._recorder.append(entries)
