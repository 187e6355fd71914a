"""Certificates and requests in files, as the commands about CAs read and write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eastwest.api.eastwest.authority.v1.authority_pb2 import Item
from eastwest.errors import InvalidInput

MAX_FILE = 1 << 20


def read_certificates(path: Path) -> list[bytes]:
    """Every certificate of a PEM file, as DER, in order; raises ``InvalidInput``."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        return [one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(_read(path))]
    except ValueError:
        raise InvalidInput("the file holds no PEM certificate, or a damaged one", where=str(path)) from None


def read_root(path: Path) -> bytes:
    """The one certificate of a PEM file."""
    found = read_certificates(path)
    if len(found) != 1:
        raise InvalidInput(f"the file holds {len(found)} certificates, not the root alone", where=str(path))
    return found[0]


def read_requests(path: Path) -> list[bytes]:
    """Every certificate signing request of a PEM file, as DER, in order."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    blocks = _read(path).split(_END)
    try:
        found = [x509.load_pem_x509_csr(block + _END) for block in blocks if _BEGIN in block]
    except ValueError:
        raise InvalidInput("a signing request in the file is damaged", where=str(path)) from None
    if not found:
        raise InvalidInput("the file holds no PEM signing request", where=str(path))
    return [request.public_bytes(Encoding.DER) for request in found]


def certificates_pem(certificates: Sequence[bytes]) -> str:
    """Certificates as one PEM text, in order."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return "".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode() for der in certificates)


def authority_pem(item: Item) -> str:
    """An authority's certificate as PEM; of a JWT key the public key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

    if item.kind != "jwt":
        return certificates_pem([item.certificate])
    key = load_der_public_key(item.certificate)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def request_pem(der: bytes) -> str:
    """A signing request as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_der_x509_csr(der).public_bytes(Encoding.PEM).decode()


def write_text(path: Path | None, text: str) -> None:
    """Write ``text`` to a file, or to standard output where none is named."""
    if path is None:
        print(text, end="")
        return
    try:
        path.write_text(text)
    except OSError as error:
        raise InvalidInput(f"the file cannot be written: {error.strerror}", where=str(path)) from None


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes() if path.stat().st_size <= MAX_FILE else b""
    except OSError as error:
        raise InvalidInput(f"the file cannot be read: {error.strerror}", where=str(path)) from None
    if not content:
        raise InvalidInput(f"the file is empty or larger than {MAX_FILE} bytes", where=str(path))
    return content


_BEGIN = b"-----BEGIN CERTIFICATE REQUEST-----"
_END = b"-----END CERTIFICATE REQUEST-----"
