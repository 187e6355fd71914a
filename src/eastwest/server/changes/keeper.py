"""Changes that wait for a word: each step is recorded in the log, then stored, and only then counts.

``Changes.authorize`` is the door that every version goes through (``server/estate.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec
import structlog

from eastwest.clock import Clock
from eastwest.entropy import Entropy, random_hex
from eastwest.errors import Error, Exhausted, FailedPrecondition, InvalidInput, NotFound, PermissionDenied
from eastwest.policy.estate import Estate
from eastwest.policy.plan import Plan
from eastwest.policy.risk import Requirement
from eastwest.policy.table import CompiledPolicy
from eastwest.registry import changes as steps
from eastwest.registry.administrators import Administrator
from eastwest.registry.approvals import check_reason
from eastwest.registry.authorization import Authorization, BreakGlass
from eastwest.registry.changes import Change, ChangeState, whose
from eastwest.registry.containment import NOBODY, Contained
from eastwest.server.changes.judging import Judgement, Judging
from eastwest.server.estate import EstateKeeper
from eastwest.server.finishing import to_the_end
from eastwest.server.journal import Journal
from eastwest.store.changes import SqliteChanges

MAX_PENDING = 100
"""Changes that wait at a time."""
MAX_BREAK_GLASS = timedelta(hours=8)
_LIVE = frozenset({ChangeState.PENDING, ChangeState.APPROVED})
MAX_KEPT = 2000
"""Things that a stored change says it opens; more are only counted."""
_log = structlog.get_logger()


class ApprovalNeeded(PermissionDenied):
    """The version opens something, and whose word that needs has not given it."""


class Changes:
    """Requests and words, and whether a version may be put in force."""

    def __init__(
        self,
        keeper: EstateKeeper,
        judging: Judging,
        store: SqliteChanges,
        journal: Journal,
        clock: Clock,
        entropy: Entropy,
        subject: str,
    ) -> None:
        """``subject`` is what the log says that changes are about: the trust domain."""
        self._keeper = keeper
        self._judging = judging
        self._store = store
        self._journal = journal
        self._clock = clock
        self._entropy = entropy
        self._subject = subject
        self._turn = asyncio.Lock()
        self.impact: Callable[[Mapping[str, bytes]], Awaitable[tuple[object, str]]] | None = None
        """The impact report on files, the second of the two its hash, to be kept with a request."""
        self.contained: Callable[[], Contained] = lambda: NOBODY
        """Gives who is cut off: words that they gave do not count."""

    async def judge(self, files: dict[str, bytes]) -> Judgement:
        """What files open; raises as ``apply`` does where they are no estate of this server."""
        plan = await self._keeper.preview(files)
        return await self._judging.judge(*_whole(plan))

    async def request(self, files: dict[str, bytes], reason: str, administrator: Administrator) -> Change:
        """A pending change for just this: the one that waits already, or a new one."""
        judgement = await self.judge(files)
        if not judgement.requirements:
            raise FailedPrecondition("this change needs nobody's approval", fix="apply it: eastwest apply DIR")
        evidence = await self._evidence(files)
        async with self._turn:
            now = self._clock.now()
            waiting = await self._store.waiting()
            live = [one for one in waiting if await self._state(one, judgement.base) in _LIVE]
            same = [one for one in live if (one.version, one.requested_by) == (judgement.version, administrator.name)]
            if same:
                return same[0]
            if len(live) >= MAX_PENDING:
                raise Exhausted(f"{MAX_PENDING} changes wait", fix="have them decided or withdrawn")
            change = Change(
                id=random_hex(self._entropy, 8),
                version=judgement.version,
                base=judgement.base,
                reason=check_reason(reason),
                requested_by=administrator.name,
                requested_at=int(now.timestamp()),
                ends=int((now + steps.WAITING).timestamp()),
                requirements=judgement.requirements,
                widenings=judgement.found[:MAX_KEPT],
                evidence=evidence,
                base_since=await self._judging.since(judgement.base),
            )
            await to_the_end(self._add(change, files))
            return change

    async def get(self, change_id: str) -> Change:
        """One change as it stands; raises ``NotFound``."""
        found = await self._find(change_id)
        return await self._standing(found, await self._judging.base_version())

    async def files(self, change_id: str) -> dict[str, bytes]:
        """What the change would put in force."""
        return await self._store.files(change_id[:64])

    async def listed(self, state: str, limit: int) -> list[Change]:
        """Changes as they stand, newest first; raises ``InvalidInput`` for a state that there is not."""
        if state and state not in set(ChangeState):
            raise InvalidInput(f"{state[:32]!r} is not a state", fix=f"one of {', '.join(ChangeState)}")
        base = await self._judging.base_version()
        found = [await self._standing(one, base) for one in await self._store.listed(limit if not state else 1000)]
        return [one for one in found if not state or one.state == state][:limit]

    async def approve(self, change_id: str, administrator: Administrator, reason: str) -> Change:
        """With this administrator's word."""
        base = await self._judging.base()
        if base is None:
            raise NotFound(f"there is no change {change_id[:64]!r}", fix="see eastwest change list")
        deciders = self._judging.deciders(base.estate)
        return await self._step(
            change_id,
            administrator,
            "change.approved",
            lambda change, now, base: steps.approve(change, administrator.name, reason, deciders, now, base),
            base.version,
        )

    async def refuse(self, change_id: str, administrator: Administrator, reason: str) -> Change:
        """Refused by somebody whose word it needs."""
        base = await self._judging.base()
        if base is None:
            raise NotFound(f"there is no change {change_id[:64]!r}", fix="see eastwest change list")
        deciders = self._judging.deciders(base.estate)
        return await self._step(
            change_id,
            administrator,
            "change.refused",
            lambda change, now, base: steps.refuse(change, administrator.name, reason, deciders, now, base),
            base.version,
        )

    async def withdraw(self, change_id: str, administrator: Administrator, reason: str) -> Change:
        """Ended by whoever requested it or gave its word."""
        base = await self._judging.base_version()
        return await self._step(
            change_id,
            administrator,
            "change.withdrawn",
            lambda change, now, base: steps.withdraw(change, administrator.name, reason, now, base),
            base,
        )

    async def authorize(
        self, plan: Plan, _estate: Estate, administrator: Administrator, change_id: str, broken: BreakGlass | None
    ) -> Authorization:
        """Who stands behind a version that ``administrator`` is about to put in force.

        Raises ``ApprovalNeeded`` where a word is lacking, and what is wrong with the change or the break-glass.
        """
        judgement = await self._judging.judge(*_whole(plan))
        author = administrator.name
        if broken is not None:
            return await self._broken(judgement, author, broken, change_id)
        if not judgement.requirements and not change_id:
            return Authorization(author=author)
        change = await self._chosen(judgement, author, change_id)
        behind = {author} if change is None else {author, change.requested_by}
        # Who is contained might still have to be asked: else containing an owner would do in place of its word.
        approvers = () if change is None else tuple(who for who in change.approvers if who not in self.contained())
        lacking = judgement.deciders.lacking(judgement.requirements, approvers, behind)
        missing = [one for one in lacking if not judgement.deciders.eligible(one, behind)]
        if len(lacking) > len(missing) or (missing and judgement.always):
            raise self._needed(judgement, lacking, change, behind)
        if missing:
            named = "; ".join(f"{whose(one)}: {one.why}" for one in missing)
            _log.warning("change.approvals_missing", author=author, version=judgement.version, needed=named[:1000])
        counted = [who for who in approvers if who not in behind]
        return Authorization(
            author=author,
            approvers=tuple(counted),
            evidence="" if change is None else change.evidence,
            change="" if change is None else change.id,
            approvals_missing=bool(missing),
        )

    async def void(self, names: Collection[str], actor: str, containment: str) -> int:
        """Withdraw what any of these requested or gave their word for, as they are contained; how many.

        Nothing brings it back: whoever still wants it requests it again.
        """
        async with self._turn:
            waiting = await self._store.waiting()
            found = [one for one in waiting if not {one.requested_by, *one.approvers}.isdisjoint(names)]
            for before in found:
                after = steps.void(before, actor, f"containment {containment}", self._clock.now())
                await to_the_end(self._change(before, after, "change.withdrawn", actor))
            return len(found)

    async def applied(self) -> None:
        """Note that the change which the version in force carries out is done; call after each activation."""
        standing = self._keeper.applied.standing if self._keeper.applied is not None else None
        if standing is None or not standing.change:
            return
        async with self._turn:
            change = await self._store.find(standing.change)
            if change is not None and change.state in {ChangeState.PENDING, ChangeState.APPROVED}:
                await self._store.replace(change, msgspec.structs.replace(change, state=ChangeState.APPLIED))

    async def _chosen(self, judgement: Judgement, author: str, change_id: str) -> Change | None:
        """The change that this version carries out: the one named, or one that is approved for just this."""
        if change_id:
            change = await self._find(change_id)
            if change.version != judgement.version:
                raise FailedPrecondition(
                    f"change {change.id} is for version {change.version[:12]}, and these files are version"
                    f" {judgement.version[:12]}: an edit voids what was approved",
                    fix="request it again: eastwest change request DIR",
                )
            state = await self._state(change, judgement.base)
            if state not in _LIVE:
                fix = "request it again: eastwest change request DIR"
                raise FailedPrecondition(f"change {change.id} is {state}", fix=fix)
            return change
        return await self.approved(judgement, author)

    async def approved(self, judgement: Judgement, author: str) -> Change | None:
        """The change that is approved for just this version, if there is one."""
        found = await self._store.waiting(judgement.version)
        approved = [one for one in found if await self._state(one, judgement.base) is ChangeState.APPROVED]
        # One in which the author has no word of its own is worth more than one in which it has.
        return min(approved, key=lambda one: author in one.approvers, default=None)

    async def _broken(self, judgement: Judgement, author: str, broken: BreakGlass, change_id: str) -> Authorization:
        check_reason(broken.reason)
        length = timedelta(seconds=broken.seconds)
        if change_id:
            raise InvalidInput("break-glass skips approvals, and a change brings them", fix="give one of the two")
        if not judgement.requirements:
            raise FailedPrecondition("nothing here needs an approval", fix="apply it without --break-glass")
        if not timedelta(0) < length <= MAX_BREAK_GLASS:
            raise InvalidInput("break-glass holds for at most 8 hours", fix="give --for, such as 1h")
        now = self._clock.now()
        base = await self._judging.base()
        began = datetime.fromtimestamp(base.began, UTC) if base is not None and base.began else now
        latest = began + MAX_BREAK_GLASS
        if now >= latest:
            raise FailedPrecondition("this break-glass has lasted its 8 hours", fix="have the change approved")
        until = min(now + length, latest)
        _log.warning("change.break_glass", author=author, version=judgement.version, until=str(until))
        return Authorization(author=author, break_glass=broken.reason.strip(), break_glass_until=until)

    def _needed(
        self, judgement: Judgement, lacking: list[Requirement], change: Change | None, behind: set[str]
    ) -> ApprovalNeeded:
        told = []
        for one in lacking:
            who = judgement.deciders.eligible(one, behind)
            named = " or ".join(who[:5]) if who else "nobody there is besides the author, and two_person is always"
            told.append(f"{whose(one)} must approve ({named}): {one.why}")
        asked = [f"eastwest change approve {change.id}"] if change is not None else []
        asked = asked or ['eastwest change request DIR --reason "..."', "have it approved, then apply"]
        return ApprovalNeeded("; ".join(told)[:3000], fix=", ".join(asked))

    async def _step(
        self,
        change_id: str,
        administrator: Administrator,
        kind: str,
        step: Callable[[Change, datetime, str], Change],
        base: str,
    ) -> Change:
        async with self._turn:
            before = await self._find(change_id)
            after = step(before, self._clock.now(), await self._judging.base_of(before, base))
            await to_the_end(self._change(before, after, kind, administrator.name))
            return after

    async def _add(self, change: Change, files: Mapping[str, bytes]) -> None:
        await self._record("change.requested", change.requested_by, change, change.reason)
        await self._store.add(change, files, int(self._clock.now().timestamp()))

    async def _change(self, before: Change, after: Change, kind: str, actor: str) -> None:
        reason = after.approvals[-1].reason if kind == "change.approved" else after.decision_reason
        await self._record(kind, actor, after, reason)
        await self._store.replace(before, after)

    async def _record(self, kind: str, actor: str, change: Change, reason: str) -> None:
        facts = {
            "change": change.id,
            "version": change.version,
            "previous": change.base,
            "reason": reason,
            "state": change.state.value,
            "ends": change.ends,
            "owners": [whose(one) for one in change.requirements],
        }
        if change.evidence:
            facts["evidence"] = change.evidence
        await self._journal.record(kind, actor=actor, subject=self._subject, **facts)

    async def _evidence(self, files: Mapping[str, bytes]) -> str:
        """A ledger that cannot answer now keeps nobody from asking for a word."""
        if self.impact is not None:
            with suppress(Error):
                return (await self.impact(files))[1]
        return ""

    async def _find(self, change_id: str) -> Change:
        found = await self._store.find(change_id[:64])
        if found is None:
            raise NotFound(f"there is no change {change_id[:64]!r}", fix="see eastwest change list")
        return found

    async def _standing(self, change: Change, base: str) -> Change:
        return msgspec.structs.replace(change, state=await self._state(change, base))

    async def _state(self, change: Change, base: str) -> ChangeState:
        state = change.state_at(self._clock.now(), base)
        return (
            state
            if state not in _LIVE
            else change.state_at(self._clock.now(), await self._judging.base_of(change, base))
        )


def _whole(plan: Plan) -> tuple[Estate, CompiledPolicy]:
    assert plan.estate is not None
    assert plan.compiled is not None
    return plan.estate, plan.compiled
