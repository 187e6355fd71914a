"""An identity that is given out less easily than before needs nobody's word."""

import msgspec
import pytest

from eastwest.pki.profile import WORKLOAD
from eastwest.policy.estate import ForeignWorkload, Lifetime, Profile
from eastwest.policy.load import load_estate
from eastwest.policy.loosened import BUILT_IN, loosened_identities
from eastwest.server.registration.estate_entries import profile_of

FILES = {
    "estate.yaml": b"""
trust_domain: t.example
environments: [{name: prod, kind: vm}]
domains: [{name: shop, owners: [group:shop]}]
node_groups: [{name: nodes, environment: prod, selectors: ["join_token:group:nodes"]}]
""",
    "workloads/all.yaml": b"""
workloads:
  - {spiffe_id: spiffe://t.example/prod/shop/web, environment: prod, domain: shop, owner: group:shop,
     node: group:nodes, selectors: ["unix:user:web"], profile: workload}
""",
}
SHORT = Profile(
    profile="workload", doors=("workload-api",), keys=("ec-p256",), lifetime=Lifetime(default="30m", max="1h")
)


def test_the_built_in_profile_is_what_is_issued_under_it() -> None:
    assert profile_of(BUILT_IN) == WORKLOAD


@pytest.mark.parametrize(
    ("change", "wider"),
    [
        ({}, False),
        ({"lifetime": Lifetime(default="30m", max="5h")}, True),
        ({"doors": ("workload-api", "acme")}, True),
        ({"keys": ("ml-dsa-65",)}, True),
        ({"revocation": "crl"}, True),
    ],
)
def test_one_of_its_own_is_a_widening_only_where_it_allows_more(change, wider) -> None:
    before = load_estate(FILES)
    after = msgspec.structs.replace(before, profiles=(msgspec.structs.replace(SHORT, **change),))
    assert bool(list(loosened_identities(before, after))) is wider
    # And to do without one again is one.
    assert list(loosened_identities(after, before))


def test_other_nodes_of_a_group_may_have_what_was_registered_by_api() -> None:
    ours = ForeignWorkload(
        spiffe_id="spiffe://t.example/prod/shop/by-api", environment="prod", domain="shop", owner="group:shop"
    )
    before = msgspec.structs.replace(load_estate(FILES), registered=(ours,))
    for told, wider in (("group:others", {ours.spiffe_id, "spiffe://t.example/prod/shop/web"}), ("group:nodes", set())):
        settings = FILES["estate.yaml"].replace(b'["join_token:group:nodes"]', f'["join_token:{told}"]'.encode())
        after = msgspec.structs.replace(load_estate(FILES | {"estate.yaml": settings}), registered=(ours,))
        assert {name for name, _ in loosened_identities(before, after)} == wider
