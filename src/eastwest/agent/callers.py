"""Who is behind the socket: the kernel's word on the process, attestors' word on what it is."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from eastwest import errors
from eastwest.agent.config import MAX_SOCKET_PATH
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.xds import Principal
from eastwest.attest.workload import AttestationFailed, Evidence, WorkloadAttestor, gather_evidence
from eastwest.clock import Clock
from eastwest.registry.containment import REASON
from eastwest.registry.entry import Entry
from eastwest.rpc.peer import Peer
from eastwest.rpc.service import Call
from eastwest.spiffe.selector import Selector

_log = structlog.get_logger()
EGRESS_HEADER = "x-eastwest-egress-socket"
"""Metadata in which a sidecar's bootstrap names the socket of its way out."""


class NoIdentity(errors.PermissionDenied):
    """No entry matches the caller."""

    def __init__(self) -> None:
        super().__init__("no identity issued")


class ContainedCaller(NoIdentity):
    """Every identity of the caller is cut off."""

    reason = REASON

    def __init__(self) -> None:
        super().__init__()
        self.fix = "its identity is contained: ask who did it, see eastwest containment list"


@dataclass(frozen=True, slots=True)
class Caller:
    """A process behind the socket: its pid as this agent sees it, and what attestors say of it."""

    pid: int
    selectors: frozenset[Selector]


Attest = Callable[[Call], Awaitable[Caller]]


class ProcessAttestor:
    """Attests the process behind each call anew.

    The process is held from a connection's first call to its end, so that a pid that is given to another process
    meanwhile is noticed even where the kernel has no pidfd for sockets.

    ``entries``: those of this node. While an attestor cannot say anything, such as systemd without its bus, a caller
    is served if none of them could be its for what is missing; else it is told to come again, for a part of its
    identities, or none, would be a wrong answer. Without ``entries`` every attestor must answer.
    """

    def __init__(
        self, attestors: Sequence[WorkloadAttestor], entries: Callable[[], Iterable[Entry]] | None = None
    ) -> None:
        self._attestors = tuple(attestors)
        self._entries = entries
        self._failing: frozenset[str] = frozenset()
        self._peers: weakref.WeakKeyDictionary[object, Peer] = weakref.WeakKeyDictionary()

    async def attest(self, call: Call) -> Caller:
        """Who is calling; raises ``Unavailable`` when nothing certain can be said of it."""
        try:
            peer = self._peer(call)
        except errors.Unauthenticated as error:
            raise errors.Unavailable(error.message) from None
        evidence = await gather_evidence(peer, self._attestors)
        self._tell(evidence)
        for name, why in evidence.failed.items():
            if self._entries is None or any(evidence.could_earn(entry.selectors) for entry in self._entries()):
                raise AttestationFailed(f"{name}: {why.message}", fix=why.fix or "try again")
        return Caller(peer.pid, evidence.selectors)

    def _tell(self, evidence: Evidence) -> None:
        """Log an attestor once when it begins to fail, and once when it works again."""
        failing = frozenset(evidence.failed)
        for name in failing - self._failing:
            _log.warning("agent.attestor.failing", attestor=name, error=str(evidence.failed[name]))
        for name in self._failing - failing:
            _log.info("agent.attestor.works", attestor=name)
        self._failing = failing

    def _peer(self, call: Call) -> Peer:
        connection = call.connection
        peer = self._peers.get(connection)
        if peer is None:
            peer = Peer.of(call.socket)
            self._peers[connection] = peer
            weakref.finalize(connection, peer.close)
        return peer


@dataclass(frozen=True, slots=True)
class Attested(Principal):
    """A caller with an identity. What it may have is decided anew from its selectors at every change.

    ``egress_socket`` is where a sidecar says that it wants its way out; nobody but it binds that path.
    """

    selectors: frozenset[Selector] = frozenset()
    egress_socket: str = ""


def live_entries(knowledge: Knowledge, selectors: frozenset[Selector], clock: Clock) -> tuple[Entry, ...]:
    """The entries that selectors match at this moment, sorted by id; raises ``NoIdentity`` when there is none."""
    now = clock.now()
    entries = tuple(entry for entry in knowledge.state.matching(selectors) if not entry.is_expired(now))
    if not entries:
        raise NoIdentity
    return entries


def served_entries(knowledge: Knowledge, selectors: frozenset[Selector], clock: Clock) -> tuple[Entry, ...]:
    """As ``live_entries``, without those whose identity is contained; raises ``ContainedCaller`` when none is left."""
    entries = live_entries(knowledge, selectors, clock)
    contained = knowledge.state.contained
    if not contained:
        return entries
    kept = tuple(entry for entry in entries if str(entry.spiffe_id) not in contained)
    if not kept:
        raise ContainedCaller
    return kept


def identify(attest: Attest, knowledge: Knowledge, clock: Clock) -> Callable[[Call], Awaitable[Principal]]:
    """The callback of config and log streams: attests the caller and names its SPIFFE IDs."""

    async def identified(call: Call) -> Principal:
        caller = await attest(call)
        entries = live_entries(knowledge, caller.selectors, clock)
        names = dict.fromkeys(str(entry.spiffe_id) for entry in entries)
        return Attested(tuple(names), caller.pid, caller.selectors, _egress_socket(call))

    return identified


def _egress_socket(call: Call) -> str:
    path = call.metadata.get(EGRESS_HEADER, "")
    fits = isinstance(path, str) and path.startswith("/") and len(path.encode()) <= MAX_SOCKET_PATH
    return str(path) if fits else ""
