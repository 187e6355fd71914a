"""Path templates: ``/tenants/{tenant}/invoices/{invoice}``, whole-segment parameters of a safe alphabet.

A template is matched as a whole, never as a prefix: a proxy and an application that read a path differently
then disagree only about requests that no template allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from eastwest.errors import InvalidInput

PARAMETER_ALPHABET = "[A-Za-z0-9._~-]"
_PARAMETER = re.compile(r"\{([a-zA-Z][a-zA-Z0-9_-]*)\}")
_LITERAL = re.compile(r"[A-Za-z0-9._~!$&'()*+,=:@-]*")  # RFC 3986 pchar without ";" and percent-encodings
_ALPHABET = re.compile(PARAMETER_ALPHABET + "*")
_QUERY = r"(?:\?.*)?"


class MalformedTemplate(InvalidInput):
    """A text is not a path template."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One path segment: a literal text, or a parameter's name."""

    text: str
    is_parameter: bool = False


@dataclass(frozen=True, slots=True)
class Template:
    """A checked path template."""

    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Check ``text``; raise ``MalformedTemplate`` with the reason."""
        return _parse(text)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters, in order."""
        return tuple(segment.text for segment in self.segments if segment.is_parameter)

    @property
    def prefix(self) -> str:
        """The literal text before the first parameter; the whole path where there is none."""
        literals: list[str] = []
        for segment in self.segments:
            if segment.is_parameter:
                return "/" + "".join(f"{literal}/" for literal in literals)
            literals.append(segment.text)
        return "/" + "/".join(literals)

    @property
    def specificity(self) -> tuple[bool, ...]:
        """Sorts more specific templates first: at the first difference, a literal goes before a parameter."""
        return tuple(segment.is_parameter for segment in self.segments)

    def regex(self, parameter: str = "", values: Iterable[str] = ()) -> str:
        """An RE2 expression for whole ``:path`` values (query allowed), one parameter narrowed to ``values``."""
        narrowed = "(?:" + "|".join(re.escape(value) for value in values) + ")"
        parts = [
            (narrowed if segment.text == parameter else PARAMETER_ALPHABET + "+")
            if segment.is_parameter
            else re.escape(segment.text)
            for segment in self.segments
        ]
        return "/" + "/".join(parts) + _QUERY

    def shape_until(self, parameter: str) -> str:
        """What begins the paths up to the value of ``parameter``, whatever parameters are called."""
        return "".join("/{}" if segment.is_parameter else f"/{segment.text}" for segment in self._until(parameter))

    def capture(self, parameter: str) -> str:
        """An RE2 expression for whole ``:path`` values of that shape, which captures the value of ``parameter``."""
        *before, _ = self._until(parameter)
        parts = (PARAMETER_ALPHABET + "+" if s.is_parameter else re.escape(s.text) for s in before)
        return "^" + "".join(f"/{part}" for part in parts) + f"/({PARAMETER_ALPHABET}+)(?:[/?].*)?$"

    def match(self, path: str) -> dict[str, str] | None:
        """The parameters in ``path`` (a query is ignored), or None where it does not match."""
        segments = path.partition("?")[0].split("/")
        if segments[0] or len(segments) != len(self.segments) + 1:
            return None
        found: dict[str, str] = {}
        for segment, text in zip(self.segments, segments[1:], strict=True):
            if not segment.is_parameter:
                if segment.text != text:
                    return None
            elif not text or not _ALPHABET.fullmatch(text):
                return None
            else:
                found[segment.text] = text
        return found

    def _until(self, parameter: str) -> tuple[Segment, ...]:
        names = [segment.text if segment.is_parameter else "" for segment in self.segments]
        return self.segments[: names.index(parameter) + 1]

    def can_start_with(self, prefix: str) -> bool:
        """Whether some path that matches begins with ``prefix``."""
        *whole, partial = prefix.split("/")[1:]
        if len(whole) >= len(self.segments):
            return False
        for segment, text in zip(self.segments, whole, strict=False):
            if segment.is_parameter:
                if not text or not _ALPHABET.fullmatch(text):
                    return False
            elif segment.text != text:
                return False
        last = self.segments[len(whole)]
        return bool(_ALPHABET.fullmatch(partial)) if last.is_parameter else last.text.startswith(partial)


def by_prefix(templates: Sequence[Template]) -> dict[str, list[int]]:
    """Which templates must be tried for a path whose longest matching key is the prefix, most specific first.

    Envoy goes on to a shorter key only where the longer one ends in nothing; ours end in a named refusal. So a
    template with a shorter prefix is listed under every longer one it could still match.
    """
    prefixes = sorted({template.prefix for template in templates})
    order = sorted(range(len(templates)), key=lambda index: (templates[index].specificity, index))
    return {prefix: [index for index in order if templates[index].can_start_with(prefix)] for prefix in prefixes}


@lru_cache(maxsize=4096)
def _parse(text: str) -> Template:
    if not text.startswith("/"):
        raise MalformedTemplate(f"path template {text[:80]!r} does not start with a slash")
    segments: list[Segment] = []
    for part in text[1:].split("/"):
        parameter = _PARAMETER.fullmatch(part)
        if parameter:
            segments.append(Segment(parameter[1], is_parameter=True))
        elif not _LITERAL.fullmatch(part):
            raise MalformedTemplate(
                f"path template {text[:80]!r} has {part[:40]!r}, which is neither plain text nor one parameter",
                fix="a parameter is a whole segment, such as /items/{item}",
            )
        else:
            segments.append(Segment(part))
    names = [segment.text for segment in segments if segment.is_parameter]
    if len(set(names)) != len(names):
        raise MalformedTemplate(f"path template {text[:80]!r} names a parameter twice")
    if any(segment.text in {".", ".."} for segment in segments if not segment.is_parameter):
        raise MalformedTemplate(f"path template {text[:80]!r} has a dot segment")
    empty = [index for index, segment in enumerate(segments) if not segment.text]
    if empty and empty != [len(segments) - 1]:
        raise MalformedTemplate(f"path template {text[:80]!r} has an empty segment", fix="remove the extra slash")
    return Template(tuple(segments))
