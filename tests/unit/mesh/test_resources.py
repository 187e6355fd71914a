"""The whole translation: a fixed table against golden files, and what it refuses."""

import json
import os
from pathlib import Path

import msgspec
import pytest
from envoy.config.route.v3 import route_pb2
from google.protobuf import json_format

from eastwest.mesh import names
from eastwest.mesh.bootstrap import bootstrap
from eastwest.mesh.clusters import MalformedAddress, address
from eastwest.mesh.resources import (
    config_resources,
    sidecar_secrets,
    sidecar_snapshot,
    verifiable,
    versions_in_force,
)
from eastwest.mesh.secrets import Identity
from eastwest.mesh.settings import Settings
from eastwest.mesh.snapshot import DanglingReference
from eastwest.mesh.tree import UnsupportedRules
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    GrpcMatch,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    OriginRules,
    Outbound,
    Recording,
    Rule,
    Sidecar,
    TcpMatch,
    TenantRules,
    TenantSource,
    TokenRules,
    Verdict,
    unrecordable,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "mesh"
A, B, FAR = "spiffe://td.test/a", "spiffe://td.test/b", "spiffe://far.test/c"
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
DENY = Rule(verdict=Verdict.DENY, code=DecisionCode.TENANT_NOT_PERMITTED)
TENANTS = TenantRules(by_tenant={"acme": ALLOW, "globex": ALLOW}, otherwise=DENY)
STEP_UP = Rule(
    verdict=Verdict.DENY,
    code=DecisionCode.STEP_UP_REQUIRED,
    token=TokenRules(
        unapproved=OriginRules(otherwise=Rule(verdict=Verdict.DENY, code=DecisionCode.APPROVAL_REQUIRED)),
        approved_by={"unix:uid:0": OriginRules(by_origin={FAR: DENY}, otherwise=ALLOW)},
        approved=OriginRules(otherwise=ALLOW),
    ),
)
TOKEN_KEYS = b'{"keys":[]}'
SETTINGS = Settings(egress_socket="/run/a/egress.sock", tcp_egress_directory="/run/a")
WEB = Inbound(
    service="web",
    address="127.0.0.1",
    port=8443,
    protocol="http",
    mode=MtlsMode.STRICT,
    upstream="unix:/run/a/app.sock",
    operations=(
        OperationRules(
            name="web:items:read",
            match=HttpMatch(method="GET", path="/t/{tenant}/items/{item}"),
            tenant=TenantSource(path="tenant"),
            cells=(Cell(callers=(B,), tenants=TENANTS), Cell(callers=(FAR,), rule=ALLOW)),
        ),
        OperationRules(
            name="web:notes:send",
            match=GrpcMatch(method="web.v1.Notes/Send"),
            tenant=TenantSource(header="x-tenant"),
            cells=(Cell(callers=(B,), tenants=TENANTS),),
        ),
        OperationRules(
            name="web:items:delete",
            match=HttpMatch(method="DELETE", path="/t/{tenant}/items/{item}"),
            tenant=TenantSource(path="tenant"),
            single_use=True,
            cells=(Cell(callers=(B,), tenants=TenantRules(by_tenant={"acme": STEP_UP}, otherwise=DENY)),),
        ),
    ),
)
DB = Inbound(
    service="db",
    address="127.0.0.1",
    port=8444,
    protocol="tcp",
    mode=MtlsMode.PERMISSIVE,
    upstream="tcp:127.0.0.1:5432",
    operations=(OperationRules(name="db:sessions:open", match=TcpMatch(), cells=(Cell(callers=(B,), rule=ALLOW),)),),
)
SIDECAR = Sidecar(
    spiffe_id=A,
    version="f00d",
    known_callers=(A, B, FAR),
    inbound=(WEB, DB),
    outbound=(
        Outbound(service="far", spiffe_id=FAR, endpoints=("far.example:443", "10.0.0.1:443"), protocol="http"),
        Outbound(service="queue", spiffe_id=B, endpoints=("[::1]:99",), protocol="tcp"),
    ),
)
FEDERATED = msgspec.structs.replace(SIDECAR, federated_callers=("far.test",))
BUNDLES = {"td.test": b"td root", "far.test": b"far root", "unneeded.test": b"x"}


def rendered(resource) -> object:
    return json.loads(json_format.MessageToJson(resource.as_any(), sort_keys=True))


