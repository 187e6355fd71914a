"""Revocation as the world sees it: recorded, in force, published; judged by openssl and by a stock validator."""

import asyncio
import base64
import subprocess
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from pyhanko_certvalidator import CertificateValidator, ValidationContext
from pyhanko_certvalidator.errors import RevokedError
from revocable_world import DEVICE, URLS, NowClock, World, new_world

from eastwest.entropy import SystemEntropy
from eastwest.errors import FailedPrecondition, LogUnavailable, Unavailable
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import Instance
from eastwest.pki.revocation import MAX_OCSP_REQUEST_BYTES, Reason, shard_of
from eastwest.server.journal import Journal
from eastwest.server.public import revocation
from eastwest.server.public.revocation_http import revocation_app
from eastwest.testing import TestCA


@pytest.fixture
async def world(tmp_path):
    async with new_world(tmp_path) as made:
        yield made


class TestRegister:
    async def test_a_revocable_certificate_says_where_it_is_looked_up(self, world):
        svid = await world.issue()
        leaf = x509.load_der_x509_certificate(svid.chain[0])
        [point] = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        shard = shard_of(svid.not_after)
        assert [name.value for name in point.full_name] == [URLS.crl(world.authority.key_id, shard)]
        [found] = await world.find()
        assert found.revoked is None
        assert found.issued.der == svid.chain[0]
        assert (found.issued.serial, found.issued.shard, found.issued.profile) == (svid.serial, shard, "device")
        assert (found.issued.node, found.issued.entry_id) == ("spiffe://saas.example/spire/agent/x", "e-1")

    async def test_short_lived_ones_are_not_remembered(self, world):
        svid = await world.issue(profile="workload")
        leaf = x509.load_der_x509_certificate(svid.chain[0])
        with pytest.raises(x509.ExtensionNotFound):
            leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints)
        assert await world.find() == []

    async def test_what_cannot_be_remembered_is_not_released(self, world):
        class Full:
            async def add(self, certificates):
                raise Unavailable(f"no room for {len(certificates)}")

        world.issuer._register = Full()
        with pytest.raises(Unavailable, match="no room for 1"):
            await world.issue()
        assert await world.logged("x509_svid.issued") == []

    async def test_without_an_address_such_a_profile_is_refused(self, world):
        issuer = Issuer(
            {"": world.authority},
            world.ca.jwt_key,
            world.log,
            world.clock,
            SystemEntropy(),
            Instance("one", "0"),
            [DEVICE],
        )
        world.issuer = issuer
        refused = await world.issue()
        assert isinstance(refused, FailedPrecondition)
        assert "revocation_url" in refused.fix
        with pytest.raises(FailedPrecondition, match="nothing is there to remember them"):
            Issuer(
                {"": world.authority},
                world.ca.jwt_key,
                world.log,
                world.clock,
                SystemEntropy(),
                Instance("one", "0"),
                revocation=URLS,
            )

    async def test_pages_and_filters(self, world):
        for number in range(5):
            await world.issue(f"/edge/pump-{number % 2}", ttl=86_400 * (number + 1))
        await world.revoke(await world.issue("/edge/other"))
        seen, after = [], None
        while page := await world.find(limit=2, after=after):
            seen += page
            last = page[-1].issued
            after = (int(last.not_after.timestamp()), last.issuer_key_id, f"{last.serial:x}")
        assert len(seen) == 6
        assert [each.issued.not_after for each in seen] == sorted(each.issued.not_after for each in seen)
        assert len(await world.find(spiffe_id="spiffe://saas.example/edge/pump-0")) == 3
        [revoked] = await world.find(only_revoked=True)
        assert revoked.issued.spiffe_id.path == "/edge/other"


