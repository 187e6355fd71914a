"""What other meshes are told: the cases in which saying less takes thought."""

from __future__ import annotations

from ruamel.yaml import YAML

from eastwest.policy.exports import istio
from eastwest.policy.exports.formats import FORMATS

A, B, PARTNER = "spiffe://t.example/prod/d/a", "spiffe://t.example/prod/d/b", "spiffe://f.example/partner"
EVERYBODY = "permit (principal, action, resource);"
BY_ROOT = 'context has approval && context.approval.approver == "unix:uid:0"'
LIST = 'name: "s:t:list", match: {method: GET, path: "/t/{tenant}/i"}, sensitivity: read'
ALL = 'name: "s:all:list", match: {method: GET, path: /t/all/i}, sensitivity: control'
ANY = 'name: "s:any:read", match: {method: GET, path: "/t/{tenant}/{x}"}, sensitivity: read'


def exported(wanted, compiled):
    made = FORMATS[wanted](compiled, ())
    (text,) = made.files.values()
    return list(YAML(typ="safe").load_all(text)), [str(n) for n in made.narrower], text


def rules(compiled):
    documents, narrower, _ = exported("istio", compiled)
    return [rule for document in documents for rule in document["spec"].get("rules", ())], narrower


def test_nobody_allowed_is_a_policy_without_rules(compiled):
    (policy,), narrower, _ = exported("istio", compiled({"s": [LIST]}, []))
    assert policy["spec"] == {"selector": {"matchLabels": {"eastwest/workload": "prod.d.s"}}, "action": "ALLOW"}
    assert narrower == []


def test_tenants_of_paths_are_listed(compiled):
    found, narrower = rules(compiled({"s": [LIST]}, [EVERYBODY], tenant="tenant: {path: tenant}"))
    paths = {tuple(r["from"][0]["source"]["principals"]): r["to"][0]["operation"]["paths"] for r in found}
    assert paths == {
        ("t.example/prod/d/a",): ["/t/acme/i"],
        ("t.example/prod/d/b",): ["/t/acme/i", "/t/globex/i"],
    }
    assert found[0]["to"][0]["operation"]["methods"] == ["GET"]
    assert found[0]["to"][0]["operation"]["ports"] == ["8000"]
    assert narrower == []


def test_operations_that_come_first_are_excluded(compiled):
    policies = ['permit (principal, action == Action::"s:t:list", resource);']
    (rule,), _ = rules(compiled({"s": [LIST, ALL]}, policies))
    assert rule["to"][0]["operation"]["paths"] == ["/t/{*}/i"]
    assert rule["to"][0]["operation"]["notPaths"] == ["/t/all/i"]


def test_any_tenant_but_some(compiled):
    policies = [
        '@tenants("any") permit (principal == Workload::"spiffe://t.example/prod/d/a", action, resource);',
        'forbid (principal, action, resource) when { context.tenant == "globex" };',
    ]
    world = compiled({"s": [LIST]}, policies, tenant="tenant: {path: tenant}")
    (rule,), narrower = rules(world)
    assert rule["to"][0]["operation"]["paths"] == ["/t/{*}/i"]
    assert rule["to"][0]["operation"]["notPaths"] == ["/t/globex/i"]
    assert narrower == []
    documents, narrower, _ = exported("linkerd", world)
    (match,) = [m for d in documents if d["kind"] == "HTTPRoute" for r in d["spec"]["rules"] for m in r["matches"]]
    import re

    expression = re.compile(match["path"]["value"])
    assert [t for t in ("acme", "globex", "globe", "globexx", "g", "..", "a%62") if expression.match(f"/t/{t}/i")] == [
        "acme",
        "globe",
        "globexx",
        "g",
    ]


def test_tenants_of_headers(compiled):
    world = compiled({"s": [LIST]}, [EVERYBODY], tenant="tenant: {header: x-tenant}")
    found, narrower = rules(world)
    assert found[0]["when"] == [{"key": "request.headers[x-tenant]", "values": ["acme"]}]
    assert narrower == []
    documents, narrower, text = exported("linkerd", world)
    assert [d["kind"] for d in documents] == ["Server"]
    assert "Linkerd takes any one of repeated headers" in narrower[0]
    assert "# narrower: s:t:list is denied to 1 caller" in text
    assert "s:t:list" in documents[0]["metadata"]["annotations"]["eastwest/narrower"]


def test_a_tenant_that_istio_would_take_for_a_pattern_is_left_out(compiled):
    world = compiled({"s": [LIST]}, [EVERYBODY], tenant="tenant: {header: x-tenant}", workloads=[("a", ["*"])])
    found, (narrower,) = rules(world)
    assert found == []
    assert "which Istio takes for a pattern" in narrower


def test_any_tenant_in_a_header_is_left_out(compiled):
    policies = ['@tenants("any") permit (principal, action, resource);']
    found, narrower = rules(compiled({"s": [LIST]}, policies, tenant="tenant: {header: x-tenant}"))
    assert found == []
    assert "any tenant in a header could be two" in narrower[0]


def test_what_needs_a_token_is_left_out_and_what_a_token_refuses_wants_none(compiled):
    demanding = LIST + ", demands: [step-up]"
    policies = [
        "permit (principal, action, resource) when { context has step_up };",
        'permit (principal == Workload::"spiffe://t.example/prod/d/b", action, resource);',
        f'forbid (principal == Workload::"{B}", action, resource) when {{ {BY_ROOT} }};',
    ]
    world = compiled({"s": [demanding.replace("step-up", "approval, step-up")]}, policies)
    found, narrower = rules(world)
    by_caller = {p: r for r in found for p in r["from"][0]["source"]["principals"]}
    assert "t.example/prod/d/a" not in by_caller
    assert any("with a transaction token only" in line for line in narrower)
    if "t.example/prod/d/b" in by_caller:
        assert by_caller["t.example/prod/d/b"]["when"] == [{"key": "request.headers[txn-token]", "notValues": ["*"]}]


