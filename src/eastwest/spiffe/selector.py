"""Selectors: facts that an attestor vouches for, written ``type:value`` (``unix:uid:1000``)."""

from __future__ import annotations

from dataclasses import dataclass

from eastwest.errors import InvalidInput

MAX_SELECTOR_LENGTH = 4096


class MalformedSelector(InvalidInput):
    """A text is not a selector."""


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """One attested fact: the attestor's type, and its value (which may contain colons)."""

    type: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Split ``type:value`` at the first colon; both must be non-empty."""
        kind, colon, value = text.partition(":")
        if not colon or not kind or not value:
            raise MalformedSelector(f"{text[:80]!r} is not a selector", fix="write type:value, such as unix:uid:1000")
        if len(text) > MAX_SELECTOR_LENGTH:
            raise MalformedSelector(f"the selector is longer than {MAX_SELECTOR_LENGTH} characters")
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"
