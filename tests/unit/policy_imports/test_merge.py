"""What an import does to a service file, and what it leaves alone."""

from __future__ import annotations

import pytest

from eastwest.policy.imports.model import DocumentInvalid
from eastwest.policy.load import load_estate

API = """\
openapi: 3.1.0
info: {title: t, version: "1"}
paths:
  /t/{account}/things:
    get: {operationId: listThings}
    post: {operationId: createThing}
  /t/{account}/things/{id}:
    get: {operationId: getThing}
"""
BY_HAND = """\
# Shop: asked the team on Monday
service: shop
workload: spiffe://saas.example/prod/commerce/storefront
owner: 'group:commerce'   # for now
domain: commerce
listen: {port: 8449, protocol: http, mtls: strict}
upstream: {unix: /run/shop/app.sock}
tenant: {path: tenant}

operations:
  # the list
  - name: shop:things:browse     # our own name
    match: {method: GET, path: '/t/{tenant}/things'}
    sensitivity: restricted-read
    data: "personal"

  - {name: "shop:things:add", match: {path: "/t/{tenant}/things", method: POST}, sensitivity: mutate}
  - match:
      path: /t/{tenant}/old
      method: GET
    # nobody knows
    sensitivity: read
    name: shop:old:read
  # the load balancer asks  # keep
  - name: shop:health:read
    match: {method: GET, path: /healthz}
    sensitivity: open
# the end
"""


def test_a_first_import_is_an_estate(imported, example, operations):
    outcome = imported("shop.yaml")
    assert outcome.text.startswith("# who answers for it\nservice: shop\n")
    assert "tenant: {path: store}\n" in outcome.text
    assert "    # suggested: sensitivity: mutate\n" in outcome.text
    assert {name: o.get("sensitivity") for name, o in operations(outcome.text).items()} == {
        "shop:orders:list": "restricted-read",
        "shop:order:create": None,
        "shop:order:get": None,
        "shop:order:delete": None,
        "shop:stores-orders-refund:create": "control",
        "shop:healthz:read": None,
    }
    estate = load_estate(example | {"services/shop.yaml": outcome.text.encode()})
    (service,) = [s for s in estate.services if s.service == "shop"]
    assert len(service.operations) == len(outcome.appeared) == outcome.total == 6


@pytest.fixture
def example():
    from pathlib import Path

    root = Path(__file__).parents[3] / "examples" / "estate"
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["shop.yaml", "code-host.json", "phone.yaml", "cluster.json"])
def test_a_second_import_changes_nothing(imported, name):
    first = imported(name)
    second = imported(name, first.text)
    assert not second.is_changed
    assert (second.text, second.appeared, second.changed, second.vanished) == (first.text, [], [], [])
    assert second.left_out == first.left_out


def test_what_people_wrote_stays_byte_for_byte(imported):
    outcome = imported(API, BY_HAND)
    added = (
        "  - name: shop:thing:get\n"
        '    match: {method: GET, path: "/t/{tenant}/things/{id}"}\n'
        "    # suggested: sensitivity: read\n"
    )
    assert outcome.text == BY_HAND.replace("# the end\n", added + "# the end\n")
    assert [(v.name, str(v.where)) for v in outcome.vanished] == [("shop:old:read", "services/shop.yaml:18:5")]
    assert imported(API, outcome.text).text == outcome.text


def test_windows_lines_byte_order_mark_and_no_last_line(imported):
    text = "\ufeff" + BY_HAND.rstrip("\n").replace("# the end", "# no end").replace("\n", "\r\n")
    outcome = imported(API, text)
    assert outcome.text.startswith("\ufeff# Shop")
    assert outcome.text.count("\n") == outcome.text.count("\r\n") == text.count("\r\n") + 3
    assert outcome.text.replace(outcome.text[outcome.text.index("  - name: shop:thing:get") :], "") in text


def test_pruning_removes_what_vanished_but_not_what_is_kept(imported, operations):
    outcome = imported(API, BY_HAND, prune=True)
    assert set(operations(outcome.text)) == {
        "shop:things:browse",
        "shop:things:add",
        "shop:thing:get",
        "shop:health:read",
    }
    assert "# nobody knows" not in outcome.text
    assert "# the load balancer asks" in outcome.text
    assert outcome.pruned
    assert outcome.to_dict()["vanished"] == [
        {"name": "shop:old:read", "what": "GET /t/{tenant}/old", "where": "services/shop.yaml:18:5", "removed": True}
    ]


