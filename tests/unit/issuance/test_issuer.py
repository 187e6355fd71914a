from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from datetime import timedelta

import pytest
from cryptography import x509

from eastwest.errors import (
    Error,
    FailedPrecondition,
    InvalidInput,
    LogUnavailable,
    NotFound,
    PermissionDenied,
)
from eastwest.issuance.issuer import MAX_BATCH, Issuer
from eastwest.issuance.request import Instance, JwtRequest, X509Request
from eastwest.log.entry import decode
from eastwest.pki.chain import verify_chain
from eastwest.pki.csr import InvalidCsr, make_csr
from eastwest.pki.jwt import JwtSigningKey, validate
from eastwest.pki.profile import WORKLOAD, Door, LifetimeConfig, NamesConfig, Profile, ProfileConfig, ProfileViolation
from eastwest.pki.signer import (
    CLASSICAL,
    KeyAlgorithm,
    SoftwareSigner,
    SubjectKey,
    UnsupportedKey,
    generate_private_key,
)
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.svid import X509Svid
from eastwest.testing import FakeClock, SeededEntropy, TestCA

ID = SpiffeId.parse("spiffe://saas.example/prod/billing")
AGENT_ID = "spiffe://saas.example/spire/agent/join_token/1"
KEY = generate_private_key(KeyAlgorithm.EC_P256)
CSR = make_csr(KEY, ID)


class Log:
    """A recorder in memory that can be told to fail, or to make its caller wait."""

    def __init__(self):
        self.entries = []
        self.calls = 0
        self.failing = False
        self.open = asyncio.Event()
        self.open.set()

    async def append(self, entries):
        self.calls += 1
        if self.failing:
            raise LogUnavailable("the disk is full")
        await self.open.wait()
        first = len(self.entries)
        self.entries += entries
        return range(first, len(self.entries))


@pytest.fixture
def ca():
    return TestCA()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def issuer(ca, clock, log):
    return Issuer({"": ca.authority}, ca.jwt_key, log, clock, SeededEntropy(), Instance("one", "0.1.0+abc"))


def request(**changes):
    fields = {"csr_der": CSR, "spiffe_id": ID, "door": Door.SPIRE_API, "caller": AGENT_ID, "node": AGENT_ID}
    return X509Request(**fields | changes)


def jwt_request(**changes):
    fields = {"spiffe_id": ID, "audience": ("db",), "door": Door.WORKLOAD_API, "caller": AGENT_ID}
    return JwtRequest(**fields | changes)


async def only(issuer, **changes):
    (result,) = await issuer.issue_x509([request(**changes)])
    if isinstance(result, Error):
        raise result
    return result


