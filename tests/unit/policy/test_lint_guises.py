"""One wildcard in many dresses is found in each, and what a condition or a forbid holds back is no wildcard."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest

from eastwest.policy.lint.run import lint
from eastwest.policy.load import load_estate
from eastwest.policy.table import compile_estate

EXAMPLE = Path(__file__).parents[3] / "examples" / "estate"
TODAY = dt.date(2026, 11, 22)
ID = "spiffe://saas.example/prod"
CONSOLE = f'Workload::"{ID}/platform/console"'
STOREFRONT = f'Workload::"{ID}/commerce/storefront"'
BILLING = f'Workload::"{ID}/commerce/billing"'
SEND = 'action == Action::"notification:messages:send", resource == Service::"notification"'
HEAD = '@id("it")\n@owner("group:platform")\n@reason("a test")\n'
WORKLOAD = f"""  - spiffe_id: {ID}/platform/extra
    environment: prod
    domain: platform
    owner: group:platform
    node: group:extra
    selectors: [SELECTORS]
    profile: workload
"""


def files(**texts: str) -> dict[str, bytes]:
    found = {p.relative_to(EXAMPLE).as_posix(): p.read_bytes() for p in sorted(EXAMPLE.rglob("*")) if p.is_file()}
    found = {name: data for name, data in found.items() if not name.startswith("tests/") and name != "README.md"}
    return found | {name: text.encode() for name, text in texts.items()}


def rules(estate_files: dict[str, bytes], name: str = "it") -> set[str]:
    """Rules of the findings about one policy, apart from those about what it does beside others."""
    estate = load_estate(estate_files)
    found = lint(estate, compile_estate(estate), TODAY).findings
    return {one.rule for one in found if one.policy == name} - {"shadowed-policy"}


def judged(policy: str) -> set[str]:
    return rules(files(**{"policies/it.cedar": HEAD + policy}))


def test_the_example_is_clean() -> None:
    estate = load_estate(files())
    assert lint(estate, compile_estate(estate), TODAY).findings == ()


@pytest.mark.parametrize(
    ("rule", "policy"),
    [
        ("wide-caller", f"permit (principal, {SEND});"),
        ("wide-caller", f"permit (principal is Workload, {SEND});"),
        ("wide-caller", f"permit (principal, {SEND}) when {{ true }};"),
        ("wide-caller", f'permit (principal, {SEND}) when {{ principal.owner like "*" }};'),
        ("wide-caller", f'permit (principal, {SEND}) when {{ principal.owner like "group:*" }};'),
        ("wide-caller", f'permit (principal, {SEND}) when {{ principal.owner != "group:legal" }};'),
        ("wide-caller", f"permit (principal, {SEND}) unless {{ principal == {CONSOLE} }};"),
        ("wide-caller", f'permit (principal, {SEND}) when {{ principal in Environment::"prod" }};'),
        ("wide-caller", f"permit (principal, {SEND}) when {{ principal has tenants || !(principal has tenants) }};"),
        (
            "wide-caller",
            (
                f"permit (principal, {SEND}) when "
                '{ principal in [Domain::"commerce", Domain::"messaging", Domain::"platform"] };'
            ),
        ),
        ("wide-domain", f'permit (principal in Environment::"prod", {SEND});'),
        (
            "wide-domain",
            'permit (principal, action in Action::"mutate", resource) when { principal.domain == Domain::"commerce" };',
        ),
        (
            "restricted-across-domains",
            (
                'permit (principal in Environment::"prod", action == Action::"admin:users:read", '
                'resource == Service::"admin");'
            ),
        ),
        ("wide-action", f'permit (principal == {STOREFRONT}, action, resource == Service::"notification");'),
        (
            "wide-action",
            (
                f'permit (principal == {STOREFRONT}, action in [Action::"open", Action::"read", '
                'Action::"restricted-read", Action::"mutate", Action::"control"], resource == Service::"notification");'
            ),
        ),
        (
            "wide-action",
            (
                f'permit (principal == {STOREFRONT}, action, resource == Service::"notification") '
                'when { action != Action::"notification:users:mute" };'
            ),
        ),
        ("wide-resource", f'permit (principal == {STOREFRONT}, action in Action::"mutate", resource);'),
        ("wide-resource", f'permit (principal == {STOREFRONT}, action in Action::"mutate", resource is Service);'),
        (
            "wide-resource",
            f'permit (principal == {STOREFRONT}, action, resource) when {{ action in Action::"mutate" }};',
        ),
        (
            "wide-resource",
            (
                f'permit (principal == {STOREFRONT}, action in Action::"mutate", resource) '
                'when { resource.owner like "group:*" };'
            ),
        ),
        (
            "wide-resource",
            (
                f'permit (principal == {STOREFRONT}, action in Action::"mutate", resource) '
                'unless { resource == Service::"admin" };'
            ),
        ),
    ],
)
def test_a_wildcard_is_found_however_it_is_written(rule: str, policy: str) -> None:
    assert judged(policy) == {rule}


@pytest.mark.parametrize(
    "policy",
    [
        f"permit (principal, {SEND}) when {{ principal == {STOREFRONT} }};",
        f'permit (principal, {SEND}) unless {{ principal.domain != Domain::"commerce" }};',
        f"permit (principal, {SEND}) when {{ principal.owner == resource.owner }};",
        f'permit (principal in Domain::"commerce", {SEND});',
        f'permit (principal in Environment::"prod", {SEND}) when {{ principal.domain == Domain::"commerce" }};',
        f'permit (principal == {STOREFRONT}, action in [Action::"mutate"], resource == Service::"notification");',
        (
            f"permit (principal, {SEND}); "
            f'@id("only") @owner("group:platform") @reason("a test") forbid (principal, {SEND}) '
            f"unless {{ [{STOREFRONT}, {BILLING}].contains(principal) }};"
        ),
    ],
)
def test_what_is_held_back_is_no_wildcard(policy: str) -> None:
    assert judged(policy) == set()


def test_a_permit_that_looks_at_the_tenant_and_lets_any_through() -> None:
    """Without the look it would be held to the caller's own; with @tenants("any") it is meant."""
    read = 'action == Action::"billing:invoices:list", resource == Service::"billing"'
    wide = f"permit (principal == {STOREFRONT}, {read}) when {{ context has tenant }};"
    found = files(**{"policies/it.cedar": HEAD + wide})
    estate = load_estate(found)
    [finding] = [f for f in lint(estate, compile_estate(estate), TODAY).findings if f.rule == "free-tenant"]
    assert "billing:invoices:list for any tenant there is" in finding.message
    for harmless in (
        HEAD + f"permit (principal == {STOREFRONT}, {read});",
        '@tenants("any")\n' + HEAD + f"permit (principal == {STOREFRONT}, {read});",
    ):
        estate = load_estate(files(**{"policies/it.cedar": harmless}))
        assert "free-tenant" not in {f.rule for f in lint(estate, compile_estate(estate), TODAY).findings}


