"""Requests made to hurt: each is refused with its own name or sentence, and leads to no certificate and no entry."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from eastwest.errors import Code, Error
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import Instance, X509Request
from eastwest.pki.csr import CsrDefect, InvalidCsr, make_csr, verify_csr
from eastwest.pki.profile import Door
from eastwest.pki.signer import CLASSICAL, KeyAlgorithm, SoftwareSigner, UnsupportedKey, generate_private_key
from eastwest.pki.template import wrap_signed
from eastwest.spiffe.id import SpiffeId
from eastwest.testing import FakeClock, SeededEntropy, TestCA
from eastwest.testing.log import MemoryLog

ID = SpiffeId.parse("spiffe://saas.example/prod/billing")
KEY = generate_private_key(KeyAlgorithm.EC_P256)
GOOD = make_csr(KEY, ID)


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + content


def spki(key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


EXTENSION_REQUEST = bytes.fromhex("06092a864886f70d01090e")
NAMES = bytes.fromhex("0603551d11")


def extension(oid: bytes, value: bytes) -> bytes:
    return tlv(0x30, oid, tlv(0x04, value))


def uri(text: str) -> bytes:
    return tlv(0x86, text.encode())


def hand_made(*extensions: bytes, version: bytes = b"\x00", public_key: bytes | None = None) -> bytes:
    """A request put together byte by byte, rightly signed by ``KEY``."""
    asked = tlv(0x30, EXTENSION_REQUEST, tlv(0x31, tlv(0x30, *extensions)))
    info = tlv(0x30, tlv(0x02, version), tlv(0x30), public_key or spki(KEY), tlv(0xA0, asked))
    return wrap_signed(info, KeyAlgorithm.EC_P256, SoftwareSigner(KEY).sign(info))


def built(key, *names: x509.GeneralName, algorithm=None, ca: bool = False) -> bytes:
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, algorithm or hashes.SHA256()).public_bytes(Encoding.DER)


def off_curve() -> bytes:
    form = bytearray(spki(KEY))
    form[-1] ^= 1  # the last byte of y
    return hand_made(extension(NAMES, tlv(0x30, uri(str(ID)))), public_key=bytes(form))


def wrong_signature() -> bytes:
    other = generate_private_key(KeyAlgorithm.EC_P256)
    return GOOD.replace(spki(KEY), spki(other))


NAME = x509.UniformResourceIdentifier(str(ID))
OTHER = x509.UniformResourceIdentifier("spiffe://saas.example/prod/admin")
ADDRESS = x509.IPAddress(ipaddress.ip_address("10.0.0.1"))
ONE = extension(NAMES, tlv(0x30, uri(str(ID))))

DEFECTS: dict[str, tuple[Callable[[], bytes], CsrDefect]] = {
    "noise": (lambda: b"\x30\x03\x02\x01\x00", CsrDefect.MALFORMED),
    "a certificate": (lambda: TestCA().root, CsrDefect.MALFORMED),
    "one megabyte": (lambda: GOOD + bytes(1 << 20), CsrDefect.TOO_LARGE),
    "trailing bytes": (lambda: GOOD + b"\x00", CsrDefect.TRAILING_BYTES),
    "another request behind it": (lambda: GOOD + GOOD, CsrDefect.TRAILING_BYTES),
    "negative version": (lambda: hand_made(ONE, version=b"\xff"), CsrDefect.WRONG_VERSION),
    "version 2": (lambda: hand_made(ONE, version=b"\x01"), CsrDefect.WRONG_VERSION),
    "point off the curve": (off_curve, CsrDefect.BAD_KEY),
    "wrong signature": (wrong_signature, CsrDefect.WRONG_SIGNATURE),
    "names twice": (lambda: hand_made(ONE, ONE), CsrDefect.DUPLICATE_EXTENSION),
    "two URIs": (lambda: built(KEY, NAME, OTHER), CsrDefect.SEVERAL_URIS),
    "two URIs by hand": (
        lambda: hand_made(extension(NAMES, tlv(0x30, uri(str(ID)), uri("spiffe://saas.example/x")))),
        CsrDefect.SEVERAL_URIS,
    ),
    "an IP address": (lambda: built(KEY, NAME, ADDRESS), CsrDefect.IP_NAME),
    "an IP address alone": (lambda: built(KEY, ADDRESS), CsrDefect.IP_NAME),
    "to be a CA": (lambda: built(KEY, NAME, ca=True), CsrDefect.WANTS_CA),
    "names that are no names": (lambda: hand_made(extension(NAMES, b"\x30\x02\x86")), CsrDefect.MALFORMED),
}
KEYS: dict[str, tuple[Callable[[], bytes], str]] = {
    "RSA 1024": (lambda: built(rsa.generate_private_key(65537, 1024), NAME), "RSA keys are not accepted"),
    "RSA 2048": (lambda: built(rsa.generate_private_key(65537, 2048), NAME), "RSA keys are not accepted"),
    "P-224": (lambda: built(ec.generate_private_key(ec.SECP224R1()), NAME), "curve secp224r1"),
    "secp256k1": (lambda: built(ec.generate_private_key(ec.SECP256K1()), NAME), "curve secp256k1"),
    "DSA": (lambda: built(dsa.generate_private_key(1024), NAME), "DSA keys are not accepted"),
    "a key that cannot sign": (
        lambda: hand_made(ONE, public_key=spki(x25519.X25519PrivateKey.generate())),
        "X25519 keys are not accepted",
    ),
    "outside the profile": (lambda: make_csr(generate_private_key(KeyAlgorithm.ML_DSA_65), ID), "ml-dsa-65 keys"),
}


@pytest.mark.parametrize("name", DEFECTS)
async def test_a_defect_has_its_own_name_and_no_certificate(name):
    make, defect = DEFECTS[name]
    refusal = await _refused(make())
    assert isinstance(refusal, InvalidCsr)
    assert refusal.code is Code.INVALID_INPUT
    assert refusal.defect is defect


@pytest.mark.parametrize("name", KEYS)
async def test_a_wrong_key_is_named(name):
    make, sentence = KEYS[name]
    refusal = await _refused(make())
    assert isinstance(refusal, UnsupportedKey)
    assert sentence in refusal.message
    assert "P-256" in refusal.fix or "ec-p256" in refusal.fix


def test_each_defect_of_a_leaf_has_a_case():
    of_cas = {CsrDefect.WRONG_NAME, CsrDefect.NOT_A_CA, CsrDefect.UNWANTED_EXTENSION}
    assert {defect for _, defect in DEFECTS.values()} == set(CsrDefect) - of_cas


@pytest.mark.parametrize("reference", [GOOD, hand_made(ONE)])
def test_the_good_one_beside_them_is_read(reference):
    assert verify_csr(reference, CLASSICAL).spki == spki(KEY)


@pytest.mark.parametrize(
    "names",
    [(NAME,), (OTHER,), (x509.DNSName("a.example"), NAME), (x509.DNSName("a.example"),), ()],
)
def test_names_that_harm_nobody_are_ignored(names):
    assert verify_csr(built(KEY, *names), CLASSICAL).spki == spki(KEY)


async def _refused(der: bytes) -> Error:
    ca, log = TestCA(), MemoryLog()
    issuer = Issuer({"": ca.authority}, ca.jwt_key, log, FakeClock(), SeededEntropy(), Instance("one", "0"))
    wanted = X509Request(csr_der=der, spiffe_id=ID, door=Door.SPIRE_API, caller="test")
    good = X509Request(csr_der=GOOD, spiffe_id=ID, door=Door.SPIRE_API, caller="test")
    refusal, served = await issuer.issue_x509([wanted, good])
    assert isinstance(refusal, Error)
    assert not isinstance(served, Error)
    assert log.size == 1
    return refusal
