from dataclasses import replace

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.wrappers_pb2 import StringValue

from eastwest.mesh import names
from eastwest.mesh.snapshot import DanglingReference, Resource, Snapshot
from eastwest.mesh.subscription import (
    MAX_IN_FLIGHT,
    MAX_NAMES,
    DeltaSession,
    NeverAcknowledges,
    Refusal,
    TooManyNames,
)


def resource(kind: str, name: str, content: str, **more) -> Resource:
    return Resource.of(name, kind, StringValue(value=content), **more)


def snapshot(version: str, *resources: Resource) -> Snapshot:
    return Snapshot.of(version, resources)


def request(kind: str, *subscribe: str, **more):
    return discovery_pb2.DeltaDiscoveryRequest(type_url=kind, resource_names_subscribe=subscribe, **more)


def ack(response, **more):
    return request(response.type_url, response_nonce=response.nonce, **more)


def nack(response, message: str):
    return ack(response, error_detail={"code": 3, "message": message})


def sent(responses) -> dict[str, str]:
    found = {}
    for response in responses:
        for item in response.resources:
            value = StringValue()
            value.ParseFromString(item.resource.value)
            found[item.name] = value.value
    return found


ONE = resource(names.CLUSTER, "one", "1")
TWO = resource(names.CLUSTER, "two", "2")


REPORTING = "envoy.filters.http.rbac"


def test_an_envoy_that_lacks_what_report_mode_needs_keeps_its_config_and_gets_its_secrets():
    secret, renewed = (resource(names.SECRET, "own", text) for text in ("s1", "s2"))
    session = DeltaSession()
    session.on_request(request(names.CLUSTER, node={"id": "n"}))
    session.on_request(request(names.SECRET, "own"))
    for response in session.on_snapshot(snapshot("v1", ONE, secret)):
        session.on_request(ack(response))
    assert session.status().version_acked == "v1"
    changed = replace(snapshot("v2", TWO, renewed), requires=frozenset({REPORTING}))
    assert sent(session.on_snapshot(changed)) == {"own": "s2"}
    status = session.status()
    assert (status.version_sent, status.version_acked) == ("v1", "v1")
    assert [refusal.names for refusal in status.refusals] == [(REPORTING,)]
    assert "cannot do report mode" in status.refusals[0].message
    assert sent(session.on_snapshot(snapshot("v3", TWO, renewed))) == {"two": "2"}
    assert session.status().refusals == ()


def test_an_envoy_that_lacks_it_gets_containments_all_the_same():
    session = DeltaSession()
    session.on_request(request(names.CLUSTER, node={"id": "n"}))
    for response in session.on_snapshot(snapshot("v1", ONE)):
        session.on_request(ack(response))
    denied = replace(snapshot("v1", resource(names.CLUSTER, "one", "denied")), contained=7)
    beyond = replace(snapshot("v2", TWO), requires=frozenset({REPORTING}), instead=denied, contained=7)
    (response,) = session.on_snapshot(beyond)
    assert sent([response]) == {"one": "denied"}
    assert session.status().contained_acked == 0
    session.on_request(ack(response))
    assert (session.status().version_acked, session.status().contained_acked) == ("v1", 7)
    assert session.on_snapshot(beyond) == []


def test_an_envoy_that_lacks_it_from_the_start_gets_nothing():
    session = DeltaSession()
    assert session.on_snapshot(replace(snapshot("v1", ONE), requires=frozenset({REPORTING}))) == []
    assert session.on_request(request(names.CLUSTER, node={"id": "n"})) == []
    able = DeltaSession()
    able.on_snapshot(replace(snapshot("v1", ONE), requires=frozenset({REPORTING})))
    knows = {"id": "n", "extensions": [{"name": REPORTING, "category": "envoy.filters.http"}]}
    assert sent(able.on_request(request(names.CLUSTER, node=knows))) == {"one": "1"}


def test_a_wildcard_gets_everything_once_and_then_changes():
    session = DeltaSession()
    assert session.on_request(request(names.CLUSTER, node={"id": "n"})) == []
    first = session.on_snapshot(snapshot("v1", ONE, TWO))
    assert sent(first) == {"one": "1", "two": "2"}
    assert session.on_request(ack(first[0])) == []
    changed = resource(names.CLUSTER, "two", "2b")
    assert sent(session.on_snapshot(snapshot("v2", ONE, changed))) == {"two": "2b"}
    (removal,) = session.on_snapshot(snapshot("v3", changed))
    assert (list(removal.removed_resources), list(removal.resources)) == (["one"], [])
    assert session.status().node_id == "n"


def test_named_resources_come_when_they_are_there():
    session = DeltaSession()
    session.on_snapshot(snapshot("v1", ONE))
    assert sent(session.on_request(request(names.CLUSTER, "two"))) == {}
    assert sent(session.on_snapshot(snapshot("v2", ONE, TWO))) == {"two": "2"}
    assert sent(session.on_request(request(names.CLUSTER, "one"))) == {"one": "1"}
    session.on_request(request(names.CLUSTER, resource_names_unsubscribe=["two"]))
    assert session.on_snapshot(snapshot("v3", ONE)) == []


def test_asking_again_means_send_again():
    session = DeltaSession()
    session.on_snapshot(snapshot("v1", ONE))
    assert sent(session.on_request(request(names.CLUSTER, "one"))) == {"one": "1"}
    assert sent(session.on_request(request(names.CLUSTER, "one"))) == {"one": "1"}


