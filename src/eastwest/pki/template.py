"""Leaf certificates assembled from DER parts that are encoded once per generation of the certificate authority.

Output only: hostile bytes are parsed elsewhere, and every value that enters here is checked already. The result equals,
byte for byte, what cryptography's ``CertificateBuilder`` would make (checked at construction and by a property test);
it is eight times cheaper, since only serial, validity, key and names change from leaf to leaf.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from eastwest.errors import Internal
from eastwest.pki.profile import Usage
from eastwest.pki.signer import CURVES, HASHES, KeyAlgorithm, PrivateKey, SubjectKey

MAX_COMMON_NAME = 64
"""Upper bound of a common name (RFC 5280, appendix A.1); a longer first DNS name is left out of the subject."""


class LeafTemplate:
    """Makes the to-be-signed part of leaves of one issuer, and wraps it with the issuer's signature.

    Subject: common name = the first DNS name, or empty when there is none (then the names extension is critical).
    Extensions, in this order: key usage digitalSignature (critical), extended key usage, basic constraints without CA
    (critical), subject and authority key identifiers, subject alternative names: one URI, then the DNS names; then,
    for revocable leaves, CRL distribution point and authority information access (OCSP).
    """

    __slots__ = ("_after_key_id", "_algorithm", "_before_key_id", "_issuer", "_prefix")

    def __init__(self, issuer: x509.Certificate, algorithm: KeyAlgorithm, usage: Collection[Usage]) -> None:
        """``algorithm`` is the issuer's key type. Raises ``Internal`` when the self-check fails."""
        self._algorithm = _SIGNATURE_ALGORITHMS[algorithm]
        self._issuer = issuer.subject.public_bytes()
        self._prefix = _VERSION_3
        self._before_key_id = _KEY_USAGE + _extended_key_usage(usage) + _NOT_A_CA + _KEY_ID_HEAD
        self._after_key_id = _authority_key_id(issuer)
        self._self_check(issuer, algorithm, usage)

    def to_be_signed(
        self,
        serial: int,
        validity: bytes,
        key: SubjectKey,
        uri: str,
        dns_names: Sequence[str] = (),
        revocation: bytes = b"",
    ) -> bytes:
        """The bytes that the issuer signs. ``serial`` > 0; ``validity`` from ``encode_validity``; checked names.

        ``revocation`` from ``encode_revocation``, for leaves that can be revoked.
        """
        subject, critical = _EMPTY, _TRUE
        if dns_names and len(dns_names[0]) <= MAX_COMMON_NAME:
            subject, critical = _common_name(dns_names[0]), b""
        names = _tlv(0x86, uri.encode("ascii"))
        for name in dns_names:
            names += _tlv(0x82, name.encode("ascii"))
        alternative = _tlv(0x30, _OID_ALTERNATIVE_NAMES + critical + _tlv(0x04, _tlv(0x30, names)))
        extensions = self._before_key_id + key.identifier + self._after_key_id + alternative + revocation
        number = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
        return _tlv(
            0x30,
            b"".join(
                (
                    self._prefix,
                    _tlv(0x02, number),
                    self._algorithm,
                    self._issuer,
                    validity,
                    subject,
                    key.spki,
                    _tlv(0xA3, _tlv(0x30, extensions)),
                )
            ),
        )

    def wrap(self, to_be_signed: bytes, signature: bytes) -> bytes:
        """The certificate in DER."""
        return _tlv(0x30, to_be_signed + self._algorithm + _tlv(0x03, b"\0" + signature))

    def _self_check(self, issuer: x509.Certificate, algorithm: KeyAlgorithm, usage: Collection[Usage]) -> None:
        subject_key = _fixed_key(KeyAlgorithm.EC_P256).public_key()
        not_before = issuer.not_valid_before_utc
        not_after = not_before + timedelta(hours=1)
        uri = "spiffe://self-check.invalid/leaf"
        crl, answers = "http://self-check.invalid/a.crl", "http://self-check.invalid/ocsp"
        for serial, dns_names in ((1 << 126, ["self-check.invalid", "b.invalid"]), (0xFF, [])):
            revocation = encode_revocation(crl, answers) if dns_names else b""
            ours = self.to_be_signed(
                serial, encode_validity(not_before, not_after), SubjectKey.of(subject_key), uri, dns_names, revocation
            )
            names = [x509.UniformResourceIdentifier(uri), *(x509.DNSName(name) for name in dns_names)]
            builder = (
                x509.CertificateBuilder(issuer.subject, _subject(dns_names), subject_key, serial)
                .not_valid_before(not_before)
                .not_valid_after(not_after)
                .add_extension(_key_usage_digital_signature(), critical=True)
                .add_extension(x509.ExtendedKeyUsage([_USAGES[use] for use in Usage if use in usage]), critical=False)
                .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(subject_key), critical=False)
                .add_extension(issuer_key_identifier(issuer), critical=False)
                .add_extension(x509.SubjectAlternativeName(names), critical=not dns_names)
            )
            if revocation:
                for extension in _revocation(crl, answers):
                    builder = builder.add_extension(extension, critical=False)
            # None for Ed25519 and ML-DSA-65.
            theirs = builder.sign(_fixed_key(algorithm), HASHES.get(algorithm))  # type: ignore[arg-type]
            # Equal wrappers imply equal contents.
            if self.wrap(ours, theirs.signature) != theirs.public_bytes(Encoding.DER):
                raise Internal("the certificate template disagrees with the reference encoder; nothing will be issued")


