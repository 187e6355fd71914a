"""Calls that are being served, and the end of those for which somebody who is contained answers.

Rules decide when a call begins. A response that lasts and a stream would go on after their caller was cut off, so the
task that serves such a call is cancelled, as it is when the caller hangs up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from eastwest.policy.enforcement import DecisionCode
from eastwest.registry.containment import NOBODY, Contained


class CutOff(Exception):
    """Who calls, or who is called, was contained while the call was served. ``code`` is what the caller is told."""

    def __init__(self, code: DecisionCode) -> None:
        super().__init__(code)
        self.code = code


class Serving:
    """One call that is being served by the current task. ``code`` is why it is to end; None while it is not."""

    def __init__(self, caller: str, token_names: Collection[str]) -> None:
        self.code: DecisionCode | None = None
        self._caller = caller
        self._token_names = frozenset(token_names)
        self._task = _current()
        self._cancelling = self._task.cancelling()

    def follow(self, own: str, contained: Contained) -> None:
        """End it, if it is to end by these containments. ``own``: SPIFFE ID of this workload."""
        if self.code is not None:
            return
        if own in contained:
            self.code = DecisionCode.IDENTITY_CONTAINED
        elif self._caller in contained:
            self.code = DecisionCode.CALLER_CONTAINED
        elif any(name in contained for name in self._token_names):
            self.code = DecisionCode.TOKEN_CONTAINED
        if self.code is not None:
            self._task.cancel(self.code)

    def check(self) -> None:
        """Raise ``CutOff`` where it is to end: an application may have gone on in spite of its cancellation."""
        if self.code is not None:
            raise CutOff(self.code)

    def is_only_ours(self) -> bool:
        """Whether a cancellation that has arrived is this one, and no other beside it; it is taken back then."""
        return self.code is not None and self._task.uncancel() <= self._cancelling


class Underway:
    """All calls that one process serves by one source of rules."""

    def __init__(self) -> None:
        self._calls: set[Serving] = set()
        self._own = ""
        self._contained: Contained = NOBODY

    @contextmanager
    def serving(self, caller: str, token: Any = None) -> Iterator[Serving]:
        """Serve a call that was let in, in the current task; raises ``CutOff`` once it is to end.

        ``token`` is the transaction token by which it was let in, if it was.
        """
        names = (token.caller, token.origin, token.approver) if token is not None else ()
        call = Serving(caller, names)
        self._calls.add(call)
        try:
            call.follow(self._own, self._contained)  # it was decided before this, perhaps by other rules
            yield call
        except asyncio.CancelledError:
            if call.code is not None and call.is_only_ours():
                raise CutOff(call.code) from None
            raise
        finally:
            self._calls.discard(call)

    def follow(self, own: str, contained: Contained) -> None:
        """Take newer containments, and end what is to end by them."""
        self._own, self._contained = own, contained
        if contained:
            for call in tuple(self._calls):
                call.follow(own, contained)


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "calls are served by tasks"
    return task
