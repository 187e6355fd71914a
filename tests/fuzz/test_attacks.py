"""What callers with some rights might try to get more."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from fuzz_world import OK, TD, Caller
from google.protobuf.empty_pb2 import Empty

from eastwest.api.eastwest.admin.v1 import admin_pb2
from eastwest.api.spire.api.server.bundle.v1 import bundle_pb2
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.api.spire.api.server.svid.v1 import svid_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.pki.ca import make_ca_csr
from eastwest.pki.csr import make_csr
from eastwest.pki.rotation.state import Kind
from eastwest.testing import TestCA

UNAUTHENTICATED, PERMISSION_DENIED = 16, 7
SVID, ENTRY, BUNDLE = (f"/spire.api.server.{name}" for name in ("svid.v1.SVID", "entry.v1.Entry", "bundle.v1.Bundle"))


def shown(caller):
    """The certificate that a caller shows."""
    return x509.load_der_x509_certificate(caller.leaf)


@pytest.fixture(scope="module")
def nested(world):
    """A CA below the server's own, as every server with a ``downstream`` entry may have it; and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = type("Key", (), {"public_key": key.public_key(), "sign": lambda _, data: key.sign(data, _ECDSA)})()
    signer.algorithm = TestCA().authority.signer.algorithm
    request = svid_pb2.NewDownstreamX509CARequest(csr=make_ca_csr(signer, TD))
    status, [reply] = world.run(world.callers["downstream"].ask(f"{SVID}/NewDownstreamX509CA", request))
    assert status == OK
    return key, list(reply.ca_cert_chain)


def forged(world, nested, spiffe_id, serial):
    """A caller with a certificate of the nested CA that copies somebody's ID and serial number."""
    ca_key, chain = nested
    issuer = x509.load_der_x509_certificate(chain[0])
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .serial_number(serial)
        .public_key(key.public_key())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(minutes=30))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return Caller("forged", world, world._tls([leaf.public_bytes(Encoding.DER), *chain], key))


@pytest.mark.parametrize(
    ("whose", "path"),
    [
        ("agent", f"{ENTRY}/GetAuthorizedEntries"),
        ("scoped", f"{ENTRY}/ListEntries"),
        ("downstream", f"{BUNDLE}/PublishJWTAuthority"),
    ],
)
def test_a_nested_ca_cannot_make_callers_of_this_server(world, nested, whose, path):
    """It signs for the whole trust domain, and serial numbers are no secret: neither proves anything here."""
    certificate = shown(world.callers[whose])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    [spiffe_id] = names.get_values_for_type(x509.UniformResourceIdentifier)
    caller = forged(world, nested, spiffe_id, certificate.serial_number)
    status, _ = world.run(caller.ask(path, Empty()))
    world.run(caller.close())
    assert status == PERMISSION_DENIED


def test_rights_over_federation_are_none_over_entries(world):
    admin, federator = world.callers["socket"], world.callers["federator"]
    ca = TestCA("partner.test", datetime.now(UTC))
    foreign = types_pb2.Bundle(trust_domain="partner.test", x509_authorities=[{"asn1": ca.root}])
    status, _ = world.run(
        federator.ask(f"{BUNDLE}/BatchSetFederatedBundle", bundle_pb2.BatchSetFederatedBundleRequest(bundle=[foreign]))
    )
    assert status == OK
    entry = types_pb2.Entry(
        spiffe_id={"trust_domain": "td.test", "path": "/prod/shop/partnered"},
        parent_id={"trust_domain": "td.test", "path": "/eastwest/group/nodes"},
        selectors=[{"type": "unix", "value": "uid:4242"}],
        federates_with=["partner.test"],
    )
    status, [made] = world.run(
        admin.ask(f"{ENTRY}/BatchCreateEntry", entry_pb2.BatchCreateEntryRequest(entries=[entry]))
    )
    assert made.results[0].status.code == OK
    entry_id = made.results[0].entry.id
    for mode in ("DELETE", "DISSOCIATE"):
        request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=["partner.test"], mode=mode)
        status, [reply] = world.run(federator.ask(f"{BUNDLE}/BatchDeleteFederatedBundle", request))
        assert (status, reply.results[0].status.code) == (OK, PERMISSION_DENIED)
        status, [kept] = world.run(admin.ask(f"{ENTRY}/GetEntry", entry_pb2.GetEntryRequest(id=entry_id)))
        assert list(kept.federates_with) == ["partner.test"]
    request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=["partner.test"], mode="DELETE")
    status, [reply] = world.run(admin.ask(f"{BUNDLE}/BatchDeleteFederatedBundle", request))
    assert (status, reply.results[0].status.code) == (OK, OK)


