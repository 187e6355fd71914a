"""Approvals in force: each step is recorded in the log, then stored, and only then counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from eastwest.clock import Clock
from eastwest.entropy import Entropy, random_hex
from eastwest.errors import Exhausted, FailedPrecondition, InvalidInput, NotFound
from eastwest.issuance.transaction import Targets, Wanted, accepts_approver, approvable
from eastwest.policy.estate import Right
from eastwest.registry import approvals as steps
from eastwest.registry.administrators import Administrator, NotAllowed, Subject
from eastwest.registry.approvals import Approval, ApprovalState, check_reason
from eastwest.registry.containment import NOBODY, Contained, IdentityContained
from eastwest.server.finishing import to_the_end
from eastwest.server.journal import Journal
from eastwest.store.tokens import SqliteTokens

MAX_PENDING = 20
"""Approvals that wait for one caller at a time."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Seconds for which a request waits, and for which what was granted holds."""

    waiting: int
    granted: int


class Approvals:
    """Who may do what for a while, because somebody answers for it."""

    def __init__(
        self,
        store: SqliteTokens,
        targets: Callable[[], Targets],
        domain_of: Callable[[str], str],
        administrator: Callable[[str], Administrator | None],
        lifetimes: Lifetimes,
        journal: Journal,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        """``targets`` gives the operations of the policy in force, ``domain_of`` a service's domain, and
        ``administrator`` who has a name now, if anybody.
        """
        self._store = store
        self._targets = targets
        self._domain_of = domain_of
        self._administrator = administrator
        self._lifetimes = lifetimes
        self._journal = journal
        self._clock = clock
        self._entropy = entropy
        self._turn = asyncio.Lock()
        self.contained: Callable[[], Contained] = lambda: NOBODY
        """Gives who is cut off: they get no approval and give none."""

    async def request(self, caller: str, wanted: Wanted, reason: str, requested_by: str) -> Approval:
        """A pending approval for just this: the one that waits already, or a new one.

        Raises ``TokenRefused`` where no approval would help, ``InvalidInput`` without a reason, and ``Exhausted``.
        """
        _refuse_contained(self.contained(), caller, requested_by)
        target = approvable(self._targets(), caller, wanted)
        async with self._turn:
            waiting = [one for one in await self._live(caller) if one.state is ApprovalState.PENDING]
            same = [one for one in waiting if one.covers(caller, wanted.operation, wanted.tenant)]
            if same:
                return same[0]
            if len(waiting) >= MAX_PENDING:
                raise Exhausted(f"{MAX_PENDING} approvals wait for {caller}", fix="have them decided or withdrawn")
            now = self._now()
            approval = Approval(
                id=random_hex(self._entropy, 8),
                caller=caller,
                operation=wanted.operation,
                service=target.service,
                domain=self._domain_of(target.service),
                tenant=wanted.tenant,
                reason=check_reason(reason),
                requested_by=requested_by,
                requested_at=now,
                ends=now + self._lifetimes.waiting,
            )
            await to_the_end(self._add(approval))
            return approval

    async def usable(self, caller: str, wanted: Wanted) -> Approval | None:
        """A granted approval that covers just this now, of somebody who might grant it still."""
        now = self._clock.now()
        granted = (one for one in await self._live(caller) if one.state_at(now) is ApprovalState.GRANTED)
        covering = (one for one in granted if one.covers(caller, wanted.operation, wanted.tenant))
        return next((one for one in covering if self.is_answered_for(one)), None)

    def is_answered_for(self, approval: Approval) -> bool:
        """Whether who granted it has the right to do so still."""
        approver = self._administrator(approval.approver)
        if approver is None or approval.approver in self.contained():
            return False
        try:
            self._check(approver, approval, "approve")
        except NotAllowed:
            return False
        return True

    async def find(self, approval_id: str) -> Approval | None:
        """One approval, if there is one of this id."""
        return await self._store.approval(approval_id[:64])

    async def get(self, approval_id: str) -> Approval:
        """One approval; raises ``NotFound``."""
        found = await self.find(approval_id)
        if found is None:
            raise NotFound(f"there is no approval {approval_id[:64]!r}", fix="see eastwest approval list")
        return found

    async def listed(self, state: str, caller: str, limit: int) -> list[Approval]:
        """Approvals, newest first; raises ``InvalidInput`` for a state that there is not.

        Raises ``NotFound`` for a caller that no approval is for and that is not registered.
        """
        if state and state not in set(ApprovalState):
            raise InvalidInput(f"{state[:32]!r} is not a state", fix=f"one of {', '.join(ApprovalState)}")
        now = self._clock.now()
        found = await self._store.approvals(caller, limit if not state else 0x7FFF)
        targets = self._targets()
        if caller and not found and not targets.knows(caller):
            raise NotFound(
                f"{caller[:300]} is not registered in the estate, and no approval is for it",
                fix=targets.like_caller(caller) or "see eastwest approval list",
            )
        return [one for one in found if not state or one.state_at(now) == state][:limit]

    async def grant(self, approval_id: str, administrator: Administrator, reason: str) -> Approval:
        """Granted; raises ``NotAllowed``, ``OwnApproval``, or ``FailedPrecondition`` where it no longer waits."""

        def step(approval: Approval) -> Approval:
            _refuse_contained(self.contained(), approval.caller, administrator.name)
            granted = steps.grant(approval, administrator.name, reason, self._clock.now(), self._lifetimes.granted)
            wanted = Wanted(approval.operation, approval.tenant)
            if not accepts_approver(self._targets(), approval.caller, wanted, administrator.name):
                raise FailedPrecondition(
                    f"no policy lets {approval.caller} do {approval.operation} with an approval by"
                    f" {administrator.name}",
                    fix="have it granted by whom the policy names, or change the policy",
                )
            return granted

        return await self._decide(approval_id, administrator, "approval.granted", step)

    async def refuse(self, approval_id: str, administrator: Administrator, reason: str) -> Approval:
        """Refused; raises ``NotAllowed``, or ``FailedPrecondition`` where it no longer waits."""
        return await self._decide(
            approval_id,
            administrator,
            "approval.refused",
            lambda approval: steps.refuse(approval, administrator.name, reason, self._clock.now()),
        )

    async def withdraw(self, approval_id: str, administrator: Administrator, reason: str) -> Approval:
        """Ended before its time; tokens under it are refused from now on where they are checked for single use."""
        return await self._decide(
            approval_id,
            administrator,
            "approval.withdrawn",
            lambda approval: steps.withdraw(approval, administrator.name, reason, self._clock.now()),
        )

    async def spend(self, approval_id: str, record: Callable[[], Awaitable[None]]) -> bool:
        """Take it for its one token, once ``record`` has; false where that was done before, or it no longer stands.

        Where ``record`` fails nothing is taken.
        """
        async with self._turn:
            found = await self.find(approval_id)
            if found is None or found.state_at(self._clock.now()) is not ApprovalState.GRANTED:
                return False
            await record()
            return await self._store.spend(approval_id, self._now())

    async def void(self, names: Sequence[str], actor: str, containment: str) -> int:
        """Withdraw what any of these are to use, asked for or granted, as they are contained; how many.

        Nothing brings them back: whoever is released asks again.
        """
        async with self._turn:
            found = await self._store.live_of(names, self._now())
            reason = f"containment {containment}"
            for before in found:
                after = steps.withdraw(before, actor, reason, self._clock.now())
                await to_the_end(self._change(before, after, "approval.withdrawn", actor))
            return len(found)

    def check_request(self, administrator: Administrator, caller: str, wanted: Wanted) -> None:
        """Raise ``NotAllowed`` unless the administrator may ask for this on behalf of ``caller``.

        Raises ``TokenRefused`` where no approval would help.
        """
        target = approvable(self._targets(), caller, wanted)
        subject = Subject(domain=self._domain_of(target.service))
        administrator.require_for(Right.APPROVALS, subject, f"request approval of {wanted.operation}")

    def _check(self, administrator: Administrator, approval: Approval, what: str) -> None:
        """Raise ``NotAllowed`` unless the administrator decides for the domain of the approval's service."""
        # A service may have moved to another domain meanwhile: who answers for it now decides.
        domain = self._domain_of(approval.service) or approval.domain
        administrator.require_for(Right.APPROVALS, Subject(domain=domain), f"{what} {approval.operation}")

    async def _decide(
        self, approval_id: str, administrator: Administrator, kind: str, step: Callable[[Approval], Approval]
    ) -> Approval:
        async with self._turn:
            before = await self.get(approval_id)
            self._check(administrator, before, {"approval.granted": "approve"}.get(kind, "decide about"))
            after = step(before)
            await to_the_end(self._change(before, after, kind, administrator.name))
            return after

    async def _add(self, approval: Approval) -> None:
        await self._record("approval.requested", approval.requested_by, approval, reason=approval.reason)
        await self._store.add_approval(approval, self._now())

    async def _change(self, before: Approval, after: Approval, kind: str, actor: str) -> None:
        reason = after.withdrawal_reason or after.decision_reason
        await self._record(kind, actor, after, reason=reason)
        await self._store.change_approval(before, after)

    async def _record(self, kind: str, actor: str, approval: Approval, *, reason: str) -> None:
        await self._journal.record(
            kind,
            actor=actor,
            subject=approval.caller,
            approval=approval.id,
            operation=approval.operation,
            tenant=approval.tenant,
            reason=reason,
            ends=approval.ends,
        )

    async def _live(self, caller: str) -> list[Approval]:
        return await self._store.live(caller, self._now())

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


def _refuse_contained(contained: Contained, *names: str) -> None:
    for name in names:
        if name in contained:
            raise IdentityContained(name)
