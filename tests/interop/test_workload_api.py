"""go-spiffe and the PyPI `spiffe` client as workloads, on our agent and on SPIRE's own, both under our server."""

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from interop_harness import TRUST_DOMAIN, Authority, Node, Workload, run, workload_id

HERE = Path(__file__).resolve().parent
NewWorkload = Callable[[str], Workload]


def test_x509_svid_verifies_and_carries_what_its_entry_says(
    authority: Authority, node: Node, new_workload: NewWorkload
) -> None:
    shop = new_workload("shop")
    authority.register("shop", node.spiffe_id, shop.selector, dns="shop.internal", x509SVIDTTL=600)
    svid = shop.ask("x509")
    assert svid["spiffe_id"] == svid["verified_id"] == workload_id("shop")
    assert svid["dns_names"] == ["shop.internal"]
    assert svid["key"] == "P-256"
    assert svid["roots"] >= 1
    life = datetime.fromisoformat(svid["not_after"]) - datetime.fromisoformat(svid["not_before"])
    assert timedelta(seconds=590) <= life <= timedelta(seconds=640)


def test_jwt_svid_is_valid_to_the_bundle_and_to_the_agent(
    authority: Authority, node: Node, new_workload: NewWorkload
) -> None:
    caller = new_workload("jwt-caller")
    authority.register("jwt-caller", node.spiffe_id, caller.selector, jwtSVIDTTL=120)
    token = caller.ask("jwt", "billing")
    assert token["spiffe_id"] == token["agent_says"] == workload_id("jwt-caller")
    assert token["audience"] == ["billing"]
    assert token["other_audience_refused"]
    left = datetime.fromisoformat(token["expiry"]) - datetime.now(UTC)
    assert timedelta(0) < left <= timedelta(seconds=125)


def test_bundles_name_the_trust_domain(authority: Authority, node: Node, new_workload: NewWorkload) -> None:
    reader = new_workload("bundle-reader")
    authority.register("bundle-reader", node.spiffe_id, reader.selector)
    bundles = reader.ask("bundles")
    assert bundles["x509"][TRUST_DOMAIN] >= 1
    assert bundles["jwt"][TRUST_DOMAIN] >= 1


def test_a_program_without_an_entry_gets_nothing(new_workload: NewWorkload) -> None:
    new_workload("stranger").fails("x509", seconds=3)


def test_a_changed_entry_is_pushed_to_an_open_stream(
    authority: Authority, node: Node, new_workload: NewWorkload
) -> None:
    watcher = new_workload("watcher")
    selectors = ["-selector", watcher.selector]
    names = ["-spiffeID", watcher.spiffe_id, "-parentID", node.spiffe_id]
    entry = authority.register("watcher", node.spiffe_id, watcher.selector)
    with watcher.keep_running("watch") as lines:
        before = lines.first("identity")
        authority.cli("entry", "update", "-entryID", entry, *names, *selectors, "-dns", "watcher.internal")
        after = lines.first("DNS name", lambda svid: svid["dns_names"] == ["watcher.internal"], seconds=20)
    assert before["dns_names"] == []
    assert after["serial"] != before["serial"]


def test_an_identity_ends_with_its_entry(
    request: pytest.FixtureRequest, authority: Authority, node: Node, new_workload: NewWorkload
) -> None:
    leaver = new_workload("leaver")
    entry = authority.register("leaver", node.spiffe_id, leaver.selector)
    with leaver.keep_running("watch") as lines:
        lines.first("identity")
        authority.cli("entry", "delete", "-entryID", entry)
    # Ours is told at once; a stock agent hears of it at its next sync.
    _until_refused(leaver, 3 if request.node.callspec.params["node"] == "ours" else 20)


@pytest.mark.timeout(180)
def test_a_short_lived_svid_is_renewed_before_it_ends(
    authority: Authority, node: Node, new_workload: NewWorkload
) -> None:
    mayfly = new_workload("mayfly")
    authority.register("mayfly", node.spiffe_id, mayfly.selector, x509SVIDTTL=60)
    with mayfly.keep_running("watch", seconds=150) as lines:
        svids = [lines.first("identity")]
        for count in ("first", "second"):
            known = {svid["serial"] for svid in svids}
            svids.append(lines.first(f"{count} renewal", lambda svid: svid["serial"] not in known, seconds=60))  # noqa: B023
    for older, newer in pairwise(svids):
        assert datetime.fromisoformat(newer["not_before"]) < datetime.fromisoformat(older["not_after"])
        assert datetime.fromisoformat(newer["not_after"]) > datetime.fromisoformat(older["not_after"])


def test_two_workloads_speak_mutual_tls(authority: Authority, node: Node, new_workload: NewWorkload) -> None:
    server, client = new_workload("mtls-server"), new_workload("mtls-client")
    for party in (server, client):
        authority.register(party.name, node.spiffe_id, party.selector)
    with server.keep_running("serve", client.spiffe_id) as lines:
        address = lines.first("address")["address"]
        assert client.ask("call", address, server.spiffe_id) == {"peer": server.spiffe_id, "answer": "hello"}
        assert "unexpected ID" in client.fails("call", address, workload_id("somebody-else"), seconds=10)
        impostor = new_workload("mtls-impostor")
        authority.register(impostor.name, node.spiffe_id, impostor.selector)
        impostor.ask("x509")
        impostor.fails("call", address, server.spiffe_id, seconds=10)


def test_the_python_client_gets_identities_and_updates(authority: Authority, node: Node) -> None:
    # Its generated protocol code clashes with ours inside one process, so it runs in another.
    selectors = [f"unix:path:{os.path.realpath(sys.executable)}", f"unix:uid:{os.getuid()}"]
    entry = authority.register("python", node.spiffe_id, *selectors, x509SVIDTTL=60)
    try:
        program = [sys.executable, HERE / "pyspiffe_workload.py"]
        told = json.loads(run(program, environment={"SPIFFE_ENDPOINT_SOCKET": f"unix://{node.socket}"}, seconds=90))
    finally:
        authority.cli("entry", "delete", "-entryID", entry)
    assert told["x509"] == told["jwt"] == told["validated"] == workload_id("python")
    assert told["authorities"] >= 1
    assert told["audience"] == ["billing"]
    assert len(set(told["serials"])) == 2, "one rotation was awaited"


def _until_refused(workload: Workload, seconds: float) -> None:
    """Nothing announces a stock agent's next sync, so it is asked again until it has heard of the deletion."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            workload.fails("x509", seconds=3)
        except AssertionError:
            time.sleep(0.3)
            continue
        return
    pytest.fail("a deleted entry is still served")
