"""Patterns of SPIFFE IDs, by whole segments: ``*`` stands for one segment, a last ``**`` for one or more.

spiffe://saas.example/prod/commerce/*      every service of one domain
spiffe://saas.example/legacy/**            all that lies below
"""

from __future__ import annotations

from eastwest.errors import InvalidInput
from eastwest.spiffe.id import SpiffeId


def check_pattern(text: str) -> None:
    """Raise ``InvalidInput`` unless ``text`` is a SPIFFE ID, with ``*`` or a last ``**`` as whole segments."""
    head, _, last = text.rpartition("/")
    plain = f"{head}/x" if last == "**" else text
    SpiffeId.parse("/".join("x" if part == "*" else part for part in plain.split("/")))
    if SpiffeId.parse(plain.replace("*", "x")).path == "":
        raise InvalidInput(f"{text[:80]!r} names a whole trust domain", fix="add a path such as /prod/** or /**")


def matches(pattern: str, spiffe_id: SpiffeId) -> bool:
    """Whether a checked pattern covers the ID."""
    wanted, parts = pattern.split("/"), str(spiffe_id).split("/")
    if wanted[-1] == "**":
        wanted = wanted[:-1]
        if len(parts) <= len(wanted):
            return False
        parts = parts[: len(wanted)]
    return len(wanted) == len(parts) and all(w in {"*", part} for w, part in zip(wanted, parts, strict=True))
