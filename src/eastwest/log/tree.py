"""The Merkle tree of RFC 6962, section 2.1, with SHA-256.

``H(0x00 || entry)`` for a leaf, ``H(0x01 || left || right)`` for a node, ``H()`` for the empty tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

HASH_SIZE = 32
EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one entry as a leaf."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


class CompactRange:
    """A tree of ``size`` leaves known by its right edge only: the roots of its perfect subtrees.

    ``edge`` holds one hash per bit set in ``size``, largest subtree first; that is enough to go on
    appending. A leaf here may itself be the root of a perfect tree, as in the upper levels of tiles.
    """

    __slots__ = ("edge", "size")

    def __init__(self, size: int = 0, edge: Iterable[bytes] = ()) -> None:
        self.size = size
        self.edge = list(edge)
        if len(self.edge) != size.bit_count():
            raise ValueError(f"a tree of size {size} has {size.bit_count()} perfect subtrees, not {len(self.edge)}")

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        edge = self.edge
        size = self.size
        self.size = size + 1
        while size & 1:
            leaf = sha256(b"\x01" + edge.pop() + leaf).digest()
            size >>= 1
        edge.append(leaf)

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaf hashes in order."""
        for leaf in leaves:
            self.append(leaf)

    def root(self) -> bytes:
        """The tree's root."""
        return fold_edge(self.edge)


def fold_edge(edge: Sequence[bytes]) -> bytes:
    """The root over perfect subtrees given largest first; the empty root for none."""
    if not edge:
        return EMPTY_ROOT
    root = edge[-1]
    for left in reversed(edge[:-1]):
        root = node_hash(left, root)
    return root


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes."""
    hashes = list(leaves)
    if len(hashes).bit_count() == 1:  # as in a full tile: level by level is quicker
        while len(hashes) > 1:
            hashes = [
                sha256(b"\x01" + left + right).digest() for left, right in zip(hashes[::2], hashes[1::2], strict=True)
            ]
        return hashes[0]
    tree = CompactRange()
    tree.extend(hashes)
    return tree.root()


def split_hashes(joined: bytes) -> list[bytes]:
    """Hashes that were stored one after the other; raises ``ValueError`` if the length is not a multiple of 32."""
    if len(joined) % HASH_SIZE:
        raise ValueError(f"{len(joined)} bytes are not a whole number of hashes")
    return [joined[i : i + HASH_SIZE] for i in range(0, len(joined), HASH_SIZE)]
