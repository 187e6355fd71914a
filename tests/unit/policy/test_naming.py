"""The naming convention: what an ID says, what is told to one that does not follow it, waivers that end."""

import datetime as dt

import pytest

from eastwest.policy.load import load_estate
from eastwest.policy.naming import KUBERNETES_TEMPLATE, Naming
from eastwest.policy.plan import plan_files
from eastwest.policy.problems import EstateInvalid
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.pattern import check_pattern, matches

TODAY = dt.date(2026, 11, 22)
ESTATE = """
trust_domain: saas.example
environments:
  - {name: prod, kind: vm}
  - {name: clusters, kind: kubernetes}
  - {name: legacy, kind: vm, naming: "/old/{service}"}
domains:
  - {name: commerce, owners: [group:commerce]}
  - {name: messaging, owners: [group:messaging]}
"""
WAIVER = """
waiver: old-batch
owner: group:commerce
applies_to: {rule: naming, workload: "spiffe://saas.example/batch/**"}
reason: renamed with the next release
until: 2026-12-31
"""
BATCH = """
workloads:
  - {spiffe_id: spiffe://saas.example/batch/nightly, environment: prod, domain: commerce, owner: group:commerce,
     node: spiffe://saas.example/spire/agent/x, selectors: ["unix:uid:1"], profile: workload}
"""


def naming(**files: str) -> Naming:
    named = {"estate.yaml": ESTATE, **{name.replace("_", "/") + ".yaml": text for name, text in files.items()}}
    estate = load_estate({name: text.encode() for name, text in named.items()})
    return Naming.of(estate.settings, estate.waivers, estate.services)


def spiffe_id(path: str) -> SpiffeId:
    return SpiffeId.parse(f"spiffe://saas.example{path}")


@pytest.mark.parametrize(
    ("path", "environment", "domain"),
    [
        ("/prod/commerce/billing", "prod", "commerce"),
        ("/clusters/ns/payments/sa/billing", "clusters", ""),
        ("/old/billing", "legacy", ""),
        ("/prod/unheard/billing", "", ""),
        ("/prod/commerce", "", ""),
        ("/legacy/commerce/billing", "", ""),
    ],
)
def test_an_id_says_its_environment_and_domain(path, environment, domain):
    convention = naming()
    assert (convention.environment_of(spiffe_id(path)), convention.domain_of(spiffe_id(path))) == (environment, domain)
    assert (convention.complaint(spiffe_id(path), TODAY) is None) == (environment != "")


def test_an_id_that_two_environments_could_have_names_neither():
    convention = Naming({"a": "/ns/{namespace}/sa/{serviceaccount}", "b": "/ns/{namespace}/sa/{serviceaccount}"})
    assert convention.complaint(spiffe_id("/ns/x/sa/y"), TODAY) is None
    assert convention.environment_of(spiffe_id("/ns/x/sa/y")) == ""


def test_the_complaint_shows_the_form_with_the_values_filled_in():
    message, fix = naming().complaint(spiffe_id("/prod/comerce/billing"), TODAY)
    assert "does not follow the naming convention" in message
    assert fix.startswith("write spiffe://saas.example/prod/commerce/billing")
    _, fix = naming().complaint(spiffe_id("/clusters/ns/payments/billing"), TODAY)
    assert "spiffe://saas.example/clusters/ns/{namespace}/sa/{serviceaccount}" in fix


def test_kubernetes_has_a_default_of_its_own_unless_the_estate_gives_one():
    assert naming().templates["clusters"] == KUBERNETES_TEMPLATE
    whole = load_estate({"estate.yaml": (ESTATE + 'naming: "/{environment}/{service}"').encode()})
    templates = Naming.of(whole.settings).templates
    assert templates["clusters"] == templates["prod"] == "/{environment}/{service}"
    assert templates["legacy"] == "/old/{service}"


def test_a_waiver_excuses_until_it_ends():
    convention = naming(waivers_batch=WAIVER)
    batch = spiffe_id("/batch/nightly")
    assert convention.complaint(batch, dt.date(2026, 12, 31)) is None
    message, _ = convention.complaint(batch, dt.date(2027, 1, 1))
    assert "waiver 'old-batch' ended on 2026-12-31" in message
    assert convention.complaint(spiffe_id("/other/nightly"), TODAY) is not None


def test_an_estate_under_a_waiver_can_be_applied_until_it_ends():
    files = {"estate.yaml": ESTATE.encode(), "workloads/all.yaml": BATCH.encode()}
    with pytest.raises(EstateInvalid, match=r"does not follow the naming /\{environment\}/\{domain\}/\{service\}"):
        load_estate(files)
    files["waivers/batch.yaml"] = WAIVER.encode()
    assert plan_files(files, dt.date(2026, 12, 31)).ok
    late = plan_files(files, dt.date(2027, 1, 1))
    assert [p.where.file for p in late.errors] == ["workloads/all.yaml"]
    assert "ended on 2026-12-31" in late.errors[0].message


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        ("spiffe://saas.example/prod/*", ["/prod/a"], ["/prod", "/prod/a/b", "/prodx/a"]),
        ("spiffe://saas.example/prod/**", ["/prod/a", "/prod/a/b"], ["/prod", "/production/a"]),
        ("spiffe://saas.example/*/commerce/x", ["/a/commerce/x"], ["/a/b/commerce/x", "/commerce/x"]),
    ],
)
def test_patterns_are_about_whole_segments(pattern, covered, not_covered):
    check_pattern(pattern)
    assert all(matches(pattern, spiffe_id(path)) for path in covered)
    assert not any(matches(pattern, spiffe_id(path)) for path in not_covered)
    assert not matches(pattern, SpiffeId.parse("spiffe://other.example/prod/a"))
