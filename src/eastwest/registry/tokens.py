"""Join tokens: secrets that let one node in, once."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, replace
from datetime import datetime

from eastwest.entropy import Entropy, random_uuid
from eastwest.errors import InvalidInput
from eastwest.registry.entries import Entries, SimilarEntry
from eastwest.registry.entry import Entry
from eastwest.registry.groups import group_id
from eastwest.registry.node import AGENT_PREFIX, JoinToken
from eastwest.registry.nodes import node_selector
from eastwest.registry.state import State
from eastwest.spiffe.id import SpiffeId, TrustDomain

DEFAULT_TTL = 600
MAX_TTL = 30 * 24 * 3600
MIN_TOKEN_LENGTH = 12
"""Of a token that the caller chose; those made here are random UUIDs. SPIRE's own test client chooses 12."""
MAX_TOKEN_LENGTH = 255
JOIN_TOKEN_PREFIX = AGENT_PREFIX + "join_token/"


class InvalidJoinToken(InvalidInput):
    """A join token is unknown, used or expired; which of them is not said."""


@dataclass(frozen=True, slots=True)
class NewToken:
    """A join token as its maker sees it, once. ``value`` is a live credential and is never logged or stored."""

    value: str
    expires_at: int

    def __repr__(self) -> str:
        return f"NewToken(expires_at={self.expires_at})"


class Tokens:
    """The join tokens of a registry; only their digests are kept."""

    def __init__(self, trust_domain: TrustDomain, state: State, entries: Entries, entropy: Entropy) -> None:
        self._trust_domain = trust_domain
        self._state = state
        self._store = state.store
        self._entries = entries
        self._entropy = entropy

    async def create(
        self, now: datetime, *, ttl: int = 0, value: str = "", group: str = "", alias: SpiffeId | None = None
    ) -> NewToken:
        """Make a join token that lives ``ttl`` seconds (0: 600).

        ``value`` is chosen here unless given; ``group`` names a node group that the node will belong to; ``alias``
        is an extra identity for the node. Raises ``InvalidInput`` on a bad argument, ``AlreadyExists`` on a value
        in use.
        """
        if not 0 <= ttl <= MAX_TTL:
            raise InvalidInput(f"the token's ttl is {ttl} s", fix=f"choose 1 to {MAX_TTL}, or 0 for {DEFAULT_TTL}")
        if value and not (_TOKEN.fullmatch(value) and MIN_TOKEN_LENGTH <= len(value) <= MAX_TOKEN_LENGTH):
            raise InvalidInput(
                f"a token has {MIN_TOKEN_LENGTH} to {MAX_TOKEN_LENGTH} characters out of A-Z a-z 0-9 . _ -",
                fix="leave the token out to have one made",
            )
        if group:
            group_id(self._trust_domain, group)
        if alias is not None:
            # The same checks as at use, so that a bad identity is refused to the operator and not to the node.
            self._extra_identity(alias, self._trust_domain.id(JOIN_TOKEN_PREFIX + "x")).check(self._trust_domain)
        value = value or random_uuid(self._entropy)
        expires_at = int(now.timestamp()) + (ttl or DEFAULT_TTL)
        await self._store.drop_tokens(int(now.timestamp()))
        await self._store.save_token(JoinToken(digest=_digest(value), expires_at=expires_at, group=group, alias=alias))
        return NewToken(value, expires_at)

    async def check(self, value: str, spki: bytes, now: datetime) -> JoinToken:
        """What a join token grants to the key ``spki`` (SubjectPublicKeyInfo, DER). Nothing is used up yet.

        ``Nodes.record_attestation`` does that, together with letting the node in: what fails between costs nothing.
        A used token is good once more for the same key, until the node has been seen and while the token lives:
        its answer may have been lost on the way. All else raises ``InvalidJoinToken``.
        """
        if not (_TOKEN.fullmatch(value) and len(value) <= MAX_TOKEN_LENGTH):
            raise _refused()
        digest = _digest(value)
        token = await self._store.find_token(digest)
        if token is None or not hmac.compare_digest(token.digest, digest) or token.expires_at <= now.timestamp():
            raise _refused()
        key = hashlib.sha256(spki).digest()
        if token.used_by:
            node = self._state.index.nodes.get(self._trust_domain.id(JOIN_TOKEN_PREFIX + value))
            if not hmac.compare_digest(token.used_by, key) or node is None or node.last_seen:
                raise _refused()
        return replace(token, used_by=key)

    async def bring_along(self, token: JoinToken, agent_id: SpiffeId, now: datetime) -> None:
        """Register the extra identity of a token for the node that joined by it; no error when it is there.

        The entry's parent holds the token's text, so call it only when the text opens nothing any more.
        """
        if token.alias is None:
            return
        [outcome] = await self._entries.create([self._extra_identity(token.alias, agent_id)], now)
        if outcome.error is not None and not isinstance(outcome.error, SimilarEntry):
            raise outcome.error

    def _extra_identity(self, alias: SpiffeId, agent_id: SpiffeId) -> Entry:
        return Entry(spiffe_id=alias, parent_id=agent_id, selectors=frozenset({node_selector(agent_id)}))


# A token becomes the last segment of its agent's SPIFFE ID; a lone dot or two would not be one.
_TOKEN = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]+")


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode()).digest()


def _refused() -> InvalidJoinToken:
    return InvalidJoinToken(
        # SPIRE's words, which scripts look for; it tells expired ones apart.
        "failed to attest: join token does not exist or has already been used, or has expired",
        fix="make a new one with eastwest token create",
    )
