"""Federation in the estate: foreign callers as principals, foreign services as destinations, and every mistake."""

from __future__ import annotations

import pytest

from eastwest.policy.enforcement import DecisionCode
from eastwest.policy.load import load_estate
from eastwest.policy.oracle import Oracle, lookup
from eastwest.policy.plan import plan_files
from eastwest.policy.problems import EstateInvalid
from eastwest.policy.table import compile_estate
from eastwest.testing.clock import START

OWN, BOT = "spiffe://saas.example/prod/commerce/billing", "spiffe://partner.example/bots/invoicer"
FILE = "federation/partner.json"
GOOD = f"""
federation:
  - trust_domain: partner.example
    endpoint: https://partner.example:8443/bundle
    profile: https_spiffe
    endpoint_spiffe_id: spiffe://partner.example/spire/server
    bundle: {FILE}
    workloads:
      - spiffe_id: {BOT}
        environment: prod
        domain: commerce
        owner: group:partner
        attributes: {{tenants: [acme], tier: gold}}
    services:
      - service: partner-ledger
        workload: spiffe://partner.example/ledger
        environment: prod
        protocol: http
        endpoints: ["ledger.partner.example:8443"]
"""
POLICY = f"""
@id("partner-lists") @owner("group:commerce") @reason("they reconcile")
permit (
  principal == Workload::"{BOT}",
  action == Action::"billing:invoices:list",
  resource == Service::"billing"
) when {{ principal has tenants && principal.tenants.contains(context.tenant) }};
"""


@pytest.fixture
def federated(example):
    """The example estate with a federation part, edited, and with ``policy``."""

    def make(old: str = "", new: str = "", policy: str = POLICY, **files: bytes) -> dict[str, bytes]:
        assert old in GOOD
        text = example["estate.yaml"].decode() + GOOD.replace(old, new, 1)
        made = {
            **example,
            "estate.yaml": text.encode(),
            FILE: b'{"keys": []}',
            "policies/partner.cedar": policy.encode(),
        }
        return made | {name.replace("__", "/"): data for name, data in files.items()}

    return make


def test_a_foreign_caller_is_a_principal_like_any_other(federated) -> None:
    files = federated()
    estate = load_estate(files)
    compiled = compile_estate(estate)
    billing = compiled.sidecars[OWN]
    oracle = Oracle(estate)
    asked = {
        ("acme", BOT): DecisionCode.ALLOWED,
        ("globex", BOT): DecisionCode.TENANT_NOT_PERMITTED,
        ("acme", "spiffe://partner.example/bots/other"): DecisionCode.UNKNOWN_CALLER,
    }
    for (tenant, caller), code in asked.items():
        request = (caller, "billing", "GET", f"/api/v2/tenants/{tenant}/invoices")
        assert lookup(billing, *request)[1] is code
        assert oracle.decide(*request)[1] is code
    assert BOT in billing.known_callers
    assert BOT not in compiled.sidecars, "it runs elsewhere"


def test_only_a_sidecar_whose_policies_admit_somebody_trusts_the_foreign_domain(federated) -> None:
    forbid_open = """
    @id("not-abroad") @owner("group:platform") @reason("open is for our own")
    forbid (principal, action, resource) when { principal has tier && principal.tier == "gold"
      && resource != Service::"billing" };
    """
    compiled = compile_estate(load_estate(federated(policy=POLICY + forbid_open)))
    trusting = {name for name, sidecar in compiled.sidecars.items() if sidecar.federated_callers}
    assert trusting == {OWN}
    assert compiled.sidecars[OWN].federated_callers == ("partner.example",)


def test_a_foreign_service_is_reached_from_its_environment_alone(federated) -> None:
    compiled = compile_estate(load_estate(federated()))
    for name, sidecar in compiled.sidecars.items():
        found = [o for o in sidecar.outbound if o.service == "partner-ledger"]
        assert bool(found) == ("/prod/" in name)
        assert all(o.spiffe_id == "spiffe://partner.example/ledger" for o in found)
        assert all(o.endpoints == ("ledger.partner.example:8443",) for o in found)


