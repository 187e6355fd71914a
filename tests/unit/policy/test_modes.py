"""A mode is changed in its place; all else of the file stays as people wrote it."""

import datetime as dt

import pytest

from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.policy.enforcement import MtlsMode
from eastwest.policy.modes import set_mode

UNTIL = dt.date(2027, 3, 31)
FLOW = """# the stock
service: stock   # its name
listen: {port: 8443, protocol: http, mtls: permissive, until: 2026-12-31}  # ask Ada
upstream: {unix: /run/app.sock}
"""
BLOCK = """service: stock
listen:
  port: 8443
  mtls: "permissive"   # for now
  until: 2026-12-31
  protocol: http
"""


def changed(text: str, mode: MtlsMode, until: dt.date | None = None) -> str:
    return set_mode("services/stock.yaml", text, "stock", mode, until).text


def test_strict_takes_the_end_date_away():
    assert changed(FLOW, MtlsMode.STRICT) == FLOW.replace("mtls: permissive, until: 2026-12-31", "mtls: strict")
    assert changed(BLOCK, MtlsMode.STRICT) == BLOCK.replace('"permissive"', "strict").replace(
        "  until: 2026-12-31\n", ""
    )


def test_permissive_puts_or_changes_it():
    assert changed(FLOW, MtlsMode.PERMISSIVE, UNTIL) == FLOW.replace("2026-12-31", "2027-03-31")
    strict = changed(FLOW, MtlsMode.STRICT)
    assert changed(strict, MtlsMode.PERMISSIVE, UNTIL) == FLOW.replace("2026-12-31", "2027-03-31")
    block = changed(BLOCK, MtlsMode.STRICT)
    assert changed(block, MtlsMode.PERMISSIVE, UNTIL) == block.replace(
        "mtls: strict   # for now\n", "mtls: permissive   # for now\n  until: 2027-03-31\n"
    )


@pytest.mark.parametrize("text", [FLOW.replace("\n", "\r\n"), "\n\n" + FLOW, FLOW.rstrip("\n")])
def test_line_ends_stay(text):
    assert changed(text, MtlsMode.STRICT) == text.replace("mtls: permissive, until: 2026-12-31", "mtls: strict")


def test_an_end_date_that_stands_first_goes_too():
    text = FLOW.replace("{port: 8443,", "{until: 2026-12-31, port: 8443,").replace(", until: 2026-12-31}", "}")
    assert "listen: {port: 8443, protocol: http, mtls: strict}" in changed(text, MtlsMode.STRICT)


def test_the_line_is_told():
    edit = set_mode("f", FLOW, "stock", MtlsMode.STRICT)
    assert edit.line == 3
    assert edit.before.endswith("mtls: permissive, until: 2026-12-31}  # ask Ada")
    assert edit.after.endswith("mtls: strict}  # ask Ada")


@pytest.mark.parametrize("text", ["service: other\nlisten: {mtls: strict}\n", "service: stock\n", "[", "- 1\n", ""])
def test_another_file_is_refused(text):
    with pytest.raises(InvalidInput):
        changed(text, MtlsMode.STRICT)


def test_what_is_not_in_one_word_is_left_to_people():
    with pytest.raises(FailedPrecondition):
        changed("service: stock\nlisten:\n  mtls: |\n    strict\n", MtlsMode.STRICT)
