"""Config and secrets to Envoys over streams: ADS (incremental) for our sidecars, SDS for anybody's Envoy.

Who is asking is the kernel's word, through ``identify``; what it gets is that workload's snapshot and nothing
else. A stream is pushed each newer snapshot; one that lags skips to the newest.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from envoy.service.discovery.v3 import ads_pb2
from envoy.service.secret.v3 import sds_pb2

from eastwest.errors import PermissionDenied, Unavailable
from eastwest.mesh.secrets import SecretSet
from eastwest.mesh.snapshot import Snapshot
from eastwest.mesh.subscription import (
    DeltaSession,
    Refusal,
    Resources,
    SecretSession,
    SessionStatus,
    find_secrets,
    secrets_response,
)
from eastwest.rpc.service import Call, Service

T = TypeVar("T")

MAX_REQUEST = 4 * 1024 * 1024
"""Bytes of a request for config: one after a reconnect lists all that the Envoy has."""
MAX_SECRETS_REQUEST = 1024 * 1024
"""Bytes of a request for secrets; the first tells of each extension that the Envoy knows."""
ACKNOWLEDGE_SECONDS = 300.0
"""How long an Envoy may leave a push unanswered. Then its stream ends: it comes back, or is waited for no longer."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller of the agent's socket, as attested: the SPIFFE IDs it may use, its default one first."""

    spiffe_ids: tuple[str, ...]
    pid: int = 0


class SnapshotSource(Protocol):
    """What each workload is to be told. Iterators give the present state at once, then each newer one; a slow
    reader may miss some, never the newest. The end of an iterator means that the workload lost its identity.
    """

    def snapshots(self, principal: Principal) -> AsyncIterator[Snapshot]: ...

    def secrets(self, principal: Principal) -> AsyncIterator[SecretSet]: ...


@dataclass(frozen=True, slots=True)
class SidecarStatus:
    """One connected sidecar. ``session`` tells versions and refusals; ``connected`` is False in its last report."""

    principal: Principal
    session: SessionStatus
    connected: bool


Identify = Callable[[Call], Awaitable[Principal]]
Taken = Callable[[object, Principal, object], None]
"""Hears which marker a stream of secrets alone has acknowledged (None: none yet); the stream comes first."""


class ConfigStreams:
    """The ADS and SDS services of one agent.

    ``identify`` raises ``PermissionDenied`` for a process without an identity. ``report`` is called after
    every request and push of an ADS stream, ``taken`` after those of streams of secrets, ``ended`` after the last of
    these; none may block. What ``report`` and ``taken`` raise of ours ends the stream.
    """

    def __init__(
        self,
        source: SnapshotSource,
        identify: Identify,
        report: Callable[[SidecarStatus], None],
        taken: Taken = lambda _stream, _principal, _marker: None,
        ended: Callable[[object], None] = lambda _stream: None,
    ) -> None:
        self._source = source
        self._identify = identify
        self._report = report
        self._taken = taken
        self._ended = ended

    def services(self) -> list[Service]:
        """To be added to the agent's listener."""
        ads = ads_pb2.DESCRIPTOR.services_by_name["AggregatedDiscoveryService"]
        sds = sds_pb2.DESCRIPTOR.services_by_name["SecretDiscoveryService"]
        return [
            Service(ads, {"DeltaAggregatedResources": self._aggregated}, limit=MAX_REQUEST),
            Service(
                sds,
                {"DeltaSecrets": self._delta_secrets, "StreamSecrets": self._stream_secrets},
                limit=MAX_SECRETS_REQUEST,
            ),
            # A stream is read after its caller is identified; here the request would be read before.
            Service(sds, {"FetchSecrets": self._fetch_secrets}, guard=self._guard, limit=MAX_SECRETS_REQUEST),
        ]

    async def _guard(self, call: Call) -> None:
        await self._identify(call)

    async def _aggregated(self, _: None, call: Call) -> None:
        principal = await self._identify(call)
        session = DeltaSession()

        def report(*, connected: bool = True) -> None:
            self._report(SidecarStatus(principal, session.status(), connected))

        try:
            await _serve_delta(call, session, self._source.snapshots(principal), report)
        finally:
            report(connected=False)

    async def _delta_secrets(self, _: None, call: Call) -> None:
        principal = await self._identify(call)
        secrets = self._source.secrets(principal)
        snapshots = (secret_set.snapshot() async for secret_set in secrets)
        session = DeltaSession()

        def taken() -> None:
            self._taken(call, principal, session.status().secrets_acked)

        try:
            await _serve_delta(call, session, snapshots, taken)
        finally:
            self._ended(call)

    async def _stream_secrets(self, _: None, call: Call) -> None:
        principal = await self._identify(call)
        session = SecretSession()
        pushes = _Pushes()
        try:
            async for update, request in _merged(call, self._source.secrets(principal), pushes):
                if request is not None:
                    pushes.answered(request.response_nonce, and_before=True)
                response = session.on_request(request) if update is None else session.on_secrets(update)
                self._taken(call, principal, session.secrets_acked)
                if response is not None:
                    pushes.sent(response.nonce)
                    await call.send(response)
        finally:
            self._ended(call)

    async def _fetch_secrets(self, request: Any, call: Call) -> Any:
        principal = await self._identify(call)
        secrets = self._source.secrets(principal)
        try:
            current = await anext(secrets, None)
        finally:
            await _close(secrets)
        if current is None:
            raise PermissionDenied("no identity issued")
        return secrets_response(find_secrets(current, request.resource_names), "1")


