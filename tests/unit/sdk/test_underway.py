"""Calls that last end when who answers for them is contained, and no others do."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from eastwest.policy.enforcement import DecisionCode
from eastwest.registry.containment import Contained
from eastwest.sdk.underway import CutOff, Underway

OWN, WEB, OTHER, BEGAN = (f"spiffe://td.test/{name}" for name in ("svc", "web", "other", "began"))


class Call:
    """A call that is served until it is ended."""

    def __init__(self, underway: Underway, caller: str, token: object = None, *, stubborn: bool = False) -> None:
        self.begun = asyncio.Event()
        self.task = asyncio.create_task(self.serve(underway, caller, token, stubborn=stubborn))

    async def serve(self, underway: Underway, caller: str, token: object, *, stubborn: bool) -> None:
        with underway.serving(caller, token) as call:
            self.begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not stubborn:
                    raise
            call.check()

    async def code(self) -> DecisionCode:
        with pytest.raises(CutOff) as caught:
            await self.task
        return caught.value.code


async def begun(*calls: Call) -> None:
    async with asyncio.timeout(5):
        for call in calls:
            await call.begun.wait()


async def test_the_contained_callers_calls_end_and_its_neighbours_do_not() -> None:
    underway = Underway()
    token = SimpleNamespace(caller=OTHER, origin=BEGAN, approver="unix:uid:0")
    calls = [
        Call(underway, WEB),
        Call(underway, WEB, stubborn=True),
        Call(underway, OTHER, token),
        Call(underway, OTHER),
    ]
    await begun(*calls)
    underway.follow(OWN, Contained(1, (WEB,)))
    assert [await calls[0].code(), await calls[1].code()] == [DecisionCode.CALLER_CONTAINED] * 2
    assert not calls[2].task.done()
    underway.follow(OWN, Contained(2, (BEGAN, WEB)))
    assert await calls[2].code() is DecisionCode.TOKEN_CONTAINED
    assert not calls[3].task.done()
    underway.follow(OWN, Contained(3, (OWN,)))
    assert await calls[3].code() is DecisionCode.IDENTITY_CONTAINED
    assert not underway._calls


async def test_a_call_that_was_decided_just_before_ends_at_once_and_one_after_a_release_does_not() -> None:
    underway = Underway()
    underway.follow(OWN, Contained(1, (WEB,)))
    assert await Call(underway, WEB).code() is DecisionCode.CALLER_CONTAINED
    underway.follow(OWN, Contained(2))
    call = Call(underway, WEB)
    await begun(call)
    assert not call.task.done()
    call.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.task


async def test_who_is_cancelled_by_others_besides_stays_cancelled() -> None:
    underway = Underway()
    call = Call(underway, WEB)
    await begun(call)
    call.task.cancel()
    underway.follow(OWN, Contained(1, (WEB,)))
    with pytest.raises(asyncio.CancelledError):
        await call.task
