"""What the compiler promises beyond the reference estate."""

from __future__ import annotations

import datetime as dt

import pytest

from eastwest.policy.enforcement import DecisionCode, Rule, Verdict
from eastwest.policy.load import load_estate
from eastwest.policy.oracle import decide, lookup
from eastwest.policy.plan import plan_files
from eastwest.policy.problems import EstateInvalid, Severity
from eastwest.policy.table import CompiledPolicy, compile_estate

CONSOLE = "spiffe://saas.example/prod/platform/console"
STOREFRONT = "spiffe://saas.example/prod/commerce/storefront"
NOTIFICATION = "spiffe://saas.example/prod/messaging/notification"
HEAD = '@id("{}") @owner("group:x") @reason("r") '


def policy(name: str, body: str) -> str:
    return HEAD.format(name) + body


def check(files: dict[str, bytes], caller: str, service: str, method: str, path: str, headers=()):
    """The decision of the table, which must be Cedar's."""
    estate = load_estate(files)
    found = lookup(_sidecar(compile_estate(estate), service), caller, service, method, path, headers)
    assert found == decide(estate, caller, service, method, path, headers)
    return found


def _sidecar(compiled: CompiledPolicy, service: str):
    return next(s for s in compiled.sidecars.values() if any(i.service == service for i in s.inbound))


def _operation(compiled: CompiledPolicy, name: str):
    operations = (o for s in compiled.sidecars.values() for i in s.inbound for o in i.operations)
    return next(o for o in operations if o.name == name)


def test_bounded_interface_and_what_lies_outside_it(example) -> None:
    def ask(path: str, method: str = "GET", service: str = "billing"):
        return check(example, NOTIFICATION, service, method, path)[1]

    assert ask("/api/v2/tenants/acme/contacts") is DecisionCode.ALLOWED
    assert ask("/api/v2/tenants/globex/contacts") is DecisionCode.TENANT_NOT_PERMITTED
    assert ask("/api/v2/tenants/acme/invoices") is DecisionCode.OPERATION_NOT_PERMITTED
    assert ask("/internal/export") is DecisionCode.UNLISTED_OPERATION
    assert ask("/admin/users/u-17/disable", "POST", "admin") is DecisionCode.OPERATION_NOT_PERMITTED
    assert check(example, CONSOLE, "admin", "POST", "/admin/users/u-17/disable") == (
        Verdict.ALLOW,
        DecisionCode.ALLOWED,
        "console-administers-users",
        "admin:users:disable",
    )


def test_the_first_permit_by_id_is_named(edited) -> None:
    files = edited("policies/a.cedar", None, policy("a-first", "permit (principal, action, resource);"))
    assert check(files, CONSOLE, "admin", "GET", "/admin/users/u")[2] == "a-first"


def test_forbid_names_its_policy(edited) -> None:
    body = 'forbid (principal, action, resource) when { principal.owner == "group:platform" };'
    files = edited("policies/x.cedar", None, policy("stop", body))
    found = check(files, CONSOLE, "admin", "GET", "/admin/users/u")
    assert found == (Verdict.DENY, DecisionCode.FORBIDDEN_BY_POLICY, "stop", "admin:users:read")


@pytest.mark.parametrize(
    ("demands", "code"),
    [
        ("[step-up]", DecisionCode.STEP_UP_REQUIRED),
        ("[approval]", DecisionCode.APPROVAL_REQUIRED),
        ("[step-up, approval]", DecisionCode.STEP_UP_REQUIRED),
    ],
)
def test_demands_hold_though_the_policy_forgets_them(edited, demands, code) -> None:
    files = edited("services/admin.yaml", "sensitivity: control", f"sensitivity: control\n    demands: {demands}")
    found = check(files, CONSOLE, "admin", "POST", "/admin/users/u/disable")
    assert found == (Verdict.DENY, code, "console-administers-users", "admin:users:disable")
    assert check(files, NOTIFICATION, "admin", "POST", "/admin/users/u/disable")[1] is (
        DecisionCode.OPERATION_NOT_PERMITTED
    )


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        ("context has step_up", DecisionCode.STEP_UP_REQUIRED),
        ('context has step_up && context.step_up.approver == "unix:uid:7"', DecisionCode.STEP_UP_REQUIRED),
        ('context has step_up && context.step_up.action == "something:else:do"', DecisionCode.OPERATION_NOT_PERMITTED),
        ('context has approval && context.approval.approver == "group:x"', DecisionCode.APPROVAL_REQUIRED),
        ("context has approval && context has step_up", DecisionCode.STEP_UP_REQUIRED),
        ("!(context has approval)", DecisionCode.ALLOWED),
    ],
)
def test_what_step_up_or_approval_would_unlock(edited, condition, code) -> None:
    body = f'permit (principal, action in Action::"control", resource) when {{ {condition} }};'
    files = edited("policies/x.cedar", None, policy("x", body))
    assert check(files, NOTIFICATION, "admin", "POST", "/admin/users/u/disable")[1] is code


