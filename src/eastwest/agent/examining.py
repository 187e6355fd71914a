"""An agent's part in a verify run: it looks at the sidecars of its node, and marks what canaries asked.

What it looks at is what no call from outside shows: ports beside the guarded one, and whether an Envoy holds what it
was given.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection
from typing import Any

import msgspec
import structlog

from eastwest.agent import held_config
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.listening import Listening, at, beside, family, holders, listening, program, socket_name
from eastwest.agent.sidecars import Instance, Sidecars
from eastwest.clock import Clock
from eastwest.errors import NotFound, Unavailable
from eastwest.ledger.record import Decision
from eastwest.policy.canary import SNI_SUFFIX, Examination, is_canary
from eastwest.policy.enforcement import Inbound

SETTLE = 4.0
"""Seconds that an Envoy has to take what it was given before it counts as holding something else."""
AT_ONCE = 4
MAX_REMEMBERED = 8
_INIT = 1
"""Holds sockets for those that it starts (systemd.socket(5)); what else it holds is not one service's."""
_log = structlog.get_logger()


class Examiner:
    """Examines each sidecar once in each run. ``run`` is to be a task."""

    def __init__(self, knowledge: Knowledge, sidecars: Sidecars, clock: Clock) -> None:
        self._knowledge = knowledge
        self._sidecars = sidecars
        self._clock = clock
        self._room = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Wait for runs, for ever."""
        last = ""
        while True:
            seen = self._knowledge.states.count
            canaries = self._knowledge.state.canaries
            if canaries.run != last and canaries.count_at(self._clock.now()):
                last = canaries.run
                await asyncio.gather(*(self._examine(last, one) for one in self._sidecars.instances()))
            await self._knowledge.states.beyond(seen)

    async def _examine(self, run: str, instance: Instance) -> None:
        async with self._room:
            try:
                found = await self._found(instance)
            except Exception as error:  # noqa: BLE001 - a proxy's odd answer must not end what guards the others
                _log.warning("agent.examination.failed", node_id=instance.node_id, error=repr(error)[:500])
                found = Examination(unread=(f"the examination failed: {type(error).__name__}",))
            self._sidecars.examined(instance.node_id, instance.pid, run, msgspec.json.encode(found))

    async def _found(self, instance: Instance) -> Examination:
        others = [one for one in self._sidecars.instances() if one.pid != instance.pid]
        looked = await asyncio.to_thread(look_at_ports, instance, others)
        unread = looked.unread
        found = Examination()
        until = self._clock.monotonic() + SETTLE
        while True:
            try:
                dump = await held_config.held_config(instance.pid, instance.egress)
                newest = next((one for one in self._sidecars.instances() if one.pid == instance.pid), instance)
                found = await asyncio.to_thread(held_config.compare, dump, newest.given)
            except NotFound as error:  # it was started in another way than ours
                return msgspec.structs.replace(looked, missing=(error.message,), unread=unread)
            except Unavailable as error:
                unread = (*unread, f"config: {error.message}")
                break
            if not (found.differs or found.missing or found.foreign) or self._clock.monotonic() >= until:
                break
            await self._clock.sleep(0.25)
        return msgspec.structs.replace(
            found, listening=looked.listening, meant=looked.meant, strangers=looked.strangers, unread=unread
        )


def look_at_ports(instance: Instance, others: Collection[Instance]) -> Examination:
    """Listening ports beyond the intended, those that are meant, and what could not be looked at."""
    guarded = {(inbound.address, inbound.port) for inbound in instance.sidecar.inbound}
    sidecars = {instance.pid, *(one.pid for one in others)}
    found: list[str] = []
    unread: list[str] = []
    served: set[int] = set()
    unseen: list[str] = []
    try:
        extra = [socket for socket in listening(instance.pid) if (socket.address, socket.port) not in guarded]
        found += [f"{socket} of the sidecar (pid {instance.pid})" for socket in extra]
    except OSError as error:
        unread.append(f"ports of the sidecar: {error.strerror}")
    for inbound in instance.sidecar.inbound:
        pids = [pid for pid in holders(inbound.upstream, instance.pid) if pid != instance.pid]
        if pids != [_INIT]:
            pids = [pid for pid in family([pid for pid in pids if pid != _INIT]) if pid not in sidecars]
        served.update(pids)
        for pid in pids:
            try:
                sockets = [socket for socket in listening(pid) if not _is_meant(socket, inbound)]
            except OSError as error:
                unread.append(f"ports of pid {pid}: {error.strerror}")
                continue
            found += [f"{socket} of {program(pid)} (pid {pid}), which serves {inbound.service}" for socket in sockets]
        if not pids:
            unseen.append(inbound.service)
    if unseen:
        unread.append(f"ports of {', '.join(unseen)}: no process that may be looked at listens on its upstream")
    strangers = _by_strangers(instance, others, served | sidecars)
    return Examination(
        listening=tuple(sorted({*found, *strangers})),
        meant=_meant(instance),
        strangers={words: name for words, name in strangers.items() if name},
        unread=tuple(unread),
    )


def _meant(instance: Instance) -> tuple[str, ...]:
    """Names of the sockets at the service's own places, of addresses that are not those of others too."""
    places = {place for inbound in instance.sidecar.inbound for place in _places(inbound)}
    names = {socket_name(found) for found in at(instance.pid, places) if not found.is_everywhere}
    return tuple(sorted(names - {""}))


