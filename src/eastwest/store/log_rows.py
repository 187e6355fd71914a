"""The log's rows: what is stored per append, and how tiles, roots and entries are read back from it."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from eastwest.errors import Corrupt
from eastwest.log.tiles import TILE_WIDTH, Growth, Tile, decode_bundle, encode_bundle, level_sizes
from eastwest.log.tree import CompactRange, fold_edge, leaf_hash, split_hashes

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
        connection.execute(
            "INSERT INTO log_segment (first, hashes, data) VALUES (?, ?, ?)",
            (growth.size, b"".join(hashes), encode_bundle(part)),
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


def read_leaves(connection: sqlite3.Connection, index: int, width: int) -> tuple[bytes, bytes]:
    """The joined leaf hashes and the entry bundle of level 0 tile ``index``, its first ``width`` entries.

    ``width`` must be where some append ended. Raises ``Corrupt`` if entries are missing.
    """
    start = index * TILE_WIDTH
    hashes = []
    data = []
    expected = start
    query = "SELECT first, hashes, data FROM log_segment WHERE first >= ? AND first < ? ORDER BY first"
    for first, some_hashes, some_data in connection.execute(query, (start, start + width)):
        if first != expected:
            break
        hashes.append(some_hashes)
        data.append(some_data)
        expected += len(some_hashes) // 32
    if expected != start + width:
        raise Corrupt(f"the database lacks entries from {expected} to {start + width - 1}", fix=RESTORE)
    return b"".join(hashes), b"".join(data)


def read_entries(connection: sqlite3.Connection, start: int, end: int) -> list[bytes]:
    """Entries ``start`` to ``end`` (exclusive); raises ``Corrupt`` for one that is not what was hashed."""
    query = """
        SELECT first, hashes, data FROM log_segment
        WHERE first >= (SELECT max(first) FROM log_segment WHERE first <= ?) AND first < ? ORDER BY first
    """
    found: list[bytes] = []
    for first, hashes, data in connection.execute(query, (start, end)):
        entries = decode_bundle(data)
        for index in range(max(start, first), min(end, first + len(entries))):
            entry = entries[index - first]
            check_entry(index, entry, hashes[(index - first) * 32 : (index - first + 1) * 32])
            found.append(entry)
    return found


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


def _growth(connection: sqlite3.Connection) -> tuple[int, Growth]:
    size, edge = connection.execute("SELECT size, edge FROM log_head").fetchone()
    try:
        return size, Growth(size, split_hashes(edge))
    except ValueError as error:
        raise Corrupt(f"the log's head in the database makes no sense: {error}", fix=RESTORE) from None