def test_a_tenant_in_the_token_is_left_out(compiled):
    for wanted in ("istio", "linkerd"):
        _, narrower, _ = exported(wanted, compiled({"s": [LIST]}, [EVERYBODY], tenant="tenant: {claim: true}"))
        assert any("its tenant is in the transaction token" in line for line in narrower)


def test_a_permissive_service_is_only_reported(compiled):
    world = compiled({"s": [LIST]}, [EVERYBODY], mtls="permissive")
    (policy,), _, _ = exported("istio", world)
    assert policy["metadata"]["annotations"]["istio.io/dry-run"] == "true"
    (server, *_), _, _ = exported("linkerd", world)
    assert server["spec"]["accessPolicy"] == "audit"
    for wanted in ("kubernetes", "cilium"):
        (policy,), _, text = exported(wanted, world)
        assert "permissive, so its port is open to all" in text
        (rule,) = policy["spec"]["ingress"]
        assert not {"from", "fromEndpoints"} & set(rule)


def test_a_tcp_service(compiled):
    world = compiled(
        {"s": ['name: "s:db:connect", match: {tcp: true}, sensitivity: read']}, [EVERYBODY], protocol="tcp"
    )
    (rule,), _ = rules(world)
    assert rule["to"] == [{"operation": {"ports": ["8000"]}}]
    documents, _, _ = exported("linkerd", world)
    assert [d["kind"] for d in documents] == ["Server", "MeshTLSAuthentication", "AuthorizationPolicy"]
    assert documents[0]["spec"]["proxyProtocol"] == "opaque"
    assert documents[2]["spec"]["targetRef"]["kind"] == "Server"
    assert A in documents[1]["spec"]["identities"]


def test_linkerds_routes_are_cut_apart(compiled):
    policies = [
        'permit (principal == Workload::"spiffe://t.example/prod/d/a", action == Action::"s:any:read", resource);',
        'permit (principal == Workload::"spiffe://t.example/prod/d/b", action == Action::"s:t:list", resource);',
    ]
    documents, narrower, _ = exported("linkerd", compiled({"s": [ANY, LIST, ALL]}, policies))
    import re

    matches = {}
    for document in documents:
        if document["kind"] == "HTTPRoute":
            for one in (m for rule in document["spec"]["rules"] for m in rule["matches"]):
                matches.setdefault(document["metadata"]["name"], []).append(re.compile(one["path"]["value"]))
    (any_route,) = [e for name, e in matches.items() if name == "eastwest-s-1"]
    (list_route,) = [e for name, e in matches.items() if name == "eastwest-s-2"]

    def taken(route, path):
        return any(e.match(path) for e in route)

    assert [taken(any_route, p) for p in ("/t/x/y", "/t/x/i", "/t/all/y", "/t/all/i")] == [True, False, True, False]
    assert [taken(list_route, p) for p in ("/t/x/y", "/t/x/i", "/t/all/y", "/t/all/i")] == [False, True, False, False]
    assert narrower == []


def test_long_lists_become_several_objects(compiled, monkeypatch):
    monkeypatch.setattr(istio, "MAX_RULES", 100)
    many = [f'name: "s:r{i}:read", match: {{method: GET, path: /r{i}}}, sensitivity: read' for i in range(136)]
    world = compiled({"s": many}, [EVERYBODY], workloads=[("a", ())])
    policies, _, _ = exported("istio", world)
    assert [(p["metadata"]["name"], len(p["spec"]["rules"])) for p in policies] == [
        ("eastwest-s", 100),
        ("eastwest-s-2", 36),
    ]
    routes = [d for d in exported("linkerd", world)[0] if d["kind"] == "HTTPRoute"]
    assert [sum(len(rule["matches"]) for rule in r["spec"]["rules"]) for r in routes] == [128, 8]


def test_pods_of_other_trust_domains_have_no_labels_here(compiled):
    for wanted in ("kubernetes", "cilium"):
        _, narrower, _ = exported(wanted, compiled({"s": [LIST]}, [EVERYBODY]))
        (told,) = narrower
        assert told.startswith("s: port 8000 is denied to 1 caller that may call it: it is of another trust domain")


def test_a_workload_with_two_services_has_one_network_policy(compiled):
    other = 'name: "z:t:list", match: {method: GET, path: /z}, sensitivity: read'
    world = compiled({"s": [LIST], "z": [other]}, ['permit (principal, action == Action::"s:t:list", resource);'])
    (policy,), _, _ = exported("kubernetes", world)
    assert [rule["ports"] for rule in policy["spec"]["ingress"]] == [[{"protocol": "TCP", "port": 8000}]]
    (policy,) = YAML(typ="safe").load_all(FORMATS["kubernetes"](world, ["z"]).files["network-policies.yaml"])
    assert len(policy["spec"]["ingress"]) == 1, "the pod's other ports stay as they are meant"


def test_a_pod_that_nobody_may_reach(compiled):
    (policy,), _, _ = exported("kubernetes", compiled({"s": [LIST]}, []))
    assert policy["spec"]["ingress"] == []
    (policy,), _, _ = exported("cilium", compiled({"s": [LIST]}, []))
    assert policy["spec"]["ingress"] == [{}], "an empty list would be no policy at all"
