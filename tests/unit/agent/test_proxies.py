"""What sidecars sent against what came: losses that only the sender's own counters show."""

import struct
from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from eastwest.agent import metrics_wire
from eastwest.agent.proxies import MAX_PROXIES, Proxies, Received
from eastwest.agent.xds import Principal
from eastwest.ledger.record import Lost, LostReason
from eastwest.testing.clock import START, FakeClock

ME = Principal(("spiffe://td.test/a",), 42)


class Node:
    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.lost: list[Lost] = []
        self.received = Received(path)
        self.received.open()
        self.proxies = Proxies(identify, self.received, self.lost.extend, self.clock)

    def told(self, sent: int, dropped: int = 0, *, after: float = 5) -> None:
        self.clock.advance(after)
        self.proxies.told(ME, "n", sent, dropped)


async def identify(_call: object) -> Principal:
    return ME


def test_what_came_is_not_lost_and_what_is_on_its_way_is_not_either(tmp_path):
    node = Node(tmp_path / "proxies")
    for _ in range(5):
        node.received.add("n", 42, 10)
        node.told(sent=node.received.proxy("n", 42).accounted)
    node.told(sent=70)
    assert node.lost == []
    node.received.add("n", 42, 20)
    node.told(sent=70)
    assert node.lost == []


def test_what_did_not_come_until_the_next_word_is_lost_once(tmp_path):
    node = Node(tmp_path / "proxies")
    node.received.add("n", 42, 10)
    node.told(sent=10)
    node.told(sent=25, dropped=2)
    node.received.add("n", 42, 5)
    node.told(sent=30, dropped=2)
    assert [(row.count, row.cause, row.node) for row in node.lost] == [(12, LostReason.PROXY_DROPPED, "n")]
    assert (node.lost[0].time, node.lost[0].until) == (START + timedelta(seconds=5), START + timedelta(seconds=10))
    node.received.add("n", 42, 5)
    node.told(sent=30, dropped=2)
    node.told(sent=30, dropped=2)
    assert sum(row.count for row in node.lost) == 12


def test_two_words_that_come_at_once_settle_nothing(tmp_path):
    """After the agent stood still, words are read before the entries that were sent between them."""
    node = Node(tmp_path / "proxies")
    node.told(sent=0)
    node.told(sent=50)
    node.told(sent=90, after=0.01)
    node.received.add("n", 42, 90)
    node.told(sent=90)
    assert node.lost == []


def test_a_count_outlives_the_agent(tmp_path):
    first = Node(tmp_path / "proxies")
    first.received.add("n", 42, 100)
    first.received.add("other", 43, 5)
    # Killed: nothing is closed.
    second = Node(tmp_path / "proxies")
    second.received.add("n", 42, 7)
    second.told(sent=130)
    second.told(sent=130)
    assert [row.count for row in second.lost] == [23]
    first.received.close()
    second.received.close()
    third = Node(tmp_path / "proxies")
    third.told(sent=130)
    third.told(sent=130)
    assert third.lost == []
    assert (tmp_path / "proxies").stat().st_mode & 0o777 == 0o600


def test_a_sidecar_that_began_while_no_agent_ran_has_lost_what_it_sent(tmp_path):
    Node(tmp_path / "proxies").received.add("other", 1, 1)
    node = Node(tmp_path / "proxies")
    node.told(sent=9)
    node.told(sent=9)
    assert [row.count for row in node.lost] == [9]


def test_nothing_is_made_up_where_no_count_was_ever_kept(tmp_path):
    node = Node(tmp_path / "proxies")
    node.received.add("n", 42, 3)
    node.told(sent=5_000)
    node.told(sent=5_000)
    assert node.lost == []
    node.told(sent=5_010)
    node.told(sent=5_010)
    assert [row.count for row in node.lost] == [10]


def test_a_file_that_cannot_be_written_takes_nothing_but_memory_away(tmp_path):
    (tmp_path / "f").write_text("")
    node = Node(tmp_path / "f" / "proxies")
    node.received.add("n", 42, 3)
    node.told(sent=3)
    node.told(sent=3)
    node.told(sent=4)
    node.told(sent=4)
    assert [row.count for row in node.lost] == [1]


def family(name: bytes, value: bytes) -> bytes:
    counter = b"\x09" + value
    metric = b"\x1a" + bytes([len(counter)]) + counter
    body = b"\x0a" + bytes([len(name)]) + name + b"\x22" + bytes([len(metric)]) + metric
    return b"\x12" + bytes([len(body)]) + body


def test_counters_are_found_among_others():
    one, half = b"\x00" * 6 + b"\xf0\x3f", b"\x00" * 6 + b"\xe0\x3f"
    message = metrics_wire.Message.FromString(family(b"a.b", one) + family(b"c", half))
    assert metrics_wire.counters(message, {"a.b", "nothing"}) == {"a.b": 1}
    assert metrics_wire.node_id(message) == ""


@given(st.binary(max_size=100))
def test_any_bytes_are_a_message_or_are_refused(data):
    try:
        message = metrics_wire.Message.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            metrics_wire.Message.FromString(data)
        return
    assert metrics_wire.counters(message, ()) == {}


def test_names_that_a_process_makes_up_push_out_its_own_alone(tmp_path):
    node = Node(tmp_path / "proxies")
    node.received.add("victim", 10, 1_000_000)
    victim = Principal(("spiffe://td.test/v",), 10)
    node.proxies.told(victim, "victim", 1_000_000, 0)
    for number in range(2 * MAX_PROXIES):
        node.received.add(f"n{number}", 42, 1)
    node.clock.advance(5)
    node.proxies.told(victim, "victim", 1_000_000, 0)
    node.clock.advance(5)
    node.proxies.told(victim, "victim", 1_000_007, 0)
    node.clock.advance(5)
    node.proxies.told(victim, "victim", 1_000_007, 0)
    assert [(row.node, row.count) for row in node.lost] == [("victim", 7)]
    assert (tmp_path / "proxies").stat().st_size <= 16 * 32


def test_what_was_forgotten_for_want_of_room_does_not_look_lost(tmp_path):
    node = Node(tmp_path / "proxies")
    node.received.add("victim", 10, 1_000_000)
    for pid in range(1_000, 1_000 + MAX_PROXIES):
        node.received.add("n", pid, 1)
    victim = Principal(("spiffe://td.test/v",), 10)
    for sent in (1_000_000, 1_000_000, 1_000_009, 1_000_009):
        node.proxies.told(victim, "victim", sent, 0)
        node.clock.advance(5)
    assert [row.count for row in node.lost] == [9]
    assert (tmp_path / "proxies").stat().st_size == MAX_PROXIES * 32


def test_a_name_that_another_process_has_too_is_not_told_as_its_own(tmp_path):
    node = Node(tmp_path / "proxies")
    node.received.add("victim", 10, 5)
    node.received.add("other", 11, 1)
    forger = Principal(("spiffe://td.test/e",), 66)
    for sent in (0, 1 << 40, 1 << 40):
        node.proxies.told(forger, "victim", sent, 0)
        node.clock.advance(5)
    assert [(row.node, row.count) for row in node.lost] == [("spiffe://td.test/e pid 66", 1 << 24)]


@pytest.mark.parametrize("told", [float("inf"), float("-inf"), float("nan"), -1.0, 1e300])
def test_a_count_that_is_none_counts_as_none(told):
    message = metrics_wire.Message.FromString(family(b"a.b", struct.pack("<d", told)))
    assert metrics_wire.counters(message, {"a.b"}) == {"a.b": 0}
