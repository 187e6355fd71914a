"""What is true of a node that asks to join."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

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
