"""The index of the log on SQLite: complete, ordered, rebuilt when it is of another log, and never trusted."""

import random

import pytest

from eastwest.errors import Corrupt, InvalidInput, NotFound
from eastwest.log.checkpoint import open_checkpoint
from eastwest.log.index import LogQuery, find
from eastwest.log.proven import ProvenReader
from eastwest.log.tree import leaf_hash
from eastwest.store.log_index import RUN, Covered, SqliteLogIndex, catch_up
from eastwest.testing.log import ORIGIN, MemoryLog

KINDS = ("x509_svid.issued", "jwt_svid.issued", "node.attested")


def made(index):
    chance = random.Random(index)
    fields = {
        "actor": f"spiffe://a/agent{chance.randrange(3)}",
        "kind": KINDS[chance.randrange(3)],
        "subject": f"spiffe://a/w{chance.randrange(40)}",
        "time": f"2026-11-22T{index // 3600 % 24:02}:{index // 60 % 60:02}:{index % 60:02}.000000Z",
        "v": 1,
    }
    if fields["kind"] == "x509_svid.issued":
        fields |= {"serial": f"{index:x}ab", "certificate_sha256": f"{index:064x}", "entry_id": f"e{index % 7}"}
        fields["node"] = fields["actor"]
    text = ",".join(
        f'"{name}":{value if name == "v" else f"{chr(34)}{value}{chr(34)}"}' for name, value in sorted(fields.items())
    )
    return f"{{{text}}}".encode()


ENTRIES = [made(index) for index in range(3000)]
ODD = [b"not JSON", b'{"kind":7,"subject":"spiffe://a/w1"}', b"[1]", b'{"serial":"", "kind":"\xc3\xa9"}']


def covered(entries):
    return Covered(ORIGIN, len(entries), leaf_hash(entries[-1]))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    made = SqliteLogIndex.open(tmp_path_factory.mktemp("index") / "index.db")
    # In parts of changing size, as they come.
    at = 0
    for size in (1, 5, 250, 1000, 1, 743, 1000):
        made.add(at, ENTRIES[at : at + size], covered(ENTRIES[: at + size]))
        at += size
    yield made
    made.close()


QUERIES = [
    {"subject": "spiffe://a/w3"},
    {"kind": "node.attested"},
    {"actor": "spiffe://a/agent1"},
    {"node": "spiffe://a/agent1"},
    {"serial": "7d0ab"},
    {"serial": "00:7D:0A:B"},
    {"certificate_sha256": f"{2000:064X}"},
    {"entry_id": "e3", "subject": "spiffe://a/w3"},
    {"subject": "spiffe://a/w3", "kind": "jwt_svid.issued", "actor": "spiffe://a/agent0"},
    {"start": "2026-11-22T00:10:00Z", "end": "2026-11-22T00:11:00Z"},
    {"start": "2026-11-22T00:40:00+00:00", "kind": "node.attested"},
    {"end": "2026-11-22T00:00:03.000000Z"},
    {"start": "2026-11-23"},
    {"end": "2026-11-22"},
    {"subject": "spiffe://nobody/"},
    {},
]


@pytest.mark.parametrize("values", QUERIES, ids=str)
@pytest.mark.parametrize("newest_first", [False, True])
def test_it_finds_what_looking_at_every_entry_finds(index, values, newest_first):
    query = LogQuery(**values, newest_first=newest_first, limit=5000)
    wanted = [(i, raw) for i, raw in enumerate(ENTRIES) if query.normal().matches(raw)]
    if newest_first:
        wanted.reverse()
    assert list(find(index, ENTRIES.__getitem__, query)) == wanted
    few = LogQuery(**values, newest_first=newest_first, limit=3)
    assert list(find(index, ENTRIES.__getitem__, few)) == wanted[:3]
    # Page by page.
    pages, after = [], None
    while page := list(
        find(index, ENTRIES.__getitem__, LogQuery(**values, newest_first=newest_first, limit=400, after=after))
    ):
        pages += page
        after = page[-1][0]
    assert pages == wanted


def test_runs_do_not_mix(tmp_path):
    index = SqliteLogIndex.open(tmp_path / "index.db")
    entries = [b'{"kind":"k","subject":"s%d"}' % (i % 50_000) for i in range(2 * RUN + 10)]
    index.add(0, entries, covered(entries))
    for newest_first in (False, True):
        found = list(find(index, entries.__getitem__, LogQuery(subject="s7", kind="k", newest_first=newest_first)))
        wanted = [7, 50_007, 100_007]
        assert [number for number, _ in found] == (wanted[::-1] if newest_first else wanted)
    index.close()


