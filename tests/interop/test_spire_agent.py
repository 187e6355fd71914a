"""The life of an unmodified spire-agent under our server: joining, large sets, restarts on both sides, the end."""

import json
import signal
from pathlib import Path

import pytest
from interop_harness import Authority, Node, Peers, spire_agent, workload, workload_id

# Twenty pages of SPIRE's sync (500 entries each), so that ids and whole entries both cross.
MANY = 10_000


@pytest.fixture
def agent(authority: Authority, tmp_path: Path) -> Node:
    """A stock agent of one test, not started."""
    return spire_agent(authority, tmp_path)


def test_joining_makes_a_node_that_the_command_line_shows(authority: Authority, agent: Node) -> None:
    before = authority.ask("agent", "count")["count"]
    with _running(agent):
        shown = authority.ask("agent", "show", "-spiffeID", agent.spiffe_id)
        assert shown["attestation_type"] == "join_token"
        assert shown["agent_version"].startswith("1.15.3")
        assert not shown["banned"]
        assert not shown["can_reattest"]
        assert int(shown["x509svid_serial_number"]) > 0
        assert authority.ask("agent", "count")["count"] == before + 1
        assert agent.spiffe_id in authority.cli("agent", "list")


@pytest.mark.timeout(240)
def test_a_token_works_once_and_only_if_made(authority: Authority, agent: Node, tmp_path: Path) -> None:
    used = agent.spiffe_id.rsplit("/", 1)[1]
    refused = []
    with _running(agent):
        # Side by side: a stock agent tries for a minute before it gives up.
        for name, token in (("used", used), ("unknown", "00000000-0000-4000-8000-000000000000")):
            folder = tmp_path / name
            folder.mkdir()
            refused.append(spire_agent(authority, folder, token))
        try:
            for node in refused:
                node.process.start()
            for node in refused:
                assert node.process.wait(100) != 0
                assert "InvalidArgument" in node.process.log.read_text()
        finally:
            for node in refused:
                node.stop()


@pytest.mark.timeout(240)
def test_more_entries_than_a_page(authority: Authority, agent: Node, peers: Peers, tmp_path: Path) -> None:
    last = workload(peers, agent, tmp_path, "last-of-many")
    entries = [
        {
            "spiffe_id": workload_id(f"many/{number:05}"),
            "parent_id": agent.spiffe_id,
            "selectors": [{"type": "unix", "value": f"uid:{1_000_000 + number}"}],
        }
        for number in range(MANY)
    ]
    results = authority.ask(
        "entry", "create", "-data", "-", stdin=json.dumps({"entries": entries}), seconds=120
    )["results"]  # fmt: skip
    assert [result["status"]["code"] for result in results] == [0] * MANY
    authority.register("last-of-many", agent.spiffe_id, last.selector)
    with _running(agent):
        assert last.ask("x509", seconds=60)["spiffe_id"] == last.spiffe_id
        # An entry that arrives later is one changed id among many known ones.
        late = workload(peers, agent, tmp_path, "late")
        authority.register("late", agent.spiffe_id, late.selector)
        assert late.ask("x509")["spiffe_id"] == late.spiffe_id
    listed = authority.ask("entry", "show", "-parentID", agent.spiffe_id)["entries"]
    assert len(listed) == MANY + 2


def test_the_agent_returns_without_its_token(authority: Authority, agent: Node, peers: Peers, tmp_path: Path) -> None:
    caller = workload(peers, agent, tmp_path, "steady")
    authority.register("steady", agent.spiffe_id, caller.selector)
    with _running(agent):
        caller.ask("x509")
    with _running(agent):
        assert caller.ask("x509")["spiffe_id"] == caller.spiffe_id


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_returns_under_a_running_agent(
    authority: Authority, agent: Node, peers: Peers, tmp_path: Path, how: signal.Signals
) -> None:
    before, after = (workload(peers, agent, tmp_path, f"{name}-{how.name.lower()}") for name in ("before", "after"))
    authority.register(before.name, agent.spiffe_id, before.selector)
    with _running(agent):
        before.ask("x509")
        authority.stop(how)
        assert before.ask("x509")["spiffe_id"] == before.spiffe_id, "served from the agent's memory"
        authority.start()
        authority.register(after.name, agent.spiffe_id, after.selector)
        # A stock agent backs off while its server is away.
        assert after.ask("x509", seconds=45)["spiffe_id"] == after.spiffe_id


def test_a_banned_agent_ends_and_stays_out(authority: Authority, agent: Node) -> None:
    agent.start()
    try:
        authority.cli("agent", "ban", "-spiffeID", agent.spiffe_id)
        assert authority.ask("agent", "show", "-spiffeID", agent.spiffe_id)["banned"]
        assert agent.process.wait(60) != 0
    finally:
        agent.stop()
    banned = authority.ask("agent", "list", "-banned", "true")["agents"]
    assert agent.spiffe_id.rsplit("/", 1)[1] in json.dumps(banned)


def test_an_evicted_agent_ends_and_is_forgotten(authority: Authority, agent: Node) -> None:
    agent.start()
    try:
        authority.cli("agent", "evict", "-spiffeID", agent.spiffe_id)
        assert authority.try_cli("agent", "show", "-spiffeID", agent.spiffe_id).returncode != 0
        assert agent.process.wait(60) != 0
    finally:
        agent.stop()


class _running:  # noqa: N801 - reads as a verb
    """A node started for the block."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __enter__(self) -> None:
        self._node.start()

    def __exit__(self, *_: object) -> None:
        self._node.stop()
