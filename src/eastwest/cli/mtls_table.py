"""How ``eastwest mtls`` shows reports to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eastwest.cli.table import print_table, printable

_STATUS = ("service", "port", "mode", "until", "ring", "plaintext", "mTLS", "ready")
_BREAKS = ("caller", "port", "cause", "calls/day", "last seen", "owner", "risk", "confidence")


def print_status(reports: Sequence[dict[str, Any]]) -> None:
    """One row a service."""
    if not reports:
        print("the estate has no service")
        return
    print_table(_STATUS, [_status(one) for one in reports])


def print_report(one: dict[str, Any]) -> None:
    """The break list of a service, what mends it, and what the record is worth."""
    print(f"{one['service']}:{one['port']} is {one['mode']}{_until(one)}")
    print()
    breaks = one["breaks"]
    if breaks:
        print_table(_BREAKS, [_row(each) for each in breaks])
        print()
        for each in breaks:
            print(f"{printable(_name(each))}: {each['cause']}")
            if each.get("confidence") == "process":
                print(f"  is {printable(each['caller'])}")
            print(f"  → {printable(each['fix'])}")
    else:
        print("nobody on record would be refused" if one["mode"] != "strict" else "nobody on record is refused")
    print()
    for each in one["recovered"]:
        print(f"mended since: {printable(_name(each))}, {each['cause']}, last {_time(each['last'])}")
    print(f"window: {_time(one['start'])} to {_time(one['end'])}; sensors were there {one['uptime']:.2%} of it")
    if one["waived"]:
        print(f"never seen, and waived: {', '.join(one['waived'])}")
    if one["mode"] == "strict":
        print(f"verdict: strict already{'; these are refused' if breaks else ''}")
    else:
        print(f"verdict: {'READY' if one['ready'] else 'NOT READY'}")
        for reason in one["reasons"]:
            print(f"  {reason['kind']}: {printable(reason['text'])}")
    print()


def print_switch(outcome: dict[str, Any], *, override: str) -> None:
    """What a switch would do, to whom, and what speaks against it."""
    if outcome["report"] is not None:
        print_report(outcome["report"])
    print(f"{printable(outcome['file'])}, line {outcome['line']}")
    for sign, lines in (("-", outcome["before"]), ("+", outcome["after"])):
        for line in lines.splitlines():
            print(f"  {sign} {printable(line)}")
    if outcome["mode"] == "permissive":
        print(f"anybody who reaches port {outcome['port']} gets in, and decisions are only reported")
    if not outcome["refused"]:
        return
    if override:
        callers = len(outcome["report"]["breaks"])
        print(f"overridden, and recorded so: {printable(override)} ({callers} on record will be refused)")
    else:
        print(f"refused: {outcome['service']} is NOT READY (--override REASON goes on, and is recorded)")


def _status(one: dict[str, Any]) -> tuple[str, ...]:
    until = (f"{one['until']} EXPIRED" if one["expired"] else one["until"]) if one["until"] else ""
    ready = "strict" if one["mode"] == "strict" else "READY" if one["ready"] else _why(one)
    counts = (str(one["plaintext_callers"]), str(one["mtls_callers"]))
    return (one["service"], str(one["port"]), one["mode"], until, one["ring"], *counts, ready)


def _why(one: dict[str, Any]) -> str:
    kinds = list(dict.fromkeys(reason["kind"] for reason in one["reasons"]))
    return f"NOT READY: {', '.join(kinds)}"


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    return (
        _name(each),
        str(each["port"]),
        each["cause"] if each.get("passes_today") else f"{each['cause']} (refused today)",
        f"{each['calls_per_day']:g}",
        _time(each["last"]),
        each.get("owner", ""),
        each.get("risk", ""),
        each.get("confidence", "address"),
    )


def _name(each: dict[str, Any]) -> str:
    """Who, and as whose word."""
    name, confidence = each["caller"], each.get("confidence", "address")
    where = each.get("node") or ", ".join(each.get("sources", ()))
    if confidence == "claimed":
        return f"claims {name}"
    if confidence == "process":
        return f"{_process(each)} at {where}" if where else _process(each)
    if confidence == "address":
        return f"unknown at {where or name}"
    return str(name)


def _process(each: dict[str, Any]) -> str:
    """A process in few words: who it likely is, else its program, what started that, unit and user."""
    if each.get("likely"):
        return f"likely {each['likely']}"
    parts = dict(part.split(":", 1) for part in str(each["caller"]).split(" ") if ":" in part)
    program = parts.get("program") or parts.get("exe", "").rpartition("/")[2] or "a process"
    if "from" in parts:
        program += f" from {parts['from']}"
    user = parts.get("user") or f"uid {parts.get('uid', '')}"
    return f"{program} ({', '.join(part for part in (parts.get('unit', ''), user) if part)})"


def _until(one: dict[str, Any]) -> str:
    if not one["until"]:
        return ""
    return f" until {one['until']}{' (EXPIRED)' if one['expired'] else ''}"


def _time(text: str) -> str:
    return f"{text[:19]}Z"
