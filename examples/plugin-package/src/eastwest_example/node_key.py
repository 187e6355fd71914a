"""A node proves itself by a secret key that was put on it when it was made.

The agent says the node's name; the server asks with random bytes; the answer is HMAC-SHA256 under the node's key over
the trust domain and the question. The key itself never travels, and no answer is worth anything a second time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
import tomllib
from pathlib import Path
from typing import Self

import msgspec

from eastwest.attest.node import Attested, Challenge, NodeContext, ProverContext
from eastwest.entropy import Entropy
from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.selector import Selector

KIND = "node_key"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class NodeKeyAttestor:
    """The server's side: knows all nodes' keys."""

    name = KIND

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``keys_file``: TOML, node name = "64 hex digits", private to the server's user; read at each attestation."""

        keys_file: str

    def __init__(self, keys_file: Path, trust_domain: TrustDomain, entropy: Entropy) -> None:
        self._keys_file = keys_file
        self._trust_domain = trust_domain
        self._entropy = entropy

    @classmethod
    def from_options(cls, options: Options, context: NodeContext) -> Self:
        """As the entry point makes it."""
        _keys(Path(options.keys_file))  # so that a mistake is told when the server starts
        return cls(Path(options.keys_file), context.trust_domain, context.entropy)

    async def attest(self, payload: bytes, challenge: Challenge) -> Attested:
        """Ask the node that it says it is."""
        name = payload[:100].decode("ascii", "replace")
        key = _keys(self._keys_file).get(name)
        question = self._entropy.token_bytes(32)
        answer = await challenge(question)
        # An unknown node is asked as well, so that names cannot be found out by trying.
        expected = _answer(key or self._entropy.token_bytes(32), self._trust_domain, question)
        if not hmac.compare_digest(answer, expected):
            raise InvalidInput("the node has not shown the key of its name")
        return Attested(
            path=f"/spire/agent/{KIND}/{name}",
            selectors=frozenset({Selector(KIND, f"name:{name}")}),
            can_reattest=True,
        )


class NodeKeyProver:
    """The agent's side: knows its own key."""

    name = KIND
    repeatable = True

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``node``: this node's name. ``key_file``: its key, 64 hex digits, private to the agent's user."""

        node: str
        key_file: str

    def __init__(self, node: str, key: bytes, trust_domain: TrustDomain) -> None:
        self._node = node
        self._key = key
        self._trust_domain = trust_domain

    @classmethod
    def from_options(cls, options: Options, context: ProverContext) -> Self:
        """As the entry point makes it."""
        if not _NAME.fullmatch(options.node):
            raise InvalidInput("node is not a name of a-z, 0-9 and -")
        text = _private(Path(options.key_file)).strip()
        return cls(options.node, _key(text, options.key_file), context.trust_domain)

    async def payload(self) -> bytes:
        """The node's name."""
        return self._node.encode()

    async def answer(self, challenge: bytes) -> bytes:
        """The proof that it has the key."""
        if len(challenge) != 32:
            raise InvalidInput("the server's question is malformed")
        return _answer(self._key, self._trust_domain, challenge)

    async def finish(self) -> None:
        """Nothing is held."""


def _answer(key: bytes, trust_domain: TrustDomain, question: bytes) -> bytes:
    return hmac.digest(key, trust_domain.name.encode() + b"\0" + question, hashlib.sha256)


def _keys(path: Path) -> dict[str, bytes]:
    try:
        table = tomllib.loads(_private(path))
    except tomllib.TOMLDecodeError:
        raise FailedPrecondition("the file of keys_file is not TOML", where=str(path)) from None
    if not all(_NAME.fullmatch(name) for name in table):
        raise FailedPrecondition("a node's name is not of a-z, 0-9 and -", where=str(path))
    return {name: _key(text, str(path)) for name, text in table.items()}


def _key(text: object, where: str) -> bytes:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise FailedPrecondition("a key is not 64 hex digits", where=where, fix="make one: openssl rand -hex 32")
    return bytes.fromhex(text)


def _private(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise FailedPrecondition("the file is open to other users", where=str(path), fix=f"chmod 600 {path}")
            return file.read(1024 * 1024)
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"the file cannot be read: {type(error).__name__}", where=str(path)) from None
