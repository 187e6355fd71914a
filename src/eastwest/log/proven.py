"""Reading a log so that nothing is given out that its checkpoint does not vouch for.

A tile is proven once, by the tile above it or, at the right edge, by the checkpoint's root; an entry by its
hash in a proven tile. So many entries cost little more than their hashes, and each is as sure as by a proof of
its own.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections import OrderedDict
from hashlib import sha256

from eastwest.errors import Corrupt, NotFound
from eastwest.log.checkpoint import Checkpoint
from eastwest.log.ports import LogFiles
from eastwest.log.proof import HEADER, LogProof, inclusion_proof
from eastwest.log.tiles import (
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    bundle_path,
    bundle_places,
    level_sizes,
    read_raw_bundle,
    read_tile,
)
from eastwest.log.tree import CompactRange, fold_edge, leaf_hash, split_hashes

FIX = "eastwest log verify names the files at fault"
# 9 MB at most.
_KEPT_TILES = 256
_KEPT_INNER = 64
_KEPT_BUNDLES = 2
_KEPT_BLOCKS = 64
_BLOCK_HEIGHT = 5
_BLOCK_WIDTH = 1 << _BLOCK_HEIGHT
"""Entries whose receipts are made of the same lines: a block lies within a tile."""


class ProvenReader:
    """Entries and hashes of the tree that ``checkpoint`` signs; the checkpoint's signature was checked elsewhere.

    Raises ``Corrupt`` naming the file for whatever does not lead to the checkpoint, ``NotFound`` for a missing one.
    """

    def __init__(self, files: LogFiles, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._files = files
        self._sizes = level_sizes(checkpoint.size)
        self._edges: dict[int, list[bytes]] | None = None
        self._tiles: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        self._inner: OrderedDict[tuple[int, int], list[list[bytes]]] = OrderedDict()
        self._lines: OrderedDict[int, tuple[list[list[str]], str]] = OrderedDict()
        self._bundles: OrderedDict[int, tuple[bytes, list[tuple[int, int]]]] = OrderedDict()

    def entry(self, index: int) -> bytes:
        """One entry."""
        leaf = self.leaf(index)
        bundle, place = divmod(index, TILE_WIDTH)
        known = self._bundles.get(bundle)
        if known is None:
            raw = read_raw_bundle(self._files, bundle, self._width(0, bundle))
            known = self._bundles[bundle] = (raw, bundle_places(raw))
            while len(self._bundles) > _KEPT_BUNDLES:
                self._bundles.popitem(last=False)
        raw, places = known
        entry = raw[slice(*places[place])] if place < len(places) else b""
        if leaf_hash(entry) != leaf:
            width = self._width(0, bundle)
            raise Corrupt(
                f"entry {index} was changed: it differs from its hash in {Tile(0, bundle, width).path}",
                where=bundle_path(bundle, width),
                fix=FIX,
            )
        return entry

    def leaf(self, index: int) -> bytes:
        """The hash of one entry."""
        if not 0 <= index < self.checkpoint.size:
            raise self._not_covered(index)
        return self.tile(0, index // TILE_WIDTH)[index % TILE_WIDTH]

    def receipt(self, index: int, note: str) -> str:
        """The proof (C2SP tlog-proof) that the checkpoint covers an entry; ``note`` is the checkpoint as signed."""
        if not 0 <= index < self.checkpoint.size:
            raise self._not_covered(index)
        block, place = divmod(index, _BLOCK_WIDTH)
        if (block + 1) * _BLOCK_WIDTH > self.checkpoint.size:
            path = inclusion_proof(index, self.checkpoint.size, self.node)
            return LogProof(index, tuple(path), note).text
        # Within a full block the path is the siblings there, and then the block's own path, which its entries share.
        (leaves, pairs, fours, eights, halves), above = self._lines.get(block) or self._block_lines(block)
        return (
            f"{HEADER}\nindex {index}\n{leaves[place ^ 1]}{pairs[place >> 1 ^ 1]}{fours[place >> 2 ^ 1]}"
            f"{eights[place >> 3 ^ 1]}{halves[place >> 4 ^ 1]}{above}\n{note}"
        )

    def _block_lines(self, block: int) -> tuple[list[list[str]], str]:
        """The lines of receipts for the entries of a full block: siblings by height and place, and the rest."""
        start = block * _BLOCK_WIDTH
        trees = self._subtrees(0, start // TILE_WIDTH)
        first = start % TILE_WIDTH
        inner = [
            [b2a_base64(hash_).decode() for hash_ in trees[height][first >> height : first + _BLOCK_WIDTH >> height]]
            for height in range(_BLOCK_HEIGHT)
        ]
        path = inclusion_proof(start, self.checkpoint.size, self.node)
        known = self._lines[block] = (inner, "".join(b2a_base64(hash_).decode() for hash_ in path[_BLOCK_HEIGHT:]))
        while len(self._lines) > _KEPT_BLOCKS:
            self._lines.popitem(last=False)
        return known

    def node(self, height: int, index: int) -> bytes:
        """The root of the perfect subtree over leaves ``index * 2^height`` to ``(index + 1) * 2^height``."""
        level, rest = divmod(height, TILE_HEIGHT)
        start = index << rest
        if rest == 0:
            return self.tile(level, start // TILE_WIDTH)[start % TILE_WIDTH]
        return self._subtrees(level, start // TILE_WIDTH)[rest][start % TILE_WIDTH >> rest]

    def tile(self, level: int, index: int) -> list[bytes]:
        """The hashes of a tile, as many as the tree has in it."""
        known = self._tiles.get((level, index))
        if known is not None:
            self._tiles.move_to_end((level, index))
            return known
        if self._width(level, index) < TILE_WIDTH:
            return self._edge()[level]
        tile = Tile(level, index)
        hashes = split_hashes(read_tile(self._files, tile))
        trees = _subtrees_of(hashes)
        if trees[-1][0] != self.tile(level + 1, index // TILE_WIDTH)[index % TILE_WIDTH]:
            raise Corrupt("the tile was changed: it does not have its hash in the tile above", where=tile.path, fix=FIX)
        self._keep_inner((level, index), trees)
        self._tiles[level, index] = hashes
        while len(self._tiles) > _KEPT_TILES:
            self._tiles.popitem(last=False)
        return hashes

    def _width(self, level: int, index: int) -> int:
        return min(TILE_WIDTH, self._sizes[level] - index * TILE_WIDTH)

    def _not_covered(self, index: int) -> NotFound:
        return NotFound(f"the checkpoint covers {self.checkpoint.size} entries; there is no entry {index} in it")

    def _subtrees(self, level: int, index: int) -> list[list[bytes]]:
        """The roots within a tile, by height: receipts of neighbours share nearly all of them."""
        known = self._inner.get((level, index))
        if known is None:
            hashes = self.tile(level, index)
            # Proving the tile may just have made them.
            known = self._inner.get((level, index)) or self._keep_inner((level, index), _subtrees_of(hashes))
        return known

    def _keep_inner(self, place: tuple[int, int], trees: list[list[bytes]]) -> list[list[bytes]]:
        self._inner[place] = trees
        while len(self._inner) > _KEPT_INNER:
            self._inner.popitem(last=False)
        return trees

    def _edge(self) -> dict[int, list[bytes]]:
        """The partial tiles, by level; proven together by the root."""
        if self._edges is None:
            partial: dict[int, list[bytes]] = {}
            roots: list[bytes] = []
            for level, count in enumerate(self._sizes):
                if width := count % TILE_WIDTH:
                    partial[level] = split_hashes(read_tile(self._files, Tile(level, count // TILE_WIDTH, width)))
                    tree = CompactRange()
                    tree.extend(partial[level])
                    roots = tree.edge + roots
            if fold_edge(roots) != self.checkpoint.root:
                named = ", ".join(Tile(n, self._sizes[n] // TILE_WIDTH, len(tile)).path for n, tile in partial.items())
                raise Corrupt("the last tiles do not lead to the checkpoint's root", where=named, fix=FIX)
            self._edges = partial
        return self._edges


def _subtrees_of(hashes: list[bytes]) -> list[list[bytes]]:
    trees = [hashes]
    while len(below := trees[-1]) > 1:
        trees.append([sha256(b"\x01" + a + b).digest() for a, b in zip(below[::2], below[1::2], strict=False)])
    return trees
