"""The reference estate: the format that is promised, its generated schema and its compiled tables."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path

import cedarpy
import msgspec
import pytest

from eastwest.policy.enforcement import MtlsMode, decode_sidecar, encode_sidecar
from eastwest.policy.load import load_estate
from eastwest.policy.oracle import decide, lookup
from eastwest.policy.plan import plan_files
from eastwest.policy.problems import Severity
from eastwest.policy.table import compile_estate

GOLDEN = Path(__file__).parents[2] / "golden" / "policy"
BASE = "spiffe://saas.example/prod"
INVOICES = "/api/v2/tenants/{}/invoices"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    root = GOLDEN / "reference"
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_it_is_accepted_and_what_is_not_enforced_is_said(files) -> None:
    plan = plan_files(files, dt.date(2026, 11, 22))
    assert plan.ok
    assert not [p for p in plan.problems if p.severity is not Severity.NOTE]
    notes = "\n".join(str(p) for p in plan.problems)
    for told in (
        "environment 'plants': kind edge",
        "profile 'device': not enforced yet, no door est, acme, gateway",
        "data classes (financial)",
        "until is a reminder",
    ):
        assert told in notes
    assert "waiver" not in notes  # its rule is one of policy lint


def test_generated_schema_means_what_the_reference_means(files) -> None:
    estate = load_estate(files)
    assert _meaning(estate.schema) == _meaning(files["schema.cedarschema"].decode())
    cedarpy.Schema.from_str(estate.schema)


def test_compiled_tables_are_the_golden_ones(files) -> None:
    compiled = compile_estate(load_estate(files))
    got = json.dumps([msgspec.to_builtins(s) for s in compiled.sidecars.values()], indent=1, sort_keys=True) + "\n"
    golden = GOLDEN / "reference.json"
    assert got == golden.read_text(), "if the change is meant, write the new tables to tests/golden/policy"


def test_equal_estates_give_equal_bytes(files) -> None:
    first, second = compile_estate(load_estate(files)), compile_estate(load_estate(dict(reversed(files.items()))))
    assert first == second
    for sidecar in first.sidecars.values():
        assert decode_sidecar(encode_sidecar(sidecar)) == sidecar


def test_version_follows_meaning_not_layout(files) -> None:
    version = compile_estate(load_estate(files)).version
    commented = {k: b"# a comment\n" + v if k.endswith(".yaml") else v for k, v in files.items()}
    commented["policies/platform.cedar"] = b"// a comment\n" + files["policies/platform.cedar"]
    assert compile_estate(load_estate(commented)).version == version
    other = {**files, "policies/platform.cedar": files["policies/platform.cedar"].replace(b"support looks", b"we look")}
    assert compile_estate(load_estate(other)).version != version


DECISIONS = [
    ("commerce/storefront", "billing", "GET", INVOICES.format("acme"), (), "ALLOWED"),
    ("commerce/storefront", "billing", "GET", INVOICES.format("acme") + "/1?full=1", (), "ALLOWED"),
    ("commerce/storefront", "billing", "GET", INVOICES.format("initech"), (), "TENANT_NOT_PERMITTED"),
    ("commerce/storefront", "billing", "GET", INVOICES.format("a%63me"), (), "UNLISTED_OPERATION"),
    ("commerce/storefront", "billing", "GET", INVOICES.format(".."), (), "UNLISTED_OPERATION"),
    ("commerce/storefront", "billing", "GET", "//api/v2/tenants/acme/invoices", (), "UNLISTED_OPERATION"),
    ("commerce/storefront", "billing", "PUT", INVOICES.format("acme"), (), "UNLISTED_OPERATION"),
    ("commerce/storefront", "billing", "POST", "/api/v2/tenants/acme/adjustments", (), "OPERATION_NOT_PERMITTED"),
    ("messaging/notification", "billing", "GET", INVOICES.format("acme"), (), "OPERATION_NOT_PERMITTED"),
    ("messaging/notification", "billing", "GET", "/healthz", (), "ALLOWED"),
    ("messaging/notification", "admin", "POST", "/admin/users/u/disable", (), "OPERATION_NOT_PERMITTED"),
    ("platform/console", "admin", "POST", "/admin/users/u/disable", (), "STEP_UP_REQUIRED"),
    ("platform/console", "admin", "GET", "/admin/users/u", (), "ALLOWED"),
    ("platform/console", "billing", "POST", "/api/v2/tenants/acme/adjustments", (), "STEP_UP_REQUIRED"),
    ("platform/nobody", "admin", "GET", "/admin/users/u", (), "UNKNOWN_CALLER"),
    (None, "admin", "GET", "/admin/users/u", (), "MTLS_REQUIRED"),
    ("commerce/billing", "notification", "POST", "/notify.v1.Notify/Send", [("X-Tenant", "acme")], "ALLOWED"),
    ("commerce/billing", "notification", "POST", "/notify.v1.Notify/Send", (), "TENANT_MISSING"),
    ("commerce/billing", "notification", "POST", "/notify.v1.Notify/Send", [("x-tenant", "a"), ("x-tenant", "b")],
     "TENANT_MISSING"),
    ("commerce/billing", "notification", "GET", "/templates/x", (), "OPERATION_NOT_PERMITTED"),
    ("commerce/reporting", "ledger-db", "", "", (), "OPERATION_NOT_PERMITTED"),
]  # fmt: skip


@pytest.mark.parametrize(("caller", "service", "method", "path", "headers", "code"), DECISIONS)
def test_table_and_cedar_decide_alike(files, caller, service, method, path, headers, code) -> None:
    estate = load_estate(files)
    name = None if caller is None else f"{BASE}/{caller}"
    sidecar = next(s for s in compile_estate(estate).sidecars.values() if service in {i.service for i in s.inbound})
    found = lookup(sidecar, name, service, method, path, headers)
    assert found[1] == code
    assert found == decide(estate, name, service, method, path, headers)


def test_sidecars_listen_and_reach_as_the_services_say(files) -> None:
    sidecars = compile_estate(load_estate(files)).sidecars
    billing = sidecars[f"{BASE}/commerce/billing"]
    assert [(i.service, i.address, i.port, i.upstream) for i in billing.inbound] == [
        ("billing", "127.0.0.1", 8443, "unix:/run/billing/app.sock"),
        ("ledger-db", "127.0.0.1", 8446, "tcp:127.0.0.1:5432"),
    ]
    assert [(o.service, o.endpoints) for o in billing.outbound] == [
        ("admin", ("127.0.0.1:8445",)),
        ("notification", ("127.0.0.1:8444",)),
    ]
    assert sidecars[f"{BASE}/messaging/notification"].inbound[0].mode is MtlsMode.PERMISSIVE
    assert billing.known_callers == tuple(sorted(sidecars))


def _meaning(schema: str) -> tuple[set[str], dict[str, str]]:
    """Declarations apart from actions, and what each action says; several may share one declaration."""
    others, actions = set(), {}
    for statement in (s.strip() for s in schema.split(";")):
        if not statement.startswith("action"):
            others.add(" ".join(statement.split()))
            continue
        names, _, rest = re.fullmatch(r'action ((?:"[^"]*"(?:, )?)+)( )?(.*)', statement, re.DOTALL).groups()
        actions.update(dict.fromkeys(re.findall(r'"([^"]*)"', names), rest))
    return others, actions
