"""What tokens add to a sidecar's resources, and what they leave as it is."""

import json
import re

import msgspec
import pytest
from cel.expr import syntax_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from xds.type.matcher.v3 import cel_pb2

from eastwest.mesh import cel, names
from eastwest.mesh.paths import Template
from eastwest.mesh.resources import config_resources
from eastwest.mesh.settings import Settings
from eastwest.mesh.snapshot import Snapshot
from eastwest.mesh.tokens import notes, path_tenants, verification
from eastwest.mesh.tree import http_operations, tcp_callers
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    OriginRules,
    Rule,
    Sidecar,
    TcpMatch,
    TenantRules,
    TenantSource,
    TokenRules,
    Verdict,
)

ME, CALLER = "spiffe://td.test/web", "spiffe://td.test/b"
KEYS = b'{"keys":[]}'
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
NEVER = Rule(verdict=Verdict.DENY, code=DecisionCode.OPERATION_NOT_PERMITTED)
STEP_UP = Rule(
    verdict=Verdict.DENY,
    code=DecisionCode.STEP_UP_REQUIRED,
    token=TokenRules(unapproved=OriginRules(otherwise=ALLOW), approved=OriginRules(otherwise=ALLOW)),
)
SETTINGS = Settings(egress_socket="/run/egress.sock")


def operation(rule: Rule, path: str = "/x", **more) -> OperationRules:
    cells = more.pop("cells", (Cell(callers=(CALLER,), rule=rule),))
    return OperationRules(name="web:x:do", match=HttpMatch(method="POST", path=path), cells=cells, **more)


def inbound(*operations: OperationRules) -> Inbound:
    return Inbound(
        service="web",
        address="127.0.0.1",
        port=1,
        protocol="http",
        mode=MtlsMode.STRICT,
        upstream="unix:/a",
        operations=operations,
    )


def snapshot(*operations: OperationRules, keys: bytes = KEYS) -> Snapshot:
    sidecar = Sidecar(spiffe_id=ME, version="v", known_callers=(CALLER,), inbound=(inbound(*operations),))
    made = config_resources(sidecar, SETTINGS, keys)
    return Snapshot.of("v", made)


def text(message) -> str:
    return json.dumps(json_format.MessageToDict(message))


def filters(before: Snapshot, after: Snapshot, *, routes: bool = False) -> set[str]:
    """The kinds of filters that changed."""
    changed = after.changed_from(before)
    expected = (names.ROUTES,) if routes else ()
    assert changed.keys() - {names.EXTENSION} == set(expected), "nothing drains"
    assert not routes or changed[names.ROUTES] == ("inbound/web/tls",)
    return {name.partition("/")[0] for name in changed.get(names.EXTENSION, ())}


def test_neither_keys_nor_tokens_change_a_listener():
    plain, asking = snapshot(operation(ALLOW)), snapshot(operation(STEP_UP))
    verdicts = {"eastwest.operations", "eastwest.plaintext"}
    assert filters(plain, asking, routes=True) == verdicts | {"eastwest.tokens"}
    assert filters(asking, snapshot(operation(STEP_UP), keys=b'{"keys":[1]}')) == {"eastwest.tokens"}
    assert filters(plain, snapshot(operation(ALLOW), keys=b'{"keys":[1]}')) == set()
    once = snapshot(operation(STEP_UP, single_use=True))
    # Where each token counts once nobody remembers those that were good.
    assert filters(asking, once, routes=True) == verdicts | {"eastwest.tokens"}