def test_a_policy_that_fails_denies_and_is_an_error_of_the_plan(edited) -> None:
    body = 'permit (principal, action, resource == Service::"admin") when { 9223372036854775807 + 1 == 0 };'
    files = edited("policies/x.cedar", None, policy("broken", body))
    found = check(files, CONSOLE, "admin", "GET", "/admin/users/u")
    assert found == (Verdict.DENY, DecisionCode.POLICY_ERROR, "broken", "admin:users:read")
    plan = plan_files(files, dt.date(2026, 11, 22))
    (error,) = plan.errors
    assert str(error.where) == "policies/x.cedar:1:1"
    assert "policy 'broken' fails when it is asked about admin:" in error.message
    assert not plan.ok
    assert plan.version == ""


def test_policies_that_fit_nothing_are_warned_about(edited) -> None:
    body = 'permit (principal, action == Action::"admin:users:read", resource == Service::"billing");'
    compiled = compile_estate(load_estate(edited("policies/x.cedar", None, policy("idle", body))))
    assert [p.severity for p in compiled.problems] == [Severity.WARNING]
    assert "policy 'idle' applies to no operation" in compiled.problems[0].message
    body = 'permit (principal in Environment::"staging", action, resource);'
    compiled = compile_estate(load_estate(edited("policies/x.cedar", None, policy("idle", body))))
    assert "policy 'idle' applies to no workload" in compiled.problems[0].message


def test_a_tenant_named_only_in_a_policy(edited) -> None:
    body = (
        'permit (principal, action == Action::"billing:invoices:list", resource) when { context.tenant == "public" };'
    )
    files = edited("policies/x.cedar", None, policy("public", body))
    cells = _operation(compile_estate(load_estate(files)), "billing:invoices:list").cells
    assert [sorted(c.tenants.by_tenant) for c in cells] == [["public"], ["acme", "globex", "public"]]
    assert check(files, CONSOLE, "billing", "GET", "/api/v2/tenants/public/invoices")[1] is DecisionCode.ALLOWED
    assert check(files, CONSOLE, "billing", "GET", "/api/v2/tenants/acme/invoices")[1] is (
        DecisionCode.TENANT_NOT_PERMITTED
    )


def test_tenants_that_no_request_can_name_stay_out_of_the_table(edited) -> None:
    body = (
        'permit (principal, action == Action::"notification:messages:send", resource) '
        'when { ["a,b", "", "a b", "ok"].contains(context.tenant) };'
    )
    files = edited("policies/messaging.cedar", None, policy("x", body))
    (cell,) = _operation(compile_estate(load_estate(files)), "notification:messages:send").cells
    assert list(cell.tenants.by_tenant) == ["ok"]


def test_everybody_but_one_tenant(edited) -> None:
    body = (
        'permit (principal, action == Action::"billing:contacts:read", resource) unless { context.tenant == "acme" };'
    )
    files = edited("policies/commerce.cedar", None, policy("x", body))
    (cell,) = _operation(compile_estate(load_estate(files)), "billing:contacts:read").cells
    assert cell.tenants.otherwise == Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="x")
    assert cell.tenants.by_tenant["acme"].code is DecisionCode.TENANT_NOT_PERMITTED


def test_literal_segments_go_before_parameters(edited) -> None:
    files = edited(
        "services/admin.yaml",
        "operations:",
        "operations:\n  - {name: 'admin:self:read', match: {method: GET, path: /admin/users/me}, sensitivity: open}",
    )
    compiled = compile_estate(load_estate(files))
    names = [o.name for o in _sidecar(compiled, "admin").inbound[0].operations]
    assert names.index("admin:self:read") < names.index("admin:users:read")
    assert check(files, NOTIFICATION, "admin", "GET", "/admin/users/me")[3] == "admin:self:read"
    assert check(files, NOTIFICATION, "admin", "GET", "/admin/users/you")[3] == "admin:users:read"


def test_reach_within_the_environment_and_beyond_it_where_allowed(example) -> None:
    files = dict(example)
    files["policies/platform.cedar"] = files["policies/platform.cedar"].split(b'@id("no-production')[0]
    row = files["workloads/all.yaml"].split(b"  - ")[1].replace(b"prod", b"staging").replace(b"storefront", b"shop")
    row = row.replace(b"group:staging-nodes", b"spiffe://saas.example/spire/agent/n")
    files["workloads/all.yaml"] += b"  - " + row
    shop = compile_estate(load_estate(files)).sidecars["spiffe://saas.example/staging/commerce/shop"]
    # It may use the open operations of all services, and so it is sent to all of them.
    assert [o.service for o in shop.outbound] == ["admin", "billing", "notification", "reporting", "storefront"]
    shop = compile_estate(
        load_estate(
            {**files, "policies/platform.cedar": b"", "policies/commerce.cedar": b"", "policies/messaging.cedar": b""}
        )
    ).sidecars[shop.spiffe_id]
    assert shop.outbound == ()


