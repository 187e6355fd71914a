"""What an OpenAPI document says, and what of it cannot be an operation."""

from __future__ import annotations

import json
import time

import pytest

from eastwest.policy.imports import openapi, source
from eastwest.policy.imports.model import Budget, DocumentInvalid
from eastwest.policy.imports.openapi import read_openapi


def read(text, **options):
    return read_openapi("api.yaml", text.encode() if isinstance(text, str) else text, **options)


def paths(text, **options):
    return {(o.method, o.path) for o in read(text, **options).operations}


def complaints(text, **options):
    with pytest.raises(DocumentInvalid) as caught:
        read(text, **options)
    return [str(problem) for problem in caught.value.problems]


def text_of(body, version="3.1.0"):
    return f"openapi: {version}\ninfo: {{title: t, version: '1'}}\n{body}"


def test_an_ordinary_document(document):
    contents = read(document("shop.yaml"))
    assert [(o.method, o.path, o.names[0]) for o in contents.operations] == [
        ("GET", "/v1/stores/{store}/orders", ("orders", "list")),
        ("POST", "/v1/stores/{store}/orders", ("order", "create")),
        ("GET", "/v1/stores/{store}/orders/{order}", ("order", "get")),
        ("DELETE", "/v1/stores/{store}/orders/{order}", ("order", "delete")),
        ("POST", "/v1/stores/{store}/orders/{order}/refund", ("stores-orders-refund", "create")),
        ("GET", "/v1/healthz", ("healthz", "read")),
    ]
    listed, created, *_, refund, health = contents.operations
    assert (listed.sensitivity, listed.data) == ("restricted-read", "personal")
    assert (created.sensitivity, created.suggestion) == ("", "mutate")
    assert (refund.sensitivity, refund.demands) == ("control", ("step-up", "approval"))
    assert health.suggestion == "open"
    assert contents.tenant == ("path", "store")
    assert contents.left_out == ()
    assert [n.message for n in contents.notes] == ["1 webhooks are calls that the service makes: not imported"]


def test_operations_that_are_references():
    """As in documents that are spread over files: what is not read is told, as an extension may be in it."""
    contents = read(
        text_of(
            "paths:\n  /a:\n    get: {$ref: other.yaml}\n    put: {$ref: '#/components/x-one'}\n"
            "components:\n  x-one: {operationId: things/replace, x-eastwest-sensitivity: control}\n"
        )
    )
    outside, inside = contents.operations
    assert (outside.method, outside.path, outside.sensitivity) == ("GET", "/a", "")
    assert (inside.names[0], inside.sensitivity) == (("things", "replace"), "control")
    [note] = contents.notes
    assert note.where.line == 5
    assert note.message.startswith("1 operations are references out of the document")


def test_ids_of_two_parts_and_parameters_of_any_name(document):
    contents = read_openapi("code-host.json", document("code-host.json"))
    assert contents.operations[0].names[0] == ("meta", "root")
    assert contents.operations[-1].path == "/user/{account_id}/keys/{key_id}"
    (out,) = contents.left_out
    assert str(out) == (
        "code-host.json:17:55: GET /repos/{owner}/{repo}/compare/{base}...{head}: '{base}...{head}' has a parameter "
        "that is not a whole segment (list the paths by hand, or make the parameter a segment)"
    )


def test_what_no_template_can_say_is_listed_with_its_line(document):
    contents = read_openapi("phone.yaml", document("phone.yaml"))
    assert [(o.method, o.path) for o in contents.operations] == [
        ("GET", "/2010-04-01/Accounts.json"),
        ("POST", "/2010-04-01/Accounts.json"),
        ("POST", "/2010-04-01/Accounts/{AccountSid}/Calls.json"),
    ]
    assert [(str(o.where), o.what) for o in contents.left_out] == [
        ("phone.yaml:6:37", "GET /2010-04-01/Accounts/{Sid}.json"),
        ("phone.yaml:8:56", "DELETE /2010-04-01/Accounts/{AccountSid}/Calls/{Sid}.json"),
    ]


def test_paths_of_any_depth_same_shapes_and_rare_methods(document):
    contents = read_openapi("cluster.json", document("cluster.json"))
    assert {o.method for o in contents.operations} == {"GET", "POST", "HEAD", "OPTIONS"}
    assert [out.reason for out in contents.left_out] == [
        "'{path=**}' takes more than one segment, and parameters take one",
        "the same requests as GET /api/v1/namespaces/{namespace}/pods in line 2",
        "'{logpath*}' takes more than one segment, and parameters take one",
    ]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/a{x}", "not a whole segment"),
        ("/{a}-{b}", "not a whole segment"),
        ("/files/{name}.json", "not a whole segment"),
        ("/{x}{y}", "not a whole segment"),
        ("/a/{+rest}", "more than one segment"),
        ("/a/{x*}", "more than one segment"),
        ("/a/{x}/{x}", "names the parameter 'x' twice"),
        ("/a?b=c", "a query or a fragment"),
        ("/a#b", "a query or a fragment"),
        ("/a//b", "empty segment"),
        ("/a/../b", "dot segment"),
        ("/a%20b", "character"),
        ("/a b", "character"),
        ("/ä", "character"),
        ("/a*", "wildcard"),
        ("a/b", "does not start with /"),
        ("/" + "x" * 1100, "longer than"),
    ],
)
def test_a_path_that_cannot_be_said(path, reason):
    contents = read(json.dumps({"openapi": "3.1.0", "paths": {path: {"get": {}}}}))
    assert contents.operations == ()
    assert reason in contents.left_out[0].reason


