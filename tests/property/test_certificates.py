"""Certificates under generated input: the template against the reference encoder, and requests bent out of shape."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.errors import Error
from eastwest.pki.chain import MalformedSvid, verify_chain
from eastwest.pki.csr import InvalidCsr, make_csr, verify_csr
from eastwest.pki.jwks import MalformedBundle, export_bundle, parse_bundle
from eastwest.pki.profile import Usage, check_dns_name
from eastwest.pki.signer import (
    CLASSICAL,
    CURVES,
    HASHES,
    KeyAlgorithm,
    SoftwareSigner,
    SubjectKey,
    generate_private_key,
    verify_signature,
)
from eastwest.pki.template import LeafTemplate, encode_revocation, encode_validity
from eastwest.spiffe.id import SpiffeId
from eastwest.testing import TestCA

ALGORITHMS = list(KeyAlgorithm)
CA = TestCA()
ID = SpiffeId.parse("spiffe://saas.example/prod/billing")


def _issuer(algorithm, names):
    key = generate_private_key(algorithm)
    name = x509.Name([x509.NameAttribute(kind, value) for kind, value in names])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=36500))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, HASHES.get(algorithm))
    )
    return key, certificate


OID = x509.NameOID
ISSUERS = {
    algorithm: [
        _issuer(algorithm, []),
        _issuer(algorithm, [(OID.COUNTRY_NAME, "US"), (OID.ORGANIZATION_NAME, "SPIFFE")]),
        _issuer(algorithm, [(OID.ORGANIZATION_NAME, "Ödland & Söhne"), (OID.COMMON_NAME, "x" * 64)]),
    ]
    for algorithm in ALGORITHMS
}
KEYS = {algorithm: [generate_private_key(algorithm).public_key() for _ in range(4)] for algorithm in ALGORITHMS}

moments = st.datetimes(datetime(2020, 1, 1), datetime(2066, 1, 1)).map(  # noqa: DTZ001
    lambda moment: moment.replace(tzinfo=UTC, microsecond=0)
)
labels = st.text("abcxyz0189-", min_size=1, max_size=24).map(lambda text: f"n{text}9")
dns_names = st.lists(labels, min_size=1, max_size=4).map(lambda parts: ".".join([*parts, "example"]))
# Long ones reach lengths that take two bytes in DER; repetition makes them without drawing each character.
segments = st.text("abcXYZ019._-", min_size=3, max_size=30)
paths = st.tuples(segments, st.integers(1, 64)).map(lambda drawn: f"/{drawn[0]}" * drawn[1])


@settings(max_examples=1200, deadline=None)
@given(
    signing=st.sampled_from(ALGORITHMS),
    issuer=st.integers(0, 2),
    certified=st.sampled_from(ALGORITHMS),
    key=st.integers(0, 3),
    serial=st.integers(1, 2**159 - 1) | st.integers(0, 158).map(lambda bits: 1 << bits),
    start=moments,
    life=st.integers(1, 10 * 365 * 86400),
    path=paths,
    dns=st.lists(dns_names, max_size=3),
    usage=st.sets(st.sampled_from(list(Usage)), min_size=1).map(frozenset),
    places=st.none() | st.tuples(paths, paths),
)
def test_the_template_equals_the_reference_encoder(
    signing, issuer, certified, key, serial, start, life, path, dns, usage, places
):
    issuer_key, issuer_certificate = ISSUERS[signing][issuer]
    public_key = KEYS[certified][key]
    uri, end = f"spiffe://saas.example{path}", start + timedelta(seconds=life)
    template = _template(issuer_certificate, signing, usage)
    places = places and tuple(f"http://crl.example{place}" for place in places)
    revocation = encode_revocation(*places) if places else b""
    ours = template.to_be_signed(serial, encode_validity(start, end), SubjectKey.of(public_key), uri, dns, revocation)
    theirs = _reference(
        issuer_key, issuer_certificate, signing, public_key, serial, start, end, uri, dns, usage, places=places
    )
    assert ours == theirs.tbs_certificate_bytes
    assert template.wrap(ours, theirs.signature) == theirs.public_bytes(Encoding.DER)


@pytest.mark.parametrize("algorithm", sorted(CLASSICAL))
def test_whole_certificates_are_equal_when_signatures_repeat(algorithm):
    key, certificate = ISSUERS[algorithm][1]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    end = start + timedelta(hours=1)
    usage, public_key = frozenset(Usage), KEYS[KeyAlgorithm.EC_P256][0]
    template = _template(certificate, algorithm, usage)
    unsigned = template.to_be_signed(77, encode_validity(start, end), SubjectKey.of(public_key), str(ID), ["a.example"])
    if algorithm is KeyAlgorithm.ED25519:
        signature = key.sign(unsigned)
    else:
        signature = key.sign(unsigned, ec.ECDSA(HASHES[algorithm], deterministic_signing=True))
    theirs = _reference(
        key, certificate, algorithm, public_key, 77, start, end, str(ID), ["a.example"], usage, deterministic=True
    )
    assert template.wrap(unsigned, signature) == theirs.public_bytes(Encoding.DER)


@settings(max_examples=1500, deadline=None)
@given(algorithm=st.sampled_from(ALGORITHMS), data=st.data())
def test_a_mutated_request_is_refused_or_still_proves_its_key(algorithm, data):
    der = bytearray(CSRS[algorithm])
    _mutate(der, data)
    try:
        key = verify_csr(bytes(der), frozenset(KeyAlgorithm))
    except Error:
        return
    # Whatever passes must pass the library's own judgement too, and give the same key.
    csr = x509.load_der_x509_csr(bytes(der))
    assert csr.is_signature_valid
    assert key == SubjectKey.of(csr.public_key())


general_names = st.one_of(
    paths.map(lambda path: x509.UniformResourceIdentifier(f"spiffe://saas.example{path}")),
    dns_names.map(x509.DNSName),
    st.ip_addresses().map(x509.IPAddress),
)


@settings(max_examples=300, deadline=None)
@given(names=st.lists(general_names, max_size=3), critical=st.booleans(), ca=st.none() | st.booleans())
def test_what_a_request_wishes_is_judged_alike_by_the_short_way_and_the_long(names, critical, ca):
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=critical)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=critical)
    der = builder.sign(REQUESTER, HASHES[KeyAlgorithm.EC_P256]).public_bytes(Encoding.DER)
    kinds = [type(name) for name in names]
    harmful = ca or x509.IPAddress in kinds or kinds.count(x509.UniformResourceIdentifier) > 1
    if harmful:
        with pytest.raises(InvalidCsr):
            verify_csr(der, CLASSICAL)
    else:
        assert verify_csr(der, CLASSICAL) == SubjectKey.of(REQUESTER.public_key())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600))
def test_noise_is_no_request(noise):
    with pytest.raises(Error):
        verify_csr(noise, frozenset(KeyAlgorithm))


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_a_mutated_chain_proves_nothing_else(data):
    svid, roots = SVID, CA.roots
    leaf = bytearray(svid.chain[0])
    _mutate(leaf, data)
    try:
        proven = verify_chain([bytes(leaf), *svid.chain[1:]], roots, CA.now)
    except Error:
        return
    assert (proven.id, proven.not_after, proven.serial) == (svid.id, svid.not_after, svid.serial)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_bundle_is_read_or_refused(data):
    raw = bytearray(export_bundle(CA.bundle))
    _mutate(raw, data)
    try:
        parse_bundle(CA.trust_domain, bytes(raw))
    except MalformedBundle:
        return


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_no_certificate(noise):
    with pytest.raises(MalformedSvid):
        verify_chain([noise], CA.roots, CA.now)


@settings(max_examples=200, deadline=None)
@given(name=dns_names)
def test_generated_dns_names_are_names(name):
    check_dns_name(name)


@settings(max_examples=100, deadline=None)
@given(algorithm=st.sampled_from(ALGORITHMS), message=st.binary(max_size=2000))
def test_signers_sign_what_they_are_given(algorithm, message):
    signer = SIGNERS[algorithm]
    verify_signature(signer.public_key, signer.sign(message), message)


def _mutate(raw, data):
    for _ in range(data.draw(st.integers(1, 3), label="mutations")):
        position = data.draw(st.integers(0, len(raw) - 1), label="position")
        match data.draw(st.sampled_from(["flip", "set", "cut", "insert", "truncate"]), label="kind"):
            case "flip":
                raw[position] ^= 1 << data.draw(st.integers(0, 7))
            case "set":
                raw[position] = data.draw(st.integers(0, 255))
            case "cut":
                raw[position:] = raw[position + 1 :] or b"\0"
            case "insert":
                raw.insert(position, data.draw(st.integers(0, 255)))
            case "truncate":
                del raw[max(1, position) :]


def _template(certificate, algorithm, usage):
    found = TEMPLATES.get((certificate, usage))
    if found is None:
        found = TEMPLATES[certificate, usage] = LeafTemplate(certificate, algorithm, usage)
    return found


def _reference(
    issuer_key, issuer, signing, public_key, serial, start, end, uri, dns, usage, *, deterministic=False, places=None
):
    subject = [x509.NameAttribute(OID.COMMON_NAME, name) for name in dns[:1] if len(name) <= 64]
    purposes = {
        Usage.SERVER: x509.ExtendedKeyUsageOID.SERVER_AUTH,
        Usage.CLIENT: x509.ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    flags = dict.fromkeys(
        [
            *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        ],
        False,
    )
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = x509.CertificateBuilder(issuer.subject, x509.Name(subject), public_key, serial)
    builder = builder.not_valid_before(start).not_valid_after(end)
    for extension, critical in (
        (x509.KeyUsage(digital_signature=True, **flags), True),
        (x509.ExtendedKeyUsage([purposes[use] for use in Usage if use in usage]), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
        (
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), *(x509.DNSName(name) for name in dns)]),
            not subject,
        ),
    ):
        builder = builder.add_extension(extension, critical=critical)
    if places:
        crl, answers = map(x509.UniformResourceIdentifier, places)
        builder = builder.add_extension(
            x509.CRLDistributionPoints([x509.DistributionPoint([crl], None, None, None)]), critical=False
        ).add_extension(
            x509.AuthorityInformationAccess([x509.AccessDescription(x509.AuthorityInformationAccessOID.OCSP, answers)]),
            critical=False,
        )
    extra = {"ecdsa_deterministic": True} if deterministic and signing in CURVES else {}
    return builder.sign(issuer_key, HASHES.get(signing), **extra)


TEMPLATES = {}
REQUESTER = generate_private_key(KeyAlgorithm.EC_P256)
SIGNERS = {algorithm: SoftwareSigner(generate_private_key(algorithm)) for algorithm in ALGORITHMS}
CSRS = {algorithm: make_csr(generate_private_key(algorithm), ID) for algorithm in ALGORITHMS}
SVID, _ = CA.svid("/prod/billing", dns_names=("billing.saas.example",))
