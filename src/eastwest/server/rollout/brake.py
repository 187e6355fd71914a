"""Which denials bring the rules before back: those that nobody meant, and that these would not have made.

A denial counts only where it is the new rules' doing: by a point that has them, which deny such a call, of a call that
the rules before let through. So nobody can bring rules back by calls that were refused all the time, nor by telling of
denials that these rules do not make. Where the rules before only reported, they let anybody through: there the caller
must be one that is registered, or known to the record from before the rollout, since else any stranger's call would
bring them back. The record also decides where it has too little of the one call to say what the rules before were.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from eastwest.ledger.query import DecisionQuery
from eastwest.ledger.record import Decision
from eastwest.policy.enforcement import DecisionCode, Verdict
from eastwest.policy.replay import Answer, Input, Replayer, Unsure
from eastwest.policy.rollout import Progress
from eastwest.server.tables import Table, Tables
from eastwest.spiffe.id import SpiffeId

MAX_ANSWERS = 10_000
"""Answers of the rules before that are kept: a caller that is denied tries again."""
KNOWN_SINCE = timedelta(days=30)
"""How far back a call counts as one that worked."""
_PAGE, _PAGES = 1_000, 20
_ATTESTED = "id:spiffe://"  # in the name of a peer: which workload its process is
_BY_NO_RULE = frozenset(
    {
        DecisionCode.SERVER_REFUSED,
        DecisionCode.RECORD_UNAVAILABLE,
        DecisionCode.CHECK_UNAVAILABLE,
        DecisionCode.CALLER_CONTAINED,
        DecisionCode.TOKEN_CONTAINED,
        DecisionCode.IDENTITY_CONTAINED,
    }
)

Search = Callable[[DecisionQuery], Awaitable[Sequence[dict[str, Any]]]]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A denial that the rules before would not have made. ``must_be_known``: only if such calls are on record; they
    let anybody through and it is of nobody who is registered, or nobody can say what they were about this one.
    """

    agent: SpiffeId
    row: Decision
    must_be_known: bool


