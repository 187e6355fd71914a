"""CRLs and OCSP answers: judged by OpenSSL, by cryptography, and read back by ourselves."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given
from hypothesis import strategies as st

from eastwest.errors import Error, InvalidInput
from eastwest.pki.chain import UntrustedChain, dump_chain_pem
from eastwest.pki.lent import lend
from eastwest.pki.profile import BACKDATE, Usage
from eastwest.pki.revocation import (
    MAX_NONCE_BYTES,
    InvalidRevocationUrl,
    OcspRefusal,
    Reason,
    RevocationUrls,
    Revoked,
    build_crl,
    build_ocsp_answer,
    parse_crl,
    read_ocsp_request,
    refuse_ocsp,
    shard_end,
    shard_of,
)
from eastwest.pki.signer import KeyAlgorithm, SoftwareSigner, SubjectKey, generate_private_key
from eastwest.pki.template import encode_revocation, encode_validity
from eastwest.testing import TestCA

CA = TestCA(lifetime=timedelta(days=60))
NOW = CA.now
URLS = RevocationUrls("http://crl.saas.example/pki")
SHARD = shard_of(NOW + timedelta(days=30))
AUTHORITIES = {algorithm: TestCA(algorithm=algorithm).authority for algorithm in KeyAlgorithm}


def leaf(serial, authority=CA.authority):
    end = NOW + timedelta(days=30)
    template = authority.template(frozenset(Usage))
    unsigned = template.to_be_signed(
        serial,
        encode_validity(NOW - BACKDATE, end),
        SubjectKey.of(generate_private_key(KeyAlgorithm.EC_P256).public_key()),
        "spiffe://saas.example/device/7",
        (),
        encode_revocation(URLS.crl(authority.key_id, shard_of(end)), URLS.ocsp),
    )
    return template.wrap(unsigned, authority.signer.sign(unsigned))


class TestShards:
    def test_a_shard_is_a_calendar_week(self):
        assert shard_of(datetime(2026, 1, 5, tzinfo=UTC)) == "20260105"
        assert shard_of(datetime(2026, 1, 11, 23, 59, 59, tzinfo=UTC)) == "20260105"
        assert shard_of(datetime(2026, 1, 12, tzinfo=UTC)) == "20260112"
        assert shard_end("20260105") == datetime(2026, 1, 12, tzinfo=UTC)

    @given(st.integers(1_577_836_800, 3_471_292_800))
    def test_a_certificate_ends_within_its_shard(self, seconds):
        moment = datetime.fromtimestamp(seconds, UTC)
        end = shard_end(shard_of(moment))
        assert end - timedelta(days=7) <= moment < end

    @pytest.mark.parametrize("text", ["", "20260106", "2026-01-05", "99999999", "../../etc", "20260105x"])
    def test_what_is_no_shard(self, text):
        with pytest.raises(InvalidInput, match="not a CRL shard"):
            shard_end(text)


class TestUrls:
    def test_the_addresses(self):
        assert URLS.ocsp == "http://crl.saas.example/pki/ocsp"
        assert URLS.crl("ab", "20260105") == "http://crl.saas.example/pki/crl/ab/20260105.crl"

    @pytest.mark.parametrize("base", ["", "ftp://a", "http://a/", "http://a b", "http://a?x", "http://", "http://ä"])
    def test_what_cannot_be_a_base(self, base):
        with pytest.raises(InvalidRevocationUrl):
            RevocationUrls(base)


class TestCrl:
    @pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
    def test_what_is_built_is_read_back(self, algorithm):
        authority = AUTHORITIES[algorithm]
        revoked = {
            serial: Revoked(serial, NOW - timedelta(hours=serial), reason)
            for serial, reason in enumerate(Reason, start=5)
        }
        der = build_crl(authority, SHARD, revoked.values(), 42, NOW, URLS)
        crl = parse_crl(der, authority.certificate, NOW)
        assert crl.revoked == revoked
        assert (crl.number, crl.this_update, crl.next_update) == (42, NOW, NOW + timedelta(hours=24))
        assert crl.url == URLS.crl(authority.key_id, SHARD)
        assert x509.load_der_x509_crl(der).is_signature_valid(authority.signer.public_key)

    def test_an_empty_one(self):
        crl = parse_crl(build_crl(CA.authority, SHARD, [], 1, NOW, URLS), CA.authority.certificate, NOW)
        assert crl.revoked == {}

    def test_openssl_refuses_the_revoked_leaf_and_takes_the_other(self, tmp_path):
        der = build_crl(CA.authority, SHARD, [Revoked(1001, NOW, Reason.KEY_COMPROMISE)], 7, NOW, URLS)
        (tmp_path / "crl.pem").write_bytes(x509.load_der_x509_crl(der).public_bytes(Encoding.PEM))
        (tmp_path / "root").write_bytes(dump_chain_pem(CA.roots))
        (tmp_path / "ca").write_bytes(dump_chain_pem(CA.authority.chain))
        for serial, wanted in ((1001, "certificate revoked"), (1002, "leaf: OK")):
            (tmp_path / "leaf").write_bytes(dump_chain_pem([leaf(serial)]))
            command = ["openssl", "verify", "-x509_strict", "-crl_check", "-CRLfile", "crl.pem", "-CAfile", "root"]
            command += ["-untrusted", "ca", "-attime", str(int(NOW.timestamp()) + 60), "leaf"]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert wanted in done.stdout + done.stderr

    def test_openssl_does_not_take_another_shard_for_it(self, tmp_path):
        other = shard_of(NOW + timedelta(days=50))
        der = build_crl(CA.authority, other, [], 7, NOW, URLS)
        (tmp_path / "crl.pem").write_bytes(x509.load_der_x509_crl(der).public_bytes(Encoding.PEM))
        (tmp_path / "root").write_bytes(dump_chain_pem(CA.roots))
        (tmp_path / "ca").write_bytes(dump_chain_pem(CA.authority.chain))
        (tmp_path / "leaf").write_bytes(dump_chain_pem([leaf(1001)]))
        command = ["openssl", "verify", "-crl_check", "-CRLfile", "crl.pem", "-CAfile", "root", "-untrusted", "ca"]
        command += ["-attime", str(int(NOW.timestamp()) + 60), "leaf"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode
        assert "different crl scope" in done.stderr.lower()

    def test_strangers_and_old_ones_are_refused(self):
        der = build_crl(CA.authority, SHARD, [], 1, NOW, URLS)
        with pytest.raises(UntrustedChain, match="not signed by the CA"):
            parse_crl(der, CA.new_authority().certificate, NOW)
        for moment in (NOW - timedelta(seconds=1), NOW + timedelta(hours=25)):
            with pytest.raises(UntrustedChain, match="not in force"):
                parse_crl(der, CA.authority.certificate, moment)
        with pytest.raises(InvalidInput):
            parse_crl(b"noise", CA.authority.certificate, NOW)

    @given(st.integers(0, 10_000), st.integers(0, 255))
    def test_a_changed_byte_never_passes(self, place, value):
        good = build_crl_once()
        der = bytearray(good)
        der[place % len(der)] = value
        if bytes(der) == good:
            return
        with pytest.raises(Error):
            parse_crl(bytes(der), CA.authority.certificate, NOW)


_ONCE: list[bytes] = []


def build_crl_once():
    if not _ONCE:
        _ONCE.append(build_crl(CA.authority, SHARD, [Revoked(9, NOW)], 1, NOW, URLS))
    return _ONCE[0]


class TestOcsp:
    def ask(self, serial=1001, authority=CA.authority, digest=None, nonce=b"0123456789abcdef"):
        certificate = x509.load_der_x509_certificate(leaf(serial, authority))
        builder = ocsp.OCSPRequestBuilder().add_certificate(
            certificate, authority.certificate, digest or hashes.SHA256()
        )
        if nonce:
            builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
        return builder.build().public_bytes(Encoding.DER)

    @pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
    @pytest.mark.parametrize("digest", [hashes.SHA1(), hashes.SHA256()])
    def test_each_state(self, algorithm, digest):
        authority = AUTHORITIES[algorithm]
        query = read_ocsp_request(self.ask(authority=authority, digest=digest))
        assert query.serial == 1001
        assert query.is_for(authority)
        assert not query.is_for(TestCA().authority)
        revoked = Revoked(1001, NOW - timedelta(hours=1), Reason.SUPERSEDED)
        for state, known, wanted in (
            (None, True, ocsp.OCSPCertStatus.GOOD),
            (revoked, True, ocsp.OCSPCertStatus.REVOKED),
            (None, False, ocsp.OCSPCertStatus.UNKNOWN),
            (revoked, False, ocsp.OCSPCertStatus.UNKNOWN),
        ):
            answer = ocsp.load_der_ocsp_response(build_ocsp_answer(query, authority, state, NOW, known=known))
            assert answer.certificate_status is wanted
            assert answer.serial_number == 1001
            assert answer.this_update_utc == NOW
            assert answer.next_update_utc == NOW + timedelta(hours=1)
            assert answer.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"0123456789abcdef"
            if wanted is ocsp.OCSPCertStatus.REVOKED:
                assert answer.revocation_time_utc == revoked.revoked_at
                assert answer.revocation_reason is x509.ReasonFlags.superseded

    def test_openssl_believes_the_answer(self, tmp_path):
        (tmp_path / "root").write_bytes(dump_chain_pem(CA.roots))
        (tmp_path / "ca").write_bytes(dump_chain_pem(CA.authority.chain))
        (tmp_path / "leaf").write_bytes(dump_chain_pem([leaf(1001)]))
        request = ["openssl", "ocsp", "-issuer", "ca", "-cert", "leaf", "-reqout", "request", "-no_nonce"]
        subprocess.run(request, cwd=tmp_path, capture_output=True, check=True)
        query = read_ocsp_request((tmp_path / "request").read_bytes())
        assert query.is_for(CA.authority)
        now = datetime.now(UTC)
        answer = build_ocsp_answer(query, CA.authority, Revoked(1001, now, Reason.KEY_COMPROMISE), now)
        (tmp_path / "answer").write_bytes(answer)
        command = ["openssl", "ocsp", "-issuer", "ca", "-cert", "leaf", "-respin", "answer", "-no_nonce"]
        command += ["-CAfile", "root", "-verify_other", "ca", "-attime", str(int(NOW.timestamp()) + 60)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "Response verify OK" in done.stderr
        assert "leaf: revoked" in done.stdout
        assert "keyCompromise" in done.stdout

    def test_an_answer_without_a_nonce_has_none(self):
        query = read_ocsp_request(self.ask(nonce=None))
        answer = ocsp.load_der_ocsp_response(build_ocsp_answer(query, CA.authority, None, NOW))
        assert len(answer.extensions) == 0

    def test_bad_requests(self):
        for der in (b"", b"noise", bytes(5000), self.ask(digest=hashes.SHA512())):
            with pytest.raises(InvalidInput):
                read_ocsp_request(der)
        with pytest.raises(InvalidInput, match="nonce"):
            read_ocsp_request(self.ask(nonce=bytes(MAX_NONCE_BYTES + 1)))

    @given(st.binary(max_size=300))
    def test_noise_is_refused(self, noise):
        with pytest.raises(InvalidInput):
            read_ocsp_request(noise)

    @pytest.mark.parametrize("refusal", list(OcspRefusal))
    def test_refusals(self, refusal):
        assert ocsp.load_der_ocsp_response(refuse_ocsp(refusal)).response_status is refusal.value


def test_a_key_that_is_lent_shows_nothing():
    for algorithm in KeyAlgorithm:
        lent = lend(SoftwareSigner(generate_private_key(algorithm)))
        for show in ("private_bytes", "private_bytes_raw", "private_numbers", "__copy__", "__reduce__"):
            with pytest.raises(TypeError, match="cannot be seen"):
                getattr(lent, show)()
