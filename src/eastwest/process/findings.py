"""What a ``check`` command found, one line each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``bad`` findings keep the process from working or from being safe."""

    what: str
    state: str
    bad: bool = False
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        mark = "FAIL" if self.bad else "ok  "
        return f"{mark} {self.what}: {self.state}" + (f" ({self.fix})" if self.fix else "")
