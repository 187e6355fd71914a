"""Results of cases as JUnit's XML, which CI services read."""

from __future__ import annotations

import re
from html import escape
from itertools import groupby

from eastwest.policy.cases import Outcome, Result

_NOT_IN_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(outcome: Outcome) -> str:
    """One suite for each file of cases."""
    suites = [
        _suite(file, list(results)) for file, results in groupby(outcome.results, key=lambda result: result.where.file)
    ]
    total, failed = len(outcome.results), len(outcome.failed)
    head = f'<testsuites name="eastwest policy test" tests="{total}" failures="{failed}" errors="0">'
    return "\n".join(('<?xml version="1.0" encoding="UTF-8"?>', head, *suites, "</testsuites>")) + "\n"


def _suite(file: str, results: list[Result]) -> str:
    failed = sum(not result.passed for result in results)
    lines = [f'  <testsuite name="{_text(file)}" tests="{len(results)}" failures="{failed}" errors="0">']
    for result in results:
        line = result.where.line
        name = f'    <testcase classname="{_text(file)}" name="{_text(result.case)}" file="{_text(file)}" line="{line}"'
        if result.passed:
            lines.append(f"{name}/>")
            continue
        told = "\n".join(map(str, result.failures))
        message = _text(f"expected {result.expected}")
        lines += [
            f"{name}>",
            f'      <failure message="{message}">{_text(f"{result.where}: {told}")}</failure>',
            "    </testcase>",
        ]
    return "\n".join((*lines, "  </testsuite>"))


def _text(text: str) -> str:
    """For attributes and content; characters that XML 1.0 cannot hold are replaced."""
    return escape("".join(c if _NOT_IN_XML.fullmatch(c) is None else "?" for c in text), quote=True)