def test_a_query_method_belongs_to_3_2_and_others_are_named():
    body = "paths: {/a: {query: {}, GET: {}, additionalOperations: {PURGE: {}, 'bad method': {}}}}"
    contents = read(text_of(body, "3.2.0"))
    assert {(o.method) for o in contents.operations} == {"QUERY", "PURGE"}
    assert [(out.what, out.fix) for out in contents.left_out] == [
        ("GET /a", "did you mean 'get'?"),
        ("bad method /a", "write it in capitals, such as GET"),
    ]
    assert [out.what for out in read(text_of("paths: {/a: {query: {}}}")).left_out] == ["query /a"]


def test_base_paths():
    servers = "servers: [{url: 'https://a.example/x/'}, {url: '//b.example/x'}]\n"
    assert paths(text_of(servers + "paths: {/a: {get: {}}}")) == {("GET", "/x/a")}
    assert paths(text_of(servers + "paths: {/a: {get: {}}}"), base_path="/") == {("GET", "/a")}
    assert paths(text_of(servers + "paths: {/a: {get: {}}}"), base_path="/y") == {("GET", "/y/a")}
    assert paths(text_of("paths: {/a: {servers: [{url: /p}], get: {}, put: {servers: [{url: /o}]}}}")) == {
        ("GET", "/p/a"),
        ("PUT", "/o/a"),
    }
    assert paths(text_of("paths: {/: {get: {}}}")) == {("GET", "/")}
    assert complaints(text_of("servers: [{url: /x}, {url: /y}]\npaths: {/a: {get: {}}}")) == [
        "api.yaml:3:1: servers have different base paths: /x, /y (say which by --base-path)"
    ]
    assert "'/{v}' is not a base path" in complaints(text_of("servers: [{url: '/{v}'}]\npaths: {}"))[0]
    assert "--base-path: '/a//b' is not a base path" in complaints(text_of("paths: {}"), base_path="/a//b")[0]


def test_references_are_followed_inside_and_never_out():
    body = """\
paths:
  /a: {$ref: "#/components/pathItems/A", post: {}}
  /b: {$ref: "other.yaml#/B"}
  /c: {$ref: "#/components/pathItems/Nowhere"}
  /d: {$ref: "#/components/pathItems/Round"}
  /e: {$ref: "#/paths/~1a"}
components:
  pathItems:
    A: {$ref: "#/components/pathItems/B"}
    B: {get: {}}
    Round: {$ref: "#/components/pathItems/Back"}
    Back: {$ref: "#/components/pathItems/Round"}
"""
    contents = read(text_of(body))
    assert {(o.method, o.path) for o in contents.operations} == {("GET", "/a"), ("POST", "/a"), ("GET", "/e")}
    assert [out.reason for out in contents.left_out] == [
        "'other.yaml#/B' is in another document, which is not read",
        "'#/components/pathItems/Nowhere' leads nowhere in this document, or round in a circle",
        "'#/components/pathItems/Round' leads nowhere in this document, or round in a circle",
    ]


def test_extensions_are_inherited_and_checked():
    body = """\
x-eastwest-sensitivity: read
paths:
  /a:
    x-eastwest-sensitivity: mutate
    get: {x-eastwest-sensitivity: open, x-eastwest-name: "shop:things:see"}
    put: {}
  /b: {get: {x-eastwest-ignore: true}}
  /c: {get: {}}
"""
    contents = read(text_of(body))
    assert [(o.path, o.sensitivity, o.name) for o in contents.operations] == [
        ("/a", "open", "shop:things:see"),
        ("/a", "mutate", ""),
        ("/c", "read", ""),
    ]
    assert [out.reason for out in contents.left_out] == ["the document says x-eastwest-ignore"]


def test_misspelt_extensions_are_errors():
    body = """\
x-eastwest-tenant: {query: t}
paths:
  /a:
    get: {x-eastwest-sensitivty: read}
    put: {x-eastwest-sensitivity: secret}
    post: {x-eastwest-demands: [step-up, sms], x-eastwest-data: [a]}
"""
    assert complaints(text_of(body)) == [
        "api.yaml:3:1: x-eastwest-tenant cannot be 'query' (write path: PARAMETER, or header: NAME)",
        "api.yaml:6:11: 'x-eastwest-sensitivty' is not known at this place (did you mean 'x-eastwest-sensitivity'?)",
        f"api.yaml:7:11: x-eastwest-sensitivity cannot be 'secret' {KNOWN_SENSITIVITIES}",
        f"api.yaml:8:12: x-eastwest-demands cannot be 'sms' {KNOWN_DEMANDS}",
        "api.yaml:8:48: x-eastwest-data must be a text (write a text)",
    ]


