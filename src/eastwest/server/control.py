"""Pushing to agents: for each agent the full state once, then numbered deltas, resumable, never partial.

A ``View`` says what an agent should hold now. A session compares that with what it last sent and sends the
difference, whatever happened in between; so a burst of changes becomes one update, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import structlog

from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.clock import Clock
from eastwest.entropy import Entropy, random_hex
from eastwest.errors import FailedPrecondition, InvalidInput, Unavailable
from eastwest.registry.containment import MAX_CONTAINED
from eastwest.rpc.service import Call
from eastwest.server.telemetry import Metrics
from eastwest.spiffe.id import SpiffeId

HISTORY = 8
"""States kept for each agent, so that one that reconnects gets a delta."""
MAX_ACK = 4 * 1024 * 1024
"""Bytes of one message of an agent's stream; the report of a sidecar has some hundreds."""
MAX_EXAMINATION = 16 * 1024
"""Bytes of what an agent tells of one sidecar that it looked at; a longer text is cut, and then means nothing."""
SILENT = 60.0
"""Seconds after which an agent that can say that it is well (capability ``alive``), and does not, is not there."""
MAX_CAPABILITIES = 64
"""What an agent may say that it can."""
_POLICY = frozenset({pb.ResourceName.KIND_SIDECAR, pb.ResourceName.KIND_POLICY_VERSION})
MAX_SIDECARS = 1_000
"""Sidecars in one acknowledgement, which is what an agent remembers."""

_log = structlog.get_logger()


class Key(NamedTuple):
    """The name of a resource: its kind (``pb.ResourceName.Kind``) and its name."""

    kind: int
    name: str


class Item(NamedTuple):
    """A resource and a token that differs exactly when its content does."""

    token: object
    resource: pb.Resource


View = Callable[[SpiffeId], Mapping[Key, Item]]
"""What an agent should hold now. Raises when the agent may hold nothing (evicted, banned)."""


