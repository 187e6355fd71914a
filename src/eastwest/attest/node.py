"""What is true of a node that asks to join."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.registry.node import JoinToken
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.selector import Selector

Challenge = Callable[[bytes], Awaitable[bytes]]
"""Sends a question to the agent and returns its answer."""


@dataclass(frozen=True, slots=True)
class Attested:
    """A node that proved itself: the path of its SPIFFE ID (``/spire/agent/<attestor>/...``) and its selectors.

    ``can_reattest``: the same evidence may be shown again; then it does so in place of renewing its certificate.
    """

    path: str
    selectors: frozenset[Selector] = frozenset()
    can_reattest: bool = False


class TokenBook(Protocol):
    """Where join tokens are used up: ``Registry.tokens``."""

    async def consume(self, value: str, now: datetime) -> JoinToken:
        """Use a token up, or raise ``InvalidJoinToken``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """What a node attestor plug-in is given."""

    trust_domain: TrustDomain
    clock: Clock
    entropy: Entropy
    tokens: TokenBook


class NodeAttestor(Protocol):
    """The server's side of one kind of node evidence."""

    @property
    def name(self) -> str:
        """What agents call this kind, such as ``join_token``."""
        ...

    async def attest(self, payload: bytes, challenge: Challenge) -> Attested:
        """Judge the agent's payload, asking back as often as needed.

        Raises ``InvalidInput`` when the evidence is malformed or does not hold, ``PermissionDenied`` when it
        holds and is not wanted here. The payload is a secret or a proof: it appears in no error.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProverContext:
    """What a node prover plug-in is given."""

    trust_domain: TrustDomain
    clock: Clock
    entropy: Entropy


class NodeProver(Protocol):
    """The agent's side of one kind of node evidence."""

    @property
    def name(self) -> str:
        """The kind, as the server's attestor calls it."""
        ...

    async def payload(self) -> bytes:
        """The evidence that opens an attestation. Raises ``FailedPrecondition`` when this node has none."""
        ...

    async def answer(self, challenge: bytes) -> bytes:
        """The answer to one question of the server. Raises ``InvalidInput`` when the question is malformed."""
        ...
