"""Randomness that repeats: the same seed gives the same bytes. Worthless as a secret, by design."""

from __future__ import annotations

import hashlib


class SeededEntropy:
    """Serves ``eastwest.entropy.Entropy`` from SHA-256 in counter mode."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = str(seed).encode()
        self._counter = 0
        self._left = b""

    def token_bytes(self, count: int) -> bytes:
        while len(self._left) < count:
            self._left += hashlib.sha256(self._seed + b"/" + str(self._counter).encode()).digest()
            self._counter += 1
        taken, self._left = self._left[:count], self._left[count:]
        return taken
