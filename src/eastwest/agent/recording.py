"""What is enforced here now: the server's word, and less while decisions cannot be recorded."""

from __future__ import annotations

from collections import OrderedDict

import structlog

from eastwest.agent.knowledge import Knowledge
from eastwest.policy.enforcement import Sidecar, unrecordable

_KEPT = 1_000
_log = structlog.get_logger()


class Recording:
    """Turns tables of services that require a record into refusals while there can be none, and back."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._refusing: OrderedDict[str, tuple[Sidecar, Sidecar]] = OrderedDict()
        self.possible = True
        """Whether a decision that is made now will be kept."""

    def set(self, possible: bool) -> None:
        """Take word of whether decisions can be kept; who serves tables looks again."""
        if possible == self.possible:
            return
        self.possible = possible
        if possible:
            _log.info("agent.recording.restored")
        else:
            _log.error("agent.recording.impossible", means="services with recording: required refuse their calls")
        self._knowledge.changes.bump()

    def now(self, sidecar: Sidecar) -> Sidecar:
        """What its sidecars are to enforce; the same object as long as nothing changes."""
        return sidecar if self.possible else self.refusing(sidecar)

    def refusing(self, sidecar: Sidecar) -> Sidecar:
        """What they enforce while nothing can be recorded."""
        kept = self._refusing.get(sidecar.spiffe_id)
        if kept is None or kept[0] is not sidecar:
            kept = self._refusing[sidecar.spiffe_id] = (sidecar, unrecordable(sidecar))
            while len(self._refusing) > _KEPT:
                self._refusing.popitem(last=False)
        return kept[1]
