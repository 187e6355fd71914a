"""What is known of one principal in one time: entries of the log, decisions, estates; each choice is stated here.

Everything is read from the server's files, beside a running server or without one. Entries are proven when they are
read. What a bound cuts off is said in ``Collected.cut``, never left out in silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from eastwest.cli.log_reading import locate, open_log, proof_of
from eastwest.errors import Error, FailedPrecondition, NotFound
from eastwest.log.index import LogQuery

if TYPE_CHECKING:
    from eastwest.cli.log_search import Finder
    from eastwest.ledger.query import DecisionQuery
    from eastwest.store.ledger_reader import LedgerReader

MAX_ENTRIES = 100_000
"""Entries of one question to the log."""
MAX_ROWS = 1_000_000
"""Rows of decisions in one archive."""
MAX_SEGMENT_BYTES = 1 << 30
_PAGE = 1000
_CA_KINDS = (
    "ca.prepared",
    "ca.activated",
    "ca.tainted",
    "ca.revoked",
    "ca.discarded",
    "ca.expired",
    "ca.trusted",
    "ca.requested",
    "ca.cross_signed",
    "bundle.changed",
)
_LOG_KINDS = ("log.opened", "log.key_added", "log.split_view", "witness.quorum_lost", "witness.quorum_regained")
_NODE_KINDS = ("node.attested", "node.banned", "node.evicted", "node.purged")
_ENTRY_KINDS = ("entry.created", "entry.changed", "entry.deleted")


@dataclass(frozen=True, slots=True)
class Window:
    """From ``start`` (inclusive) to ``end`` (exclusive), aware."""

    start: datetime
    end: datetime


@dataclass(slots=True)
class Collected:
    """Everything that goes into an archive. ``entries``: index to (the entry's bytes, its tlog-proof)."""

    principal: str
    window: Window
    origin: str
    size: int
    root: str
    checkpoint: str
    vkeys: dict[str, str]
    entries: dict[int, tuple[bytes, str]] = field(default_factory=dict)
    estates: dict[str, dict[str, bytes]] = field(default_factory=dict)
    services: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    segment_files: dict[str, bytes] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)


def collect(data: Path, principal: str, window: Window, *, whole_segments: bool) -> Collected:
    """Gather it from the server's directory ``data``. Raises ``NotFound`` where there is no log."""
    from eastwest.cli.log_search import opened

    files, key = locate(data, None, None)
    with opened(data, None, None) as finder:
        # After the finder, so that every entry it can find is covered.
        checkpoint, note, reader = open_log(files, key)
        made = Collected(
            principal, window, key.name, checkpoint.size, checkpoint.root.hex(), note, _vkeys(data, key.vkey)
        )
        found = _Entries(finder, made)
        found.choose()
        _estates(data, found, made)
        _decisions(data / "server" / "ledger", found, made, whole_segments=whole_segments)
        for index, raw in sorted(found.raw.items()):
            made.entries[index] = (raw, proof_of(index, raw, checkpoint, note, reader))
        if found.pruned:
            told = f"{len(found.pruned)} that may concern the principal are pruned, their texts are gone"
            made.cut.append(f"entries: {told}: {spans(found.pruned)}")
    return made


def spans(numbers: Collection[int]) -> str:
    """Numbers in order for people, those in a row as ``first-last``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


class _Entries:
    """The entries that matter, by questions to the index."""

    def __init__(self, finder: Finder, made: Collected) -> None:
        self._finder = finder
        self._made = made
        self.raw: dict[int, bytes] = {}
        self.pruned: set[int] = set()

    def choose(self) -> None:
        principal, window = self._made.principal, self._made.window
        within = LogQuery(start=window.start.isoformat(), end=window.end.isoformat())
        before = LogQuery(end=window.end.isoformat())
        self.ask(replace(within, subject=principal))
        self.ask(replace(within, actor=principal))
        nodes = {one["node"] for one in self.values() if one.get("node")}
        for kind in _ENTRY_KINDS:
            self.ask(replace(before, subject=principal, kind=kind))
        for node in sorted(nodes):
            for kind in _NODE_KINDS:
                self.ask(replace(before, subject=node, kind=kind))
        for kind in (*_CA_KINDS, *_LOG_KINDS):
            self.ask(replace(before, kind=kind))
        for kind in ("mode.changed", "log.pruned", "policy.activated", "config.loaded"):
            self.ask(replace(within, kind=kind))
        for kind in ("policy.activated", "config.loaded"):
            self.ask(LogQuery(kind=kind, end=within.start, limit=1, newest_first=True))
        keys = {one["key_id"] for one in self.values("token.minted")}
        self.ask(replace(before, kind="token_key.published"), lambda one: one["key_id"] in keys)

    def ask(self, query: LogQuery, keep: Callable[[dict[str, Any]], bool] | None = None) -> None:
        """Take what a question finds, if ``keep`` (of the entry as a value) says so."""
        if not query.newest_first:
            query = replace(query, limit=MAX_ENTRIES)
        found = self._finder.find(query)
        if len(found) == MAX_ENTRIES:
            self._made.cut.append(f"entries: only the first {MAX_ENTRIES} of {query}")
        for index, raw in found:
            if keep is None or keep(msgspec.json.decode(raw)):
                self.raw[index] = raw
        self.pruned.update(self._finder.pruned)
        self._finder.pruned.clear()

    def values(self, kind: str = "") -> Iterator[dict[str, Any]]:
        """What has been taken, as values."""
        for _, value in self.indexed(kind):
            yield value

    def indexed(self, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, raw in sorted(self.raw.items()):
            value = msgspec.json.decode(raw)
            if kind in ("", value["kind"]):
                yield index, value


def _vkeys(data: Path, vkey: str) -> dict[str, str]:
    """The verifier keys by file name; the Ed25519 one is the one that proofs are checked with."""
    keys = {"log.vkey": f"{vkey}\n"}
    other = data / "server" / "log.ml-dsa-44.vkey"
    if other.is_file():
        keys[other.name] = other.read_text(encoding="ascii")
    return keys


def _estates(data: Path, found: _Entries, made: Collected) -> None:
    """The files of every version that was in force, and the services that are the principal's by one of them."""
    from eastwest.policy.load import load_estate
    from eastwest.store.estate import peek_versions

    wanted = {one["version"]: one["files"] for one in found.values("policy.activated")}
    kept = peek_versions(data / "server" / "server.db", wanted) if wanted else {}
    services: set[str] = set()
    for version, hashes in wanted.items():
        applied = kept.get(version)
        held = {name: hashlib.sha256(text).hexdigest() for name, text in applied.files.items()} if applied else None
        if applied is None or held != hashes:
            made.cut.append(f"policy: the files of version {version} are not kept here any more; their hashes are")
            continue
        made.estates[version] = applied.files
        try:
            estate = load_estate(applied.files)
        except Error as error:
            made.cut.append(f"policy: version {version} cannot be read by this release: {error.message}")
            continue
        services |= {one.service for one in estate.services if one.workload == made.principal}
    made.services = sorted(services)