class Brake:
    """Judges rows; holds nothing that a restart would miss."""

    def __init__(self, tables: Tables, search: Search) -> None:
        self._tables = tables
        self._search = search
        self._tables_of: tuple[Table | None, Table | None] = (None, None)
        self._replayers: tuple[Replayer, Replayer] | None = None
        self._answers: OrderedDict[Input, Answer | Unsure | None] = OrderedDict()
        self._strange: OrderedDict[tuple[object, ...], None] = OrderedDict()
        """Of whom the record had no call that worked, so that a flood of theirs is looked up once."""

    def suspects(self, agent: SpiffeId, rows: Iterable[Decision]) -> list[Suspect]:
        """Those of an agent's stored rows that the rules before would not have denied."""
        progress = self._tables.progress
        if progress is None or not progress.is_open or not progress.plan.brake or self._tables.earlier is None:
            return []
        return [
            Suspect(agent, row, must_be_known)
            for row in rows
            if self._concerns(progress, agent, row) and (must_be_known := self._must_be_known(row)) is not None
        ]

    async def confirm(self, suspect: Suspect) -> bool:
        """Whether the suspect's call worked before the rollout, as far as that has to be looked up."""
        progress = self._tables.progress
        if progress is None or not progress.is_open:
            return False
        if not suspect.must_be_known:
            return True
        row = suspect.row
        key = (progress.started, row.caller, row.claimed, row.service, row.operation, row.peer, row.source)
        if key in self._strange:
            return False
        worked = await self._worked(row, progress)
        if not worked and not isinstance(self._before(row), Unsure):  # what allows such calls may still come
            self._strange[key] = None
            while len(self._strange) > MAX_ANSWERS:
                self._strange.popitem(last=False)
        return worked

    def _concerns(self, progress: Progress, agent: SpiffeId, row: Decision) -> bool:
        denied = row.verdict is Verdict.DENY and row.enforced and not row.canary and row.code not in _BY_NO_RULE
        if not denied or row.policy_version != progress.version:
            return False
        if (row.caller, row.service, row.operation) in progress.breaks:
            return False
        workload = self._workload_of(row.service)
        given = self._tables.given(agent, workload) if workload is not None else None
        return given is not None and given.version == progress.version

    def _workload_of(self, service: str) -> SpiffeId | None:
        newest = self._tables.newest
        services = newest.estate.services if newest is not None else ()
        return next((SpiffeId.parse(one.workload) for one in services if one.service == service), None)

    def _must_be_known(self, row: Decision) -> bool | None:
        """Whether it takes a record of calls that worked to make this a denial that counts; None: it is none."""
        before = self._before(row)
        if isinstance(before, Unsure):
            # Such as whether a token came, at which the new rules do not look.
            return None if row.claimed or not row.caller else True
        if before is None or not before.passes:
            return None
        return before.verdict is Verdict.DENY and not self._is_registered(row)

    def _before(self, row: Decision) -> Answer | Unsure | None:
        """The word of the rules before; None where the new ones do not deny this."""
        given = Input.of(row)
        replayers = self._ready()
        if replayers is None:
            return None
        if given not in self._answers:
            before, after = replayers
            now = after.decide(given, after)
            denies = isinstance(now, Unsure) or not now.passes
            self._answers[given] = before.decide(given, after) if denies else None
            while len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
        return self._answers[given]

    def _is_registered(self, row: Decision) -> bool:
        """Whether it is a workload of ours that called, by its certificate or, without one, by attestation there."""
        newest = self._tables.newest
        if newest is None or row.claimed:
            return False
        if not row.caller:
            return any(word.startswith(_ATTESTED) for word in row.peer.split())
        sidecars = newest.whole.sidecars.values()
        serving = (sidecar for sidecar in sidecars if any(one.service == row.service for one in sidecar.inbound))
        return any(row.caller in sidecar.known_callers for sidecar in serving)

    def _ready(self) -> tuple[Replayer, Replayer] | None:
        earlier, newest = self._tables.earlier, self._tables.newest
        if earlier is None or newest is None:
            return None
        # Compared by their tables: callers that are registered meanwhile change these.
        if self._replayers is None or not (
            self._replayers[0].compiled is earlier.whole and self._replayers[1].compiled is newest.whole
        ):
            self._replayers = Replayer(earlier.whole), Replayer(newest.whole)
            self._answers.clear()
        return self._replayers

    async def _worked(self, row: Decision, progress: Progress) -> bool:
        """Whether the ledger has a call like this one that was not refused.

        Of before the rollout, where the rules before only reported: nobody makes itself known by calls at points that
        it has not reached. Those that rules allowed may be of just now.
        """
        until = datetime.fromtimestamp(progress.started, UTC)
        unsure = isinstance(self._before(row), Unsure)
        query = DecisionQuery(
            caller=row.caller,
            service=row.service,
            operation=row.operation,
            peer=row.peer,
            kind="decision",
            start=until - KNOWN_SINCE,
            end=None if unsure else until,
            verdict="allow" if unsure else "",
            newest_first=True,
            limit=_PAGE,
        )
        for _ in range(_PAGES):
            rows = await self._search(query)
            if any(_is_like(one, row) for one in rows):
                return True
            if len(rows) < _PAGE:
                return False
            query = msgspec.structs.replace(query, after=rows[-1]["row"])
        return False


def _is_like(before: dict[str, Any], row: Decision) -> bool:
    """Whether a row is of the same caller, and its call went on."""
    went_on = before.get("verdict") == "allow" or before.get("enforced") is False
    same = before.get("caller", "") == row.caller and bool(before.get("claimed")) == row.claimed
    same = same and before.get("operation", "") == row.operation
    if row.caller and not row.claimed:
        return went_on and same
    # Nobody proved anything: the same peer, or the same address where nobody knows it.
    return went_on and same and (bool(row.peer) or before.get("source", "") == row.source)