class TestX509:
    async def test_an_svid_verifies_and_is_for_the_requested_key(self, issuer, ca, clock):
        svid = await only(issuer)
        assert verify_chain(svid.chain, ca.roots, clock.now(), ca.trust_domain) == svid
        leaf = x509.load_der_x509_certificate(svid.chain[0])
        assert leaf.public_key() == KEY.public_key()
        assert svid.not_before == clock.now() - timedelta(seconds=30)
        assert svid.not_after == clock.now() + timedelta(hours=1)

    @pytest.mark.parametrize("algorithm", sorted(CLASSICAL))
    async def test_each_key_type_of_the_profile(self, issuer, ca, clock, algorithm):
        svid = await only(issuer, csr_der=make_csr(generate_private_key(algorithm), ID))
        verify_chain(svid.chain, ca.roots, clock.now())

    async def test_what_the_request_names_is_ignored(self, issuer, ca):
        other = ca.trust_domain.id("/prod/admin")
        svid = await only(issuer, csr_der=make_csr(KEY, other))
        assert svid.id == ID
        leaf = x509.load_der_x509_certificate(svid.chain[0])
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [name.value for name in names] == [str(ID)]

    async def test_dns_names_come_from_the_entry(self, issuer):
        svid = await only(issuer, dns_names=("billing.saas.example", "billing"))
        leaf = x509.load_der_x509_certificate(svid.chain[0])
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert names.value.get_values_for_type(x509.DNSName) == ["billing.saas.example", "billing"]
        assert leaf.subject.rfc4514_string() == "CN=billing.saas.example"
        assert not names.critical

    async def test_a_first_dns_name_too_long_for_a_subject(self, issuer, ca, clock):
        long = ".".join(["a" * 40, "b" * 40, "example"])
        svid = await only(issuer, dns_names=(long, "billing"))
        leaf = x509.load_der_x509_certificate(svid.chain[0])
        assert leaf.subject == x509.Name([])
        verify_chain(svid.chain, ca.roots, clock.now())

    async def test_the_entries_of_a_call_share_its_name_and_the_policy_in_force(self, issuer, log):
        issuer.replace(policy_version="v7")
        await issuer.issue_x509([request(), request()])
        await issuer.issue_x509([request()])
        await issuer.issue_jwt(jwt_request())
        bodies = [decode(raw).body for raw in log.entries]
        assert [body["policy_version"] for body in bodies] == ["v7"] * 4
        first, second, third, fourth = (body["request"] for body in bodies)
        assert first == second
        assert len({first, third, fourth}) == 3

    async def test_the_entry_tells_everything_but_secrets(self, issuer, log, clock, ca):
        evidence = {"selectors": ["unix:uid:1000"], "attestor": "unix"}
        svid = await only(
            issuer,
            entry_id="e-1",
            entry_revision=3,
            evidence=evidence,
            dns_names=("billing.saas.example",),
            ttl=600,
            caller_kind="agent",
            previous_serial=0xABC,
        )
        (raw,) = log.entries
        entry = decode(raw)
        leaf = svid.chain[0]
        assert entry.kind == "x509_svid.issued"
        assert re.fullmatch("[0-9a-f]{16}", entry.body["request"])
        assert entry.body == {
            "time": "2026-01-05T12:00:00.000000Z",
            "actor": AGENT_ID,
            "subject": str(ID),
            "caller_kind": "agent",
            "policy_version": "",
            "previous_serial": "abc",
            "request": entry.body["request"],
            "trust_domain": "saas.example",
            "authority": "one",
            "authority_build": "0.1.0+abc",
            "door": "spire-api",
            "profile": "workload",
            "node": AGENT_ID,
            "entry_id": "e-1",
            "entry_revision": 3,
            "environment": "",
            "evidence": evidence,
            "certificate": base64.b64encode(leaf).decode(),
            "certificate_sha256": hashlib.sha256(leaf).hexdigest(),
            "serial": f"{svid.serial:x}",
            "spki_sha256": hashlib.sha256(SubjectKey.of(KEY.public_key()).spki).hexdigest(),
            "issuer_key_id": ca.authority.key_id,
            "not_before": "2026-01-05T11:59:30.000000Z",
            "not_after": "2026-01-05T12:10:00.000000Z",
            "dns_names": ["billing.saas.example"],
        }

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"csr_der": b"noise"}, InvalidCsr),
            ({"profile": "unknown"}, NotFound),
            ({"door": "window"}, ProfileViolation),
            ({"door": Door.EST}, ProfileViolation),
            ({"ttl": 4 * 3600 + 1}, ProfileViolation),
            ({"ttl": -1}, InvalidInput),
            ({"dns_names": ("Bad Name",)}, InvalidInput),
            ({"spiffe_id": SpiffeId.parse("spiffe://other.example/x")}, PermissionDenied),
            ({"spiffe_id": SpiffeId.parse("spiffe://saas.example/spire/server")}, ProfileViolation),
            ({"spiffe_id": SpiffeId.parse("spiffe://saas.example")}, ProfileViolation),
            ({"profile": "agent"}, ProfileViolation),
            ({"profile": "server"}, ProfileViolation),
            ({"evidence": {"big": "x" * 70_000}}, InvalidInput),
            ({"evidence": {"bad": 1.5}}, InvalidInput),
        ],
    )
    async def test_a_refused_request_leaves_no_trace_and_no_certificate(self, issuer, log, changes, error):
        with pytest.raises(error):
            await only(issuer, **changes)
        assert log.calls == 0

    async def test_agents_and_servers_have_their_own_profiles(self, issuer, ca):
        agent = ca.trust_domain.id("/spire/agent/join_token/1")
        server = ca.trust_domain.id("/spire/server")
        assert (await only(issuer, spiffe_id=agent, profile="agent")).id == agent
        assert (
            await only(issuer, spiffe_id=server, profile="server", door=Door.INTERNAL, caller="server")
        ).id == server

    async def test_one_bad_request_fails_only_itself(self, issuer, log, ca, clock):
        requests = [request(spiffe_id=ca.trust_domain.id(f"/w/{number}")) for number in range(9)]
        requests[4] = request(csr_der=b"noise")
        results = await issuer.issue_x509(requests)
        assert isinstance(results[4], InvalidCsr)
        issued = [result for result in results if isinstance(result, X509Svid)]
        assert [svid.id.path for svid in issued] == [f"/w/{number}" for number in range(9) if number != 4]
        assert log.calls == 1
        assert [decode(raw).body["subject"] for raw in log.entries] == [str(svid.id) for svid in issued]
        for svid in issued:
            verify_chain(svid.chain, ca.roots, clock.now())

    async def test_an_empty_batch_touches_nothing(self, issuer, log):
        assert await issuer.issue_x509([]) == []
        assert log.calls == 0

    async def test_a_batch_is_bounded(self, issuer):
        with pytest.raises(Error, match="at most"):
            await issuer.issue_x509([request()] * (MAX_BATCH + 1))

    async def test_no_log_no_certificate(self, issuer, log):
        log.failing = True
        with pytest.raises(LogUnavailable):
            await issuer.issue_x509([request(), request()])
        log.failing = False
        assert len(await issuer.issue_x509([request()])) == 1

    async def test_nothing_is_released_before_the_log_has_it(self, issuer, log):
        log.open.clear()
        task = asyncio.create_task(issuer.issue_x509([request()]))
        while not log.calls:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        log.open.set()
        await task
        assert len(log.entries) == 1

    async def test_a_batch_lets_others_run(self, issuer):
        turns = 0
        task = asyncio.create_task(issuer.issue_x509([request()] * 40))
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns >= 10

    async def test_serials_are_never_the_same(self, issuer):
        results = await issuer.issue_x509([request()] * 20)
        assert len({svid.serial for svid in results}) == 20

    async def test_nothing_outlives_its_issuer(self, issuer, ca, clock):
        end = ca.authority.not_after
        clock.advance((end - clock.now()).total_seconds() - 600)
        assert (await only(issuer)).not_after == end
        assert (await only(issuer, ttl=300)).not_after == clock.now() + timedelta(seconds=300)
        clock.advance(600)
        with pytest.raises(FailedPrecondition, match="issuing CA has expired"):
            await only(issuer)

    async def test_nothing_begins_before_its_issuer(self, issuer, ca):
        assert (await only(issuer)).not_before >= ca.authority.not_before


