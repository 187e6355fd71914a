"""Certificates of a run: canaries' from the one door, and those that nobody may accept."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.csr import make_csr
from eastwest.policy.canary import PREFIX, Plan, stranger
from eastwest.rpc.tls import client_context
from eastwest.spiffe.id import SpiffeId

EXPIRING = 1
"""Seconds that the certificate lives with which nobody may come in once it has ended."""
RESERVE = 120
"""Seconds that a certificate has left at least when a run begins."""
MAX_SKEW = 2
"""Seconds that a proxy's clock may be behind ours before a certificate that has ended is refused by it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One certificate to be asked for, and its key. ``ttl`` in seconds; 0: the profile's own."""

    spiffe_id: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    ttl: int = 0

    @property
    def csr(self) -> bytes:
        """The request, PKCS #10 in DER."""
        return make_csr(self.key, SpiffeId.parse(self.spiffe_id))


Issue = Callable[[Sequence[Wanted]], Awaitable[Sequence[tuple[bytes, ...]]]]
"""Certifies what is wanted: chains, DER, leaf first, in the order asked."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Client contexts by canary; ``nobody`` shows no certificate. ``expired_at``: Unix seconds."""

    canaries: dict[str, ssl.SSLContext]
    nobody: ssl.SSLContext
    foreign: ssl.SSLContext
    elsewhere: ssl.SSLContext
    expiring: ssl.SSLContext
    expired_at: float


class Wallet:
    """Certificates that one run leaves to the next while they live: each issuance is an entry of the log."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Wanted, tuple[bytes, ...], float]] = {}
        self._expiring: tuple[Wanted, tuple[bytes, ...]] | None = None

    async def credentials(self, plan: Plan, issue: Issue, now: float) -> Credentials:
        """Contexts for all that ``plan`` asks as; ``issue`` certifies what is wanting. ``now`` in Unix seconds."""
        names = tuple(dict.fromkeys((*plan.canaries, stranger(plan.trust_domain))))
        self._held = {n: kept for n, kept in self._held.items() if n in names and kept[2] > now + RESERVE}
        asked = [Wanted(name, _key()) for name in names if name not in self._held]
        ending = [] if self._expiring else [Wanted(stranger(plan.trust_domain), _key(), EXPIRING)]
        chains = await issue([*asked, *ending]) if asked or ending else []
        for one, chain in zip([*asked, *ending], chains, strict=True):
            if one.ttl:
                self._expiring = one, chain
            else:
                self._held[one.spiffe_id] = one, chain, _end(chain)
        assert self._expiring is not None
        last, ended = self._expiring
        return Credentials(
            canaries={name: _of(plan, *self._held[name][:2]) for name in names},
            nobody=_context(plan),
            foreign=forged(plan, f"{stranger(plan.trust_domain)}/forged", now),
            elsewhere=forged(plan, f"spiffe://elsewhere.invalid{PREFIX}unknown", now),
            expiring=_of(plan, last, ended),
            expired_at=_end(ended) + MAX_SKEW,
        )


def forged(plan: Plan, spiffe_id: str, now: float) -> ssl.SSLContext:
    """With a certificate below a root that was made up here, under the name of the trust domain's own."""
    root, key = _key(), _key()
    begin = datetime.fromtimestamp(now, UTC) - timedelta(minutes=1)
    issuer = x509.load_der_x509_certificate(plan.roots[0]).subject if plan.roots else _name("nobody")
    leaf = (
        x509.CertificateBuilder()
        .subject_name(_name("canary"))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(minutes=10))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=False)
        .sign(root, hashes.SHA256())
    )
    return _context(plan, leaf.public_bytes(Encoding.PEM), _pem(key))


def _of(plan: Plan, one: Wanted, chain: Sequence[bytes]) -> ssl.SSLContext:
    return _context(plan, dump_chain_pem(chain), _pem(one.key))


def _context(plan: Plan, chain: bytes | None = None, key: bytes | None = None) -> ssl.SSLContext:
    context = client_context(plan.roots, chain, key)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    return context


def _end(chain: Sequence[bytes]) -> float:
    return x509.load_der_x509_certificate(chain[0]).not_valid_after_utc.timestamp()


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
