"""Three programs judge checkpoints, two of them without our library: what one refuses, none of them takes."""

import base64

import pytest

from eastwest.cli import verify_log
from eastwest.cli.evidence import verifier
from eastwest.errors import Error
from eastwest.log.checkpoint import open_checkpoint
from eastwest.log.note import NoteKey, signature_line
from eastwest.testing.log import ORIGIN, TestSigner

SIGNER = TestSigner()
KEY = NoteKey.of(ORIGIN, SIGNER)
ROOT = base64.b64encode(bytes(32)).decode()
GOOD = f"{ORIGIN}\n5\n{ROOT}\n"


def signature(text):
    return signature_line(KEY, SIGNER.sign(text.encode()))


def note(text):
    return f"{text}\n{signature(text)}"


def judges(raw):
    """What each of the three makes of it: the size, or None."""
    readers = (
        (lambda: open_checkpoint(raw.encode(), KEY).size, Error),
        (lambda: verify_log.open_checkpoint(raw.encode(), [verify_log.read_vkey(KEY.vkey)], None)[1], ValueError),
        (lambda: verifier.open_checkpoint(raw, verifier.read_vkey(KEY.vkey))[0], ValueError),
    )
    for read, refusal in readers:
        try:
            yield read()
        except (refusal, verify_log.Refused, verifier.Defect):
            yield None


@pytest.mark.parametrize("text", [GOOD, f"{GOOD}an extension\n", f"{ORIGIN}\n0\n{ROOT}\n"])
def test_what_is_right_passes_all(text):
    assert set(judges(note(text))) == {int(text.split("\n")[1])}


@pytest.mark.parametrize(
    "raw",
    [
        note(f"{GOOD}\n6\n{ROOT}\n"),
        note(f"{ORIGIN}\n05\n{ROOT}\n"),
        note(f"{ORIGIN}\n\u0665\n{ROOT}\n"),
        note(f"{ORIGIN}\n-5\n{ROOT}\n"),
        note(f"{ORIGIN}\n{10**30}\n{ROOT}\n"),
        note(f"{ORIGIN}\n5\nAAAA\n"),
        note(f"{ORIGIN}\n5\n{ROOT[:-2]}B=\n"),
        note(f"other.example/log\n5\n{ROOT}\n"),
        note(f"{ORIGIN}\r\n5\n{ROOT}\n"),
        note(f"{GOOD}\x1b[2J\n"),
        note(GOOD)[:-1],
        note(GOOD)[:-1] + "\x0b" + signature(GOOD),
        note(GOOD) + signature("another"),
        signature("another") + note(GOOD),
        note(GOOD).replace("\u2014", "-"),
        GOOD,
        "",
    ],
)
def test_what_is_wrong_in_any_way_passes_none(raw):
    assert set(judges(raw)) == {None}
