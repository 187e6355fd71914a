"""Findings as SARIF 2.1.0 (OASIS), which code scanning services and editors read."""

from __future__ import annotations

import hashlib
from typing import Any

from eastwest.policy.lint.finding import Finding
from eastwest.policy.lint.rules import CATALOGUE
from eastwest.policy.lint.run import Report

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_NAMES = list(CATALOGUE)


def sarif(report: Report, tool_version: str, base: str = "") -> dict[str, Any]:
    """One run with every rule of the list. What a waiver excuses is there too, suppressed.

    ``base``: the estate's directory as the repository has it, before each file's name.
    """
    findings = (*report.findings, *report.waived)
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "eastwest policy lint",
                        "version": tool_version,
                        "rules": [
                            {
                                "id": rule.name,
                                "shortDescription": {"text": rule.meaning},
                                "help": {"text": rule.fix},
                                "defaultConfiguration": {"level": rule.level.value},
                            }
                            for rule in CATALOGUE.values()
                        ],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [_result(finding, base) for finding in findings],
            }
        ],
    }


def _result(finding: Finding, base: str) -> dict[str, Any]:
    location: dict[str, Any] = {"artifactLocation": {"uri": f"{base}{finding.where.file}"}}
    if finding.where.line:
        location["region"] = {"startLine": finding.where.line, "startColumn": max(1, finding.where.column)}
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": _NAMES.index(finding.rule),
        "level": finding.level.value,
        "message": {"text": f"{finding.message}. Fix: {finding.fix}"},
        "locations": [{"physicalLocation": location}],
        "partialFingerprints": {"finding/v1": _fingerprint(finding)},
    }
    if finding.waiver:
        words = f"waiver {finding.waiver}: {finding.reason}"
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": words}]
    return result


def _fingerprint(finding: Finding) -> str:
    """The same for the same finding wherever its line has moved to."""
    said = "\0".join((finding.rule, finding.where.file, finding.policy, finding.service, *finding.workloads))
    if not (finding.policy or finding.service or finding.workloads):
        said += finding.message
    return hashlib.sha256(said.encode()).hexdigest()[:32]
