"""Proofs against RFC 6962's own recursive definitions, for every index and size that is small."""

import pytest

from eastwest.errors import Unauthenticated
from eastwest.log.checkpoint import Checkpoint, sign_checkpoint
from eastwest.log.note import MalformedNote, NoteKey, UntrustedNote
from eastwest.log.proof import (
    LogProof,
    MalformedProof,
    ProofMismatch,
    consistency_proof,
    inclusion_proof,
    verify_consistency,
    verify_inclusion,
)
from eastwest.log.tree import leaf_hash
from eastwest.testing.log import TestSigner
from eastwest.testing.rfc6962 import naive_consistency, naive_inclusion, naive_root

LEAVES = [b"%d" % i for i in range(70)]
SIZES = range(1, 40)


def node(height, index):
    return naive_root(LEAVES[index << height : (index + 1) << height])


def test_every_inclusion_proof_is_the_rfcs_and_verifies():
    for size in SIZES:
        root = naive_root(LEAVES[:size])
        for index in range(size):
            proof = inclusion_proof(index, size, node)
            assert proof == naive_inclusion(index, LEAVES[:size])
            verify_inclusion(leaf_hash(LEAVES[index]), index, size, proof, root)


def test_every_consistency_proof_is_the_rfcs_and_verifies():
    for new in SIZES:
        for old in range(new + 1):
            proof = consistency_proof(old, new, node)
            assert proof == (naive_consistency(old, LEAVES[:new]) if old else [])
            verify_consistency(old, new, proof, naive_root(LEAVES[:old]), naive_root(LEAVES[:new]))


def test_an_inclusion_proof_for_anything_else_fails():
    for size in (1, 2, 7, 8, 20):
        root = naive_root(LEAVES[:size])
        for index in range(size):
            proof = inclusion_proof(index, size, node)
            leaf = leaf_hash(LEAVES[index])
            bad = [
                (leaf_hash(b"other"), index, size, proof, root),
                (leaf, index, size, proof, bytes(32)),
                (leaf, index, size, [*proof, bytes(32)], root),
                (leaf, size, size, proof, root),
                (leaf, -1, size, proof, root),
                *[(leaf, other, size, proof, root) for other in range(size) if other != index],
            ]
            if proof:
                bad += [(leaf, index, size, proof[:-1], root), (leaf, index, size, [bytes(32), *proof[1:]], root)]
            for case in bad:
                with pytest.raises(ProofMismatch):
                    verify_inclusion(*case)


def test_a_consistency_proof_for_anything_else_fails():
    for old, new in ((1, 2), (3, 7), (4, 7), (6, 8), (8, 20), (7, 7), (0, 5)):
        first, second = naive_root(LEAVES[:old]), naive_root(LEAVES[:new])
        proof = consistency_proof(old, new, node)
        bad = [
            (old, new, proof, bytes(32), second),
            (old, new, [*proof, bytes(32)], first, second),
            (new + 1, new, proof, first, second),
        ]
        if old:
            bad.append((old, new, proof, first, bytes(32)))
        if proof:
            bad += [(old, new, proof[:-1], first, second), (old, new, [], first, second)]
            bad += [(old, new, [*proof[:i], bytes(32), *proof[i + 1 :]], first, second) for i in range(len(proof))]
        for case in bad:
            with pytest.raises(ProofMismatch):
                verify_consistency(*case)


def test_a_proof_of_what_is_not_there_is_not_built():
    with pytest.raises(ValueError, match="no leaf 5"):
        inclusion_proof(5, 5, node)
    with pytest.raises(ValueError, match="no prefix"):
        consistency_proof(6, 5, node)


SIGNER = TestSigner()
KEY = NoteKey.of("a.example/log", SIGNER)
NOTE = sign_checkpoint(Checkpoint(KEY.name, 20, naive_root(LEAVES[:20])), SIGNER)
PROOF = LogProof(11, tuple(naive_inclusion(11, LEAVES[:20])), NOTE)


@pytest.mark.parametrize("extra", [b"", b"context"])
def test_the_text_form_goes_there_and_back_and_verifies(extra):
    proof = LogProof(PROOF.index, PROOF.hashes, PROOF.checkpoint, extra)
    assert LogProof.parse(proof.text) == proof
    assert proof.text.split("\n")[:2] == ["c2sp.org/tlog-proof@v1", "extra Y29udGV4dA==" if extra else "index 11"]
    assert proof.verify(LEAVES[11], KEY).size == 20


def test_a_receipt_for_another_entry_or_by_another_key_does_not_verify():
    with pytest.raises(ProofMismatch):
        PROOF.verify(LEAVES[12], KEY)
    with pytest.raises(ProofMismatch):
        LogProof(12, PROOF.hashes, NOTE).verify(LEAVES[11], KEY)
    with pytest.raises(UntrustedNote):
        PROOF.verify(LEAVES[11], NoteKey.of("a.example/log", TestSigner(b"\x01" * 32)))
    with pytest.raises((Unauthenticated, MalformedNote)):
        LogProof(11, PROOF.hashes, NOTE.replace("\n20\n", "\n21\n")).verify(LEAVES[11], KEY)


@pytest.mark.parametrize(
    "change",
    [
        ("c2sp.org/tlog-proof@v1", "c2sp.org/tlog-proof@v2"),
        ("index 11", "index 011"),
        ("index 11", "index -1"),
        ("index 11", "11"),
        ("index 11", "extra AA==\nextra AA==\nindex 11"),
        ("index 11\n", "index 11\nAAAA\n"),
        ("index 11\n", "index 11\n" + 65 * "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"),
        ("\n\n", "\n"),
    ],
)
def test_a_text_that_is_no_proof_is_refused(change):
    with pytest.raises((MalformedProof, MalformedNote)):
        LogProof.parse(PROOF.text.replace(*change, 1 if change[0] != "\n\n" else -1))
