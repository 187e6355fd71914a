"""Which files a log of some size has, and what is in them."""

import itertools

import pytest

from eastwest.errors import Corrupt, NotFound
from eastwest.log.tiles import (
    Growth,
    Tile,
    TileReader,
    bundle_path,
    decode_bundle,
    encode_bundle,
    level_sizes,
    new_tiles,
    read_bundle,
    read_tile,
)
from eastwest.log.tree import leaf_hash, root_of
from eastwest.testing.log import MemoryFiles, TestSigner, build_files


@pytest.mark.parametrize(
    ("index", "width", "path"),
    [
        (0, 256, "000"),
        (0, 1, "000.p/1"),
        (999, 255, "999.p/255"),
        (1000, 256, "x001/000"),
        (1234067, 256, "x001/x234/067"),
        (1234067, 8, "x001/x234/067.p/8"),
        (1_000_000_000, 256, "x001/x000/x000/000"),
    ],
)
def test_paths_are_those_of_the_specification(index, width, path):
    assert Tile(3, index, width).path == f"tile/3/{path}"
    assert bundle_path(index, width) == f"tile/entries/{path}"


def paths(size, start=0):
    return [tile.path for tile in new_tiles(start, size)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, []),
        (1, ["tile/0/000.p/1"]),
        (255, ["tile/0/000.p/255"]),
        (256, ["tile/0/000", "tile/1/000.p/1"]),
        (257, ["tile/0/000", "tile/0/001.p/1", "tile/1/000.p/1"]),
    ],
)
def test_the_tiles_of_small_trees(size, expected):
    assert paths(size) == expected


def test_the_tiles_at_65536():
    assert paths(65_535)[-2:] == ["tile/0/255.p/255", "tile/1/000.p/255"]
    assert paths(65_536)[-3:] == ["tile/0/255", "tile/1/000", "tile/2/000.p/1"]
    assert paths(65_537)[-3:] == ["tile/0/256.p/1", "tile/1/000", "tile/2/000.p/1"]


def test_the_example_of_the_specification():
    assert level_sizes(70_000) == [70_000, 273, 1]
    assert len(paths(70_000)) == 273 + 1 + 1 + 1 + 1
    assert {"tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"} <= set(paths(70_000))


@pytest.mark.parametrize("sizes", [(0, 1, 2), (255, 256), (100, 300, 600), (511, 512, 513), (65_000, 65_536, 65_537)])
def test_growing_step_by_step_writes_all_that_the_last_size_has(sizes):
    written = set(paths(sizes[0]))
    for old, new in itertools.pairwise(sizes):
        step = paths(new, old)
        assert not (set(step) - set(paths(new)))
        assert not (set(step) & set(paths(old)))
        written |= set(step)
    assert set(paths(sizes[-1])) <= written
    assert paths(7, 7) == []


def test_bundles_hold_entries_with_their_lengths():
    entries = [b"", b"a", b"x" * 65_535]
    raw = encode_bundle(entries)
    assert raw[:5] == b"\x00\x00\x00\x01a"
    assert decode_bundle(raw) == entries
    for cut in (1, 2, 65_534, 65_536):
        with pytest.raises(Corrupt, match="cut short"):
            decode_bundle(raw[:-cut])


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 511, 65_535, 65_536, 65_537])
def test_growth_knows_the_upper_levels_and_goes_on_from_a_stored_edge(size):
    leaves = [leaf_hash(b"%d" % i) for i in range(size)]
    growth = Growth()
    nodes = growth.extend(leaves[: size // 3])
    growth = Growth(growth.size, growth.edge)
    nodes += growth.extend(leaves[size // 3 :])
    assert growth.size == size
    assert growth.root() == root_of(leaves)
    sizes = level_sizes(size)
    below = leaves
    for level in range(1, len(sizes)):
        hashes = [hash_ for at, _, hash_ in nodes if at == level]
        assert [n for at, n, _ in nodes if at == level] == list(range(sizes[level]))
        assert hashes == [root_of(below[i * 256 : i * 256 + 256]) for i in range(sizes[level])]
        below = hashes
    assert {at for at, _, _ in nodes} == set(range(1, len(sizes)))


def test_the_reader_finds_a_partial_tile_in_the_full_one_that_replaced_it():
    entries = [b"%d" % i for i in range(300)]
    files = build_files(entries, "o", TestSigner())
    reader = TileReader(files, 200)
    assert reader.entry(199) == b"199"
    assert len(reader.tile(0, 0)) == 200
    assert reader.node(3, 2) == root_of(map(leaf_hash, entries[16:24]))
    with pytest.raises(NotFound, match="covers 200 entries"):
        reader.entry(200)
    assert TileReader(files, 300).node(8, 0) == root_of(map(leaf_hash, entries[:256]))


def test_tiles_and_bundles_of_a_wrong_length_are_corrupt_and_named():
    files = MemoryFiles({"tile/0/000.p/2": bytes(65), "tile/entries/000": encode_bundle([b"a"])})
    with pytest.raises(Corrupt, match=r"tile/0/000\.p/2: the tile has 65 bytes, not 64"):
        read_tile(files, Tile(0, 0, 2))
    with pytest.raises(Corrupt, match="tile/entries/000: the bundle has 1 entries, not 256"):
        read_bundle(files, 0, 7)
    with pytest.raises(NotFound):
        read_tile(files, Tile(0, 1))


def test_the_reader_does_not_hand_out_an_entry_that_its_tile_does_not_have():
    files = build_files([b"a", b"b"], "o", TestSigner())
    files["tile/entries/000.p/2"] = encode_bundle([b"a", b"c"])
    with pytest.raises(Corrupt, match="entry 1 differs"):
        TileReader(files, 2).entry(1)
