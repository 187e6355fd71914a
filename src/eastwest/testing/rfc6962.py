"""RFC 6962, section 2.1, written down as the RFC defines it: recursive, slow, and independent of ``eastwest.log``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def naive_root(entries: Sequence[bytes]) -> bytes:
    """MTH(D[n])."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = _k(len(entries))
    return hashlib.sha256(b"\x01" + naive_root(entries[:k]) + naive_root(entries[k:])).digest()


def naive_inclusion(index: int, entries: Sequence[bytes]) -> list[bytes]:
    """PATH(m, D[n])."""
    if len(entries) == 1:
        return []
    k = _k(len(entries))
    if index < k:
        return [*naive_inclusion(index, entries[:k]), naive_root(entries[k:])]
    return [*naive_inclusion(index - k, entries[k:]), naive_root(entries[:k])]


def naive_consistency(old: int, entries: Sequence[bytes]) -> list[bytes]:
    """PROOF(m, D[n]) for 0 < m <= n."""
    return _subproof(old, entries, whole=True)


def _subproof(old: int, entries: Sequence[bytes], *, whole: bool) -> list[bytes]:
    if old == len(entries):
        return [] if whole else [naive_root(entries)]
    k = _k(len(entries))
    if old <= k:
        return [*_subproof(old, entries[:k], whole=whole), naive_root(entries[k:])]
    return [*_subproof(old - k, entries[k:], whole=False), naive_root(entries[:k])]


def _k(size: int) -> int:
    power = 1
    while power * 2 < size:
        power *= 2
    return power
