"""The demo's result for a person: tables and short lines, on standard output."""

from __future__ import annotations

import shutil
import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eastwest.cli.demo.calls import Made
from eastwest.cli.demo.place import WORKLOADS
from eastwest.cli.demo.report import Report
from eastwest.cli.demo.weak import KEY_NAME

_NOTHING = "-"
_WIDE = 170  # columns when nobody's terminal says otherwise
_TABLE_NEEDS = 150  # columns; below, each call is a paragraph
_IDS = [workload.spiffe_id for workload in WORKLOADS]
_COLOURS = {"allow": "green", "deny": "red", "report": "yellow"}


def show(report: Report) -> None:
    """Print ``report``."""
    width = None if sys.stdout.isatty() else int(shutil.get_terminal_size((_WIDE, 40)).columns)
    console = Console(width=width, highlight=False)
    _weak(console, report)
    _switch(console, report)
    _strong(console, report)
    _step_up(console, report)
    _rotation(console, report)
    _contained(console, report)
    _records(console, report)
    _evidence(console, report)
    _end(console, report)


def _weak(console: Console, report: Report) -> None:
    weak = report.weak
    _title(console, "A. Weak: one shared key, callers trusted by network, no policy")
    table = Table(
        "what the compromised notification does", "call", "answer", "identity", "key it used", box=SIMPLE_HEAD
    )
    for made in weak.calls:
        record = made.record or {}
        table.add_row(
            made.call.story,
            _request(made),
            Text(made.observed, style="red"),
            record.get("caller") or Text("none", style="red"),
            f"{KEY_NAME} {record.get('accepted_key') or '?'}",
        )
    console.print(table)
    console.print(
        f"{sum(made.ok for made in weak.calls)} of {len(weak.calls)} attacks succeeded; {weak.without_identity} calls "
        f"carried no identity: the services saw an address in {weak.network} and the key that all of them share, "
        "and could not tell who it was.",
        soft_wrap=True,
    )


def _switch(console: Console, report: Report) -> None:
    switch = report.switch
    _title(console, "B. Strong: from permissive to strict")
    _show_calls(console, [switch.permissive, switch.strict])
    same = "on the same connection" if switch.strict.reused else "on a new connection"
    console.print(
        f"billing went from permissive to strict in {switch.enforced_ms:.0f} ms, no Envoy restarted: the plaintext "
        f"call was reported, then refused {same}; {switch.load_failures} of the calls under way beside it failed.",
        soft_wrap=True,
    )


def _strong(console: Console, report: Report) -> None:
    _title(console, "B. Strong: the same attack, and the company's own work")
    _show_calls(console, report.strong)
    ledger = report.ledger
    console.print(
        f"Verdict, code and policy are from the decision ledger; {ledger.agreed} of {ledger.total} calls agree with "
        f"what their callers saw. Policy version {report.policy_version[:12]}.",
        soft_wrap=True,
    )
    if report.note:
        console.print(
            Text(
                f"Weaker here: {report.note}. Sidecars are told apart by the path of their program, so any process of "
                "this user could enter an application's socket or another workload's sidecar. Root gives each a uid.",
                style="yellow",
            )
        )


def _step_up(console: Console, report: Report) -> None:
    step_up = report.step_up
    _title(console, "B. Strong: what hurts needs a token for this one call, and somebody who answers for it")
    table = Table("asked at the token endpoint, through the asker's own sidecar", "for", "answer", box=SIMPLE_HEAD)
    for asked in step_up.asked:
        answer = f"a token, {asked.expires_in} s" if asked.token else asked.observed
        style = "green" if asked.token else "red" if asked.ask.attack else "yellow"
        table.add_row(asked.ask.story, asked.ask.operation, Text(answer, style=style if asked.ok else "red"))
        if asked.approval:
            table.add_row(f"{step_up.approver} grants approval {asked.approval}", asked.ask.operation, "granted")
    console.print(table)
    _show_calls(console, step_up.calls)


def _rotation(console: Console, report: Report) -> None:
    rotation = report.rotation
    _title(console, "A certificate rotated under load")
    console.print(f"billing presented serial {rotation.before or '?'}, then {rotation.after or '?'}.", soft_wrap=True)
    console.print(
        f"{rotation.calls} calls over {rotation.connections} connections meanwhile: {len(rotation.failures)} failed, "
        f"{rotation.broken_connections} connections between the sidecars broke.",
        soft_wrap=True,
    )
    for failure in rotation.failures[:5]:
        console.print(Text(f"  {failure}", style="red"))


