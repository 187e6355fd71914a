"""A corporate CA whose certificate and key lie in files of this machine.

The files are read anew for each request, so a CA that has been renewed in place is used from then on. New files must
be moved into place whole: while certificate and key do not belong together, nothing is signed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from eastwest.clock import Clock
from eastwest.entropy import Entropy, SystemEntropy, serial_numbers
from eastwest.errors import FailedPrecondition, InvalidInput, Unavailable
from eastwest.pki.ca import ISSUING_CA, certify_ca
from eastwest.pki.chain import InvalidSvid, load_chain_pem
from eastwest.pki.hierarchy import add_ca_extensions, bounds_below, ca_subject
from eastwest.pki.lint import Expectation, Role, lint_certificate, require_clean
from eastwest.pki.signer import PrivateKey, SoftwareSigner
from eastwest.pki.upstream import CaRequest, MintedCa, UpstreamContext
from eastwest.plugins.secret_files import bytes_from_file, one_secret
from eastwest.plugins.upstream_chain import is_self_signed, minted, requested_key
from eastwest.spiffe.bundle import JwtAuthority

MAX_PEM_BYTES = 1024 * 1024


class DiskUpstream:
    """Signs with a CA key from a file. It keeps no JWT keys."""

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[upstreams.disk]``.

        ``cert_file``: PEM, the CA first, then those between it and its root. ``key_file``: its key, PEM, private to
        this user; encrypted where ``key_passphrase_file`` or ``key_passphrase_env`` is set. ``bundle_file``: PEM, the
        roots that peers trust; needed when the CA is not a root itself.
        """

        cert_file: str
        key_file: str
        key_passphrase_file: str = ""
        key_passphrase_env: str = ""
        bundle_file: str = ""

    def __init__(self, options: Options, clock: Clock, entropy: Entropy) -> None:
        self._options = options
        self._clock = clock
        self._entropy = entropy

    @classmethod
    def from_options(cls, options: Options, context: UpstreamContext) -> Self:
        """As the entry point makes it. Reads the files once, so that a mistake is found at start."""
        upstream = cls(options, context.clock, SystemEntropy())
        upstream._read()
        return upstream

    async def mint(self, request: CaRequest) -> MintedCa:
        return await asyncio.to_thread(self._mint, request)

    async def roots(self) -> Sequence[bytes]:
        return (await asyncio.to_thread(self._read)).roots

    async def publish_jwt(self, keys: Sequence[JwtAuthority]) -> None:  # noqa: ARG002 - as the port has it
        return None

    def _mint(self, request: CaRequest) -> MintedCa:
        files = self._read()
        (serial,) = serial_numbers(self._entropy, 1)
        now = self._clock.now()
        if isinstance(files.key, rsa.RSAPrivateKey):
            certificate = _certify_by_rsa(request, files.chain[0], files.key, serial, now=now)
        else:
            certificate = certify_ca(
                request.csr_der,
                files.chain[0],
                SoftwareSigner(files.key),
                request.trust_domain,
                serial,
                now,
                request.lifetime,
                path_length=request.path_length,
            )
        return minted(request, certificate, files.chain, files.roots, self._options.cert_file)

    def _read(self) -> _Files:
        options = self._options
        chain = _certificates(options.cert_file, "cert_file")
        key = _key(options)
        issuer = x509.load_der_x509_certificate(chain[0])
        if issuer.public_key() != key.public_key():
            raise FailedPrecondition(
                "the certificate and the key of the CA do not belong together",
                where=options.cert_file,
                fix="cert_file must begin with the certificate of key_file",
            )
        if options.bundle_file:
            roots = _certificates(options.bundle_file, "bundle_file")
        else:
            roots = tuple(der for der in chain if is_self_signed(x509.load_der_x509_certificate(der)))
        if not roots:
            raise FailedPrecondition(
                "the CA is not a root, and its root is not given", where=options.cert_file, fix="set bundle_file"
            )
        return _Files(chain, roots, key)


@dataclass(frozen=True, slots=True)
class _Files:
    """What the files said at one moment."""

    chain: tuple[bytes, ...] = field(repr=False)
    roots: tuple[bytes, ...] = field(repr=False)
    key: PrivateKey | rsa.RSAPrivateKey = field(repr=False)


def _certificates(path: str, option: str) -> tuple[bytes, ...]:
    try:
        with Path(path).open("rb") as file:
            pem = file.read(MAX_PEM_BYTES + 1)
    except FileNotFoundError:
        raise FailedPrecondition(f"the file of {option} does not exist", where=path) from None
    except OSError as error:
        raise Unavailable(f"the file of {option} cannot be read: {error.strerror}", where=path) from None
    if len(pem) > MAX_PEM_BYTES:
        raise InvalidInput(f"the file of {option} is larger than {MAX_PEM_BYTES} bytes", where=path)
    try:
        return load_chain_pem(pem)
    except InvalidSvid as error:
        raise FailedPrecondition(error.message, where=path) from None


def _key(options: DiskUpstream.Options) -> PrivateKey | rsa.RSAPrivateKey:
    passphrase = one_secret(
        key_passphrase_file=options.key_passphrase_file, key_passphrase_env=options.key_passphrase_env
    )
    pem = bytes_from_file(options.key_file, "key_file")
    try:
        key = load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The parser's own words are dropped: they might quote the file.
        raise FailedPrecondition(
            "the file of key_file holds no private key that opens with the passphrase given",
            where=options.key_file,
            fix="PEM; set key_passphrase_file when it is encrypted, and leave it out when it is not",
        ) from None
    if not isinstance(key, _KEY_TYPES):
        raise FailedPrecondition("the CA's key is of a type that cannot sign here", where=options.key_file)
    return key


def _certify_by_rsa(
    request: CaRequest, issuer_der: bytes, key: rsa.RSAPrivateKey, serial: int, *, now: datetime
) -> bytes:
    """As ``certify_ca``, for a kind of key that corporate CAs have and this system never makes."""
    public_key = requested_key(request)
    issuer = x509.load_der_x509_certificate(issuer_der)
    not_before, not_after = bounds_below(issuer, now, request.lifetime)
    builder = add_ca_extensions(
        x509.CertificateBuilder(
            issuer.subject, ca_subject(request.trust_domain, ISSUING_CA, public_key), public_key, serial
        )
        .not_valid_before(not_before)
        .not_valid_after(not_after),
        x509.SubjectKeyIdentifier.from_public_key(public_key),
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(request.trust_domain.uri)]),
        path_length=request.path_length,
        issuer=issuer,
    )
    draft = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.DER)
    expected = Expectation(trust_domain=request.trust_domain, above=(issuer,))
    require_clean(lint_certificate(draft, Role.CA, expected))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


_KEY_TYPES = (
    ec.EllipticCurvePrivateKey,
    ed25519.Ed25519PrivateKey,
    mldsa.MLDSA65PrivateKey,
    rsa.RSAPrivateKey,
)
