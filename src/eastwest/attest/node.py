"""What is true of a node that asks to join: the two ports behind every kind of node evidence.

A kind of evidence is a pair of plug-ins of one name. The agent's ``NodeProver`` collects what its platform vouches for
and answers questions; the server's ``NodeAttestor`` judges it and says what the node is called and what is true of it.
Between them lie opaque bytes: the kind's own payload, questions and answers, on SPIRE's ``AttestAgent`` stream.

How the kinds of a platform fit in:

- A bearer statement (a Kubernetes service account token, a cloud's signed instance document): ``payload`` fetches
  it anew each time, ``attest`` verifies it and asks nothing. Say ``can_reattest`` only if the statement is bound to
  this server and this moment, by audience and expiry; a statement that can be replayed is good once.
- Possession of a key (X.509, SSH, a TPM's attestation key): ``attest`` sends a fresh question, which ``answer`` signs.
  Several rounds are allowed, as TPM credential activation needs them.
- A place on a network: ``answer`` makes the proof visible, and ``attest`` goes and looks.

What an attestor may rely on: the request to certify the agent's key has been verified before; source and number of
attempts are bounded; each question is answered within seconds or the attestation ends. What it must keep to: decide
from evidence alone, never from who asks; quote no evidence in an error; return a path that no other kind can return,
by beginning it with ``/spire/agent/<name>/`` unless its administrator has chosen another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.registry.node import AGENT_PREFIX, JoinToken
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.selector import Selector

__all__ = [
    "AGENT_PREFIX",
    "Attested",
    "Challenge",
    "NodeAttestor",
    "NodeContext",
    "NodeProver",
    "ProverContext",
    "TokenBook",
]


class Challenge(Protocol):
    """The agent that applies: call it with a question to have its answer."""

    @property
    def address(self) -> str:
        """The IP address it calls from, ``""`` where there is none. A hint; a proxy or NAT may lie between."""
        ...

    @property
    def spki(self) -> bytes:
        """The public key it wants certified (SubjectPublicKeyInfo, DER); it has proved to have the private one."""
        ...

    async def __call__(self, question: bytes, /) -> bytes:
        """Send a question, wait for the answer. Raises ``InvalidInput`` when none comes, or not in time."""
        ...


@dataclass(frozen=True, slots=True)
class Attested:
    """A node that proved itself: the path of its SPIFFE ID (``/spire/agent/<attestor>/...``) and its selectors.

    ``can_reattest``: the same evidence may be shown again; then it does so in place of renewing its certificate.
    Without it the first to show the evidence is the node, until an administrator evicts it. ``token``: the join token
    that is used up when the node is let in.
    """

    path: str
    selectors: frozenset[Selector] = frozenset()
    can_reattest: bool = False
    token: JoinToken | None = None


class TokenBook(Protocol):
    """Where join tokens are looked up: ``Registry.tokens``."""

    async def check(self, value: str, spki: bytes, now: datetime) -> JoinToken:
        """What a token grants to this key, or raise ``InvalidJoinToken``. Uses nothing up."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """What a node attestor plug-in is given. ``bundle`` gives the trust domain's own bundle as it is now."""

    trust_domain: TrustDomain
    clock: Clock
    entropy: Entropy
    tokens: TokenBook
    bundle: Callable[[], Bundle]


class NodeAttestor(Protocol):
    """The server's side of one kind of node evidence."""

    @property
    def name(self) -> str:
        """What agents call this kind, such as ``join_token``."""
        ...

    async def attest(self, payload: bytes, challenge: Challenge) -> Attested:
        """Judge the agent's payload, asking back as often as needed.

        Raises ``InvalidInput`` when the evidence is malformed or does not hold, ``PermissionDenied`` when it
        holds and is not wanted here, ``Unavailable`` when it cannot be judged now. The payload is a secret or a
        proof: it appears in no error.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProverContext:
    """What a node prover plug-in is given. ``join_token`` is a secret, ``""`` when none is at hand."""

    trust_domain: TrustDomain
    clock: Clock
    entropy: Entropy
    join_token: str = field(default="", repr=False)


class NodeProver(Protocol):
    """The agent's side of one kind of node evidence.

    One attestation is ``payload``, then ``answer`` for each question, then ``finish`` in any case; one at a time.
    """

    @property
    def name(self) -> str:
        """The kind, as the server's attestor calls it."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether it is worth trying to attest a second time, such as after an eviction."""
        ...

    async def payload(self) -> bytes:
        """The evidence that opens an attestation; it is sent only to a server that has proved to be ours.

        Raises ``InvalidInput`` or ``FailedPrecondition`` when this node has none.
        """
        ...

    async def answer(self, challenge: bytes) -> bytes:
        """The answer to one question of the server, not empty. Raises ``InvalidInput`` when it is malformed."""
        ...

    async def finish(self) -> None:
        """The attestation is over, whatever its end: let go of what it held."""
        ...
