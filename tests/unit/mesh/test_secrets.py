import pytest
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_spiffe_validator_config_pb2
from envoy.service.discovery.v3 import discovery_pb2

from eastwest.mesh import names
from eastwest.mesh.secrets import Identity, SecretSet, trust_domains_of
from eastwest.mesh.subscription import SecretSession, UnknownSecret

ID = "spiffe://td.test/a"


def secrets(chain: bytes = b"chain", **bundles: bytes) -> SecretSet:
    return SecretSet(
        identities=(Identity(ID, chain, b"key"), Identity("spiffe://td.test/b", b"c2", b"k2")),
        trust_domain="td.test",
        bundles={"td.test": b"root", **{name.replace("_", "."): pem for name, pem in bundles.items()}},
        callers=("td.test", "far.test", "unknown.test"),
    )


def bundles_of(secret_set: SecretSet, name: str) -> dict[str, bytes]:
    found = secret_set.find(name)
    assert found is not None
    secret = secret_pb2.Secret.FromString(found.body)
    assert secret.name == name
    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
    assert secret.validation_context.custom_validator_config.typed_config.Unpack(config)
    return {domain.name: domain.trust_bundle.inline_bytes for domain in config.trust_domains}


def test_names_mean_what_they_mean_with_spire():
    both = secrets(far_test=b"far", other_test=b"other")
    assert bundles_of(both, "ROOTCA") == {"td.test": b"root"}
    assert bundles_of(both, "spiffe://far.test") == {"far.test": b"far"}
    assert bundles_of(both, "ALL") == {"td.test": b"root", "far.test": b"far", "other.test": b"other"}
    assert bundles_of(both, names.CALLERS_SECRET) == {"td.test": b"root", "far.test": b"far"}
    for name, chain in (("default", b"chain"), (ID, b"chain"), ("spiffe://td.test/b", b"c2")):
        found = both.find(name)
        assert found is not None
        assert secret_pb2.Secret.FromString(found.body).tls_certificate.certificate_chain.inline_bytes == chain
    for name in ("spiffe://nowhere.test", "spiffe://td.test/c", "other", ""):
        assert both.find(name) is None, name


def test_no_identity_is_no_secret():
    assert SecretSet(identities=(), trust_domain="td.test", bundles={}).find("default") is None
    assert SecretSet(identities=(), trust_domain="td.test", bundles={}).find("ROOTCA") is None


def test_keys_do_not_show_in_representations():
    assert "k2" not in repr(secrets())
    found = secrets().find(ID)
    assert found is not None
    assert b"key" in found.body
    assert "key" not in repr(found)


def test_trust_domains_of_many():
    assert trust_domains_of([ID, "spiffe://a.test/x", "spiffe://td.test/z"]) == ("a.test", "td.test")


def request(*asked: str, nonce: str = "", error: str = ""):
    found = discovery_pb2.DiscoveryRequest(type_url=names.SECRET, resource_names=asked, response_nonce=nonce)
    if error:
        found.error_detail.message = error
    return found


def test_a_state_of_the_world_stream():
    session = SecretSession()
    assert session.on_request(request(ID)) is None  # nothing known yet
    first = session.on_secrets(secrets())
    assert (first.version_info, first.nonce, len(first.resources)) == ("1", "1", 1)
    assert session.on_request(request(ID, nonce="1")) is None
    assert session.on_secrets(secrets(far_test=b"far")) is None  # not what it asked for
    second = session.on_secrets(secrets(b"renewed"))
    assert second.version_info == "2"
    assert session.on_request(request(ID, "ROOTCA", nonce="1")) is None  # stale
    session.on_request(request(ID, nonce="2", error="bad key"))
    assert session.refusal is not None
    assert (session.refusal.names, session.refusal.message) == ((ID,), "bad key")
    third = session.on_request(request(ID, "ROOTCA", nonce="2"))
    assert (third.version_info, len(third.resources)) == ("3", 2)
    assert session.refusal is None


def test_an_unknown_name_ends_a_state_of_the_world_stream():
    session = SecretSession()
    session.on_secrets(secrets())
    with pytest.raises(UnknownSecret):
        session.on_request(request("spiffe://td.test/c"))
