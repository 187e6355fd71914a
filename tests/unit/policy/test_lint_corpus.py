"""A seeded estate and its clean twin: every planted fault is found, under its rule, and nothing else is."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from eastwest.policy.lint.rules import CATALOGUE
from eastwest.policy.lint.run import lint
from eastwest.policy.load import load_estate
from eastwest.policy.table import compile_estate

CORPUS = Path(__file__).parents[2] / "corpora" / "lint"
TODAY = dt.date(2026, 11, 22)
FAULTS = YAML(typ="safe").load((CORPUS / "faults.yaml").read_text())
ELSEWHERE = {"environment-unsaid"}
"""Rules that cannot be planted beside others: they have tests of their own."""


def clean() -> dict[str, bytes]:
    root = CORPUS / "clean"
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def seeded() -> dict[str, bytes]:
    files = {name: data.decode() for name, data in clean().items()}
    for fault in FAULTS:
        text = files.get(fault["into"], "")
        if "old" in fault:
            assert text.count(fault["old"]) == 1, fault["about"]
            files[fault["into"]] = text.replace(fault["old"], fault["new"])
        else:
            files[fault["into"]] = text + fault["new"]
    return {name: text.encode() for name, text in files.items()}


def report(files):
    estate = load_estate(files)
    return lint(estate, compile_estate(estate), TODAY)


def test_nothing_is_found_in_the_clean_twin():
    found = report(clean())
    assert [str(finding) for finding in found.findings] == []
    assert [finding.rule for finding in found.waived] == ["broad-selectors"]


@pytest.fixture(scope="module")
def found():
    return report(seeded()).findings


def planted(fault, finding):
    return fault["rule"] == finding.rule and fault["about"] in finding.message


def test_every_planted_fault_is_found(found):
    missed = [fault["about"] for fault in FAULTS if sum(planted(fault, finding) for finding in found) != 1]
    assert missed == []


def test_nothing_is_found_that_was_not_planted(found):
    assert [str(finding) for finding in found if not any(planted(fault, finding) for fault in FAULTS)] == []


def test_every_rule_is_planted_at_least_twice():
    counts = {rule: sum(fault["rule"] == rule for fault in FAULTS) for rule in CATALOGUE}
    assert {rule for rule, count in counts.items() if count < 2} == ELSEWHERE


@pytest.mark.parametrize("rule", CATALOGUE.values(), ids=lambda rule: rule.name)
def test_every_rule_has_a_row_with_its_level(rule):
    rows = (CORPUS.parents[2] / "docs/reference/lint.md").read_text().splitlines()
    assert sum(row.startswith(f"| `{rule.name}` | {rule.level} |") for row in rows) == 1


def test_findings_name_calls_that_the_table_allows(found):
    estate = load_estate(seeded())
    sidecars = compile_estate(estate).sidecars.values()
    rules = {o.name: o for s in sidecars for i in s.inbound for o in i.operations}
    pairs = [pair for finding in found for pair in finding.pairs]
    assert len(pairs) > 20
    for caller, operation in pairs:
        assert any(caller in cell.callers for cell in rules[operation].cells), (caller, operation)
