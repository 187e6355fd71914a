"""Allowed calls of identified callers, added up to what policies are suggested from."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from eastwest.errors import Exhausted
from eastwest.ledger.impact import Recorded
from eastwest.policy.analysis import analyse
from eastwest.policy.enforcement import TcpMatch, Verdict
from eastwest.policy.estate import Estate
from eastwest.policy.operations import matcher, tenant_source
from eastwest.policy.replay import Answer, Unsure
from eastwest.policy.suggest import Seen

MAX_SEEN = 300_000
"""Callers, operations and tenants together."""
MAX_NAMES = 100
"""Approvers or origins that a suggestion names."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Observed:
    """Adds up calls that the policy in force allows."""

    def __init__(self, estate: Estate) -> None:
        self._seen: dict[tuple[str, str, str, str], Seen] = {}
        self._left_out: dict[str, int] = {}
        permits = [analyse(policy) for policy in estate.policies if policy.effect == "permit"]
        self._by_approver = {each.policy.id for each in permits if each.reads_approver}
        self._by_origin = {each.policy.id for each in permits if each.reads_origin}
        self._per_tenant = {
            (service.service, operation.name): tenant_source(service, operation) is not None
            and not isinstance(matcher(operation), TcpMatch)
            for service in estate.services
            for operation in service.operations
        }

    def add(self, row: Recorded, answer: Answer | Unsure | str) -> None:
        """Take an input, and what the policy in force says to it: or why nobody can tell."""
        given = row.given
        if not isinstance(answer, Answer) or answer.verdict is not Verdict.ALLOW:
            said = answer if isinstance(answer, str) else "it is refused now"
            why = answer.reason if isinstance(answer, Unsure) else said
            note = f"{given.caller} called {given.operation or given.service}: {why}"
            self._left_out[note] = self._left_out.get(note, 0) + row.calls
            return
        tenant = given.tenant if self._per_tenant.get((given.service, answer.operation)) else ""
        key = (given.caller, given.service, answer.operation, tenant)
        first, last = time_of(row.first), time_of(row.last)
        found = self._seen.get(key)
        if found is None:
            if len(self._seen) >= MAX_SEEN:
                raise Exhausted(
                    f"more than {MAX_SEEN:,} callers, operations and tenants were seen", fix="look at one --service"
                )
            approved = given.token and bool(given.approver)
            found = self._seen[key] = Seen(*key, 0, first, last, given.token, approved, set(), set())
        found.approvers = _with(found.approvers, given.approver, told=answer.policy in self._by_approver)
        found.origins = _with(found.origins, given.origin, told=answer.policy in self._by_origin)
        found.calls += row.calls
        found.first, found.last = min(found.first, first), max(found.last, last)
        found.token = found.token and given.token
        found.approved = found.approved and bool(given.approver)

    def seen(self) -> Iterator[Seen]:
        """What was allowed, and still is."""
        return iter(self._seen.values())

    def left_out(self) -> list[str]:
        """What was allowed and is in no suggestion, with the reason."""
        return [f"{why} ({calls} calls)" for why, calls in sorted(self._left_out.items())]


def _with(names: set[str] | None, name: str, *, told: bool) -> set[str] | None:
    """The names with one more; None once some are not told apart, or are too many to be named."""
    if names is None or not told or len(names) >= MAX_NAMES:
        return None
    return names | {name} if name else names


def time_of(micros: int) -> datetime:
    """The moment, from microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=micros)