def test_nobody_gets_more_rights_by_an_identity_of_another_administrator(world):
    """Neither by minting it nor by registering it, whatever parts of the estate the right is for."""
    csr = make_csr(ec.generate_private_key(ec.SECP256R1()), TD.id("/prod/shop/federator"))
    minter = world.callers["minter"]
    status, _ = world.run(minter.ask(f"{SVID}/MintX509SVID", svid_pb2.MintX509SVIDRequest(csr=csr)))
    assert status == PERMISSION_DENIED
    identity = types_pb2.SPIFFEID(trust_domain="td.test", path="/prod/shop/federator")
    token = svid_pb2.MintJWTSVIDRequest(id=identity, audience=["a"])
    status, _ = world.run(minter.ask(f"{SVID}/MintJWTSVID", token))
    assert status == PERMISSION_DENIED
    parent = types_pb2.SPIFFEID(trust_domain="td.test", path=world.agents[0].path)
    entry = types_pb2.Entry(
        spiffe_id=identity, parent_id=parent, selectors=[types_pb2.Selector(type="unix", value="uid:9")]
    )
    for name in ("registrar", "scoped"):
        request = entry_pb2.BatchCreateEntryRequest(entries=[entry])
        status, [reply] = world.run(world.callers[name].ask(f"{ENTRY}/BatchCreateEntry", request))
        assert (status, reply.results[0].status.code) == (OK, PERMISSION_DENIED)
    request = svid_pb2.MintX509SVIDRequest(csr=make_csr(ec.generate_private_key(ec.SECP256R1()), TD.id("/prod/shop/x")))
    status, _ = world.run(minter.ask(f"{SVID}/MintX509SVID", request))
    assert status == OK


def test_a_limit_covers_dns_names_as_well(world):
    """A certificate for somebody else's DNS name is somebody else's to whoever looks at that."""
    minter, scoped = world.callers["minter"], world.callers["scoped"]
    for name, expected in (("payments.prod.internal", PERMISSION_DENIED), ("x.shop.internal", OK)):
        key = ec.generate_private_key(ec.SECP256R1())
        uri = x509.UniformResourceIdentifier(str(TD.id("/prod/shop/x")))
        names = x509.SubjectAlternativeName([uri, x509.DNSName(name)])
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)
        der = csr.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
        status, _ = world.run(minter.ask(f"{SVID}/MintX509SVID", svid_pb2.MintX509SVIDRequest(csr=der)))
        assert status == expected, name
    entry = types_pb2.Entry(
        spiffe_id={"trust_domain": "td.test", "path": "/prod/shop/named"},
        parent_id={"trust_domain": "td.test", "path": "/eastwest/group/nodes"},
        selectors=[{"type": "unix", "value": "uid:4243"}],
        dns_names=["payments.prod.internal"],
    )
    request = entry_pb2.BatchCreateEntryRequest(entries=[entry])
    status, [reply] = world.run(scoped.ask(f"{ENTRY}/BatchCreateEntry", request))
    assert (status, reply.results[0].status.code) == (OK, PERMISSION_DENIED)
    assert "payments.prod.internal" in reply.results[0].status.message


def test_an_agent_gets_nothing_of_another_node(world):
    csr = make_csr(ec.generate_private_key(ec.SECP256R1()), TD.id("/prod/shop/other"))
    agent = world.callers["agent"]
    params = svid_pb2.NewX509SVIDParams(entry_id=world.entries["other"], csr=csr)
    request = svid_pb2.BatchNewX509SVIDRequest(params=[params])
    status, [reply] = world.run(agent.ask(f"{SVID}/BatchNewX509SVID", request))
    assert status == OK
    assert reply.results[0].status.code == 5
    assert not reply.results[0].HasField("svid")
    wanted = svid_pb2.NewJWTSVIDRequest(entry_id=world.entries["other"], audience=["a"])
    status, _ = world.run(agent.ask(f"{SVID}/NewJWTSVID", wanted))
    assert status == 5
    status, [mine] = world.run(agent.ask(f"{ENTRY}/GetAuthorizedEntries", entry_pb2.GetAuthorizedEntriesRequest()))
    assert world.entries["other"] not in {entry.id for entry in mine.entries}


def test_an_identity_with_the_same_name_gives_no_rights_of_an_entry(world):
    """A second, plain entry for the ID of a ``downstream`` one."""
    entry = types_pb2.Entry(
        spiffe_id={"trust_domain": "td.test", "path": "/prod/shop/downstream"},
        parent_id={"trust_domain": "td.test", "path": world.agents[1].path},
        selectors=[{"type": "unix", "value": "uid:77"}],
    )
    admin = world.callers["socket"]
    _, [made] = world.run(admin.ask(f"{ENTRY}/BatchCreateEntry", entry_pb2.BatchCreateEntryRequest(entries=[entry])))
    tls = world.run(world._svid(world.callers["other agent"], made.results[0].entry.id))
    plain = Caller("plain", world, tls)
    status, _ = world.run(plain.ask(f"{SVID}/NewDownstreamX509CA", svid_pb2.NewDownstreamX509CARequest()))
    world.run(plain.close())
    assert status == PERMISSION_DENIED


def test_a_limited_administrator_applies_nothing_outside_of_its_limits(world):
    scoped = world.callers["scoped"]
    request = admin_pb2.ApplyEstateRequest(files={"estate.yaml": b"trust_domain: td.test\n"}, expected_version="*")
    status, _ = world.run(scoped.ask("/eastwest.admin.v1.Admin/ApplyEstate", request))
    assert status not in {OK, UNAUTHENTICATED}


def test_an_administrator_who_hangs_up_leaves_the_ca_whole(world):
    """A call that ends at any moment of its change: what is stored is what is in force, and the next change works."""
    keeper = world.server.ca

    async def hang_up():
        for step in range(60):
            call = asyncio.ensure_future(keeper.prepare(Kind.JWT, "somebody"))
            await asyncio.sleep(0.0004 * step)
            call.cancel()
            await asyncio.wait([call])
            assert await keeper._store.load() == (keeper.state, keeper._revision), step
            if keeper.state.prepared_jwt is not None:
                await keeper.discard(Kind.JWT, keeper.state.prepared_jwt.id, "somebody")

    world.run(hang_up())


_ECDSA = ec.ECDSA(hashes.SHA256())