@dataclass(slots=True)
class AgentStream:
    """One agent as the server knows it, connected or not."""

    agent: SpiffeId
    number: int = 0
    history: OrderedDict[int, Mapping[Key, Item]] = field(default_factory=OrderedDict)
    acknowledged: int = 0
    version: str = ""
    contained: int = 0
    """Generation of containments that the agent holds, on its disk."""
    closed: Mapping[str, int] = field(default_factory=dict)
    """Connections of contained identities that it has closed."""
    address: str = ""
    """From where the last session came; "" where that is this machine."""
    capabilities: frozenset[str] = frozenset()
    """What the agent said that it can (``control.proto``), as it came: a lie harms its own node alone."""
    sidecars: dict[str, pb.SidecarStatus] = field(default_factory=dict)
    session: object | None = None
    heard_at: float = 0.0
    """When (monotonic) the last message of the session came."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    pushed: OrderedDict[int, float] = field(default_factory=OrderedDict)
    """When (monotonic) each update was pushed that is not acknowledged yet; of the newest ``HISTORY`` ones."""

    def is_there(self, now: float) -> bool:
        """Whether the agent is connected and does not hang. ``now``: seconds, monotonic."""
        hangs = "alive" in self.capabilities and now - self.heard_at > SILENT
        return self.session is not None and not hangs

    def next_update(
        self, current: Mapping[Key, Item], base: int | None, *, first: bool = True
    ) -> tuple[list[pb.Resource], list[Key]]:
        """Number ``current`` as the newest state and return what changed since ``base`` (None: everything).

        Without a change nothing is numbered, unless it is the ``first`` of a session: agents take no number that skips
        one.
        """
        before: Mapping[Key, Item] = {} if base is None else self.history[base]
        upserts = [
            item.resource for key, item in current.items() if key not in before or before[key].token != item.token
        ]
        removals = [key for key in before if key not in current]
        if not (first or upserts or removals):
            return [], []
        self.number += 1
        self.history[self.number] = current
        while len(self.history) > HISTORY:
            self.history.popitem(last=False)
        return upserts, removals


class ControlHub:
    """All agents' streams. ``wake`` is cheap and may be called for every change."""

    def __init__(
        self,
        view: View,
        clock: Clock,
        entropy: Entropy,
        metrics: Metrics,
        skew_limit: int,
        on_hello: Callable[[SpiffeId, str], Awaitable[None]] | None = None,
    ) -> None:
        """``skew_limit``: seconds that an agent's clock may differ; ``on_hello`` hears each agent's version."""
        self._view = view
        self._clock = clock
        self._metrics = metrics
        self._skew_limit = skew_limit
        self._epoch = random_hex(entropy, 8)
        self._on_hello = on_hello
        self._news = asyncio.Event()
        self.streams: dict[SpiffeId, AgentStream] = {}
        self.on_ack: Callable[[SpiffeId, pb.Ack], None] = lambda _agent, _ack: None
        self.rollout: Callable[[], str] = lambda: ""
        """Gives the ``traceparent`` of the change of policy that is being pushed."""

    def now(self) -> datetime:
        """The server's time, by which agents' clocks are judged."""
        return self._clock.now()

    def wake(self, agents: Iterable[SpiffeId] | None = None) -> None:
        """Something that these agents hold may have changed (None: all agents)."""
        chosen = self.streams.values() if agents is None else [self.streams[a] for a in agents if a in self.streams]
        for stream in chosen:
            stream.wake.set()

    def came_from(self, agent: SpiffeId, peer: str) -> None:
        """Note from where (address and port) an agent subscribes."""
        address = peer.rpartition(":")[0]
        local = address.startswith("127.") or address == "::1"
        self.streams.setdefault(agent, AgentStream(agent)).address = "" if local else address

    def forget(self, agent: SpiffeId) -> None:
        """The agent is no more; its stream ends."""
        if stream := self.streams.pop(agent, None):
            stream.wake.set()

    def serves(self, agent: SpiffeId) -> bool:
        """Whether the agent has a stream open: then it is one of ours, and not a stock SPIRE agent."""
        stream = self.streams.get(agent)
        return stream is not None and stream.session is not None

    def capabilities(self, agent: SpiffeId) -> frozenset[str]:
        """What the agent last said that it can; nothing before it came."""
        stream = self.streams.get(agent)
        return frozenset() if stream is None else stream.capabilities

    def acknowledged(self, agent: SpiffeId) -> Mapping[Key, Item] | None:
        """What the agent has said that it holds; None when that is too old to be known, or nothing."""
        stream = self.streams.get(agent)
        return None if stream is None else stream.history.get(stream.acknowledged)

    async def heard(self) -> None:
        """Wait until any agent acknowledges, comes or goes."""
        await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    @property
    def connected(self) -> int:
        """How many agents have an open stream."""
        return sum(stream.session is not None for stream in self.streams.values())

    @property
    def outstanding(self) -> int:
        """How many connected agents have not acknowledged the newest update."""
        return sum(s.session is not None and s.acknowledged < s.number for s in self.streams.values())

    async def serve(
        self, agent: SpiffeId, call: Call, until: datetime, confirm: Callable[[], object] = lambda: None
    ) -> None:
        """One ``Control/Subscribe`` call, until the agent leaves or may no longer stay.

        ``until``: the end of the certificate that opened it, which must prove nothing after that. ``confirm`` raises
        when it proves nothing any more for another reason, and is asked before anything is sent.
        """
        try:
            async with asyncio.timeout(max(0.0, (until - self._clock.now()).total_seconds())):
                await self._serve(agent, call, confirm)
        except TimeoutError:
            raise Unavailable("the certificate that opened this subscription has ended", fix="subscribe anew") from None

    async def _serve(self, agent: SpiffeId, call: Call, confirm: Callable[[], object]) -> None:
        first = await call.receive()
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidInput("the first message of Subscribe is a hello")
        self._check_skew(first.hello.time_unix_ms)
        stream = self.streams.setdefault(agent, AgentStream(agent))
        session = stream.session = object()
        stream.heard_at = self._clock.monotonic()
        stream.wake.set()  # the session before ends
        stream.version = first.hello.agent_version[:64]
        stream.contained = 0  # until it says what it has now
        stream.capabilities = frozenset(name[:64] for name in first.hello.capabilities[:MAX_CAPABILITIES])
        if self._on_hello is not None:
            await self._on_hello(agent, stream.version)
        self._metrics.agents_connected.set(self.connected)
        reader = asyncio.create_task(self._read(stream, session, call))
        try:
            await self._write(stream, session, first.hello, call, reader, confirm)
            if not reader.done():
                raise Unavailable(
                    f"another subscription of {agent} took the place of this one",
                    fix="let one process use one agent's certificate",
                )
            if not reader.cancelled():
                reader.result()  # raises what was wrong with the agent's last message
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reader
            self._tell()
            if stream.session is session:
                stream.session = None
                for status in stream.sidecars.values():
                    status.connected = False
            self._metrics.agents_connected.set(self.connected)

    async def _write(
        self,
        stream: AgentStream,
        session: object,
        hello: pb.Hello,
        call: Call,
        reader: asyncio.Task[None],
        confirm: Callable[[], object],
    ) -> None:
        known = hello.epoch == self._epoch and hello.number in stream.history
        base = hello.number if known else None
        first = True
        while stream.session is session and self.streams.get(stream.agent) is stream and not reader.done():
            stream.wake.clear()
            confirm()
            current = self._view(stream.agent)
            upserts, removals = stream.next_update(current, base, first=first)
            if upserts or removals or first:
                update = pb.Update(
                    epoch=self._epoch,
                    number=stream.number,
                    full=base is None,
                    upserts=upserts,
                    removals=[pb.ResourceName(kind=key.kind, name=key.name) for key in removals],  # type: ignore[arg-type]
                    time_unix_ms=int(self._clock.now().timestamp() * 1000),
                )
                if any(resource.name.kind in _POLICY for resource in upserts):
                    update.traceparent = self.rollout()
                stream.pushed[stream.number] = self._clock.monotonic()
                while len(stream.pushed) > HISTORY:
                    stream.pushed.popitem(last=False)
                await call.send(update)
                self._metrics.updates.inc()
            base, first = stream.number, False
            await stream.wake.wait()
        if stream.session is session and not reader.done():
            self._view(stream.agent)  # evicted or banned: raises the reason
        reader.cancel()

    async def _read(self, stream: AgentStream, session: object, call: Call) -> None:
        last = None
        try:
            async for message in call:
                if message.WhichOneof("message") != "ack" or stream.session is not session:
                    continue
                stream.heard_at = self._clock.monotonic()
                if message.ack == last:  # the agent only says that it is well
                    continue
                last = message.ack
                ack = _bounded(last)
                stream.acknowledged = max(stream.acknowledged, ack.number)
                for number in [number for number in stream.pushed if number <= ack.number]:
                    self._metrics.ack_seconds.observe(self._clock.monotonic() - stream.pushed.pop(number))
                stream.sidecars = {status.node_id: status for status in ack.sidecars}
                stream.contained = ack.contained
                stream.closed = {one.spiffe_id: one.connections for one in ack.closed}
                self._tell()
                self.on_ack(stream.agent, ack)
        finally:
            stream.wake.set()

    def _check_skew(self, agent_ms: int) -> None:
        if agent_ms == 0:
            return
        skew = agent_ms / 1000 - self._clock.now().timestamp()
        if abs(skew) > self._skew_limit:
            word = "ahead of" if skew > 0 else "behind"
            _log.warning("control.clock_skew", seconds=round(skew))
            raise FailedPrecondition(
                f"the agent's clock is {abs(skew):.0f} s {word} the server's; at most {self._skew_limit} s is accepted",
                fix="set both clocks, by NTP for instance",
            )


