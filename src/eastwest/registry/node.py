"""Nodes as the server knows them, the tokens that let them in, and whether an agent's certificate still counts."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.selector import Selector

AGENT_PREFIX = "/spire/agent/"
SEEN_STEP = 300
"""Seconds in which a node that goes on calling is not noted again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One attested node. Serials are decimal; ``not_after`` values and moments are Unix seconds.

    ``attested_at`` is when it last showed evidence; ``last_seen`` when it last called with a certificate of its own,
    to within ``SEEN_STEP``, and 0 until it first did. ``serial_new`` is a renewed certificate that the agent has not
    used yet: until it does, the current one counts as well, so that an answer lost on the way locks nobody out.
    """

    spiffe_id: SpiffeId
    attestation_type: str
    serial_current: str
    not_after: int
    serial_new: str = ""
    new_not_after: int = 0
    banned: bool = False
    can_reattest: bool = False
    selectors: frozenset[Selector] = frozenset()
    agent_version: str = ""
    attested_at: int = 0
    last_seen: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """What is kept of a join token: the SHA-256 of its text, its end (Unix seconds), and what it grants.

    ``group`` is a node group or ``""``; ``alias`` an extra identity for the node, or ``None``. ``used_by`` is the
    SHA-256 of the public key (SubjectPublicKeyInfo) that joined by it, empty while it is unused.
    """

    digest: bytes
    expires_at: int
    group: str = ""
    alias: SpiffeId | None = None
    used_by: bytes = b""


class Standing(enum.Enum):
    """Whether an agent may call; values other than ``OK`` are SPIRE's ``PermissionDeniedDetails.Reason``."""

    OK = 0
    AGENT_EXPIRED = 1
    AGENT_NOT_ATTESTED = 2
    AGENT_NOT_ACTIVE = 3
    AGENT_BANNED = 4
    AGENT_MUST_REATTEST = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """An agent's standing. ``promote``: the renewed certificate was used, so it must become the current one."""

    standing: Standing
    promote: bool = False


def judge(node: Node | None, serial: str, not_after: datetime, now: datetime) -> Verdict:
    """Whether an agent that showed a certificate with this serial and end may call.

    ``node`` is what the registry holds under the certificate's SPIFFE ID. Expiry is judged first, as SPIRE
    does, so that an agent long away hears that it must come back and not that it is unknown.
    """
    if now > not_after:
        return Verdict(Standing.AGENT_EXPIRED)
    if node is None:
        return Verdict(Standing.AGENT_NOT_ATTESTED)
    if node.banned:
        return Verdict(Standing.AGENT_BANNED)
    if serial and serial == node.serial_current:
        return Verdict(Standing.OK)
    if serial and serial == node.serial_new:
        return Verdict(Standing.OK, promote=True)
    return Verdict(Standing.AGENT_NOT_ACTIVE)
