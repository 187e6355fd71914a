"""The layout of C2SP tlog-tiles: which files a tree of some size has, and what is in them.

A tile holds up to 256 hashes. At level 0 they are leaf hashes; at level L+1 each is the root of a full
tile of level L. Beside the level 0 tiles lie entry bundles with the entries themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from eastwest.errors import Corrupt, NotFound
from eastwest.log.ports import LogFiles
from eastwest.log.tree import HASH_SIZE, CompactRange, leaf_hash, root_of, split_hashes

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
FULL_TILE_BYTES = TILE_WIDTH * HASH_SIZE
CHECKPOINT_PATH = "checkpoint"
WITNESSED_PATH = "checkpoint.witnessed"
"""The last checkpoint that a quorum of witnesses has signed: a file of ours beside those of the standard."""


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """A tile's place: its level, its index in the level, and how many hashes it holds (1 to 256)."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """``tile/<L>/<N>[.p/<W>]``."""
        return f"tile/{self.level}/{_place(self.index, self.width)}"

    @property
    def is_full(self) -> bool:
        """Whether it will never change."""
        return self.width == TILE_WIDTH

    @property
    def full(self) -> Tile:
        """The tile this one becomes."""
        return Tile(self.level, self.index)


def bundle_path(index: int, width: int = TILE_WIDTH) -> str:
    """``tile/entries/<N>[.p/<W>]``."""
    return f"tile/entries/{_place(index, width)}"


def level_sizes(size: int) -> list[int]:
    """How many hashes each level has in a tree of ``size``, from level 0; empty for the empty tree."""
    sizes = []
    while size:
        sizes.append(size)
        size >>= TILE_HEIGHT
    return sizes