class TestReplace:
    async def test_the_next_batch_uses_the_new_authority(self, issuer, ca, clock):
        new = ca.new_authority(KeyAlgorithm.ED25519)
        issuer.replace(authorities={"": new})
        svid = await only(issuer)
        assert svid.chain[1:] == new.chain
        verify_chain(svid.chain, ca.roots, clock.now())
        assert issuer.authority is new

    async def test_a_batch_under_way_keeps_the_old_one(self, issuer, ca, clock):
        old = issuer.authority
        task = asyncio.create_task(issuer.issue_x509([request()] * 20))
        await asyncio.sleep(0)
        issuer.replace(authorities={"": ca.new_authority()})
        for svid in await task:
            assert svid.chain[1:] == old.chain
            verify_chain(svid.chain, ca.roots, clock.now())

    async def test_profiles(self, issuer):
        config = ProfileConfig(
            profile="workload",
            doors=("spire-api",),
            keys=("ec-p384",),
            lifetime=LifetimeConfig("10m", "20m"),
            names=NamesConfig(dns=("*.saas.example",)),
            usage=("client",),
        )
        issuer.replace(profiles=[Profile.from_config(config)])
        with pytest.raises(UnsupportedKey):
            await only(issuer)
        csr = make_csr(generate_private_key(KeyAlgorithm.EC_P384), ID)
        svid = await only(issuer, csr_der=csr)
        assert svid.not_after - svid.not_before == timedelta(minutes=10, seconds=30)
        usage = x509.load_der_x509_certificate(svid.chain[0]).extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        assert list(usage.value) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
        assert [profile.name for profile in issuer.profiles] == ["workload", "agent", "server", "eastwest-canary"]
        issuer.replace(profiles=[])
        assert WORKLOAD in issuer.profiles

    async def test_another_trust_domain_changes_nothing(self, issuer):
        old = issuer.authority
        with pytest.raises(FailedPrecondition, match=r"other\.example"):
            issuer.replace(authorities={"": TestCA("other.example").authority}, profiles=[])
        assert issuer.authority is old


