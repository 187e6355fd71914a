"""The keys of transaction tokens as a value, and the calendar by which they follow each other.

Verifiers must have a key before it signs, and for as long as a token under it may live. So a successor is made, and
published, some time before it signs; and a key stays published until the last token under it has ended. When a key
signs follows from the times in the ring alone: a server that was stopped meanwhile finds itself at the right place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from eastwest.errors import Internal


class TokenKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key. Times are Unix seconds; it is published from ``made_at`` on."""

    id: str  # kid: the key's subject key identifier in hex
    name: str  # in the key store
    spki: bytes  # SubjectPublicKeyInfo in DER
    made_at: int
    signs_from: int


class Ring(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All keys that are published, oldest first, and the names of keys that are to be destroyed.

    A name is among ``loose`` before its key is made and after it has left the ring, so that no key is lost sight of.
    """

    keys: tuple[TokenKey, ...] = ()
    loose: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Calendar:
    """In seconds: how long a key signs, how long it is published before that, how long it is kept after."""

    period: int
    lead: int
    kept: int

    def __post_init__(self) -> None:
        if not 0 <= self.lead <= self.period // 2:
            raise Internal("a key is published for at most half of the time that it signs")

    def signing(self, ring: Ring, now: int) -> TokenKey | None:
        """The key that signs now: the newest whose time has come, or the oldest where the clock was set back."""
        return next((key for key in reversed(ring.keys) if key.signs_from <= now), ring.keys[0] if ring.keys else None)

    def wants_key(self, ring: Ring, now: int) -> bool:
        """Whether the next key is to be made: there is none, or the newest one's successor must be published now."""
        return not ring.keys or now >= self._successor_at(ring.keys[-1])

    def first_use(self, ring: Ring, now: int) -> int:
        """When a key that is made now may sign: at once where nothing else does."""
        return now + self.lead if ring.keys else now

    def ended(self, ring: Ring, now: int) -> Sequence[TokenKey]:
        """Keys under which no token can live any more."""
        pairs = zip(ring.keys, ring.keys[1:], strict=False)
        return [key for key, following in pairs if now > following.signs_from + self.kept]

    def next_change(self, ring: Ring) -> int | None:
        """The next moment at which something is to be done; None: at once."""
        if not ring.keys:
            return None
        ends = [following.signs_from + self.kept + 1 for following in ring.keys[1:]]
        return min([self._successor_at(ring.keys[-1]), *ends])

    def _successor_at(self, key: TokenKey) -> int:
        return key.signs_from + self.period - self.lead


def with_key(ring: Ring, key: TokenKey) -> Ring:
    """The ring with a key that was made, under a name that was loose until now."""
    return Ring(keys=(*ring.keys, key), loose=tuple(name for name in ring.loose if name != key.name))


def without(ring: Ring, ended: Sequence[TokenKey]) -> Ring:
    """The ring without these keys, which are to be destroyed."""
    kept = tuple(key for key in ring.keys if key not in ended)
    return Ring(keys=kept, loose=(*ring.loose, *(key.name for key in ended)))


def intending(ring: Ring, name: str) -> Ring:
    """The ring when a key is about to be made under ``name``."""
    return msgspec.structs.replace(ring, loose=(*ring.loose, name))


def settled(ring: Ring, destroyed: Sequence[str]) -> Ring:
    """The ring once these keys are gone."""
    return msgspec.structs.replace(ring, loose=tuple(name for name in ring.loose if name not in destroyed))
