"""Entries made by API with an owner become callers that policies know."""

from pathlib import Path

import msgspec
import pytest

from eastwest.policy.load import load_estate
from eastwest.policy.naming import Naming
from eastwest.policy.table import compile_estate
from eastwest.registry.entry import Entry, Origin
from eastwest.server.registration.known_callers import known_callers
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.selector import Selector

ROOT = Path(__file__).parents[3] / "examples" / "estate"
TD = TrustDomain("saas.example")
ID = "spiffe://saas.example/prod/commerce/batch"


@pytest.fixture(scope="module")
def estate():
    return load_estate({p.relative_to(ROOT).as_posix(): p.read_bytes() for p in ROOT.rglob("*") if p.is_file()})


def entry(path="/prod/commerce/batch", uid=1, **fields) -> Entry:
    made = {
        "spiffe_id": TD.id(path),
        "parent_id": TD.id("/spire/agent/x/1"),
        "selectors": frozenset({Selector("unix", f"uid:{uid}")}),
        "owner": "group:commerce",
        "environment": "prod",
        "attributes": (("tenants", ("acme",)),),
    }
    return Entry(**(made | fields))


def callers(estate, *entries: Entry) -> list[str]:
    found = known_callers(entries, estate, Naming.of(estate.settings))
    return [caller.spiffe_id for caller in found]


def test_an_entry_with_an_owner_is_a_principal_with_its_attributes(estate):
    [caller] = known_callers([entry()], estate, Naming.of(estate.settings))
    assert (caller.spiffe_id, caller.environment, caller.domain, caller.owner) == (
        ID,
        "prod",
        "commerce",
        "group:commerce",
    )
    assert caller.attributes == {"tenants": ("acme",)}
    plain, whole = compile_estate(estate), compile_estate(msgspec.structs.replace(estate, registered=(caller,)))
    assert whole.version == plain.version
    billing = "spiffe://saas.example/prod/commerce/billing"
    assert ID not in plain.sidecars[billing].known_callers
    assert ID in whole.sidecars[billing].known_callers
    # "callers-read-their-tenants-invoices" is about every caller of the domain that has tenants.
    read = {side: reading(compiled.sidecars[billing]) for side, compiled in (("plain", plain), ("whole", whole))}
    assert ID not in read["plain"]
    assert ID in read["whole"]


def reading(sidecar) -> str:
    """The rules of one operation, as text."""
    [rules] = [rules for rules in sidecar.inbound[0].operations if rules.name == "billing:invoices:read"]
    return msgspec.json.encode(rules).decode()


@pytest.mark.parametrize(
    "left_out",
    [
        {"owner": ""},
        {"path": "/batch"},
        {"path": "/prod/commerce/billing"},  # the estate says what it is
        {"environment": ""},
        {"origin": Origin.ESTATE},
        {"store_svid": True},
        {"attributes": (("tenants", "acme"),)},  # policies were checked against a list
        {"attributes": (("domain", "platform"),)},
    ],
)
def test_what_is_uncertain_is_left_out(estate, left_out):
    assert callers(estate, entry(**left_out)) == []
    assert callers(estate, entry()) == [ID]


def test_two_entries_of_one_id_must_say_the_same(estate):
    assert callers(estate, entry(), entry(uid=2)) == [ID]
    assert callers(estate, entry(), entry(uid=2, attributes=())) == []
    assert callers(estate, entry(), entry(uid=2, attributes=()), entry(uid=3)) == []
