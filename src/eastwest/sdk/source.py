"""Where an application's rules, identity and trust come from: the agent, by streams, the last good state kept.

The agent may be away for as long as credentials live. Before its first word there are no rules, and everything is
refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from types import TracebackType
from typing import Self

import msgspec

from eastwest import errors
from eastwest.api.eastwest.enforcement.v1 import enforcement_pb2 as api
from eastwest.clock import Clock, SystemClock
from eastwest.pki.compact import Keys, read_keys
from eastwest.pki.der import split_der
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.policy.enforcement import Inbound, Outbound, Sidecar, decode_sidecar
from eastwest.registry.containment import NOBODY, Contained
from eastwest.rpc.client import Channel, method
from eastwest.rpc.workload_client import OwnSvid, watch_own_svids
from eastwest.sdk.underway import Underway
from eastwest.spiffe.id import MalformedSpiffeId, TrustDomain

SOCKET_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"
"""Names the agent's socket as ``unix:///path`` (SPIFFE Workload Endpoint, section 4)."""
USE_TOKEN_SECONDS = 0.5
"""How long a call waits for the word on whether its token was used; then it is refused."""
MAX_WAITING = 10_000
"""Decisions that wait for the agent; more are dropped, and counted."""
MAX_WAITING_BYTES = 8 * 1024 * 1024
MAX_BATCH_BYTES = 1024 * 1024
"""Of decisions in one message, well below what the agent takes."""
_SERVICES = "services"
_ROOMY = 0.9  # of what may wait
_FIRST_DELAY, _LAST_DELAY = 0.1, 5.0
_REPORT_PERIOD = 0.5
_API = api.DESCRIPTOR.services_by_name["Enforcement"]
_UNREADABLE: tuple[type[Exception], ...] = (msgspec.MsgspecError, MalformedSpiffeId, *PARSE_ERRORS)
# An application's log is its own: nothing is written unless it says where.
_log = logging.getLogger("eastwest.sdk")


@dataclass(frozen=True)
class Rules:
    """What this workload enforces, and what callers are verified by. ``bundles``: roots (DER) by trust domain."""

    trust_domain: TrustDomain
    sidecar: Sidecar | None = None
    bundles: Mapping[TrustDomain, tuple[bytes, ...]] = field(default_factory=dict)
    token_keys: Keys = field(default_factory=dict)
    contained: Contained = NOBODY

    def inbound(self, service: str) -> Inbound | None:
        """The rules of one service of this workload."""
        return self._inbound.get(service)

    @property
    def services(self) -> Sequence[str]:
        """The names of the services of this workload."""
        return sorted(self._inbound)

    @property
    def callees(self) -> Sequence[str]:
        """The names of the services that this workload may call."""
        return sorted(self._outbound)

    def outbound(self, service: str) -> Outbound | None:
        """Where and as whom a service that this workload may call answers."""
        return self._outbound.get(service)

    @cached_property
    def _inbound(self) -> dict[str, Inbound]:
        return {i.service: i for i in self.sidecar.inbound} if self.sidecar is not None else {}

    @cached_property
    def _outbound(self) -> dict[str, Outbound]:
        return {o.service: o for o in self.sidecar.outbound} if self.sidecar is not None else {}


def read_rules(message: api.Rules) -> Rules:
    """The agent's word as a value; raises ``Unavailable`` where it cannot be read, so that the last one stays."""
    try:
        return Rules(
            TrustDomain.parse(message.trust_domain),
            decode_sidecar(message.sidecar) if message.sidecar else None,
            {TrustDomain.parse(name): split_der(roots) for name, roots in message.bundles.items()},
            read_keys(message.token_keys) if message.token_keys else {},
            Contained(spiffe_ids=tuple(message.contained)),
        )
    except _UNREADABLE:
        raise errors.Unavailable("the agent's rules cannot be read") from None


