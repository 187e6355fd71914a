"""What a kind of log entry is: its name, what it means, and which fields it has.

The catalogue of all kinds is ``eastwest.log.kinds``; ``eastwest.log.schema`` writes it as JSON Schema.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from eastwest.errors import Internal

COMMON = ("v", "kind", "time", "actor", "subject")
"""The fields of every entry; no kind declares them."""


class UndeclaredEntry(Internal):
    """The server was about to record something that the catalogue does not know; that is a fault of the program."""


class Type(enum.Enum):
    """What a field's value is. Everything but numbers, flags and structures is a JSON text."""

    TEXT = "text"
    HEX = "hex"
    """Lower-case hexadecimal digits, such as a hash or a serial number."""
    DECIMAL = "decimal"
    """A whole number as text, since it may not fit a JSON number."""
    BASE64 = "base64"
    """Standard base64 of binary data, such as a certificate in DER."""
    TIME = "time"
    """RFC 3339 in UTC with microseconds."""
    INTEGER = "integer"
    FLAG = "flag"
    TEXTS = "texts"
    """A list of texts."""
    TEXT_MAP = "text map"
    """An object whose values are texts."""
    OBJECT = "object"
    """An object of any JSON without fractions."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field: ``meaning`` is a sentence for the schema.

    ``optional``: not in every entry of the kind, be it that it does not always apply or that earlier releases did not
    write it. ``choices``: the only values there are.
    """

    type: Type
    meaning: str
    optional: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of entry: ``meaning`` says when it is written, ``subject`` what that common field names."""

    name: str
    meaning: str
    subject: str
    fields: Mapping[str, Field] = field(default_factory=dict)

    def check(self, names: Mapping[str, object]) -> None:
        """Raise ``UndeclaredEntry`` unless these are the names of an entry of this kind, common ones aside."""
        unknown = names.keys() - self.fields.keys()
        if unknown:
            raise UndeclaredEntry(f"log entries of kind {self.name} have no field {', '.join(sorted(unknown))}")
        lacking = [name for name, one in self.fields.items() if not one.optional and name not in names]
        if lacking:
            raise UndeclaredEntry(f"a log entry of kind {self.name} lacks {', '.join(lacking)}")
