"""What a plan says about a change."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from eastwest.policy.diff import Access, ModeChange, compare
from eastwest.policy.enforcement import DecisionCode, MtlsMode
from eastwest.policy.load import load_estate
from eastwest.policy.plan import plan_files
from eastwest.policy.problems import Severity
from eastwest.policy.render import render
from eastwest.policy.table import compile_estate

TODAY = dt.date(2026, 11, 22)
BASE = "spiffe://saas.example/prod"
CONSOLE, NOTIFICATION = f"{BASE}/platform/console", f"{BASE}/messaging/notification"
STOREFRONT, REPORTING = f"{BASE}/commerce/storefront", f"{BASE}/commerce/reporting"


def difference(before: dict[str, bytes], after: dict[str, bytes]):
    return compare(compile_estate(load_estate(before)), compile_estate(load_estate(after)))


def test_nothing_changes(example) -> None:
    plan = plan_files(example, TODAY, example)
    assert plan.difference.is_empty
    assert plan.previous == plan.version
    assert f"enforcement stays as in version {plan.version}" in render(plan)


def test_who_may_have_an_identity_is_a_change(example, edited) -> None:
    selectors = edited("workloads/all.yaml", "unix:user:billing", "unix:user:clerk")
    plan = plan_files(selectors, TODAY, example)
    assert [(c.kind, c.changed) for c in plan.difference.registrations_changed] == [("workload", ("selectors",))]
    assert "enforcement stays" not in render(plan)
    assert ": selectors" in render(plan)


def test_an_estate_of_another_trust_domain(example) -> None:
    other = {name: body.replace(b"saas.example", b"other.example") for name, body in example.items()}
    plan = plan_files(other, TODAY, example)
    assert [p.message for p in plan.errors] == ["the estate is of other.example, the applied one of saas.example"]


def test_a_mode_switch(example, edited) -> None:
    after = edited("services/notification.yaml", "permissive, until: 2027-03-31", "strict")
    change = difference(example, after)
    assert change.modes == (ModeChange(service="notification", before=MtlsMode.PERMISSIVE, after=MtlsMode.STRICT),)
    assert not change.newly_allowed
    assert "~ mode      notification: permissive -> strict" in render(plan_files(after, TODAY, example))


def test_a_tenant_more_and_one_less(example, edited) -> None:
    change = difference(example, edited("workloads/all.yaml", '["acme", "globex"]', '["acme", "initech"]'))
    assert {(a.caller, a.operation, a.tenant, a.policy) for a in change.newly_allowed} == {
        (STOREFRONT, f"billing:invoices:{verb}", "initech", "callers-read-their-tenants-invoices")
        for verb in ("list", "read")
    } | {
        # A permit that says nothing of tenants is about the caller's own.
        (STOREFRONT, "notification:messages:send", "initech", "commerce-sends-messages")
    }
    assert {(a.tenant, a.code) for a in change.newly_denied} == {("globex", DecisionCode.TENANT_NOT_PERMITTED)}


def test_all_tenants_at_once(example, edited) -> None:
    body = (
        b'@id("x") @owner("a:b") @reason("r") permit (principal, action == Action::"billing:contacts:read", resource);'
    )
    change = difference(example, {**example, "policies/x.cedar": body})
    by_caller = {}
    for access in change.newly_allowed:
        by_caller.setdefault(access.caller, []).append(access.tenant)
    assert by_caller[CONSOLE] == ["*"], "bound to no tenant"
    assert by_caller[STOREFRONT] == ["acme", "globex"]
    assert NOTIFICATION not in by_caller, "acme it had before, and it serves no other"
    everyone = body.replace(b"permit", b'@tenants("any") permit')
    change = difference(example, {**example, "policies/x.cedar": everyone})
    assert {a.tenant for a in change.newly_allowed if a.caller == NOTIFICATION} == {"*"}
    assert "newly allowed" in render(plan_files({**example, "policies/x.cedar": body}, TODAY, example))


def test_a_policy_is_withdrawn(example, edited) -> None:
    after = {**example, "policies/messaging.cedar": b""}
    assert {a.caller for a in difference(example, after).newly_denied} == {
        STOREFRONT,
        REPORTING,
        f"{BASE}/commerce/billing",
        CONSOLE,
    }
    denied = difference(example, after).newly_denied
    assert {a.tenant for a in denied if a.caller == STOREFRONT} == {"acme", "globex"}
    assert {a.tenant for a in denied if a.caller == f"{BASE}/commerce/billing"} == {"*"}


def test_things_come_and_go(example) -> None:
    after = {k: v for k, v in example.items() if k != "services/reporting.yaml"}
    after["policies/commerce.cedar"] = after["policies/commerce.cedar"].split(b'@id("console-reads-totals")')[0]
    change = difference(example, after)
    assert change.services_removed == ("reporting",)
    assert change.operations_removed == ("reporting:health:read", "reporting:totals:read")
    lost = Access(operation="reporting:totals:read", caller=CONSOLE, tenant="*", code=DecisionCode.UNLISTED_OPERATION)
    assert lost in change.newly_denied
    back = difference(after, example)
    assert back.services_added == ("reporting",)
    assert back.operations_added == change.operations_removed
    assert len(back.newly_allowed) == len(change.newly_denied)


def test_a_service_moves(example, edited) -> None:
    after = edited("services/billing.yaml", "port: 8443", "port: 9443")
    after["services/billing.yaml"] = after["services/billing.yaml"].replace(b"/{tenant}/contacts", b"/{tenant}/people")
    (change,) = difference(example, after).services_changed
    assert (change.service, change.changed) == ("billing", ("port", "endpoints", "operations"))


def test_a_workload_more(example) -> None:
    row = b"  - " + example["workloads/all.yaml"].split(b"  - ")[1].replace(b"storefront", b"shop")
    change = difference(example, {**example, "workloads/all.yaml": example["workloads/all.yaml"] + row})
    assert change.workloads_added == (f"{BASE}/commerce/shop",)
    assert {a.caller for a in change.newly_allowed} == {f"{BASE}/commerce/shop"}


def test_dates_that_have_passed(example) -> None:
    warnings = [p for p in plan_files(example, dt.date(2027, 4, 1)).problems if p.severity is Severity.WARNING]
    assert [str(w.where) for w in warnings] == [
        "services/notification.yaml:5:44",
        "waivers/notification-plaintext.yaml:1:9",
    ]
    assert not [p for p in plan_files(example, dt.date(2027, 3, 31)).problems if p.severity is Severity.WARNING]


def test_errors_leave_nothing_to_apply(edited) -> None:
    plan = plan_files(edited("estate.yaml", "trust_domain", "trust"), TODAY)
    assert not plan.ok
    assert plan.version == ""
    assert "errors: nothing can be applied" in render(plan)
    assert plan.to_dict()["summary"] is None


def test_an_applied_estate_that_cannot_be_read_any_more(example) -> None:
    plan = plan_files(example, TODAY, {"estate.yaml": b"from: the future"})
    assert plan.ok
    assert plan.difference is None
    assert any("the applied estate cannot be read" in p.message for p in plan.problems)


def test_json(example, edited) -> None:
    after = edited("workloads/all.yaml", '["acme", "globex"]', '["acme"]')
    data = json.loads(json.dumps(plan_files(after, TODAY, compile_estate(load_estate(example))).to_dict()))
    assert data["ok"]
    assert data["difference"]["newly_denied"][0] == {
        "operation": "billing:invoices:list",
        "caller": STOREFRONT,
        "tenant": "globex",
        "code": "TENANT_NOT_PERMITTED",
        "policy": "",
        "brings": "",
    }
    assert {"severity", "file", "line", "column", "message", "fix"} == set(data["problems"][0])
    assert data["summary"]["operations"] == 17


def test_what_a_call_must_bring_is_told(example) -> None:
    condition = 'context has approval && context.approval.approver == "unix:uid:7"'
    body = f"""@id("credits") @owner("a:b") @reason("r")
