"""Whoever leads to another's application needs the word of who answers for it, whatever name and workload it takes."""

import json

import pytest

from eastwest.policy.applications import Application, nodes_of
from eastwest.policy.load import load_estate
from eastwest.policy.past import Past, Version
from eastwest.policy.risk import required, widenings
from eastwest.policy.table import compile_estate

TD = "t.example"
ALL = '@id("all") @owner("group:x") @reason("r") permit (principal, action, resource);'


def workload(name, node):
    return {
        "spiffe_id": f"spiffe://{TD}/prod/{name}/{name}",
        "environment": "prod",
        "domain": name,
        "owner": f"group:{name}",
        "node": node,
        "selectors": [f"unix:user:{name}"],
        "profile": "workload",
    }


def service(name, port, upstream, sensitivity, mtls="strict"):
    until = {"until": "2099-01-01"} if mtls == "permissive" else {}
    return {
        "service": name,
        "workload": f"spiffe://{TD}/prod/{name}/{name}",
        "owner": f"group:{name}",
        "domain": name,
        "listen": {"port": port, "protocol": "http", "mtls": mtls} | until,
        "upstream": upstream,
        "operations": [
            {"name": f"{name}:all:do", "match": {"method": "POST", "path": "/{what}"}, "sensitivity": sensitivity}
        ],
    }


def estate(*services, side="group:nodes", policies=ALL):
    files = {
        "estate.yaml": {
            "trust_domain": TD,
            "environments": [{"name": "prod", "kind": "vm"}],
            "domains": [{"name": name, "owners": [f"group:{name}"]} for name in ("bank", "side")],
            "node_groups": [
                {"name": name, "environment": "prod", "selectors": [f"join_token:group:{name}"]}
                for name in ("nodes", "others")
            ],
        },
        "workloads/all.yaml": {"workloads": [workload("bank", "group:nodes"), workload("side", side)]},
        **{f"services/{one['service']}.yaml": one for one in services},
    }
    said = {path: json.dumps(value).encode() for path, value in files.items()}
    return load_estate(said | {"policies/all.cedar": policies.encode()})


def asked(before, after, past=None):
    found = widenings(compile_estate(before), compile_estate(after), before, after, past)
    return {(one.domain, one.owner) for one in required(found)}


BANK = ("bank", "group:bank")
SIDE = ("side", "group:side")
LOCAL = {"tcp": "127.0.0.1:9000"}


@pytest.mark.parametrize("upstream", [LOCAL, {"unix": "/run/app.sock"}, {"tcp": "app.t.example:9000"}])
def test_a_new_service_of_another_workload_needs_the_word_of_who_owns_the_application(upstream) -> None:
    bank = service("bank", 8001, upstream, "control")
    before = estate(bank)
    # By its own word its requests are of no account; by the bank's they are.
    assert asked(before, estate(bank, service("side", 8002, upstream, "open"))) == {BANK, SIDE}


def test_so_does_one_that_points_there_from_now_on() -> None:
    bank = service("bank", 8001, LOCAL, "control")
    before = estate(bank, service("side", 8002, {"tcp": "127.0.0.1:9001"}, "open"))
    assert BANK in asked(before, estate(bank, service("side", 8002, LOCAL, "open")))


def test_and_one_whose_workload_moves_there() -> None:
    services = service("bank", 8001, LOCAL, "control"), service("side", 8002, LOCAL, "open")
    assert BANK in asked(estate(*services, side="group:others"), estate(*services))


def test_the_same_address_of_other_machines_is_another_application() -> None:
    bank, elsewhere = service("bank", 8001, LOCAL, "control"), service("side", 8002, LOCAL, "open")
    before = estate(bank, side="group:others")
    assert asked(before, estate(bank, elsewhere, side="group:others")) == set()


def test_a_way_that_was_there_opens_only_with_both_words() -> None:
    forbid = '@id("no") @owner("group:x") @reason("r") forbid (principal, action, resource == Service::"side");'
    services = service("bank", 8001, LOCAL, "control"), service("side", 8002, LOCAL, "open")
    closed = estate(*services, policies=f"{ALL}\n{forbid}")
    assert asked(closed, estate(*services)) == {BANK, SIDE}
    # Permissive lets anybody through.
    permissive = services[0], service("side", 8002, LOCAL, "open", mtls="permissive")
    assert BANK in asked(closed, estate(*permissive, policies=f"{ALL}\n{forbid}"))
    # What is as it was asks nobody: that it counts for less there is no news.
    more = '@id("more") @owner("group:x") @reason("r") forbid (principal, action in Action::"read", resource);'
    assert asked(estate(*services), estate(*services, policies=f"{ALL}\n{more}")) == set()


def test_nothing_is_had_for_less_by_taking_the_other_service_away_first() -> None:
    first = estate(service("bank", 8001, LOCAL, "control"))
    moved = service("bank", 8001, {"tcp": "127.0.0.1:9001"}, "open")
    between, after = estate(moved), estate(moved, service("side", 8002, LOCAL, "open"))
    assert asked(between, after) == set()
    past = Past().joined([Version(first.services, nodes_of(first.workloads))])
    assert asked(between, after, past) == {SIDE}


@pytest.mark.parametrize(
    ("nodes", "same"),
    [
        (("group:a", "group:a"), True),
        (("group:a", "group:b"), False),
        (("group:a", f"spiffe://{TD}/spire/agent/x"), True),
        (("", ""), True),
    ],
)
def test_one_machine_is_one_kind_of_node_or_one_that_may_be_of_it(nodes, same) -> None:
    one, other = (Application("127.0.0.1:9000", node) for node in nodes)
    assert one.may_be(other) is same
    assert other.may_be(one) is same
    assert not one.may_be(Application("127.0.0.1:9001", nodes[0]))
