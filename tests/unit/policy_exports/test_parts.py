"""Labels, expressions, and the forms of the objects."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
from ruamel.yaml import YAML

from eastwest.policy.exports.formats import FORMATS
from eastwest.policy.exports.labels import label, object_name
from eastwest.policy.exports.regions import Part, Region, all_but, cut, region
from eastwest.policy.load import load_estate
from eastwest.policy.paths import Template
from eastwest.policy.table import compile_estate
from eastwest.testing.estates import random_estate

LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def test_labels_tell_workloads_apart():
    ids = ["/a/b", "/a.b", "/a_db", "/a_b", "/a__b", "/a./b", "/a/.b", "/-a", "/a-", "/A/b", "/" + "x" * 80, "/_"]
    labels = [label(f"spiffe://t.example{path}") for path in ids]
    assert labels[0] == "a.b"
    assert len(set(labels)) == len(ids)
    assert all(LABEL_VALUE.fullmatch(one) for one in labels)
    names = [object_name(f"spiffe://t.example{path}") for path in ids]
    assert len(set(names)) == len(ids)
    assert all(NAME.fullmatch(one) for one in names)


def test_all_but_some_words():
    random = Random(5)
    for _ in range(200):
        words = {"".join(random.choices("ab.-z9~_", k=random.randint(1, 4))) for _ in range(random.randint(0, 9))}
        expression = re.compile(all_but(words))
        for _ in range(100):
            text = "".join(random.choices("ab.-z9~_", k=random.randint(0, 5)))
            assert bool(expression.fullmatch(text)) == (bool(text) and text not in words), (text, words)
    one_character = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-"
    assert re.fullmatch(all_but(one_character), "ab")
    assert not re.fullmatch(all_but(one_character), "a")


def test_regions_are_cut_exactly():
    random = Random(6)
    words = ("a", "b", "all", "x.y", ".", "$c")
    for _ in range(300):
        mine, *others = (_template(random) for _ in range(3))
        narrowed = (
            region(mine, "p", Part(frozenset(random.sample(words[:4], 2)))) if random.random() < 0.4 else region(mine)
        )
        pieces = [narrowed]
        for other in others:
            left = cut(pieces, other)
            assert left is not None
            pieces = left
        for _ in range(60):
            path = "/" + "/".join(random.choice(words) for _ in range(len(mine.segments)))
            wanted = _holds(narrowed, path) and not any(other.match(path) is not None for other in others)
            hits = sum(_holds(piece, path) for piece in pieces)
            assert hits == wanted, (path, mine, others)


def _template(random):
    names = iter("pqr")
    return Template.parse(
        "/" + "/".join(random.choice(["a", "all", "$c", f"{{{name}}}", f"{{{name}}}"]) for name in names)
    )


def _holds(one: Region, path: str) -> bool:
    if one.literal is not None:
        assert re.fullmatch(one.regex(), one.literal)
    return re.fullmatch(one.regex(), path) is not None


def test_too_many_pieces_are_refused():
    wide = Template.parse("/" + "/".join(f"{{p{i}}}" for i in range(12)))
    pieces = [region(wide)]
    for i in range(40):
        narrow = "/".join(f"w{i}" if (i >> (j % 6)) & 1 or j < 4 else f"{{p{j}}}" for j in range(12))
        found = cut(pieces, Template.parse("/" + narrow))
        if found is None:
            return
        pieces = found
    pytest.fail("never refused")


TEXT, NUMBER, TEXTS = str, int, [str]
SELECTOR = {"matchLabels": {"eastwest/workload": TEXT}}
EXPRESSIONS = [{"key": TEXT, "operator": TEXT, "values": TEXTS}]
REFERENCE = {"group": TEXT, "kind": TEXT, "name": TEXT}
# The fields that we use, as the owners' schemas have them: istio/api kubernetes/customresourcedefinitions.gen.yaml,
# linkerd2 charts/linkerd-crds/templates/policy, kubernetes api/openapi-spec, cilium pkg/k8s/apis/cilium.io/client/crds.
FORMS = {
    ("security.istio.io/v1", "AuthorizationPolicy"): {
        "selector": SELECTOR,
        "action": TEXT,
        "rules": [
            {
                "from": [{"source": {"principals": TEXTS}}],
                "to": [{"operation": {"ports": TEXTS, "methods": TEXTS, "paths": TEXTS, "notPaths": TEXTS}}],
                "when": [{"key": TEXT, "values": TEXTS, "notValues": TEXTS}],
            }
        ],
    },
    ("policy.linkerd.io/v1beta3", "Server"): {
        "podSelector": SELECTOR,
        "port": NUMBER,
        "proxyProtocol": TEXT,
        "accessPolicy": TEXT,
    },
    ("policy.linkerd.io/v1beta3", "HTTPRoute"): {
        "parentRefs": [REFERENCE],
        "rules": [{"matches": [{"method": TEXT, "path": {"type": TEXT, "value": TEXT}}]}],
    },
    ("policy.linkerd.io/v1alpha1", "MeshTLSAuthentication"): {"identities": TEXTS},
    ("policy.linkerd.io/v1alpha1", "AuthorizationPolicy"): {
        "targetRef": REFERENCE,
        "requiredAuthenticationRefs": [REFERENCE],
    },
    ("networking.k8s.io/v1", "NetworkPolicy"): {
        "podSelector": SELECTOR,
        "policyTypes": TEXTS,
        "ingress": [
            {
                "from": [{"namespaceSelector": {}, "podSelector": {"matchExpressions": EXPRESSIONS}}],
                "ports": [{"protocol": TEXT, "port": NUMBER}],
            }
        ],
    },
    ("cilium.io/v2", "CiliumNetworkPolicy"): {
        "endpointSelector": SELECTOR,
        "ingress": [
            {
                "fromEndpoints": [{"matchExpressions": EXPRESSIONS}],
                "fromEntities": TEXTS,
                "toPorts": [{"ports": [{"port": TEXT, "protocol": TEXT}]}],
            }
        ],
    },
}


def check(form, value, where):
    if isinstance(form, dict):
        assert isinstance(value, dict), where
        assert set(value) <= set(form), where
        for key, one in value.items():
            check(form[key], one, f"{where}.{key}")
    elif isinstance(form, list):
        assert isinstance(value, list), where
        for one in value:
            check(form[0], one, where)
    else:
        assert type(value) is form, where


def test_objects_have_their_owners_forms():
    seen = set()
    for seed in range(8):
        compiled = compile_estate(load_estate(random_estate(Random(seed)).files))
        for wanted in ("istio", "linkerd", "kubernetes", "cilium"):
            names = []
            for text in FORMATS[wanted](compiled, ()).files.values():
                for document in YAML(typ="safe").load_all(text):
                    seen.add(_checked(document))
                    names.append((document["kind"], document["metadata"]["name"]))
            assert len(names) == len(set(names))
    assert seen == set(FORMS)


def _checked(document):
    kind = document["apiVersion"], document["kind"]
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    check(FORMS[kind], document["spec"], kind)
    assert NAME.fullmatch(document["metadata"]["name"])
    rules = document["spec"].get("rules", ())
    assert len(rules) <= (16 if document["kind"] == "HTTPRoute" else 512)
    for matches in (rule["matches"] for rule in rules if "matches" in rule):
        assert len(matches) <= 8
        for match in matches:
            assert match["path"]["type"] in {"Exact", "RegularExpression"}
            assert len(match["path"]["value"]) <= 1024
    return kind


def test_exports_are_the_same_every_time():
    files = random_estate(Random(3)).files
    for wanted, export in FORMATS.items():
        first, second = (export(compile_estate(load_estate(files)), ()) for _ in range(2))
        assert first == second, wanted


def test_the_table_says_where_the_tenant_is_and_what_a_call_without_a_token_gets():
    root = Path(__file__).parents[3] / "examples" / "estate"
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    def rows(operation: str) -> list[list[str]]:
        text = FORMATS["table"](compile_estate(load_estate(files)), ()).files["table.txt"]
        return [re.split(r" {2,}", line)[3:] for line in text.splitlines() if f" {operation} " in line]

    caller, policy = "spiffe://saas.example/prod/messaging/notification", "notification-reads-its-tenants-contacts"
    assert [caller, "acme", f"ALLOWED {policy}", "-"] in [row[1:] for row in rows("billing:contacts:read")]
    assert {row[0] for row in rows("billing:contacts:read")} == {"path tenant"}
    assert {row[0] for row in rows("notification:messages:send")} == {"header x-tenant"}
    assert {row[0] for row in rows("billing:health:read")} == {"-"}
    files["services/billing.yaml"] = files["services/billing.yaml"].replace(b"{path: tenant}", b"{claim: true}")
    by_token = rows("billing:contacts:read")
    assert ["claim", caller, "acme", "TENANT_MISSING", f"ALLOWED {policy}"] in by_token
    assert {row[3] for row in by_token if row[1] == caller} == {"TENANT_MISSING"}
