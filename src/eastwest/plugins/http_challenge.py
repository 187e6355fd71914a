"""Node attestation by a host name: the node puts a nonce on HTTP there, and the server fetches it.

The wire, the agent's ID and the selector ``http_challenge:hostname:`` are SPIRE's. Two things are stricter. Names are
compared in lower case, so that ``Host`` and ``host`` are not two nodes; and a pattern must match the whole name.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Sequence
from typing import Self

import msgspec

from eastwest.attest.node import AGENT_PREFIX, Attested, Challenge, NodeContext
from eastwest.entropy import Entropy
from eastwest.errors import Exhausted, InvalidInput, PermissionDenied
from eastwest.plugins.http_fetch import AddressPolicy, fetch
from eastwest.spiffe.selector import Selector

NONCE_BYTES = 32
MAX_BODY = 64
FETCH_SECONDS = 10.0
MAX_FETCHES = 64
"""Fetches at a time; more attestations must come again."""
FIRST_FREE_PORT = 1024
"""Ports below are for root alone to open."""


class AttestationData(msgspec.Struct, frozen=True):
    """The payload: where the server is to look."""

    hostname: str
    agentname: str
    port: int


class Nonce(msgspec.Struct, frozen=True):
    """The challenge: what the server wants to find there."""

    nonce: str


class HttpChallengeAttestor:
    """Lets in a node that answers HTTP at an allowed name. Its proof is as good as the name service and the network.

    By default trusted on first use: a name attests once, until its node is evicted.
    """

    name = "http_challenge"
    most_fetches = MAX_FETCHES

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[node_attestors.http_challenge]``; ``allowed_networks`` (CIDR) is ours, all else named as SPIRE's."""

        allowed_dns_patterns: list[str]
        required_port: int | None = None
        allow_non_root_ports: bool = True
        tofu: bool = True
        allowed_networks: list[str] = []

    def __init__(self, options: Options, patterns: Sequence[re.Pattern[str]], entropy: Entropy) -> None:
        self._options = options
        self._patterns = tuple(patterns)
        self._policy = AddressPolicy.parse(options.allowed_networks)
        self._entropy = entropy
        self._fetches = 0

    @classmethod
    def from_options(cls, options: Options, context: NodeContext) -> Self:
        """As the entry point makes it."""
        if not options.allowed_dns_patterns:
            raise InvalidInput(
                "allowed_dns_patterns is empty, so no node could attest",
                fix=r"""write whole-name expressions such as ['edge[0-9]+\.shop\.example']""",
            )
        patterns = []
        for pattern in options.allowed_dns_patterns:
            try:
                patterns.append(re.compile(pattern))
            except re.error as error:
                raise InvalidInput(
                    f"allowed_dns_patterns has {pattern[:80]!r}, which is no regular expression: {error}"
                ) from None
        port = options.required_port
        if port is not None and not 1 <= port <= 65535:
            raise InvalidInput(f"required_port is {port}", fix="choose 1 to 65535")
        if port is not None and port >= FIRST_FREE_PORT and not options.allow_non_root_ports:
            raise InvalidInput(
                f"required_port is {port}, and allow_non_root_ports forbids it", fix="choose a port below 1024"
            )
        bound_to_root = not options.allow_non_root_ports or (port is not None and port < FIRST_FREE_PORT)
        if not options.tofu and not bound_to_root:
            raise InvalidInput(
                "tofu is off while any user of a node could open the port, and so take the node's place",
                fix="set required_port below 1024 or allow_non_root_ports = false, or leave tofu on",
            )
        return cls(options, patterns, context.entropy)

    async def attest(self, payload: bytes, challenge: Challenge) -> Attested:
        try:
            data = msgspec.json.decode(payload, type=AttestationData)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise InvalidInput("the payload is not of SPIRE's form for http_challenge") from None
        host = self._check_host(data.hostname)
        self._check_port(data.port)
        if len(data.agentname) > 32 or not _AGENT_NAME.fullmatch(data.agentname):
            raise InvalidInput("the agent name is not 1 to 32 of a-z A-Z 0-9 -, a letter first")
        if self._fetches >= self.most_fetches:
            raise Exhausted("too many nodes are being looked at", fix="try again")
        nonce = base64.urlsafe_b64encode(self._entropy.token_bytes(NONCE_BYTES)).decode()
        await challenge(msgspec.json.encode(Nonce(nonce)))
        self._fetches += 1
        try:
            body = await fetch(host, data.port, path_of(data.agentname), self._policy, MAX_BODY, FETCH_SECONDS)
        finally:
            self._fetches -= 1
        if not hmac.compare_digest(body.strip(), nonce.encode()):
            raise PermissionDenied(f"{host}:{data.port} does not show the challenge", fix="look for a proxy between")
        selectors = frozenset({Selector(self.name, f"hostname:{host}")})
        return Attested(f"{AGENT_PREFIX}{self.name}/{host}", selectors, can_reattest=not self._options.tofu)

    def _check_host(self, text: str) -> str:
        host = text.lower()
        labels = host.split(".")
        if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
            raise InvalidInput(
                "the host name is not a DNS name", fix="give a name, not an address, without a final dot"
            )
        if labels[-1] == "localhost":
            raise PermissionDenied("localhost is no name for a node")
        if not any(pattern.fullmatch(host) for pattern in self._patterns):
            raise PermissionDenied(f"the host name {host} is not allowed here", fix="see allowed_dns_patterns")
        return host

    def _check_port(self, port: int) -> None:
        options = self._options
        if not 1 <= port <= 65535:
            raise InvalidInput("the port is not one")
        if options.required_port is not None and port != options.required_port:
            raise InvalidInput(f"port {port} is not allowed here", fix=f"use port {options.required_port}")
        if not options.allow_non_root_ports and port >= FIRST_FREE_PORT:
            raise InvalidInput(f"port {port} is not allowed here", fix="use a port below 1024")


def path_of(agent_name: str) -> str:
    """Where on a node's HTTP the nonce is."""
    return f"/.well-known/spiffe/nodeattestor/http_challenge/{agent_name}/challenge"


_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_AGENT_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
