"""The rules are read by a PromQL parser, name only metrics of the catalogue, and fire when they should."""

import re
from datetime import timedelta

import promql_parser
import pytest
import yaml

from eastwest.cli.dashboard import ROWS, dashboard
from eastwest.ledger.alerts import recorded, rule_file
from eastwest.ledger.slo import ALERTS
from eastwest.metrics import BY_NAME
from eastwest.policy.estate import Slo, SloEdge

SLOS = (
    Slo(name="billing", service="billing"),
    Slo(name="week", domain="commerce", objective=99.5, window="7d"),
    Slo(name="edge", edge=SloEdge(caller="spiffe://td.test/a", service="billing"), objective=99.95),
)
PAGE = ALERTS[0]


def rules(slos=SLOS):
    return yaml.safe_load(rule_file(slos))["groups"]


def selectors(node) -> set[str]:
    """Names of all series that an expression reads."""
    found = set()
    if isinstance(node, promql_parser.VectorSelector):
        found.add(node.name)
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        child = getattr(node, name, None)
        if isinstance(child, promql_parser.Expr):
            found |= selectors(child)
    for child in getattr(node, "args", None) or ():
        found |= selectors(child)
    if isinstance(node, promql_parser.MatrixSelector):
        found.add(node.vector_selector.name)
    return found


def known(name: str, records: set[str]) -> bool:
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return name in records or name in BY_NAME or (base in BY_NAME and BY_NAME[base].kind == "histogram")


def expressions():
    for group in rules():
        for rule in group["rules"]:
            yield rule["expr"]
    for _, panels in ROWS:
        for panel in panels:
            for expression, _ in panel.queries:
                yield expression


@pytest.mark.parametrize("expression", list(expressions()))
def test_every_expression_parses_and_reads_series_that_exist(expression):
    records = {recorded(window) for alert in ALERTS for window in (alert.long, alert.short)}
    found = selectors(promql_parser.parse(expression))
    assert found
    assert all(known(name, records) for name in found), found


def test_every_label_that_an_expression_uses_is_one_of_its_metric():
    uses = re.compile(r"(eastwest_\w+?)(?:_bucket)?\{([^}]*)\}")
    for expression in expressions():
        for name, matchers in uses.findall(expression):
            for label in re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers):
                assert label in BY_NAME[name].labels, expression


def test_the_file_has_the_form_that_prometheus_reads():
    groups = rules()
    assert len({group["name"] for group in groups}) == len(groups)
    for group in groups:
        assert group.keys() == {"name", "rules"}
        for rule in group["rules"]:
            kind = {"record", "expr"} if "record" in rule else {"alert", "expr", "labels", "annotations"}
            assert kind <= rule.keys() <= kind | {"for"}
            assert all(isinstance(value, str) for value in rule.get("labels", {}).values())
            assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", rule.get("record", rule.get("alert")))
            assert re.fullmatch(r"[0-9]+[smhd]", rule.get("for", "0s"))
    assert "eastwest-slo-ratios" not in {group["name"] for group in rules(())}, (
        "without an objective no ratio is needed"
    )


@pytest.mark.parametrize(
    ("slo", "burns"),
    [(SLOS[0], [14.4, 6, 1]), (SLOS[1], [3.36, 1.4, 0.233])],
)
def test_thresholds(slo, burns):
    group = next(group for group in rules() if group["name"] == f"eastwest-slo-{slo.name}")
    objective = f"{slo.objective / 100:.6g}"
    for rule, alert, burn in zip(group["rules"], ALERTS, burns, strict=True):
        allowed = f"({burn:g} * (1 - {objective}))"
        long, short = recorded(alert.long), recorded(alert.short)
        mine = f'{{slo="{slo.name}"}}'
        assert rule["expr"] == f"{long}{mine} > {allowed} and {short}{mine} > {allowed}"
        assert rule["labels"]["severity"] == alert.severity


def fires(slo: Slo, failed_per_minute, minutes: int = 240) -> list[int]:
    """Minutes in which the page alert fires, of 1000 calls a minute: a small evaluation over recorded series."""
    failed = [failed_per_minute(minute) for minute in range(minutes)]

    def ratio(window: timedelta, now: int) -> float:
        size = int(window.total_seconds() // 60)
        return sum(failed[max(0, now - size + 1) : now + 1]) / (1000 * min(size, now + 1))

    limit = PAGE.burn(timedelta(days=30)) * (1 - slo.objective / 100)
    return [now for now in range(60, minutes) if min(ratio(PAGE.long, now), ratio(PAGE.short, now)) > limit]


def test_the_page_comes_within_minutes_and_ends_when_the_failures_end():
    slo = SLOS[0]
    assert not fires(slo, lambda _: 1), "the budget's own pace"
    outage = fires(slo, lambda minute: 1000 if 100 <= minute < 110 else 0)
    assert outage[0] == 100  # 1000 of 60 000 calls of an hour
    assert 110 <= outage[-1] < 115, "the short window ends it"
    slow = fires(slo, lambda minute: 20 if minute >= 100 else 0)
    assert 100 + 40 < slow[0] < 100 + 50  # 20 of 1000 is a burn rate of 20: 14.4 of it after 43 minutes


def test_the_dashboard_is_one_to_grafana():
    from grafana_foundation_sdk.models.dashboard import Dashboard, Panel, RowPanel

    made = dashboard()
    read = Dashboard.from_json(made)
    assert (read.uid, read.title) == (made["uid"], made["title"])
    panels = [panel for panel in read.panels if isinstance(panel, Panel)]
    assert len(panels) == sum(len(row) for _, row in ROWS)
    assert len([panel for panel in read.panels if isinstance(panel, RowPanel)]) == len(ROWS)
    assert all(panel.targets for panel in panels)
    assert [variable.name for variable in read.templating.list_val] == ["source"]


def test_panels_have_places_of_their_own():
    made = dashboard()["panels"]
    assert len({panel["id"] for panel in made}) == len(made)
    taken = set()
    for panel in made:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_dashboard_shows_most_of_the_servers_metrics():
    shown = {name for expression in expressions() for name in re.findall(r"eastwest_\w+", expression)}
    shown = {re.sub(r"_bucket$", "", name) for name in shown}
    hidden = {name for name in BY_NAME if name not in shown}
    assert len(hidden) <= len(BY_NAME) // 2, sorted(hidden)
