"""Who stands behind a version of the estate: kept with it, and told in the log."""

from __future__ import annotations

from datetime import datetime

import msgspec


class BreakGlass(msgspec.Struct, frozen=True):
    """Somebody skips approvals, for ``seconds``, and says why."""

    reason: str
    seconds: int


class Authorization(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``author`` wrote the version and ``approvers`` agreed; ``evidence`` is the impact that they looked at.

    ``approvals_missing``: it asked for approvals that nobody could give. ``break_glass`` is the reason for which they
    were skipped ("" where none were), until ``break_glass_until``.
    """

    author: str
    approvers: tuple[str, ...] = ()
    evidence: str = ""  # hex SHA-256 of the impact report
    change: str = ""  # id of the change that was approved
    break_glass: str = ""
    break_glass_until: datetime | None = None
    approvals_missing: bool = False

    def facts(self) -> dict[str, object]:
        """The optional fields of the log's ``policy.activated``."""
        until = self.break_glass_until
        said: dict[str, object] = {
            "author": self.author,
            "approvers": list(self.approvers),
            "evidence": self.evidence,
            "change": self.change,
            "break_glass": self.break_glass,
            "break_glass_until": until,
            "approvals_missing": self.approvals_missing,
        }
        return {name: value for name, value in said.items() if value}
