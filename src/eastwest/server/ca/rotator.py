"""Rotation by the calendar: looks what is due, does it, and says what stands in the way."""

from __future__ import annotations

import asyncio

import structlog

from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.pki.confirmation import NotConfirmed
from eastwest.pki.schedule import Action, Due, due, next_due, waits_for_people
from eastwest.server.ca.rotation import AuthorityKeeper

BLOCKED_SECONDS = 10.0
"""Until what could not be done is tried again, unless a node confirms something before that."""
LONGEST_SECONDS = 3600.0
"""Until the calendar is looked at again, for the wall clock may have been set."""
_log = structlog.get_logger()


class Rotator:
    """Keeps the authorities young. ``changed`` wakes it before its time."""

    def __init__(self, keeper: AuthorityKeeper, clock: Clock, *, automatic: bool) -> None:
        self._keeper = keeper
        self._clock = clock
        self._automatic = automatic
        self._actor = f"{keeper.subject}/spire/server"
        self.changed = asyncio.Event()

    async def run(self) -> None:
        """Do what is due, for ever."""
        while True:
            pause = await self.turn()
            self.changed.clear()
            # One clock for both, so that a test can let years pass.
            sleeping = asyncio.ensure_future(self._clock.sleep(pause))
            waking = asyncio.ensure_future(self.changed.wait())
            try:
                await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (sleeping, waking):
                    task.cancel()
                # Nothing is suppressed: what is cancelled here may be this task itself, just as it wakes up.
                await asyncio.gather(sleeping, waking, return_exceptions=True)

    async def turn(self) -> float:
        """Do all that is due now; gives the seconds until the next look."""
        now = int(self._clock.now().timestamp())
        state = self._keeper.state
        problems = {sentence: sentence for sentence in waits_for_people(state, now)}
        done = False
        for step in due(state, now):
            if not self._automatic and step.action is not Action.PRUNE:
                problems[str(step.kind)] = f"{_words(step)} is due, and ca_rotation is manual"
                continue
            try:
                await self._do(step)
                done = True
            except NotConfirmed as error:
                problems[str(step.kind)] = f"{_words(step)} is due and waits: {error.message}"
            except Error as error:
                problems[str(step.kind)] = f"{_words(step)} failed: {error}"
                _log.error("ca.rotation.failed", step=_words(step), error=str(error))
        self._report(problems)
        if self._keeper.awaiting or self._keeper.awaiting_post_quantum:
            await self._keeper.want(self._keeper.environments, self._actor)
        else:
            self._keeper.problems.pop("environments", None)
        if problems or (self._keeper.awaiting and not self._keeper.is_remote):
            return BLOCKED_SECONDS
        if done:
            return 0.0
        following = next_due(state, now)
        return LONGEST_SECONDS if following is None else min(LONGEST_SECONDS, float(following - now))

    async def _do(self, step: Due) -> None:
        keeper = self._keeper
        if step.action is Action.PRUNE:
            await keeper.prune(self._actor)
        elif step.action is Action.PREPARE:
            await keeper.prepare(step.kind, self._actor, step.environment, step.hierarchy)
        else:
            await keeper.activate(step.kind, step.id, self._actor, at_last=step.at_last)

    def _report(self, problems: dict[str, str]) -> None:
        kept = self._keeper.problems
        for name in [name for name in kept if name.startswith("rotation")]:
            del kept[name]
        kept.update({f"rotation {name}": sentence for name, sentence in problems.items()})


def _words(step: Due) -> str:
    verb = {Action.PREPARE: "preparing", Action.ACTIVATE: "activating", Action.PRUNE: "dropping"}[step.action]
    what = {"x509": "the next root", "issuing": "the next issuing CA", "jwt": "the next JWT key"}[step.kind]
    where = f" of environment {step.environment}" if step.environment else ""
    return f"{verb} {what}{where}"
