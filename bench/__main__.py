"""``python -m bench``: measure, print a table, write ``results.json``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.measure import Result, calibration

# In the order in which they run. A subject is run whole when one of its names is asked for.
SUBJECTS = (
    "issuance_core",
    "issuance",
    "log",
    "log_kills",
    "spire",
    "registration",
    "large",
    "storm",
    "tree",
    "tokens",
    "replan",
    "enforcement",
    "fanout",
    "equality",
    "rotation",
    "contain",
    "rollback",
    "drift",
    "who_breaks",
    "post_quantum",
    "ledger_cpu",
    "ledger",
    "impact",
    "demo",
)

TARGETS = {
    "drift_found_s_max": ("<=", 60.0),
    "impact_1m_decisions_s": ("<=", 60.0),
    "issuance_cpu_us_batch500": ("<=", 220.0),
    "issuance_cpu_us_single": ("<=", 1500.0),
    "issuance_cpu_us_concurrent32": ("<=", 800.0),
    "entries_100k_start_s": ("<=", 10.0),
    "entries_100k_rss_mb": ("<=", 1024.0),
    "registration_to_svid_100k_ms_p99": ("<=", 250.0),
    "storm_5000_s": ("<=", 20.0),
    "agent_500_workloads_rss_mb": ("<=", 150.0),
    "registration_to_svid_ms_p50": ("<=", 100.0),
    "registration_to_svid_ms_p99": ("<=", 100.0),
    "tree_1000_rps_ratio": (">=", 0.95),
    "tree_1000_cpu_ratio": ("<=", 1.15),
    "tree_shadow_log_rps_ratio": (">=", 0.85),
    "access_log_rps_ratio": (">=", 0.9),
    "policy_to_enforced_100_ms_p99": ("<=", 50.0),
    "token_repeated_rps_ratio": (">=", 0.85),
    "token_fresh_rps_ratio": (">=", 0.6),
    "contextual_vs_opa_cpu_ratio": ("<=", 1.0),
    "contextual_vs_opa_rps_ratio": (">=", 1.0),
    "stepup_added_ms_p50": ("<=", 5.0),
    "ledger_cpu_us_per_call": ("<=", 12.0),
    "replan_one_policy_s": ("<=", 2.0),
    "ads_1000_fanout_s": ("<=", 1.0),
    "contain_200_points_ms_p99": ("<=", 1000.0),
    "contain_neighbour_lost_calls": ("<=", 0.0),
    "log_append_per_s": (">=", 10_000.0),
    "log_verify_1m_s": ("<=", 30.0),
    "log_issue_cpu_ratio": ("<=", 1.15),
    "log_issue_p99_ratio": ("<=", 1.15),
    "log_proof_10m_ms_p99": ("<=", 10.0),
    "log_search_10m_ms_p99": ("<=", 100.0),
    "kill_loop_runs": (">=", 300.0),
    "kill_loop_losses": ("<=", 0.0),
    "root_rotation_failed_handshakes": ("<=", 0.0),
    "bad_rule_rollback_s": ("<=", 10.0),
    "bad_rule_calls_denied_elsewhere": ("<=", 0.0),
    "who_breaks_precision": (">=", 1.0),
    "who_breaks_recall": (">=", 1.0),
    "ledger_groupby_1m_s": ("<=", 1.0),
    "demo_warm_s": ("<=", 60.0),
}


def main() -> int:
    options = _options()
    subjects = {name: importlib.import_module(f"bench.{name}") for name in SUBJECTS}
    known = {name for subject in subjects.values() for name in subject.NAMES} | set(SUBJECTS)
    wanted = {name for name in options.only.split(",") if name}
    if unknown := wanted - known:
        print(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}", file=sys.stderr)
        return 2
    _hurry()
    results: list[Result] = []
    failed = False
    for name, subject in subjects.items():
        if wanted and not wanted & {name, *subject.NAMES}:
            continue
        begin = time.monotonic()
        try:
            found = subject.run(quick=options.quick)
        except Exception:  # noqa: BLE001 - one subject that fails does not take the others' numbers away
            traceback.print_exc()
            failed = True
            continue
        results += [result for result in found if not wanted or name in wanted or result.name in wanted]
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    _print(results)
    options.out.write_text(json.dumps([result.as_dict() for result in results], indent=2) + "\n")
    return int(failed)


def _hurry() -> None:
    """Take precedence over neighbours, where we may: they cost more precision than anything else."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME,NAME", help="names of results or subjects")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under a minute: a smoke test, not a result")
    return parser.parse_args()


def _print(results: list[Result]) -> None:
    table = Table(title=calibration(), title_justify="left")
    for heading, side in (("name", "left"), ("value", "right"), ("unit", "left"), ("n", "right"), ("target", "right")):
        table.add_column(heading, justify=side, no_wrap=True)
    table.add_column("note", overflow="fold")
    for result in results:
        table.add_row(result.name, f"{result.value:g}", result.unit, str(result.n), _target(result), result.note)
    console = Console()
    # Into a pipe or a file, a table as wide as its words is easier to read than a folded one.
    console.width = max(console.width, 160)
    console.print(table)


def _target(result: Result) -> str:
    if result.name not in TARGETS:
        return ""
    sign, bound = TARGETS[result.name]
    met = result.value <= bound if sign == "<=" else result.value >= bound
    return f"{sign} {bound:g} {'met' if met else 'MISSED'}"


if __name__ == "__main__":
    sys.exit(main())