def test_golden():
    made = config_resources(SIDECAR, SETTINGS, TOKEN_KEYS)
    found = {f"{r.type_url.rpartition('.')[2]} {r.name}": rendered(r) for r in made}
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    file = GOLDEN / "sidecar.json"
    if os.environ.get("EASTWEST_WRITE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), "the translation changed; EASTWEST_WRITE_GOLDEN=1 writes the new one"


def test_a_policy_or_mode_change_touches_filters_only():
    secrets = sidecar_secrets(SIDECAR, Identity(A, b"chain", b"key"), BUNDLES)
    before = sidecar_snapshot(SIDECAR, SETTINGS, secrets)
    *others, asking = WEB.operations
    operations = (*(msgspec.structs.replace(o, cells=()) for o in others), asking)
    for change in ({"mode": MtlsMode.PERMISSIVE}, {"operations": operations}):
        inbound = (msgspec.structs.replace(WEB, **change), DB)
        after = sidecar_snapshot(msgspec.structs.replace(SIDECAR, inbound=inbound), SETTINGS, secrets)
        changed = after.changed_from(before)
        assert changed.keys() == {names.EXTENSION}
        assert all(name.endswith("/web") for name in changed[names.EXTENSION])


def test_refusing_for_want_of_a_record_leaves_listeners_and_clusters_alone():
    """They would drain, and go on enforcing the old rules until they had."""
    secrets = sidecar_secrets(SIDECAR, Identity(A, b"chain", b"key"), BUNDLES)
    required = msgspec.structs.replace(WEB, recording=Recording.REQUIRED)
    sidecar = msgspec.structs.replace(SIDECAR, inbound=(required, DB))
    before = sidecar_snapshot(sidecar, SETTINGS, secrets)
    assert unrecordable(SIDECAR) is SIDECAR
    after = sidecar_snapshot(unrecordable(sidecar), SETTINGS, secrets)
    changed = after.changed_from(before)
    assert names.EXTENSION in changed
    assert changed.keys() <= {names.EXTENSION, names.ROUTES}
    assert all("/web" in name for kind in changed.values() for name in kind)
    rules = [o.otherwise for o in unrecordable(sidecar).inbound[0].operations]
    assert {rule.code for rule in rules} == {DecisionCode.RECORD_UNAVAILABLE}
    assert all(not o.cells for o in unrecordable(sidecar).inbound[0].operations)


def test_secrets_are_only_those_needed():
    secrets = sidecar_secrets(SIDECAR, Identity(A, b"chain", b"key"), BUNDLES)
    assert set(secrets.all_names()) == {A, "spiffe://td.test", "spiffe://far.test"}
    snapshot = sidecar_snapshot(SIDECAR, SETTINGS, secrets)
    assert set(snapshot.of_type(names.SECRET)) == {A, "spiffe://td.test", "spiffe://far.test", names.CALLERS_SECRET}
    no_far = sidecar_secrets(SIDECAR, Identity(A, b"chain", b"key"), {"td.test": b"td root"})
    with pytest.raises(DanglingReference) as error:
        sidecar_snapshot(SIDECAR, SETTINGS, no_far)
    assert "spiffe://far.test" in str(error.value)


def test_callers_of_a_foreign_trust_domain_are_trusted_where_a_policy_admits_some():
    for sidecar, trusted in ((SIDECAR, {"td.test"}), (FEDERATED, {"td.test", "far.test"})):
        secrets = sidecar_secrets(sidecar, Identity(A, b"chain", b"key"), BUNDLES)
        assert set(secrets.callers) == trusted
        # The way out to far.test is verified by its bundle either way, and by no other.
        assert "far.test" in secrets.bundles


def test_a_missing_foreign_bundle_takes_away_its_services_and_nothing_else():
    known, lost = verifiable(FEDERATED, {"td.test"})
    assert lost == ("far",)
    assert [outbound.service for outbound in known.outbound] == ["queue"]
    secrets = sidecar_secrets(known, Identity(A, b"chain", b"key"), {"td.test": b"td root"})
    names_of_clusters = sidecar_snapshot(known, SETTINGS, secrets).of_type(names.CLUSTER)
    assert "remote/queue" in names_of_clusters
    assert "remote/far" not in names_of_clusters
    assert verifiable(FEDERATED, BUNDLES) == (FEDERATED, ())


def test_versions_lead_back_to_their_rules():
    found = versions_in_force(SIDECAR)
    assert {rules.service for rules in found.values()} == {"web", "db"}
    assert all(rules.policy_version == "f00d" and len(version) == 12 for version, rules in found.items())


def test_an_unknown_mode_is_enforced():
    odd = msgspec.structs.replace(WEB, mode="strict")  # a plain text that never went through the decoder
    same = {r.name: r for r in config_resources(msgspec.structs.replace(SIDECAR, inbound=(odd,)), SETTINGS)}
    filters = json.dumps(rendered(same[names.operations_filter("web")]))
    assert '"matcher"' in filters
    assert "shadowMatcher" not in filters


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"operations": (msgspec.structs.replace(WEB.operations[0], match=TcpMatch()),)}, "TCP operation"),
        ({"operations": (msgspec.structs.replace(WEB.operations[0], cells=(Cell(callers=(B,)),)),)}, "neither"),
        ({"operations": (msgspec.structs.replace(WEB.operations[0], tenant=None),)}, "neither"),
        ({"protocol": "tcp", "operations": DB.operations * 2}, "more than one"),
        (
            {
                "protocol": "tcp",
                "operations": (
                    msgspec.structs.replace(DB.operations[0], cells=(Cell(callers=(B,), tenants=TENANTS),)),
                ),
            },
            "no tenant",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused(change, reason):
    sidecar = msgspec.structs.replace(SIDECAR, inbound=(msgspec.structs.replace(WEB, **change),))
    with pytest.raises(UnsupportedRules) as error:
        config_resources(sidecar, SETTINGS)
    assert reason in str(error.value)


@pytest.mark.parametrize("text", ["", "localhost", "tcp:host:", "host:0", "host:70000", ":80", "host:x"])
def test_malformed_addresses(text):
    with pytest.raises(MalformedAddress):
        address(text)


def test_the_bootstrap_opens_no_port():
    config = json.loads(
        bootstrap(node_id="n", spiffe_id=A, agent_socket="/run/agent.sock", admin_socket="/run/admin.sock")
    )
    assert config["admin"]["address"]["pipe"] == {"path": "/run/admin.sock", "mode": 0o600}
    assert config["node"]["id"] == "n"
    assert "socket_address" not in json.dumps(config)


SAFE = msgspec.structs.replace(
    SIDECAR,
    inbound=tuple(msgspec.structs.replace(one, post_quantum=True) for one in SIDECAR.inbound),
    outbound=tuple(msgspec.structs.replace(one, post_quantum=one.service == "queue") for one in SIDECAR.outbound),
)


def test_a_demand_for_post_quantum_keys_leaves_one_algorithm_one_group_and_its_roots():
    secrets = sidecar_secrets(SAFE, Identity(A, b"chain", b"key"), BUNDLES, {"td.test": b"safe root"})
    snapshot = sidecar_snapshot(SAFE, SETTINGS, secrets)
    text = {
        name: rendered_tls(snapshot, kind, name)
        for kind, name in (
            (names.LISTENER, "inbound/web"),
            (names.CLUSTER, "remote/queue"),
            (names.CLUSTER, "remote/far"),
        )
    }
    for name, secret in (
        ("inbound/web", "eastwest:callers:post-quantum"),
        ("remote/queue", "eastwest:post-quantum:td.test"),
    ):
        parameters, trusted = text[name]
        assert parameters["signatureAlgorithms"] == ["mldsa65"]
        assert parameters["ecdhCurves"] == ["X25519MLKEM768"]
        assert trusted == secret
    parameters, trusted = text["remote/far"]
    assert parameters["signatureAlgorithms"][:2] == ["mldsa65", "ecdsa_secp256r1_sha256"]
    assert parameters["ecdhCurves"] == ["X25519MLKEM768", "X25519", "P-256"]
    assert trusted == "spiffe://far.test"
    known = set(snapshot.of_type(names.SECRET))
    assert {"eastwest:callers:post-quantum", "eastwest:post-quantum:td.test"} <= known
    # Nobody else is told of them.
    plain = sidecar_secrets(SIDECAR, Identity(A, b"chain", b"key"), BUNDLES, {"td.test": b"safe root"})
    assert not plain.post_quantum


def test_without_an_ml_dsa_root_a_service_that_demands_one_is_left_out_and_none_is_opened():
    known, lost = verifiable(SAFE, BUNDLES)
    assert lost == ("queue",)
    assert verifiable(SAFE, BUNDLES, {"td.test"}) == (SAFE, ())
    secrets = sidecar_secrets(known, Identity(A, b"chain", b"key"), BUNDLES, {"far.test": b"safe root"})
    with pytest.raises(DanglingReference, match="eastwest:callers:post-quantum"):
        sidecar_snapshot(known, SETTINGS, secrets)


def rendered_tls(snapshot, kind, name):
    """The TLS parameters of a listener or cluster, and the name of the secret that it trusts."""
    made = rendered(snapshot.of_type(kind)[name])
    socket = made["filterChains"][0]["transportSocket"] if kind == names.LISTENER else made["transportSocket"]
    context = socket["typedConfig"]["commonTlsContext"]
    trusted = (
        context.get("validationContextSdsSecretConfig")
        or context["combinedValidationContext"]["validationContextSdsSecretConfig"]
    )
    return context["tlsParams"], trusted["name"]


def test_a_route_before_all_others_keeps_canaries_from_the_application():
    made = config_resources(SIDECAR, SETTINGS)
    for resource in (r for r in made if r.type_url == names.ROUTES and r.name.endswith("/tls") and "inbound" in r.name):
        (host,) = route_pb2.RouteConfiguration.FromString(resource.body).virtual_hosts
        first = host.routes[0]
        assert first.direct_response.status == 204
        (header,) = first.match.headers
        assert header.name == "x-forwarded-client-cert"
        domain = SIDECAR.spiffe_id.removeprefix("spiffe://").partition("/")[0]
        assert header.string_match.contains == f";URI=spiffe://{domain}/eastwest/canary/"
        assert not any(route.HasField("direct_response") for route in host.routes[1:])


def test_canaries_change_one_filter_of_a_service_and_no_version():
    usual = {(r.type_url, r.name): r.version for r in config_resources(SIDECAR, SETTINGS)}
    leased = {(r.type_url, r.name): r.version for r in config_resources(SIDECAR, SETTINGS, canaries=True)}
    changed = {name for name, version in leased.items() if usual[name] != version}
    assert changed
    assert changed <= {(names.EXTENSION, names.operations_filter(inbound.service)) for inbound in SIDECAR.inbound}
