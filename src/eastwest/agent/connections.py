"""Whose each connection at this node's services is: learned from access logs, so that it can be ended.

A connection is named by the caller's address and port, as the sidecar saw it; whose it is says the newest entry about
it, so that a port that another caller uses later is that caller's. Bounded: what was not heard of for long is forgotten
first, and known again with the next entry about it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from envoy.config.core.v3 import address_pb2
from envoy.data.accesslog.v3 import accesslog_pb2

from eastwest.agent.netlink import Address, plain_address

MAX_CONNECTIONS = 20_000
"""Of one service, in each of two halves: the newer one becomes the older when it is full."""
MAX_SERVICES = 1_000
MAX_CERTIFICATES = 4_096
_PERIODIC = int(accesslog_pb2.DownstreamPeriodic)


class Connections:
    """``on_contained`` hears of services at which somebody who is ``watched`` for has shown up."""

    def __init__(self) -> None:
        self._halves: dict[str, tuple[dict[bytes, bytes], dict[bytes, bytes]]] = {}  # by service: newer, older
        self._watched: frozenset[str] = frozenset()
        self._callers: dict[bytes, str] = {}
        self.on_contained: Callable[[str], None] = lambda _service: None

    def watch(self, spiffe_ids: Iterable[str]) -> None:
        """Tell of these from now on."""
        self._watched = frozenset(spiffe_ids)

    def requests(self, service: str, entries: Sequence[Any]) -> Sequence[Any]:
        """Learn from entries of requests (``eastwest.agent.als_wire``); returns those that are about their end.

        The others only say that a request lasts, and whose it is: no decision is in them that is not told at the end.
        """
        newer = self._newer(service)
        lasting = False
        for entry in entries:
            common = entry.common_properties
            newer[common.downstream_direct_remote_address] = common.tls_properties
            lasting |= common.access_log_type == _PERIODIC
        if self._watched:
            self._look(service, {entry.common_properties.tls_properties for entry in entries})
        self._bound(service, newer)
        if not lasting:
            return entries
        return [entry for entry in entries if entry.common_properties.access_log_type != _PERIODIC]

    def sessions(self, service: str, entries: Iterable[Any]) -> None:
        """Learn from entries of TCP sessions (whole ones)."""
        newer = self._newer(service)
        shown = set()
        for entry in entries:
            common = entry.common_properties
            tls = common.tls_properties.SerializeToString(deterministic=True)
            newer[common.downstream_direct_remote_address.SerializeToString(deterministic=True)] = tls
            shown.add(tls)
        if self._watched:
            self._look(service, shown)
        self._bound(service, newer)

    def of(self, service: str, spiffe_ids: Collection[str]) -> set[Address]:
        """Where these are connected from, as far as it is known; perhaps they are so no more."""
        newer, older = self._halves.get(service, ({}, {}))
        known = {**older, **newer}
        theirs = {tls for tls in set(known.values()) if self._caller(tls) in spiffe_ids}
        return {found for remote, tls in known.items() if tls in theirs and (found := _address(remote))[0]}

    def _newer(self, service: str) -> dict[bytes, bytes]:
        halves = self._halves.get(service)
        if halves is None:
            while len(self._halves) >= MAX_SERVICES:
                del self._halves[next(iter(self._halves))]
            halves = self._halves[service] = ({}, {})
        return halves[0]

    def _bound(self, service: str, newer: dict[bytes, bytes]) -> None:
        if len(newer) >= MAX_CONNECTIONS:
            self._halves[service] = ({}, newer)

    def _look(self, service: str, shown: Iterable[bytes]) -> None:
        if any(self._caller(tls) in self._watched for tls in shown):
            self.on_contained(service)

    def _caller(self, tls: bytes) -> str:
        """The one SPIFFE ID of a verified peer; "" where there is none, or several names."""
        known = self._callers.get(tls)
        if known is not None:
            return known
        if len(self._callers) >= MAX_CERTIFICATES:
            self._callers.clear()
        names = accesslog_pb2.TLSProperties.FromString(tls).peer_certificate_properties.subject_alt_name
        uris = [name.uri for name in names if name.uri]
        found = self._callers[tls] = uris[0] if len(uris) == 1 else ""
        return found


def _address(remote: bytes) -> Address:
    place = address_pb2.Address.FromString(remote).socket_address
    return plain_address(place.address), place.port_value
