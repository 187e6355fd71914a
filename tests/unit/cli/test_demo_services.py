"""The demo's services: the shared key opens everything in the weak outcome, and nobody asks in the strong one."""

import json

import pytest

from eastwest.cli.demo.handlers import ACCEPTED_KEY_HEADER, CALLER_HEADER, KEY_HEADER, fingerprint, handler
from eastwest.cli.demo.http1 import Request

DISABLE = Request("POST", "/admin/users/u-17/disable", {KEY_HEADER: "k-1"})


def test_the_shared_key_is_all_it_takes():
    answer = handler("admin", "k-1")(DISABLE)
    assert answer.status == 200
    assert answer.headers[ACCEPTED_KEY_HEADER] == fingerprint("k-1")


@pytest.mark.parametrize("headers", [{}, {KEY_HEADER: "k-2"}, {KEY_HEADER: "ü"}])
def test_without_the_key_nothing_works(headers):
    answer = handler("admin", "k-1")(Request("POST", "/admin/users/u-17/disable", headers))
    assert answer.status == 401
    assert ACCEPTED_KEY_HEADER not in answer.headers


def test_a_fingerprint_does_not_tell_the_key():
    assert "secret-key" not in fingerprint("secret-key")
    assert len(fingerprint("secret-key")) == len("sha256:") + 12


def test_without_a_key_the_sidecar_is_believed():
    answer = handler("billing", "")(Request("GET", "/api/v2/tenants/acme/invoices", {CALLER_HEADER: "spiffe://td/x"}))
    body = json.loads(answer.body)
    assert body["caller"] == "spiffe://td/x"
    assert [invoice["id"] for invoice in body["invoices"]] == ["INV-1001", "INV-1002"]


@pytest.mark.parametrize(
    ("service", "method", "path", "status"),
    [
        ("billing", "GET", "/api/v2/tenants/acme/invoices/INV-1001", 200),
        ("billing", "GET", "/api/v2/tenants/acme/invoices/INV-2001", 404),
        ("billing", "GET", "/internal/export", 200),
        ("storefront", "GET", "/catalog", 200),
        ("reporting", "GET", "/reports/globex", 200),
        ("notification", "POST", "/messages", 200),
        ("notification", "GET", "/templates/welcome", 200),
        ("admin", "GET", "/admin/users/u-17", 200),
        ("admin", "GET", "/admin/users/u-18", 404),
        ("console", "GET", "/healthz", 200),
        ("console", "GET", "/", 404),
    ],
)
def test_what_the_services_answer(service, method, path, status):
    assert handler(service, "")(Request(method, path)).status == status