def test_a_reconnecting_client_keeps_what_it_has():
    session = DeltaSession()
    session.on_snapshot(snapshot("v1", ONE, TWO))
    held = {"one": ONE.version, "two": "older", "gone": "x"}
    (response,) = session.on_request(request(names.CLUSTER, initial_resource_versions=held))
    assert sent([response]) == {"two": "2"}
    assert list(response.removed_resources) == ["gone"]


def test_a_version_is_enforced_when_everything_is_acknowledged():
    rules = resource(names.EXTENSION, "rules", "a")
    session = DeltaSession()
    session.on_snapshot(snapshot("v1", ONE, rules, resource(names.SECRET, "secret", "s")))
    (clusters,) = session.on_request(request(names.CLUSTER))
    (extension,) = session.on_request(request(names.EXTENSION, "rules"))
    session.on_request(ack(clusters))
    assert session.status().version_acked == ""
    session.on_request(ack(extension))
    assert session.status().version_acked == "v1"
    # Nothing of this sidecar changed: the next version is enforced as soon as it is known.
    assert session.on_snapshot(snapshot("v2", ONE, rules)) == []
    assert session.status().version_acked == "v2"
    (push,) = session.on_snapshot(snapshot("v3", ONE, resource(names.EXTENSION, "rules", "b")))
    assert (session.status().version_sent, session.status().version_acked) == ("v3", "v2")
    session.on_request(ack(push))
    assert session.status().version_acked == "v3"


def test_a_refusal_names_its_resource_and_ends_with_the_next_acceptance():
    good, bad = resource(names.EXTENSION, "good", "1"), resource(names.EXTENSION, "bad", "1")
    session = DeltaSession()
    session.on_snapshot(snapshot("v1", good, bad))
    responses = session.on_request(request(names.EXTENSION, "good", "bad"))
    assert [len(response.resources) for response in responses] == [1, 1]
    for response in responses:
        answer = nack(response, "no such type") if response.resources[0].name == "bad" else ack(response)
        assert session.on_request(answer) == []  # the same thing is not sent again
    status = session.status()
    assert status.refusals == (Refusal(names.EXTENSION, ("bad",), "no such type"),)
    assert [name for _, name, _ in status.acked] == ["good"]
    assert status.version_acked == ""
    (mended,) = session.on_snapshot(snapshot("v2", good, resource(names.EXTENSION, "bad", "2")))
    session.on_request(ack(mended))
    assert (session.status().refusals, session.status().version_acked) == ((), "v2")


def test_a_refused_batch_is_pinned_on_the_names_that_the_reason_mentions():
    session = DeltaSession()
    session.on_snapshot(snapshot("v1", ONE, TWO))
    (response,) = session.on_request(request(names.CLUSTER))
    session.on_request(nack(response, "cluster two: no endpoints"))
    status = session.status()
    assert status.refusals[0].names == ("two",)
    assert [name for _, name, _ in status.acked] == ["one"]


def test_what_others_need_goes_first():
    session = DeltaSession()
    everything = [resource(kind, "x", "1") for kind in reversed(names.PUSH_ORDER)]
    for kind in reversed(names.PUSH_ORDER):
        session.on_request(request(kind, "x"))
    assert [response.type_url for response in session.on_snapshot(snapshot("v1", *everything))] == list(
        names.PUSH_ORDER
    )


def test_unknown_nonces_change_nothing():
    session = DeltaSession()
    session.on_snapshot(snapshot("v1", ONE))
    session.on_request(request(names.CLUSTER))
    session.on_request(request(names.CLUSTER, response_nonce="777", error_detail={"message": "old"}))
    assert session.status().refusals == ()


def test_asking_is_bounded():
    with pytest.raises(TooManyNames):
        DeltaSession().on_request(request(names.CLUSTER, *(str(n) for n in range(MAX_NAMES + 1))))
    with pytest.raises(TooManyNames):
        DeltaSession().on_request(request(names.CLUSTER, "x" * 5000))
    session = DeltaSession()
    with pytest.raises(TooManyNames):
        for number in range(100):
            session.on_request(request(f"type{number}"))


def test_snapshots_compare_and_refuse_dangling_references():
    before, after = snapshot("a", ONE, TWO), snapshot("b", ONE, resource(names.CLUSTER, "two", "new"))
    assert after.changed_from(before) == {names.CLUSTER: ("two",)}
    assert before.changed_from(before) == {}
    with pytest.raises(DanglingReference) as error:
        snapshot("c", resource(names.LISTENER, "l", "1", needs=[(names.CLUSTER, "one")])).check()
    assert "l needs one" in str(error.value)


def test_a_stream_that_never_acknowledges_is_ended():
    session = DeltaSession()
    session.on_snapshot(snapshot("v1", ONE))
    for _ in range(MAX_IN_FLIGHT):
        assert sent(session.on_request(request(names.CLUSTER, "one"))) == {"one": "1"}
    with pytest.raises(NeverAcknowledges):
        session.on_request(request(names.CLUSTER, "one"))


def test_an_envoy_that_starts_is_told_that_there_are_no_clusters():
    listener = resource(names.LISTENER, "egress", "l")
    session = DeltaSession()
    session.on_snapshot(replace(snapshot("v", listener), contained=3))
    [first] = session.on_request(request(names.CLUSTER, node={"id": "n"}))
    assert (list(first.resources), list(first.removed_resources)) == ([], [])
    assert session.on_request(ack(first)) == [], "once"
    [second] = session.on_request(request(names.LISTENER))
    assert session.on_request(ack(second)) == []
    assert session.status().contained_acked == 3
    held = DeltaSession()
    held.on_snapshot(snapshot("v", ONE))
    assert held.on_request(request(names.CLUSTER, initial_resource_versions={"one": ONE.version})) == []