class TestRevoke:
    async def test_recorded_in_force_published(self, world):
        good, bad = await world.issue(), await world.issue("/edge/pump-2")
        assert list(await world.crl(bad)) == []
        [done] = await world.revoke(bad)
        assert done.revoked.reason is Reason.KEY_COMPROMISE
        crl = await world.crl(bad)
        assert [each.serial_number for each in crl] == [bad.serial]
        reason = crl[0].extensions.get_extension_for_class(x509.CRLReason).value.reason
        assert reason is x509.ReasonFlags.key_compromise
        assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 2
        [record] = await world.logged("certificate.revoked")
        assert (record["serial"], record["reason"], record["actor"]) == (
            f"{bad.serial:x}",
            "key-compromise",
            "unix:uid:0",
        )
        assert [entry["number"] for entry in await world.logged("crl.published")] == [1, 2]
        assert (await world.status(good)).certificate_status is ocsp.OCSPCertStatus.GOOD
        assert (await world.status(bad)).certificate_status is ocsp.OCSPCertStatus.REVOKED

    async def test_a_revocation_is_final(self, world):
        svid = await world.issue()
        [first] = await world.revoke(svid)
        world.clock.advance(60)
        [second] = await world.revoke(svid, reason=Reason.SUPERSEDED)
        assert second == first
        assert len(await world.logged("certificate.revoked")) == 1
        assert len(await world.logged("crl.published")) == 1

    async def test_no_log_no_revocation(self, world):
        svid = await world.issue()

        class Broken:
            async def append(self, entries):
                raise LogUnavailable(f"cannot take {len(entries)}")

        world.revocations._journal = Journal(Broken(), world.clock)
        with pytest.raises(LogUnavailable):
            await world.revoke(svid)
        [found] = await world.find()
        assert found.revoked is None

    async def test_a_crash_between_revocation_and_crl_is_made_good(self, world):
        svid = await world.issue()
        assert list(await world.crl(svid)) == []
        # As far as the server got before it died.
        await world.store.revoke([(world.authority.key_id, svid.serial)], world.clock.now(), Reason.SUPERSEDED)
        world.revocations = world.restarted()
        await world.revocations.load()
        assert [each.serial_number for each in await world.crl(svid)] == [svid.serial]
        assert (await world.status(svid)).certificate_status is ocsp.OCSPCertStatus.REVOKED

    async def test_the_number_goes_on_after_a_restart_and_nothing_is_signed_again(self, world):
        svid = await world.issue()
        await world.revoke(svid)
        before = await world.revocations.crl(world.authority.key_id, shard_of(svid.not_after))
        world.revocations = world.restarted()
        await world.revocations.load()
        assert await world.revocations.crl(world.authority.key_id, shard_of(svid.not_after)) == before
        await world.revoke(await world.issue())
        assert (await world.revocations.crl(world.authority.key_id, shard_of(svid.not_after))).number == 2

    async def test_many_at_once_share_a_signature(self, world):
        svids = [await world.issue(f"/edge/pump-{number}") for number in range(40)]
        await asyncio.gather(*(world.revoke(svid) for svid in svids))
        crl = await world.crl(svids[0])
        assert {each.serial_number for each in crl} == {svid.serial for svid in svids}
        assert len(await world.logged("crl.published")) <= 4

    async def test_shards_are_apart(self, world):
        soon, late = await world.issue(ttl=86_400), await world.issue(ttl=86_400 * 60)
        await world.revoke(soon)
        assert [each.serial_number for each in await world.crl(soon)] == [soon.serial]
        assert list(await world.crl(late)) == []

    async def test_a_former_ca_still_revokes_and_a_lost_one_says_so(self, world):
        svid = await world.issue()
        newer = world.ca.new_authority()
        world.issuer.replace(authorities={"": newer})
        world.authorities[newer.key_id] = newer
        await world.revoke(svid)
        assert [each.serial_number for each in await world.crl(svid)] == [svid.serial]
        other = await world.issue("/edge/pump-3")
        del world.authorities[newer.key_id]
        with pytest.raises(FailedPrecondition, match="has no key here any more"):
            await world.revoke(other)
        assert [each.issued.serial for each in await world.find(only_revoked=True)] == [svid.serial]


class TestKeeping:
    async def test_a_crl_is_renewed_at_half_life_and_goes_with_its_last_certificate(self, world):
        svid = await world.issue(ttl=86_400 * 3)
        await world.revoke(svid)
        place = (world.authority.key_id, shard_of(svid.not_after))
        assert await world.revocations._round() == revocation.LONGEST_WAIT
        assert len(await world.store.crls()) == 1
        world.clock.advance(12 * 3600)
        await world.revocations._round()
        assert (await world.revocations.crl(*place)).number == 2
        # Ended, it is listed once more (RFC 5280, 3.3), and then forgotten.
        world.clock.advance(3 * 86_400)
        await world.revocations._round()
        listed = x509.load_der_x509_crl((await world.revocations.crl(*place)).der)
        assert [each.serial_number for each in listed] == [svid.serial]
        assert (await world.status(svid)).certificate_status is ocsp.OCSPCertStatus.UNKNOWN
        world.clock.advance(86_400)
        await world.revocations._round()
        assert await world.revocations.crl(*place) is None
        assert await world.store.crls() == []
        assert await world.store.one(world.authority.key_id, svid.serial) is None

    async def test_it_goes_on_after_a_failure(self, world):
        svid = await world.issue()
        good, failing = world.revocations._journal, [2]

        class Flaky:
            async def append(self, entries):
                if failing[0]:
                    failing[0] -= 1
                    raise LogUnavailable("the disk is full")
                return await world.log.append(entries)

        world.revocations._journal = Journal(Flaky(), world.clock)
        task = asyncio.create_task(world.revocations.keep())
        while not await world.store.crls():
            world.clock.advance(revocation.RETRY_SECONDS)
            await asyncio.sleep(0.01)
        task.cancel()
        assert failing == [0]
        assert list(await world.crl(svid)) == []
        assert good is not world.revocations._journal

    async def test_its_life_ends_with_its_issuer(self, world):
        world.authority = world.ca.new_authority(lifetime=timedelta(hours=6))
        world.authorities = {world.authority.key_id: world.authority}
        world.issuer.replace(authorities={"": world.authority})
        svid = await world.issue()
        assert (await world.crl(svid)).next_update_utc <= world.authority.not_after