@pytest.mark.parametrize(
    ("made", "enabled"),
    [
        (operation(ALLOW), set()),
        (operation(ALLOW, single_use=True), set()),
        (operation(STEP_UP), {"eastwest.tokens/web", "eastwest.tenants/web"}),
        (
            operation(STEP_UP, single_use=True),
            {"eastwest.tokens/web", "eastwest.tenants/web", "envoy.filters.http.ext_authz"},
        ),
    ],
)
def test_only_services_that_look_at_tokens_run_what_reads_them(made, enabled):
    resource = snapshot(made).of_type(names.ROUTES)["inbound/web/tls"]
    (host,) = route_pb2.RouteConfiguration.FromString(resource.body).virtual_hosts
    assert set(host.typed_per_filter_config) == enabled
    checked = {"eastwest.single-use"} if "envoy.filters.http.ext_authz" in enabled else {""}
    assert {route.name for route in host.routes if not route.HasField("direct_response")} == checked
    listener = listener_pb2.Listener.FromString(snapshot(made).of_type(names.LISTENER)["inbound/web"].body)
    manager = hcm_pb2.HttpConnectionManager.FromString(listener.filter_chains[0].filters[0].typed_config.value)
    assert [f.name for f in manager.http_filters if f.disabled] == [
        "eastwest.tokens/web",
        "eastwest.tenants/web",
        "envoy.filters.http.ext_authz",
    ]


def test_nothing_is_verified_without_keys_or_need():
    assert verification(inbound(operation(STEP_UP)), KEYS, "spiffe://td.test").rules
    for rules, keys in ((STEP_UP, b""), (ALLOW, KEYS)):
        assert not verification(inbound(operation(rules)), keys, "spiffe://td.test").ByteSize()
    by_claim = TenantRules(by_tenant={"acme": ALLOW}, otherwise=NEVER)
    cells = (Cell(callers=(CALLER,), tenants=by_claim),)
    needed = operation(NEVER, tenant=TenantSource(claim=True), cells=cells)
    assert verification(inbound(needed), KEYS, "spiffe://td.test").rules


def test_a_rule_without_tokens_has_nothing_of_them_in_its_tree():
    plain = text(http_operations("web", [operation(ALLOW)], [CALLER], "v"))
    assert "token" not in plain
    assert "cel" not in plain
    assert "x-eastwest-token-action" in bytes_of(http_operations("web", [operation(STEP_UP)], [CALLER], "v"))


def test_only_what_a_token_allows_is_checked_for_single_use():
    for rule, count in ((ALLOW, 0), (STEP_UP, 1), (NEVER, 0)):
        tree = bytes_of(http_operations("web", [operation(rule, single_use=True)], [CALLER], "v"))
        assert tree.count("|v|once") == count
        assert "once" not in bytes_of(http_operations("web", [operation(rule)], [CALLER], "v"))
    allowed_anyhow = msgspec.structs.replace(STEP_UP, verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED)
    tree = bytes_of(http_operations("web", [operation(allowed_anyhow, single_use=True)], [CALLER], "v"))
    assert tree.count("ALLOWED|p|web:x:do|v|once") == 1
    assert tree.count("ALLOWED||web:x:do|v") == 1, "without a token there is nothing to use up"


def test_many_callers_share_one_subtree():
    def size(count: int) -> int:
        callers = tuple(f"spiffe://td.test/caller-{number}" for number in range(count))
        return http_operations(
            "web", [operation(NEVER, cells=(Cell(callers=callers, rule=STEP_UP),))], [CALLER], "v"
        ).ByteSize()

    assert size(200) - size(100) < 100 * 60


def test_a_connection_brings_no_token():
    made = OperationRules(name="db:x:open", match=TcpMatch(), cells=(Cell(callers=(CALLER,), rule=STEP_UP),))
    tree = bytes_of(tcp_callers([made], [CALLER], "v"))
    assert "STEP_UP_REQUIRED" in tree
    assert "token" not in tree


SEGMENTS = st.sampled_from(["a", "t", "v1.0", "{x}", "{y}", "{tenant}"])


@given(
    st.lists(SEGMENTS, min_size=1, max_size=5, unique=True).filter(lambda s: "{tenant}" in s),
    st.lists(st.sampled_from(["acme", "t", "a", "v1.0", "v1x0", "zap~1"]), min_size=1, max_size=5),
    st.sampled_from(["", "?", "?a=/t/x", "?x?y"]),
)
def test_the_tenant_that_is_read_out_of_a_path_is_the_template_s(segments, values, query):
    template = Template.parse("/" + "/".join(segments))
    path = "/" + "/".join(values)
    found = re.fullmatch(template.capture("tenant"), path + query)
    matched = template.match(path)
    if matched is not None:
        assert found is not None
        assert found[1] == matched["tenant"]
    filled = "/" + "/".join(
        value if segment.startswith("{") else segment for segment, value in zip(segments, values, strict=False)
    )
    if len(values) >= len(segments):
        assert re.fullmatch(template.capture("tenant"), filled + query)[1] == values[segments.index("{tenant}")]


