"""Path templates with whole-segment ``{parameters}``: their form, their order, and how they match.

Paths are matched as the proxy hands them on: after its normalisation, byte for byte, without the query. A
parameter takes one segment of unreserved characters (RFC 3986, section 2.3) that is not ``.`` or ``..``; what is
percent-encoded therefore never matches one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

PARAMETER_VALUE = re.compile(r"[A-Za-z0-9._~-]+")
_PARAMETER = re.compile(r"\{([A-Za-z][A-Za-z0-9_-]*)\}")
_LITERAL = re.compile(r"[A-Za-z0-9._~!$&'()+,=:@-]+")
_FIX = "write a path such as /api/v2/tenants/{tenant}/invoices"


@dataclass(frozen=True, slots=True)
class Template:
    """A path template as segments; parameters have a name, literals a text (the other is empty)."""

    segments: tuple[tuple[str, str], ...]  # (literal, parameter)

    @classmethod
    @lru_cache(maxsize=4096)
    def parse(cls, text: str) -> Template:
        """The template of a checked text."""
        segments: list[tuple[str, str]] = []
        for segment in text[1:].split("/"):
            parameter = _PARAMETER.fullmatch(segment)
            segments.append(("", parameter[1]) if parameter else (segment, ""))
        return cls(tuple(segments))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(parameter for _, parameter in self.segments if parameter)

    @property
    def shape(self) -> tuple[str | None, ...]:
        """What it matches: literals, and ``None`` for parameters, whatever their names."""
        return tuple(None if parameter else literal for literal, parameter in self.segments)

    @property
    def precedence(self) -> tuple[tuple[int, str], ...]:
        """Sort key: among templates that match one path, the one with the leftmost literal sorts first."""
        return tuple((1, "") if parameter else (0, literal) for literal, parameter in self.segments)

    def match(self, path: str) -> dict[str, str] | None:
        """The parameters of ``path`` (a query is ignored), or ``None`` when it does not match."""
        path = path.partition("?")[0]
        if not path.startswith("/"):
            return None
        parts = path[1:].split("/")
        if len(parts) != len(self.segments):
            return None
        values: dict[str, str] = {}
        for part, (literal, parameter) in zip(parts, self.segments, strict=True):
            if not parameter:
                if part != literal:
                    return None
            elif not is_parameter_value(part):
                return None
            else:
                values[parameter] = part
        return values

    def overlaps(self, other: Template) -> bool:
        """Whether some path matches both."""
        if len(self.segments) != len(other.segments):
            return False
        # Asked of each pair of a service's operations, so the common case comes first.
        for (ours, our_parameter), (theirs, their_parameter) in zip(self.segments, other.segments, strict=True):
            if our_parameter or their_parameter:
                if not _can_meet(None if our_parameter else ours, None if their_parameter else theirs):
                    return False
            elif ours != theirs:
                return False
        return True


def is_parameter_value(text: str) -> bool:
    """Whether a parameter may take this segment."""
    return PARAMETER_VALUE.fullmatch(text) is not None and text not in {".", ".."}


def template_problem(text: str) -> tuple[str, str] | None:
    """Why ``text`` is not a path template, and the fix; ``None`` when it is one."""
    if not text.startswith("/"):
        return f"path {text[:80]!r} does not start with /", _FIX
    if text == "/":
        return None
    segments = text[1:].split("/")
    if any(not s for s in segments[:-1]):  # a closing slash is a path of its own
        return f"path {text[:80]!r} has an empty segment", "remove the doubled slash"
    names: list[str] = []
    for segment in segments:
        parameter = _PARAMETER.fullmatch(segment)
        if parameter:
            names.append(parameter[1])
        elif segment in {".", ".."}:
            return f"path {text[:80]!r} has a dot segment", "write the path without . or .."
        elif "{" in segment or "}" in segment:
            return f"{segment[:80]!r} is not a whole-segment parameter", "make the parameter a segment: /{name}/"
        elif "?" in segment or "#" in segment:
            return f"path {text[:80]!r} has a query or fragment", "write the path alone; queries are not matched"
        elif "*" in segment:
            return f"{segment[:80]!r} is a wildcard, and templates have none", "list the paths, or use a {parameter}"
        elif segment and not _LITERAL.fullmatch(segment):
            return f"segment {segment[:80]!r} has a character that paths do not carry as such", _FIX
    if len(set(names)) != len(names):
        return f"path {text[:80]!r} names a parameter twice", "give each parameter its own name"
    return None


def _can_meet(a: str | None, b: str | None) -> bool:
    if a is None:
        return b is None or is_parameter_value(b)
    return a == b or (b is None and is_parameter_value(a))