def tiles_of(count: int, level: int, start: int = 0) -> Iterator[Tile]:
    """The tiles of a level with ``count`` hashes, from the tile that holds hash ``start``."""
    for index in range(start // TILE_WIDTH, count // TILE_WIDTH):
        yield Tile(level, index)
    if count % TILE_WIDTH and count > start:
        yield Tile(level, count // TILE_WIDTH, count % TILE_WIDTH)


def new_tiles(old: int, new: int) -> Iterator[Tile]:
    """The tiles that a tree of size ``new`` has and one of size ``old`` has not, lowest level first."""
    old_sizes = level_sizes(old)
    for level, count in enumerate(level_sizes(new)):
        before = old_sizes[level] if level < len(old_sizes) else 0
        if count > before:
            yield from tiles_of(count, level, before)


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """Entries with their lengths before them (big-endian uint16)."""
    parts = []
    for entry in entries:
        parts.append(len(entry).to_bytes(2))
        parts.append(entry)
    return b"".join(parts)


def decode_bundle(raw: bytes) -> list[bytes]:
    """The entries of a bundle; raises ``Corrupt`` if the lengths do not add up."""
    entries: list[bytes] = []
    at = 0
    end = len(raw)
    while at < end:
        length = int.from_bytes(raw[at : at + 2])
        at += 2 + length
        if at > end:
            raise Corrupt(f"entry {len(entries)} of the bundle is cut short")
        entries.append(raw[at - length : at])
    return entries


def bundle_places(raw: bytes) -> list[tuple[int, int]]:
    """Where each entry of a bundle begins and ends; the last may end beyond a bundle that was cut."""
    places = []
    at, end = 0, len(raw)
    try:
        while at < end:
            start = at + 2
            at = start + (raw[at] << 8 | raw[start - 1])
            places.append((start, at))
    except IndexError:  # one byte is left of a length
        places.append((start, start))
    return places


class Growth:
    """The right edge of a growing tree, level by level of tiles; tells which higher-level hashes come to be.

    ``edge`` is the same list a ``CompactRange`` of the whole tree has, so it can be stored and given back.
    """

    __slots__ = ("_levels", "size")

    def __init__(self, size: int = 0, edge: Sequence[bytes] = ()) -> None:
        self.size = size
        self._levels: list[CompactRange] = []
        if len(edge) != size.bit_count():
            raise ValueError(f"the edge of a tree of size {size} has {size.bit_count()} hashes, not {len(edge)}")
        end = len(edge)
        for count in level_sizes(size):
            width = count % TILE_WIDTH
            start = end - width.bit_count()
            self._levels.append(CompactRange(width, edge[start:end]))
            end = start

    def extend(self, leaves: Iterable[bytes]) -> list[tuple[int, int, bytes]]:
        """Add leaf hashes; return ``(level, index, hash)`` for each tile that filled up, as the level above sees it."""
        filled: list[tuple[int, int, bytes]] = []
        if not self._levels:
            self._levels.append(CompactRange())
        lowest = self._levels[0]
        for leaf in leaves:
            lowest.append(leaf)
            self.size += 1
            if lowest.size == TILE_WIDTH:
                self._carry(filled)
        return filled

    @property
    def edge(self) -> list[bytes]:
        """The roots of the tree's perfect subtrees, largest first."""
        return [hash_ for level in reversed(self._levels) for hash_ in level.edge]

    def root(self) -> bytes:
        """The tree's root."""
        return CompactRange(self.size, self.edge).root()

    def _carry(self, filled: list[tuple[int, int, bytes]]) -> None:
        level = 0
        while self._levels[level].size == TILE_WIDTH:
            root = self._levels[level].root()
            self._levels[level].size = 0
            self._levels[level].edge.clear()
            level += 1
            if level == len(self._levels):
                self._levels.append(CompactRange())
            self._levels[level].append(root)
            filled.append((level, (self.size >> (TILE_HEIGHT * level)) - 1, root))


class TileReader:
    """Hashes and entries of a tree of ``size``, out of its tiles; reads each file once.

    A partial tile that is gone is looked for in the full one that replaced it. Nothing read here is
    proven yet: proofs made from it are checked against a checkpoint.
    """

    def __init__(self, files: LogFiles, size: int) -> None:
        self.size = size
        self._files = files
        self._levels = level_sizes(size)
        self._tiles: dict[tuple[int, int], list[bytes]] = {}
        self._bundle: tuple[int, list[bytes]] = (-1, [])

    def node(self, height: int, index: int) -> bytes:
        """The root of the perfect subtree over leaves ``index * 2^height`` to ``(index + 1) * 2^height``."""
        level, rest = divmod(height, TILE_HEIGHT)
        start = index << rest
        hashes = self.tile(level, start // TILE_WIDTH)
        start %= TILE_WIDTH
        chosen = hashes[start : start + (1 << rest)]
        return chosen[0] if rest == 0 else root_of(chosen)

    def tile(self, level: int, index: int) -> list[bytes]:
        """The hashes of a tile, as many as the tree of this size has in it."""
        cached = self._tiles.get((level, index))
        if cached is None:
            width = min(TILE_WIDTH, self._levels[level] - index * TILE_WIDTH)
            cached = self._tiles[level, index] = split_hashes(read_tile(self._files, Tile(level, index, width)))
        return cached

    def entry(self, index: int) -> bytes:
        """One entry; raises ``NotFound`` beyond the end, ``Corrupt`` if the tile does not have its hash."""
        if not 0 <= index < self.size:
            raise NotFound(f"the checkpoint covers {self.size} entries; there is no entry {index} in it")
        bundle, place = divmod(index, TILE_WIDTH)
        if self._bundle[0] != bundle:
            width = min(TILE_WIDTH, self.size - bundle * TILE_WIDTH)
            self._bundle = (bundle, read_bundle(self._files, bundle, width))
        entry = self._bundle[1][place]
        if leaf_hash(entry) != self.tile(0, bundle)[place]:
            raise Corrupt(f"entry {index} differs from its hash in {Tile(0, bundle).path}")
        return entry


def read_tile(files: LogFiles, tile: Tile) -> bytes:
    """A tile's hashes, joined; raises ``NotFound`` or, for a wrong length, ``Corrupt``."""
    path = tile.path
    try:
        raw = files.read(path)
        wanted = tile.width * HASH_SIZE
    except NotFound:
        if tile.is_full:
            raise
        path = tile.full.path
        raw = files.read(path)
        wanted = FULL_TILE_BYTES
    if len(raw) != wanted:
        raise Corrupt(f"the tile has {len(raw)} bytes, not {wanted}", where=path)
    return raw[: tile.width * HASH_SIZE]


def read_bundle(files: LogFiles, index: int, width: int) -> list[bytes]:
    """A bundle's first ``width`` entries; raises ``NotFound`` or, if it holds another number, ``Corrupt``."""
    raw, path, wanted = _read_bundle(files, index, width)
    try:
        entries = decode_bundle(raw)
    except Corrupt as error:
        raise Corrupt(error.message, where=path) from None
    if len(entries) != wanted:
        raise Corrupt(f"the bundle has {len(entries)} entries, not {wanted}", where=path)
    return entries[:width]


def read_raw_bundle(files: LogFiles, index: int, width: int) -> bytes:
    """A bundle with ``width`` entries or all 256, as it is in the file; raises ``NotFound``."""
    return _read_bundle(files, index, width)[0]


def _read_bundle(files: LogFiles, index: int, width: int) -> tuple[bytes, str, int]:
    """The file, its path and how many entries it should have."""
    path = bundle_path(index, width)
    try:
        return files.read(path), path, width
    except NotFound:
        if width == TILE_WIDTH:
            raise
    path = bundle_path(index)
    return files.read(path), path, TILE_WIDTH


def _place(index: int, width: int) -> str:
    groups = [f"{index % 1000:03}"]
    while index := index // 1000:
        groups.append(f"x{index % 1000:03}")
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return "/".join(reversed(groups)) + partial