KNOWN_SENSITIVITIES = "(known: control, mutate, open, read, restricted-read)"
KNOWN_DEMANDS = "(known: approval, single-use, step-up)"


def test_a_parameter_may_name_the_tenant():
    one = "{name: account.id, in: path, x-eastwest-tenant: true}"
    body = f"paths: {{'/a/{{account.id}}': {{parameters: [{one}], get: {{}}}}}}"
    assert read(text_of(body)).tenant == ("path", "account_id")
    header = "paths: {/a: {get: {parameters: [{name: X-Org, in: header, x-eastwest-tenant: true}]}}}"
    assert read(text_of(header)).tenant == ("header", "x-org")
    query = "paths: {/a: {get: {parameters: [{name: org, in: query, x-eastwest-tenant: true}]}}}"
    assert "a tenant cannot be in the query" in complaints(text_of(query))[0]
    assert "two parameters name the tenant" in complaints(text_of("x-eastwest-tenant: {header: x-a}\n" + header))[0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the document is empty"),
        ("[1]", "this is not an OpenAPI document"),
        ("swagger: '2.0'\npaths: {}", "Swagger 2.0 is not read (convert it to OpenAPI 3"),
        ("openapi: 4.0.0", "OpenAPI '4.0.0' is not read"),
        ("info: {}", "this is not an OpenAPI document"),
        ("openapi: 3.1.0\npaths: [a]", "api.yaml:2:1: paths must be a mapping"),
        ("openapi: 3.1.0\npaths: {/a: [b]}", "api.yaml:2:9: '/a' must be a mapping"),
        ("openapi: 3.1.0\npaths: {/a: {get: 1}}", "api.yaml:2:14: GET /a must be a mapping"),
        ("openapi: 3.1.0\npaths: {/a: {}, /a: {}}", "api.yaml:2:17: '/a' is written twice"),
        ('{"openapi": "3.1.0",\n "paths": {"/a": {}, "/a": {}}}', "api.yaml:2:22: '/a' is written twice"),
        ('{"openapi": "3.1.0",\n "paths": {"/a" {}}}', "api.yaml:2:17: not JSON"),
        ('{"openapi": "3.1.0"} x', "something follows"),
        ('{"openapi": ', "not JSON"),
        ("openapi: 3.1.0\npaths: {/a: {get: {}", "not YAML"),
        ("openapi: 3.1.0\n---\nopenapi: 3.1.0", "two documents"),
        ("a: *b", "*b is not known here"),
        ("a: &a [*a]", "*a is not known here"),
        ("{" + '"a":{' * 200_000, "nested deeper"),
        ("openapi: 3.1.0\nx: " + "[" * 400 + "]" * 400, "nested deeper"),
        (b"openapi: \xff", "not UTF-8"),
    ],
)
def test_a_broken_document_says_where(text, complaint):
    assert any(complaint in line for line in complaints(text)), complaints(text)


def test_a_document_that_multiplies_itself_costs_nothing():
    lines = ["openapi: 3.1.0", "paths: {}", "x0: &x0 {get: {}}"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 60)]
    started = time.process_time()
    assert read("\n".join(lines)).operations == ()
    assert time.process_time() - started < 2


def test_references_that_multiply_are_bounded(monkeypatch):
    monkeypatch.setattr(openapi, "Budget", lambda: Budget(left=10_000))
    shared = "&p [" + ", ".join(['{$ref: "#/components/parameters/P"}'] * 100) + "]"
    many = "".join(f"  /a{i}: {{parameters: *p, get: {{parameters: *p}}}}\n" for i in range(100))
    body = f"x-p: {shared}\npaths:\n{many}components: {{parameters: {{P: {{name: p, in: query}}}}}}"
    assert complaints(text_of(body)) == ["api.yaml: the document refers to itself too often to be read"]


def test_merge_keys_are_read_and_bounded(monkeypatch):
    body = "x-a: &a {get: {}}\npaths: {/a: {<<: *a, put: {}}, /b: {<<: [*a]}}"
    assert paths(text_of(body)) == {("GET", "/a"), ("PUT", "/a"), ("GET", "/b")}
    monkeypatch.setattr(source, "MAX_NODES", 100)
    many = "x-a: &a {" + ", ".join(f"k{i}: 1" for i in range(20)) + "}\npaths: {/b: {<<: [*a, *a, *a, *a]}}"
    assert "more than 100 values" in complaints(text_of(many))[0]


def test_a_document_too_large_is_not_parsed(monkeypatch):
    monkeypatch.setattr(source, "MAX_DOCUMENT", 10)
    assert "larger than" in complaints(text_of("paths: {}"))[0]