def test_tenants_are_read_once_for_each_shape_of_path_that_needs_it():
    source = TenantSource(path="tenant")
    tenants = TenantRules(by_tenant={"acme": STEP_UP}, otherwise=NEVER)
    cells = (Cell(callers=(CALLER,), tenants=tenants),)
    plain = (Cell(callers=(CALLER,), tenants=TenantRules(by_tenant={"acme": ALLOW}, otherwise=NEVER)),)
    made = path_tenants(
        inbound(
            operation(NEVER, "/t/{tenant}/x", tenant=source, cells=cells),
            operation(NEVER, "/t/{tenant}/y/{z}", tenant=source, cells=cells),
            operation(NEVER, "/o/{org}/{tenant}", tenant=source, cells=cells),
            operation(NEVER, "/plain/{tenant}", tenant=source, cells=plain),
            operation(STEP_UP, "/none/{tenant}"),
        )
    )
    assert [rule.on_header_present.key for rule in made.request_rules] == ["/o/{}/{}", "/t/{}"]


def test_of_a_verified_token_logs_are_told_only_what_a_row_keeps():
    for operations in ((operation(ALLOW),), (operation(STEP_UP),)):  # only routes change where tokens come into use
        noted = notes(inbound(*operations)).request_rules
        assert [(rule.header, rule.on_header_present.metadata_namespace) for rule in noted] == [
            (f"x-eastwest-token-{name}", "eastwest.token")
            for name in ("transaction", "caller", "tenant", "approver", "origin")
        ]
    (provider,) = verification(inbound(operation(STEP_UP)), KEYS, "spiffe://td.test").providers.values()
    assert {rule.header for rule in noted} < {claim.header_name for claim in provider.claim_to_headers}
    assert not provider.payload_in_metadata


def test_an_expression_is_a_tree_of_numbered_nodes():
    made = cel.holds(
        cel.both(cel.same(cel.header("a"), cel.peer_uri()), cel.same(cel.metadata("m", "k"), cel.text("v")))
    )
    matcher = cel_pb2.CelMatcher.FromString(made.single_predicate.custom_match.typed_config.value)
    expression = matcher.expr_match.cel_expr_parsed.expr
    ids: list[int] = []

    def spelt(node: syntax_pb2.Expr) -> str:
        ids.append(node.id)
        match node.WhichOneof("expr_kind"):
            case "const_expr":
                return repr(node.const_expr.string_value)
            case "ident_expr":
                return node.ident_expr.name
            case "select_expr":
                return f"{spelt(node.select_expr.operand)}.{node.select_expr.field}"
            case _:
                return f"{node.call_expr.function}({', '.join(map(spelt, node.call_expr.args))})"

    assert spelt(expression) == (
        "_&&_(_==_(_[_](request.headers, 'a'), connection.uri_san_peer_certificate), "
        "_==_(_[_](_[_](metadata.filter_metadata, 'm'), 'k'), 'v'))"
    )
    assert sorted(ids) == list(range(1, len(ids) + 1))


def bytes_of(tree) -> str:
    """What is written in a tree, inside packed messages too."""
    return tree.SerializeToString().decode("latin-1")


@pytest.mark.parametrize("mode", list(MtlsMode))
def test_the_question_about_single_use_is_in_the_listener_in_every_mode(mode):
    sidecar = Sidecar(
        spiffe_id=ME,
        version="v",
        known_callers=(CALLER,),
        inbound=(msgspec.structs.replace(inbound(operation(ALLOW)), mode=mode),),
    )
    (listener,) = (r for r in config_resources(sidecar, SETTINGS) if r.name == names.inbound_listener("web"))
    body = listener.body.decode("latin-1")
    assert body.count("envoy.filters.http.ext_authz") == 1
    order = [body.index(name) for name in ("eastwest.tokens/", "eastwest.operations/", "ext_authz")]
    assert order == sorted(order)
