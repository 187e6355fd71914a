"""A witness's memory: compare and store in one step, also between threads, and durable."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from eastwest.errors import Corrupt, Unavailable
from eastwest.log.witness import EMPTY, Seen
from eastwest.store.witness import MAX_CONFLICTS, Conflict, Signed, WitnessStore


def signed(size, origin="a.example/log"):
    return Signed(origin, Seen(size, size.to_bytes(32)), f"note {size}".encode(), 100 + size)


@pytest.fixture
def store(tmp_path):
    made = WitnessStore(tmp_path / "w.db")
    yield made
    made.close()


def test_what_is_stored_is_there_for_the_next_process(store, tmp_path):
    assert store.last("a.example/log") is None
    assert store.replace(EMPTY, signed(3))
    assert not store.replace(EMPTY, signed(5)), "something was signed since"
    assert not store.replace(Seen(3, bytes(32)), signed(5)), "another root"
    assert store.replace(signed(3).seen, signed(5))
    assert store.replace(EMPTY, signed(1, "b.example/log"))
    store.close()
    again = WitnessStore(tmp_path / "w.db")
    assert again.all() == [signed(5), signed(1, "b.example/log")]
    assert again.last("a.example/log") == signed(5)
    again.close()


def test_of_racing_requests_one_wins(store):
    barrier = threading.Barrier(8)

    def race(size):
        barrier.wait(10)
        return store.replace(EMPTY, signed(size))

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(1, 9)))
    assert won.count(True) == 1
    assert store.last("a.example/log") == signed(1 + won.index(True))


def test_evidence_is_kept_and_bounded(store):
    kept = [
        store.keep(Conflict("a.example/log", number, "why", b"theirs %d" % number, b"ours"))
        for number in range(MAX_CONFLICTS + 5)
    ]
    assert kept == [True] * MAX_CONFLICTS + [False] * 5
    assert store.keep(Conflict("b.example/log", 7, "why", b"theirs 0", b"ours"))
    assert not store.keep(Conflict("b.example/log", 8, "again", b"theirs 0", b"ours"))
    found = store.conflicts()
    assert len(found) == MAX_CONFLICTS + 1
    assert found[0] == Conflict("a.example/log", 0, "why", b"theirs 0", b"ours")


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "w.db").write_bytes(b"not a database at all, but long enough to be looked at" * 30)
    with pytest.raises(Corrupt, match="damaged"):
        WitnessStore(tmp_path / "w.db")
    with pytest.raises(Unavailable):
        WitnessStore(tmp_path / "no" / "such" / "folder.db")