def test_a_moved_operation_keeps_its_name_and_its_words(imported):
    first = imported(API, BY_HAND)
    moved = API.replace("/t/{account}/things/{id}", "/v2/t/{who}/things/{id}")
    outcome = imported(
        moved, first.text.replace("    # suggested: sensitivity: read\n", "    sensitivity: read  # ours\n")
    )
    assert [(c.name, c.field, c.before, c.after) for c in outcome.changed] == [
        ("shop:thing:get", "path", "/t/{tenant}/things/{id}", "/v2/t/{tenant}/things/{id}")
    ]
    assert (
        '    match: {method: GET, path: "/v2/t/{tenant}/things/{id}"}\n    sensitivity: read  # ours\n' in outcome.text
    )


def test_an_operation_that_would_lose_its_tenant_is_a_new_one(imported):
    first = imported(API, BY_HAND)
    outcome = imported(API.replace("/t/{account}/things/{id}", "/things/{id}"), first.text)
    assert [a.what for a in outcome.appeared] == ["GET /things/{id}"]
    assert "shop:thing:get" in [v.name for v in outcome.vanished]
    assert outcome.appeared[0].name == "shop:things:read", "its first name is taken still"


def test_a_document_adds_what_the_file_does_not_say_and_overrides_nothing(imported):
    said = API.replace("{operationId: listThings}", "{x-eastwest-sensitivity: open, x-eastwest-data: public}")
    said = said.replace("{operationId: getThing}", "{operationId: getThing, x-eastwest-sensitivity: read}")
    first = imported(API, BY_HAND)
    outcome = imported(said, first.text)
    assert [(c.name, c.field, c.after) for c in outcome.changed] == [("shop:thing:get", "sensitivity", "read")]
    assert '{id}"}\n    sensitivity: read\n# the end' in outcome.text
    assert [n.message for n in outcome.notes] == [
        "shop:things:browse: the document says sensitivity: open, the file restricted-read: the file is kept",
        "shop:things:browse: the document says data: public, the file personal: the file is kept",
    ]
    again = imported(said, outcome.text)
    assert not again.is_changed


def test_words_are_added_to_operations_in_braces(imported):
    said = API.replace("{operationId: createThing}", "{x-eastwest-data: personal, x-eastwest-demands: [step-up]}")
    outcome = imported(said, BY_HAND)
    assert "sensitivity: mutate, data: personal, demands: [step-up]}\n" in outcome.text


def test_names_are_the_same_in_any_order_of_the_document(imported, operations):
    clashing = [
        "  /a/{x}/b: {get: {}}\n",
        "  /a/b/{y}: {get: {}}\n",
        "  /a/b: {get: {}}\n",
        "  /a-b/{x}: {get: {}}\n",
        "  /v1/a/b: {get: {}}\n",
    ]
    head = "openapi: 3.1.0\npaths:\n"
    forward, backward = (imported(head + "".join(lines)) for lines in (clashing, clashing[::-1]))
    there = {o["match"]["path"]: name for name, o in operations(forward.text).items()}
    assert there == {o["match"]["path"]: name for name, o in operations(backward.text).items()}
    assert there["/a/b"] == "shop:a-b:read"
    assert len(set(there.values())) == 5


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (BY_HAND.replace("service: shop\n", "service: store\n"), "this is service 'store', not 'shop' (give --service"),
        ("service: shop\noperations: [{name: shop:a:b}]\n", "services/shop.yaml:2:13: operations are written in [ ]"),
        ("service: shop\noperations: none\n", "services/shop.yaml:2:13: operations must be a list"),
        ("service: [\n", "not YAML"),
        ("- a\n", "this is no service file"),
        ("service: &a shop\n", "anchors"),
    ],
)
def test_a_file_that_cannot_be_edited_says_where(imported, text, complaint):
    with pytest.raises(DocumentInvalid) as caught:
        imported(API, text)
    assert any(complaint in str(problem) for problem in caught.value.problems)


@pytest.mark.parametrize("operations_line", ["", "operations:\n", "operations: []\n", "operations: []  # none yet\n"])
def test_a_file_without_operations_gets_them(imported, operations, operations_line):
    text = f"service: shop\n{operations_line}owner: group:a\n" if operations_line else "service: shop"
    outcome = imported(API, text)
    assert len(operations(outcome.text)) == 3
    assert not imported(API, outcome.text).is_changed