def _contained(console: Console, report: Report) -> None:
    contained = report.contained
    _title(console, "The compromised service is cut off, and let in again")
    _show_calls(console, contained.calls)
    closed = sum(contained.report["closed"].values())
    console.print(
        f"From the command to the refusal at all {contained.report['points']} enforcement points: "
        f"{contained.denied_ms:.0f} ms, the start of the command included; {closed} connections closed; "
        f"{len(contained.load.failures)} of {contained.load.calls} calls of neighbours failed meanwhile.",
        soft_wrap=True,
    )


def _records(console: Console, report: Report) -> None:
    log = report.log
    _title(console, "Issuance records, verified from the log's public files")
    table = Table("entry", "issued to", "serial", "expires", "proof", box=SIMPLE_HEAD)
    for record in log.records:
        table.add_row(
            str(record.index),
            record.subject,
            record.serial,
            record.not_after,
            Text(f"{record.proof_hashes} hashes, holds" if record.verified else "fails", style="green"),
        )
    console.print(table)
    state = "verifies" if log.verified else "DOES NOT VERIFY"
    console.print(f"The log {log.origin} of {log.size} entries {state} against its signed checkpoint.", soft_wrap=True)


def _evidence(console: Console, report: Report) -> None:
    carried = report.evidence
    _title(console, "Evidence about the compromised service, judged without Eastwest")
    console.print(
        f"{carried.entries} entries of the log and {carried.calls} calls of {carried.principal}, with all proofs, "
        f"are in {carried.archive}. The program inside it, run alone:",
        soft_wrap=True,
    )
    for line in carried.lines:
        console.print(Text(f"  {line}"), soft_wrap=True)
    changed = "is found" if carried.tampering_found else "IS NOT FOUND"
    receipt = "holds" if carried.receipt_holds else "DOES NOT HOLD"
    console.print(f"One decision changed in a copy {changed}. The agent's receipt for storefront {receipt} offline.")


def _end(console: Console, report: Report) -> None:
    failed = [expectation for expectation in report.expectations if not expectation.ok]
    _title(console, "Result")
    for each in failed:
        console.print(
            Text(f"✗ {each.name}: expected {each.expected}, observed {each.observed}", style="red"), soft_wrap=True
        )
    good = len(report.expectations) - len(failed)
    style = "red" if failed else "green"
    console.print(
        Text(f"{good} of {len(report.expectations)} expectations hold, in {report.seconds:.1f} s.", style=style)
    )
    console.print("\nWhere to look next", style="bold")
    for line in report.next:
        console.print(f"  {line}", soft_wrap=True, markup=False)
    if report.kept:
        console.print("\nLeft running", style="bold")
        for process in report.processes:
            console.print(f"  pid {process['pid']:<8} {process['name']}", markup=False)
        for name, port in report.ports.items():
            console.print(f"  port {port:<7} {name}", markup=False)
        for name, socket in report.sockets.items():
            console.print(f"  {socket}   {name}", soft_wrap=True, markup=False)


def _show_calls(console: Console, calls: list[Made]) -> None:
    if console.width < _TABLE_NEEDS:
        for made in calls:
            caller, operation, tenant, verdict, code, policy = _facts(made)
            console.print(Text.assemble(verdict, "  ", code))
            console.print(Text.assemble("    ", made.call.story), style="dim", soft_wrap=True)
            console.print(
                f"    {caller}\n    {operation}   tenant {tenant}   policy {policy}", soft_wrap=True, markup=False
            )
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("caller, and what it does", min_width=max(len(spiffe_id) for spiffe_id in _IDS), overflow="fold")
    table.add_column("operation", max_width=32, overflow="fold")
    for name in ("tenant", "verdict", "code"):
        table.add_column(name, no_wrap=True)
    table.add_column("policy", overflow="fold")
    for made in calls:
        caller, operation, tenant, verdict, code, policy = _facts(made)
        who = Text.assemble(caller, "\n", (f"  {made.call.story}", "dim"))
        table.add_row(who, operation, tenant, verdict, code, policy)
    console.print(table)


def _facts(made: Made) -> tuple[str, str, str, Text, Text, str]:
    """Caller, operation, tenant, verdict, code, policy: from the ledger, where anything can be recorded."""
    record = made.record or {}
    code = str(record.get("code") or made.observed)
    return (
        record.get("caller") or f"no identity ({made.call.caller})",
        record.get("operation") or f"{made.call.method} {made.call.path}",
        record.get("tenant") or made.call.tenant or _NOTHING,
        Text(made.verdict or "refused", style=_COLOURS.get(made.verdict, "red")),
        Text(code) if made.ok else Text(f"{code}; its caller saw {made.observed}", style="red"),
        record.get("policy") or _NOTHING,
    )


def _request(made: Made) -> str:
    return f"{made.call.service} {made.call.method} {made.call.path}"


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(text, style="bold")
