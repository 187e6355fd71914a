"""Verification of a whole log from its public files: every entry, every hash, every tile, the signed root.

All hashes are computed anew from the entries and compared with what the tiles claim. Where the two
differ, the level above decides which of them was changed, so a report names the file at fault: a
bundle and an entry, or a tile and a hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from eastwest.errors import Corrupt, Error, NotFound
from eastwest.log.checkpoint import Checkpoint, open_checkpoint_of_all
from eastwest.log.entry import MalformedEntry, decode
from eastwest.log.note import NoteKey
from eastwest.log.ports import LogFiles
from eastwest.log.proof import tree_root
from eastwest.log.tiles import (
    CHECKPOINT_PATH,
    TILE_WIDTH,
    WITNESSED_PATH,
    Tile,
    TileReader,
    bundle_path,
    level_sizes,
    read_bundle,
    read_tile,
    tiles_of,
)
from eastwest.log.tree import HASH_SIZE, CompactRange, fold_edge, leaf_hash, root_of, split_hashes

MAX_PROBLEMS = 1000
PRUNED_KIND = "log.pruned"
_PRUNED = b'"kind":"log.pruned"'


@dataclass(frozen=True, slots=True)
class Problem:
    """One defect: the file, the entry's index in the log if it is about one, and a sentence."""

    where: str
    message: str
    entry: int | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. Only if ``ok`` does the checkpoint stand for the entries beside it."""

    checkpoint: Checkpoint | None
    problems: tuple[Problem, ...]
    pruned: int = 0
    """Entries below this index are gone, by the log's stated retention and as an entry of its own tells."""

    @property
    def ok(self) -> bool:
        """Whether every file needed for the checkpoint is there and agrees with it."""
        return self.checkpoint is not None and not self.problems


def verify_log(
    files: LogFiles, key: NoteKey, paths: Iterable[str] = (), further_keys: Sequence[NoteKey] = ()
) -> Report:
    """Verify the log of ``key``; defects come as problems (at most ``MAX_PROBLEMS``), not as errors.

    ``further_keys`` of the log must have signed its checkpoint too. ``paths`` are all files known to lie there: then
    partial tiles of earlier checkpoints are compared too, and files that belong to no log are reported. Files beyond
    the checkpoint (a publication under way) cannot be judged and are passed over.
    """
    keys = [key, *further_keys]
    try:
        checkpoint = open_checkpoint_of_all(files.read(CHECKPOINT_PATH), keys)
    except Error as error:
        return Report(None, (Problem(CHECKPOINT_PATH, error.message),))
    audit = _Audit(files, checkpoint)
    audit.run()
    audit.older_files(paths)
    audit.witnessed(keys)
    return Report(checkpoint, tuple(audit.problems), audit.pruned)


