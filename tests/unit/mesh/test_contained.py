"""The deny that wins, as resources: nothing while nobody is contained, and filters alone when somebody is."""

import json

import msgspec
import pytest
from google.protobuf import json_format

from eastwest.mesh import names
from eastwest.mesh.resources import config_resources
from eastwest.mesh.settings import Settings
from eastwest.mesh.snapshot import Snapshot
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    OriginRules,
    Outbound,
    Rule,
    Sidecar,
    TcpMatch,
    TokenRules,
    Verdict,
)
from eastwest.registry.containment import NOBODY, Contained

A, B, FAR = "spiffe://td.test/a", "spiffe://td.test/b", "spiffe://far.test/c"
SETTINGS = Settings(egress_socket="/run/a/egress.sock", tcp_egress_directory="/run/a")
TOKEN_KEYS = b'{"keys":[]}'
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
STEP_UP = Rule(
    verdict=Verdict.DENY,
    code=DecisionCode.STEP_UP_REQUIRED,
    token=TokenRules(unapproved=OriginRules(otherwise=ALLOW), approved=OriginRules(otherwise=ALLOW)),
)


def operation(name, match, rule):
    return OperationRules(name=name, match=match, cells=(Cell(callers=(B,), rule=rule),))


WEB = Inbound(
    service="web",
    address="127.0.0.1",
    port=8443,
    protocol="http",
    mode=MtlsMode.STRICT,
    upstream="unix:/run/a/app.sock",
    operations=(
        operation("web:items:read", HttpMatch(method="GET", path="/items"), ALLOW),
        operation("web:items:delete", HttpMatch(method="DELETE", path="/items"), STEP_UP),
    ),
)
DB = Inbound(
    service="db",
    address="127.0.0.1",
    port=8444,
    protocol="tcp",
    mode=MtlsMode.PERMISSIVE,
    upstream="tcp:127.0.0.1:5432",
    operations=(operation("db:sessions:open", TcpMatch(), ALLOW),),
)
SIDECAR = Sidecar(
    spiffe_id=A,
    version="f00d",
    known_callers=(A, B, FAR),
    inbound=(WEB, DB),
    outbound=(
        Outbound(service="far", spiffe_id=FAR, endpoints=("10.0.0.1:443",), protocol="http"),
        Outbound(service="queue", spiffe_id=B, endpoints=("10.0.0.2:99",), protocol="tcp"),
    ),
)


def snapshot(contained=NOBODY, sidecar=SIDECAR):
    return Snapshot.of("v", config_resources(sidecar, SETTINGS, TOKEN_KEYS, contained))


def filter_of(made, name):
    shown = json.loads(json_format.MessageToJson(made.of_type(names.EXTENSION)[name].as_any()))
    return shown["typedConfig"]


def codes(matcher):
    return [part.partition("|")[0] for part in json.dumps(matcher).split('"name": "')[1:]]


def test_nobody_contained_costs_nothing():
    assert snapshot(Contained(7, ())).resources == snapshot().resources


def test_containing_a_caller_changes_filters_that_decide_and_no_listener():
    changed = snapshot(Contained(1, ("spiffe://td.test/notify",))).changed_from(snapshot())
    assert changed == {names.EXTENSION: (names.operations_filter("db"), names.operations_filter("web"))}


def test_it_comes_before_everything_in_strict_and_in_permissive_mode():
    made = snapshot(Contained(1, (B,)))
    strict, permissive = (filter_of(made, names.operations_filter(one)) for one in ("web", "db"))
    # A permissive table is still only reported beside the one thing that is enforced.
    for tree in (strict["matcher"], permissive["matcher"], permissive["shadowMatcher"]):
        first = tree["matcherList"]["matchers"][0]
        assert first["predicate"]["singlePredicate"]["valueMatch"]["safeRegex"]["regex"] == "spiffe://td\\.test/b"
        assert codes(first["onMatch"])[-1] == "CALLER_CONTAINED"
    assert codes(permissive["matcher"]["onNoMatch"])[-1].startswith("not-contained")
    assert "matcher" not in filter_of(snapshot(), names.operations_filter("db")), "else this proves nothing"
    tokens = strict["matcher"]["matcherList"]["matchers"][1]
    assert codes(tokens["onMatch"])[-1] == "TOKEN_CONTAINED"


def test_a_service_without_tokens_is_not_asked_about_any():
    plain = msgspec.structs.replace(WEB, operations=WEB.operations[:1])
    made = snapshot(Contained(1, (B,)), msgspec.structs.replace(SIDECAR, inbound=(plain, DB)))
    assert len(filter_of(made, names.operations_filter("web"))["matcher"]["matcherList"]["matchers"]) == 1


@pytest.mark.parametrize("mode", list(MtlsMode))
def test_who_is_contained_serves_nobody_and_calls_nobody(mode):
    inbound = tuple(msgspec.structs.replace(one, mode=mode) for one in (WEB, DB))
    sidecar = msgspec.structs.replace(SIDECAR, inbound=inbound)
    made = snapshot(Contained(1, (A,)), sidecar)
    for service in ("web", "db"):
        for name in (names.operations_filter(service), names.plaintext_filter(service)):
            tree = filter_of(made, name)["matcher"]
            assert "matcherList" not in tree
            assert codes(tree["onNoMatch"])[-1] == "IDENTITY_CONTAINED"
    assert not [name for name in made.of_type(names.CLUSTER) if name.startswith("remote/")]
    listeners = made.changed_from(snapshot(sidecar=sidecar)).get(names.LISTENER, ())
    assert not [name for name in listeners if name.startswith("inbound")]


def test_nobody_calls_who_is_contained():
    made = snapshot(Contained(1, (FAR,)))
    assert names.remote_cluster("far") not in made.of_type(names.CLUSTER)
    assert names.remote_cluster("queue") in made.of_type(names.CLUSTER)
