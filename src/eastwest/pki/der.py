"""Certificates in DER, one after the other without anything between, as the Workload API carries them."""

from __future__ import annotations

MAX_CERTIFICATES = 1000


def split_der(joined: bytes) -> tuple[bytes, ...]:
    """The certificates one by one; what is in them is not looked at. Raises ``ValueError`` for what is no such row."""
    parts: list[bytes] = []
    start = 0
    while start < len(joined):
        end = _end(joined, start)
        if end > len(joined) or len(parts) == MAX_CERTIFICATES:
            raise ValueError("not a row of certificates in DER")
        parts.append(joined[start:end])
        start = end
    return tuple(parts)


def _end(data: bytes, start: int) -> int:
    """Where the SEQUENCE that begins at ``start`` ends (X.690, 8.1.3)."""
    if data[start] != 0x30 or start + 2 > len(data):
        raise ValueError("not a row of certificates in DER")
    first = data[start + 1]
    if first < 0x80:
        return start + 2 + first
    size = first & 0x7F
    if not 1 <= size <= 4 or start + 2 + size > len(data):
        raise ValueError("not a row of certificates in DER")
    return start + 2 + size + int.from_bytes(data[start + 2 : start + 2 + size], "big")