class TestOcsp:
    async def test_answers_are_kept_until_revocation(self, world):
        svid = await world.issue()
        request = world.request(svid)
        first = await world.revocations.answer(request)
        assert first.max_age == 1800
        world.clock.advance(600)
        again = await world.revocations.answer(request)
        assert again.der == first.der
        assert again.max_age == 1200
        await world.revoke(svid)
        assert (await world.status(svid)).certificate_status is ocsp.OCSPCertStatus.REVOKED
        assert (await world.status(svid, algorithm=hashes.SHA1())).certificate_status is ocsp.OCSPCertStatus.REVOKED

    async def test_an_answer_is_new_before_the_old_one_ends(self, world):
        svid = await world.issue()
        first = await world.revocations.answer(world.request(svid))
        world.clock.advance(1800)
        assert (await world.revocations.answer(world.request(svid))).der != first.der

    async def test_a_nonce_is_repeated_and_never_kept(self, world):
        svid = await world.issue()
        answer = await world.status(svid, nonce=b"n" * 32)
        assert answer.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"n" * 32
        reply = await world.revocations.answer(world.request(svid, nonce=b"m"))
        assert reply.max_age == 0
        for length in (0, 129):
            asked = world.request(svid, nonce=b"x" * length)
            refused = ocsp.load_der_ocsp_response((await world.revocations.answer(asked)).der)
            assert refused.response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST

    async def test_too_many_nonces_get_the_kept_answer(self, world, monkeypatch):
        monkeypatch.setattr(revocation, "SIGNATURES_PER_SECOND", 2.0)
        world.revocations = world.restarted()
        svid = await world.issue()
        await world.status(svid)
        with_nonce = 0
        for number in range(10):
            answer = await world.status(svid, nonce=b"%d" % number)
            with_nonce += any(isinstance(each.value, x509.OCSPNonce) for each in answer.extensions)
        assert with_nonce == 2
        world.clock.advance(1)
        assert (await world.status(svid, nonce=b"x")).extensions

    async def test_nonces_cannot_have_signatures_made_at_will_before_an_answer_is_kept(self, world, monkeypatch):
        monkeypatch.setattr(revocation, "SIGNATURES_PER_SECOND", 2.0)
        world.revocations = world.restarted()
        svid = await world.issue()
        answers = [await world.status(svid, nonce=b"%d" % number) for number in range(6)]
        with_nonce = [any(isinstance(each.value, x509.OCSPNonce) for each in answer.extensions) for answer in answers]
        assert with_nonce == [True, True, False, False, False, False]
        assert len({answer.signature for answer in answers}) == 3

    async def test_unknown_expired_and_strangers(self, world, monkeypatch):
        monkeypatch.setattr(revocation, "SIGNATURES_PER_SECOND", 1.0)
        world.revocations = world.restarted()
        short = await world.issue(profile="workload")
        assert (await world.status(short)).certificate_status is ocsp.OCSPCertStatus.UNKNOWN
        assert (await world.status(short)).response_status is ocsp.OCSPResponseStatus.TRY_LATER
        stranger = World.__new__(World)
        stranger.authority = TestCA(now=world.clock.now()).authority
        asked = World.request(stranger, short)
        refused = ocsp.load_der_ocsp_response((await world.revocations.answer(asked)).der)
        assert refused.response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED

    @pytest.mark.parametrize("noise", [b"", b"\x30\x00", b"GET / HTTP/1.1", b"\x30\x82\xff\xff" + b"\0" * 100])
    async def test_noise(self, world, noise):
        refused = ocsp.load_der_ocsp_response((await world.revocations.answer(noise)).der)
        assert refused.response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


