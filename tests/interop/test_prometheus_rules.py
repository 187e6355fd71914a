"""Prometheus' own parsers read the alert rules and every expression of the dashboard."""

import subprocess
from pathlib import Path

from interop_harness import EASTWEST, Peers

from eastwest.cli.dashboard import ROWS
from eastwest.ledger.alerts import rule_file
from eastwest.ledger.slo import ALERTS
from eastwest.policy.estate import Slo, SloEdge

SLOS = (
    Slo(name="billing", service="billing"),
    Slo(name="week", domain="commerce", objective=99.5, window="7d"),
    Slo(name="edge", edge=SloEdge(caller="spiffe://td.test/a", service="billing"), objective=99.95),
)


def check(peers: Peers, file: Path, expressions: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [peers.rules_check, file], input=expressions, capture_output=True, text=True, timeout=60, check=False
    )


def test_prometheus_reads_the_rules_and_the_dashboards_expressions(peers: Peers, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    expressions = [expression for _, row in ROWS for panel in row for expression, _ in panel.queries]
    for slos in (SLOS, ()):
        file.write_text(rule_file(slos))
        done = check(peers, file, "\n".join(expressions))
        assert done.returncode == 0, done.stderr
        ratios = len({window for alert in ALERTS for window in (alert.long, alert.short)}) if slos else 0
        standing = 7
        assert done.stdout == f"{ratios + len(ALERTS) * len(slos) + standing} rules, {len(expressions)} expressions\n"


def test_what_is_wrong_is_found(peers: Peers, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(rule_file(SLOS).replace("expr:", "expression:", 1))
    assert "expression" in check(peers, file, "").stderr
    file.write_text(rule_file(SLOS))
    assert "sum(" in check(peers, file, "sum(").stderr


def test_the_command_writes_such_a_file(peers: Peers, tmp_path: Path) -> None:
    estate = Path(__file__).parents[2] / "examples" / "estate"
    made = subprocess.run(
        [EASTWEST, "failures", "rules", estate], capture_output=True, text=True, timeout=60, check=True
    )
    file = tmp_path / "rules.yaml"
    file.write_text(made.stdout)
    assert check(peers, file, "").returncode == 0
