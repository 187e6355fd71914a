"""Cosignatures: what exactly is signed, by whom, and when; a second key on the log's own checkpoints."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA65PrivateKey

from eastwest.errors import InvalidInput
from eastwest.log.checkpoint import Checkpoint, open_any_checkpoint, open_checkpoint, open_checkpoint_of_all
from eastwest.log.checkpoint import sign_checkpoint as sign
from eastwest.log.cosignature import ed25519_message, ml_dsa_message, subtree_message
from eastwest.log.note import (
    KeyType,
    MalformedNote,
    NoteKey,
    UntrustedNote,
    cosign,
    sign_note,
    verified_signatures,
)
from eastwest.pki.signer import SoftwareNoteSigner
from eastwest.testing.log import TestSigner

ORIGIN = "saas.example/eastwest-log"
HEAD = Checkpoint(ORIGIN, 300, bytes(range(32)))
NOW = 1_795_000_000
ED = TestSigner()
ML = SoftwareNoteSigner(MLDSA44PrivateKey.from_seed_bytes(bytes(32)))
ED_KEY, ML_KEY = NoteKey.of(ORIGIN, ED), NoteKey.of(ORIGIN, ML)
NOTE = sign(HEAD, ED, ML, NOW)


def test_what_ml_dsa_signs_is_the_structure_of_the_specification():
    root = bytes(range(32))
    expected = (
        b"subtree/v1\n\x00"
        b"\x07w.ex/w1"
        + NOW.to_bytes(8, "big")
        + b"\x19saas.example/eastwest-log"
        + bytes(8)
        + (300).to_bytes(8, "big")
        + root
    )
    assert ml_dsa_message("w.ex/w1", HEAD.text, NOW) == expected
    assert ml_dsa_message("w.ex/w1", HEAD.text + "an extension\n", NOW) == expected
    assert subtree_message("w.ex/w1", ORIGIN, 0, 300, root, NOW) == expected


def test_what_ed25519_cosigners_sign_has_the_time_and_the_whole_text():
    text = HEAD.text + "an extension\n"
    assert ed25519_message(text, 7) == b"cosignature/v1\ntime 7\n" + text.encode()


@pytest.mark.parametrize(
    ("name", "origin", "start", "end", "seconds"),
    [("", "o", 0, 1, 1), ("n" * 256, "o", 0, 1, 1), ("n", "", 0, 1, 1), ("n", "o", 2, 1, 0), ("n", "o", 1, 2, 9),
     ("n", "o", 0, 1 << 63, 1), ("n", "o", 0, 1, 1 << 63)],
)  # fmt: skip
def test_what_is_out_of_bounds_is_not_signed(name, origin, start, end, seconds):
    with pytest.raises(ValueError, match=r"out of bounds|begin at 0|1 to 255"):
        subtree_message(name, origin, start, end, bytes(32), seconds)


def test_a_checkpoint_bears_ed25519_first_and_then_ml_dsa_with_the_time():
    lines = NOTE.partition("\n\n")[2].splitlines()
    assert [line.split(" ")[1] for line in lines] == [ORIGIN, ORIGIN]
    first, second = (base64.b64decode(line.split(" ")[2]) for line in lines)
    assert (len(first), first[:4]) == (4 + 64, ED_KEY.id)
    assert (len(second), second[:4], int.from_bytes(second[4:12], "big")) == (4 + 8 + 2420, ML_KEY.id, NOW)
    assert [s.seconds for s in verified_signatures(NOTE.encode(), [ED_KEY, ML_KEY])[1]] == [0, NOW]


@pytest.mark.parametrize("keys", [[ED_KEY], [ML_KEY], [ED_KEY, ML_KEY]])
def test_either_key_opens_it(keys):
    assert open_any_checkpoint(NOTE.encode(), keys) == HEAD
    assert open_checkpoint_of_all(NOTE.encode(), keys) == HEAD


def test_a_checkpoint_from_before_there_was_a_second_key_still_opens():
    old = sign(HEAD, ED).encode()
    assert open_checkpoint(old, ED_KEY) == HEAD
    assert open_any_checkpoint(old, [ED_KEY, ML_KEY]) == HEAD
    with pytest.raises(UntrustedNote, match="ML-DSA-44 key"):
        open_checkpoint_of_all(old, [ED_KEY, ML_KEY])


@pytest.mark.parametrize("at", [4, 11, 12, 1000, -1])
def test_a_changed_time_or_signature_spoils_the_note_for_who_knows_the_key(at):
    head, _, line = NOTE.rstrip("\n").rpartition("\n")
    blob = bytearray(base64.b64decode(line.split(" ")[2]))
    blob[at] ^= 1
    changed = f"{head}\n— {ORIGIN} {base64.b64encode(blob).decode()}\n".encode()
    assert open_checkpoint(changed, ED_KEY) == HEAD
    with pytest.raises(UntrustedNote, match=r"false|no clock"):
        open_any_checkpoint(changed, [ED_KEY, ML_KEY])


def test_a_signature_of_another_length_is_false():
    short = base64.b64encode(ML_KEY.id + bytes(30)).decode()
    with pytest.raises(UntrustedNote, match="false"):
        open_any_checkpoint(f"{sign(HEAD, ED)}— {ORIGIN} {short}\n".encode(), [ED_KEY, ML_KEY])


def test_another_cosigners_name_is_in_what_ml_dsa_signs():
    line = cosign(HEAD.text, "w.example/1", ML, NOW)
    renamed = NoteKey("w.example/2", ML_KEY.public, KeyType.ML_DSA_44)
    blob = base64.b64decode(line.split(" ")[2])[4:]
    with pytest.raises(UntrustedNote):
        renamed.verify(HEAD.text, blob)
    assert NoteKey("w.example/1", ML_KEY.public, KeyType.ML_DSA_44).verify(HEAD.text, blob) == NOW


def test_keys_as_text_keep_their_type():
    for key in (ED_KEY, ML_KEY, NoteKey.of("w.example", ED, cosigner=True)):
        assert NoteKey.parse(key.vkey) == key
    assert NoteKey.of("w.example", ED, cosigner=True).id != NoteKey.of("w.example", ED).id
    assert len({ED_KEY.type_name, ML_KEY.type_name}) == 2


def test_a_witness_signature_is_no_signature_of_the_log():
    witness = NoteKey.of("w.example", ED, cosigner=True)
    note = f"{HEAD.text}\n{cosign(HEAD.text, 'w.example', ED, NOW)}".encode()
    with pytest.raises(MalformedNote, match="not the one that is trusted"):
        open_any_checkpoint(note, [ED_KEY, witness])


def test_a_key_of_one_log_signs_for_no_other():
    other = NoteKey.of("other.example/log", TestSigner(b"\x07" * 32))
    forged = sign_note(HEAD.text, other.name, TestSigner(b"\x07" * 32)).encode()
    with pytest.raises(MalformedNote, match="not the one that is trusted"):
        open_any_checkpoint(forged, [ED_KEY, other])


def test_ml_dsa_signs_checkpoints_only_and_no_other_parameter_set_is_taken():
    with pytest.raises(MalformedNote, match="checkpoints only"):
        cosign("one line\n", "w.example", ML, NOW)
    with pytest.raises(InvalidInput, match="first signature"):
        sign_note("one line\n", ORIGIN, ML)

    class Larger:
        public_key = MLDSA65PrivateKey.generate().public_key()

    with pytest.raises(InvalidInput, match="ML-DSA-44"):
        NoteKey.of(ORIGIN, Larger())
