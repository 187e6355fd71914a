"""The present state, and one counter for everything that can change what a caller is served."""

from __future__ import annotations

from eastwest.agent.changes import Changes
from eastwest.agent.state import State
from eastwest.agent.taint import Ground


class Knowledge:
    """``changes`` counts new states and SVIDs gained or lost alike: who serves waits on it and looks again."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.ground = Ground(state.bundle, state.tainted)
        self.changes = Changes()
        self.states = Changes()

    def set(self, state: State) -> None:
        """Replace the state whole."""
        self.state = state
        if not self.ground.same_as(state.bundle, state.tainted):
            self.ground = Ground(state.bundle, state.tainted)
        self.states.bump()
        self.changes.bump()
