"""Hearing from the server: one stream of numbered updates, resumed where it broke, applied whole or not at all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
from h2.exceptions import StreamClosedError

import eastwest
from eastwest import errors
from eastwest.agent.backoff import Backoff
from eastwest.agent.changes import Changes
from eastwest.agent.connection import Dismissed, ServerConnection
from eastwest.agent.received import ClockSkew, check_clock
from eastwest.agent.rollout import Rollout
from eastwest.agent.state import BadUpdate, State
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.clock import Clock
from eastwest.rpc import tracing

COALESCE = 0.01
"""Seconds in which acknowledgements are gathered into one message."""
ALIVE = 20.0
"""Seconds after which the last one is told again: an agent that hangs keeps its connection, and is not to seem well."""

_log = structlog.get_logger()


class Statuses(Protocol):
    """What this node and its sidecars hold and acknowledged, to be told to the server."""

    @property
    def changes(self) -> Changes:
        """Counts what is news for the server."""
        ...

    def ack(self, number: int) -> control.Ack:
        """The report, with ``number`` as the update that is applied."""
        ...


class ControlClient:
    """Keeps ``state`` at the server's word and tells the server how far this node has come.

    ``on_state`` is called with each new state, before the update is acknowledged; ``turns`` counts states and losses.
    """

    def __init__(
        self,
        connection: ServerConnection,
        state: State,
        statuses: Statuses,
        clock: Clock,
        jitter: random.Random,
        on_state: Callable[[State], None],
    ) -> None:
        self.state = state
        self.connected = False
        self.updates = 0
        self.turns = Changes()
        self._connection = connection
        self._statuses = statuses
        self._clock = clock
        self._jitter = jitter
        self._on_state = on_state
        self.rollout = Rollout(clock)
        self.capabilities = {"versions", "alive"}
        """What the server hears that this agent can; each part that can more adds its name before ``run``."""
        self._resume = True
        self._last_error: errors.Error | None = None

    @property
    def last_error(self) -> errors.Error | None:
        """Why there is no subscription at present; None while there is one."""
        return self._last_error

    async def run(self) -> None:
        """Subscribe, again after each loss. Raises ``Dismissed``; at first also ``FailedPrecondition``."""
        backoff = Backoff(self._jitter)
        while True:
            held = self.updates
            try:
                await self._session()
                self._last_error = None
                backoff.reset()
                continue
            except Dismissed:
                raise
            except BadUpdate as error:
                self._resume = False
                _log.error("agent.update.refused", error=str(error), kept=self.state.number)
                self._last_error = error
            except errors.Error as error:
                if isinstance(error, errors.FailedPrecondition) and self.updates == 0:
                    # Clock skew, by our word or the server's; an update lost to it is not worth serving on.
                    raise
                self._last_error = error
                _log.warning("agent.subscription.lost", error=str(error))
            finally:
                self.connected = False
            self.turns.bump()
            if self.updates > held:
                backoff.reset()
            await self._clock.sleep(backoff.delay())

    async def _session(self) -> None:
        """One subscription; returns when the agent's certificate changed and it must be opened anew."""
        certificate = self._connection.renewed.count
        async with self._connection.subscription() as stream:
            await stream.send_message(control.SubscribeRequest(hello=self._hello()))
            tasks = [
                asyncio.ensure_future(self._read(stream)),
                asyncio.ensure_future(self._acknowledge(stream)),
                asyncio.ensure_future(self._connection.renewed.beyond(certificate)),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            # Left politely, the stream would wait for an end that the server has no reason to send.
            await stream.cancel()

    async def _read(self, stream: Any) -> None:
        resumed = True
        while True:
            update = await stream.recv_message()
            if update is None:
                # The server has ended the call; its reason is in the trailers. Mostly it has closed our half as well.
                with suppress(StreamClosedError):
                    await stream.end()
                await stream.recv_trailing_metadata()
                raise errors.Unavailable("the server ended the subscription")
            self._apply(update, resumed=resumed)
            resumed = False

    def _apply(self, update: control.Update, *, resumed: bool) -> None:
        self._check_clock(update)
        # A server's word, and so bounded as anybody's.
        parent = update.traceparent if len(update.traceparent) <= tracing.MAX_HEADER else ""
        if parent:
            with tracing.span("agent.apply_update", parent, number=update.number):
                self._take(update, resumed=resumed)
                self.rollout.heard(tracing.traceparent())
        else:
            self._take(update, resumed=resumed)

    def _take(self, update: control.Update, *, resumed: bool) -> None:
        self.state = self.state.apply(update, resumed=resumed)
        self._resume = True
        self.updates += 1
        self.connected = True
        self._last_error = None
        self._on_state(self.state)
        self.turns.bump()
        self._statuses.changes.bump()
        _log.info(
            "agent.update.applied",
            number=update.number,
            full=update.full,
            entries=len(self.state.entries),
            sidecars=len(self.state.sidecars),
        )

    def _check_clock(self, update: control.Update) -> None:
        if not update.time_unix_ms:
            return
        try:
            theirs = datetime.fromtimestamp(update.time_unix_ms / 1000, UTC)
        except (ValueError, OverflowError, OSError):
            raise BadUpdate("the update has an impossible time") from None
        try:
            check_clock(self._clock.now(), theirs)
        except ClockSkew as skew:
            if self.updates == 0:
                raise
            _log.error("agent.clock.skew", error=str(skew))

    async def _acknowledge(self, stream: Any) -> None:
        sent, sent_at = None, 0.0
        seen = -1
        loop = asyncio.get_running_loop()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(ALIVE):
                    await self._statuses.changes.beyond(seen)
            await asyncio.sleep(COALESCE)
            seen = self._statuses.changes.count
            if not self.connected:
                continue
            ack = self._statuses.ack(self.state.number)
            if ack != sent or loop.time() - sent_at >= ALIVE:
                await stream.send_message(control.SubscribeRequest(ack=ack))
                sent, sent_at = ack, loop.time()

    def _hello(self) -> control.Hello:
        hello = control.Hello(
            agent_version=eastwest.__version__,
            time_unix_ms=int(self._clock.now().timestamp() * 1000),
            capabilities=sorted(self.capabilities),
        )
        if self._resume and self.state.epoch:
            hello.epoch = self.state.epoch
            hello.number = self.state.number
        return hello
