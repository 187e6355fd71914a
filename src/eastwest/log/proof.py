"""Inclusion and consistency proofs (RFC 6962, sections 2.1.1 and 2.1.2) and their text form.

Building takes a function ``node(height, index)`` that gives the root of a perfect subtree, such as
``TileReader.node``. Verifying follows RFC 9162, sections 2.1.3.2 and 2.1.4.2.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from eastwest.errors import InvalidInput, Unauthenticated
from eastwest.log.checkpoint import MAX_DIGITS, Checkpoint, open_checkpoint
from eastwest.log.note import NoteKey, strict_base64
from eastwest.log.tree import EMPTY_ROOT, HASH_SIZE, fold_edge, leaf_hash, node_hash

Node = Callable[[int, int], bytes]

HEADER = "c2sp.org/tlog-proof@v1"
MAX_PROOF_HASHES = 64


class MalformedProof(InvalidInput):
    """A text is not a proof of the form it should have."""


class ProofMismatch(Unauthenticated):
    """A proof does not lead to the root it should."""


def inclusion_proof(index: int, size: int, node: Node) -> list[bytes]:
    """The audit path of leaf ``index`` in the tree of ``size``, from the leaf's sibling up."""
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of size {size}")
    path = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return [_range_root(a, b, node) for a, b in reversed(path)]


def consistency_proof(old: int, new: int, node: Node) -> list[bytes]:
    """The proof that the tree of size ``old`` is a prefix of that of size ``new``; empty if either is trivial."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of size {old} is no prefix of one of size {new}")
    if old in (0, new):
        return []
    ranges = []
    start, end = 0, new
    while end != old:
        middle = start + _split(end - start)
        if old <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    # The old tree's own root is known to the verifier unless it was cut into parts on the way down.
    if start:
        ranges.append((start, end))
    return [_range_root(a, b, node) for a, b in reversed(ranges)]


def tree_root(size: int, node: Node) -> bytes:
    """The root of the first ``size`` leaves."""
    return _range_root(0, size, node)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raise ``ProofMismatch`` unless ``proof`` shows the leaf hash at ``index`` in the tree (``size``, ``root``)."""
    if not 0 <= index < size:
        raise ProofMismatch(f"there is no entry {index} in a tree of size {size}")
    place, last = index, size - 1
    hash_ = leaf
    for sibling in proof:
        if last == 0:
            raise ProofMismatch("the inclusion proof is too long")
        if place & 1 or place == last:
            hash_ = node_hash(sibling, hash_)
            while not place & 1 and place:
                place >>= 1
                last >>= 1
        else:
            hash_ = node_hash(hash_, sibling)
        place >>= 1
        last >>= 1
    if last:
        raise ProofMismatch("the inclusion proof is too short")
    if hash_ != root:
        raise ProofMismatch(f"entry {index} is not in the tree of size {size} with this root")


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Raise ``ProofMismatch`` unless ``proof`` shows that the old tree is a prefix of the new one."""
    if not 0 <= old <= new:
        raise ProofMismatch(f"a tree of size {old} is no prefix of one of size {new}")
    if old in (0, new):
        same = old_root == (new_root if old else EMPTY_ROOT)
        if proof or not same:
            raise ProofMismatch(f"two roots of size {old} differ" if not same else "the proof should be empty")
        return
    hashes = iter(proof)
    place, last = old - 1, new - 1
    while place & 1:
        place >>= 1
        last >>= 1
    before = after = old_root if place == 0 else _next(hashes)
    for sibling in hashes:
        if last == 0:
            raise ProofMismatch("the consistency proof is too long")
        if place & 1 or place == last:
            before = node_hash(sibling, before)
            after = node_hash(sibling, after)
            while not place & 1 and place:
                place >>= 1
                last >>= 1
        else:
            after = node_hash(after, sibling)
        place >>= 1
        last >>= 1
    if last:
        raise ProofMismatch("the consistency proof is too short")
    if before != old_root or after != new_root:
        raise ProofMismatch(f"the tree of size {new} does not continue the one of size {old}")


@dataclass(frozen=True, slots=True)
class LogProof:
    """An entry's receipt (C2SP tlog-proof): its index, its audit path and the signed checkpoint."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str
    extra: bytes = b""

    @classmethod
    def parse(cls, text: str) -> LogProof:
        """Read the text form; raises ``MalformedProof`` or ``MalformedNote``. Nothing is verified."""
        head, separator, checkpoint = text.partition("\n\n")
        lines = head.split("\n")
        if not separator or lines[0] != HEADER:
            raise MalformedProof(f"a proof begins with {HEADER}", fix="give the .tlog-proof file, not the entry")
        del lines[0]
        extra = b""
        if lines and lines[0].startswith("extra "):
            extra = strict_base64(lines.pop(0).removeprefix("extra "))
        index = lines.pop(0).removeprefix("index ") if lines and lines[0].startswith("index ") else ""
        if not (index.isascii() and index.isdigit()) or (index[0] == "0" and index != "0"):
            raise MalformedProof("a proof names an index without leading zeros")
        if len(index) > MAX_DIGITS:
            raise MalformedProof("the index in a proof is larger than any log")
        hashes = tuple(strict_base64(line) for line in lines)
        if len(hashes) > MAX_PROOF_HASHES or any(len(hash_) != HASH_SIZE for hash_ in hashes):
            raise MalformedProof(f"a proof has at most {MAX_PROOF_HASHES} hashes of {HASH_SIZE} bytes")
        return cls(int(index), hashes, checkpoint, extra)

    @property
    def text(self) -> str:
        """The text form, for a file ``*.tlog-proof``."""
        lines = [HEADER]
        if self.extra:
            lines.append(f"extra {base64.b64encode(self.extra).decode()}")
        lines.append(f"index {self.index}")
        lines.extend(base64.b64encode(hash_).decode() for hash_ in self.hashes)
        return "\n".join(lines) + f"\n\n{self.checkpoint}"

    def verify(self, entry: bytes, key: NoteKey) -> Checkpoint:
        """The checkpoint, once its signature and the entry's place in it are verified.

        Raises ``MalformedNote``, ``UntrustedNote`` or ``ProofMismatch``.
        """
        checkpoint = open_checkpoint(self.checkpoint.encode(), key)
        verify_inclusion(leaf_hash(entry), self.index, checkpoint.size, self.hashes, checkpoint.root)
        return checkpoint


def _split(size: int) -> int:
    """The largest power of two below ``size`` (RFC 6962's k)."""
    return 1 << (size - 1).bit_length() - 1


def _range_root(start: int, end: int, node: Node) -> bytes:
    """The root over leaves ``start`` to ``end``, where ``start`` is a multiple of the range's largest power of two."""
    edge = []
    while start < end:
        height = (end - start).bit_length() - 1
        edge.append(node(height, start >> height))
        start += 1 << height
    return fold_edge(edge)


def _next(hashes: Iterator[bytes]) -> bytes:
    try:
        return next(hashes)
    except StopIteration:
        raise ProofMismatch("the consistency proof is too short") from None
