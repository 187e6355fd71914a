"""``policy lint``, ``policy test`` and ``blast`` as people and CI run them, without a server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import typer
from typer.testing import CliRunner

from eastwest.cli import blast as blast_command
from eastwest.cli import policy
from eastwest.policy.lint.rules import CATALOGUE

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "estate"
CONSOLE = "spiffe://saas.example/prod/platform/console"
NOTIFICATION = "spiffe://saas.example/prod/messaging/notification"
app = typer.Typer()
app.add_typer(policy.app, name="policy")
app.command("blast")(blast_command.blast)
WIDE = '\n@id("too-wide") @owner("group:platform") @reason("x")\npermit (principal, action, resource);\n'


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"EASTWEST_DATA": "", "COLUMNS": "300"})


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "estate")
    return tmp_path / "estate"


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def test_the_example_is_clean_and_its_cases_pass():
    result = run("policy", "lint", EXAMPLE)
    assert (result.exit_code, result.output) == (0, "0 errors, 0 warnings, 0 notes; 0 findings waived\n")
    result = run("policy", "test", EXAMPLE)
    assert result.exit_code == 0
    assert "14 cases: 14 passed, 0 failed" in result.output


def test_lint_tells_where_what_and_the_fix_and_fails(copy):
    append(copy / "policies" / "platform.cedar", WIDE)
    result = run("policy", "lint", copy)
    assert result.exit_code == 1
    line = WIDE.count("\n", 0, WIDE.index("@id")) + (EXAMPLE / "policies/platform.cedar").read_text().count("\n") + 1
    assert (
        f"{copy}/policies/platform.cedar:{line}:1: policy 'too-wide' permits every caller, whoever it is"
        in result.output
    )
    assert "fix: Name the callers that need it" in result.output
    told = json.loads(run("policy", "lint", copy, "--json", "--rule", "wide-caller").stdout)
    (finding,) = told["findings"]
    assert (finding["rule"], finding["level"], finding["line"], finding["policy"]) == (
        "wide-caller",
        "error",
        line,
        "too-wide",
    )
    assert finding["allowed"]


def test_fail_on_is_a_threshold(copy):
    service = copy / "services" / "billing.yaml"
    service.write_text(service.read_text().replace("owner: group:commerce", "owner: group:nobody"))
    assert run("policy", "lint", copy).exit_code == 1
    assert run("policy", "lint", copy, "--fail-on", "error").exit_code == 0
    assert run("policy", "lint", copy, "--fail-on", "dire").exit_code == 2
    assert run("policy", "lint", copy, "--rule", "nonsense").exit_code == 2
    assert run("policy", "lint").exit_code == 2


@pytest.mark.parametrize("scope", ["policy: too-wide", 'workload: "spiffe://saas.example/**"', "service: billing"])
def test_a_waiver_excuses_what_it_is_about_until_it_ends(copy, scope):
    append(copy / "policies" / "platform.cedar", WIDE)
    waiver = copy / "waivers" / "wide.yaml"
    text = f"waiver: wide\nowner: group:platform\napplies_to: {{rule: wide-caller, {scope}}}\nreason: r\nuntil: "
    waiver.write_text(text + "2999-01-01\n")
    told = json.loads(run("policy", "lint", copy, "--rule", "wide-caller", "--json").stdout)
    if scope.startswith("policy"):
        assert (told["findings"], told["waived"][0]["waiver"]) == ([], "wide")
    else:  # it is about no service and no workload
        assert len(told["findings"]) == 1
    waiver.write_text(text + "2020-01-01\n")
    rules = {f["rule"] for f in json.loads(run("policy", "lint", copy, "--json").stdout)["findings"]}
    assert {"wide-caller", "waiver-ended"} <= rules


def test_sarif_has_what_the_standard_demands(copy, tmp_path):
    append(copy / "policies" / "platform.cedar", WIDE)
    (copy / "waivers" / "w.yaml").write_text(
        "waiver: w\nowner: group:platform\napplies_to: {rule: wide-caller, policy: too-wide}\nreason: r\n"
        "until: 2999-01-01\n"
    )
    out = tmp_path / "lint.sarif"
    run("policy", "lint", copy, "--sarif", out)
    log = json.loads(out.read_text())
    assert log["version"] == "2.1.0"
    assert "sarif-schema-2.1.0" in log["$schema"]
    (made,) = log["runs"]
    rules = made["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(CATALOGUE)
    suppressed = [result for result in made["results"] if result.get("suppressions")]
    assert [result["ruleId"] for result in suppressed] == ["wide-caller"]
    assert suppressed[0]["suppressions"][0]["kind"] == "external"
    assert len(made["results"]) > len(suppressed)
    for result in made["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"none", "note", "warning", "error"}
        assert result["message"]["text"]
        place = result["locations"][0]["physicalLocation"]
        assert not place["artifactLocation"]["uri"].startswith("/")
        assert place["region"]["startLine"] >= 1
    prints = [result["partialFingerprints"]["finding/v1"] for result in made["results"]]
    assert len(set(prints)) == len(prints)


def test_no_environment_is_production(copy):
    for file in copy.rglob("*"):
        if file.is_file():
            file.write_text(file.read_text().replace("prod", "main").replace("no-main", "no-prod"))
    told = json.loads(run("policy", "lint", copy, "--json").stdout)
    assert [f["rule"] for f in told["findings"]] == ["environment-unsaid"]
    settings = copy / "estate.yaml"
    settings.write_text(
        settings.read_text().replace("{name: main, kind: vm}", "{name: main, kind: vm, production: true}")
    )
    assert json.loads(run("policy", "lint", copy, "--json").stdout)["findings"] == []


def test_a_failing_case_names_file_line_caller_and_what_it_got(copy, tmp_path):
    cases = copy / "tests" / "platform.yaml"
    cases.write_text(cases.read_text().replace("code: APPROVAL_REQUIRED", "code: STEP_UP_REQUIRED"))
    out = tmp_path / "r.xml"
    result = run("policy", "test", copy, "--junit", out)
    assert result.exit_code == 1
    assert f"FAILED {copy}/tests/platform.yaml:9:5: and not with a token that nobody approved" in result.output
    assert f"{CONSOLE}: deny APPROVAL_REQUIRED by console-administers-users" in result.output
    suites = ET.fromstring(out.read_text())
    assert (suites.get("tests"), suites.get("failures")) == ("14", "1")
    (failed,) = [case for case in suites.iter("testcase") if case.find("failure") is not None]
    assert failed.get("line") == "9"
    assert CONSOLE in (failed.find("failure").text or "")


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (
            "caller: spiffe://saas.example/prod/commerce/billng\n    operation: billing:health:read",
            "3:13: nobody registered",
        ),
        ("operation: billing:health:reed", "3:16: there is no operation 'billing:health:reed'"),
        ("operation: billing:invoices:list", "2:5: billing:invoices:list is per tenant (say tenant: NAME)"),
        ("operation: billing:health:read\n    tenant: acme", "4:13: billing:health:read is not per tenant"),
        ("operation: billing:health:read\n    request: {service: billing}", "exactly one of operation and request"),
        ("request: {service: biling, method: GET, path: /}", "there is no service 'biling' (did you mean 'billing'?)"),
        ("callers: {domain: comerce}\n    operation: billing:health:read", "unknown domain 'comerce'"),
        ("operation: billing:health:read\n    policy: nobody", "there is no policy 'nobody'"),
        ("operation: billing:health:read\n    code: ALLOWED", "ALLOWED is not the code of deny"),
        ("operation: billing:health:read\n    tokn: {}", "unknown field 'tokn' (did you mean 'token'?)"),
    ],
)
def test_a_mistake_in_a_case_is_told_where_it_stands(copy, case, told):
    shutil.rmtree(copy / "tests")
    (copy / "tests").mkdir()
    (copy / "tests" / "x.yaml").write_text(f"cases:\n  - case: x\n    {case}\n    expect: deny\n")
    result = run("policy", "test", copy)
    assert result.exit_code == 1
    problems = [str(problem) for problem in result.exception.problems]
    assert any(told in problem for problem in problems), problems


def test_coverage_counts_cells_and_demands_enough(copy):
    told = json.loads(run("policy", "test", copy, "--json", "--uncovered", 1000).stdout)
    coverage = told["coverage"]
    assert coverage["cells"] == coverage["classes"] * 17
    assert len(coverage["uncovered"]) == coverage["cells"] - coverage["covered"]
    weights = [(gap["outcome"] == "deny", -gap["weight"]) for gap in coverage["uncovered"]]
    assert weights == sorted(weights)
    assert run("policy", "test", copy, "--min-coverage", coverage["percent"] - 1).exit_code == 0
    result = run("policy", "test", copy, "--min-coverage", coverage["percent"] + 1)
    assert result.exit_code == 1
    assert "less than" in result.output
    (copy / "tests" / "all.yaml").write_text(
        "cases:\n"
        + "".join(
            f"  - case: nobody {name}\n    callers: {{except: ['{CONSOLE}']}}\n    operation: admin:users:{name}\n"
            "    expect: deny\n"
            for name in ("read", "disable")
        )
    )
    more = json.loads(run("policy", "test", copy, "--json").stdout)["coverage"]
    assert more["covered"] == coverage["covered"] + coverage["classes"] - 1  # all were looked at at disable


def test_an_estate_without_cases_is_told(copy):
    shutil.rmtree(copy / "tests")
    assert "there are no cases" in str(run("policy", "test", copy).exception)


def test_cases_are_no_part_of_what_is_applied(copy):
    from eastwest.cli.estate import read_directory

    assert not [name for name in read_directory(copy) if name.startswith("tests/")]


def test_blast_of_the_compromised_notification_service():
    told = json.loads(run("blast", NOTIFICATION, EXAMPLE, "--json").stdout)
    assert (told["weight"], told["held_weight"], told["across_tenants"]) == (9, 8, 0)
    first = told["reached"][0]
    assert (first["operation"], first["held"], first["weight"]) == ("admin:users:mute", "step-up", 8)
    assert "billing:invoices:list" not in {one["operation"] for one in told["reached"]}


def test_blast_before_and_after_containment_and_a_change(copy):
    told = json.loads(run("blast", NOTIFICATION, EXAMPLE, "--contained", "--json").stdout)
    assert (told["before"]["weight"], told["after"]["weight"]) == (9, 0)
    append(copy / "policies" / "platform.cedar", WIDE)
    told = json.loads(run("blast", NOTIFICATION, EXAMPLE, "--against", copy, "--json").stdout)
    assert "billing:adjustments:create" in told["gained"]
    assert told["gone"] == []
    table = run("blast", NOTIFICATION, EXAMPLE, "--against", copy).output
    assert "newly reached" in table
    assert run("blast", NOTIFICATION, EXAMPLE, "--against", copy, "--contained").exit_code == 2


def test_blast_by_selector_hops_and_modes():
    by_selector = run("blast", EXAMPLE, "--selector", "unix:user:console", "--json")
    assert json.loads(by_selector.stdout)["principals"] == [CONSOLE]
    shown = run("blast", CONSOLE, EXAMPLE).output
    assert "may come to hold:" in shown
    assert "permissive mode" in shown
    strict = json.loads(run("blast", CONSOLE, EXAMPLE, "--as-strict", "--json").stdout)
    loose = json.loads(run("blast", CONSOLE, EXAMPLE, "--json").stdout)
    assert strict["weight"] < loose["weight"]
    wider = json.loads(run("blast", NOTIFICATION, EXAMPLE, "--through", "open", "--json").stdout)
    assert wider["operations"] > 7
    assert "did you mean" in run("blast", CONSOLE + "x", EXAMPLE).exception.fix
    assert run("blast", CONSOLE, EXAMPLE, "--through", "nothing").exit_code == 2
    assert run("blast", "", EXAMPLE).exit_code == 2


@pytest.mark.parametrize(("option", "least"), [("--min-coverage", 15), ("--min-allowing", 9), ("--min-policies", 40)])
def test_too_little_coverage_fails_and_says_of_what(option, least):
    """15.3% of cells, 9.8% of those that allow something, 40% of policies: most cells only deny."""
    enough = run("policy", "test", EXAMPLE, option, least, "--json")
    short = run("policy", "test", EXAMPLE, option, least + 1, "--json")
    assert (enough.exit_code, short.exit_code) == (0, 1)
    told = json.loads(short.stdout)
    assert (json.loads(enough.stdout)["ok"], told["ok"]) == (True, False)
    assert f"less than {least + 1}%" in told["short"][0]


def test_lint_says_in_json_whether_it_fails(copy):
    append(copy / "policies" / "platform.cedar", WIDE)
    assert json.loads(run("policy", "lint", copy, "--json").stdout)["ok"] is False
    assert json.loads(run("policy", "lint", EXAMPLE, "--json").stdout)["ok"] is True


def test_cases_in_a_file_that_nobody_reads_are_an_error(copy):
    (copy / "tests" / "more.yml").write_text("cases: []\n")
    result = run("policy", "test", copy)
    assert result.exit_code == 1
    assert "more.yml" in str(result.exception)


def test_containing_one_closes_its_services_and_ends_its_transactions():
    told = json.loads(run("blast", CONSOLE, EXAMPLE, "--contain", NOTIFICATION, "--json").stdout)
    assert {"notification:messages:send", "billing:contacts:read"} <= set(told["gone"])
    assert not [one for one in told["after"]["reached"] if one["service"] == "notification"]
    # It mutes users in transactions that the console began, and in no others.
    told = json.loads(run("blast", NOTIFICATION, EXAMPLE, "--contain", CONSOLE, "--json").stdout)
    assert told["gone"] == ["admin:users:mute"]
