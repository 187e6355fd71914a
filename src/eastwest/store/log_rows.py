"""The log's rows: what is stored per append, and how tiles, roots and entries are read back from it.

Entries come as rows of ``log_segment``, one for each append; once a bundle of 256 is full and published, its rows
become one of ``log_bundle``, compressed: a third of the size, as entries are much alike.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import zstandard

from eastwest.errors import Corrupt
from eastwest.log.entry import MAX_ENTRY_BYTES
from eastwest.log.index import read_fields
from eastwest.log.ports import Pruned
from eastwest.log.tiles import (
    FULL_TILE_BYTES,
    TILE_WIDTH,
    Growth,
    Tile,
    decode_bundle,
    encode_bundle,
    level_sizes,
)
from eastwest.log.tree import HASH_SIZE, CompactRange, fold_edge, leaf_hash, split_hashes

PACK_LEVEL = 1
PACK_FROM = 16
"""Entries of one append from which on they are compressed at once; fewer wait for their bundle."""
MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + MAX_ENTRY_BYTES)

RESTORE = "restore the newest copy of the database that agrees with the checkpoint; until then nothing is signed"


@dataclass(frozen=True, slots=True)
class TreeHead:
    """How many entries, and the root over them."""

    size: int
    root: bytes


def append_entries(connection: sqlite3.Connection, entries: Sequence[bytes]) -> int:
    """Store entries after the last one; return the index of the first."""
    size, growth = _growth(connection)
    at = 0
    while at < len(entries):
        part = entries[at : at + TILE_WIDTH - growth.size % TILE_WIDTH]
        hashes = [leaf_hash(entry) for entry in part]
        data, packed = encode_bundle(part), len(part) >= PACK_FROM
        connection.execute(
            "INSERT INTO log_segment (first, hashes, data, packed) VALUES (?, ?, ?, ?)",
            (growth.size, b"".join(hashes), pack(data) if packed else data, packed),
        )
        filled = growth.extend(hashes)
        if filled:
            connection.executemany("INSERT INTO log_node (level, n, hash) VALUES (?, ?, ?)", filled)
        at += len(part)
    connection.execute("UPDATE log_head SET size = ?, edge = ?", (growth.size, b"".join(growth.edge)))
    return size


def read_head(connection: sqlite3.Connection) -> TreeHead:
    """The tree of all that is stored, as the last append left it."""
    size, growth = _growth(connection)
    return TreeHead(size, growth.root())


def read_published(connection: sqlite3.Connection) -> TreeHead:
    """The tree head that was last allowed to be signed."""
    size, root = connection.execute("SELECT size, root FROM log_published").fetchone()
    return TreeHead(size, root)


def swap_published(connection: sqlite3.Connection, expected: Collection[TreeHead], new: TreeHead) -> bool:
    """Allow ``new`` to be signed if one of ``expected`` was the last; False if another process was quicker."""
    if read_published(connection) not in expected:
        return False
    connection.execute("UPDATE log_published SET size = ?, root = ?", (new.size, new.root))
    return True


def read_tile_rows(connection: sqlite3.Connection, tile: Tile) -> bytes:
    """The joined hashes of a tile; raises ``Corrupt`` if some are missing."""
    if tile.level == 0:
        return read_leaves(connection, tile.index, tile.width)[0]
    start = tile.index * TILE_WIDTH
    rows = connection.execute(
        "SELECT hash FROM log_node WHERE level = ? AND n >= ? AND n < ? ORDER BY n",
        (tile.level, start, start + tile.width),
    ).fetchall()
    if len(rows) != tile.width:
        raise Corrupt(f"the database lacks hashes of {tile.path}", fix=RESTORE)
    return b"".join(hash_ for (hash_,) in rows)


def read_leaves(connection: sqlite3.Connection, index: int, width: int) -> tuple[bytes, bytes | None]:
    """The joined leaf hashes and the entry bundle of level 0 tile ``index``, its first ``width`` entries.

    The bundle is None if it was pruned. ``width`` must be 256 or where some append ended. Raises ``Corrupt`` if
    entries are missing.
    """
    if bundle := _bundle(connection, index):
        hashes, data = bundle
        if data is not None and width < TILE_WIDTH:
            data = encode_bundle(_decoded(data, index)[:width])
        return hashes[: width * HASH_SIZE], data
    start = index * TILE_WIDTH
    joined = []
    parts = []
    expected = start
    query = "SELECT first, hashes, data, packed FROM log_segment WHERE first >= ? AND first < ? ORDER BY first"
    for first, some_hashes, some_data, packed in connection.execute(query, (start, start + width)):
        if first != expected:
            break
        joined.append(some_hashes)
        parts.append(unpack(some_data, first) if packed else some_data)
        expected += len(some_hashes) // HASH_SIZE
    if expected != start + width:
        raise Corrupt(f"the database lacks entries from {expected} to {start + width - 1}", fix=RESTORE)
    return b"".join(joined), b"".join(parts)


def read_entries(connection: sqlite3.Connection, start: int, end: int) -> list[bytes]:
    """Entries ``start`` to ``end`` (exclusive); raises ``Corrupt`` for one that is not what was hashed.

    Raises ``Pruned`` if one of them was removed by the stated retention.
    """
    query = """
        SELECT first, hashes, data, packed FROM log_segment
        WHERE first >= (SELECT coalesce(max(first), ?1) FROM log_segment WHERE first <= ?1) AND first < ?2
        ORDER BY first
    """
    found: list[bytes] = []
    for index in range(start // TILE_WIDTH, -(-end // TILE_WIDTH)):
        first, stop = index * TILE_WIDTH, min(end, (index + 1) * TILE_WIDTH)
        at = max(start, first)
        if bundle := _bundle(connection, index):
            hashes, data = bundle
            if data is None:
                raise Pruned(f"entry {at} was removed by the log's retention; its hash is kept")
            found += _checked(first, hashes, _decoded(data, index), at, stop)
            continue
        for segment, hashes, data, packed in connection.execute(query, (at, stop)).fetchall():
            if segment >= first:  # one before it ends before it: rows do not cross tiles
                found += _checked(segment, hashes, decode_bundle(unpack(data, segment) if packed else data), at, stop)
        if start + len(found) < stop:
            _check_end(connection, start + len(found))
            break
    return found


def unpacked_bundles(connection: sqlite3.Connection, size: int, limit: int) -> list[tuple[int, bytes, bytes]]:
    """(index, hashes, entries) of at most ``limit`` full bundles below ``size`` with rows that are not compressed."""
    query = "SELECT DISTINCT first / ? FROM log_segment WHERE packed = 0 AND first < ? ORDER BY first LIMIT ?"
    rows = connection.execute(query, (TILE_WIDTH, size // TILE_WIDTH * TILE_WIDTH, limit)).fetchall()
    found = []
    for (index,) in rows:
        hashes, data = read_leaves(connection, index, TILE_WIDTH)
        if data is not None:
            found.append((index, hashes, data))
    return found


def store_packed(connection: sqlite3.Connection, index: int, hashes: bytes, packed: bytes) -> None:
    """Put a full bundle, compressed by ``pack``, in the place of its rows."""
    start = index * TILE_WIDTH
    connection.execute("DELETE FROM log_segment WHERE first >= ? AND first < ?", (start, start + TILE_WIDTH))
    connection.execute("INSERT OR REPLACE INTO log_bundle VALUES (?, ?, ?)", (index, hashes, packed))


def pack(data: bytes) -> bytes:
    """Entries as they rest in the database."""
    return zstandard.ZstdCompressor(level=PACK_LEVEL).compress(data)


def unpack(data: bytes, first: int) -> bytes:
    """What was packed from entry ``first`` on; raises ``Corrupt`` if it was changed."""
    try:
        if zstandard.get_frame_parameters(data).content_size > MAX_BUNDLE_BYTES:
            raise zstandard.ZstdError("it would be too long")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_BUNDLE_BYTES)
    except zstandard.ZstdError as error:
        raise Corrupt(
            f"entries from {first} on in the database were changed: they cannot be unpacked ({error})", fix=RESTORE
        ) from None


def forget_bundle(connection: sqlite3.Connection, index: int) -> None:
    """Remove what a full bundle says and keep its hashes."""
    hashes, data = read_leaves(connection, index, TILE_WIDTH)
    if data is None:
        return
    start = index * TILE_WIDTH
    connection.execute("DELETE FROM log_segment WHERE first >= ? AND first < ?", (start, start + TILE_WIDTH))
    connection.execute("INSERT OR REPLACE INTO log_bundle VALUES (?, ?, NULL)", (index, hashes))


def prunable(connection: sqlite3.Connection, moment: str, size: int) -> int:
    """The index before which whole bundles of the first ``size`` entries are older than ``moment``, not pruned yet.

    ``moment`` as in entries. Times rise with the index; where a clock was set back, fewer are found.
    """
    low = pruned_before(connection) // TILE_WIDTH
    high = size // TILE_WIDTH
    while low < high:
        middle = (low + high) // 2
        _, data = read_leaves(connection, middle, TILE_WIDTH)
        times = [fields.time if (fields := read_fields(entry)) else "" for entry in decode_bundle(data or b"")]
        if max(times, default="") < moment:
            low = middle + 1
        else:
            high = middle
    return low * TILE_WIDTH


def pruned_before(connection: sqlite3.Connection) -> int:
    """The index of the first entry that is still kept."""
    query = "SELECT coalesce(max(n) + 1, 0) FROM log_bundle WHERE data IS NULL"
    (bundles,) = connection.execute(query).fetchone()
    return int(bundles) * TILE_WIDTH


def check_entry(index: int, entry: bytes, hash_: bytes) -> None:
    """Raise ``Corrupt`` unless the entry has the hash that was stored with it."""
    if leaf_hash(entry) != hash_:
        raise Corrupt(f"entry {index} in the database was changed: it does not have its hash", fix=RESTORE)


def root_at(connection: sqlite3.Connection, size: int) -> bytes:
    """The root of the first ``size`` entries, out of stored hashes; ``size`` must be where some append ended."""
    edge: list[bytes] = []
    for level, count in enumerate(level_sizes(size)):
        tree = CompactRange()
        if width := count % TILE_WIDTH:
            tree.extend(split_hashes(read_tile_rows(connection, Tile(level, count // TILE_WIDTH, width))))
        edge = tree.edge + edge
    return fold_edge(edge)


def _bundle(connection: sqlite3.Connection, index: int) -> tuple[bytes, bytes | None] | None:
    """The hashes and the entries of a tile that is kept as a whole; None if it is not."""
    row = connection.execute("SELECT hashes, data FROM log_bundle WHERE n = ?", (index,)).fetchone()
    if row is None:
        return None
    hashes, data = row
    if len(hashes) != FULL_TILE_BYTES:
        raise Corrupt(f"{Tile(0, index).path} in the database does not have {TILE_WIDTH} hashes", fix=RESTORE)
    return hashes, None if data is None else unpack(data, index * TILE_WIDTH)


def _check_end(connection: sqlite3.Connection, index: int) -> None:
    """Raise ``Corrupt`` unless the log ends before entry ``index``."""
    if index < connection.execute("SELECT size FROM log_head").fetchone()[0]:
        raise Corrupt(f"the database lacks entry {index}", fix=RESTORE)


def _decoded(data: bytes, index: int) -> list[bytes]:
    try:
        entries = decode_bundle(data)
    except Corrupt:
        entries = []
    if len(entries) != TILE_WIDTH:
        raise Corrupt(f"entries of {Tile(0, index).path} in the database were changed", fix=RESTORE)
    return entries


def _checked(first: int, hashes: bytes, entries: Sequence[bytes], start: int, end: int) -> list[bytes]:
    """Those of the entries from index ``first`` on that lie from ``start`` to ``end``, each with its hash."""
    found = []
    for index in range(max(start, first), min(end, first + len(entries))):
        entry = entries[index - first]
        check_entry(index, entry, hashes[(index - first) * HASH_SIZE : (index - first + 1) * HASH_SIZE])
        found.append(entry)
    return found


def _growth(connection: sqlite3.Connection) -> tuple[int, Growth]:
    size, edge = connection.execute("SELECT size, edge FROM log_head").fetchone()
    try:
        return size, Growth(size, split_hashes(edge))
    except ValueError as error:
        raise Corrupt(f"the log's head in the database makes no sense: {error}", fix=RESTORE) from None