def _decisions(ledger: Path, found: _Entries, made: Collected, *, whole_segments: bool) -> None:
    """Rows in which the principal called or was called, what is known to be lost, and the segments these lie in."""
    from eastwest.store.ledger_reader import LedgerReader

    if not ledger.is_dir():
        made.cut.append("decisions: this server has no ledger")
        return
    rows: dict[int, dict[str, Any]] = {}
    with closing(LedgerReader(ledger)) as reader:
        for question in questions(made.principal, made.services, made.window.start, made.window.end):
            for row in rows_of(reader, question):
                if len(rows) >= MAX_ROWS:
                    made.cut.append(f"decisions: only the first {MAX_ROWS} rows")
                    break
                rows[row["row"]] = row
    made.rows = [rows[number] for number in sorted(rows)]
    _segments(ledger, found, made, whole_segments=whole_segments)


def questions(principal: str, services: Sequence[str], start: datetime, end: datetime) -> list[DecisionQuery]:
    """Which rows belong to a principal: its own calls, those to its services, and what is known to be lost."""
    from eastwest.ledger.query import DecisionQuery

    every = DecisionQuery(start=start, end=end)
    return [
        msgspec.structs.replace(every, caller=principal),
        *(msgspec.structs.replace(every, service=name) for name in services),
        msgspec.structs.replace(every, kind="lost"),
    ]


def rows_of(reader: LedgerReader, question: DecisionQuery) -> Iterator[dict[str, Any]]:
    """All rows that answer a question, page by page."""
    while True:
        page = reader.search(msgspec.structs.replace(question, limit=_PAGE))
        yield from page
        if len(page) < _PAGE:
            return
        question = msgspec.structs.replace(question, after=page[-1]["row"])


def _segments(ledger: Path, found: _Entries, made: Collected, *, whole_segments: bool) -> None:
    since = LogQuery(start=made.window.start.isoformat())
    numbers = [row["row"] for row in made.rows]

    end = f"{made.window.end.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"

    def has_rows(sealed: dict[str, Any]) -> bool:
        # In whole segments anybody can look for rows that were left out, so then all of the time are wanted.
        within = whole_segments and sealed["first_time"] < end
        return within or any(sealed["first_row"] <= number <= sealed["last_row"] for number in numbers)

    found.ask(replace(since, kind="decision.segment.sealed"), has_rows)
    found.ask(replace(since, kind="decision.segment.pruned"))
    total = 0
    for index, sealed in found.indexed("decision.segment.sealed"):
        names = ("segment", "sha256", "first_row", "last_row", "rows", "decisions", "lost")
        segment = {name: sealed[name] for name in names} | {"entry": index, "included": False}
        made.segments.append(segment)
        if not whole_segments:
            continue
        path = ledger / sealed["segment"]
        try:
            total += path.stat().st_size
            if total > MAX_SEGMENT_BYTES:
                raise FailedPrecondition(
                    f"the segments of this time have more than {MAX_SEGMENT_BYTES >> 20} MiB",
                    fix="take a shorter time, or leave --segments out: rows come all the same",
                )
            made.segment_files[sealed["segment"]] = path.read_bytes()
        except FileNotFoundError:
            made.cut.append(f"decisions: the segment {sealed['segment']} is not here any more")
            continue
        segment["included"] = True


def ensure_known(made: Collected) -> None:
    """Raise ``NotFound`` when nothing at all is about the principal."""
    mentioned = any(made.principal.encode() in raw for raw, _ in made.entries.values())
    if not mentioned and not any(row.get("kind") != "lost" for row in made.rows):
        raise NotFound(
            f"nothing is recorded of {made.principal} in this time",
            fix="check the SPIFFE ID (eastwest entry show) and --from and --to",
        )
