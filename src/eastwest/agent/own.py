"""The agent's own identity on disk: its certificate and key, so that a restart needs no join token."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from eastwest import errors
from eastwest.agent.config import Paths
from eastwest.entropy import Entropy, random_hex
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.csr import make_csr
from eastwest.plugins.secret_files import read_private
from eastwest.process.files import make_private, replace_file
from eastwest.rpc.tls import certificate_id
from eastwest.spiffe.id import SpiffeId, TrustDomain


@dataclass(frozen=True, slots=True)
class OwnSvid:
    """The agent's X.509-SVID; the chain is DER, leaf first, the key PKCS#8 PEM for the TLS library."""

    id: SpiffeId
    chain: tuple[bytes, ...]
    not_before: datetime
    not_after: datetime
    serial: int
    key_pem: bytes = field(repr=False)

    @property
    def chain_pem(self) -> bytes:
        """The chain as TLS libraries take it."""
        return dump_chain_pem(self.chain)

    def is_live(self, now: datetime) -> bool:
        """Whether a server will still take it."""
        return now < self.not_after


@dataclass(frozen=True, slots=True)
class PendingKey:
    """A key that is stored and not certified yet, with the request to certify it."""

    name: str
    csr: bytes
    spki: bytes


class OwnIdentity:
    """Certificate and key in the agent's directory. A key is stored before it is certified.

    The keys are this class's own files and in no key store: those lend signatures only, and TLS needs the key.
    """

    def __init__(self, paths: Paths, entropy: Entropy) -> None:
        self._paths = paths
        self._entropy = entropy

    def load(self) -> OwnSvid | None:
        """The stored identity, or None; raises ``Corrupt`` when certificate and keys do not belong together."""
        try:
            pem = self._paths.svid.read_bytes()
        except FileNotFoundError:
            return None
        try:
            certificates = x509.load_pem_x509_certificates(pem)
        except ValueError:
            raise errors.Corrupt(
                "the agent's certificate cannot be read", where=str(self._paths.svid), fix="remove it and attest anew"
            ) from None
        leaf = certificates[0]
        wanted = _spki(leaf.public_key())
        for name in self._names():
            if _spki(self._key(name).public_key()) == wanted:
                return _own(tuple(c.public_bytes(Encoding.DER) for c in certificates), self._pem(name))
        raise errors.Corrupt(
            "the agent's certificate has no key beside it", where=str(self._paths.svid), fix="remove it and attest anew"
        )

    def prepare(self, trust_domain: TrustDomain, *, resume: bool = False) -> PendingKey:
        """Make and store a new key. The request names no agent: the server decides the ID.

        ``resume``: take a key that was prepared and got no certificate, if there is one. A server that certified it,
        and whose answer was lost, gives the answer again to that key only.
        """
        make_private(self._paths.keys)
        names = self._names()
        if resume and names and not self._paths.svid.exists():
            name = names[0]
        else:
            name = f"agent-{random_hex(self._entropy, 8)}"
            made = ec.generate_private_key(ec.SECP256R1())
            replace_file(self._file(name), made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        private = self._key(name)
        return PendingKey(name, make_csr(private, trust_domain.id("/spire/agent")), _spki(private.public_key()))

    def keep(self, pending: PendingKey, chain: Sequence[bytes]) -> OwnSvid:
        """Store the certificate for a prepared key and drop the earlier keys."""
        own = _own(tuple(chain), self._pem(pending.name))
        replace_file(self._paths.svid, own.chain_pem)
        self._drop_keys(but=pending.name)
        return own

    def discard(self, pending: PendingKey) -> None:
        """Remove a prepared key that nobody certified."""
        with contextlib.suppress(OSError):
            self._file(pending.name).unlink()

    def forget(self) -> None:
        """Remove certificate and keys: the next start must attest."""
        self._paths.svid.unlink(missing_ok=True)
        self._drop_keys(but="")

    def _drop_keys(self, but: str) -> None:
        for name in self._names():
            if name != but:
                with contextlib.suppress(FileNotFoundError):
                    self._file(name).unlink()

    def _names(self) -> list[str]:
        return sorted(file.stem for file in self._paths.keys.glob("agent-*.pem"))

    def _key(self, name: str) -> ec.EllipticCurvePrivateKey:
        try:
            key = load_pem_private_key(self._pem(name), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise errors.Corrupt("the agent's key cannot be read", where=str(self._file(name)), fix="remove it")
        return key

    def _pem(self, name: str) -> bytes:
        path = self._file(name)
        try:
            return read_private(path, "the agent's key")
        except OSError as error:
            raise errors.Unavailable(f"the agent's key cannot be read: {error.strerror}", where=str(path)) from None

    def _file(self, name: str) -> Path:
        return self._paths.keys / f"{name}.pem"


def _own(chain: tuple[bytes, ...], key_pem: bytes) -> OwnSvid:
    leaf = x509.load_der_x509_certificate(chain[0])
    spiffe_id = certificate_id(chain[0])
    if spiffe_id is None:
        raise errors.Corrupt("the agent's certificate names no SPIFFE ID")
    return OwnSvid(
        spiffe_id, chain, leaf.not_valid_before_utc, leaf.not_valid_after_utc, leaf.serial_number, key_pem=key_pem
    )


def _spki(public_key: object) -> bytes:
    # Any key that pyca can load.
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]
