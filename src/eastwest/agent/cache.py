"""The last good state on disk, so that a restart serves while the server is away.

Entries, bundles, sidecars and what each Envoy has always; SVIDs with their keys only sealed (AES-256-GCM) under a key
that lies in the kernel and not beside the file. What is damaged, foreign or sealed under another key counts as not
there.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from google.protobuf.message import DecodeError

from eastwest.agent.envoys import Envoy
from eastwest.agent.identities import Held
from eastwest.agent.keys import WorkloadKey
from eastwest.agent.state import BadUpdate, State
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.entropy import Entropy
from eastwest.pki.signer import KeyAlgorithm
from eastwest.process.files import make_private, replace_file
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.svid import X509Svid

_STATE = b"eastwest agent state 1\n"
_KEYS = b"eastwest agent keys 1\n"
_ENVOYS = b"eastwest agent envoys 1\n"
_NONCE = 12
_DIGEST = 32
_log = structlog.get_logger()


class Cache:
    """The cache of one agent, whose SPIFFE ID binds every file to it. ``node_key``: None keeps no keys at all."""

    def __init__(self, directory: Path, agent: SpiffeId, node_key: bytes | None, entropy: Entropy) -> None:
        self._state_file = directory / "state"
        self._keys_file = directory / "svids.sealed"
        self._envoys_file = directory / "envoys"
        self._agent = agent
        self._entropy = entropy
        self._node_key = node_key
        self._sealing = AESGCM(_derive(node_key, agent)) if node_key is not None else None
        make_private(directory)
        if self._sealing is None:
            self._keys_file.unlink(missing_ok=True)

    def bind(self, agent: SpiffeId) -> bool:
        """Write for ``agent`` from now on; true when that is another than before, so that all must be written anew."""
        if agent == self._agent:
            return False
        self._agent = agent
        self._sealing = AESGCM(_derive(self._node_key, agent)) if self._node_key is not None else None
        return True

    @property
    def keeps_keys(self) -> bool:
        """Whether SVIDs and keys are kept."""
        return self._sealing is not None

    def load_state(self) -> State | None:
        """The last good state, or None."""
        content = _read(self._state_file)
        if content is None:
            return None
        body = content[len(_STATE) + _DIGEST :]
        if content[: len(_STATE) + _DIGEST] != _STATE + self._digest(body):
            _ignored(self._state_file, "it is damaged or another agent's")
            return None
        try:
            return State(self._agent.trust_domain).apply(control.Update.FromString(body))
        except (DecodeError, BadUpdate) as error:
            _ignored(self._state_file, str(error))
            return None

    def save_state(self, state: State) -> None:
        """Keep ``state`` as the last good one."""
        body = state.to_update().SerializeToString()
        replace_file(self._state_file, _STATE + self._digest(body) + body)

    def load_envoys(self) -> tuple[Envoy, ...]:
        """The Envoys that had something from here; none where that cannot be read."""
        content = _read(self._envoys_file)
        if content is None:
            return ()
        body = content[len(_ENVOYS) + _DIGEST :]
        if content[: len(_ENVOYS) + _DIGEST] == _ENVOYS + self._digest(body):
            with contextlib.suppress(msgspec.MsgspecError):
                return msgspec.msgpack.decode(body, type=tuple[Envoy, ...])
        _ignored(self._envoys_file, "it is damaged or another agent's")
        return ()

    def save_envoys(self, envoys: Iterable[Envoy]) -> None:
        """Keep what each Envoy has: certificates, no keys."""
        body = msgspec.msgpack.encode(list(envoys))
        replace_file(self._envoys_file, _ENVOYS + self._digest(body) + body)

    def load_svids(self) -> tuple[Held, ...]:
        """The sealed SVIDs; none where they cannot be unsealed."""
        content = _read(self._keys_file)
        if content is None or self._sealing is None:
            return ()
        start = len(_KEYS) + _NONCE
        try:
            body = self._sealing.decrypt(content[len(_KEYS) : start], content[start:], _KEYS)
            kept = msgspec.msgpack.decode(body, type=list[_Kept])
        except (InvalidTag, ValueError, msgspec.MsgspecError):
            _ignored(self._keys_file, "it is damaged, or sealed before this machine last started")
            return ()
        return tuple(one.held() for one in kept)

    def save_svids(self, held: Iterable[Held]) -> None:
        """Seal ``held``; nothing is written where there is no key to seal under."""
        if self._sealing is None:
            return
        body = msgspec.msgpack.encode([_Kept.of(one) for one in held])
        nonce = self._entropy.token_bytes(_NONCE)
        replace_file(self._keys_file, _KEYS + nonce + self._sealing.encrypt(nonce, body, _KEYS))

    def forget(self) -> None:
        """Remove everything: the server no longer knows this agent."""
        for file in (self._state_file, self._keys_file, self._envoys_file):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()

    def _digest(self, body: bytes) -> bytes:
        return hashlib.sha256(str(self._agent).encode() + b"\n" + body).digest()


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """A ``Held`` as it is sealed; times are Unix seconds."""

    entry_id: str
    revision: int
    spiffe_id: str
    chain: list[bytes]
    not_before: float
    not_after: float
    serial: bytes
    pkcs8: bytes
    spki: bytes
    received_at: float
    algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256

    @classmethod
    def of(cls, held: Held) -> _Kept:
        svid = held.svid
        return cls(
            held.entry_id,
            held.revision,
            str(svid.id),
            list(svid.chain),
            svid.not_before.timestamp(),
            svid.not_after.timestamp(),
            svid.serial.to_bytes(20),
            held.key.pkcs8,
            held.key.spki,
            held.received_at.timestamp(),
            held.key.algorithm,
        )

    def held(self) -> Held:
        svid = X509Svid(
            SpiffeId.parse(self.spiffe_id),
            tuple(self.chain),
            datetime.fromtimestamp(self.not_before, UTC),
            datetime.fromtimestamp(self.not_after, UTC),
            int.from_bytes(self.serial),
        )
        key = WorkloadKey(self.pkcs8, self.spki, self.algorithm)
        return Held(self.entry_id, self.revision, svid, key, datetime.fromtimestamp(self.received_at, UTC))


def _derive(node_key: bytes, agent: SpiffeId) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=f"eastwest agent cache {agent}".encode()).derive(node_key)


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _ignored(file: Path, why: str) -> None:
    _log.warning("agent.cache.ignored", file=str(file), why=why)