def _bounded(ack: pb.Ack) -> pb.Ack:
    """What is kept of a report: fields that we know, with texts of bounded length. Raises ``InvalidInput``."""
    if len(ack.sidecars) > MAX_SIDECARS:
        raise InvalidInput(f"an acknowledgement is about at most {MAX_SIDECARS} sidecars")
    kept = [
        pb.SidecarStatus(
            node_id=status.node_id[:256],
            spiffe_id=status.spiffe_id[:2048],
            acknowledged_version=status.acknowledged_version[:128],
            intended_version=status.intended_version[:128],
            error=status.error[:512],
            connected_at=status.connected_at,
            connected=status.connected,
            bundle_sequence=status.bundle_sequence,
            tainted=status.tainted,
            contained=status.contained,
            examined_run=status.examined_run[:32],
            examination=status.examination[:MAX_EXAMINATION],
        )
        for status in ack.sidecars
    ]
    return pb.Ack(
        number=ack.number,
        sidecars=kept,
        bundle_sequence=ack.bundle_sequence,
        tainted_svids=ack.tainted_svids,
        contained=ack.contained,
        closed=[
            pb.Closed(spiffe_id=one.spiffe_id[:2048], connections=one.connections) for one in ack.closed[:MAX_CONTAINED]
        ],
    )


def resource(kind: Any, name: str, **body: Any) -> pb.Resource:
    """A resource of the control stream."""
    return pb.Resource(name=pb.ResourceName(kind=kind, name=name), **body)
