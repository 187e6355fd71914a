"""Where we take what SPIRE's own clients send, which our own commands would refuse; and what is refused even so."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from ca_world import ME, World, holder, make
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.errors import InvalidInput
from eastwest.pki.ca import read_ca_csr
from eastwest.pki.csr import InvalidCsr
from eastwest.pki.rotation.state import Kind, Source
from eastwest.registry.federation import BundleRefused, check_bundle
from eastwest.server.spire.entry import _filter
from eastwest.spiffe.bundle import Bundle, X509Authority
from eastwest.spiffe.id import TrustDomain
from eastwest.testing.ca import TestCA
from eastwest.testing.clock import START

OWN, PARTNER = TrustDomain("td.test"), TrustDomain("partner.test")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await make(tmp_path)
    yield made
    await made.stack.aclose()


async def test_what_an_administrator_appends_is_trusted_and_recorded(world: World) -> None:
    keeper = world.keeper
    other = TestCA("elsewhere.test", world.clock.now())
    [key] = other.bundle.jwt_authorities
    bundle = await keeper.append([other.root], [key], ME)
    assert other.root in {authority.der for authority in bundle.x509_authorities}
    assert key.key_id in {one.key_id for one in bundle.jwt_authorities}
    assert keeper.state.roots[-1].source is Source.EXTERNAL
    assert await keeper.append([other.root], [key], ME) == bundle, "what is there already changes nothing"
    leaf, _ = other.svid("/web", timedelta(hours=1))
    for wrong in (leaf.chain[0], b"", b"\x30\x03\x02\x01\x05"):
        with pytest.raises(InvalidInput, match="no CA certificate"):
            await keeper.append([wrong], [], ME)
    assert keeper.trust.bundle == bundle
    assert [entry["authority"] for entry in await world.records("ca.trusted")] == ["x509", "jwt"]


async def test_callers_need_not_show_the_cas_that_signed_them_until_they_are_tainted(world: World) -> None:
    keeper = world.keeper
    [first] = keeper.state.issuing_certificates()
    keeper.holders = lambda: [holder(keeper.state.sequence)]
    old = keeper.state.active_root
    assert old is not None
    prepared = (await keeper.prepare(Kind.X509, ME)).item
    assert keeper.state.issuing_certificates() == (first,), "nothing is signed by what is only prepared"
    await keeper.activate(Kind.X509, prepared.id, ME)
    assert len(keeper.state.issuing_certificates()) == 2
    await keeper.taint(Kind.X509, old.id, ME)
    await keeper.revoke(Kind.X509, old.id, ME)
    [second] = keeper.state.issuing_certificates()
    assert second != first


def test_a_bundle_by_which_nobody_can_be_verified_is_taken_only_where_asked_for() -> None:
    ended, third = TestCA("partner.test", START - timedelta(days=9000)), TestCA("third.test", START)
    useless = [
        Bundle(PARTNER, (), ()),
        Bundle(PARTNER, (X509Authority(ended.root),), ()),
        Bundle(PARTNER, (X509Authority(third.root),), ()),
    ]
    for bundle in useless:
        with pytest.raises(BundleRefused):
            check_bundle(bundle, OWN, START)
        check_bundle(bundle, OWN, START, useless=True)
    own = TestCA("td.test", START)
    leaf, _ = third.svid("/web", timedelta(hours=1))
    for bad in (Bundle(PARTNER, (X509Authority(own.root),), ()), Bundle(PARTNER, (X509Authority(leaf.chain[0]),), ())):
        with pytest.raises(BundleRefused):
            check_bundle(bad, OWN, START, useless=True)
    with pytest.raises(BundleRefused, match="own trust domain"):
        check_bundle(replace(useless[1], trust_domain=OWN), OWN, START, useless=True)


def test_a_downstream_request_may_leave_the_name_to_us_but_not_give_another() -> None:
    key = ec.generate_private_key(ec.SECP256R1())

    def request(*names: str) -> bytes:
        builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
        if names:
            made = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name) for name in names])
            builder = builder.add_extension(made, critical=False)
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)

    assert read_ca_csr(request(), OWN, nameless=True) is not None
    assert read_ca_csr(request("spiffe://td.test"), OWN, nameless=True) is not None
    for wrong in (request("spiffe://other.test"), request("spiffe://td.test/web")):
        with pytest.raises(InvalidCsr):
            read_ca_csr(wrong, OWN, nameless=True)
    with pytest.raises(InvalidCsr):
        read_ca_csr(request(), OWN)


def test_a_filter_for_entries_that_are_not_downstream_admits_all() -> None:
    # SPIRE's command line sends false whenever it is not told otherwise.
    filters = entry_pb2.ListEntriesRequest.Filter()
    assert _filter(filters).downstream is None
    filters.by_downstream.value = False
    assert _filter(filters).downstream is None
    filters.by_downstream.value = True
    assert _filter(filters).downstream is True
