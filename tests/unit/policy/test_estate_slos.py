"""SLO objects of an estate: read, checked with their places, and no part of what is enforced."""

import hashlib
from pathlib import Path

import pytest

from eastwest.cli.estate import read_directory
from eastwest.policy.estate import content
from eastwest.policy.failures import IDENTITY_CLASSES, FailureClass
from eastwest.policy.load import load_estate
from eastwest.policy.problems import EstateInvalid
from eastwest.policy.table import compile_estate

EXAMPLE = Path(__file__).parents[3] / "examples" / "two-services" / "estate"


@pytest.fixture
def files():
    made = read_directory(EXAMPLE)
    estate = load_estate(made)
    service, workload = estate.services[0], estate.workloads[0]
    return made, service.service, service.domain, workload.spiffe_id


def with_slos(files, *lines: str) -> dict[str, bytes]:
    return {**files, "estate.yaml": files["estate.yaml"] + ("\nslos:\n" + "\n".join(lines) + "\n").encode()}


def problems(files, *lines: str) -> list[str]:
    with pytest.raises(EstateInvalid) as refused:
        load_estate(with_slos(files, *lines))
    return [str(problem) for problem in refused.value.problems]


def test_objectives_are_read(files):
    made, service, domain, workload = files
    estate = load_estate(
        with_slos(
            made,
            f"  - {{name: one, service: {service}}}",
            f"  - {{name: two, domain: {domain}, classes: [expired, stale_bundle], objective: 99.95, window: 7d}}",
            f"  - name: three\n    edge: {{caller: '{workload}', service: {service}}}\n    objective: 99",
        )
    )
    one, two, three = estate.settings.slos
    assert (one.service, one.classes, one.objective, one.window) == (service, IDENTITY_CLASSES, 99.9, "30d")
    assert (two.domain, two.classes) == (domain, (FailureClass.EXPIRED, FailureClass.STALE_BUNDLE))
    assert (two.objective, two.window) == (99.95, "7d")
    assert (three.edge.caller, three.edge.service, three.objective) == (workload, service, 99.0)


def test_mistakes_are_told_with_their_places(files):
    made, service, _, workload = files
    line = made["estate.yaml"].count(b"\n") + 3
    found = problems(
        made,
        f"  - {{name: one, service: {service}x}}",
        f"  - {{name: one, service: {service}, domain: nowhere}}",
        "  - {name: two, domain: nowhere}",
        f"  - {{name: three, service: {service}, objective: 100}}",
        f"  - {{name: four, service: {service}, classes: [expird]}}",
        f"  - {{name: five, service: {service}, window: a week}}",
    )
    assert any(f"estate.yaml:{line + 3}" in one and "outside 50 to 99.999" in one for one in found), found
    assert any(f"estate.yaml:{line + 4}" in one and "did you mean" in one and "expired" in one for one in found), found
    assert any("is not a duration" in one for one in found)
    found = problems(
        made,
        f"  - {{name: one, service: {service}x}}",
        f"  - {{name: one, service: {service}, domain: nowhere}}",
        "  - {name: two, domain: nowhere}",
        f"  - {{name: three, edge: {{caller: '{workload}x', service: {service}}}, window: 1h}}",
        f"  - {{name: four, service: {service}, classes: [expired, expired]}}",
    )
    expected = [
        (0, f"unknown service '{service}x'"),
        (1, "'one' is declared twice"),
        (1, "needs exactly one of domain, service and edge"),
        (2, "unknown domain 'nowhere'"),
        (3, f"unknown caller '{workload}x'"),
        (3, "a window of 1h is not between 1d and 90d"),
        (4, "class 'expired' is listed twice"),
    ]
    for row, words in expected:
        assert any(f"estate.yaml:{line + row}:" in one and words in one for one in found), (row, words, found)


def test_objectives_change_the_version_and_nothing_that_is_enforced(files):
    made, service, _, _ = files
    before, after = load_estate(made), load_estate(with_slos(made, f"  - {{name: one, service: {service}}}"))
    assert content(before) != content(after)
    assert compile_estate(before).sidecars == compile_estate(after).sidecars


def test_an_estate_without_objectives_is_the_version_that_it_was_before_there_were_any():
    files = {
        "estate.yaml": b"trust_domain: td.test\nenvironments: [{name: dev, kind: vm}]\n"
        b"domains: [{name: d, owners: ['group:d']}]\n"
    }
    said = content(load_estate(files))
    assert b"slos" not in said
    assert hashlib.sha256(said).hexdigest()[:12] == "287812ae2d85"
