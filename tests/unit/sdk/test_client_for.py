"""A client by a service's name: a misspelt name is answered with the one that may be meant."""

import pytest

from eastwest.errors import FailedPrecondition
from eastwest.policy.enforcement import Outbound, Sidecar
from eastwest.sdk.httpx import client_for
from eastwest.sdk.source import Rules, RuleSource
from eastwest.spiffe.id import TrustDomain

BILLING = Outbound(service="billing", spiffe_id="spiffe://td.test/billing", endpoints=("127.0.0.1:1",), protocol="http")


@pytest.mark.parametrize(
    ("name", "fix"),
    [("biling", "did you mean 'billing'? Else permit the call"), ("stock", "permit the call by a policy")],
)
def test_a_service_that_the_rules_do_not_name(name: str, fix: str) -> None:
    source = RuleSource("/nowhere.sock")
    sidecar = Sidecar(spiffe_id="spiffe://td.test/web", version="v", known_callers=(), outbound=(BILLING,))
    source.rules = Rules(TrustDomain("td.test"), sidecar)
    with pytest.raises(FailedPrecondition, match=f"no HTTP service '{name}'") as raised:
        client_for(source, name)
    assert raised.value.fix.startswith(fix)
