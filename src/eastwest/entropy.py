"""Randomness as a port: the only place that reads the machine's random source."""

from __future__ import annotations

import os
from typing import Protocol


class Entropy(Protocol):
    """A source of bytes that nobody can guess."""

    def token_bytes(self, count: int) -> bytes:
        """``count`` random bytes."""
        ...


class SystemEntropy:
    """The kernel's generator."""

    def token_bytes(self, count: int) -> bytes:
        return os.urandom(count)


def serial_numbers(entropy: Entropy, count: int) -> list[int]:
    """``count`` positive 127-bit certificate serial numbers (RFC 5280, 4.1.2.2), in one read."""
    raw = entropy.token_bytes(16 * count)
    return [max(1, int.from_bytes(raw[i : i + 16]) >> 1) for i in range(0, 16 * count, 16)]


def random_hex(entropy: Entropy, count: int = 16) -> str:
    """A random name of ``count`` bytes in lower-case hex."""
    return entropy.token_bytes(count).hex()


def random_uuid(entropy: Entropy) -> str:
    """A version 4 UUID (RFC 9562, 5.4) in its usual text form."""
    raw = bytearray(entropy.token_bytes(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