def test_endpoints_and_addresses(edited) -> None:
    files = edited("services/billing.yaml", "mtls: strict}", "mtls: strict, address: '::1'}")
    outbound = compile_estate(load_estate(files)).sidecars[STOREFRONT].outbound
    assert next(o for o in outbound if o.service == "billing").endpoints == ("[::1]:8443",)
    files = edited("services/billing.yaml", "tenant:", "endpoints: ['10.0.0.1:8443', 'b.internal:8443']\ntenant:")
    outbound = compile_estate(load_estate(files)).sidecars[STOREFRONT].outbound
    assert next(o for o in outbound if o.service == "billing").endpoints == ("10.0.0.1:8443", "b.internal:8443")


def test_an_estate_with_nothing_in_it() -> None:
    files = {"estate.yaml": b"trust_domain: t.example\nenvironments: []\ndomains: []\n"}
    compiled = compile_estate(load_estate(files))
    assert compiled.sidecars == {}
    files["policies/x.cedar"] = policy("x", "forbid (principal, action, resource);").encode()
    assert compile_estate(load_estate(files)).summary.policies == 1


def test_extra_attributes_reach_policies(edited) -> None:
    files = edited("workloads/all.yaml", 'tenants: ["acme", "globex"]', "tier: gold")
    condition = 'principal has tier && principal.tier == "gold"'
    body = f'permit (principal, action in Action::"control", resource) when {{ {condition} }};'
    files["policies/x.cedar"] = policy("x", body).encode()
    assert check(files, STOREFRONT, "admin", "POST", "/admin/users/u/disable")[0] is Verdict.ALLOW


def test_long_lists_of_approvers_do_not_multiply(edited) -> None:
    """What would help against a refusal is looked for within a bound; the refusal itself needs no search."""

    def asked(count: int) -> int:
        names = ", ".join(f'"a{number}"' for number in range(count))
        body = (
            "permit (principal, action, resource) when { context has step_up && context has approval && "
            f"[{names}].contains(context.step_up.approver) && [{names}].contains(context.approval.approver) "
            "&& 1 == 2 };"
        )
        return compile_estate(load_estate(edited("policies/many.cedar", None, policy("many", body)))).summary.asked

    assert asked(40) < 20 * asked(5)


def test_a_profile_of_post_quantum_keys_alone_is_a_demand_at_both_ends(edited) -> None:
    for keys, demanded in (("ml-dsa-65", True), ("ml-dsa-65, ec-p256", False)):
        files = edited("profiles/workload.yaml", "ec-p256, ec-p384, ed25519", keys)
        sidecars = compile_estate(load_estate(files)).sidecars.values()
        assert {one.post_quantum for sidecar in sidecars for one in sidecar.inbound} == {demanded}
        assert {one.post_quantum for sidecar in sidecars for one in sidecar.outbound} == {demanded}


def test_a_service_may_require_its_record(edited, example) -> None:
    files = edited("services/billing.yaml", "tenant:", "recording: required\ntenant:")
    before, after = (compile_estate(load_estate(each)).sidecars for each in (example, files))
    found = {one.service: one.recording for sidecar in after.values() for one in sidecar.inbound}
    assert found.pop("billing") == "required"
    assert set(found.values()) == {"best-effort"}
    # The others' rules are what they were: nobody is told anything anew.
    assert {s for s in before if before[s] != after[s]} == {s for s in after if "billing" in names(after[s])}
    with pytest.raises(EstateInvalid, match="recording"):
        load_estate(edited("services/billing.yaml", "tenant:", "recording: sometimes\ntenant:"))


def names(sidecar) -> set[str]:
    return {inbound.service for inbound in sidecar.inbound}


def test_policies_that_tell_too_many_cases_apart_are_an_error_at_once(example) -> None:
    names = ", ".join(f'"someone-{i}"' for i in range(120))
    body = (
        f"permit (principal, action, resource) when {{ context has approval && context has transaction && "
        f"[{names}].contains(context.approval.approver) && [{names}].contains(context.transaction.origin) }};"
    )
    plan = plan_files({**example, "policies/x.cedar": policy("x", body).encode()}, dt.date(2026, 11, 22))
    (error,) = plan.errors
    assert error.where.file == "policies/x.cedar"
    assert "policy 'x' with others at" in error.message
    assert "are told apart at one operation" in error.message
    assert "name fewer of them" in error.fix
