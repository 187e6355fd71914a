"""A million stored decisions, no two with the same input, replayed on a candidate that changes every service.

The rows go through the real writer into segments; the real command is measured from its start to its report.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice, product
from pathlib import Path
from typing import Any

from bench.company import Company
from bench.measure import Result, calibration, spread
from bench.processes import TRUST_DOMAIN, scratch
from eastwest.clock import SystemClock
from eastwest.ledger.record import Decision
from eastwest.mesh.action import inbound_version
from eastwest.policy.enforcement import Inbound, OperationRules, Rule, Verdict
from eastwest.policy.load import load_estate
from eastwest.policy.operations import wire_form
from eastwest.policy.table import CompiledPolicy, compile_estate
from eastwest.server.config import LedgerSettings
from eastwest.server.journal import Journal
from eastwest.server.ledger.keeper import Ledger
from eastwest.testing.log import MemoryLog

NAMES = ("impact_1m_decisions_s", "impact_1m_peak_mb")
ROWS = 1_000_000
BATCH = 20_000
BEGIN = datetime(2026, 11, 22, tzinfo=UTC)
COMPANY = Company(domains=10, services=10, workloads=60)
TENANTS = (
    *("acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "wonka"),
    *("tyrell", "cyberdyne", "soylent", "oscorp"),
)
"""The last four nobody serves."""
CANDIDATE = """
@id("wonka-is-leaving")
@owner("group:platform")
@reason("their contract ends")
forbid (principal, action, resource) when { context has tenant && context.tenant == "wonka" };
"""


def run(*, quick: bool) -> list[Result]:
    """Write the rows once; ask three times."""
    count = ROWS // 10 if quick else ROWS
    rounds = 1 if quick else 3
    with scratch() as folder:
        before = COMPANY.files()
        after = before | {"policies/candidate.cedar": CANDIDATE.encode()}
        wonka = asyncio.run(_write(folder / "ledger", compile_estate(load_estate(before)), count))
        for name, files in (("before", before), ("after", after)):
            _save(folder / name, files)
        seconds, peaks = [], []
        for _ in range(rounds):
            took, peak, report = _ask(folder)
            assert report["calls"] == report["inputs"] == report["decided"] == count
            assert report["totals"]["newly_denied"] == wonka > 0
            assert report["totals"]["newly_allowed"] == report["totals"]["unsure"] == report["deviating"] == 0
            seconds.append(took)
            peaks.append(peak)
    note = f"{count} distinct inputs, {wonka} newly denied; {spread(seconds, 1)} s; {calibration()}"
    return [
        Result("impact_1m_decisions_s", round(min(seconds), 2), "s", count, note),
        Result("impact_1m_peak_mb", round(max(peaks), 1), "MB", rounds, "of the command's process, all included"),
    ]


def _ask(folder: Path) -> tuple[float, float, dict[str, Any]]:
    """Seconds, peak resident MB, and the report."""
    words = ["policy", "impact", "after", "--ledger", "ledger", "--against", "before", "--from", "2026-11-01", "--json"]
    begin = time.perf_counter()
    with (folder / "report.json").open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "eastwest.cli.main", *words], cwd=folder, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return took, usage.ru_maxrss * 1024 / 1e6, json.loads((folder / "report.json").read_bytes())


def _save(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)


async def _write(directory: Path, compiled: CompiledPolicy, count: int) -> int:
    """Store and seal ``count`` rows; gives how many of them are allowed calls about the tenant that leaves."""
    clock, log = SystemClock(), MemoryLog()
    settings = LedgerSettings()
    ledger = await Ledger.open(
        directory,
        trust_domain=TRUST_DOMAIN,
        settings=settings,
        max_rows=2 * ROWS,
        log=log,
        journal=Journal(log, clock),
        clock=clock,
    )
    leaving = 0
    try:
        made, sequence = islice(rows(compiled), count), 0
        while batch := list(islice(made, BATCH)):
            sequence += 1
            leaving += sum(1 for row in batch if row.tenant == "wonka" and row.verdict is Verdict.ALLOW)
            await ledger.add(f"agent-{sequence % 50}", "s", sequence, batch)
            if sequence % 5 == 0:
                await ledger.sealer.seal(settings.seal_rows)
        await ledger.sealer.seal(1_000_000)
    finally:
        await ledger.close()
    return leaving


def rows(compiled: CompiledPolicy) -> Iterator[Decision]:
    """What the compiled policy says to callers of a domain at its services, for each tenant: no input comes twice."""
    by_domain: dict[str, list[Inbound]] = {}
    for sidecar in compiled.sidecars.values():
        for inbound in sidecar.inbound:
            by_domain.setdefault(sidecar.spiffe_id.split("/")[4], []).append(inbound)
    number = 0
    # Neighbours in time differ in everything, as in real traffic.
    for index, kind, tenant in product(range(COMPANY.workloads), range(16), TENANTS):
        for domain, inbounds in sorted(by_domain.items()):
            caller = next(name for name in compiled.sidecars if name.endswith(f"/{domain}/workload-{index:03}"))
            for inbound in inbounds:
                operation = [each for each in inbound.operations if each.tenant is not None][kind]
                number += 1
                yield _row(compiled.version, inbound, operation, caller, tenant, number)


_versions: dict[str, str] = {}


def _row(version: str, inbound: Inbound, operation: OperationRules, caller: str, tenant: str, number: int) -> Decision:
    rule = _rule(operation, caller, tenant)
    if inbound.service not in _versions:
        _versions[inbound.service] = inbound_version(inbound)
    form = wire_form(operation.match)
    per_tenant = operation.tenant is not None
    return Decision(
        time=BEGIN + timedelta(seconds=number // 20),
        service=inbound.service,
        verdict=rule.verdict,
        code=rule.code,
        mode=inbound.mode,
        enforced=True,
        caller=caller,
        operation=operation.name,
        tenant=tenant if per_tenant else "",
        method=form[0] if form is not None else "",
        policy=rule.policy,
        policy_version=version,
        rules_version=_versions[inbound.service],
        node=f"node-{number % 50}",
        reference="" if rule.verdict is Verdict.ALLOW else f"{number:032x}",
    )


def _rule(operation: OperationRules, caller: str, tenant: str) -> Rule:
    cell = next((cell for cell in operation.cells if caller in cell.callers), None)
    if cell is None:
        return operation.otherwise
    if cell.tenants is None:
        assert cell.rule is not None
        return cell.rule
    return cell.tenants.by_tenant.get(tenant, cell.tenants.otherwise)
