"""A root whose key never meets a network: made, and used, by commands that need no server."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from eastwest.cli.pem import certificates_pem, read_requests, read_root
from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy, serial_numbers
from eastwest.errors import AlreadyExists, FailedPrecondition, InvalidInput
from eastwest.pki.ca import certify_ca, cross_certify
from eastwest.pki.hierarchy import create_root
from eastwest.pki.signer import KeyAlgorithm, SoftwareSigner, algorithm_of, generate_private_key, key_id_of
from eastwest.plugins.secret_files import read_private
from eastwest.process.files import replace_file
from eastwest.spiffe.id import TrustDomain

LEAST_PASSPHRASE = 12


def make_root(trust_domain: str, root: Path, root_key: Path, passphrase_file: Path, days: int, key_type: str) -> str:
    """Write a new root and its encrypted key; gives its id. Never overwrites a file."""
    domain = TrustDomain.parse(trust_domain)
    try:
        algorithm = KeyAlgorithm(key_type)
    except ValueError:
        raise InvalidInput(f"{key_type[:32]!r} is no key type", fix=f"one of {', '.join(KeyAlgorithm)}") from None
    for path in (root, root_key):
        if path.exists():
            raise AlreadyExists(f"{path} is there already", fix="choose another name; a root is never overwritten")
    passphrase = _passphrase(passphrase_file)
    if len(passphrase) < LEAST_PASSPHRASE:
        raise InvalidInput(
            f"the passphrase has fewer than {LEAST_PASSPHRASE} characters",
            where=str(passphrase_file),
            fix="a longer one",
        )
    private_key = generate_private_key(algorithm)
    signer = SoftwareSigner(private_key)
    [serial] = serial_numbers(SystemEntropy(), 1)
    certificate = create_root(signer, domain, serial, SystemClock().now(), timedelta(days=days))
    encrypted = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))
    try:
        replace_file(root_key, encrypted, 0o600)
        replace_file(root, certificates_pem([certificate]).encode(), 0o644)
    except OSError as error:
        raise FailedPrecondition(f"the root cannot be written: {error.strerror}", where=str(root)) from None
    return signer.key_id


def sign_requests(
    requests: Path, root: Path, root_key: Path, passphrase_file: Path | None, days: int, trust_domain: str = ""
) -> list[bytes]:
    """A certificate for each request of the file, in order; ``trust_domain`` where the root names none."""
    certificate, signer = read_root(root), _signer(root, root_key, passphrase_file)
    domain = TrustDomain.parse(trust_domain) if trust_domain else _trust_domain(certificate, root)
    now = SystemClock().now()
    found = read_requests(requests)
    serials = serial_numbers(SystemEntropy(), len(found))
    return [
        certify_ca(csr, certificate, signer, domain, serial, now, timedelta(days=days))
        for csr, serial in zip(found, serials, strict=True)
    ]


def cross_sign_offline(
    other: bytes,
    root: Path,
    root_key: Path,
    passphrase_file: Path | None,
    days: int,
    *,
    constrained: bool,
    trust_domain: str = "",
) -> bytes:
    """The root's certificate for another root's key; ``trust_domain`` where the root names none."""
    certificate, signer = read_root(root), _signer(root, root_key, passphrase_file)
    domain = TrustDomain.parse(trust_domain) if trust_domain else _trust_domain(certificate, root)
    [serial] = serial_numbers(SystemEntropy(), 1)
    now = SystemClock().now()
    return cross_certify(other, certificate, signer, domain, serial, now, timedelta(days=days), constrained=constrained)


def _signer(root: Path, root_key: Path, passphrase_file: Path | None) -> SoftwareSigner:
    passphrase = _passphrase(passphrase_file) if passphrase_file is not None else None
    try:
        if root_key.stat().st_mode & 0o077:
            raise FailedPrecondition(
                "the root's key is open to others", where=str(root_key), fix=f"chmod 600 {root_key}"
            )
        key = load_pem_private_key(root_key.read_bytes(), passphrase)
    except OSError as error:
        raise InvalidInput(f"the root's key cannot be read: {error.strerror}", where=str(root_key)) from None
    except (TypeError, ValueError, UnsupportedAlgorithm):
        # The library's words may quote what it read.
        wanted = (
            "is it encrypted, and the passphrase right?" if passphrase else "an encrypted key needs --passphrase-file"
        )
        raise InvalidInput("the root's key cannot be opened", where=str(root_key), fix=wanted) from None
    algorithm_of(key.public_key())
    signer = SoftwareSigner(key)  # type: ignore[arg-type]  # algorithm_of has checked its type
    if key_id_of(x509.load_der_x509_certificate(read_root(root)).public_key()) != signer.key_id:
        raise InvalidInput("the key is not that of the root", where=str(root_key), fix="give the root's own key")
    return signer


def _trust_domain(certificate: bytes, where: Path) -> TrustDomain:
    loaded = x509.load_der_x509_certificate(certificate)
    try:
        names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise InvalidInput("the root names no trust domain", where=str(where), fix="give --trust-domain") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise InvalidInput("the root does not name one trust domain", where=str(where), fix="give --trust-domain")
    return TrustDomain.parse(uris[0].removeprefix("spiffe://"))


def _passphrase(path: Path) -> bytes:
    try:
        lines = read_private(path, "the passphrase file").splitlines()
    except OSError as error:
        raise InvalidInput(f"the passphrase cannot be read: {error.strerror}", where=str(path)) from None
    if not lines or not lines[0]:
        raise InvalidInput("the first line of the passphrase file is empty", where=str(path))
    return lines[0]
