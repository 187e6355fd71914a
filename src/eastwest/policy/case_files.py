"""``tests/*.yaml`` of an estate: calls as they are given, and what is expected of each.

They lie beside the policies and are no part of what is applied: no version depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from eastwest.policy.decode import Path, decode
from eastwest.policy.enforcement import DecisionCode, Verdict
from eastwest.policy.estate import MethodText, NameText, OperationText, ProseText, SpiffeIdText
from eastwest.policy.problems import Findings, Position
from eastwest.policy.yamltree import read_yaml

FOLDER = "tests"
MAX_CASES = 100_000


class Callers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All callers of a domain and an environment (any, where not said) but ``except``; each must fare as expected."""

    domain: NameText | None = None
    environment: NameText | None = None
    but: tuple[SpiffeIdText, ...] = msgspec.field(default=(), name="except")


class GivenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request as it stands on the wire; without method and path a TCP connection. ``headers`` are names to values."""

    service: NameText
    method: MethodText | None = None
    path: Annotated[str, Meta(max_length=4096)] | None = None
    headers: dict[str, str] = {}


class GivenToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A transaction token, made for this very call of this caller unless it says otherwise.

    ``begun_by``: the workload that began the transaction, the caller unless said. ``operation`` and ``tenant``: those
    that the token is for, where it was made for others.
    """

    approved_by: Annotated[str, Meta(min_length=1, max_length=2048)] | None = None
    begun_by: SpiffeIdText | None = None
    operation: OperationText | None = None
    tenant: str | None = None
    expired: bool = False


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One call and what is expected.

    ``caller`` or ``callers``; with neither the call is plaintext. ``operation`` or ``request``. ``policy``: the one
    that must decide.
    """

    case: ProseText
    caller: SpiffeIdText | None = None
    callers: Callers | None = None
    operation: OperationText | None = None
    request: GivenRequest | None = None
    tenant: str | None = None
    token: GivenToken | None = None
    expect: Verdict
    code: DecisionCode | None = None
    policy: str | None = None


class CasesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``tests/*.yaml``."""

    cases: Annotated[tuple[Case, ...], Meta(min_length=1)]


class WrittenCase(msgspec.Struct, frozen=True):
    """A case and where its parts stand."""

    file: str
    case: Case
    places: Mapping[Path, Position]

    def at(self, *path: str) -> Position:
        """Where a field stands, or the case where it is not written."""
        return self.places.get(path, self.places[()])


def is_case_file(name: str) -> bool:
    """Whether a path within an estate's directory is one of its cases."""
    return name.startswith(f"{FOLDER}/") and name.count("/") == 1 and name.endswith(".yaml")


def read_cases(files: Mapping[str, bytes]) -> tuple[WrittenCase, ...]:
    """The cases of ``tests/*.yaml``, by file and line. Raises ``EstateInvalid`` with every mistake in them."""
    findings = Findings()
    read: list[WrittenCase] = []
    for name in sorted(filter(is_case_file, files)):
        node = read_yaml(name, files[name], findings)
        if node is None:
            continue
        value, places = decode(node, CasesFile, findings)
        for index, case in enumerate(value.cases if value is not None else ()):
            here = {path[2:]: where for path, where in places.items() if path[:2] == ("cases", index)}
            read.append(WrittenCase(name, case, here))
            _whole(read[-1], findings)
        if len(read) > MAX_CASES:
            findings.error(Position(name), f"there are more than {MAX_CASES} cases", "say callers: of many at once")
            break
    findings.raise_errors()
    return tuple(read)


def _whole(written: WrittenCase, findings: Findings) -> None:
    """What the types cannot say."""
    case = written.case
    if case.caller is not None and case.callers is not None:
        findings.error(written.at("callers"), "a case has a caller or callers, not both", "keep one")
    if (case.operation is None) == (case.request is None):
        findings.error(written.at(), "a case needs exactly one of operation and request", "keep one")
    if case.request is not None:
        if (case.request.method is None) != (case.request.path is None):
            findings.error(
                written.at("request"), "a request has a method and a path, or neither for TCP", "write both or none"
            )
        if case.tenant is not None:
            findings.error(
                written.at("tenant"), "a request names its tenant itself", "write it into its path, header or token"
            )
    if case.token is not None and case.caller is None and case.callers is None:
        findings.error(written.at("token"), "a plaintext call brings no token that counts", "say who calls")
    allowed = case.code is DecisionCode.ALLOWED
    if case.code is not None and allowed != (case.expect is Verdict.ALLOW):
        findings.error(written.at("code"), f"{case.code} is not the code of {case.expect}", "correct one of the two")
