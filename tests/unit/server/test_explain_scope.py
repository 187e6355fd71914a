"""Explanations tell policies: who sees a part of the estate gets those about its services, and no others."""

import pytest

from eastwest.errors import PermissionDenied
from eastwest.ledger.query import Scope
from eastwest.server.explain import asked_of, within

CALLER = "spiffe://shop.example/dev/pay/jobs"


def test_who_sees_everything_may_ask_about_everything():
    within(None, "orders")


@pytest.mark.parametrize("service", ["orders", "", "no-such-service"])
def test_a_caller_of_ones_own_shows_nothing_of_the_services_that_it_calls(service):
    scope = Scope(services=("billing",), callers=(CALLER,))
    within(scope, "billing")
    with pytest.raises(PermissionDenied) as caught:
        within(scope, service)
    assert service not in caught.value.message or not service


def test_a_name_that_was_only_claimed_is_nobodys():
    row = {"service": "billing", "caller": CALLER, "code": "CERTIFICATE_REFUSED", "claimed": True}
    assert asked_of(row).caller == ""
    assert asked_of({**row, "claimed": False}).caller == CALLER
