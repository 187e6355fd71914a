"""Who has confirmed which trust bundle, and who still holds what stems from a tainted authority.

Our agents say it themselves, for the sidecars that they serve as well (``Ack`` of the control stream). A stock SPIRE
agent confirms a bundle by fetching it over its own certificate, and is known to hold what that certificate stems from.
What was said is kept, so that a restart of the server forgets nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from cryptography import x509

from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.pki.confirmation import Holder
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.registry.registry import Registry
from eastwest.registry.state import Change
from eastwest.spiffe.id import SpiffeId
from eastwest.store.authority import Confirmed, SqliteAuthority

MAX_WAITING = 100
"""Waiting sidecars of one node that are remembered by name."""
STOCK_SILENCE = 60.0
"""Seconds after which a stock agent that has fetched nothing counts as not connected."""
RETRY_SECONDS = 5.0
_UNREADABLE: tuple[type[Exception], ...] = (x509.ExtensionNotFound, *PARSE_ERRORS)
_log = structlog.get_logger()


class Confirmations:
    """What each node has said, in memory and in the store. ``changed`` is set whenever something was."""

    def __init__(
        self,
        store: SqliteAuthority,
        registry: Registry,
        clock: Clock,
        newest: Callable[[], int],
        connected: Callable[[SpiffeId], bool],
    ) -> None:
        """``newest`` gives the sequence of the bundle in force; ``connected`` says whether an agent of ours is here."""
        self._store = store
        self._registry = registry
        self._clock = clock
        self._newest = newest
        self._connected = connected
        self._known: dict[str, Confirmed] = {}
        self._waiting: dict[str, tuple[str, ...]] = {}
        self._seen: dict[str, float] = {}
        self._unsaved: set[str] = set()
        self._gone: set[str] = set()
        self._to_save = asyncio.Event()
        self.changed = asyncio.Event()
        registry.subscribe(self._registry_changed)

    async def load(self) -> None:
        """Remember what was said before."""
        self._known = await self._store.confirmations()

    def acknowledged(self, agent: SpiffeId, ack: control.Ack) -> None:
        """Take an agent's own word: it counts for as much as the one of its sidecars that has least."""
        # One that is away and still runs comes with the bundle that it had.
        live = [status for status in ack.sidecars if status.connected or status.bundle_sequence]
        newest = self._newest()
        # A number that was never given out, as after a restored backup, confirms nothing.
        own = ack.bundle_sequence if ack.bundle_sequence <= newest else 0
        sequence = min([own, *(status.bundle_sequence for status in live)])
        waiting = (f"{status.spiffe_id} ({status.node_id})" for status in live if status.bundle_sequence < own)
        self._waiting[str(agent)] = tuple(sorted(waiting))[:MAX_WAITING]
        self._note(str(agent), Confirmed(sequence, tainted=min(ack.tainted_svids, 1 << 31)))

    def fetched(self, agent: SpiffeId, certificate: bytes) -> None:
        """A stock agent fetched the present bundle and showed ``certificate`` (DER)."""
        if self._connected(agent):
            return
        self._seen[str(agent)] = self._clock.monotonic()
        self._note(str(agent), Confirmed(self._newest(), issuer=_issuer(certificate), stock=True))

    def holders(self) -> list[Holder]:
        """Every live node: attested, not banned, with a certificate that has not ended."""
        now = self._clock.now().timestamp()
        found = []
        for node in self._registry.nodes.list().items:
            not_after = max(node.not_after, node.new_not_after)
            if node.banned or not_after < now:
                continue
            agent = str(node.spiffe_id)
            said = self._known.get(agent, Confirmed(0))
            recent = self._clock.monotonic() - self._seen.get(agent, -STOCK_SILENCE) < STOCK_SILENCE
            found.append(
                Holder(
                    agent=agent,
                    sequence=said.sequence,
                    not_after=not_after,
                    connected=recent if said.stock else self._connected(node.spiffe_id),
                    stock=said.stock,
                    issuer=said.issuer,
                    tainted=said.tainted,
                    waiting=self._waiting.get(agent, ()),
                )
            )
        return found

    async def keep(self) -> None:
        """Store what was said, for ever, and forget nodes that are no more."""
        while True:
            await self._to_save.wait()
            self._to_save.clear()
            unsaved, self._unsaved = self._unsaved, set()
            gone, self._gone = self._gone, set()
            try:
                await self._store.confirm({a: self._known[a] for a in unsaved if a in self._known}, gone - unsaved)
            except Error as error:
                # In memory it counts; an agent that comes back after a restart says it again.
                _log.warning("confirmations.unsaved", error=str(error))
                self._unsaved |= unsaved
                self._gone |= gone - self._known.keys()
                await self._clock.sleep(RETRY_SECONDS)
                self._to_save.set()

    def _registry_changed(self, change: Change) -> None:
        """Forget nodes that were banned or evicted: whoever comes back under that name begins anew."""
        for agent in map(str, change.ended):
            for known in (self._known, self._waiting, self._seen):
                known.pop(agent, None)
            self._unsaved.discard(agent)
            self._gone.add(agent)
        if change.ended:
            self._to_save.set()
            self.changed.set()

    def _note(self, agent: str, said: Confirmed) -> None:
        if self._known.get(agent) == said:
            return
        self._known[agent] = said
        self._unsaved.add(agent)
        self._to_save.set()
        self.changed.set()


def _issuer(certificate: bytes) -> str:
    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        found = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except _UNREADABLE:
        return ""
    return found.hex() if found else ""
