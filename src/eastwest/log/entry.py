"""Log entries: canonical JSON, so that one fact has one encoding and one hash.

Canonical means: UTF-8, no white space, object keys in code point order, whole numbers below 2^53 only,
times as RFC 3339 in UTC with microseconds (``2026-11-22T10:00:00.000000Z``), at most 65,535 bytes
(what an entry bundle of C2SP tlog-tiles can hold). Every entry has ``v`` (1), ``kind``, ``time``,
``actor`` (who caused it) and ``subject`` (whom or what it is about); the rest depends on the kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from eastwest.errors import InvalidInput

VERSION = 1
MAX_ENTRY_BYTES = 65_535
REQUIRED = ("time", "actor", "subject")
_MAX_NUMBER = 2**53
_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder()


class MalformedEntry(InvalidInput):
    """Something cannot be a log entry, or bytes are not one in canonical form."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One fact: its kind and everything else about it.

    ``body`` holds ``time``, ``actor``, ``subject`` and the facts of the kind: texts, whole numbers,
    booleans, None, aware datetimes, and lists and mappings of these.
    """

    kind: str
    body: Mapping[str, Any]


def encode(entry: Entry) -> bytes:
    """The canonical bytes of an entry; raises ``MalformedEntry`` naming the field at fault."""
    fields: dict[str, Any] = {"v": VERSION, "kind": entry.kind}
    for name, value in entry.body.items():
        # Texts are nearly all there is; they need no look inside.
        fields[name] = value if type(value) is str else _plain(value, name)
    if entry.body.get("v", VERSION) != VERSION or entry.body.get("kind", entry.kind) != entry.kind:
        raise MalformedEntry("the body of a log entry may not set v or kind")
    for name in REQUIRED:
        if not isinstance(fields.get(name), str):
            raise MalformedEntry(f"a log entry of kind {entry.kind!r} needs {name}")
    try:
        raw = _encoder.encode(fields)
    except (msgspec.MsgspecError, UnicodeEncodeError, TypeError) as error:
        raise MalformedEntry(f"a log entry of kind {entry.kind!r} cannot be written as JSON: {error}") from error
    if len(raw) > MAX_ENTRY_BYTES:
        raise MalformedEntry(f"a log entry of {len(raw)} bytes is over the bound of {MAX_ENTRY_BYTES}")
    return raw


def decode(raw: bytes) -> Entry:
    """Read canonical bytes back; raises ``MalformedEntry`` if they are anything else.

    Times stay texts, as they are in the log.
    """
    try:
        fields = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedEntry(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise MalformedEntry("not a JSON object")
    if fields.pop("v", None) != VERSION:
        raise MalformedEntry(f"not an entry of version {VERSION}")
    kind = fields.pop("kind", None)
    if not isinstance(kind, str):
        raise MalformedEntry("kind is missing")
    entry = Entry(kind, fields)
    if encode(entry) != raw:
        raise MalformedEntry("not in canonical form")
    return entry


@lru_cache(maxsize=256)  # a batch of entries shares its times
def timestamp(time: datetime) -> str:
    """RFC 3339 in UTC with microseconds; raises ``MalformedEntry`` without a time zone."""
    if time.tzinfo is None:
        raise MalformedEntry("a time in a log entry needs a time zone")
    if time.tzinfo is not UTC:
        time = time.astimezone(UTC)
    return time.isoformat(timespec="microseconds")[:-6] + "Z"


def _plain(value: Any, where: str) -> Any:
    """``value`` made of JSON's own types, or ``MalformedEntry``."""
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, int):
        if not -_MAX_NUMBER < value < _MAX_NUMBER:
            raise MalformedEntry(f"{where}: a number of 2^53 or more must be written as text")
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise MalformedEntry(f"{where}: the names in an object must be texts")
        return {str(name): _plain(item, f"{where}.{name}") for name, item in value.items()}
    raise MalformedEntry(f"{where}: a {type(value).__name__} has no canonical form")
