"""Trust policies: which checkpoints have enough witnesses, and which files are no policies."""

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from eastwest.log.checkpoint import Checkpoint, sign_checkpoint
from eastwest.log.note import MalformedNote, NoteKey, UntrustedNote, cosign
from eastwest.log.policy import InvalidPolicy, Policy
from eastwest.pki.signer import SoftwareNoteSigner
from eastwest.testing.log import TestSigner

ORIGIN = "saas.example/log"
LOG = TestSigner()
LOG_KEY = NoteKey.of(ORIGIN, LOG)
SIGNERS = {name: TestSigner(name.encode() * 16) for name in ("X1", "X2", "X3", "Y1", "Y2", "Y3")}
SIGNERS["Q1"] = SoftwareNoteSigner(MLDSA44PrivateKey.from_seed_bytes(bytes(32)))
KEYS = {name: NoteKey.of(f"{name}.example", signer, cosigner=True) for name, signer in SIGNERS.items()}
# The shape of the example in the specification.
TWO_LEVELS = f"""
# three of one organisation, three of another
log {LOG_KEY.vkey}

witness X1 {KEYS["X1"].vkey}
\twitness  X2\t{KEYS["X2"].vkey}  https://x2.example/
witness X3 {KEYS["X3"].vkey}
group X-witnesses 2 X1 X2 X3
witness Y1 {KEYS["Y1"].vkey}
witness Y2 {KEYS["Y2"].vkey}
witness Y3 {KEYS["Y3"].vkey}
group Y-witnesses any Y1 Y2 Y3
group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""


def parse(text):
    return Policy.parse(text.encode(), "p")


@pytest.mark.parametrize(
    ("signed", "met"),
    [("X1 X2 Y1", True), ("X1 X3 Y3", True), ("X1 X2 X3", False), ("X1 Y1 Y2 Y3", False), ("", False)],
)
def test_the_quorum_of_two_levels(signed, met):
    policy = parse(TWO_LEVELS)
    names = signed.split()
    assert policy.is_met({KEYS[name] for name in names}) is met
    assert set(policy.missing({KEYS[name] for name in names})) == {"X1", "X2", "X3", "Y1", "Y2", "Y3"} - set(names)
    assert policy.witnesses["X2"].url == "https://x2.example/"


def note(*names, seconds=1_795_000_000, signer=LOG):
    head = Checkpoint(ORIGIN, 5, bytes(range(32)))
    return sign_checkpoint(head, signer) + "".join(
        cosign(head.text, KEYS[name].name, SIGNERS[name], seconds) for name in names
    )


def test_a_checkpoint_opens_with_enough_witnesses_only():
    policy = parse(TWO_LEVELS)
    head, signatures = policy.open(note("X1", "X3", "Y2").encode())
    assert (head.size, [s.key for s in signatures]) == (5, [KEYS["X1"], KEYS["X3"], KEYS["Y2"]])
    with pytest.raises(UntrustedNote, match=r"too few witnesses.*X2"):
        policy.open(note("X1", "Y2").encode())
    with pytest.raises(UntrustedNote, match="not signed by"):
        policy.open(note("X1", "X2", "Y2", signer=TestSigner(b"\x09" * 32)).encode())


def test_a_false_cosignature_spoils_a_checkpoint_that_has_enough_without_it():
    whole = note("X1", "X2", "Y1")
    forged = cosign(Checkpoint(ORIGIN, 6, bytes(32)).text, KEYS["Y2"].name, SIGNERS["Y2"], 7)
    with pytest.raises(UntrustedNote, match="false"):
        parse(TWO_LEVELS).open((whole + forged).encode())


def test_witnesses_may_be_post_quantum_and_a_quorum_none():
    policy = parse(f"log {LOG_KEY.vkey}\nwitness Q1 {KEYS['Q1'].vkey}\nquorum Q1")
    assert policy.open(note("Q1").encode())[1][0].key == KEYS["Q1"]
    nobody = parse(f"log {LOG_KEY.vkey}\nquorum none\n")
    assert nobody.open(note().encode())[0].size == 5


def test_bytes_beyond_ascii_are_opaque_in_names():
    raw = b"witness K\xe2\x84\xaa " + KEYS["X1"].vkey.encode() + b"\nwitness \xff " + KEYS["X2"].vkey.encode()
    policy = Policy.parse(raw + b"\nwitness K " + KEYS["X3"].vkey.encode() + b"\n# \xfe\nquorum \xff\n")
    assert policy.is_met({KEYS["X2"]})
    assert not policy.is_met({KEYS["X1"], KEYS["X3"]})


W1 = f"witness X1 {KEYS['X1'].vkey}\n"
W2 = f"witness X2 {KEYS['X2'].vkey}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no quorum"),
        ("quorum none\nquorum none\n", "already"),
        ("quorum X1\n" + W1, "earlier line"),
        (W1 + W2.replace("X2", "X1", 1) + "quorum X1", "taken"),
        (W1 + f"witness X2 {KEYS['X1'].vkey}\nquorum X1", "has this key"),
        (f"log {LOG_KEY.vkey}\nlog {LOG_KEY.vkey}\nquorum none", "has this key"),
        (f"witness none {KEYS['X1'].vkey}\nquorum none", "taken"),
        (W1 + "group G all X1 none\nquorum G", "earlier line"),
        (W1 + "group G all\nquorum G", "no members"),
        (W1 + "group G 0 X1\nquorum G", "threshold"),
        (W1 + "group G 2 X1\nquorum G", "threshold"),
        (W1 + "group G most X1\nquorum G", "threshold"),
        (W1 + "group G 1 X1 X1\nquorum G", "member of a group already"),
        (W1 + W2 + "group G 1 X1 X2\ngroup H 1 X1\nquorum H", "member of a group already"),
        (W1 + "group X1 1 X1\nquorum X1", "taken"),
        (W1 + "group G 1 G\nquorum G", "earlier line"),
        (f"witness X1 {LOG_KEY.vkey}\nquorum X1", "no key of type Ed25519"),
        (f"log {KEYS['X1'].vkey}\nquorum none", "no key of type"),
        ("log nonsense\nquorum none", "form"),
        ("log\nquorum none", "a line is"),
        (W1.rstrip() + " https://a/ more\nquorum X1", "a line is"),
        ("peer X\nquorum none", "a line is"),
        ("quorum none\r\n", "control character"),
        ("quorum\x0bnone\n", "control character"),
        ("\n" * 3 + "quorum none\x00", "p:4"),
        ("".join(f"group G{i} 1 X\n" for i in range(2)), "p:1"),
    ],
)
def test_what_is_no_policy_is_refused_with_its_line(text, told):
    with pytest.raises(InvalidPolicy) as refused:
        parse(text)
    assert told in str(refused.value)
    assert str(refused.value).startswith("p")


def test_a_policy_is_bounded():
    with pytest.raises(InvalidPolicy, match="larger"):
        Policy.parse(b"#" * (1 << 20) + b"\nquorum none\n")
    with pytest.raises(MalformedNote):
        NoteKey.parse("x+y")