class Latest(Generic[T]):
    """A value that many streams watch: each sees the newest, none sees a backlog."""

    def __init__(self, value: T | None = None) -> None:
        self._value = value
        self._changed = asyncio.Event()
        self._ended = False

    @property
    def value(self) -> T | None:
        """The newest value, None before the first."""
        return self._value

    def set(self, value: T) -> None:
        """Publish; wakes every watcher."""
        self._value = value
        self._wake()

    def end(self) -> None:
        """No value any more: watchers end."""
        self._ended = True
        self._wake()

    async def watch(self) -> AsyncIterator[T]:
        """The present value, if there is one, then each newer."""
        seen: T | None = None
        while not self._ended:
            changed = self._changed
            if self._value is not None and self._value is not seen:
                seen = self._value
                yield seen
                continue
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _serve_delta(
    call: Call, session: DeltaSession, updates: AsyncIterator[Resources], report: Callable[[], None]
) -> None:
    pushes = _Pushes()
    async for update, request in _merged(call, updates, pushes):
        if request is not None:
            pushes.answered(request.response_nonce)
        responses = session.on_request(request) if update is None else session.on_snapshot(update)
        report()
        for response in responses:
            pushes.sent(response.nonce)
            await call.send(response)


class _Pushes:
    """What was sent on a stream and is not answered yet, by nonce, and since when."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sent: OrderedDict[str, float] = OrderedDict()

    def sent(self, nonce: str) -> None:
        self._sent[nonce] = self._loop.time()

    def answered(self, nonce: str, *, and_before: bool = False) -> None:
        """Acknowledged or refused; ``and_before``: and with it all that was sent earlier."""
        if nonce in self._sent:
            while and_before and next(iter(self._sent)) != nonce:
                self._sent.popitem(last=False)
            del self._sent[nonce]

    def seconds_left(self) -> float | None:
        """Until the oldest has waited too long; None where none waits."""
        oldest = next(iter(self._sent.values()), None)
        return None if oldest is None else oldest + ACKNOWLEDGE_SECONDS - self._loop.time()


async def _merged(call: Call, updates: AsyncIterator[T], pushes: _Pushes) -> AsyncIterator[tuple[T | None, Any]]:
    """Requests as (None, request) and updates as (update, None), as they come; ends when the caller does.

    Raises ``Unavailable`` when the caller does not answer what it was sent.
    """

    async def update() -> T | None:
        return await anext(updates, None)

    receiving = asyncio.ensure_future(call.receive())
    updating = asyncio.ensure_future(update())
    try:
        while True:
            left = pushes.seconds_left()
            if left is not None and left <= 0:
                raise Unavailable(
                    f"a push was not acknowledged in {ACKNOWLEDGE_SECONDS:.0f} s", fix="open the stream again"
                )
            await asyncio.wait({receiving, updating}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                request = receiving.result()
                if request is None:
                    return
                receiving = asyncio.ensure_future(call.receive())
                yield None, request
            if updating.done():
                newest = updating.result()
                if newest is None:
                    raise PermissionDenied("no identity issued")
                updating = asyncio.ensure_future(update())
                yield newest, None
    finally:
        receiving.cancel()
        updating.cancel()
        await asyncio.gather(receiving, updating, return_exceptions=True)
        await _close(updates)


async def _close(updates: AsyncIterator[Any]) -> None:
    close = getattr(updates, "aclose", None)
    if close is not None:
        await cast("Awaitable[None]", close())


__all__ = ["ConfigStreams", "Identify", "Latest", "Principal", "Refusal", "SidecarStatus", "SnapshotSource"]
