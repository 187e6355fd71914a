"""The log against the recursive definitions of RFC 6962, for random sizes and contents."""

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.log.entry import Entry, MalformedEntry, decode, encode
from eastwest.log.note import MalformedNote, NoteKey, UntrustedNote, open_note, sign_note
from eastwest.log.proof import (
    LogProof,
    MalformedProof,
    consistency_proof,
    inclusion_proof,
    verify_consistency,
    verify_inclusion,
)
from eastwest.log.tiles import Growth, TileReader, decode_bundle, encode_bundle
from eastwest.log.tree import leaf_hash, root_of
from eastwest.log.verify import verify_log
from eastwest.testing.log import TestSigner, build_files
from eastwest.testing.rfc6962 import naive_consistency, naive_inclusion, naive_root

SIGNER = TestSigner()
KEY = NoteKey.of("a.example/log", SIGNER)
ENTRIES = [b"%d" % i for i in range(1200)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
sizes = st.integers(1, len(ENTRIES))


@given(size=sizes)
@settings(max_examples=40, deadline=None)
def test_the_root_is_the_rfcs(size):
    assert root_of(LEAVES[:size]) == naive_root(ENTRIES[:size])


@given(st.lists(st.integers(0, 300), max_size=8))
@settings(max_examples=30, deadline=None)
def test_growing_in_any_steps_gives_one_tree(steps):
    growth, done = Growth(), 0
    for step in steps:
        step = min(step, len(LEAVES) - done)  # noqa: PLW2901
        growth = Growth(growth.size, growth.edge)
        growth.extend(LEAVES[done : done + step])
        done += step
    assert (growth.size, growth.root()) == (done, root_of(LEAVES[:done]))


@given(data=st.data(), size=sizes)
@settings(max_examples=40, deadline=None)
def test_proofs_out_of_tiles_are_the_rfcs_and_verify(data, size):
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    reader = TileReader(build_files(ENTRIES[:size], KEY.name, SIGNER), size)
    inclusion = inclusion_proof(index, size, reader.node)
    assert inclusion == naive_inclusion(index, ENTRIES[:size])
    verify_inclusion(LEAVES[index], index, size, inclusion, root_of(LEAVES[:size]))
    consistency = consistency_proof(old, size, reader.node)
    assert consistency == naive_consistency(old, ENTRIES[:size])
    verify_consistency(old, size, consistency, root_of(LEAVES[:old]), root_of(LEAVES[:size]))


@given(data=st.data(), size=st.integers(1, 600))
@settings(max_examples=150, deadline=None)
def test_any_changed_byte_in_any_file_is_found_and_located(data, size):
    files = build_files(ENTRIES[:size], KEY.name, SIGNER)
    path = data.draw(st.sampled_from(sorted(files)))
    at = data.draw(st.integers(0, len(files[path]) - 1))
    mask = data.draw(st.integers(1, 255))
    changed = bytearray(files[path])
    changed[at] ^= mask
    files[path] = bytes(changed)
    report = verify_log(files, KEY, files)
    assert not report.ok
    assert {problem.where for problem in report.problems} == {path}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text().filter(lambda name: name not in {"v", "kind"}), json_values, max_size=6), st.text())
def test_entries_go_there_and_back(facts, kind):
    body = {**facts, "time": "t", "actor": "a", "subject": "s"}
    raw = encode(Entry(kind, body))
    assert decode(raw) == Entry(kind, body)
    assert encode(decode(raw)) == raw


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(raw):
    with contextlib.suppress(MalformedEntry):
        assert encode(decode(raw)) == raw


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_bundles_go_there_and_back(entries):
    assert decode_bundle(encode_bundle(entries)) == entries


NOTE = sign_note("line\nline\n", KEY.name, SIGNER).encode()


@given(at=st.integers(0, len(NOTE) - 1), byte=st.integers(0, 255))
def test_no_changed_note_opens(at, byte):
    changed = NOTE[:at] + bytes([byte]) + NOTE[at + 1 :]
    try:
        assert open_note(changed, [KEY]) == "line\nline\n"
        assert changed == NOTE
    except (MalformedNote, UntrustedNote):
        assert changed != NOTE


@given(st.text(max_size=300) | st.text(max_size=300).map(lambda tail: "c2sp.org/tlog-proof@v1\nindex 1\n" + tail))
def test_any_text_is_a_proof_or_refused(text):
    with contextlib.suppress(MalformedProof, MalformedNote):
        assert LogProof.parse(text).text == text
