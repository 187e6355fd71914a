"""Who may register what, and the sentence that refuses the rest."""

import pytest

from eastwest.policy.estate import Administrator as Row
from eastwest.policy.estate import Right
from eastwest.policy.naming import Naming
from eastwest.registry.administrators import Administrators, NotAllowed, Subject, full
from eastwest.registry.entry import SERVER_PATH, Entry
from eastwest.registry.groups import group_id
from eastwest.registry.rules import Rules
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.selector import Selector

TD = TrustDomain("saas.example")
RULES = Rules(
    naming=Naming(
        {"prod": "/{environment}/{domain}/{service}", "staging": "/{environment}/{domain}/{service}"},
        frozenset({"commerce", "platform"}),
    )
)
CI = "spiffe://saas.example/prod/platform/ci"


def entry(path="/prod/commerce/x", *selectors, parent="prod-nodes", **fields) -> Entry:
    chosen = frozenset(map(Selector.parse, selectors or ("k8s:ns:shop", "k8s:sa:x")))
    spiffe_id = TD.id(path)
    made = {"spiffe_id": spiffe_id, "parent_id": group_id(TD, parent), "selectors": chosen}
    return Entry(**(made | {"environment": RULES.environment_of(spiffe_id)} | fields))


def administrator(*rows: dict, who: str = CI):
    administrators = Administrators()
    administrators.replace([Row(**({"who": who, "may": (Right.WORKLOADS,)} | row)) for row in rows])
    return administrators.find(who)


def refusal(admin, after, before=None) -> str:
    with pytest.raises(NotAllowed) as caught:
        admin.writer(RULES).check(before, after)
    return str(caught.value)


def test_a_domain_limits_what_is_registered():
    admin = administrator({"domains": ("commerce",)})
    admin.writer(RULES).check(None, entry())
    told = refusal(admin, entry("/prod/platform/x"))
    assert told.startswith(f"{CI} may not register spiffe://saas.example/prod/platform/x")
    assert "it may change workloads of domain commerce" in told
    assert refusal(admin, entry("/batch/x"))


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        ({"environments": ("staging",)}, entry("/staging/commerce/x"), entry()),
        ({"spiffe_ids": ("spiffe://saas.example/prod/commerce/*",)}, entry(), entry("/prod/platform/x")),
        ({"nodes": ("group:prod-nodes",)}, entry(), entry(parent="others")),
        ({"selectors": ("k8s:*",)}, entry(), entry("/prod/commerce/x", "unix:uid:0")),
        ({"with_selectors": ("k8s:ns:shop",)}, entry(), entry("/prod/commerce/x", "k8s:sa:x")),
        ({"domains": ("commerce",)}, entry(), entry(dns_names=("payments.prod.internal",))),
        ({"dns": ("*.shop.internal",)}, entry(dns_names=("x.shop.internal",)), entry(dns_names=("shop.internal",))),
        (
            {"domains": ("commerce",), "dns": ("x.shop.internal", "y.shop.internal")},
            entry(dns_names=("y.shop.internal", "x.shop.internal")),
            entry(dns_names=("x.shop.internal", "payments.prod.internal")),
        ),
        ({"domains": ("commerce",), "dns": ("*",)}, entry(dns_names=("a.b",)), entry("/prod/platform/x")),
    ],
)
def test_each_limit_holds(limits, inside, outside):
    admin = administrator(limits)
    admin.writer(RULES).check(None, inside)
    assert refusal(admin, outside)
    # What is not theirs cannot be changed into theirs, nor theirs into another's.
    assert refusal(admin, inside, before=outside)
    assert refusal(admin, outside, before=inside)
    assert refusal(admin, None, before=outside)


def test_dns_names_are_free_without_any_limit_and_told_in_a_refusal():
    administrator({}).writer(RULES).check(None, entry(dns_names=("payments.prod.internal",)))
    named = entry(dns_names=("payments.prod.internal",))
    # Of two rows one must give all of it.
    admin = administrator({"domains": ("commerce",)}, {"domains": ("platform",), "dns": ("*.internal",)})
    told = refusal(admin, named)
    assert "/prod/commerce/x as payments.prod.internal on" in told
    assert "of domain platform, with DNS names like *.internal" in told


def test_limits_of_one_row_hold_together_and_rows_add_up():
    both = administrator({"domains": ("commerce",), "environments": ("staging",)})
    assert refusal(both, entry())
    either = administrator({"domains": ("commerce",)}, {"environments": ("staging",)})
    either.writer(RULES).check(None, entry())
    either.writer(RULES).check(None, entry("/staging/platform/x"))
    assert refusal(either, entry("/prod/platform/x"))


def test_rights_on_the_server_are_not_registered_by_workload_rights():
    limited, unlimited = administrator({"domains": ("commerce",)}), administrator({})
    for admin in (limited, unlimited):
        assert "as admin" in refusal(admin, entry(admin=True))
        assert "as downstream" in refusal(admin, entry(downstream=True))
    alias = entry("/eastwest/group/x", parent_id=TD.id(SERVER_PATH))
    assert refusal(limited, alias)
    unlimited.writer(RULES).check(None, alias)
    full("root").writer(RULES).check(None, entry(admin=True))


def test_nobody_becomes_an_administrator_by_registering_its_id():
    administrators = Administrators()
    administrators.replace(
        [
            Row(who="unix:uid:7", may=(Right.WORKLOADS, Right.MINT), environments=("prod",)),
            Row(who=CI, may=(Right.EVERYTHING,)),
        ]
    )
    admin = administrators.find("unix:uid:7")
    assert "is an administrator" in refusal(admin, entry("/prod/platform/ci"))
    with pytest.raises(NotAllowed, match="is an administrator"):
        admin.require_for(Right.MINT, Subject(TD.id("/prod/platform/ci"), "platform", "prod"), "mint it")


def test_a_controller_touches_only_what_it_made():
    admin = administrator({"may": (Right.EVERYTHING,), "controller": "k8s"})
    writer = admin.writer(RULES)
    assert writer.managed_by == "controller:k8s"
    assert admin.sees_only_own
    own, other = entry(id="a", managed_by="controller:k8s"), entry(id="b", managed_by="api:unix:uid:0")
    writer.check(own, None)
    for before, after in ((other, None), (other, own)):
        with pytest.raises(Exception, match="is kept by api:unix:uid:0, not by controller:k8s"):
            writer.check(before, after)


def test_a_probe_may_be_registered_by_whoever_may_register_anything():
    path = "/spire-controller-manager/unsupported-fields-test"
    probe = entry(path, "a:1", parent_id=TD.id(path), store_svid=True)
    administrator({"domains": ("commerce",)}).writer(RULES).check(None, probe)
    assert refusal(administrator({"may": (Right.READ,)}), probe)


def test_who_has_no_right_is_told_which_it_needs():
    admin = administrator({"may": (Right.SERVICES,), "domains": ("commerce",)})
    with pytest.raises(NotAllowed, match=r"it needs the right ca; it has services of domain commerce"):
        admin.require(Right.CA, "rotate")
    assert admin.may(Right.READ)
    assert Administrators().find("unix:uid:0") is None