@pytest.mark.parametrize(
    ("rule", "selectors"),
    [
        ("broad-selectors", '"unix:path:/usr/bin/python3.11"'),
        ("overlapping-selectors", '"unix:user:billing"'),
        ("", '"unix:path:/usr/bin/extra"'),
    ],
)
def test_identities_that_other_processes_get_too(rule: str, selectors: str) -> None:
    """Nodes of a group with more selectors are nodes of the one with fewer, and run its workloads as well."""
    found = files()
    few = '  - {name: prod-nodes, environment: prod, selectors: ["join_token:group:prod-nodes"]}\n'
    more = few.replace("name: prod-nodes", "name: extra").replace("]}", ', "x509pop:subject:cn:b"]}')
    settings = found["estate.yaml"].decode()
    assert few in settings
    settings = settings.replace(few, few + more)
    workloads = found["workloads/all.yaml"].decode()
    assert "group:extra" not in workloads
    workloads = re.sub(r"node: spiffe://.*/prod-\S*", "node: group:prod-nodes", workloads)
    workloads += WORKLOAD.replace("SELECTORS", selectors)
    found |= {"estate.yaml": settings.encode(), "workloads/all.yaml": workloads.encode()}
    estate = load_estate(found)
    fresh = {
        f.rule for f in lint(estate, compile_estate(estate), TODAY).findings if any("extra" in w for w in f.workloads)
    }
    assert fresh == ({rule} if rule else set())


def test_who_writes_with_a_token_each_time_is_no_wide_writer() -> None:
    service = """service: notes
workload: spiffe://saas.example/prod/commerce/reporting
owner: group:commerce
domain: commerce
listen: {port: 9999, protocol: http, mtls: strict}
upstream: {unix: /run/notes.sock}
operations:
  - {name: "notes:notes:read", match: {method: GET, path: /notes}, sensitivity: restricted-read}
  - {name: "notes:notes:add", match: {method: POST, path: /notes}, sensitivity: mutate}
  - {name: "notes:notes:void", match: {method: DELETE, path: /notes}, sensitivity: control, demands: [step-up]}
"""
    on = 'resource == Service::"notes"'
    policies = (
        HEAD.replace('"it"', '"reads"') + f"permit (principal == {BILLING}, "
        f'action in [Action::"notes:notes:read", Action::"notes:notes:add"], {on});\n'
    )
    voids = "\n".join(
        HEAD.replace('"it"', f'"voids-{i}"')
        + f'permit (principal == {who}, action == Action::"notes:notes:void", {on});'
        for i, who in enumerate((STOREFRONT, CONSOLE))
    )
    for verb, wide in (("void", False), ("add", True)):
        text = policies + voids.replace("notes:notes:void", f"notes:notes:{verb}")
        estate = load_estate(files(**{"services/notes.yaml": service, "policies/notes.cedar": text}))
        found = {f.rule for f in lint(estate, compile_estate(estate), TODAY).findings}
        assert ("write-wider-than-read" in found) is wide


@pytest.mark.parametrize(("path", "wide"), [("/merge/{one}", True), ("/tenants/{tenant}/merge", False)])
def test_a_change_that_is_held_to_no_tenant_beside_reads_that_are(path: str, wide: bool) -> None:
    service = (EXAMPLE / "services" / "billing.yaml").read_text()
    operation = (
        f'  - name: billing:invoices:merge\n    match: {{method: POST, path: "{path}"}}\n    sensitivity: mutate\n'
    )
    permit = f'permit (principal == {STOREFRONT}, action == Action::"billing:invoices:merge", resource);'
    found = files(**{"services/billing.yaml": service + operation, "policies/it.cedar": HEAD + permit})
    estate = load_estate(found)
    rules = {f.rule for f in lint(estate, compile_estate(estate), TODAY).findings}
    assert rules == ({"write-wider-than-read"} if wide else set())