def wrap_signed(to_be_signed: bytes, algorithm: KeyAlgorithm, signature: bytes) -> bytes:
    """Any certificate in DER from its to-be-signed part and a signature by a key of type ``algorithm``."""
    return _tlv(0x30, to_be_signed + _SIGNATURE_ALGORITHMS[algorithm] + _tlv(0x03, b"\0" + signature))


def issuer_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """What goes into the authority key identifier of a certificate below ``issuer``: its subject key identifier.

    An issuer without one (a foreign root) gets the digest of its key, as verifiers compute it.
    """
    try:
        found = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        # Any type that the library reads from a certificate.
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found)


def encode_validity(not_before: datetime, not_after: datetime) -> bytes:
    """A Validity in DER: UTCTime through 2049, GeneralizedTime after it (RFC 5280, 4.1.2.5). Times are in UTC."""
    return _tlv(0x30, _time(not_before) + _time(not_after))


def encode_revocation(crl_url: str, ocsp_url: str) -> bytes:
    """The extensions that say where revocation is looked up: CRL distribution point, and OCSP (RFC 5280, 4.2.1.13)."""
    point = _tlv(0x30, _tlv(0xA0, _tlv(0xA0, _tlv(0x86, crl_url.encode("ascii")))))
    access = _tlv(0x30, _OID_OCSP + _tlv(0x86, ocsp_url.encode("ascii")))
    return _tlv(0x30, _OID_CRL_POINTS + _tlv(0x04, _tlv(0x30, point))) + _tlv(
        0x30, _OID_INFORMATION_ACCESS + _tlv(0x04, _tlv(0x30, access))
    )


def _time(moment: datetime) -> bytes:
    if moment.year < 2050:
        return _tlv(0x17, moment.strftime("%y%m%d%H%M%SZ").encode("ascii"))
    return _tlv(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode("ascii"))