def _by_strangers(instance: Instance, others: Collection[Instance], known: Collection[int]) -> dict[str, str]:
    """Sockets of other processes at the service's own port, or its upstream's, where callers may take them for it.

    Those that another agent's sidecar may mean have a name to be known by: who calls one of two different addresses
    never comes to the other.
    """
    meant = {place for one in others for inbound in one.sidecar.inbound for place in _places(inbound)}
    mine = {place for inbound in instance.sidecar.inbound for place in _places(inbound)}
    upstreams = mine - {(inbound.address, inbound.port) for inbound in instance.sidecar.inbound}
    try:
        found = beside(instance.pid, {port for _, port in mine}, meant | upstreams)
    except OSError:  # told already
        return {}
    return {
        f"{socket} of {program(pid)} (pid {pid}), a stranger": socket_name(socket) if _is_apart(socket, mine) else ""
        for socket, pid in found
        if pid not in known
    }


def _is_apart(socket: Listening, mine: Collection[tuple[str, int]]) -> bool:
    """Whether nobody who calls one of these places can come to the socket, nor the other way round."""
    try:
        places = [ipaddress.ip_address(address) for address, port in mine if port == socket.port]
    except ValueError:
        return False  # a host's name: who knows what it stands for elsewhere
    apart = all(not each.is_unspecified and str(each) != socket.address for each in places)
    return apart and not socket.is_everywhere


def _places(inbound: Inbound) -> set[tuple[str, int]]:
    """Where the service's sidecar and, on TCP, the application behind it listen."""
    kind, _, where = inbound.upstream.partition(":")
    host, _, port = where.rpartition(":")
    return {(inbound.address, inbound.port), *([(host.strip("[]"), int(port))] if kind == "tcp" else [])}


def _is_meant(socket: Listening, inbound: Inbound) -> bool:
    """Whether the socket is the one that the sidecar hands requests to, and open no further than the estate says."""
    kind, _, where = inbound.upstream.partition(":")
    host, _, port = where.rpartition(":")
    return kind == "tcp" and socket.port == int(port) and (socket.is_local or socket.address == host.strip("[]"))


class CanaryRows:
    """Tells rows that a verify run caused: by a name that was proved, or by the secret of a run that lasts or did."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._runs: list[str] = []

    def mark(self, decision: Decision, entry: Any) -> Decision:
        """The decision, marked if a canary or its prober asked; ``entry`` is what Envoy logged."""
        state = self._knowledge.state
        if state.canaries.run and state.canaries.run not in self._runs:
            self._runs = [*self._runs, state.canaries.run][-MAX_REMEMBERED:]
        proved = not decision.claimed and is_canary(state.trust_domain.name, decision.caller)
        if proved or (self._runs and self._is_of_a_run(decision, entry)):
            return msgspec.structs.replace(decision, canary=True)
        return decision

    def _is_of_a_run(self, decision: Decision, entry: Any) -> bool:
        """A name that was only claimed proves nothing; the run's own name, which only its prober knows, does."""
        if decision.caller and not decision.claimed:
            return False
        name = entry.common_properties.tls_properties.tls_sni_hostname
        return name.removesuffix(SNI_SUFFIX) in self._runs or decision.reference.partition("-")[0] in self._runs
