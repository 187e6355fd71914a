"""A ready certificate authority for tests: root, intermediate, JWT key, and SVIDs for the asking."""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from eastwest.entropy import serial_numbers
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.constraints import uri_host_constraint
from eastwest.pki.hierarchy import (
    Authority,
    add_ca_extensions,
    bounds_below,
    ca_subject,
    create_root,
    sign_certificate,
)
from eastwest.pki.jwt import JwtSigningKey, mint
from eastwest.pki.profile import BACKDATE, Usage
from eastwest.pki.signer import KeyAlgorithm, PrivateKey, Signer, SoftwareSigner, SubjectKey, generate_private_key
from eastwest.pki.template import encode_validity
from eastwest.spiffe.bundle import Bundle, X509Authority
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.svid import X509Svid
from eastwest.testing.clock import START
from eastwest.testing.entropy import SeededEntropy


class TestCA:
    """An authority with keys in memory. It signs whatever it is asked to, and records nothing."""

    __test__ = False

    def __init__(
        self,
        trust_domain: str = "saas.example",
        now: datetime = START,
        algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256,
        lifetime: timedelta = timedelta(days=1),
        *,
        constrained_to: TrustDomain | None = None,
    ) -> None:
        """``constrained_to``: the trust domain that the issuing CA's name constraint permits; None for no bound."""
        self.trust_domain = TrustDomain.parse(trust_domain)
        self.now = now
        self._entropy = SeededEntropy()
        self.root_signer = SoftwareSigner(generate_private_key(algorithm))
        self.root = create_root(self.root_signer, self.trust_domain, self._serial(), now)
        self._constrained_to = constrained_to
        self.authority = self.new_authority(algorithm, lifetime)
        self.jwt_key = JwtSigningKey(SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P256)), now + lifetime)

    @property
    def roots(self) -> tuple[bytes, ...]:
        """The root, DER, as verifiers take it."""
        return (self.root,)

    @property
    def bundle(self) -> Bundle:
        """The trust domain's bundle: one root, one JWT key."""
        return Bundle(self.trust_domain, (X509Authority(self.root),), (self.jwt_key.authority,), sequence=1)

    def new_authority(
        self,
        algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256,
        lifetime: timedelta = timedelta(days=1),
        *,
        path_length: int = 0,
        signer: Signer | None = None,
    ) -> Authority:
        """Another generation of the issuing CA below the same root; ``signer`` in place of a fresh key in memory."""
        signer = signer or SoftwareSigner(generate_private_key(algorithm))
        issuer = x509.load_der_x509_certificate(self.root)
        not_before, not_after = bounds_below(issuer, self.now, lifetime)
        builder = add_ca_extensions(
            x509.CertificateBuilder(
                issuer.subject,
                ca_subject(self.trust_domain, "Test issuing CA", signer.public_key),
                signer.public_key,
                self._serial(),
            )
            .not_valid_before(not_before)
            .not_valid_after(not_after),
            x509.SubjectKeyIdentifier.from_public_key(signer.public_key),
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(self.trust_domain.uri)]),
            path_length=path_length,
            issuer=issuer,
            constraints=uri_host_constraint(self._constrained_to) if self._constrained_to else None,
        )
        certificate = sign_certificate(builder, self.root_signer)
        return Authority.create(self.trust_domain, signer, [certificate], self.roots)

    def svid(
        self,
        path: str,
        ttl: timedelta = timedelta(hours=1),
        *,
        now: datetime | None = None,
        dns_names: tuple[str, ...] = (),
        algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256,
        authority: Authority | None = None,
    ) -> tuple[X509Svid, PrivateKey]:
        """An X.509-SVID and its key; ``now`` and ``ttl`` may lie in the past, for expired ones.

        ``authority`` issues instead of the own one, and is not asked whether it may.
        """
        authority = authority or self.authority
        private_key = generate_private_key(algorithm)
        spiffe_id = self.trust_domain.id(path)
        start = (now or self.now).replace(microsecond=0)
        not_before, not_after = start - BACKDATE, start + ttl
        serial = self._serial()
        template = authority.template(frozenset(Usage))
        key = SubjectKey.of(private_key.public_key())
        unsigned = template.to_be_signed(serial, encode_validity(not_before, not_after), key, str(spiffe_id), dns_names)
        leaf = template.wrap(unsigned, authority.signer.sign(unsigned))
        return X509Svid(spiffe_id, (leaf, *authority.chain), not_before, not_after, serial), private_key

    def jwt(self, path: str, audience: str, ttl: timedelta = timedelta(minutes=5)) -> str:
        """A JWT-SVID in compact form."""
        spiffe_id: SpiffeId = self.trust_domain.id(path)
        token_id = self._entropy.token_bytes(16).hex()
        return mint(self.jwt_key, spiffe_id, [audience], self.now, self.now + ttl, token_id).token

    @staticmethod
    def pem(svid: X509Svid, private_key: PrivateKey) -> tuple[bytes, bytes]:
        """Chain and key as PEM texts, for TLS libraries."""
        key = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return dump_chain_pem(svid.chain), key

    def _serial(self) -> int:
        return serial_numbers(self._entropy, 1)[0]