def test_entries_of_any_form_are_indexed_as_far_as_they_go(tmp_path):
    index = SqliteLogIndex.open(tmp_path / "index.db")
    index.add(0, ODD, covered(ODD))
    assert [i for i, _ in find(index, ODD.__getitem__, LogQuery(subject="spiffe://a/w1"))] == [1]
    assert [i for i, _ in find(index, ODD.__getitem__, LogQuery(kind="é"))] == [3]
    index.close()


def test_only_what_follows_is_taken(tmp_path):
    index = SqliteLogIndex.open(tmp_path / "index.db")
    index.add(0, ENTRIES[:10], covered(ENTRIES[:10]))
    with pytest.raises(InvalidInput, match="do not continue"):
        index.add(11, ENTRIES[11:12], covered(ENTRIES[:12]))
    with pytest.raises(InvalidInput, match="do not continue"):
        index.add(10, ENTRIES[10:12], covered(ENTRIES[:11]))
    index.close()


async def test_it_catches_up_and_begins_anew_for_another_history(tmp_path):
    log = MemoryLog()
    await log.append(ENTRIES[:700])
    await log.flush()
    index = SqliteLogIndex.open(tmp_path / "index.db")

    def follow(log):
        reader = ProvenReader(log.files, open_checkpoint(log.files["checkpoint"], log.key))
        read = lambda start, end: [reader.entry(i) for i in range(start, end)]
        return list(catch_up(index, ORIGIN, reader.checkpoint.size, read, reader.leaf, batch=256))

    assert follow(log) == [256, 512, 700]
    assert follow(log) == []
    await log.append(ENTRIES[700:800])
    await log.flush()
    assert follow(log) == [768, 800]
    other = MemoryLog()
    await other.append(ENTRIES[800:1600])
    await other.flush()
    assert follow(other)[-1] == 800
    query = LogQuery(certificate_sha256=f"{_issued(0)[0]:064x}")
    assert list(find(index, ENTRIES[800:1600].__getitem__, query)) == []
    index.close()


def _issued(start):
    return [i for i in range(start, start + 700) if b"x509_svid" in ENTRIES[i]]


def test_a_file_that_is_no_index_is_made_anew(tmp_path):
    path = tmp_path / "index.db"
    with pytest.raises(NotFound):
        SqliteLogIndex.open(path, readonly=True)
    path.write_bytes(b"no database at all, but long enough to look at" * 50)
    with pytest.raises(NotFound, match="no usable index"):
        SqliteLogIndex.open(path, readonly=True)
    index = SqliteLogIndex.open(path)
    index.add(0, ENTRIES[:300], covered(ENTRIES[:300]))
    assert path.stat().st_mode & 0o777 == 0o600
    index.close()
    reader = SqliteLogIndex.open(path, readonly=True)
    assert reader.covered == covered(ENTRIES[:300])
    assert len(list(find(reader, ENTRIES.__getitem__, LogQuery()))) == 100
    reader.close()


def test_a_damaged_index_says_so(tmp_path):
    path = tmp_path / "index.db"
    index = SqliteLogIndex.open(path)
    index.add(0, ENTRIES, covered(ENTRIES))
    index.close()
    raw = bytearray(path.read_bytes())
    raw[4096 * 3 :] = bytes(len(raw) - 4096 * 3)
    path.write_bytes(raw)
    index = SqliteLogIndex.open(path, readonly=True)
    with pytest.raises(Corrupt, match="cannot be read"):
        index.search(LogQuery(subject="spiffe://a/w3"))
    index.close()


def test_a_false_index_shows_nothing_false(tmp_path):
    """It may hide entries; it cannot pass one off as another."""
    index = SqliteLogIndex.open(tmp_path / "index.db")
    forged = [ENTRIES[0]] * 300
    index.add(0, forged, covered(forged))
    hits = list(find(index, ENTRIES.__getitem__, LogQuery(subject="spiffe://a/w3")))
    assert all(b'"spiffe://a/w3"' in raw for _, raw in hits)
    index.close()


@pytest.mark.parametrize("values", [{"start": "yesterday"}, {"end": "2026-13-01"}, {"limit": 0}])
def test_what_cannot_be_asked_is_said(values):
    with pytest.raises(InvalidInput):
        LogQuery(**values).normal()
