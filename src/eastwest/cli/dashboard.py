"""A Grafana dashboard of the metrics, as its JSON model (schemaVersion 39: Grafana 10 and later).

Whoever imports it chooses the Prometheus data source; panels name metrics of ``eastwest.metrics`` only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

WIDTH = 24
HEIGHT = 8
_SOURCE = {"type": "prometheus", "uid": "${source}"}


_IDENTITY = 'sum by (service) (rate(eastwest_failures_total{enforced="true",class!="policy"}[5m]))'
_BURN = (
    "(sum by (slo) (rate(eastwest_slo_failures_total[1h])) / sum by (slo) (rate(eastwest_slo_calls_total[1h])))"
    " / on (slo) (1 - eastwest_slo_objective_ratio)"
)
_LEFT = (
    "1 - (sum by (slo) (increase(eastwest_slo_failures_total[30d]))"
    " / sum by (slo) (increase(eastwest_slo_calls_total[30d]))) / on (slo) (1 - eastwest_slo_objective_ratio)"
)


class Panel(NamedTuple):
    """One graph: expressions with their legends. ``unit`` is Grafana's name of it."""

    title: str
    what: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Failures of identity",
        (
            Panel(
                "Failures by class",
                "Calls that failed, a second. Classes: docs/reference/codes.md",
                (('sum by (class) (rate(eastwest_failures_total{enforced="true"}[5m]))', "{{class}}"),),
                "reqps",
            ),
            Panel(
                "Failures by service, without policy",
                "What is wrong with certificates, clocks and bundles.",
                ((_IDENTITY, "{{service}}"),),
                "reqps",
            ),
            Panel(
                "Only reported",
                "What would fail if permissive services were strict.",
                (
                    (
                        'sum by (service, class) (rate(eastwest_failures_total{enforced="false"}[5m]))',
                        "{{service}} {{class}}",
                    ),
                ),
                "reqps",
            ),
            Panel(
                "Calls",
                "All decisions, a second.",
                (("sum by (verdict) (rate(eastwest_calls_total[5m]))", "{{verdict}}"),),
                "reqps",
            ),
        ),
    ),
    (
        "Error budgets",
        (
            Panel(
                "Burn rate over 1 h",
                "1 spends the budget exactly by the end of its window; 14.4 is a page (30 days).",
                ((_BURN, "{{slo}}"),),
            ),
            Panel(
                "Budget left over 30 days",
                "Of objectives whose window is 30 days.",
                ((_LEFT, "{{slo}}"),),
                "percentunit",
            ),
        ),
    ),
    (
        "Issuance",
        (
            Panel(
                "SVIDs by door and outcome",
                "Requests, a second.",
                (("sum by (door, outcome) (rate(eastwest_issuances_total[5m]))", "{{door}} {{outcome}}"),),
                "reqps",
            ),
            Panel(
                "Time of an issuance call",
                "",
                (
                    (
                        "histogram_quantile(0.99, sum by (le, door) (rate(eastwest_issuance_seconds_bucket[5m])))",
                        "99 % {{door}}",
                    ),
                    ("histogram_quantile(0.5, sum by (le) (rate(eastwest_issuance_seconds_bucket[5m])))", "median"),
                ),
                "s",
            ),
            Panel(
                "Transaction tokens",
                "",
                (("sum by (outcome) (rate(eastwest_token_requests_total[5m]))", "{{outcome}}"),),
                "reqps",
            ),
            Panel(
                "Time until certificates end",
                "Of the authority, and of what agents hold.",
                (
                    ("eastwest_certificate_expiry_timestamp_seconds - time()", "{{certificate}}"),
                    ("min(eastwest_agent_x509_svid_seconds)", "workloads (first)"),
                    ("min(eastwest_agent_own_svid_seconds)", "agents (first)"),
                ),
                "s",
            ),
        ),
    ),
    (
        "Rollout",
        (
            Panel(
                "Agents",
                "",
                (
                    ("eastwest_agents_connected", "connected"),
                    ("eastwest_control_acks_outstanding", "behind"),
                ),
            ),
            Panel(
                "Time from push to applied",
                "",
                (("histogram_quantile(0.99, sum by (le) (rate(eastwest_control_ack_seconds_bucket[5m])))", "99 %"),),
                "s",
            ),
        ),
    ),
    (
        "Record",
        (
            Panel(
                "Log",
                "Entries a second, and how old the last checkpoint is.",
                (
                    ("deriv(eastwest_log_size[5m])", "entries"),
                    ("eastwest_log_checkpoint_age_seconds", "checkpoint age (s)"),
                    ("eastwest_log_witness_age_seconds", "witness age (s)"),
                ),
            ),
            Panel(
                "Decisions",
                "Rows a second, rows that wait to be sealed, and what was lost.",
                (
                    ("rate(eastwest_decisions_stored_total[5m])", "stored"),
                    ("eastwest_ledger_unsealed_rows", "unsealed"),
                    ("increase(eastwest_decisions_lost_total[1h])", "lost in 1 h"),
                ),
            ),
            Panel(
                "Agents' spools",
                "",
                (("max(eastwest_agent_spool_bytes / eastwest_agent_spool_limit_bytes)", "fullest"),),
                "percentunit",
            ),
            Panel(
                "Exports",
                "",
                (
                    ("sum by (sink) (rate(eastwest_export_rows_total[5m]))", "{{sink}}"),
                    ("eastwest_export_failing", "{{sink}} failing"),
                ),
            ),
        ),
    ),
    (
        "Containment",
        (
            Panel(
                "Identities that are cut off",
                "And enforcement points that do not refuse them all yet, or are away.",
                (
                    ("eastwest_contained_identities", "cut off"),
                    ("eastwest_containment_points_behind", "points behind"),
                    ("eastwest_containment_connections_closed", "connections closed"),
                ),
            ),
        ),
    ),
    (
        "Federation",
        (
            Panel(
                "Age of foreign bundles",
                "",
                (("eastwest_federated_bundle_age_seconds", "{{trust_domain}}"),),
                "s",
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard, to be imported or provisioned."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        panels.append(_row(title, len(panels) + 1, top))
        top += 1
        for index, panel in enumerate(row):
            width = WIDTH // 2
            place = {"h": HEIGHT, "w": width, "x": index % 2 * width, "y": top + index // 2 * HEIGHT}
            panels.append(_panel(panel, len(panels) + 1, place))
        top += (len(row) + 1) // 2 * HEIGHT
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}
    return {
        "uid": "eastwest",
        "title": "Eastwest: identity, failures, record",
        "tags": ["eastwest"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "templating": {"list": [source]},
        "annotations": {"list": []},
        "panels": panels,
    }


def _row(title: str, number: int, top: int) -> dict[str, Any]:
    place = {"h": 1, "w": WIDTH, "x": 0, "y": top}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
        for index, (expression, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.what,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}},
        "targets": targets,
    }