def _tlv(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    if length < 0x100:
        return bytes((tag, 0x81, length)) + content
    if length < 0x10000:
        return bytes((tag, 0x82, length >> 8, length & 0xFF)) + content
    raise Internal("a certificate field is longer than 65,535 bytes")


def _common_name(name: str) -> bytes:
    attribute = _tlv(0x30, _OID_COMMON_NAME + _tlv(0x0C, name.encode("ascii")))
    return _tlv(0x30, _tlv(0x31, attribute))


def _extended_key_usage(usage: Collection[Usage]) -> bytes:
    content = b"".join(_USAGE_OIDS[use] for use in Usage if use in usage)
    return _tlv(0x30, _OID_EXTENDED_KEY_USAGE + _tlv(0x04, _tlv(0x30, content)))


def _authority_key_id(issuer: x509.Certificate) -> bytes:
    digest = issuer_key_identifier(issuer).key_identifier
    assert digest is not None
    return _tlv(0x30, _OID_AUTHORITY_KEY_ID + _tlv(0x04, _tlv(0x30, _tlv(0x80, digest))))


def _subject(dns_names: Sequence[str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in dns_names[:1]])


def _revocation(crl_url: str, ocsp_url: str) -> tuple[x509.ExtensionType, x509.ExtensionType]:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)
    answers = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(ocsp_url))
    return x509.CRLDistributionPoints([point]), x509.AuthorityInformationAccess([answers])


def _key_usage_digital_signature() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _fixed_key(algorithm: KeyAlgorithm) -> PrivateKey:
    # A key that everyone knows: it signs only the reference certificate, which is compared and thrown away.
    if algorithm is KeyAlgorithm.ED25519:
        return ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
    if algorithm is KeyAlgorithm.ML_DSA_65:
        return mldsa.MLDSA65PrivateKey.from_seed_bytes(bytes(32))
    return ec.derive_private_key(1, CURVES[algorithm])


# Object identifiers as TLVs; the dotted form is behind each.
_OID_COMMON_NAME = bytes.fromhex("0603550403")  # 2.5.4.3
_OID_ALTERNATIVE_NAMES = bytes.fromhex("0603551d11")  # 2.5.29.17
_OID_AUTHORITY_KEY_ID = bytes.fromhex("0603551d23")  # 2.5.29.35
_OID_EXTENDED_KEY_USAGE = bytes.fromhex("0603551d25")  # 2.5.29.37
_OID_CRL_POINTS = bytes.fromhex("0603551d1f")  # 2.5.29.31
_OID_INFORMATION_ACCESS = bytes.fromhex("06082b06010505070101")  # 1.3.6.1.5.5.7.1.1
_OID_OCSP = bytes.fromhex("06082b06010505073001")  # 1.3.6.1.5.5.7.48.1
_USAGE_OIDS = {
    Usage.SERVER: bytes.fromhex("06082b06010505070301"),  # 1.3.6.1.5.5.7.3.1
    Usage.CLIENT: bytes.fromhex("06082b06010505070302"),  # 1.3.6.1.5.5.7.3.2
}
_USAGES = {Usage.SERVER: ExtendedKeyUsageOID.SERVER_AUTH, Usage.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH}
_SIGNATURE_ALGORITHMS = {
    KeyAlgorithm.EC_P256: bytes.fromhex("300a06082a8648ce3d040302"),  # ecdsa-with-SHA256
    KeyAlgorithm.EC_P384: bytes.fromhex("300a06082a8648ce3d040303"),  # ecdsa-with-SHA384
    KeyAlgorithm.ED25519: bytes.fromhex("300506032b6570"),  # 1.3.101.112
    KeyAlgorithm.ML_DSA_65: bytes.fromhex("300b0609608648016503040312"),  # 2.16.840.1.101.3.4.3.18, RFC 9881
}
_VERSION_3 = bytes.fromhex("a003020102")
_EMPTY = bytes.fromhex("3000")
_TRUE = bytes.fromhex("0101ff")
_KEY_USAGE = bytes.fromhex("300e0603551d0f0101ff040403020780")  # critical, digitalSignature
_NOT_A_CA = bytes.fromhex("300c0603551d130101ff04023000")  # critical, cA absent
_KEY_ID_HEAD = bytes.fromhex("301d0603551d0e04160414")  # the 20 bytes of the identifier follow
