"""One policy of a large estate changes: how long until the server has planned it anew, put it in force and told of it.

The admin API is called with all files, as ``eastwest apply`` does: checked, compiled, compared, stored, recorded, and
handed to the agents' streams.
"""

from __future__ import annotations

import asyncio
import time

from bench.company import Company
from bench.measure import Result, calibration, cpu_seconds, percentile, rss_mb, spread
from bench.processes import Server, scratch
from eastwest.cli.admin import AdminClient
from eastwest.policy.cells import Memory
from eastwest.policy.load import load_estate
from eastwest.policy.table import CompiledPolicy, compile_estate

NAMES = ("replan_one_policy_s", "replan_one_policy_cpu_s", "replan_first_s", "replan_rss_mb")


def run(*, quick: bool) -> list[Result]:
    """The first time, then changes of one policy."""
    company = Company(domains=2 if quick else 20)
    rounds = 3 if quick else 9
    changed = _changed(Company(domains=2))  # of whichever size: one domain has the policy
    with scratch() as folder, Server(folder / "data") as server:
        first, times, cpu = asyncio.run(_applied(server, company, rounds))
        size = rss_mb(server.pid)
    what = (
        f"{company.domains * company.services} services, {company.domains * company.workloads} workloads, "
        f"{company.operations} operations"
    )
    note = f"{what}; the rules of {changed} sidecars change; median of {rounds} ({spread(times, 2)}); {calibration()}"
    return [
        Result("replan_one_policy_s", round(percentile(times, 0.5), 2), "s", rounds, note),
        Result("replan_one_policy_cpu_s", round(percentile(cpu, 0.5), 2), "s", rounds, "of the server"),
        Result("replan_first_s", round(first, 1), "s", 1, f"{what}; nothing known from before"),
        Result("replan_rss_mb", round(size, 1), "MB", 1, "resident memory of the server after that"),
    ]


def _changed(company: Company) -> int:
    """How many sidecars enforce something else after the change."""
    memory = Memory()
    before, after = (_compiled(company, edition, memory) for edition in (0, 1))
    return sum(before.sidecars[name].version != sidecar.version for name, sidecar in after.sidecars.items())


def _compiled(company: Company, edition: int, memory: Memory) -> CompiledPolicy:
    return compile_estate(load_estate(company.files(edition=edition)), memory)


async def _applied(server: Server, company: Company, rounds: int) -> tuple[float, list[float], list[float]]:
    times, cpu = [], []
    async with AdminClient.connect(server.data) as admin:
        for number in range(rounds + 1):
            files = company.files(edition=number)
            before, begin = cpu_seconds(server.pid), time.perf_counter()
            await admin.apply_estate(files)
            times.append(time.perf_counter() - begin)
            cpu.append(cpu_seconds(server.pid) - before)
    return times[0], times[1:], cpu[1:]
