"""Decisions in a NATS JetStream stream: a spool that many readers can follow, each at its own pace.

One message per row, JSON, on ``<subject>.<service>.<verdict>``. ``Nats-Msg-Id`` is ledger and row number, so that
JetStream drops what is delivered again within the stream's duplicate window.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

import msgspec
import nats
from nats.errors import Error as NatsError
from nats.js.api import StorageType, StreamConfig
from nats.js.errors import NotFoundError

from eastwest.errors import FailedPrecondition, InvalidInput, Unavailable
from eastwest.ledger.export.ports import Row, SinkContext

_SUBJECT = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
DUPLICATE_WINDOW = 3600.0
"""Seconds in which JetStream knows a message again."""


class NatsSink:
    """Serves ``eastwest.ledger.export.ports.Sink``; connects at the first delivery."""

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[export.nats]``.

        ``url``: ``tls://host:4222``; ``nats://`` only to this machine. ``stream``: made where there is none, with
        ``max_bytes`` (oldest messages go first; 0: no bound). ``subject``: what its subjects begin with.
        ``credentials_file``: of a NATS user, private. ``ca_file``: PEM; empty: the system's. ``timeout``: seconds.
        """

        url: str
        stream: str = "EASTWEST_DECISIONS"
        subject: str = "eastwest.decisions"
        max_bytes: int = 0
        credentials_file: str = ""
        ca_file: str = ""
        timeout: float = 10.0

    def __init__(self, options: Options, context: SinkContext) -> None:
        _check(options)
        self._options = options
        self._context = context
        self._client: Any = None  # nats-py gives no types worth naming here
        self._stream: Any = None

    @classmethod
    def from_options(cls, options: Options, context: SinkContext) -> Self:
        """As the entry point makes it."""
        return cls(options, context)

    async def deliver(self, rows: Sequence[Row]) -> None:
        try:
            # The library waits for ever for what a lost connection will not acknowledge.
            async with asyncio.timeout(self._options.timeout):
                if self._client is None or not self._client.is_connected:
                    await self.close()
                    await self._connect()
                acknowledged = [await self._publish(row) for row in rows]
                await asyncio.gather(*acknowledged)
        except (NatsError, OSError, TimeoutError, asyncio.InvalidStateError) as error:
            await self.close()
            raise Unavailable(f"JetStream does not take it ({type(error).__name__})", where=self._options.url) from None

    async def close(self) -> None:
        """Leave the connection."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(NatsError, OSError, TimeoutError):
                await client.close()

    async def _publish(self, row: Row) -> asyncio.Future[Any]:
        service = _UNSAFE.sub("_", str(row.get("service") or "unknown"))[:64]
        verdict = _UNSAFE.sub("_", str(row.get("verdict") or row.get("kind") or "unknown"))[:16]
        identity = f"{self._context.ledger_id}-{row['row']}"
        future: asyncio.Future[Any] = await self._stream.publish_async(
            f"{self._options.subject}.{service}.{verdict}",
            json.dumps(dict(row), separators=(",", ":"), default=str).encode(),
            stream=self._options.stream,
            headers={"Nats-Msg-Id": identity},
        )
        return future

    async def _connect(self) -> None:
        options = self._options
        self._client = await nats.connect(
            options.url,
            tls=_tls(options),
            user_credentials=options.credentials_file or None,
            connect_timeout=max(1, int(options.timeout)),
            allow_reconnect=False,
            error_cb=_quiet,
        )
        self._stream = self._client.jetstream(timeout=options.timeout)
        try:
            await self._stream.stream_info(options.stream)
        except NotFoundError:
            config = StreamConfig(
                name=options.stream,
                subjects=[f"{options.subject}.>"],
                storage=StorageType.FILE,
                max_bytes=options.max_bytes or -1,
                duplicate_window=DUPLICATE_WINDOW,
            )
            await self._stream.add_stream(config)


async def _quiet(_: Exception) -> None:
    """What goes wrong shows in the next delivery; the library's default prints it."""


def _check(options: NatsSink.Options) -> None:
    local = re.fullmatch(r"nats://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", options.url)
    if not local and not re.fullmatch(r"tls://[A-Za-z0-9.\[\]:-]+", options.url):
        raise InvalidInput("url is not usable", fix="tls://host:4222; nats:// only to this machine")
    if not _SUBJECT.fullmatch(options.subject):
        raise InvalidInput("subject is not usable", fix="such as eastwest.decisions")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", options.stream):
        raise InvalidInput("stream is not usable", fix="letters, digits, _ and -")


def _tls(options: NatsSink.Options) -> ssl.SSLContext | None:
    if not options.url.startswith("tls://"):
        return None
    try:
        return ssl.create_default_context(cafile=options.ca_file or None)
    except OSError:
        raise FailedPrecondition("the file of ca_file holds no PEM certificates", where=options.ca_file) from None