class TestJwt:
    async def test_a_token_is_valid_and_recorded_without_itself(self, issuer, ca, clock, log):
        svid = await issuer.issue_jwt(jwt_request(entry_id="e-1", entry_revision=2))
        valid = validate(svid.token, "db", ca.bundle, clock.now())
        assert (valid.id, valid.expires_at) == (ID, svid.expires_at)
        assert svid.expires_at == clock.now() + timedelta(minutes=5)
        (raw,) = log.entries
        entry = decode(raw)
        signature = base64.urlsafe_b64decode(svid.token.split(".")[2] + "==")
        assert entry.kind == "jwt_svid.issued"
        assert entry.body["claims"] == valid.claims
        assert entry.body["header"] == {"alg": "ES256", "kid": ca.jwt_key.key_id, "typ": "JWT"}
        assert entry.body["signature_sha256"] == hashlib.sha256(signature).hexdigest()
        assert (entry.body["subject"], entry.body["entry_id"], entry.body["entry_revision"]) == (str(ID), "e-1", 2)
        assert entry.body["not_after"] == "2026-01-05T12:05:00.000000Z"
        assert svid.token.split(".")[2] not in raw.decode()

    async def test_each_token_has_its_own_name(self, issuer, log):
        for _ in range(3):
            await issuer.issue_jwt(jwt_request())
        assert len({decode(raw).body["claims"]["jti"] for raw in log.entries}) == 3

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"audience": ()}, InvalidInput),
            ({"audience": ("",)}, InvalidInput),
            ({"ttl": 4 * 3600 + 1}, ProfileViolation),
            ({"ttl": -1}, ProfileViolation),
            ({"door": "window"}, ProfileViolation),
            ({"spiffe_id": SpiffeId.parse("spiffe://other.example/x")}, PermissionDenied),
            ({"spiffe_id": SpiffeId.parse("spiffe://saas.example/spire/server")}, ProfileViolation),
        ],
    )
    async def test_refusals(self, issuer, log, changes, error):
        with pytest.raises(error):
            await issuer.issue_jwt(jwt_request(**changes))
        assert log.calls == 0

    async def test_no_log_no_token(self, issuer, log):
        log.failing = True
        with pytest.raises(LogUnavailable):
            await issuer.issue_jwt(jwt_request())

    async def test_a_token_never_outlives_its_key(self, issuer, clock):
        short = JwtSigningKey(
            SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P256)), clock.now() + timedelta(seconds=60)
        )
        issuer.replace(jwt_key=short)
        assert (await issuer.issue_jwt(jwt_request())).expires_at == short.expires_at
        clock.advance(60)
        with pytest.raises(FailedPrecondition, match="JWT signing key has expired"):
            await issuer.issue_jwt(jwt_request())

    async def test_the_issuer_claim_is_optional(self, ca, clock, log):
        issuer = Issuer(
            {"": ca.authority},
            ca.jwt_key,
            log,
            clock,
            SeededEntropy(),
            Instance("one", "0"),
            jwt_issuer="https://i.example",
        )
        svid = await issuer.issue_jwt(jwt_request())
        assert validate(svid.token, "db", ca.bundle, clock.now()).claims["iss"] == "https://i.example"