def test_the_documents_names_must_be_the_services(imported):
    with pytest.raises(DocumentInvalid, match="does not begin with its service's name"):
        imported(API.replace("operationId: getThing", "x-eastwest-name: 'other:a:b'"))
    with pytest.raises(DocumentInvalid, match="is there already"):
        imported(API.replace("operationId: getThing", "x-eastwest-name: 'shop:health:read'"), BY_HAND)


PERSONAL = "    data: personal\n"
DELETED = API.replace("    get: {operationId: getThing}", "    delete: {operationId: getThing}")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "    sensitivity: read  # ours\n",
            "    # when it was GET: sensitivity: read  # ours\n    # suggested: sensitivity: mutate\n",
        ),
        (
            "    'sensitivity':\n      'restricted-read'\n" + PERSONAL,
            "    # when it was GET: sensitivity: restricted-read\n    # suggested: sensitivity: mutate\n" + PERSONAL,
        ),
    ],
)
def test_a_method_that_changes_more_is_classified_anew(imported, operations, before, after):
    first = imported(API, BY_HAND).text.replace("    # suggested: sensitivity: read\n", before)
    outcome = imported(DELETED, first)
    assert after in outcome.text
    assert outcome.text.replace(after, before).replace("DELETE", "GET") == first, "nothing else is touched"
    assert "sensitivity" not in operations(outcome.text)["shop:thing:get"]
    said = [(c.field, c.after) for c in outcome.changed]
    assert said == [("sensitivity", ""), ("method", "DELETE")]
    (note,) = outcome.notes
    assert "shop:thing:get was classified as" in note.message
    assert "when it was GET; now it is DELETE, and refused to everybody" in note.message
    again = imported(DELETED, outcome.text)
    assert not again.is_changed


@pytest.mark.parametrize(
    "row",
    [
        '{name: "shop:thing:get", match: {method: GET, path: "/t/{tenant}/things/{id}"}, sensitivity: read}',
        '{"sensitivity" : read, name: "shop:thing:get", match: {method: GET, path: "/t/{tenant}/things/{id}"}}',
        '{name: "shop:thing:get", sensitivity: "read",\n     match: {method: GET, path: "/t/{tenant}/things/{id}"}}',
    ],
)
def test_so_is_one_in_braces(imported, operations, row):
    outcome = imported(DELETED, BY_HAND.replace("  # the load", f"  - {row}\n  # the load"))
    assert operations(outcome.text)["shop:thing:get"] == {
        "name": "shop:thing:get",
        "match": {"method": "DELETE", "path": "/t/{tenant}/things/{id}"},
    }
    assert "\n    # when it was GET: sensitivity: read\n    # suggested: sensitivity: mutate\n" in outcome.text
    assert not imported(DELETED, outcome.text).is_changed


def test_and_one_whose_sensitivity_stands_at_the_dash(imported, operations):
    row = '  - sensitivity: read\n    name: shop:thing:get\n    match: {method: GET, path: "/t/{tenant}/things/{id}"}\n'
    outcome = imported(DELETED, BY_HAND.replace("  # the load", f"{row}  # the load"))
    assert "  - # when it was GET: sensitivity: read\n    # suggested: sensitivity: mutate\n    name: s" in outcome.text
    assert "sensitivity" not in operations(outcome.text)["shop:thing:get"]


def test_a_method_that_changes_no_more_than_was_said_keeps_its_words(imported):
    first = imported(API, BY_HAND).text
    for said in ("control", "mutate"):
        outcome = imported(DELETED, first.replace("# suggested: sensitivity: read", f"sensitivity: {said}"))
        assert f"    sensitivity: {said}\n" in outcome.text
        assert [(c.field, c.after) for c in outcome.changed] == [("method", "DELETE")]
        assert not outcome.notes
    document = DELETED.replace("getThing}", "getThing, x-eastwest-sensitivity: control}")
    outcome = imported(document, first.replace("# suggested: sensitivity: read", "sensitivity: read"))
    assert "    sensitivity: control\n" in outcome.text, "the document has a word for the new method"
    assert ("sensitivity", "read", "control") in [(c.field, c.before, c.after) for c in outcome.changed]
    assert not outcome.notes


def test_a_tenant_that_nobody_named_is_told(imported):
    document = API.replace("{account}", "{tenantId}")
    (note,) = imported(document).notes
    assert note.message == "paths have {tenantId}, and nothing says that this is the tenant"
    assert "write tenant: {path: tenantId}" in note.fix
    assert not imported(document, BY_HAND).notes, "the file says it"
    assert not imported("x-eastwest-tenant: {header: x-tenant}\n" + document).notes, "the document says it"
    assert not imported(API).notes, "no parameter is called like a tenant"
