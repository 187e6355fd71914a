"""The wire format of Protocol Buffers, as far as leaving fields out needs it.

Two bytes make an empty message, which a parser spends hundreds on: what is not looked at is not to be parsed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

Shape: TypeAlias = "Mapping[int, Shape | None]"
"""Which fields of a message to keep, by number: None keeps one as it is, a shape what that says of a submessage."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 10  # bytes


class Malformed(Exception):
    """These bytes are no message."""


class TooMany(Exception):
    """The message has more fields than are read."""


class Pruner:
    """Takes fields out of messages; ``most`` bounds the fields that are looked at altogether."""

    def __init__(self, most: int) -> None:
        self._left = most

    def prune(self, data: memoryview, shape: Shape) -> bytes:
        """The message with only the fields that ``shape`` names; raises ``Malformed`` and ``TooMany``."""
        kept = bytearray()
        for number, start, body, end in self._fields(data):
            if number not in shape:
                continue
            inner = shape[number]
            if inner is None or body == start:
                kept += data[start:end]
            else:
                one = self.prune(data[body:end], inner)
                kept += _varint(number << 3 | _BYTES) + _varint(len(one)) + one
        return bytes(kept)

    def _fields(self, data: memoryview) -> Iterator[tuple[int, int, int, int]]:
        """Number, start, start of the bytes (the same again for a number's field), and end of each field."""
        at, size = 0, len(data)
        while at < size:
            self._left -= 1
            if self._left < 0:
                raise TooMany
            start = at
            key, at = _read(data, at)
            kind, body = key & 7, start
            if kind == _VARINT:
                _, at = _read(data, at)
            elif kind == _BYTES:
                length, body = _read(data, at)
                at = body + length
            elif kind in (_FIXED32, _FIXED64):
                at += 4 if kind == _FIXED32 else 8
            else:  # groups, which descriptors do not have
                raise Malformed
            if at > size or key >> 3 == 0:
                raise Malformed
            yield key >> 3, start, body, at


def _read(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[at : at + _MAX_VARINT]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise Malformed


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