class TestHttp:
    async def test_addresses_and_headers(self, world):
        svid = await world.issue()
        await world.revoke(svid)
        app = revocation_app(world.revocations, URLS, world.clock)
        path = URLS.crl(world.authority.key_id, shard_of(svid.not_after)).removeprefix("http://pki.saas.example")
        request = world.request(svid)
        encoded = base64.b64encode(request).decode()

        def ask(method, where, content=b""):
            # Starlette's client has an event loop of its own; the store belongs to this one.
            return asyncio.run_coroutine_threadsafe(_asgi(app, method, where, content), loop).result(10)

        loop = asyncio.get_running_loop()
        status, headers, body = await asyncio.to_thread(ask, "GET", path)
        assert (status, headers["content-type"]) == (200, "application/pkix-crl")
        assert headers["cache-control"].startswith("public, max-age=300")
        assert x509.load_der_x509_crl(body)[0].serial_number == svid.serial
        for where, content in (("/devices/ocsp", request), (f"/devices/ocsp/{encoded}", b"")):
            status, headers, body = await asyncio.to_thread(ask, "POST" if content else "GET", where, content)
            assert (status, headers["content-type"]) == (200, "application/ocsp-response")
            assert ocsp.load_der_ocsp_response(body).certificate_status is ocsp.OCSPCertStatus.REVOKED
        bad = [
            ("GET", "/devices/crl/0123/20260101.crl", b"", 404),
            ("GET", f"/devices/crl/{world.authority.key_id}/20200101.crl", b"", 404),
            ("GET", f"/devices/crl/{world.authority.key_id}/..%2f.crl", b"", 404),
            ("GET", "/devices/ocsp/not*base64", b"", 400),
            ("POST", "/devices/ocsp", b"x" * (MAX_OCSP_REQUEST_BYTES + 1), 413),
            ("GET", "/crl", b"", 404),
        ]
        for method, where, content, expected in bad:
            status, _, _ = await asyncio.to_thread(ask, method, where, content)
            assert status == expected, where


async def _asgi(app, method, path, content):
    """One request straight into the application."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-length", str(len(content)).encode())],
        "server": ("test", 80),
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }
    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(part.get("body", b"") for part in sent[1:])


async def test_openssl_and_a_stock_validator_agree(tmp_path):
    async with new_world(tmp_path, NowClock()) as world:
        good, bad = await world.issue(), await world.issue("/edge/pump-2")
        await world.revoke(bad)
        files = {"root": world.ca.root, "ca": world.authority.chain[0], "good": good.chain[0], "bad": bad.chain[0]}
        for name, der in files.items():
            pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
            (tmp_path / f"{name}.pem").write_bytes(pem)
        crl = await world.crl(bad)
        (tmp_path / "crl.pem").write_bytes(crl.public_bytes(Encoding.PEM))

        def openssl(*words):
            done = subprocess.run(
                ["openssl", *map(str, words)], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
            )
            return done.returncode, done.stdout + done.stderr

        status, told = openssl("crl", "-in", "crl.pem", "-CAfile", "ca.pem", "-noout", "-text")
        assert status == 0, told
        assert "verify OK" in told
        assert "X509v3 Issuing Distribution Point: critical" in told
        check = [
            "verify",
            "-x509_strict",
            "-crl_check",
            "-CAfile",
            "root.pem",
            "-untrusted",
            "ca.pem",
            "-CRLfile",
            "crl.pem",
        ]
        assert openssl(*check, "good.pem")[0] == 0, openssl(*check, "good.pem")
        status, told = openssl(*check, "bad.pem")
        assert status != 0
        assert "certificate revoked" in told

        for svid, verdict in ((good, "good"), (bad, "revoked")):
            name = "good" if svid is good else "bad"
            asked = ["ocsp", "-issuer", "ca.pem", "-cert", f"{name}.pem", "-no_nonce"]
            assert openssl(*asked, "-reqout", "request.der")[0] == 0
            reply = await world.revocations.answer((tmp_path / "request.der").read_bytes())
            (tmp_path / "reply.der").write_bytes(reply.der)
            status, told = openssl(
                *asked,
                "-reqin",
                "request.der",
                "-respin",
                "reply.der",
                "-CAfile",
                "root.pem",
                "-verify_other",
                "ca.pem",
            )
            assert status == 0, told
            assert "Response verify OK" in told
            assert f"{name}.pem: {verdict}" in told
            assert ("Reason: keyCompromise" in told) is (svid is bad)

        await asyncio.to_thread(stock_validator, world, good, bad, crl)


def stock_validator(world, good, bad, crl):
    from asn1crypto import crl as asn1_crl
    from asn1crypto import x509 as asn1_x509

    def judge(svid):
        context = ValidationContext(
            trust_roots=[asn1_x509.Certificate.load(world.ca.root)],
            crls=[asn1_crl.CertificateList.load(crl.public_bytes(Encoding.DER))],
            revocation_mode="soft-fail",
            allow_fetching=False,
        )
        validator = CertificateValidator(
            asn1_x509.Certificate.load(svid.chain[0]),
            [asn1_x509.Certificate.load(der) for der in svid.chain[1:]],
            validation_context=context,
        )
        return asyncio.run(validator.async_validate_usage({"digital_signature"}))

    assert judge(good)
    with pytest.raises(RevokedError, match=r"(?i)revoked"):
        judge(bad)
