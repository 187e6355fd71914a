"""Explanations of one estate that people can follow; random estates are in tests/property/test_explain.py."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from eastwest.cli.explain_decision import lines
from eastwest.cli.main import app
from eastwest.errors import NotFound
from eastwest.policy.enforcement import DecisionCode, Verdict
from eastwest.policy.explain import Asked, Explainer, Explanation, explanation_json
from eastwest.policy.explain_codes import MEANING
from eastwest.policy.load import load_estate
from eastwest.policy.table import compile_estate

BASE = "spiffe://saas.example/prod"
STOREFRONT, CONSOLE = f"{BASE}/commerce/storefront", f"{BASE}/platform/console"
HEAD = '@id("x") @owner("group:commerce") @reason("r")'


def explained(
    files: dict[str, bytes], told: DecisionCode | None = None, cause: str = "", **asked: object
) -> Explanation:
    estate = load_estate(files)
    return Explainer(estate, compile_estate(estate)).explain(Asked(**asked), told, cause)


def changes(found: Explanation) -> dict[str, list[str]]:
    return {u.change: [o.value for o in found.unlocks if o.change == u.change] for u in found.unlocks}


def test_every_code_has_a_meaning_and_all_but_one_a_fix() -> None:
    assert set(MEANING) == set(DecisionCode)
    assert [code for code, (_, fix) in MEANING.items() if not fix] == [DecisionCode.ALLOWED]


def test_the_condition_that_failed_is_told_with_its_place_and_values(example) -> None:
    found = explained(example, caller=STOREFRONT, operation="billing:invoices:list", tenant="initech")
    assert found.code is DecisionCode.TENANT_NOT_PERMITTED
    assert found.nearest is not None
    [part] = found.nearest.parts
    assert (part.text, part.where) == ("principal.tenants.contains(context.tenant)", "policies/commerce.cedar:9:28")
    assert part.values == {"context.tenant": '"initech"', "principal.tenants": '["acme", "globex"]'}
    assert changes(found)["tenant"] == ["acme", "globex"]
    assert changes(found)["attribute"] == ["tenants: acme, globex, initech"]
    assert not found.step_up
    assert not found.approval


def test_a_forbid_is_what_stands_in_the_way(edited) -> None:
    files = edited("policies/x.cedar", None, f"{HEAD} forbid (principal, action, resource);")
    found = explained(files, caller=STOREFRONT, operation="billing:invoices:list", tenant="acme")
    assert (found.code, found.policy, found.where) == (DecisionCode.FORBIDDEN_BY_POLICY, "x", "policies/x.cedar:1:1")
    assert [f.policy for f in found.forbids] == ["x"]
    assert changes(found) == {"policy": ["x"]}
    assert found.nearest is None, "a permit applies; no other would help"


def test_parts_are_cut_as_cedar_reads_them(edited) -> None:
    body = """permit (principal == Workload::"CONSOLE", action, resource) when {
      // a comment, with && in it
      (context.method == "GET" || context.method == "&&") && (principal.owner == "nobody:x" && true)
    } unless { context has approval || principal.environment == resource.environment };""".replace("CONSOLE", CONSOLE)
    files = edited("policies/x.cedar", None, f"{HEAD} {body}")
    found = explained(files, caller=STOREFRONT, operation="billing:adjustments:create", tenant="acme")
    [mine] = [
        one
        for one in Explainer(load_estate(files), compile_estate(load_estate(files))).applied(
            found.asked,
            next(s for s in load_estate(files).services if s.service == "billing"),
            next(
                o for s in load_estate(files).services for o in s.operations if o.name == "billing:adjustments:create"
            ),
        )
        if one.policy == "x"
    ]
    assert [(p.kind, p.text) for p in mine.parts] == [
        ("principal", f'principal == Workload::"{CONSOLE}"'),
        ("when", 'context.method == "GET" || context.method == "&&"'),
        ("when", 'principal.owner == "nobody:x"'),
        ("unless", "principal.environment == resource.environment"),
    ]


def test_what_an_operation_demands_is_told(edited) -> None:
    files = edited("services/admin.yaml", "sensitivity: control", "sensitivity: control\n    demands: [step-up]")
    estate = load_estate(files)
    name = next(o.name for s in estate.services if s.service == "admin" for o in s.operations if o.demands)
    found = explained(files, caller=CONSOLE, operation=name)
    assert (found.code, found.step_up) == (DecisionCode.STEP_UP_REQUIRED, True)
    assert f"{name} demands step-up of whoever is permitted" in found.hints
    assert explained(files, caller=CONSOLE, operation=name, token=True).verdict is Verdict.ALLOW


@pytest.mark.parametrize(
    ("told", "asked", "hint"),
    [
        (DecisionCode.CERTIFICATE_REFUSED, {"service": "billing"}, "cause: expired"),
        (DecisionCode.MTLS_REQUIRED, {"service": "billing"}, "cause: expired"),
        (None, {"operation": "billing:invoices:list", "caller": f"{BASE}/commerce/storefrnt"}, STOREFRONT),
        (None, {"service": "billing", "caller": CONSOLE, "method": "GET", "path": "/helthz"}, "billing:health:read"),
        (None, {"service": "billing", "caller": CONSOLE, "method": "PUT", "path": "/healthz"}, "by another method"),
        (
            DecisionCode.TOKEN_WRONG_KEY,
            {"operation": "billing:invoices:list", "caller": STOREFRONT, "tenant": "acme", "token": True},
            "would count",
        ),
    ],
)
def test_what_is_no_matter_of_policy(example, told: DecisionCode | None, asked: dict[str, str], hint: str) -> None:
    found = explained(example, told, "expired", **asked)
    assert found.verdict is Verdict.DENY
    assert any(hint in one for one in found.hints), found.hints
    assert (found.policy, found.nearest, found.unlocks) == ("", None, ())
    assert found.fix


def test_names_that_do_not_exist_get_the_nearest(example) -> None:
    with pytest.raises(NotFound) as caught:
        explained(example, caller=STOREFRONT, operation="billing:invoices:lst")
    assert "billing:invoices:list" in caught.value.fix


def test_rules_in_report_mode_have_an_opinion(edited) -> None:
    body = f'{HEAD} @mode("report") @until("2099-01-01") forbid (principal, action, resource);'
    found = explained(
        edited("policies/x.cedar", None, body), caller=STOREFRONT, operation="billing:invoices:list", tenant="acme"
    )
    assert found.verdict is Verdict.ALLOW
    assert found.report is not None
    assert (found.report.code, found.report.policy) == (DecisionCode.FORBIDDEN_BY_POLICY, "x")
    assert not found.forbids


def test_a_hostile_path_commands_no_terminal(example) -> None:
    found = explained(example, caller=CONSOLE, service="billing", method="GET", path="/\x1b[31mred\x07\n")
    assert all(line.isprintable() for line in lines({"explanation": explanation_json(found)}))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--caller", STOREFRONT, "--operation", "billing:invoices:list", "--tenant", "acme", "examples/estate"], 0),
        (["--caller", STOREFRONT, "--operation", "billing:invoices:list", "--tenant", "x", "examples/estate"], 1),
        (["--caller", STOREFRONT, "--operation", "billing:invoices:list"], 2),
        (["--caller", STOREFRONT], 2),
    ],
)
def test_exit_codes(pytestconfig, monkeypatch, words: list[str], code: int) -> None:
    monkeypatch.chdir(pytestconfig.rootpath)
    monkeypatch.delenv("EASTWEST_DATA", raising=False)
    assert CliRunner().invoke(app, ["explain", *words]).exit_code == code


def test_what_a_token_would_bring_is_no_part_that_holds(edited) -> None:
    body = f"""{HEAD} permit (
        principal == Workload::"{CONSOLE}", action == Action::"billing:adjustments:create", resource
      ) when {{ context has approval && context.tenant == "acme" }};"""
    files = edited("policies/x.cedar", None, body)
    asked = {"caller": CONSOLE, "operation": "billing:adjustments:create"}
    found = explained(files, **asked, tenant="acme")
    assert (found.code, found.policy) == (DecisionCode.APPROVAL_REQUIRED, "x")
    assert found.nearest == found.deciding
    told = "\n".join(lines({"explanation": explanation_json(found)}))
    assert "fails: when context has approval" in told
    assert "holds" not in told
    elsewhere = explained(files, **asked, tenant="globex")
    assert elsewhere.nearest is not None
    assert elsewhere.nearest.policy == "x", "a permit about this operation is nearer than one about another"
    assert elsewhere.unlocks == ()
    assert [one.sentence for one in elsewhere.together if one.change == "tenant"] == [
        "for the tenant acme, with a token that anybody who may has approved"
    ]


def test_a_step_up_that_is_not_all_is_not_said_to_be(edited) -> None:
    files = edited(
        "services/admin.yaml", "sensitivity: control", "sensitivity: control\n    demands: [step-up, approval]"
    )
    name = next(o.name for s in load_estate(files).services if s.service == "admin" for o in s.operations if o.demands)
    found = explained(files, caller=CONSOLE, operation=name)
    assert (found.code, found.step_up, found.approval) == (DecisionCode.STEP_UP_REQUIRED, False, True)
    assert "that somebody has approved" in found.meaning
    assert "would be allowed" not in found.meaning


def test_a_token_that_does_not_count_is_told_with_the_policy_that_wants_one(edited) -> None:
    files = edited("services/admin.yaml", "sensitivity: control", "sensitivity: control\n    demands: [step-up]")
    name = next(o.name for s in load_estate(files).services if s.service == "admin" for o in s.operations if o.demands)
    wanted = explained(files, caller=CONSOLE, operation=name)
    found = explained(files, DecisionCode.TOKEN_WRONG_ACTION, caller=CONSOLE, operation=name, token=True)
    assert (found.code, found.policy, found.where) == (
        DecisionCode.TOKEN_WRONG_ACTION,
        wanted.policy,
        wanted.where,
    )
    assert changes(found) == {"step-up": [""], "approval": ["anybody who may"]}
