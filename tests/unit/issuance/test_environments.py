"""Which CA issues for which environment, keys that are far away, CAs below ours, and leaves that can be revoked."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest
from cryptography import x509

from eastwest.errors import Error, FailedPrecondition, InvalidInput, LogUnavailable, PermissionDenied, Unavailable
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import DownstreamRequest, Instance, JwtRequest, X509Request
from eastwest.log.entry import decode
from eastwest.pki.ca import make_ca_csr
from eastwest.pki.chain import verify_chain
from eastwest.pki.csr import InvalidCsr, make_csr
from eastwest.pki.hierarchy import Authority
from eastwest.pki.jwt import JwtSigningKey, validate
from eastwest.pki.lint import LintFailure
from eastwest.pki.profile import Door, LifetimeConfig, Profile, ProfileConfig, ProfileViolation
from eastwest.pki.revocation import RevocationUrls, shard_of
from eastwest.pki.signer import KeyAlgorithm, SoftwareSigner, UnsupportedKey, generate_private_key
from eastwest.process.signing import ThreadSigningPool
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.svid import X509Svid
from eastwest.testing import FakeClock, SeededEntropy, TestCA
from eastwest.testing.log import Failure, MemoryLog

CA = TestCA()
VM = CA.new_authority()
ID = CA.trust_domain.id("/prod/billing")
SERVER_BELOW = CA.trust_domain.id("/nested/one")
CSR = make_csr(generate_private_key(KeyAlgorithm.EC_P256), ID)
URLS = RevocationUrls("http://crl.saas.example:8080/pki")


class FarSigner(SoftwareSigner):
    """A key whose signature is a round trip; it notes in which threads it signs, and can be out of reach."""

    def __init__(self, algorithm=KeyAlgorithm.EC_P256):
        super().__init__(generate_private_key(algorithm))
        self.threads = set()
        self.reachable = True

    @property
    def is_remote(self):
        return True

    def sign(self, data):
        self.threads.add(threading.get_ident())
        if not self.reachable:
            raise Unavailable("the key store does not answer")
        return super().sign(data)


@pytest.fixture
def log():
    return MemoryLog()


@pytest.fixture
def pool():
    pool = ThreadSigningPool(4)
    yield pool
    pool.close()


def issuer(log, authorities=None, **options):
    authorities = {"": CA.authority} | (authorities or {})
    return Issuer(authorities, CA.jwt_key, log, FakeClock(), SeededEntropy(), Instance("one", "0"), **options)


def request(**changes):
    fields = {"csr_der": CSR, "spiffe_id": ID, "door": Door.SPIRE_API, "caller": "test"}
    return X509Request(**fields | changes)


async def only(issuer, **changes):
    (result,) = await issuer.issue_x509([request(**changes)])
    if isinstance(result, Error):
        raise result
    return result


def profile(**changes):
    fields = {
        "profile": "device",
        "doors": ("spire-api",),
        "keys": ("ec-p256",),
        "lifetime": LifetimeConfig("30d", "90d"),
    }
    return Profile.from_config(ProfileConfig(**fields | changes))


class TestEnvironments:
    async def test_each_environment_has_its_ca_and_strangers_have_the_default_one(self, log):
        made = issuer(log, {"vm": VM})
        for environment, authority in (("", CA.authority), ("vm", VM), ("unheard-of", CA.authority)):
            svid = await only(made, environment=environment)
            assert svid.chain[1:] == authority.chain
            verify_chain(svid.chain, CA.roots, CA.now)
        entries = [decode(raw).body for raw in log.stored]
        assert [entry["environment"] for entry in entries] == ["", "vm", "unheard-of"]
        assert [entry["issuer_key_id"] for entry in entries] == [CA.authority.key_id, VM.key_id, CA.authority.key_id]
        assert made.authorities == {"": CA.authority, "vm": VM}
        assert made.authority is CA.authority

    async def test_one_batch_may_have_them_all(self, log):
        results = await issuer(log, {"vm": VM}).issue_x509([request(environment=name) for name in ("vm", "", "vm")])
        assert [svid.chain[1:] for svid in results] == [VM.chain, CA.authority.chain, VM.chain]

    async def test_an_environment_that_awaits_its_ca_is_refused_until_it_comes(self, log):
        made = issuer(log, awaiting={"edge"})
        refused, served = await made.issue_x509([request(environment="edge"), request()])
        assert isinstance(refused, FailedPrecondition)
        assert "eastwest ca export-csr --environment edge" in refused.fix
        assert isinstance(served, X509Svid)
        made.replace(authorities={"": CA.authority, "edge": VM})
        assert (await only(made, environment="edge")).chain[1:] == VM.chain

    async def test_the_end_of_one_ca_is_not_that_of_the_others(self, log):
        short = CA.new_authority(lifetime=timedelta(minutes=10))
        clock = FakeClock()
        made = Issuer({"": CA.authority, "vm": short}, CA.jwt_key, log, clock, SeededEntropy(), Instance("one", "0"))
        clock.advance(600)
        refused, served = await made.issue_x509([request(environment="vm"), request()])
        assert isinstance(refused, FailedPrecondition)
        assert "expired" in refused.message
        assert isinstance(served, X509Svid)

    async def test_a_profile_is_for_its_environments_alone(self, log):
        made = issuer(log, {"vm": VM}, profiles=[profile(environments=("vm",))])
        assert (await only(made, profile="device", environment="vm")).chain[1:] == VM.chain
        for environment in ("kubernetes", ""):
            with pytest.raises(ProfileViolation, match="not for"):
                await only(made, profile="device", environment=environment)
        token = JwtRequest(
            spiffe_id=ID, door=Door.SPIRE_API, caller="test", profile="device", audience=("a",), environment="other"
        )
        with pytest.raises(ProfileViolation, match="not for environment other"):
            await made.issue_jwt(token)

    def test_authorities_must_fit(self, log):
        with pytest.raises(FailedPrecondition, match="no default"):
            Issuer({"vm": VM}, CA.jwt_key, log, FakeClock(), SeededEntropy(), Instance("one", "0"))
        with pytest.raises(FailedPrecondition, match=r"environment vm is of trust domain other\.example"):
            issuer(log, {"vm": TestCA("other.example").authority})

    def test_a_ca_whose_leaves_would_break_a_rule_is_never_used(self, log):
        narrow = TestCA(constrained_to=TrustDomain("other.example"))
        with pytest.raises(LintFailure, match="name-constraints"):
            Issuer({"": narrow.authority}, narrow.jwt_key, log, FakeClock(), SeededEntropy(), Instance("one", "0"))
        made = issuer(log)
        with pytest.raises(LintFailure) as caught:
            made.replace(authorities={"": narrow.authority})
        assert {finding.rule for finding in caught.value.findings} == {"name-constraints"}
        assert made.authority is CA.authority

    async def test_post_quantum_keys_are_for_profiles_that_name_them(self, log):
        csr = make_csr(generate_private_key(KeyAlgorithm.ML_DSA_65), ID)
        quantum = TestCA(algorithm=KeyAlgorithm.ML_DSA_65)
        profiles = [profile(profile="quantum", keys=("ml-dsa-65",))]
        made = issuer(log, profiles=profiles, post_quantum={"": quantum.authority})
        with pytest.raises(UnsupportedKey):
            await only(made, csr_der=csr)
        with pytest.raises(UnsupportedKey, match="ec-p256 keys are not accepted here"):
            await only(made, profile="quantum")
        svid = await only(made, csr_der=csr, profile="quantum")
        assert verify_chain(svid.chain, quantum.roots, quantum.now, quantum.trust_domain) == svid

    async def test_the_key_chooses_between_the_two_hierarchies(self, log):
        csr = make_csr(generate_private_key(KeyAlgorithm.ML_DSA_65), ID)
        quantum = TestCA(algorithm=KeyAlgorithm.ML_DSA_65)
        vm = quantum.new_authority(KeyAlgorithm.ML_DSA_65)
        profiles = [profile(profile="both", keys=("ml-dsa-65", "ec-p256"))]
        made = issuer(log, {"vm": VM}, profiles=profiles, awaiting={"vm", "edge"})
        with pytest.raises(FailedPrecondition, match="only such a one certifies ML-DSA-65 keys"):
            await only(made, csr_der=csr, profile="both")
        made.replace(post_quantum={"": quantum.authority, "vm": vm})
        requests = [request(csr_der=der, profile="both", environment=name) for name in ("", "vm") for der in (CSR, csr)]
        results = await made.issue_x509(requests)
        above = [CA.authority, quantum.authority, VM, vm]
        assert [svid.chain[1:] for svid in results] == [authority.chain for authority in above]
        with pytest.raises(FailedPrecondition, match="only such a one"):
            await only(made, csr_der=csr, profile="both", environment="edge")

    async def test_a_remote_post_quantum_key_signs_elsewhere(self, log, pool):
        quantum = TestCA(algorithm=KeyAlgorithm.ML_DSA_65)
        far = FarSigner(KeyAlgorithm.ML_DSA_65)
        profiles = [profile(profile="quantum", keys=("ml-dsa-65",))]
        authority = quantum.new_authority(signer=far)
        with pytest.raises(FailedPrecondition, match="remote"):
            issuer(log, profiles=profiles, post_quantum={"": authority})
        made = issuer(log, profiles=profiles, post_quantum={"": authority}, pool=pool)
        far.threads.clear()
        svid = await only(made, csr_der=make_csr(generate_private_key(KeyAlgorithm.ML_DSA_65), ID), profile="quantum")
        verify_chain(svid.chain, quantum.roots, quantum.now, quantum.trust_domain)
        assert far.threads
        assert threading.get_ident() not in far.threads


class TestFarKeys:
    async def test_signatures_are_made_elsewhere_and_the_rest_is_the_same(self, log, pool):
        far = FarSigner()
        made = issuer(log, {"vm": CA.new_authority(signer=far)}, pool=pool)
        far.threads.clear()
        environments = ["vm", "", "vm", "vm"]
        results = await made.issue_x509([request(environment=name) for name in environments])
        for svid in results:
            verify_chain(svid.chain, CA.roots, CA.now)
        assert threading.get_ident() not in far.threads
        assert far.threads
        assert log.size == 4
        assert {decode(raw).body["serial"] for raw in log.stored} == {f"{svid.serial:x}" for svid in results}

    async def test_a_key_out_of_reach_hurts_its_own_requests_only(self, log, pool):
        far = FarSigner()
        made = issuer(log, {"vm": CA.new_authority(signer=far)}, pool=pool)
        far.reachable = False
        far_one, near_one = await made.issue_x509([request(environment="vm"), request()])
        assert isinstance(far_one, Unavailable)
        assert isinstance(near_one, X509Svid)
        assert log.size == 1

    async def test_tokens_too(self, log, pool):
        far = FarSigner()
        key = JwtSigningKey(far, CA.now + timedelta(days=1))
        made = Issuer({"": CA.authority}, key, log, FakeClock(), SeededEntropy(), Instance("one", "0"), pool=pool)
        svid = await made.issue_jwt(JwtRequest(spiffe_id=ID, door=Door.SPIRE_API, caller="test", audience=("db",)))
        assert threading.get_ident() not in far.threads
        assert far.threads
        validate(svid.token, "db", Bundle(CA.trust_domain, (), (key.authority,), sequence=1), CA.now)

    def test_without_a_pool_they_are_refused_at_once(self, log):
        far = CA.new_authority(signer=FarSigner())
        with pytest.raises(FailedPrecondition, match="remote"):
            issuer(log, {"vm": far})
        made = issuer(log)
        with pytest.raises(FailedPrecondition, match="remote"):
            made.replace(authorities={"": far})
        assert made.authority is CA.authority

    async def test_the_loop_goes_on_while_a_far_key_thinks(self, log, pool):
        thinking = threading.Event()

        class Slow(FarSigner):
            def sign(self, data):
                assert thinking.wait(20)
                return super().sign(data)

        slow = Slow()
        thinking.set()
        made = issuer(log, {"vm": CA.new_authority(signer=slow)}, pool=pool)
        thinking.clear()
        task = asyncio.create_task(only(made, environment="vm"))
        assert isinstance(await only(made), X509Svid)
        assert not task.done()
        thinking.set()
        verify_chain((await task).chain, CA.roots, CA.now)


class Registered:
    """Keeps what can be revoked in a list."""

    def __init__(self):
        self.certificates = []

    async def add(self, certificates):
        self.certificates += certificates


class TestDownstream:
    DEEP = CA.new_authority(path_length=2)

    def request(self, key=None, **changes):
        key = key or SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P256))
        fields = {
            "csr_der": make_ca_csr(key, CA.trust_domain),
            "spiffe_id": SERVER_BELOW,
            "door": Door.SPIRE_API,
            "caller": str(SERVER_BELOW),
            "entry_id": "nested-1",
        }
        return DownstreamRequest(**fields | changes)

    async def test_a_server_below_issues_what_our_roots_verify(self, log):
        made = issuer(log, {"vm": self.DEEP})
        key = SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P384))
        issued = await made.issue_ca(self.request(key, environment="vm"))
        below = Authority.create(CA.trust_domain, key, issued.chain, issued.roots)
        svid, _ = CA.svid("/edge/pump", authority=below)
        verify_chain(svid.chain, CA.roots, CA.now, CA.trust_domain)
        (raw,) = log.stored
        entry = decode(raw)
        assert entry.kind == "downstream_ca.issued"
        assert entry.body["subject"] == str(SERVER_BELOW)
        assert entry.body["key_id"] == key.key_id == issued.key_id
        assert entry.body["issuer_key_id"] == self.DEEP.key_id
        assert entry.body["environment"] == "vm"
        assert entry.body["serial"] == f"{issued.serial:x}"
        assert (entry.body["path_length"], issued.path_length) == (0, 0)

    async def test_depth_and_life_are_bounded_by_the_signer(self, log):
        made = issuer(log, downstream=self.DEEP)
        issued = await made.issue_ca(self.request(path_length=9, ttl=10**9))
        assert issued.path_length == 1
        assert issued.not_after == self.DEEP.not_after
        assert (await made.issue_ca(self.request())).not_after <= CA.now + timedelta(hours=24)

    async def test_a_ca_of_leaves_signs_none(self, log):
        with pytest.raises(FailedPrecondition, match="leaves only"):
            await issuer(log).issue_ca(self.request())
        assert log.size == 0

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"csr_der": CSR}, InvalidCsr),
            ({"csr_der": b"noise"}, InvalidCsr),
            ({"spiffe_id": TrustDomain("other.example").id("/x")}, PermissionDenied),
            ({"path_length": -1}, InvalidInput),
            ({"ttl": -1}, InvalidInput),
            (
                {"csr_der": make_ca_csr(SoftwareSigner(generate_private_key(KeyAlgorithm.ML_DSA_65)), CA.trust_domain)},
                UnsupportedKey,
            ),
        ],
    )
    async def test_refusals_leave_no_trace(self, log, changes, error):
        with pytest.raises(error):
            await issuer(log, downstream=self.DEEP).issue_ca(self.request(**changes))
        assert log.size == 0

    async def test_no_log_no_ca(self, log):
        log.fail_next(Failure.REFUSED)
        with pytest.raises(LogUnavailable):
            await issuer(log, downstream=self.DEEP).issue_ca(self.request())

    async def test_a_far_key_signs_it_elsewhere(self, log, pool):
        far = FarSigner()
        made = issuer(log, downstream=CA.new_authority(signer=far, path_length=1), pool=pool)
        far.threads.clear()
        issued = await made.issue_ca(self.request())
        x509.load_der_x509_certificate(issued.certificate).verify_directly_issued_by(
            x509.load_der_x509_certificate(issued.chain[1])
        )
        assert far.threads
        assert threading.get_ident() not in far.threads


class TestRevocable:
    async def test_a_leaf_says_where_it_is_looked_up(self, log):
        register = Registered()
        made = issuer(log, profiles=[profile(revocation="crl")], revocation=URLS, register=register)
        svid = await only(made, profile="device", ttl=3600)
        extensions = x509.load_der_x509_certificate(svid.chain[0]).extensions
        (point,) = extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        (name,) = point.full_name
        assert name.value == URLS.crl(CA.authority.key_id, shard_of(svid.not_after))
        (access,) = extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        assert access.access_location.value == "http://crl.saas.example:8080/pki/ocsp"
        verify_chain(svid.chain, CA.roots, CA.now)
        assert [(each.serial, each.der) for each in register.certificates] == [(svid.serial, svid.chain[0])]

    async def test_others_do_not(self, log):
        register = Registered()
        svid = await only(issuer(log, revocation=URLS, register=register))
        assert register.certificates == []
        with pytest.raises(x509.ExtensionNotFound):
            x509.load_der_x509_certificate(svid.chain[0]).extensions.get_extension_for_class(x509.CRLDistributionPoints)

    async def test_without_an_address_nothing_revocable_is_issued(self, log):
        made = issuer(log, profiles=[profile(revocation="crl")])
        with pytest.raises(FailedPrecondition, match="no address for CRLs"):
            await only(made, profile="device")
        assert isinstance(await only(made), X509Svid)
