"""Stored rows as metrics, and which rows of callers' sidecars are believed."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from eastwest.cli.estate import read_directory
from eastwest.ledger.record import Decision
from eastwest.pki.rotation.state import Kind as AuthorityKind
from eastwest.pki.rotation.state import Revoked, Root, Source, Stage, State
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.policy.load import load_estate
from eastwest.server.agents import _by_a_caller
from eastwest.server.failures import FailureMeter
from eastwest.server.measuring import Authorities
from eastwest.server.telemetry import ExpiryMetrics, Metrics

EXAMPLE = Path(__file__).parents[3] / "examples" / "two-services" / "estate"
SLOS = b"""
slos:
  - {name: stock, service: stock, objective: 99.5}
  - {name: shop, domain: shop, classes: [expired]}
  - {name: edge, edge: {caller: "spiffe://shop.example/dev/shop/orders", service: stock}}
"""
ORDERS = "spiffe://shop.example/dev/shop/orders"


def row(code: DecisionCode = DecisionCode.ALLOWED, **more) -> Decision:
    verdict = Verdict.ALLOW if code is DecisionCode.ALLOWED else Verdict.DENY
    given = {"service": "stock", "caller": ORDERS, "enforced": True, **more}
    return Decision(time=datetime(2026, 11, 22, tzinfo=UTC), verdict=verdict, code=code, mode=MtlsMode.STRICT, **given)


@pytest.fixture
def estate():
    files = read_directory(EXAMPLE)
    return load_estate({**files, "estate.yaml": files["estate.yaml"] + SLOS})


@pytest.fixture
def value():
    metrics = Metrics()

    def read(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    read.metrics = metrics
    return read


def test_rows_become_calls_failures_and_objectives(estate, value):
    meter = FailureMeter(value.metrics, lambda: estate, lambda: {"aa"})
    meter.follow()
    assert value("eastwest_slo_failures_total", slo="stock") == 0, "a series that begins at 1 is no increase"
    assert value("eastwest_slo_objective_ratio", slo="stock") == 0.995
    refused = DecisionCode.CERTIFICATE_REFUSED
    meter.took(
        [
            row(count=90),
            row(refused, cause="expired", claimed=True, count=2),
            row(refused, cause="unknown_authority:aa", claimed=True),
            row(refused, cause="unknown_authority:bb", claimed=True),
            row(DecisionCode.MTLS_REQUIRED, caller="", enforced=False, count=5),
            row(DecisionCode.OPERATION_NOT_PERMITTED),
        ]
    )
    assert value("eastwest_calls_total", service="stock", verdict="allow") == 90
    assert value("eastwest_calls_total", service="stock", verdict="deny") == 10
    for kind, enforced, count in (
        ("expired", "true", 2),
        ("stale_bundle", "true", 1),
        ("unknown_authority", "true", 1),
        ("no_certificate", "false", 5),
        ("policy", "true", 1),
    ):
        labels = {"service": "stock", "class": kind, "enforced": enforced}
        assert value("eastwest_failures_total", **labels) == count, kind
    found = {
        name: (value("eastwest_slo_calls_total", slo=name), value("eastwest_slo_failures_total", slo=name))
        for name in ("stock", "shop", "edge")
    }
    # Of the edge: 90 allowed, one denied by policy, and the three whose name an authority has signed.
    assert found == {"stock": (100, 4), "shop": (100, 2), "edge": (94, 3)}


def test_an_objective_that_is_gone_is_told_no_more(estate, value):
    now = [estate]
    meter = FailureMeter(value.metrics, lambda: now[0], frozenset)
    meter.follow()
    now[0] = msgspec.structs.replace(estate, settings=msgspec.structs.replace(estate.settings, slos=()))
    meter.took([row()])
    assert value("eastwest_slo_objective_ratio", slo="stock") is None
    assert value("eastwest_slo_calls_total", slo="stock") == 0


def test_without_an_estate_calls_are_counted(value):
    FailureMeter(value.metrics, lambda: None, frozenset).took([row()])
    assert value("eastwest_calls_total", service="stock", verdict="allow") == 1


def test_only_a_refusal_of_the_service_is_a_callers_word():
    assert _by_a_caller(row(DecisionCode.SERVER_REFUSED))
    assert not _by_a_caller(row(DecisionCode.SERVER_REFUSED, claimed=True))
    assert not _by_a_caller(row(DecisionCode.CERTIFICATE_REFUSED))
    assert not _by_a_caller(row())


def root(name: str) -> Root:
    return Root(id=name, source=Source.EXTERNAL, certificate=b"", not_before=0, not_after=9, stage=Stage.ACTIVE)


def test_authorities_that_ended_are_remembered():
    states = [State(roots=(root("aa"), root("bb")))]
    known = Authorities(lambda: states[-1])
    assert known() == {"aa", "bb"}
    states.append(State(roots=(root("cc"),), revoked=(Revoked(kind=AuthorityKind.X509, id="dd", not_after=9),)))
    assert known() == {"aa", "bb", "cc", "dd"}


def test_the_first_end_of_each_kind_is_told():
    collector = ExpiryMetrics(lambda: [("issuing", 20.0), ("issuing", 10.0), ("root", 30.0)])
    [family] = collector.collect()
    assert {s.labels["certificate"]: s.value for s in family.samples} == {"issuing": 10.0, "root": 30.0}
