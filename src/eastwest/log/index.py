"""Finding entries: what can be asked for, by which terms entries are found, and the port of an index.

An index is derived from the entries and never trusted: whoever shows a hit reads the entry, proves it against
a checkpoint and asks ``LogQuery.matches``. ``find`` does that in the right order, page by page. What an index
leaves out cannot be seen from its answers; it can be built anew from the log at any time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol
from zlib import crc32

import msgspec

from eastwest.errors import InvalidInput
from eastwest.log.entry import timestamp

FIELDS = ("certificate_sha256", "serial", "entry_id", "subject", "node", "actor", "kind")
"""What entries are found by, the most telling first."""

_PAGE = 1024
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """Entries that have all the values given; an empty text asks for nothing.

    ``start`` (inclusive) and ``end`` (exclusive) are dates or times of RFC 3339, read as UTC where they name no
    zone. ``serial`` is in hex as in the entries of certificates; colons, capitals and zeros before it do not count.
    ``after`` goes on from an index that was answered before: larger ones, or with ``newest_first`` smaller ones.
    """

    subject: str = ""
    serial: str = ""
    node: str = ""
    entry_id: str = ""
    certificate_sha256: str = ""
    kind: str = ""
    actor: str = ""
    start: str = ""
    end: str = ""
    after: int | None = None
    limit: int = 100
    newest_first: bool = False

    def normal(self) -> LogQuery:
        """The same in the form that entries use; raises ``InvalidInput`` naming what cannot be read."""
        if self.limit < 1:
            raise InvalidInput("the limit of a search is 1 or more")
        serial = self.serial.replace(":", "").lower().removeprefix("0x")
        if self.serial and not _HEX.fullmatch(serial):
            raise InvalidInput(f"{self.serial[:64]!r} is no serial number in hex", fix="such as 5f3a or 5F:3A")
        return replace(
            self,
            # A serial of zeros asks for that, not for nothing.
            serial=serial.lstrip("0") or serial[:1],
            certificate_sha256=self.certificate_sha256.replace(":", "").lower(),
            start=_moment(self.start, "start"),
            end=_moment(self.end, "end"),
        )

    def terms(self) -> list[tuple[str, str]]:
        """(field, value) for each value that is asked for, the most telling first."""
        return [(field, value) for field in FIELDS if (value := getattr(self, field))]

    def matches(self, raw: bytes) -> bool:
        """Whether an entry is what a query in normal form asks for; what is no JSON object matches nothing."""
        fields = read_fields(raw)
        if fields is None or any(getattr(fields, field) != value for field, value in self.terms()):
            return False
        return (not self.start or fields.time >= self.start) and (not self.end or fields.time < self.end)


class LogIndex(Protocol):
    """Which entries may answer a query."""

    def search(self, query: LogQuery) -> list[int]:
        """The indices of at most ``query.limit`` entries in order (descending with ``newest_first``).

        No entry that matches is left out before the last one answered; a few that do not match may be
        among them, so check each with ``LogQuery.matches`` once it is proven, or use ``find``.
        """
        ...


class Fields(msgspec.Struct, frozen=True):
    """What an entry is found by; empty where it has no such field, or one that is no text."""

    time: str = ""
    subject: str = ""
    serial: str = ""
    node: str = ""
    entry_id: str = ""
    certificate_sha256: str = ""
    kind: str = ""
    actor: str = ""


_decoder = msgspec.json.Decoder(Fields)
_any_decoder = msgspec.json.Decoder()


def read_fields(raw: bytes) -> Fields | None:
    """The fields of an entry that an index knows; None if it is no JSON object."""
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _lenient(raw)


def find(index: LogIndex, entry: Callable[[int], bytes], query: LogQuery) -> Iterator[tuple[int, bytes]]:
    """Entries that match, in order, at most ``query.limit``. ``entry`` must give proven bytes, and may raise."""
    query = query.normal()
    left, after = query.limit, query.after
    while left > 0:
        page = replace(query, after=after, limit=max(_PAGE, left))
        found = index.search(page)
        for number in found:
            raw = entry(number)
            if query.matches(raw):
                yield number, raw
                left -= 1
                if not left:
                    return
        if len(found) < page.limit:
            return
        after = found[-1]


def term_hash(field: str, value: str) -> int:
    """31 bits that stand for a value of a field. Two values may share them: what is found is looked at."""
    return crc32(value.encode("utf-8", "surrogatepass"), _SEEDS[field]) & 0x7FFF_FFFF


def entry_terms(fields: Fields) -> list[int]:
    """The hashes an entry is found by. An actor that is the node too is found as node (``term_hashes``)."""
    found = [term_hash(field, value) for field in FIELDS[:5] if (value := getattr(fields, field))]
    if fields.actor and fields.actor != fields.node:
        found.append(term_hash("actor", fields.actor))
    if fields.kind:
        found.append(term_hash("kind", fields.kind))
    return found


def term_hashes(field: str, value: str) -> Sequence[int]:
    """The hashes under which entries with this value may be found."""
    if field == "actor":
        return (term_hash("actor", value), term_hash("node", value))
    return (term_hash(field, value),)


def _lenient(raw: bytes) -> Fields | None:
    """As ``read_fields`` for an entry in which one of the fields is no text."""
    try:
        value: Any = _any_decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return Fields(**{name: text for name in Fields.__struct_fields__ if isinstance(text := value.get(name), str)})


def _moment(text: str, name: str) -> str:
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
        return timestamp(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise InvalidInput(
            f"{name} {text[:100]!r} is no date or time", fix="such as 2026-11-22 or 2026-11-22T10:00:00Z"
        ) from None


_SEEDS = {field: crc32(field.encode()) for field in FIELDS}
