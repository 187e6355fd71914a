"""The witness protocol as values: each status of the specification, and answers that lie."""

import base64

import pytest

from eastwest.log.checkpoint import Checkpoint, sign_checkpoint
from eastwest.log.note import MalformedNote, NoteKey, UntrustedNote, cosign
from eastwest.log.proof import consistency_proof
from eastwest.log.tiles import TileReader
from eastwest.log.tree import EMPTY_ROOT, leaf_hash, root_of
from eastwest.log.witness import (
    EMPTY,
    AddCheckpoint,
    ForkFound,
    Seen,
    compare,
    judge,
    origin_hash,
    read_cosignatures,
    read_size,
)
from eastwest.testing.log import ORIGIN, TestSigner, build_files

SIGNER = TestSigner()
KEY = NoteKey.of(ORIGIN, SIGNER)
LOGS = {ORIGIN: [KEY]}
ENTRIES = [f"entry {i}".encode() for i in range(700)]
ROOTS = {size: root_of(map(leaf_hash, ENTRIES[:size])) for size in (0, 1, 5, 256, 300, 700)}


def head(size, root=None, origin=ORIGIN, signer=SIGNER):
    return sign_checkpoint(Checkpoint(origin, size, root or ROOTS[size]), signer).encode()


def request(old, new, **options):
    node = TileReader(build_files(ENTRIES[:new], ORIGIN, SIGNER), new).node
    return AddCheckpoint(old, tuple(consistency_proof(old, new, node)), head(new, **options))


def answer(asked, size=0):
    return judge(asked, LOGS, {ORIGIN: Seen(size, ROOTS[size])} if size else {})


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 1), (0, 700), (1, 5), (5, 5), (5, 256), (256, 300), (300, 700)])
def test_what_is_consistent_is_to_be_signed(old, new):
    asked = request(old, new)
    assert AddCheckpoint.parse(asked.encode()) == asked
    verdict = answer(asked, old)
    assert (verdict.status, verdict.checkpoint, verdict.signed_by) == (200, Checkpoint(ORIGIN, new, ROOTS[new]), (KEY,))


OTHER = bytes(32)


@pytest.mark.parametrize(
    ("asked", "known", "status", "is_fork"),
    [
        (request(0, 5, origin="other.example/log"), 0, 404, False),
        (request(0, 5, signer=TestSigner(b"\x05" * 32)), 0, 403, False),
        (AddCheckpoint(0, (), head(5).replace(b"\n5\n", b"\n6\n")), 0, 403, False),
        (AddCheckpoint(6, (), head(5)), 0, 400, False),
        (AddCheckpoint(0, (), b"not a note"), 0, 400, False),
        (request(0, 300), 256, 409, False),
        (request(1, 300), 0, 409, False),
        (AddCheckpoint(0, (), head(5, OTHER)), 5, 409, True),
        (AddCheckpoint(0, (OTHER,), head(5)), 0, 422, False),
        (AddCheckpoint(0, (), head(0, OTHER)), 0, 422, True),
        (AddCheckpoint(5, (), head(5, OTHER)), 5, 422, True),
        (AddCheckpoint(5, request(5, 300).proof, head(300, OTHER)), 5, 422, False),
        (AddCheckpoint(5, request(5, 300).proof[1:], head(300)), 5, 422, False),
        (AddCheckpoint(5, (OTHER,), head(5)), 5, 422, False),
    ],
)
def test_what_is_not_gets_the_status_of_the_specification(asked, known, status, is_fork):
    verdict = answer(asked, known)
    assert (verdict.status, verdict.is_fork) == (status, is_fork)
    assert verdict.why == str(known) if status == 409 else verdict.why


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 1\n",
        b"size 1\n\nx",
        b"old 01\n\nx",
        b"old -1\n\nx",
        b"old 99999999999999999999\n\nx",
        b"old 1\nAAAA\n\nx",
        b"old 1\nnot base64\n\nx",
        b"old 1\n" + (base64.b64encode(bytes(32)) + b"\n") * 64 + b"\nx",
        b"old \xff\n\nx",
    ],
)
def test_what_is_no_request_is_malformed(body):
    with pytest.raises(MalformedNote):
        AddCheckpoint.parse(body)


WITNESS = TestSigner(b"\x03" * 32)
WITNESS_KEY = NoteKey.of("w.example", WITNESS, cosigner=True)
TEXT = Checkpoint(ORIGIN, 5, ROOTS[5]).text


def test_the_lines_of_known_keys_are_taken_and_others_passed_over():
    good = cosign(TEXT, "w.example", WITNESS, 77)
    stranger = cosign(TEXT, "w.example", TestSigner(b"\x04" * 32), 77)
    [(signature, line)] = read_cosignatures(TEXT, (stranger + good).encode(), [WITNESS_KEY])
    assert (signature.key, signature.seconds, line) == (WITNESS_KEY, 77, good)
    assert read_cosignatures(TEXT, stranger.encode(), [WITNESS_KEY]) == []


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (cosign(Checkpoint(ORIGIN, 6, bytes(32)).text, "w.example", WITNESS, 77), UntrustedNote),
        (cosign(TEXT, "w.example", WITNESS, 0), UntrustedNote),
        ("200 ok\n", MalformedNote),
    ],
)
def test_an_answer_that_lies_is_not_believed(lines, error):
    with pytest.raises(error):
        read_cosignatures(TEXT, lines.encode(), [WITNESS_KEY])


def test_small_things():
    assert Seen(0, EMPTY_ROOT) == EMPTY
    assert origin_hash("a") == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert read_size("0") == 0
    for text in ("", "00", "1\n", " 1", "1" * 20, "\u0661"):
        with pytest.raises(MalformedNote):
            read_size(text)


def test_two_checkpoints_are_compared():
    assert [c.size for c in compare(head(5), head(300), [KEY])] == [5, 300]
    with pytest.raises(ForkFound, match="two different trees of 5 entries"):
        compare(head(5), head(5, OTHER), [KEY])
    with pytest.raises(UntrustedNote):
        compare(head(5), head(5, OTHER, signer=WITNESS), [KEY])
