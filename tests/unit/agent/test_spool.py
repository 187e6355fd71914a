"""The agent's spool: what it takes it keeps through kills, damage and full disks, or it says how much is missing."""

import itertools
import json
import os
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.agent.spool import MEMORY_LIMIT, MIN_LIMIT, Spool, forget
from eastwest.agent.spool_frame import Frame
from eastwest.entropy import SystemEntropy
from eastwest.ledger.record import MAX_COUNT, Decision, Lost, LostReason, Row
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.testing.clock import FakeClock

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
ROW = Decision(
    time=NOW,
    service="s",
    verdict=Verdict.DENY,
    code=DecisionCode.UNKNOWN_CALLER,
    mode=MtlsMode.STRICT,
    enforced=True,
    caller="spiffe://td.test/a",
)


class Server:
    """Stores each batch once, as the real one does."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.rows: list[Row] = []

    def report(self, spool: str, sequence: int, rows: bytes) -> int:
        if sequence > self.held.get(spool, 0):
            self.held[spool] = sequence
            self.rows += msgspec.json.decode(rows, type=list[Row])
        return self.held[spool]

    @property
    def references(self) -> list[str]:
        return [row.reference for row in self.rows if isinstance(row, Decision)]

    def lost(self, cause: LostReason | None = None) -> int:
        return sum(r.count for r in self.rows if isinstance(r, Lost) and cause in {None, r.cause})


def opened(path: Path, limit: int = 1 << 20, clock: FakeClock | None = None) -> Spool:
    spool = Spool(path, limit, clock or FakeClock(NOW), SystemEntropy())
    spool.open()
    return spool


_numbers = itertools.count()


def put(spool: Spool, count: int = 1, size: int = 0) -> list[str]:
    """One frame of ``count`` rows."""
    names = [f"r{next(_numbers):06}" for _ in range(count)]
    spool.took(count)
    rows = [msgspec.structs.replace(ROW, reference=name, path="x" * size) for name in names]
    spool.append(rows)
    return names


def drain(spool: Spool, server: Server) -> None:
    while (batch := spool.batch()) is not None:
        spool.delivered(batch, server.report(batch.spool, batch.sequence, batch.rows))
    spool.append([])  # what was found lost meanwhile
    while (batch := spool.batch()) is not None:
        spool.delivered(batch, server.report(batch.spool, batch.sequence, batch.rows))


def killed(path: Path, at: Path) -> Path:
    """What is on disk at this moment, as a kill would leave it."""
    shutil.copytree(path, at)
    return at


def test_what_is_kept_is_delivered_once_and_in_order(tmp_path):
    spool, server = opened(tmp_path / "spool"), Server()
    names = [name for _ in range(5) for name in put(spool, 3)]
    assert spool.status().waiting == 15
    drain(spool, server)
    assert server.references == names
    assert spool.status().waiting == 0
    spool.close()
    again = opened(tmp_path / "spool")
    drain(again, server)
    assert (server.references, server.lost()) == (names, 0)


def test_its_files_are_for_the_owner_alone(tmp_path):
    spool = opened(tmp_path / "spool")
    put(spool)
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "spool").iterdir()} == {0o600}


def test_a_new_run_takes_up_what_the_last_one_left(tmp_path):
    server = Server()
    names = []
    for _ in range(3):
        spool = opened(tmp_path / "spool")
        names += put(spool, 2) + put(spool, 2)
        spool.close()
    spool = opened(tmp_path / "spool")
    drain(spool, server)
    assert (server.references, server.lost()) == (names, 0)
    # Only the file that is written to is left.
    assert len(list((tmp_path / "spool").glob("*.spool"))) == 1


def test_an_answer_that_got_lost_does_not_double_anything(tmp_path):
    spool, server = opened(tmp_path / "spool"), Server()
    names = put(spool) + put(spool) + put(spool)
    batch = spool.batch()
    spool.delivered(batch, server.report(batch.spool, batch.sequence, batch.rows))
    batch = spool.batch()
    assert batch.frames == 2
    server.report(batch.spool, batch.sequence, batch.rows)
    spool.failed()
    names += put(spool)
    # The first alone: together with new ones it would be stored again.
    assert spool.batch().frames == 1
    drain(spool, server)
    assert server.references == names


def test_the_same_holds_over_a_kill(tmp_path):
    spool, server = opened(tmp_path / "spool"), Server()
    names = put(spool) + put(spool) + put(spool)
    first = spool.batch()
    spool.delivered(first, server.report(first.spool, first.sequence, first.rows))
    batch = spool.batch()
    server.report(batch.spool, batch.sequence, batch.rows)
    after = opened(killed(tmp_path / "spool", tmp_path / "after"))
    names += put(after)
    drain(after, server)
    assert (server.references, server.lost()) == (names, 0)


def test_what_a_kill_cut_off_is_counted(tmp_path):
    spool, server = opened(tmp_path / "spool"), Server()
    names = put(spool, 2)
    spool.took(5)  # on their way, in memory
    after = opened(killed(tmp_path / "spool", tmp_path / "after"))
    drain(after, server)
    assert (server.references, server.lost(LostReason.DISK)) == (names, 5)


def test_a_loss_found_at_the_start_outlives_a_kill_right_after_it(tmp_path):
    spool, server = opened(tmp_path / "spool"), Server()
    put(spool, 2)
    spool.took(5)
    opened(killed(tmp_path / "spool", tmp_path / "after"))
    last = opened(killed(tmp_path / "after", tmp_path / "last"))
    drain(last, server)
    assert server.lost(LostReason.DISK) == 5


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_wherever_the_last_file_is_torn_nothing_is_silent(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("torn") / "spool"
    spool, server = opened(path), Server()
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    names = [put(spool, size) for size in sizes]
    (file,) = path.glob("*.spool")
    cut = int(data.draw(st.floats(0, 1)) * file.stat().st_size)
    os.truncate(file, cut)
    after = opened(path)
    drain(after, server)
    flat = [name for each in names for name in each]
    assert server.references == flat[: len(server.references)]
    assert len(server.references) + server.lost(LostReason.DISK) == len(flat)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whichever_byte_is_flipped_nothing_is_silent(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flipped") / "spool"
    spool, server = opened(path), Server()
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    names = [name for size in sizes for name in put(spool, size)]
    if data.draw(st.booleans(), "a new run before"):
        spool.close()
    (file,) = path.glob("*.spool")
    content = bytearray(file.read_bytes())
    content[int(data.draw(st.floats(0, 1, exclude_max=True)) * len(content))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    after = opened(path)
    drain(after, server)
    missing = [name for name in names if name not in server.references]
    assert len(server.references) == len(set(server.references)) < len(names)
    assert server.lost(LostReason.DISK) == len(missing)


def test_damage_while_it_runs_is_counted_too(tmp_path):
    spool, server = opened(tmp_path / "spool"), Server()
    put(spool, 3)
    names = put(spool, 2)
    (file,) = (tmp_path / "spool").glob("*.spool")
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.write_bytes(content)
    drain(spool, server)
    assert (server.references, server.lost(LostReason.DISK)) == (names, 3)


def test_a_file_that_somebody_removes_is_counted(tmp_path):
    spool, server = opened(tmp_path / "spool"), Server()
    put(spool, 3)
    spool.close()
    after = opened(tmp_path / "spool")
    min((tmp_path / "spool").glob("*.spool")).unlink()
    names = put(after)
    drain(after, server)
    assert (server.references, server.lost(LostReason.DISK)) == (names, 3)


def test_a_full_spool_drops_the_oldest_and_counts_them(tmp_path):
    spool, server = opened(tmp_path / "spool", MIN_LIMIT), Server()
    names = []
    for _ in range(200):
        names += put(spool, 10, size=200)
        assert sum(p.stat().st_size for p in (tmp_path / "spool").glob("*.spool")) <= MIN_LIMIT
    assert spool.status().full
    drain(spool, server)
    kept = server.references
    assert 0 < len(kept) < len(names)
    assert names[-len(kept) :] == kept
    assert server.lost(LostReason.SPOOL_FULL) == len(names) - len(kept)
    assert server.lost() == len(names) - len(kept)
    assert not spool.status().full


def test_a_row_too_large_for_the_server_is_counted_and_the_others_go(tmp_path):
    spool, server = opened(tmp_path / "spool"), Server()
    spool.took(2)
    spool.append([msgspec.structs.replace(ROW, path="x" * 20_000), msgspec.structs.replace(ROW, reference="r")])
    drain(spool, server)
    assert (server.references, server.lost(LostReason.REFUSED)) == (["r"], 1)


def test_many_rows_are_cut_into_batches_that_the_server_takes(tmp_path):
    spool, server = opened(tmp_path / "spool", 64 << 20), Server()
    names = put(spool, 5_000, size=100)
    while (batch := spool.batch()) is not None:
        assert len(batch.rows) < 2 << 20
        assert len(json.loads(batch.rows)) <= 20_000
        spool.delivered(batch, server.report(batch.spool, batch.sequence, batch.rows))
    assert server.references == names


def test_a_directory_that_cannot_be_used_leaves_memory(tmp_path):
    (tmp_path / "spool").write_text("in the way")
    clock = FakeClock(NOW)
    spool, server = opened(tmp_path / "spool", clock=clock), Server()
    assert "spool" in spool.status().problem
    assert not spool.status().records
    names = put(spool, 3)
    drain(spool, server)
    assert server.references == names
    names += put(spool, 2)
    (tmp_path / "spool").unlink()
    clock.advance(10)
    names += put(spool, 2)
    assert spool.status().problem == ""
    drain(spool, server)
    assert sorted(server.references) == sorted(names)
    assert server.lost() == 0


def test_memory_is_bounded_and_what_it_drops_is_counted(tmp_path):
    (tmp_path / "spool").write_text("in the way")
    spool, server = opened(tmp_path / "spool"), Server()
    names = []
    while len(names) * 300 < 1.3 * MEMORY_LIMIT:
        names += put(spool, 2_000, size=250)
    assert spool.status().used <= MEMORY_LIMIT
    drain(spool, server)
    assert names[-len(server.references) :] == server.references
    assert server.lost(LostReason.DISK) == len(names) - len(server.references) > 0


class Broken:
    """A disk on which ``os.write`` fails from some point on, after it took a part."""

    def __init__(self, monkeypatch, error: int, takes: int = 20) -> None:
        self._real, self._error, self._takes, self.works = os.write, error, takes, False
        monkeypatch.setattr("eastwest.agent.spool.os.write", self._write)
        monkeypatch.setattr("eastwest.agent.spool.Spool._probe", lambda _: self._check())

    def _write(self, descriptor: int, data: bytes) -> int:
        if self.works:
            return self._real(descriptor, data)
        if self._takes:
            self._takes, part = 0, self._takes
            return self._real(descriptor, data[:part])
        raise OSError(self._error, os.strerror(self._error))

    def _check(self) -> None:
        if not self.works:
            raise OSError(self._error, os.strerror(self._error))


def test_a_disk_that_fills_up_in_the_middle_of_a_frame_costs_nothing(tmp_path, monkeypatch):
    clock = FakeClock(NOW)
    spool, server = opened(tmp_path / "spool", clock=clock), Server()
    names = put(spool, 2)
    disk = Broken(monkeypatch, 28)
    names += put(spool, 3)
    assert "No space left" in spool.status().problem
    names += put(spool, 1)
    disk.works = True
    clock.advance(10)
    names += put(spool, 2)
    assert spool.status().problem == ""
    drain(spool, server)
    assert sorted(server.references) == sorted(names)
    spool.close()
    again = opened(tmp_path / "spool")
    drain(again, server)
    assert (len(server.references), server.lost()) == (len(names), 0)


def test_what_was_in_memory_alone_when_it_was_killed_is_said_to_be_missing(tmp_path, monkeypatch):
    spool, server = opened(tmp_path / "spool"), Server()
    put(spool, 2)
    Broken(monkeypatch, 5)
    put(spool, 3)
    after = opened(killed(tmp_path / "spool", tmp_path / "after"))
    monkeypatch.undo()
    drain(after, server)
    losses = [row for row in server.rows if isinstance(row, Lost)]
    assert [(row.count, row.cause) for row in losses] == [(0, LostReason.DISK)]
    assert losses[0].until - losses[0].time < timedelta(minutes=1)


def test_a_damaged_state_makes_no_losses_up(tmp_path):
    spool, server = opened(tmp_path / "spool"), Server()
    names = put(spool) + put(spool)
    batch = spool.batch()
    spool.delivered(batch, server.report(batch.spool, batch.sequence, batch.rows))
    (tmp_path / "spool" / "state").write_bytes(os.urandom(80))
    after = opened(killed(tmp_path / "spool", tmp_path / "after"))
    drain(after, server)
    assert (server.references, server.lost()) == (names, 0)


@given(st.binary(max_size=200))
def test_a_line_is_a_frame_or_none(content):
    assert Frame.parse(content + b"\n") is None
    frame = Frame("ab" * 16, 3, 5, 9, NOW, NOW, b"[]")
    assert Frame.parse(frame.encode()) == frame
    with pytest.raises(AttributeError):
        frame.calls = 1


def test_a_spool_is_forgotten_only_when_all_in_it_is_told(tmp_path):
    spool, server = opened(tmp_path / "spool"), Server()
    names = put(spool, 2)
    spool.close()
    assert not forget(tmp_path / "spool")
    again = opened(tmp_path / "spool")
    drain(again, server)
    again.close()
    third = opened(tmp_path / "spool")
    drain(third, server)
    third.close()
    assert (server.references, server.lost()) == (names, 0)
    assert forget(tmp_path / "spool")
    assert not (tmp_path / "spool").exists()


def test_a_loss_beyond_what_one_row_may_stand_for_is_several_rows(tmp_path):
    """The server would refuse such a row, and with it all that others decided meanwhile."""
    spool, server = opened(tmp_path / "spool"), Server()
    for _ in range(3):
        spool.confess(Lost(time=NOW, until=NOW, count=MAX_COUNT - 1, cause=LostReason.SDK_DROPPED))
    names = put(spool, 3)
    drain(spool, server)
    assert server.references == names
    assert [row.count for row in server.rows if isinstance(row, Lost)] == [MAX_COUNT, MAX_COUNT, MAX_COUNT - 3]


def test_one_services_flood_pushes_out_nothing_of_others(tmp_path):
    spool, server = opened(tmp_path / "spool", limit=8 << 20), Server()
    names = put(spool, 50)
    flood = msgspec.structs.replace(ROW, service="flood", operation="o" * 250, tenant="t" * 1_000)
    for number in range(40):
        spool.took(4_000)
        spool.append([msgspec.structs.replace(flood, reference=f"{number}-{row}") for row in range(4_000)])
        batch = spool.batch()
        while batch is not None:
            spool.delivered(batch, server.report(batch.spool, batch.sequence, batch.rows))
            batch = spool.batch() if spool.status().used > 6 << 20 else None
        assert spool.status().records
    drain(spool, server)
    assert server.references[:50] == names
    assert {row.service for row in server.rows if isinstance(row, Lost)} == {"flood"}
    assert len(server.references) - 50 + server.lost(LostReason.SPOOL_FULL) == 40 * 4_000
