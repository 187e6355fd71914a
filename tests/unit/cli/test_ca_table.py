"""What ``eastwest ca`` shows."""

import re

import pytest

from eastwest.api.eastwest.authority.v1 import authority_pb2 as pb
from eastwest.cli.authority import find_item
from eastwest.cli.ca_table import SHORT_ID, is_confirmed, print_state, state_json, status_json

ROOT, ISSUING, KEY = (letter * 40 for letter in "abc")
NOW = 1_795_334_400
YEAR = 31_536_000


def state(*items, **fields):
    return pb.State(trust_domain="shop.example", bundle_sequence=2, rotation="auto", items=items, **fields)


def item(kind, authority, **fields):
    given = {"stage": "active", "not_before": NOW, "not_after": NOW + YEAR, "prepare_at": NOW + YEAR // 2}
    return pb.Item(kind=kind, id=authority, **(given | fields))


HEALTHY = state(item("x509", ROOT, source="own", sequence=2), item("issuing", ISSUING), item("jwt", KEY, sequence=1))


def test_a_healthy_server_fits_a_hundred_columns(capsys):
    print_state(HEALTHY)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert [ROOT[:SHORT_ID] in line for line in lines] == [False, False, True, False, False]


def test_it_does_on_a_terminal_too(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    print_state(HEALTHY)
    told = capsys.readouterr().out
    assert all(re.search(rf"{each[:SHORT_ID]} .*2027", told) for each in (ROOT, ISSUING, KEY)), "no row is folded"


def test_ids_that_begin_alike_are_shown_as_far_as_they_differ(capsys):
    alike = "a" * 20 + "b" * 20
    print_state(state(item("x509", ROOT), item("x509", alike, stage="old")))
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert shown == ["a" * 21, "a" * 20 + "b"]
    assert find_item(state(item("x509", ROOT), item("x509", alike)), shown[1]).id == alike


def test_moments_are_rfc_3339_and_none_is_null():
    told = state_json(HEALTHY)["authorities"][0]
    assert (told["id"], told["not_before"], told["not_after"]) == (ROOT, "2026-11-22T08:00:00Z", "2027-11-22T08:00:00Z")
    assert told["usable_at"] is None
    holder = pb.Holder(agent_id="spiffe://shop.example/spire/agent/x509pop/a", bundle_sequence=2, not_after=NOW)
    assert status_json(state(holders=[holder]))["nodes"][0]["not_after"] == "2026-11-22T08:00:00Z"


@pytest.mark.parametrize(
    ("fields", "confirmed"),
    [
        ({"bundle_sequence": 2}, True),
        ({"bundle_sequence": 1}, False),
        ({"bundle_sequence": 2, "tainted_svids": 1}, False),
    ],
)
def test_nobody_is_behind_when_all_have_the_bundle_and_nothing_tainted(fields, confirmed):
    assert is_confirmed(state(holders=[pb.Holder(agent_id="spiffe://shop.example/a", **fields)])) is confirmed
