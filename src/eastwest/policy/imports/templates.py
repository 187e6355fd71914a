"""From a path of OpenAPI to a path template of the estate, or the reason why there is none."""

from __future__ import annotations

import re

from eastwest.errors import InvalidInput
from eastwest.policy.paths import template_problem

MAX_PATH = 1024
_BRACES = re.compile(r"\{([^{}]*)\}")
_SEVERAL = re.compile(r"[+#./;?&].*|.*\*.*")  # operators of URI templates (RFC 6570), and wildcards
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class Inexpressible(InvalidInput):
    """No path template means what this path means; message and fix say why, and what can be done."""


def path_template(text: str) -> tuple[str, dict[str, str]]:
    """The template, and its parameters' names by the names that the document gives them.

    Parameters keep their names as far as these are parameter names of the estate. Raises ``Inexpressible``.
    """
    if len(text) > MAX_PATH:
        raise Inexpressible(f"its path is longer than {MAX_PATH} characters")
    bare = _BRACES.sub("", text)
    if "?" in bare or "#" in bare:
        raise Inexpressible("its path has a query or a fragment", fix="list it without: queries are not matched")
    if not text.startswith("/"):
        raise Inexpressible("its path does not start with /", fix="write a path such as /pets/{pet}")
    names: dict[str, str] = {}
    template = "".join("/" + _segment(segment, names) for segment in text[1:].split("/"))
    problem = template_problem(template)
    if problem is not None:
        raise Inexpressible(problem[0], fix=problem[1])
    if len(template) > MAX_PATH:
        raise Inexpressible(f"its path is longer than {MAX_PATH} characters, with its parameters' names")
    return template, names


def _segment(segment: str, names: dict[str, str]) -> str:
    found = _BRACES.fullmatch(segment)
    if found is None:
        if "{" in segment or "}" in segment:
            raise Inexpressible(
                f"{segment[:80]!r} has a parameter that is not a whole segment",
                fix="list the paths by hand, or make the parameter a segment",
            )
        return segment
    if _SEVERAL.fullmatch(found[1]):
        raise Inexpressible(
            f"{segment[:80]!r} takes more than one segment, and parameters take one",
            fix="list the depths that are used by hand",
        )
    if found[1] in names:
        raise Inexpressible(f"it names the parameter {found[1][:80]!r} twice", fix="give each its own name")
    names[found[1]] = _parameter(found[1], set(names.values()))
    return "{" + names[found[1]] + "}"


def _parameter(name: str, taken: set[str]) -> str:
    """A parameter name of the estate: the same, or the nearest one."""
    text = re.sub(r"[^A-Za-z0-9_-]", "_", name) or "parameter"
    if not _NAME.fullmatch(text):
        text = "p_" + text.lstrip("_-")
    candidate, number = text, 2
    while candidate in taken:
        candidate, number = f"{text}_{number}", number + 1
    return candidate