permit (principal == Workload::"{CONSOLE}", action == Action::"billing:credits:create", resource)
when {{ {condition} }};"""
    service = example["services/billing.yaml"] + (
        b'  - name: billing:credits:create\n    match: {method: POST, path: "/credits"}\n'
        b"    sensitivity: mutate\n    demands: [step-up]\n"
    )
    without = {**example, "services/billing.yaml": service}
    narrow = {**without, "policies/x.cedar": body.encode()}
    wide = {**without, "policies/x.cedar": body.replace(condition, "context has step_up").encode()}
    (access,) = difference(without, narrow).newly_allowed
    assert (access.caller, access.brings, access.policy) == (CONSOLE, "approval by unix:uid:7", "credits")
    (access,) = difference(narrow, without).newly_denied
    assert (access.brings, access.code) == ("approval by unix:uid:7", DecisionCode.OPERATION_NOT_PERMITTED)
    (access,) = difference(narrow, wide).newly_allowed
    assert access.brings == "token"
    assert "with approval by unix:uid:7" in render(plan_files(narrow, TODAY, without))


def test_an_operation_that_nobody_classified_is_refused_and_told(example, edited) -> None:
    after = edited("services/admin.yaml", "sensitivity: control", "data: personal")
    warning = next(p for p in plan_files(after, TODAY).problems if "has no sensitivity" in p.message)
    assert warning.severity is Severity.WARNING
    lost = difference(example, after).newly_denied
    assert {a.code for a in lost} == {DecisionCode.UNCLASSIFIED_OPERATION}


def test_a_permit_silent_about_tenants_and_callers_without_any(example) -> None:
    body = (
        b'@id("x") @owner("a:b") @reason("r") permit (principal, action == Action::"billing:contacts:read", resource);'
    )
    notes = [p.message for p in plan_files({**example, "policies/x.cedar": body}, TODAY).problems]
    assert f"policy 'x' lets {BASE}/commerce/billing and 2 more do billing:contacts:read for every tenant" in "\n".join(
        notes
    )
    meant = {**example, "policies/x.cedar": body.replace(b"permit", b'@tenants("any") permit')}
    assert not [p for p in plan_files(meant, TODAY).problems if "policy 'x'" in p.message]


@pytest.mark.parametrize("said", ['@tenants("all") permit', '@tenants("any") forbid'])
def test_what_tenants_does_not_say(example, said) -> None:
    body = f'@id("x") @owner("a:b") @reason("r") {said} (principal, action, resource);'
    (error,) = plan_files({**example, "policies/x.cedar": body.encode()}, TODAY).errors
    assert "says nothing here" in error.message
    assert (error.where.line, error.where.column) == (1, 37)


SOURCES = "{path: tenant}"


def test_a_tenant_that_is_named_elsewhere_denies_calls_that_worked(example, edited) -> None:
    claim = edited("services/billing.yaml", SOURCES, "{claim: true}")
    change = difference(example, claim)
    told = [c for c in change.operations_changed if c.operation == "billing:invoices:list"]
    assert [(c.field, c.before, c.after) for c in told] == [("tenant source", "path tenant", "claim")]
    mine = (STOREFRONT, "billing:invoices:list")
    lost = {(a.tenant, a.brings, a.code) for a in change.newly_denied if (a.caller, a.operation) == mine}
    assert lost == {(tenant, "", DecisionCode.TENANT_MISSING) for tenant in ("acme", "globex")}
    won = {(a.tenant, a.brings) for a in change.newly_allowed if (a.caller, a.operation) == mine}
    assert won == {("acme", "token"), ("globex", "token")}
    text = render(plan_files(claim, TODAY, example))
    assert "  ~ operation billing:invoices:list: tenant source path tenant -> claim\n" in text
    assert f"  newly denied  {STOREFRONT} billing:invoices:list tenant acme (TENANT_MISSING)\n" in text
    assert plan_files(claim, TODAY).summary.by_tenant == 2, "messages, by their header"

    header = edited("services/billing.yaml", SOURCES, "{header: x-tenant}")
    change = difference(example, header)
    lost = {(a.tenant, a.brings, a.code) for a in change.newly_denied if (a.caller, a.operation) == mine}
    assert lost == {(tenant, "", DecisionCode.TENANT_MISSING) for tenant in ("acme", "globex")}
    won = {(a.tenant, a.brings) for a in change.newly_allowed if (a.caller, a.operation) == mine}
    assert won == {("acme", "header x-tenant"), ("globex", "header x-tenant")}
    back = difference(header, claim)
    assert {(a.tenant, a.brings) for a in back.newly_denied if (a.caller, a.operation) == mine} == {
        ("acme", "header x-tenant"),
        ("globex", "header x-tenant"),
    }


def test_a_tenant_source_where_there_was_none(example, edited) -> None:
    before = edited("services/billing.yaml", f"tenant: {SOURCES}\n", "")
    before["policies/commerce.cedar"] = before["policies/commerce.cedar"].replace(
        b"principal has tenants && principal.tenants.contains(context.tenant)", b"true"
    )
    after = {**before, "services/billing.yaml": example["services/billing.yaml"]}
    change = difference(before, after)
    lost = [a for a in change.newly_denied if (a.caller, a.operation) == (STOREFRONT, "billing:invoices:list")]
    assert [(a.tenant, a.code) for a in lost] == [("*", DecisionCode.TENANT_NOT_PERMITTED)]
    assert "billing:contacts:read: tenant source none -> path tenant" in render(plan_files(after, TODAY, before))


def test_a_step_up_needs_a_token_wherever_the_tenant_is(example, edited) -> None:
    """A call with a token for its tenant works before and after, so it is neither newly allowed nor newly denied."""

    def demanding(files: dict[str, bytes]) -> dict[str, bytes]:
        service = files["services/billing.yaml"].replace(b"data: financial", b"demands: [step-up]")
        return {**files, "services/billing.yaml": service}

    change = difference(demanding(example), demanding(edited("services/billing.yaml", SOURCES, "{claim: true}")))
    assert not [a for a in (*change.newly_allowed, *change.newly_denied) if a.operation == "billing:invoices:list"]
    assert [c.operation for c in change.operations_changed if c.operation == "billing:invoices:list"]


def test_requests_that_belong_to_an_operation_are_a_change_of_it(example, edited) -> None:
    after = edited("services/admin.yaml", 'GET, path: "/admin/users/{user}"', 'DELETE, path: "/admin/user/{user}"')
    (change,) = difference(example, after).operations_changed
    assert (change.operation, change.field) == ("admin:users:read", "match")
    assert "~ operation admin:users:read: GET /admin/users/{user} -> DELETE /admin/user/{user}\n" in render(
        plan_files(after, TODAY, example)
    )


def test_a_token_that_counts_once_is_a_change(example, edited) -> None:
    before = edited("services/admin.yaml", "    data: personal", "    demands: [step-up]")
    after = edited("services/admin.yaml", "    data: personal", "    demands: [step-up, single-use]")
    plan = plan_files(after, TODAY, before)
    assert not plan.difference.is_empty
    assert "~ operation admin:users:read: tokens count until they expire -> once\n" in render(plan)


def summary(files: dict[str, bytes]) -> tuple[int, int, int, int]:
    counts = plan_files(files, TODAY).summary
    assert counts.allowed + counts.by_tenant + counts.with_token + counts.denied == counts.callers * counts.operations
    return counts.allowed, counts.by_tenant, counts.with_token, counts.denied


def test_the_summary_counts_what_a_caller_can_do(example) -> None:
    """One service with two operations and six callers; each policy moves pairs from one number to another."""
    service = b"""service: shop
