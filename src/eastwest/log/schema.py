"""The catalogue of kinds as JSON Schema (draft 2020-12), for auditors and their tools.

``docs/reference/log-schema.json`` is this, written by ``make generate``; ``eastwest log schema`` prints it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from eastwest.log.entry import VERSION
from eastwest.log.kind import COMMON, Field, Kind, Type
from eastwest.log.kinds import KINDS

TIME_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$"
_LIMIT = 2**53 - 1
_TYPES: dict[Type, dict[str, Any]] = {
    Type.TEXT: {"type": "string"},
    Type.HEX: {"type": "string", "pattern": "^[0-9a-f]*$"},
    Type.DECIMAL: {"type": "string", "pattern": "^[0-9]*$"},
    Type.BASE64: {"type": "string", "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]*={0,2}$"},
    Type.TIME: {"type": "string", "format": "date-time", "pattern": TIME_PATTERN},
    Type.INTEGER: {"type": "integer", "minimum": -_LIMIT, "maximum": _LIMIT},
    Type.FLAG: {"type": "boolean"},
    Type.TEXTS: {"type": "array", "items": {"type": "string"}},
    Type.TEXT_MAP: {"type": "object", "additionalProperties": {"type": "string"}},
    Type.OBJECT: {"type": "object"},
}


def log_schema(kinds: Iterable[Kind] = KINDS.values()) -> dict[str, Any]:
    """The schema of one entry of any kind; an entry with an undeclared field or kind does not fit."""
    ordered = sorted(kinds, key=lambda kind: kind.name)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An entry of an Eastwest transparency log",
        "description": "One leaf of the log, in the form that docs/reference/log.md of the project describes.",
        "type": "object",
        "required": list(COMMON),
        "properties": {
            "v": {"const": VERSION},
            "kind": {"enum": [kind.name for kind in ordered]},
            "time": _TYPES[Type.TIME] | {"description": "When, by the server's clock."},
            "actor": {"type": "string", "description": "Who caused it: a SPIFFE ID, unix:uid:N, or empty for many."},
            "subject": {"type": "string", "description": "Whom or what it is about."},
        },
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind.name}}, "required": ["kind"]},
                "then": {"$ref": f"#/$defs/{kind.name}"},
            }
            for kind in ordered
        ],
        "$defs": {kind.name: _definition(kind) for kind in ordered},
    }


def schema_text() -> str:
    """The schema as the text of its file."""
    return msgspec.json.format(msgspec.json.encode(log_schema()), indent=1).decode() + "\n"


def _definition(kind: Kind) -> dict[str, Any]:
    properties: dict[str, Any] = dict.fromkeys(COMMON, True)
    properties["subject"] = {"description": kind.subject}
    properties |= {name: _property(field) for name, field in sorted(kind.fields.items())}
    return {
        "description": kind.meaning,
        "type": "object",
        "required": sorted(name for name, field in kind.fields.items() if not field.optional),
        "properties": properties,
        "additionalProperties": False,
    }


def _property(field: Field) -> dict[str, Any]:
    told: dict[str, Any] = {**_TYPES[field.type], "description": field.meaning}
    if field.choices:
        told["enum"] = list(field.choices)
    return told
