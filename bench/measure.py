"""Taking a number: CPU and memory of a process, medians and percentiles, and how fast this machine is just now."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Result:
    """One number, as ``results.json`` holds it. ``n`` is how many things it was taken from."""

    name: str
    value: float
    unit: str
    n: int
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def cpu_seconds(pid: int) -> float:
    """User and kernel time of a process with all its threads, in steps of 10 ms (``/proc/PID/stat``)."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def thread_seconds(pid: int) -> float:
    """As ``cpu_seconds`` in nanosecond steps, for a process whose threads do not come and go."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_bytes().split()[0]) for task in tasks) / 1e9


def rss_mb(pid: int) -> float:
    """Resident memory of a process in MB (10^6 bytes)."""
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE / 1e6


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that ``share`` of all do not exceed (nearest rank)."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(samples: Sequence[float], digits: int = 0) -> str:
    """Lowest to highest, for a note."""
    return f"{min(samples):.{digits}f}-{max(samples):.{digits}f}"


def signature_us(rounds: int = 9) -> float:
    """CPU of one P-256 signature in microseconds: the yardstick between machines and between noisy hours."""
    key = ec.generate_private_key(ec.SECP256R1())
    scheme = ec.ECDSA(hashes.SHA256())
    data = bytes(300)
    samples = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(200):
            key.sign(data, scheme)
        samples.append((time.process_time() - start) / 200 * 1e6)
    return statistics.median(samples)


def calibration() -> str:
    """The yardstick in words."""
    return f"calibration: one P-256 signature {signature_us():.0f} us"
