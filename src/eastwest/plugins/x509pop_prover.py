"""The agent's side of ``x509pop``: a certificate and key from files, read anew for each attestation."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from eastwest.attest.node import ProverContext
from eastwest.entropy import Entropy
from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.plugins.x509pop_wire import NONCE_BYTES, AttestationData, DeviceKey, Question, answer_with

MAX_FILE = 1024 * 1024


class X509PopProver:
    """Shows the node's certificate and signs with its key. A renewed certificate is used without a restart."""

    name = "x509pop"
    repeatable = True

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[node_provers.x509pop]``, named as SPIRE names them; all files are PEM."""

        private_key_path: str
        certificate_path: str
        intermediates_path: str = ""

    def __init__(self, options: Options, entropy: Entropy) -> None:
        self._options = options
        self._entropy = entropy
        self._key: DeviceKey | None = None

    @classmethod
    def from_options(cls, options: Options, context: ProverContext) -> Self:
        """As the entry point makes it; the files are looked at, so that a wrong path is told at once."""
        prover = cls(options, context.entropy)
        prover._read()
        return prover

    async def payload(self) -> bytes:
        chain, self._key = self._read()
        return msgspec.json.encode(AttestationData(chain))

    async def answer(self, challenge: bytes) -> bytes:
        if self._key is None:
            raise FailedPrecondition("a challenge came before the attestation began")
        try:
            question = msgspec.json.decode(challenge, type=Question)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise InvalidInput("the server's challenge is not of SPIRE's form for x509pop") from None
        return msgspec.json.encode(answer_with(self._key, question, self._entropy.token_bytes(NONCE_BYTES)))

    async def finish(self) -> None:
        self._key = None

    def _read(self) -> tuple[list[bytes], DeviceKey]:
        options = self._options
        key = _private_key(options.private_key_path)
        chain = _certificates(options.certificate_path)
        if options.intermediates_path:
            chain += _certificates(options.intermediates_path)
        if chain[0].public_key() != key.public_key():
            raise InvalidInput(
                "the first certificate does not belong to the private key",
                where=options.certificate_path,
                fix="put the node's own certificate first, its intermediates after it",
            )
        return [certificate.public_bytes(Encoding.DER) for certificate in chain], key


def _certificates(path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_content(path))
    except PARSE_ERRORS:
        raise InvalidInput("the file holds no PEM certificates, or a damaged one", where=path) from None


def _private_key(path: str) -> DeviceKey:
    pem = _content(path, private=True)
    try:
        key = load_pem_private_key(pem, password=None)
    except PARSE_ERRORS:
        raise InvalidInput("the file does not hold an unencrypted PEM private key", where=path) from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise InvalidInput("the private key is neither RSA, ECDSA nor Ed25519", where=path)
    return key


def _content(path: str, *, private: bool = False) -> bytes:
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if private and stat.S_IMODE(mode) & 0o007:
                raise FailedPrecondition(
                    "the private key is open to every user", where=path, fix=f"chmod o-rwx {path}, and replace the key"
                )
            return file.read(MAX_FILE)
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", where=path) from None
