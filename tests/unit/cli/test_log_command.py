"""``eastwest log`` on a directory of public files."""

import json
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from eastwest.cli.log import app
from eastwest.errors import Corrupt, FailedPrecondition, InvalidInput, NotFound
from eastwest.log.entry import Entry, encode
from eastwest.log.note import MalformedNote, NoteKey, UntrustedNote
from eastwest.log.proof import LogProof
from eastwest.store.log_index import Covered, SqliteLogIndex
from eastwest.testing.log import ORIGIN, TestSigner, build_files

SIGNER = TestSigner()
KEY = NoteKey.of(ORIGIN, SIGNER)
TIME = datetime(2026, 11, 22, tzinfo=UTC)


def entry(index):
    kind = "x509-svid" if index % 3 else "policy"
    return encode(Entry(kind, {"time": TIME, "actor": "spiffe://a/agent", "subject": f"spiffe://a/w{index}"}))


ENTRIES = [entry(i) for i in range(300)]


@pytest.fixture
def data(tmp_path):
    for path, content in build_files(ENTRIES, ORIGIN, SIGNER).items():
        file = tmp_path / "server/log" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (tmp_path / "server/log.vkey").write_text(KEY.vkey + "\n")
    return tmp_path


def call(*args, code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_verify_says_what_it_verified(data):
    assert "is whole: 300 entries" in call("verify", "--data", data)
    report = json.loads(call("verify", "--data", data, "--json"))
    assert (report["ok"], report["size"], report["origin"], report["problems"]) == (True, 300, ORIGIN, [])


def test_verify_needs_only_files_and_key(data, tmp_path):
    moved = tmp_path / "elsewhere"
    (data / "server/log").rename(moved)
    assert "is whole" in call("verify", "--log-dir", moved, "--vkey", data / "server/log.vkey")
    assert "is whole" in call("verify", "--log-dir", moved, "--vkey", KEY.vkey)


def test_verify_names_the_changed_entry_and_fails(data):
    bundle = data / "server/log/tile/entries/000"
    bundle.write_bytes(bundle.read_bytes().replace(b"spiffe://a/w7", b"spiffe://a/w8"))
    output = call("verify", "--data", data, code=1)
    assert "tile/entries/000: entry 7 was changed" in output
    assert "does not verify: " in output
    report = json.loads(call("verify", "--data", data, "--json", code=1))
    assert report["ok"] is False
    assert (report["problems"][0]["where"], report["problems"][0]["entry"]) == ("tile/entries/000", 7)


def test_verify_with_another_key_fails(data):
    other = NoteKey.of(ORIGIN, TestSigner(b"\x01" * 32)).vkey
    assert "checkpoint: the note is not signed" in call("verify", "--data", data, "--vkey", other, code=1)


def test_prove_prints_a_receipt_that_verifies(data):
    text = call("prove", 299, "--data", data)
    assert LogProof.parse(text).verify(ENTRIES[299], KEY).size == 300
    answer = json.loads(call("prove", 0, "--data", data, "--json"))
    assert answer["entry"]["subject"] == "spiffe://a/w0"
    LogProof.parse(answer["proof"]).verify(ENTRIES[0], KEY)
    with pytest.raises(NotFound, match="no entry 300"):
        call("prove", 300, "--data", data)


def test_a_search_that_cannot_be_meant_is_refused(data):
    for words in (("search", "--serial", "zz"), ("prove", "--serial", "5g")):
        with pytest.raises(InvalidInput, match="no serial number in hex"):
            call(*words, "--data", data)
    # Zeros are a number, not the lack of one: that would be any entry.
    with pytest.raises(NotFound, match="is about serial 00"):
        call("prove", "--serial", "00", "--data", data)
    assert call("search", "--serial", "00", "--data", data).startswith("0 of 300")
    with pytest.raises(InvalidInput, match="ends before it begins"):
        call("search", "--from", "2026-11-23", "--to", "2026-11-22", "--data", data)
    assert "'yesterday' is no time" in call("search", "--from", "yesterday", "--data", data, code=2)


def test_times_may_be_how_long_ago_and_an_unknown_kind_is_told(data):
    assert call("search", "--from", "99999d", "--limit", 1, "--data", data).startswith("     299")
    assert "note: no kind 'x509_svid.isued' is known (did you mean 'x509_svid.issued'?)" in call(
        "search", "--kind", "x509_svid.isued", "--data", data
    )


def test_a_directory_with_no_log_is_not_taken_for_a_damaged_one(data):
    with pytest.raises(NotFound, match="there is no log in"):
        call("verify", "--log-dir", data, "--vkey", KEY.vkey)


def test_show_lists_the_latest_entries(data):
    lines = call("show", "--data", data, "--limit", 3).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["297", "298", "299"]
    assert "spiffe://a/w299" in lines[2]
    assert lines[3].startswith("3 of 300 entries shown")
    shown = json.loads(call("show", "--data", data, "--kind", "policy", "--limit", 2, "--json"))
    assert [row["index"] for row in shown["entries"]] == [294, 297]
    assert shown["entries"][0]["entry"]["kind"] == "policy"


def test_nothing_false_is_shown_or_proven(data):
    bundle = data / "server/log/tile/entries/001.p/44"
    bundle.write_bytes(bundle.read_bytes().replace(b"spiffe://a/w299", b"spiffe://a/w298"))
    for command in (("show",), ("prove", 299)):
        with pytest.raises(Corrupt, match="entry 299"):
            call(*command, "--data", data)
    checkpoint = data / "server/log/checkpoint"
    checkpoint.write_bytes(checkpoint.read_bytes().replace(b"\n300\n", b"\n301\n"))
    with pytest.raises(UntrustedNote):
        call("show", "--data", data)


def test_what_is_missing_is_said(data, tmp_path):
    with pytest.raises(InvalidInput, match="which log"):
        call("verify")
    with pytest.raises(NotFound, match="there is no log in"):
        call("verify", "--data", tmp_path / "nowhere")
    with pytest.raises(MalformedNote):
        call("verify", "--data", data, "--vkey", "not+a+key")
    (data / "server/log.vkey").unlink()
    with pytest.raises(NotFound, match=r"log\.vkey cannot be read"):
        call("verify", "--data", data)


def test_search_finds_what_is_asked_for_and_proves_it(data):
    lines = call("search", "--data", data, "--subject", "spiffe://a/w7").splitlines()
    assert lines[0].split()[0] == "7"
    assert lines[1].startswith("1 of 300 entries, each proven against the checkpoint of")
    found = json.loads(call("search", "--data", data, "--kind", "policy", "--limit", 3, "--json"))
    assert [hit["index"] for hit in found["entries"]] == [291, 294, 297]
    assert found["limited"] is True
    oldest = json.loads(call("search", "--data", data, "--kind", "policy", "--limit", 2, "--oldest", "--json"))
    assert [hit["index"] for hit in oldest["entries"]] == [0, 3]
    rows = call("search", "--data", data, "--spiffe-id", "spiffe://a/w8", "--csv").splitlines()
    assert rows == [
        "index,time,kind,subject,actor,node,entry_id,serial,certificate_sha256",
        "8,2026-11-22T00:00:00.000000Z,x509-svid,spiffe://a/w8,spiffe://a/agent,,,,",
    ]
    assert call("search", "--data", data, "--to", "2026-11-22").startswith("0 of 300")
    with pytest.raises(InvalidInput, match="exclude each other"):
        call("search", "--data", data, "--json", "--csv")


def test_search_of_a_copy_keeps_an_index_where_it_is_told(data, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    (data / "server/log").rename(copy)
    given = ("search", "--log-dir", copy, "--vkey", KEY.vkey, "--subject", "spiffe://a/w299", "--json")
    assert json.loads(call(*given))["entries"][0]["index"] == 299
    monkeypatch.setattr("eastwest.cli.log_search.MAX_UNINDEXED", 100)
    with pytest.raises(FailedPrecondition, match="no index of most of the 300 entries") as caught:
        call(*given)
    assert "--index FILE" in caught.value.fix
    for _ in range(2):
        assert json.loads(call(*given, "--index", tmp_path / "index.db"))["entries"][0]["index"] == 299
    assert (tmp_path / "index.db").stat().st_size > 4096


def test_search_on_a_stopped_server_brings_its_index_up_to_date(data, monkeypatch):
    monkeypatch.setattr("eastwest.cli.log_search.MAX_UNINDEXED", 100)
    index = data / "server/log-index.db"
    assert (
        json.loads(call("search", "--data", data, "--subject", "spiffe://a/w5", "--json"))["entries"][0]["index"] == 5
    )
    assert index.exists()
    # An index of another log is not believed.
    index.unlink()
    other = SqliteLogIndex.open(index)
    other.add(0, [b"{}"] * 300, Covered(ORIGIN, 300, bytes(32)))
    other.close()
    assert (
        json.loads(call("search", "--data", data, "--subject", "spiffe://a/w5", "--json"))["entries"][0]["index"] == 5
    )


def test_search_shows_nothing_that_was_changed(data):
    bundle = data / "server/log/tile/entries/000"
    bundle.write_bytes(bundle.read_bytes().replace(b"spiffe://a/w77", b"spiffe://a/w99"))
    with pytest.raises(Corrupt, match="entry 77 was changed"):
        call("search", "--data", data, "--subject", "spiffe://a/w99")
    tile = data / "server/log/tile/0/000"
    raw = bytearray(tile.read_bytes())
    raw[0] ^= 1
    tile.write_bytes(raw)
    with pytest.raises(Corrupt, match="does not have its hash in the tile above"):
        call("search", "--data", data, "--subject", "spiffe://a/w3")
