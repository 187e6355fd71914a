"""Signed notes, keys as text, checkpoints."""

import base64

import pytest

from eastwest.errors import InvalidInput
from eastwest.log.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from eastwest.log.note import MalformedNote, NoteKey, UntrustedNote, open_note, sign_note, split_note
from eastwest.testing.log import TestSigner

NAME = "saas.example/eastwest-log"
SIGNER = TestSigner()
OTHER = TestSigner(b"\x07" * 32)
KEY = NoteKey.of(NAME, SIGNER)

# The example in the documentation of Go's golang.org/x/mod/sumdb/note.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def test_a_note_signed_by_others_software_opens():
    key = NoteKey.parse(GO_KEY)
    assert key.vkey == GO_KEY
    assert open_note(GO_NOTE.encode(), [key]).startswith("If you think")


def test_sign_then_open():
    note = sign_note("one\n\ntwo\n", NAME, SIGNER)
    assert open_note(note.encode(), [KEY]) == "one\n\ntwo\n"
    assert note.startswith("one\n\ntwo\n\n— saas.example/eastwest-log ")
    assert NoteKey.parse(KEY.vkey + "\n") == KEY


def test_unknown_signatures_are_passed_over_and_a_false_known_one_spoils_the_note():
    ours = sign_note("text\n", NAME, SIGNER)
    stranger = sign_note("text\n", "stranger.example", OTHER).rpartition("\n\n")[2]
    assert open_note((ours + stranger * 20).encode(), [KEY]) == "text\n"
    forged = base64.b64encode(KEY.id + OTHER.sign(b"text\n")).decode()
    with pytest.raises(UntrustedNote, match="is false"):
        open_note(f"{ours}— {NAME} {forged}\n".encode(), [KEY])
    with pytest.raises(UntrustedNote, match="not signed by"):
        open_note(b"text\n\n" + stranger.encode(), [KEY])
    # The same name with another key ID is an unknown key.
    with pytest.raises(UntrustedNote, match="not signed by"):
        open_note(sign_note("text\n", NAME, OTHER).encode(), [KEY])


GOOD = sign_note("text\n", NAME, SIGNER)
TAIL = GOOD.rpartition("\n\n")[2]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"text\n",
        b"text\n\n",
        b"text\n\nnot a signature\n",
        GOOD[:-1].encode(),
        GOOD.encode() + b"\n",
        GOOD.replace("text", "te\txt").encode(),
        GOOD.replace("text", "te\rxt").encode(),
        GOOD.replace("— ", "- ").encode(),
        GOOD.replace("— ", "—  ").encode(),
        GOOD.encode().replace(b"text", b"te\xff"),
        f"text\n\n— {NAME} AAAA\n".encode(),
        f"text\n\n— {NAME} ####\n".encode(),
        f"text\n\n{TAIL * 101}".encode(),
        b"x" * (1 << 20) + b"\n\n" + TAIL.encode(),
    ],
)
def test_what_is_no_note_is_malformed(raw):
    with pytest.raises(MalformedNote):
        open_note(raw, [KEY])


def test_base64_has_one_form_only():
    signature = GOOD.rstrip("\n").rpartition(" ")[2]
    assert signature.endswith("=")
    last = signature[-2]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = signature[:-2] + alphabet[alphabet.index(last) ^ 1] + "="
    assert base64.b64decode(twin) == base64.b64decode(signature)
    with pytest.raises(MalformedNote, match="canonical"):
        open_note(GOOD.replace(signature, twin).encode(), [KEY])


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u00a0b", "a\nb", "a\x7f\x01"])
def test_names_with_spaces_or_plus_are_refused(name):
    with pytest.raises(MalformedNote):
        NoteKey(name, bytes(32))


@pytest.mark.parametrize(
    "vkey",
    ["", "name", "name+00000000", KEY.vkey.replace(NAME, "other.example"), KEY.vkey[:-4], GO_KEY.replace("+AR", "+AB")],
)
def test_a_text_that_is_no_key_is_refused(vkey):
    with pytest.raises(MalformedNote):
        NoteKey.parse(vkey)


def test_a_key_of_another_kind_cannot_sign():
    class Foreign:
        public_key = object()

        def sign(self, data):
            return data

    with pytest.raises(InvalidInput, match="Ed25519 or ML-DSA-44"):
        NoteKey.of(NAME, Foreign())


def test_checkpoint_text_and_back():
    checkpoint = Checkpoint(NAME, 20_852_163, bytes(range(32)))
    assert checkpoint.text == f"{NAME}\n20852163\n{base64.b64encode(bytes(range(32))).decode()}\n"
    note = sign_checkpoint(checkpoint, SIGNER)
    assert open_checkpoint(note.encode(), KEY) == checkpoint
    assert Checkpoint.parse(checkpoint.text + "an extension\n") == checkpoint
    assert len(split_note(note.encode())[1]) == 1


ROOT = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        f"{NAME}\n01\n{ROOT}\n",
        f"{NAME}\n-1\n{ROOT}\n",
        f"{NAME}\n+1\n{ROOT}\n",
        f"{NAME}\n\u0661\n{ROOT}\n",
        f"{NAME}\n\n{ROOT}\n",
        f"\n1\n{ROOT}\n",
        f"{NAME}\n1\n",
        f"{NAME}\n1\nAAAA\n",
        f"{NAME}\n1\n{ROOT}\n\nmore\n",
        f"{NAME}\n1\n{ROOT}",
    ],
)
def test_a_text_that_is_no_checkpoint_is_refused(text):
    with pytest.raises(MalformedNote):
        Checkpoint.parse(text)


def test_a_checkpoint_of_another_log_under_our_key_is_refused():
    note = sign_note(Checkpoint("other.example/log", 1, bytes(32)).text, NAME, SIGNER)
    with pytest.raises(MalformedNote, match=r"other\.example"):
        open_checkpoint(note.encode(), KEY)
