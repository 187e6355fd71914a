"""Certificates that may call the server by the entry they were issued under.

Two entries may give one SPIFFE ID while only one of them is ``admin``. A certificate names the ID, not the entry, so
the serial numbers of what was issued under entries with ``admin`` or ``downstream`` are kept until they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from eastwest.registry.entry import Entry
from eastwest.registry.ports import PrivilegedSvid
from eastwest.registry.state import State
from eastwest.spiffe.id import SpiffeId


class Privileged:
    """Serial numbers (decimal) of certificates issued under privileged entries."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def note(self, svids: Sequence[PrivilegedSvid], now: datetime) -> None:
        """Keep what is about to be released; returns once it is durable. Ended ones are forgotten."""
        ended_by = int(now.timestamp())
        await self._state.store.save_svids(svids, ended_by)
        kept = self._state.svids
        for serial in [serial for serial, svid in kept.items() if svid.not_after <= ended_by]:
            del kept[serial]
        kept.update((svid.serial, svid) for svid in svids)

    def entry_of(self, serial: str, spiffe_id: SpiffeId, now: datetime) -> Entry | None:
        """The entry that a certificate was issued under, while that gives this ID still and has not ended."""
        svid = self._state.svids.get(serial)
        entry = None if svid is None else self._state.index.entries.get(svid.entry_id)
        if entry is None or entry.spiffe_id != spiffe_id or entry.is_expired(now):
            return None
        return entry
