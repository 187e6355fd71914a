"""Setting a service's mode of mTLS in its file: one place changes, comments and layout stay.

Pure: text in, text out. Whether the result is a sound estate is judged by those who load it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.policy.enforcement import MtlsMode

_FIX = "change listen.mtls by hand, then eastwest apply"


@dataclass(frozen=True, slots=True)
class Edit:
    """What was changed: the line's number (from 1), and the lines before and after it."""

    text: str
    line: int
    before: str
    after: str


def set_mode(file: str, text: str, service: str, mode: MtlsMode, until: dt.date | None = None) -> Edit:
    """Write ``mtls: mode`` and ``until`` (None: none) into ``listen`` of ``service``.

    Raises ``InvalidInput`` where ``text`` is no such file, ``FailedPrecondition`` where it is written so that it cannot
    be changed in place.
    """
    try:
        root = YAML(typ="rt").compose(text)
    except YAMLError as error:
        raise InvalidInput(f"the file is no YAML: {str(error).splitlines()[0]}", where=file) from None
    named = _value(root, "service")
    listen = _entry(root, "listen")
    if named is None or named.value != service or listen is None:
        raise InvalidInput(f"it does not say where service {service!r} listens", where=file)
    members = _members(listen[1])
    found = next(((key, value) for key, value in members if key.value == "mtls"), None)
    if found is None or (found[1].style is not None and found[1].style not in {"'", '"'}):
        raise FailedPrecondition("listen.mtls is not written in one word", where=file, fix=_FIX)
    edits = [(found[1].start_mark.index, found[1].end_mark.index, mode.value)]
    edits += _until(text, listen[1], members, found, until)
    changed = text
    for start, end, words in sorted(edits, reverse=True):
        changed = changed[:start] + words + changed[end:]
    line = found[1].start_mark.line
    return Edit(
        changed, line + 1, _line(text, line), _lines(changed, line, extra=changed.count("\n") - text.count("\n"))
    )


def _until(text: str, listen: Any, members: list[Any], mtls: Any, until: dt.date | None) -> list[tuple[int, int, str]]:
    """The edits that make ``until`` what it should be."""
    place = next((i for i, (key, _) in enumerate(members) if key.value == "until"), None)
    if place is not None and until is not None:
        value = members[place][1]
        return [(value.start_mark.index, value.end_mark.index, until.isoformat())]
    if place is not None:
        return [_removed(text, listen, members, place)]
    if until is None:
        return []
    if listen.flow_style:
        end = mtls[1].end_mark.index
        return [(end, end, f", until: {until.isoformat()}")]
    end = text.find("\n", mtls[1].end_mark.index)
    end = len(text) if end < 0 else end
    return [(end, end, f"\n{' ' * mtls[0].start_mark.column}until: {until.isoformat()}")]


def _removed(text: str, listen: Any, members: list[Any], place: int) -> tuple[int, int, str]:
    key, value = members[place]
    if listen.flow_style:
        if place > 0:
            return members[place - 1][1].end_mark.index, value.end_mark.index, ""
        if len(members) > 1:
            return key.start_mark.index, members[1][0].start_mark.index, ""
    start = text.rfind("\n", 0, key.start_mark.index) + 1
    end = text.find("\n", value.end_mark.index)
    return start, len(text) if end < 0 else end + 1, ""


def _entry(node: Any, name: str) -> Any:
    return next(((key, value) for key, value in _members(node) if key.value == name), None)


def _value(node: Any, name: str) -> Any:
    found = _entry(node, name)
    return found[1] if found is not None else None


def _members(node: Any) -> list[Any]:
    return node.value if node is not None and node.id == "mapping" else []


def _line(text: str, number: int) -> str:
    lines = text.splitlines()
    return lines[number] if number < len(lines) else ""


def _lines(text: str, number: int, extra: int) -> str:
    """The line, with one more where one was added."""
    lines = text.splitlines()
    return "\n".join(lines[number : number + 1 + max(extra, 0)])