def test_plan_tells_of_trust_that_comes_changes_and_goes(federated, example) -> None:
    def told(files, before):
        plan = plan_files(files, START.date(), before)
        assert plan.difference is not None, plan.problems
        return {(c.name, c.changed) for c in plan.difference.registrations_changed if c.kind == "federation"}, plan

    came, plan = told(federated(), example)
    assert came == {("partner.example", ("added",))}
    assert (BOT, "billing:invoices:list") in {(a.caller, a.operation) for a in plan.difference.newly_allowed}
    changed, _ = told(federated(**{"federation__partner.json": b'{"keys": [ ]}'}), federated())
    assert changed == {("partner.example", ("bundle",))}
    gone, _ = told(example, federated())
    assert gone == {("partner.example", ("removed",))}


def test_the_version_says_whom_we_trust(federated) -> None:
    made = (
        federated(),
        federated("https://partner.example:8443/bundle", "https://partner.example:9443/bundle"),
        federated(**{"federation__partner.json": b'{"keys": [], "spiffe_sequence": 2}'}),
    )
    assert len({compile_estate(load_estate(files)).version for files in made}) == 3


ERRORS = [
    ("trust_domain: partner.example", "trust_domain: saas.example", "the estate's own trust domain"),
    ("trust_domain: partner.example", "trust_domain: Partner", "character outside"),
    ("https://partner.example:8443/bundle", "http://partner.example/", "is not"),
    ("https://partner.example:8443/bundle", "https://a:b@partner.example/", "has a user"),
    ("    profile: https_spiffe\n", "", "an endpoint of profile https_web has no SPIFFE ID"),
    ("    endpoint_spiffe_id: spiffe://partner.example/spire/server\n", "", "needs the SPIFFE ID of the endpoint"),
    ("spiffe://partner.example/spire/server", "spiffe://saas.example/spire/server", "not one of our own"),
    ("    endpoint: https://partner.example:8443/bundle\n", "", "a profile without an endpoint"),
    (FILE, "federation/missing.json", "there is no file federation/missing.json"),
    (FILE, "workloads/all.yaml", "is not a bundle's file"),
    (f"spiffe_id: {BOT}", "spiffe_id: spiffe://third.example/bots/invoicer", "is not of the trust domain"),
    ("environment: prod", "environment: prd", "unknown environment 'prd'"),
    ("domain: commerce", "domain: comerce", "unknown domain 'comerce'"),
    ("tenants: [acme]", "tenants: acme", "tenants must be a list"),
    ("tier: gold", "owner: gold", "is a field of its own"),
    ("service: partner-ledger", "service: billing", "is a service of this estate"),
    (
        "workload: spiffe://partner.example/ledger",
        "workload: spiffe://saas.example/ledger",
        "is not of the trust domain",
    ),
    ('["ledger.partner.example:8443"]', "[]", ""),
    ('["ledger.partner.example:8443"]', '["ledger.partner.example"]', "is not host:port"),
]


@pytest.mark.parametrize(("old", "new", "expected"), ERRORS, ids=[f"{e[0][:30]}-{e[1][:30]}" for e in ERRORS])
def test_mistakes_are_told_where_they_are(federated, old, new, expected) -> None:
    with pytest.raises(EstateInvalid) as caught:
        load_estate(federated(old, new, policy=""))
    told = [str(problem) for problem in caught.value.problems if problem.where.file == "estate.yaml"]
    assert any(expected in line and line.startswith("estate.yaml:") for line in told), told


def test_a_workload_federates_only_with_whom_the_estate_knows(federated) -> None:
    files = federated()
    text = files["workloads/all.yaml"]
    known = text.replace(b"\n    node:", b"\n    federates_with: [partner.example]\n    node:", 1)
    assert known != text
    estate = load_estate({**files, "workloads/all.yaml": known})
    assert ("partner.example",) in {workload.federates_with for workload in estate.workloads}
    with pytest.raises(EstateInvalid, match="no federation with 'partner"):
        load_estate({**files, "workloads/all.yaml": known.replace(b"[partner.example]", b"[partner.exampel]")})


def test_files_of_the_folder_that_nothing_names_are_pointed_at(federated) -> None:
    files = federated()
    estate = load_estate({**files, "federation/old.json": b"{}"})
    assert any("federation/old.json" in str(note) and "not read" in str(note) for note in estate.notes)
    assert list(estate.bundles) == [FILE]
