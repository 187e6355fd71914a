"""What must hold before a log goes on: database, tiles on disk and last checkpoint tell one story.

The tree is recomputed from stored hashes, its last tiles from the entries themselves; cost does not
grow with the log but for one hash per 65,536 entries. ``eastwest log verify`` goes through everything.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from eastwest.errors import Corrupt, Error, NotFound, Unavailable
from eastwest.log.checkpoint import Checkpoint, open_any_checkpoint
from eastwest.log.note import NoteKey
from eastwest.log.proven import ProvenReader
from eastwest.log.tiles import CHECKPOINT_PATH, TILE_WIDTH, Tile, bundle_path, decode_bundle, level_sizes, tiles_of
from eastwest.log.tree import leaf_hash, root_of, split_hashes
from eastwest.log.verify import MAX_PROBLEMS, Problem
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
    try:
        return _check_database(connection)
    except sqlite3.OperationalError as error:
        if "no such" not in str(error):  # table or column: what our migrations made is not there any more
            raise
        raise Corrupt(f"the database was changed: {error}", fix=RESTORE) from error


def _check_database(connection: sqlite3.Connection) -> tuple[TreeHead, TreeHead]:
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
    connection: sqlite3.Connection, files: LogDirectory, keys: Sequence[NoteKey], published: TreeHead
) -> tuple[Checkpoint, str] | None:
    """The last checkpoint and its note, checked against the database; None if there is none yet."""
    try:
        raw = files.read(CHECKPOINT_PATH)
    except NotFound:
        return None
    where = str(files.root / CHECKPOINT_PATH)
    try:
        checkpoint = open_any_checkpoint(raw, keys)
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
                contents = {tile.path: hashes}
                if data is not None:
                    contents[bundle_path(tile.index, tile.width)] = data
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


def check_mark(connection: sqlite3.Connection, mark: Path, keys: Sequence[NoteKey], head: TreeHead) -> None:
    """Raise ``Corrupt`` unless the log still contains what the checkpoint kept in ``mark``, elsewhere, covers.

    That notices what nothing else here can: an old copy of database and files together.
    """
    try:
        raw = mark.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"the log's mark {mark} cannot be read: {error.strerror}") from error
    try:
        kept = open_any_checkpoint(raw, keys)
    except Error as error:
        raise Corrupt(
            f"the log's mark is no checkpoint of this log: {error.message}",
            where=str(mark),
            fix="find out who changed it; remove it only if you are sure of the database",
        ) from error
    if kept.size > head.size:
        raise Corrupt(
            f"a checkpoint of {kept.size} entries was signed, database and files hold {head.size}: "
            "an old copy of both was restored",
            where=str(mark),
            fix=RESTORE,
        )
    if root_at(connection, kept.size) != kept.root:
        raise Corrupt(
            f"the first {kept.size} entries in the database do not give the root in the log's mark",
            where=str(mark),
            fix=RESTORE,
        )


def verify_database(
    connection: sqlite3.Connection, reader: ProvenReader, where: str, *, pruned: int = 0
) -> list[Problem]:
    """Compare every entry and hash in the database with the log's proven tiles; what differs, by entry.

    ``where`` names the database in the problems. Entries below ``pruned`` may be gone, as the log says. Tiles that are
    not proven themselves are passed over: those problems are the public files' own.
    """
    problems: list[Problem] = []
    for tile in tiles_of(reader.checkpoint.size, 0):
        if len(problems) >= MAX_PROBLEMS:
            break
        first = tile.index * TILE_WIDTH
        try:
            joined, data = read_leaves(connection, tile.index, tile.width)
            entries = None if data is None else decode_bundle(data)
        except Corrupt as error:
            problems.append(Problem(where, error.message))
            continue
        stored = split_hashes(joined)
        if entries is None and first + tile.width > pruned:
            problems.append(Problem(where, f"lacks entries {first} to {first + tile.width - 1}, which were not pruned"))
        try:
            right = reader.tile(0, tile.index)[: tile.width]
        except (Corrupt, NotFound):
            right = stored
        if entries is not None and len(entries) != tile.width:
            problems.append(Problem(where, f"has {len(entries)} entries from {first} on, not {tile.width}"))
            continue
        for place, hash_ in enumerate(right):
            index = first + place
            if entries is not None and leaf_hash(entries[place]) != hash_:
                problems.append(Problem(where, f"entry {index} is not the one in the log", index))
            elif stored[place] != hash_:
                problems.append(Problem(where, f"the hash of entry {index} is not the one in the log", index))
    if not problems:
        # The entries are right: so must be what is computed from them, by which the log goes on.
        try:
            check_database(connection)
        except Corrupt as error:
            problems.append(Problem(where, error.message))
    return problems


def _check_tail(connection: sqlite3.Connection, size: int) -> None:
    last = max(
        connection.execute("SELECT coalesce(max(first), -1) FROM log_segment").fetchone()[0],
        connection.execute(f"SELECT coalesce(max(n) * {TILE_WIDTH}, -1) FROM log_bundle").fetchone()[0],  # noqa: S608 - a constant
    )
    if last >= size:
        raise Corrupt(f"the database holds entries beyond the {size} that its head counts", fix=RESTORE)
    for tile in tiles_of(size, 0, max(0, size // TILE_WIDTH - TAIL_TILES) * TILE_WIDTH):
        joined, data = read_leaves(connection, tile.index, tile.width)
        hashes = split_hashes(joined)
        if tile.is_full:
            _check_parent(connection, tile, hashes)
        if data is None:
            continue
        try:
            entries = decode_bundle(data)
        except Corrupt:
            entries = []
        if len(entries) != len(hashes):
            raise Corrupt(f"entries of {tile.path} in the database were changed", fix=RESTORE)
        for place, entry in enumerate(entries):
            check_entry(tile.index * TILE_WIDTH + place, entry, hashes[place])


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
