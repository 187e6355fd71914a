"""When a sidecar counts as having taken its secrets: every one that it uses, as it is now, and not before."""

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.wrappers_pb2 import StringValue

from eastwest.mesh import names
from eastwest.mesh.secrets import Identity, SecretSet
from eastwest.mesh.snapshot import Resource, Snapshot
from eastwest.mesh.subscription import DeltaSession, SecretSession

CLUSTER = Resource.of("c", names.CLUSTER, StringValue(value="1"))


def secret(name: str, content: str) -> Resource:
    return Resource.of(name, names.SECRET, StringValue(value=content))


def snapshot(marker: object, *secrets: Resource) -> Snapshot:
    return Snapshot.of("v", [CLUSTER, *secrets], marker)


def ask(kind: str, *wanted: str):
    return discovery_pb2.DeltaDiscoveryRequest(type_url=kind, resource_names_subscribe=wanted)


def ack(response, **more):
    return discovery_pb2.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce, **more)


def test_only_once_each_secret_in_use_is_acknowledged():
    session = DeltaSession()
    session.on_snapshot(snapshot("one", secret("own", "a"), secret("roots", "a"), secret("unused", "a")))
    [clusters] = session.on_request(ask(names.CLUSTER))
    [own, roots] = session.on_request(ask(names.SECRET, "own", "roots"))
    for response in (clusters, own):
        session.on_request(ack(response))
        assert session.status().secrets_acked is None
    session.on_request(ack(roots))
    assert session.status().secrets_acked == "one"
    [changed] = session.on_snapshot(snapshot("two", secret("own", "a"), secret("roots", "b"), secret("unused", "a")))
    assert session.status().secrets_acked == "one"
    session.on_request(ack(changed))
    assert session.status().secrets_acked == "two"
    # What does not concern it is taken at once.
    assert session.on_snapshot(snapshot("three", secret("own", "a"), secret("roots", "b"), secret("unused", "c"))) == []
    assert session.status().secrets_acked == "three"


def test_a_refusal_confirms_nothing():
    session = DeltaSession()
    session.on_snapshot(snapshot("one", secret("roots", "a")))
    [first] = session.on_request(ask(names.SECRET, "roots"))
    session.on_request(ack(first))
    [changed] = session.on_snapshot(snapshot("two", secret("roots", "bad")))
    session.on_request(ack(changed, error_detail={"code": 3, "message": "roots: no PEM"}))
    assert session.status().secrets_acked == "one"
    [again] = session.on_snapshot(snapshot("three", secret("roots", "good")))
    session.on_request(ack(again))
    assert session.status().secrets_acked == "three"


def test_a_sidecar_that_returns_says_what_it_has():
    roots = secret("roots", "a")
    session = DeltaSession()
    session.on_snapshot(snapshot("one", roots))
    request = ask(names.SECRET, "roots")
    request.initial_resource_versions["roots"] = roots.version
    assert session.on_request(request) == []
    assert session.status().secrets_acked == "one"


def test_without_tls_the_config_is_enough():
    session = DeltaSession()
    session.on_snapshot(snapshot("one"))
    [clusters] = session.on_request(ask(names.CLUSTER))
    assert session.status().secrets_acked is None
    session.on_request(ack(clusters))
    assert session.status().secrets_acked == "one"


def test_streams_of_secrets_alone():
    session = SecretSession()

    def given(marker: object, roots: bytes) -> SecretSet:
        identity = Identity("spiffe://td.test/a", b"chain", b"key")
        return SecretSet((identity,), "td.test", {"td.test": roots}, marker=marker)

    session.on_secrets(given("one", b"A"))
    first = session.on_request(discovery_pb2.DiscoveryRequest(resource_names=["ROOTCA"], type_url=names.SECRET))
    assert session.secrets_acked is None
    session.on_request(
        discovery_pb2.DiscoveryRequest(resource_names=["ROOTCA"], response_nonce=first.nonce, type_url=names.SECRET)
    )
    assert session.secrets_acked == "one"
    second = session.on_secrets(given("two", b"B"))
    assert session.secrets_acked == "one"
    refused = discovery_pb2.DiscoveryRequest(resource_names=["ROOTCA"], response_nonce=second.nonce)
    refused.error_detail.message = "no"
    session.on_request(refused)
    assert session.secrets_acked == "one"
    third = session.on_secrets(given("three", b"C"))
    session.on_request(discovery_pb2.DiscoveryRequest(resource_names=["ROOTCA"], response_nonce=third.nonce))
    assert session.secrets_acked == "three"
    # The same content under a newer marker needs no answer.
    assert session.on_secrets(given("four", b"C")) is None
    assert session.secrets_acked == "four"


def test_a_version_is_enforced_only_with_the_trust_that_came_with_it():
    roots = Resource.of("roots", names.SECRET, StringValue(value="ours"))
    wider = Resource.of("roots", names.SECRET, StringValue(value="ours and theirs"))
    session = DeltaSession()
    session.on_snapshot(Snapshot.of("v1", [CLUSTER, roots], "one"))
    [clusters] = session.on_request(ask(names.CLUSTER))
    [first] = session.on_request(ask(names.SECRET, "roots"))
    session.on_request(ack(clusters))
    session.on_request(ack(first))
    assert session.status().version_acked == "v1"
    [second] = session.on_snapshot(Snapshot.of("v2", [CLUSTER, wider], "two"))
    assert session.status().version_acked == "v1"
    session.on_request(ack(second))
    assert session.status().version_acked == "v2"
    # A renewal within the version does not take it back.
    [third] = session.on_snapshot(Snapshot.of("v2", [CLUSTER, roots], "three"))
    assert session.status().version_acked == "v2"
    session.on_request(ack(third))
    assert session.status().version_acked == "v2"
