"""RFC 6962 hashing against published vectors."""

import pytest

from eastwest.log.tree import EMPTY_ROOT, CompactRange, leaf_hash, node_hash, root_of, split_hashes

# The reference inputs and roots of the Certificate Transparency project.
INPUTS = [
    bytes.fromhex(x)
    for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def test_the_empty_tree():
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert root_of([]) == EMPTY_ROOT == bytes.fromhex(empty)


@pytest.mark.parametrize("size", range(1, 9))
def test_the_published_roots(size):
    assert root_of(map(leaf_hash, INPUTS[:size])).hex() == ROOTS[size - 1]


def test_an_edge_that_is_stored_goes_on_where_it_was():
    whole = CompactRange()
    for size, entry in enumerate(INPUTS):
        copy = CompactRange(size, whole.edge)
        copy.append(leaf_hash(entry))
        whole.append(leaf_hash(entry))
        assert (copy.size, copy.edge, copy.root()) == (whole.size, whole.edge, whole.root())


def test_an_edge_of_another_size_is_refused():
    with pytest.raises(ValueError, match="2 perfect subtrees, not 1"):
        CompactRange(3, [EMPTY_ROOT])


def test_leaf_and_node_hashes_are_kept_apart():
    a, b = leaf_hash(b"a"), leaf_hash(b"b")
    assert node_hash(a, b) != leaf_hash(a + b)
    assert split_hashes(a + b) == [a, b]
    with pytest.raises(ValueError, match="whole number"):
        split_hashes(a + b[:5])
