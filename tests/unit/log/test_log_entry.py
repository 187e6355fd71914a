"""Canonical entries: one fact, one encoding."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from eastwest.log.entry import MAX_ENTRY_BYTES, Entry, MalformedEntry, decode, encode

TIME = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
BODY = {"time": TIME, "actor": "spiffe://a/agent", "subject": "spiffe://a/web"}


def test_the_encoding_is_compact_sorted_and_complete():
    raw = encode(Entry("x509-svid", {**BODY, "serial": "0a", "dns": ["web"], "hours": 1, "ca": {"z": None, "b": True}}))
    assert raw == (
        b'{"actor":"spiffe://a/agent","ca":{"b":true,"z":null},"dns":["web"],"hours":1,"kind":"x509-svid",'
        b'"serial":"0a","subject":"spiffe://a/web","time":"2026-11-22T10:00:00.000000Z","v":1}'
    )
    assert raw == json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_a_time_is_written_in_utc_with_microseconds():
    local = datetime(2026, 11, 22, 12, 30, 0, 7, tzinfo=timezone(timedelta(hours=2)))
    fields = json.loads(encode(Entry("k", {**BODY, "time": local})))
    assert fields["time"] == "2026-11-22T10:30:00.000007Z"


def test_decoding_gives_back_what_was_written_with_times_as_text():
    raw = encode(Entry("k", {**BODY, "tenants": ("a", "ä\u2028\U0001f600")}))
    entry = decode(raw)
    assert entry.kind == "k"
    assert entry.body["time"] == "2026-11-22T10:00:00.000000Z"
    assert entry.body["tenants"] == ["a", "ä\u2028\U0001f600"]
    assert encode(entry) == raw


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("x", 1.0, "float"),
        ("x", [{"y": 0.5}], "float"),
        ("x", 2**53, "2\\^53"),
        ("x", -(2**53), "2\\^53"),
        ("x", b"raw", "bytes"),
        ("x", {1: "a"}, "names"),
        ("x", {"y": {"a"}}, "x.y: a set"),
        ("x", "\ud800", "JSON"),
        ("time", datetime(2026, 1, 1), "time zone"),  # noqa: DTZ001
        ("time", None, "needs time"),
        ("actor", 5, "needs actor"),
        ("kind", "other", "may not set"),
        ("v", 2, "may not set"),
        ("x", "a" * MAX_ENTRY_BYTES, "over the bound"),
    ],
)
def test_what_has_no_canonical_form_is_refused_by_name(field, value, message):
    with pytest.raises(MalformedEntry, match=message):
        encode(Entry("k", {**BODY, field: value}))


@pytest.mark.parametrize("missing", ["time", "actor", "subject"])
def test_the_required_fields_are_required(missing):
    with pytest.raises(MalformedEntry, match=missing):
        encode(Entry("k", {name: value for name, value in BODY.items() if name != missing}))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"v":2,"kind":"k"}',
        b'{"v":1}',
        encode(Entry("k", BODY)) + b" ",
        encode(Entry("k", BODY)).replace(b'"v":1', b'"v":1.0'),
        encode(Entry("k", BODY)).replace(b'"kind":"k"', b'"kind":"\\u006b"'),
        encode(Entry("k", BODY)).replace(b'"v":1', b'"v":1,"v":1'),
    ],
)
def test_bytes_that_are_no_canonical_entry_are_refused(raw):
    with pytest.raises(MalformedEntry):
        decode(raw)
