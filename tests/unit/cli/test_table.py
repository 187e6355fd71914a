"""Tables of the command line lose nothing and obey nobody."""

import sys

import pytest

from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
from eastwest.cli import mesh_table
from eastwest.cli.decisions import show as decisions
from eastwest.cli.table import plain_lines, print_table, printable

LONG = "spiffe://a-rather-long-trust-domain.example/production/customer-messaging/notification-sender"


def test_plain_lines_are_aligned_and_end_where_the_text_does():
    assert plain_lines([("a", "bb"), ("ccc", "d"), ("", "")]) == ["a    bb", "ccc  d", ""]


def test_nothing_is_cut_where_there_is_no_terminal(capsys):
    print_table(("caller", "code"), [(LONG, "ALLOWED"), ("", "MTLS_REQUIRED")])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["caller", "code"]
    assert first.split() == [LONG, "ALLOWED"]
    assert second.split() == ["-", "MTLS_REQUIRED"]


def test_a_terminal_that_is_too_narrow_for_columns_gets_named_values(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    columns = ("caller", "code", "owner", "tenant", "last seen", "policy")
    print_table(columns, [(LONG, "ALLOWED", "group:a", "", "2026-11-22T17:48:16Z", LONG), ("x", "", "", "", "", "")])
    assert capsys.readouterr().out.splitlines() == [
        f"caller: {LONG}",
        "  code: ALLOWED  owner: group:a",
        "  last seen: 2026-11-22T17:48:16Z",
        f"  policy: {LONG}",
        "caller: x",
    ]


def test_nothing_is_cut_on_a_terminal_that_needs_folding(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    print_table(("caller", "policy"), [(LONG, "[bold]no markup[/bold]")])
    left, right = zip(*(line.split("  ", 1) for line in folded(capsys.readouterr().out)), strict=True)
    assert LONG in "".join("".join(left).split())
    assert "[bold]nomarkup[/bold]" in "".join("".join(right).split())


def folded(out):
    """The lines of a table, each split at the gap before its last column."""
    gap = next(line for line in out.splitlines() if "policy" in line).index("policy")
    return [f"{line[: gap - 2].strip()}  {line[gap:].strip()}" for line in out.splitlines()]


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nb", "a\rb", "\x9b31m", "\u202eevil"])
def test_what_came_from_a_request_cannot_command_the_terminal(hostile):
    assert printable(hostile).isprintable()


def mesh(*sidecars):
    agent = pb.GetMeshStatusResponse.Agent(
        agent_id="spiffe://td.test/spire/agent/join_token/1",
        connected=True,
        intended_number=2,
        acknowledged_number=2,
        sidecars=sidecars,
    )
    return pb.GetMeshStatusResponse(policy_version="ab" * 32, agents=[agent])


def sidecar(**fields):
    given = {"node_id": "billing", "spiffe_id": LONG, "intended_version": "v2", "acknowledged_version": "v2"}
    return pb.GetMeshStatusResponse.Sidecar(**{"connected": True} | given | fields)


def test_mesh_status_names_every_sidecar_in_full(capsys):
    reply = mesh(sidecar())
    mesh_table.print_status(reply, mesh_table.behind(reply))
    out = capsys.readouterr().out
    assert f"billing  {LONG}  v2        v2            connected" in out
    assert out.splitlines()[0] == "policy version abababababab"
    assert out.splitlines()[-1] == "in step"


def test_mesh_status_tells_what_is_behind_and_what_was_refused(capsys):
    reply = mesh(sidecar(acknowledged_version="v1"), sidecar(node_id="admin", error="no such\nfield"))
    mesh_table.print_status(reply, mesh_table.behind(reply))
    lines = capsys.readouterr().out.splitlines()
    assert "behind: sidecar billing has not acknowledged v2" in lines
    assert "behind: sidecar admin refused its configuration: no such\N{REPLACEMENT CHARACTER}field" in lines
    assert "in step" not in lines


def test_mesh_status_of_nobody(capsys):
    mesh_table.print_status(pb.GetMeshStatusResponse(), [])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["policy version (none applied)", "no agent has connected since the server started"]


ROW = {"row": 7, "time": "2026-11-22T10:00:00Z", "service": "billing", "verdict": "deny", "code": "UNKNOWN_CALLER"}


def shown(**fields):
    return dict(zip(decisions.COLUMNS, decisions._shown(ROW | {"enforced": True} | fields), strict=True))


def test_a_decision_without_an_operation_shows_its_method():
    assert shown(method="GET")["operation"] == "GET"
    assert shown(method="GET", operation="billing:invoices:list")["operation"] == "billing:invoices:list"


def test_a_name_that_nobody_verified_is_shown_as_a_claim():
    assert shown(caller=LONG)["caller"] == LONG
    assert shown(caller=LONG, claimed=True)["caller"] == f"claims {LONG}"


def test_a_refusal_that_was_only_reported_is_told_from_one_that_was_enforced():
    assert shown()["verdict"] == "deny"
    assert shown(enforced=False)["verdict"] == "deny (reported only)"
    assert shown(enforced=False, verdict="allow")["verdict"] == "allow"


def test_a_row_that_is_not_counted_stands_for_one_call():
    assert (shown()["count"], shown(count=12)["count"]) == ("1", "12")
