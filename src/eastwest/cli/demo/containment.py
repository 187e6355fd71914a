"""The bad day: the compromised service is cut off everywhere, its neighbours go on, and it is let in again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from eastwest.cli.demo.calls import Call, Load, Made
from eastwest.errors import Internal

CODE = "CALLER_CONTAINED"
RECORDED = ("containment.started", "containment.ended")
COMMAND_SECONDS = 30.0
REASON = "it attacked the rest of the company"
_OWN_WORK = Call(
    name="contained-own-work",
    story="contained: not even its own work, though its sidecar had a way there",
    caller="notification",
    service="billing",
    path="/api/v2/tenants/acme/invoices",
    tenant="acme",
    status=403,
    code=CODE,
    ledger="-",  # its own sidecar says no already, and tells nobody
)
_OPEN = Call(
    name="contained-open-operation",
    story="contained: nor what anyone identified may read",
    caller="notification",
    service="storefront",
    path="/catalog",
    status=403,
    code=CODE,
    ledger="-",  # its own sidecar says no already, and tells nobody
)
_RELEASED = replace(
    _OWN_WORK, name="released-own-work", story="released: its own work again", status=200, code="", ledger=""
)


@dataclass(slots=True, kw_only=True)
class Contained:
    """``denied_ms``: from the command's start until every enforcement point had acknowledged the refusal.

    ``load``: what neighbours called meanwhile. ``report`` and ``released`` are what the commands said (JSON),
    ``recorded`` how many entries of the log tell of it, by kind.
    """

    principal: str
    denied_ms: float
    report: dict[str, Any]
    released: dict[str, Any]
    calls: list[Made]
    load: Load
    recorded: dict[str, int] = field(default_factory=dict)


async def run(
    command: Sequence[str],
    data: Path,
    principal: str,
    make: Callable[[Call], Awaitable[Made]],
    start: Callable[[], asyncio.Task[dict[str, Any]]],
    end: Callable[[asyncio.Task[dict[str, Any]]], Awaitable[Load]],
) -> Contained:
    """Contain ``principal``, see who is refused, release it. ``command`` is ``eastwest``.

    ``start`` and ``end`` are of the neighbours' load, which runs all the while.
    """
    load = start()
    began = time.monotonic()
    report = await _command(command, "contain", principal, REASON, data)
    denied_ms = (time.monotonic() - began) * 1000
    calls = [await make(_OWN_WORK), await make(_OPEN)]
    released = await _command(command, "release", report["id"], "the demo goes on", data)
    calls.append(await make(_RELEASED))
    return Contained(
        principal=principal,
        denied_ms=round(denied_ms, 1),
        report=report,
        released=released,
        calls=calls,
        load=await end(load),
    )


async def _command(command: Sequence[str], verb: str, subject: str, reason: str, data: Path) -> dict[str, Any]:
    """What a command says with ``--json``; raises ``Internal`` where it fails."""
    words = [*command, verb, subject, "--data", str(data), "--reason", reason, "--yes", "--json"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    output, complaint = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
    if process.returncode != 0:
        raise Internal(f"eastwest {verb} ended with status {process.returncode}: {complaint.decode()[-500:]}")
    told: dict[str, Any] = msgspec.json.decode(output)
    return told
