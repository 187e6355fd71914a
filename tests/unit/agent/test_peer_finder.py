"""What an agent remembers of plaintext peers, and what it forgets."""

import pytest

from eastwest.agent.peers.finder import MAX_NAMES, NAMES_KEPT, PeerFinder
from eastwest.testing.clock import FakeClock


@pytest.fixture
def finder():
    made = PeerFinder(FakeClock())
    yield made
    made.close()


def test_names_that_nobody_has_any_more_make_room(finder):
    """A user whose jobs have ever new names must not cost the others theirs for as long as the agent lives."""
    told = [finder._bounded(77, f"uid:77 program:tmp{n}.sh") for n in range(MAX_NAMES + 10)]
    assert told[:MAX_NAMES] == [f"uid:77 program:tmp{n}.sh" for n in range(MAX_NAMES)]
    assert set(told[MAX_NAMES:]) == {"uid:77"}
    assert finder._bounded(78, "uid:78 program:other.sh") == "uid:78 program:other.sh"
    finder._clock.advance(NAMES_KEPT)
    assert finder._bounded(77, "uid:77 program:tmp3.sh") == "uid:77 program:tmp3.sh"
    assert finder._bounded(77, "uid:77 program:new.sh") == "uid:77"
    finder._clock.advance(1)
    assert finder._bounded(77, "uid:77 program:new.sh") == "uid:77 program:new.sh"
    assert [*finder._names[77]] == ["uid:77 program:tmp3.sh", "uid:77 program:new.sh"]