class _Audit:
    """One pass over a log of ``checkpoint.size`` entries."""

    def __init__(self, files: LogFiles, checkpoint: Checkpoint) -> None:
        self._files = files
        self._checkpoint = checkpoint
        self._sizes = level_sizes(checkpoint.size)
        self.problems: list[Problem] = []
        # What each tile file says, from level 1 up: they vouch for those below.
        self._claimed: dict[Tile, list[bytes] | None] = {}
        # Full bundles that are not there, and what entries of the log say was pruned: their index, and up to where.
        self._absent: list[Tile] = []
        self._prunings: list[tuple[int, int, str]] = []
        self.pruned = 0
        # Tiles that do not say what lies under them: (computed, claimed).
        self._differing: dict[Tile, tuple[list[bytes | None], list[bytes] | None]] = {}

    def run(self) -> None:
        computed_edges: list[list[bytes]] = []
        claimed_edges: list[list[bytes]] = []
        below: list[bytes | None] = []
        for level, count in enumerate(self._sizes):
            roots: list[bytes | None] = []
            computed: list[bytes | None] = []
            claimed: list[bytes] | None = None
            for tile in tiles_of(count, level):
                if len(self.problems) >= MAX_PROBLEMS:
                    # A checkpoint may claim more entries than could be looked for in a lifetime.
                    return
                start = tile.index * TILE_WIDTH
                computed = below[start : start + tile.width] if level else self._leaves(tile)
                claimed = self._tile(tile)
                if level:
                    self._claimed[tile] = claimed
                if computed != claimed:
                    self._differing[tile] = (computed, claimed)
                if tile.is_full:
                    roots.append(_root(computed) or (root_of(claimed) if claimed else None))
            partial = count % TILE_WIDTH != 0
            computed_edges.insert(0, _edge(hash_ or b"" for hash_ in computed) if partial else [])
            claimed_edges.insert(0, _edge(claimed or ()) if partial else [])
            below = roots
        self._judge_absent()
        self._judge(_fold(computed_edges), _fold(claimed_edges))

    def older_files(self, paths: Iterable[str]) -> None:
        """Partial tiles that a full or wider one has replaced must be its beginning."""
        for path in sorted(paths):
            if path in (CHECKPOINT_PATH, WITNESSED_PATH):
                continue
            place = _parse_path(path)
            if place is None:
                self._report(path, "is no file of a log")
                continue
            kind, tile = place
            count = self._sizes[tile.level] if tile.level < len(self._sizes) else 0
            known = min(TILE_WIDTH, count - tile.index * TILE_WIDTH)
            if known <= 0 or tile.width == known:
                continue
            newest = Tile(tile.level, tile.index, known)
            try:
                if kind == "entries":
                    self._compare_bundle(path, tile, newest)
                else:
                    self._compare_tile(path, tile, newest)
            except Error as error:
                self._report(path, error.message)

    def witnessed(self, keys: Sequence[NoteKey]) -> None:
        """The checkpoint that witnesses signed last, where there is one, is of the same history."""
        try:
            witnessed = open_checkpoint_of_all(self._files.read(WITNESSED_PATH), keys)
        except NotFound:
            return
        except Error as error:
            self._report(WITNESSED_PATH, error.message)
            return
        if not 0 < witnessed.size <= self._checkpoint.size:
            return
        try:
            root = tree_root(witnessed.size, TileReader(self._files, self._checkpoint.size).node)
        except Error:
            return  # tiles are missing, which is reported
        if root != witnessed.root:
            told = f"its root is not that of the first {witnessed.size} entries of the checkpoint's tree"
            self._report(WITNESSED_PATH, told)

    def _compare_tile(self, path: str, tile: Tile, newest: Tile) -> None:
        if self._is_reported(newest.path, newest.full.path):
            return
        right = read_tile(self._files, newest)
        raw = self._files.read(path)
        common = min(tile.width, newest.width) * HASH_SIZE
        if len(raw) != tile.width * HASH_SIZE or raw[:common] != right[:common]:
            self._report(path, "is not the beginning of the tile that continues it")

    def _compare_bundle(self, path: str, tile: Tile, newest: Tile) -> None:
        if self._is_reported(bundle_path(newest.index, newest.width), bundle_path(newest.index)):
            return
        right = read_bundle(self._files, newest.index, newest.width)
        entries = read_bundle(self._files, tile.index, tile.width)
        for place, (older, newer) in enumerate(zip(entries, right, strict=False)):
            if older != newer:
                index = tile.index * TILE_WIDTH + place
                self._report(path, f"entry {index} differs from that in the bundle that continues it", index)

    def _is_reported(self, *paths: str) -> bool:
        """Whether one of the files is at fault already, so that nothing can be measured by it."""
        return any(problem.where in paths for problem in self.problems)

    def _leaves(self, tile: Tile) -> list[bytes | None]:
        """The leaf hashes computed from a bundle; all None if it cannot be read."""
        try:
            entries = read_bundle(self._files, tile.index, tile.width)
        except NotFound:
            self._absent.append(tile)
        except Corrupt as error:
            self._report(error.where, error.message)
        else:
            for place, entry in enumerate(entries):
                if _PRUNED in entry:
                    self._note_pruning(tile.index * TILE_WIDTH + place, entry)
            return [leaf_hash(entry) for entry in entries]
        return [None] * tile.width

    def _note_pruning(self, index: int, raw: bytes) -> None:
        with suppress(MalformedEntry):
            entry = decode(raw)
            before, root = entry.body.get("before"), entry.body.get("root")
            if entry.kind == PRUNED_KIND and isinstance(before, int) and isinstance(root, str):
                self._prunings.append((index, before, root))

    def _judge_absent(self) -> None:
        """Accept that bundles are gone only as far as an entry of the log, later than they, says so."""
        told = 0
        for index, before, root in self._prunings:
            if not 0 < before <= index or before % TILE_WIDTH:
                self._report(
                    bundle_path(index // TILE_WIDTH), f"entry {index} tells of a pruning that cannot be", index
                )
                continue
            try:
                right = tree_root(before, TileReader(self._files, self._checkpoint.size).node).hex()
            except Error:
                continue  # tiles are missing, which is reported
            if root != right:
                self._report(
                    bundle_path(index // TILE_WIDTH),
                    f"entry {index} tells of a pruning before {before} with a root that the tree never had",
                    index,
                )
                continue
            told = max(told, before)
        for tile in self._absent:
            end = (tile.index + 1) * TILE_WIDTH
            if tile.is_full and end <= told:
                self.pruned = max(self.pruned, end)
            else:
                self._report(bundle_path(tile.index, tile.width), "the entry bundle is missing")

    def _tile(self, tile: Tile) -> list[bytes] | None:
        try:
            return split_hashes(read_tile(self._files, tile))
        except NotFound:
            self._report(tile.path, "the tile is missing")
        except Corrupt as error:
            self._report(error.where, error.message)
        return None

    def _judge(self, computed_root: bytes, claimed_root: bytes) -> None:
        """Say which file is at fault for each tile that differs from what lies under it."""
        right = self._checkpoint.root
        for tile, (computed, claimed) in self._differing.items():
            if claimed is None or all(hash_ is None for hash_ in computed):
                continue  # one of the two could not be read, which is reported already
            places = [i for i, (a, b) in enumerate(zip(computed, claimed, strict=True)) if a != b]
            if computed_root == right or not self._vouched(tile, claimed, claimed_root == right):
                self._blame_tile(tile, places)
            else:
                self._blame_below(tile, places)
        if computed_root != right and not self.problems:
            self._report(
                CHECKPOINT_PATH,
                f"its root is not that of the {self._checkpoint.size} entries and the tiles here, "
                "which agree among themselves",
            )

    def _blame_tile(self, tile: Tile, places: list[int]) -> None:
        shown = ", ".join(str(tile.index * TILE_WIDTH + place) for place in places[:5])
        below = f"the tiles of level {tile.level - 1}" if tile.level else "the entries"
        self._report(tile.path, f"hash {shown} of level {tile.level} differs from {below}")

    def _blame_below(self, tile: Tile, places: list[int]) -> None:
        for place in places:
            index = tile.index * TILE_WIDTH + place
            if tile.level == 0:
                path = bundle_path(tile.index, tile.width)
                self._report(path, f"entry {index} was changed: its hash is not the one in {tile.path}", index)
            elif Tile(tile.level - 1, index) not in self._differing:
                path = Tile(tile.level - 1, index).path
                self._report(path, f"was changed together with what lies under it: {tile.path} has another root for it")

    def _vouched(self, tile: Tile, claimed: list[bytes], edge_is_right: bool) -> bool:
        """Whether the tiles above, or for the right edge the checkpoint, confirm what a tile says."""
        if not tile.is_full:
            return edge_is_right
        above = tile.index // TILE_WIDTH
        width = min(TILE_WIDTH, self._sizes[tile.level + 1] - above * TILE_WIDTH)
        parent = self._claimed.get(Tile(tile.level + 1, above, width))
        return parent is not None and parent[tile.index % TILE_WIDTH] == root_of(claimed)

    def _report(self, where: str, message: str, entry: int | None = None) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(where, message, entry))


def _root(hashes: list[bytes | None]) -> bytes | None:
    known = [hash_ for hash_ in hashes if hash_ is not None]
    return root_of(known) if len(known) == len(hashes) else None


def _edge(hashes: Iterable[bytes]) -> list[bytes]:
    tree = CompactRange()
    tree.extend(hashes)
    return tree.edge


def _fold(edges: list[list[bytes]]) -> bytes:
    return fold_edge([hash_ for edge in edges for hash_ in edge])


def _parse_path(path: str) -> tuple[str, Tile] | None:
    """``tile/<L>/<N>[.p/<W>]`` or ``tile/entries/...`` back into a place; None if it is neither."""
    parts = path.split("/")
    if len(parts) < 3 or parts[0] != "tile":
        return None
    kind = parts[1]
    body, partial, width = "/".join(parts[2:]).partition(".p/")
    digits = body.replace("x", "").replace("/", "")
    if not (digits.isascii() and digits.isdigit()) or (partial and not width.isdigit()):
        return None
    if kind != "entries" and not (kind.isascii() and kind.isdigit()):
        return None
    tile = Tile(0 if kind == "entries" else int(kind), int(digits), int(width) if partial else TILE_WIDTH)
    right = bundle_path(tile.index, tile.width) if kind == "entries" else tile.path
    return (kind, tile) if right == path and 1 <= tile.width <= TILE_WIDTH else None
