"""One witness as our log sees it: what it last signed, what is wrong with it, and how it is asked."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from eastwest.errors import Error
from eastwest.log.checkpoint import Checkpoint
from eastwest.log.note import NoteKey, Signature
from eastwest.log.policy import Policy
from eastwest.log.witness import (
    MAX_ANSWER_BYTES,
    SIZE_TYPE,
    AddCheckpoint,
    origin_hash,
    read_cosignatures,
    read_size,
)
from eastwest.server.log.exchange import check_url, exchange

TRIES = 3
"""One with what we remember, one with the size the witness names, one more if it moved in between."""
Prove = Callable[[int], Awaitable[Sequence[bytes]]]
"""Gives the proof from a size to the checkpoint that is asked for."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A witness says that it knows another history of our log."""

    witness: str
    what: str
    shown: bytes
    """The checkpoint that it shows for it, not verified; empty when it shows none."""
    size: int = 0
    """Of the tree that it says it has signed, where it says so."""


@dataclass(slots=True)
class Peer:
    """The witness behind one URL: one or more keys of the policy, which all sign one answer."""

    url: str
    names: tuple[str, ...]
    keys: tuple[NoteKey, ...]
    signed: int = 0
    """The size of ours that it signed last, as far as we know."""
    problem: str = ""
    requests: dict[str, int] = field(default_factory=dict)
    """How often it was asked, by outcome: ``signed``, ``refused``, ``failed``."""

    @property
    def name(self) -> str:
        """What the policy calls it; for people."""
        return ", ".join(self.names)

    async def ask(
        self, checkpoint: Checkpoint, note: str, trust: ssl.SSLContext, prove: Prove
    ) -> list[tuple[Signature, str]] | Claim:
        """Its cosignatures of ``checkpoint``; where it gives none, ``problem`` says why. Never raises ``Error``."""
        try:
            answer = await self._ask(checkpoint, note, trust, prove)
        except Error as error:
            self._count("failed")
            self.problem = error.message
            return []
        if isinstance(answer, Claim):
            self._count("refused")
            self.problem = answer.what
        elif answer:
            self._count("signed")
            self.signed = checkpoint.size
        else:
            self._count("refused")
        return answer

    async def _ask(
        self, checkpoint: Checkpoint, note: str, trust: ssl.SSLContext, prove: Prove
    ) -> list[tuple[Signature, str]] | Claim:
        old = min(self.signed, checkpoint.size)
        forgot = ""
        for _ in range(TRIES):
            body = AddCheckpoint(old, tuple(await prove(old)), note.encode()).encode()
            reply = await exchange(f"{self.url}add-checkpoint", trust, MAX_ANSWER_BYTES, body)
            if reply.status == 200:
                found = read_cosignatures(checkpoint.text, reply.body, self.keys)
                self.problem = forgot if found else "it signs with keys that the policy does not name"
                return found
            if reply.status == 409 and reply.media_type.partition(";")[0] == SIZE_TYPE:
                size = read_size(reply.body.decode("latin-1").removesuffix("\n"))
                if size > checkpoint.size:
                    return await self._claim(checkpoint, trust, f"it has signed a tree of {size} entries", size)
                if size < self.signed:
                    forgot = f"it had signed {self.signed} entries and remembers {size}: it forgets what it signs"
                old = size
                continue
            if reply.status == 422:
                what = f"it finds the tree of {checkpoint.size} entries inconsistent with the {old} that it signed"
                return await self._claim(checkpoint, trust, what, 0)
            told = reply.body[:200].decode("utf-8", "replace").strip()
            self.problem = f"it answered {reply.status}: {told!r}"
            return []
        self.problem = "it names another size each time"
        return []

    async def _claim(self, checkpoint: Checkpoint, trust: ssl.SSLContext, what: str, size: int) -> Claim:
        """The claim with what it has to show: witnesses should serve the last checkpoint that they signed."""
        try:
            reply = await exchange(f"{self.url}{origin_hash(checkpoint.origin)}/checkpoint", trust, MAX_ANSWER_BYTES)
        except Error:
            return Claim(self.name, what, b"", size)
        return Claim(self.name, what, reply.body if reply.status == 200 else b"", size)

    def _count(self, outcome: str) -> None:
        self.requests[outcome] = self.requests.get(outcome, 0) + 1


def peers_of(policy: Policy, where: str) -> list[Peer]:
    """The witnesses that have an URL, one peer for each; raises ``InvalidInput`` for one that is no address."""
    by_url: dict[str, list[tuple[str, NoteKey]]] = {}
    for witness in policy.witnesses.values():
        if witness.url:
            check_url(witness.url, where)
            by_url.setdefault(witness.url.rstrip("/") + "/", []).append((witness.name, witness.key))
    return [
        Peer(url, tuple(name for name, _ in those), tuple(key for _, key in those)) for url, those in by_url.items()
    ]
