"""Prometheus rules: burn-rate alerts for objectives, and alerts for what will break identity if nobody looks.

The burn-rate alerts are those of Google's Site Reliability Workbook, chapter 5, method 6 (several windows and burn
rates): each fires while a long and a short window burn too fast, so that it comes early and ends soon.
Texts are written as JSON has them, which is YAML 1.2 too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from eastwest.ledger.slo import ALERTS, Alert, promql
from eastwest.metrics import BY_NAME
from eastwest.policy.estate import Slo
from eastwest.policy.forms import duration

CALLS, FAILED, OBJECTIVE = "eastwest_slo_calls_total", "eastwest_slo_failures_total", "eastwest_slo_objective_ratio"
_WINDOWS = sorted({window for alert in ALERTS for window in (alert.long, alert.short)})
_STALE_DAY, _RENEW = 86400, 14 * 86400


def rule_file(slos: Sequence[Slo]) -> str:
    """A file of Prometheus rules for these objectives and for a trust domain's server and agents."""
    groups = [*([_recorded()] if slos else []), *map(_burning, slos), _standing()]
    return "groups:\n" + "".join(_group(group) for group in groups)


def metrics_of(slos: Sequence[Slo]) -> frozenset[str]:
    """Metrics that the rules refer to, all of the catalogue."""
    return frozenset(name for name in BY_NAME if name in rule_file(slos))


def recorded(window: timedelta) -> str:
    """The name of the recorded failure ratio over a window."""
    return f"slo:eastwest_failures:ratio_rate{promql(window)}"


def _recorded() -> dict[str, Any]:
    def ratio(window: timedelta) -> str:
        of = promql(window)
        failed, calls = f"sum by (slo) (rate({FAILED}[{of}]))", f"sum by (slo) (rate({CALLS}[{of}]))"
        return f"{failed} / ({calls} > 0)"

    rules = [{"record": recorded(window), "expr": ratio(window)} for window in _WINDOWS]
    return {"name": "eastwest-slo-ratios", "rules": rules}


def _burning(slo: Slo) -> dict[str, Any]:
    return {"name": f"eastwest-slo-{slo.name}", "rules": [_alert(slo, alert) for alert in ALERTS]}


def _alert(slo: Slo, alert: Alert) -> dict[str, Any]:
    burn = round(alert.burn(duration(slo.window)), 3)
    allowed = f"({burn:g} * (1 - {slo.objective / 100:.6g}))"

    def over(window: timedelta) -> str:
        return f'{recorded(window)}{{slo="{slo.name}"}} > {allowed}'

    long, short = promql(alert.long), promql(alert.short)
    return {
        "alert": "EastwestBudgetBurns",
        "expr": f"{over(alert.long)} and {over(alert.short)}",
        "labels": {"severity": alert.severity, "slo": slo.name, "long": long, "short": short},
        "annotations": {
            "summary": f"identity fails: {alert.share:.0%} of the {slo.window} budget of {slo.name} goes within {long}",
            "description": f"objective {slo.objective:g} %; see: eastwest failures --from {long} --data DIR",
        },
    }


def _standing() -> dict[str, Any]:
    def rule(name: str, expr: str, wait: str, severity: str, summary: str) -> dict[str, Any]:
        labels, annotations = {"severity": severity}, {"summary": summary}
        return {"alert": name, "expr": expr, "for": wait, "labels": labels, "annotations": annotations}

    expiry = "eastwest_certificate_expiry_timestamp_seconds"
    return {
        "name": "eastwest",
        "rules": [
            rule(
                "EastwestCertificateEndsSoon",
                f'({expiry}{{certificate=~"issuing|root"}} - time()) < {_RENEW} '
                f'or ({expiry}{{certificate="server"}} - time()) < 900',
                "5m",
                "page",
                "the {{ $labels.certificate }} certificate of the authority ends soon and nothing has replaced it",
            ),
            rule(
                "EastwestWorkloadCertificateEndsSoon",
                "eastwest_agent_x509_svid_seconds < 300",
                "1m",
                "page",
                "an agent holds a certificate that ends within five minutes: it does not renew",
            ),
            rule(
                "EastwestAgentDisconnected",
                "eastwest_agent_connected == 0",
                "10m",
                "ticket",
                "an agent has had no subscription for ten minutes: its bundle and policy may be old",
            ),
            rule(
                "EastwestPushStuck",
                "eastwest_control_acks_outstanding > 0",
                "10m",
                "ticket",
                "agents that are connected have not applied the newest update",
            ),
            rule(
                "EastwestDecisionsLost",
                "increase(eastwest_decisions_lost_total[15m]) > 0",
                "0m",
                "ticket",
                "decisions were made of which no record exists; see: eastwest decisions search",
            ),
            rule(
                "EastwestSpoolFills",
                "eastwest_agent_spool_bytes / eastwest_agent_spool_limit_bytes > 0.8",
                "5m",
                "page",
                "an agent cannot hand its decisions over and will soon drop the oldest",
            ),
            rule(
                "EastwestFederatedBundleOld",
                f"eastwest_federated_bundle_age_seconds > {_STALE_DAY}",
                "15m",
                "ticket",
                "the bundle of {{ $labels.trust_domain }} is a day old: calls will fail once it rotates",
            ),
        ],
    }


def _group(group: dict[str, Any]) -> str:
    lines = [f"  - name: {_text(group['name'])}\n    rules:\n"]
    lines += (line for rule in group["rules"] for line in _rule(rule))
    return "".join(lines)


def _rule(rule: dict[str, Any]) -> Iterator[str]:
    lead = "      - "
    for key, value in rule.items():
        if isinstance(value, dict):
            yield f"{lead}{key}:\n" + "".join(_fields(value.items()))
        else:
            yield f"{lead}{key}: {_text(value)}\n"
        lead = "        "


def _fields(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    return (f"          {key}: {_text(value)}\n" for key, value in items)


def _text(value: str) -> str:
    return msgspec.json.encode(value).decode()