class RuleSource:
    """Follows the agent from ``async with`` on. ``socket`` is a path; unless given, the environment names it.

    ``rules`` and ``identity`` are None before the agent's first word on each, and later the newest that came.
    """

    def __init__(self, socket: str = "", *, clock: Clock | None = None) -> None:
        self.socket = socket or socket_of_environment()
        self.clock = clock or SystemClock()
        self.rules: Rules | None = None
        self.identity: OwnSvid | None = None
        self.underway = Underway()
        """Calls that are being served by these rules."""
        self._problems: dict[str, str] = {}
        self._expected: set[str] = set()
        self.lost = 0
        self._untold = 0
        self._lost_since: datetime | None = None
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: list[api.Decision] = []
        self._waiting_bytes = 0
        self._fresh = asyncio.Event()
        self._calls: Channel | None = None
        self._listeners: list[Callable[[OwnSvid], None]] = []

    async def __aenter__(self) -> Self:
        self._calls = Channel(path=self.socket)
        for task in (self._follow(self._watch_rules), self._follow(self._watch_identity), self._follow(self._deliver)):
            self._tasks.append(asyncio.create_task(task))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._calls is not None:
            with suppress(errors.Error, TimeoutError):
                async with asyncio.timeout(1):
                    await self._flush(self._calls)
            self._calls.close()

    @property
    def problem(self) -> str:
        """What keeps newer rules, identities, reports or calls from passing; "" when nothing does."""
        return "; ".join(sorted(set(self._problems.values())))

    async def ready(self, seconds: float = 30) -> None:
        """Wait for rules and an identity; raises ``Unavailable`` with what kept them away."""
        try:
            async with asyncio.timeout(seconds):
                await self.until(lambda: self.rules is not None and self.identity is not None)
        except TimeoutError:
            raise errors.Unavailable(
                f"the agent at {self.socket} gave no {'rules' if self.rules is None else 'identity'}"
                f" in {seconds:.0f} s: {self.problem or 'no answer'}",
                fix="start the agent, and register this process",
            ) from None

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that came makes ``condition`` true."""
        while not condition():
            await self._changed.wait()

    def expect(self, service: str) -> None:
        """Enforce ``service``: where the rules do not name it, ``problem`` and the log say so."""
        self._expected.add(service)
        self._look_for_services()

    def on_identity(self, listener: Callable[[OwnSvid], None]) -> None:
        """Call ``listener`` with the identity that is held, if any, and with each that follows it."""
        self._listeners.append(listener)
        if self.identity is not None:
            listener(self.identity)

    async def use_token(self, token_id: str, expires_at: int, approval: str, operation: str) -> bool:
        """Whether a token that counts once may be used now; raises ``errors.Error`` when nobody can say."""
        if self._calls is None:
            raise errors.Unavailable("the source is not open")
        request = api.UseTokenRequest(
            token_id=token_id, expires_at=expires_at, approval_id=approval, operation=operation
        )
        reply = await self._calls.unary(method(_API, "UseToken"), request, deadline=USE_TOKEN_SECONDS)
        return bool(reply.usable)

    def report(self, decision: api.Decision) -> None:
        """Have a decision told to the agent, and by it to the ledger, a moment later."""
        size = decision.ByteSize()
        if len(self._waiting) >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            self._lose(1)
            return
        self._waiting.append(decision)
        self._waiting_bytes += size
        self._fresh.set()

    @property
    def records(self) -> bool:
        """Whether a decision that is made now will come to the agent: it is there, and has room for more."""
        away = {self._watch_rules.__name__, self._deliver.__name__} & self._problems.keys()
        return (
            not away and len(self._waiting) < _ROOMY * MAX_WAITING and self._waiting_bytes < _ROOMY * MAX_WAITING_BYTES
        )

    def now(self) -> datetime:
        """The time by this source's clock."""
        return self.clock.now()

    async def _follow(self, watch: Callable[[Channel], Coroutine[None, None, None]]) -> None:
        delay = _FIRST_DELAY
        while True:
            channel = Channel(path=self.socket)
            began = self.clock.monotonic()
            try:
                await watch(channel)
                problem = "the agent ended the stream"
            except errors.Error as error:
                problem = error.message
            finally:
                channel.close()
            self._set_problem(watch.__name__, problem)
            delay = _FIRST_DELAY if self.clock.monotonic() - began > _LAST_DELAY else min(delay * 2, _LAST_DELAY)
            await self.clock.sleep(delay)

    async def _watch_rules(self, channel: Channel) -> None:
        async with channel.stream(method(_API, "Watch")) as stream:
            await stream.send_message(api.WatchRequest(), end=True)
            while (message := await stream.recv_message()) is not None:
                self.rules = rules = read_rules(message)
                self.underway.follow(rules.sidecar.spiffe_id if rules.sidecar is not None else "", rules.contained)
                self._look_for_services()
                self._set_problem(self._watch_rules.__name__)
            await stream.recv_trailing_metadata()

    async def _watch_identity(self, channel: Channel) -> None:
        async for identities in watch_own_svids(channel):
            self.identity = identities[0]
            for listener in self._listeners:
                listener(identities[0])
            self._set_problem(self._watch_identity.__name__)

    async def _deliver(self, channel: Channel) -> None:
        while True:
            await self._fresh.wait()
            await self.clock.sleep(_REPORT_PERIOD)
            await self._flush(channel)

    async def _flush(self, channel: Channel) -> None:
        """Tell the agent of what waits now; raises ``errors.Error`` where it is to be tried again later."""
        self._fresh.clear()
        try:
            left = len(self._waiting)
            while left or self._untold:
                left -= await self._tell(channel, self._batch(left))
        except errors.Error:
            self._fresh.set()
            raise

    async def _tell(self, channel: Channel, batch: list[api.Decision]) -> int:
        """Tell the agent of the first that wait, and return of how many. What it never takes is given up, and lost."""
        lost, since = self._untold, self._lost_since
        request = api.ReportRequest(decisions=batch, lost=lost)
        if since is not None:
            request.lost_since_unix_ms = int(since.timestamp() * 1000)
        try:
            await channel.unary(method(_API, "Report"), request)
        except errors.Exhausted as error:
            # Too much at once, or one alone that is too much for ever and would keep back all that follow.
            if len(batch) > 1:
                return await self._tell(channel, batch[: len(batch) // 2])
            self._give_up(batch, error)
            raise  # so that an agent that takes nothing is given time
        except (errors.InvalidInput, errors.PermissionDenied) as error:
            if not batch:  # a loss alone: told again later
                raise
            # It would be refused for ever: rules have changed since, for instance.
            self._give_up(batch, error)
            return len(batch)
        self._forget(batch)
        self._untold -= lost
        self._lost_since = self.now() if self._untold else None
        self._set_problem(self._deliver.__name__)
        return len(batch)

    def _batch(self, most: int) -> list[api.Decision]:
        """The first that wait and fit one message; one at least."""
        size = 0
        for count, decision in enumerate(self._waiting[:most]):
            size += decision.ByteSize()
            if size > MAX_BATCH_BYTES and count:
                return self._waiting[:count]
        return self._waiting[:most]

    def _give_up(self, batch: list[api.Decision], error: errors.Error) -> None:
        _log.warning("the agent refuses %d decisions: %s", len(batch), error.message)
        self._lose(len(batch))
        self._forget(batch)

    def _lose(self, count: int) -> None:
        self.lost += count
        self._untold += count
        self._lost_since = self._lost_since or self.now()
        self._fresh.set()

    def _forget(self, batch: list[api.Decision]) -> None:
        del self._waiting[: len(batch)]
        self._waiting_bytes -= sum(decision.ByteSize() for decision in batch)

    def _look_for_services(self) -> None:
        if self.rules is None:
            return
        missing = sorted(service for service in self._expected if self.rules.inbound(service) is None)
        served = ", ".join(self.rules.services) or "none"
        found = "; ".join(f"this workload serves no service {name!r} (it serves: {served})" for name in missing)
        if found and found != self._problems.get(_SERVICES):
            _log.warning("%s: every call of it is refused", found)
        self._problems.pop(_SERVICES, None)
        if found:
            self._problems[_SERVICES] = found

    def _set_problem(self, of: str, problem: str = "") -> None:
        if problem and problem != self._problems.get(of):
            _log.warning("going on without the agent at %s: %s", self.socket, problem)
        self._problems.pop(of, None)
        if problem:
            self._problems[of] = problem
        self._changed.set()
        self._changed = asyncio.Event()


def socket_of_environment() -> str:
    """The agent's socket that ``SPIFFE_ENDPOINT_SOCKET`` names; raises ``InvalidInput``."""
    address = os.environ.get(SOCKET_VARIABLE, "")
    path = address.removeprefix("unix:")
    if not address.startswith("unix:") or not path.startswith("/"):
        raise errors.InvalidInput(
            f"{SOCKET_VARIABLE} names no unix socket", fix=f"set {SOCKET_VARIABLE}=unix:///path/agent.sock, or give it"
        )
    return "/" + path.lstrip("/")


def roots_of(identity: OwnSvid, trust_domain: TrustDomain) -> Sequence[bytes]:
    """The roots by which ``identity``'s holder verifies members of a trust domain; none where it trusts none."""
    if trust_domain == identity.id.trust_domain:
        return identity.roots
    return identity.federated.get(trust_domain.name, ())
