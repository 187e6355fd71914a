"""What must hold before a log goes on: database, tiles on disk and last checkpoint tell one story.

The tree is recomputed from stored hashes, its last tiles from the entries themselves; cost does not
grow with the log but for one hash per 65,536 entries. ``eastwest log verify`` goes through everything.
"""

from __future__ import annotations

import sqlite3
from itertools import chain

from eastwest.errors import Corrupt, Error, NotFound
from eastwest.log.checkpoint import Checkpoint, open_checkpoint
from eastwest.log.note import NoteKey
from eastwest.log.tiles import CHECKPOINT_PATH, TILE_WIDTH, Tile, bundle_path, decode_bundle, level_sizes, tiles_of
from eastwest.log.tree import root_of, split_hashes
from eastwest.store.log_files import LogDirectory
from eastwest.store.log_rows import (
    RESTORE,
    TreeHead,
    check_entry,
    read_head,
    read_leaves,
    read_published,
    read_tile_rows,
    root_at,
)

# How many level 0 tiles before the right edge are recomputed from their entries: 4,096 entries, some 10 ms.
TAIL_TILES = 16


def check_database(connection: sqlite3.Connection) -> tuple[TreeHead, TreeHead]:
    """Recompute the stored tree; return (head, published) or raise ``Corrupt`` naming what differs."""
    head = read_head(connection)
    published = read_published(connection)
    _check_tail(connection, head.size)
    _check_nodes(connection, head.size)
    if root_at(connection, head.size) != head.root:
        raise Corrupt(f"the {head.size} entries in the database do not give the root stored with them", fix=RESTORE)
    if published.size > head.size:
        raise Corrupt(
            f"a checkpoint of {published.size} entries was signed, the database holds {head.size}", fix=RESTORE
        )
    if root_at(connection, published.size) != published.root:
        raise Corrupt(
            f"the first {published.size} entries in the database do not give the root that was signed", fix=RESTORE
        )
    return head, published


def check_checkpoint(
    connection: sqlite3.Connection, files: LogDirectory, key: NoteKey, published: TreeHead
) -> tuple[Checkpoint, str] | None:
    """The last checkpoint and its note, checked against the database; None if there is none yet."""
    try:
        raw = files.read(CHECKPOINT_PATH)
    except NotFound:
        return None
    where = str(files.root / CHECKPOINT_PATH)
    try:
        checkpoint = open_checkpoint(raw, key)
    except Error as error:
        raise Corrupt(
            f"the last checkpoint was changed or is of another key: {error.message}",
            where=where,
            fix="put back the original; if only this file was damaged, remove it and it is written again",
        ) from error
    if checkpoint.size > published.size:
        raise Corrupt(
            f"the checkpoint covers {checkpoint.size} entries, the database knows of {published.size} published: "
            "the database was rolled back or is of another log",
            where=where,
            fix=RESTORE,
        )
    if root_at(connection, checkpoint.size) != checkpoint.root:
        raise Corrupt(
            f"the first {checkpoint.size} entries in the database do not give the checkpoint's root",
            where=where,
            fix=RESTORE,
        )
    return checkpoint, raw.decode()


def check_tiles(connection: sqlite3.Connection, files: LogDirectory, size: int) -> list[str]:
    """Compare the tiles at the right edge of a tree of ``size`` with the database.

    Raises ``Corrupt`` for one that differs; writes those that are missing and returns their paths.
    """
    repaired = []
    for level, count in enumerate(level_sizes(size)):
        tail = TAIL_TILES if level == 0 else 1
        for tile in tiles_of(count, level, max(0, count // TILE_WIDTH - tail) * TILE_WIDTH):
            if level:
                contents = {tile.path: read_tile_rows(connection, tile)}
            else:
                hashes, data = read_leaves(connection, tile.index, tile.width)
                contents = {tile.path: hashes, bundle_path(tile.index, tile.width): data}
            repaired += [path for path, content in contents.items() if files.write_tile(path, content)]
            if tile.is_full:
                files.drop_partials(tile)
    files.sync()
    return repaired


def check_nothing_beyond(files: LogDirectory, size: int) -> None:
    """Raise ``Corrupt`` if tiles on disk hold more than ``size`` entries: then the database was rolled back."""
    index, width = divmod(size, TILE_WIDTH)
    places = chain.from_iterable((Tile(0, i).path, bundle_path(i)) for i in (index, index + 1))
    for place, limit in zip(places, (width, width, 0, 0), strict=True):
        if any(found > limit for found in files.widths(place)):
            raise Corrupt(
                f"{place} holds more entries than the {size} in the database: the database was rolled back",
                where=str(files.root),
                fix=RESTORE,
            )


def _check_tail(connection: sqlite3.Connection, size: int) -> None:
    last = connection.execute("SELECT max(first) FROM log_segment").fetchone()[0]
    if last is not None and last >= size:
        raise Corrupt(f"the database holds entries beyond the {size} that its head counts", fix=RESTORE)
    for tile in tiles_of(size, 0, max(0, size // TILE_WIDTH - TAIL_TILES) * TILE_WIDTH):
        joined, data = read_leaves(connection, tile.index, tile.width)
        hashes = split_hashes(joined)
        try:
            entries = decode_bundle(data)
        except Corrupt:
            entries = []
        if len(entries) != len(hashes):
            raise Corrupt(f"entries of {tile.path} in the database were changed", fix=RESTORE)
        for place, entry in enumerate(entries):
            check_entry(tile.index * TILE_WIDTH + place, entry, hashes[place])
        if tile.is_full:
            _check_parent(connection, tile, hashes)


def _check_nodes(connection: sqlite3.Connection, size: int) -> None:
    """Each level has all its hashes, and from level 2 up each is the root of the tile below."""
    for level, count in enumerate(level_sizes(size)):
        if level == 0:
            continue
        query = "SELECT count(*) FROM log_node WHERE level = ?"
        if connection.execute(query, (level,)).fetchone()[0] != count:
            raise Corrupt(f"the database does not have the {count} hashes of level {level}", fix=RESTORE)
        for tile in tiles_of(count, level):
            if tile.is_full:
                _check_parent(connection, tile, split_hashes(read_tile_rows(connection, tile)))


def _check_parent(connection: sqlite3.Connection, tile: Tile, hashes: list[bytes]) -> None:
    query = "SELECT hash FROM log_node WHERE level = ? AND n = ?"
    row = connection.execute(query, (tile.level + 1, tile.index)).fetchone()
    if row is None or row[0] != root_of(hashes):
        raise Corrupt(f"the hashes of {tile.path} in the database do not give the root stored for it", fix=RESTORE)