workload: spiffe://saas.example/prod/commerce/storefront
owner: group:commerce
domain: commerce
listen: {port: 8500, protocol: http, mtls: strict}
upstream: {unix: /run/shop.sock}
tenant: {path: tenant}
operations:
  - {name: "shop:bills:read", match: {method: GET, path: "/t/{tenant}"}, sensitivity: read}
  - {name: "shop:bills:void", match: {method: DELETE, path: "/t/{tenant}"}, sensitivity: control, demands: [step-up]}
"""

    def policy(name: str, text: str) -> bytes:
        return f'@id("{name}") @owner("a:b") @reason("r") {text}\n'.encode()

    head = f'(principal == Workload::"{CONSOLE}", action, resource == Service::"shop")'
    files = {k: v for k, v in example.items() if not k.startswith(("services/", "policies/", "waivers/"))}
    files["services/shop.yaml"] = service
    assert summary(files) == (0, 0, 0, 12)
    files["policies/x.cedar"] = policy("x", f'@tenants("any") permit {head};')
    assert summary(files) == (1, 0, 1, 10)
    some = {**files, "policies/y.cedar": policy("y", f'forbid {head} when {{ context.tenant == "acme" }};')}
    assert summary(some) == (0, 1, 1, 10)
    every = {**files, "policies/y.cedar": policy("y", f'forbid {head} when {{ context.tenant != "" || true }};')}
    assert summary(every) == (0, 0, 0, 12), "every outcome denies"
    claim = {**files, "services/shop.yaml": service.replace(b"{path: tenant}", b"{claim: true}")}
    assert summary(claim) == (0, 0, 2, 10)
    assert (
        "of 12 pairs of caller and operation 1 are allowed, 0 for some tenants, 1 only with a token or an approval, "
        "10 denied" in render(plan_files(files, TODAY))
    )


WIDE = "permits every caller, whoever it is: 6 callers x "


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("permit (principal, action, resource);", "17 operations, 2 of them control, 3 of them mutate"),
        ("permit (principal is Workload, action, resource) when { true };", "17 operations, 2 of them control, 3 of"),
        ('permit (principal, action in Action::"control", resource);', "2 operations, 2 of them control"),
        ('permit (principal, action, resource == Service::"billing");', "5 operations, 1 of them mutate"),
        ('permit (principal, action in Action::"open", resource);', ""),
        ('permit (principal, action in Action::"read", resource);', ""),
        ('permit (principal in Domain::"commerce", action, resource);', ""),
        ('permit (principal, action, resource) when { principal.owner == "group:platform" };', ""),
        ("forbid (principal, action, resource);", ""),
    ],
)
def test_a_permit_that_asks_nothing_of_its_caller_is_noticed(example, text, counts) -> None:
    body = f'@id("x") @owner("a:b") @reason("r") @tenants("any") {text}'.replace('@tenants("any") f', "f").encode()
    plan = plan_files({**example, "policies/x.cedar": body}, TODAY)
    assert plan.ok
    found = [p.message for p in plan.problems if p.severity is Severity.WARNING]
    if counts:
        (message,) = found
        assert message.startswith(f"policy 'x' {WIDE}{counts}")
    else:
        assert not found
