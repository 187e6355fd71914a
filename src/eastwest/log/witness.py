"""The witness protocol (C2SP tlog-witness) as values: what is asked, what is answered, and why.

No network and no storage: ``eastwest.server.witness`` answers with this, ``eastwest.server.log.witnesses`` asks.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from eastwest.errors import Corrupt
from eastwest.log.checkpoint import MAX_DIGITS, Checkpoint, open_any_checkpoint
from eastwest.log.note import (
    MalformedNote,
    NoteKey,
    Signature,
    UntrustedNote,
    split_note,
    split_signature,
    strict_base64,
    verified_signatures,
)
from eastwest.log.proof import ProofMismatch, verify_consistency
from eastwest.log.tree import EMPTY_ROOT, HASH_SIZE

SIZE_TYPE = "text/x.tlog.size"
MAX_PROOF_LINES = 63
MAX_REQUEST_BYTES = 128 * 1024
"""Room for a checkpoint that some thirty ML-DSA-44 signatures stand on."""
MAX_ANSWER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """The body of ``add-checkpoint``: the size the witness knows, the proof from it, and the signed checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    note: bytes

    @classmethod
    def parse(cls, body: bytes) -> AddCheckpoint:
        """Read a request; raises ``MalformedNote``. The note is not looked into."""
        head, separator, note = body.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise MalformedNote("the lines before the checkpoint are not ASCII") from None
        if not separator or not lines[0].startswith("old "):
            raise MalformedNote("a request begins with the old size, then hashes, an empty line and the checkpoint")
        if len(lines) - 1 > MAX_PROOF_LINES:
            raise MalformedNote(f"a proof has at most {MAX_PROOF_LINES} hashes")
        proof = tuple(strict_base64(line) for line in lines[1:])
        if any(len(hash_) != HASH_SIZE for hash_ in proof):
            raise MalformedNote(f"a hash in a proof has {HASH_SIZE} bytes")
        return cls(read_size(lines[0].removeprefix("old ")), proof, note)

    def encode(self) -> bytes:
        """The request's bytes."""
        hashes = "".join(f"{base64.b64encode(hash_).decode()}\n" for hash_ in self.proof)
        return f"old {self.old}\n{hashes}\n".encode() + self.note


@dataclass(frozen=True, slots=True)
class Seen:
    """The last checkpoint of a log that a witness has signed."""

    size: int
    root: bytes


EMPTY = Seen(0, EMPTY_ROOT)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a witness answers: 200 with ``checkpoint`` to be stored and signed, or a status and why.

    ``is_fork``: the log's own signature stands on a checkpoint that contradicts what was seen.
    """

    status: int
    why: str = ""
    checkpoint: Checkpoint | None = None
    text: str = ""
    signed_by: tuple[NoteKey, ...] = ()
    is_fork: bool = False


def judge(request: AddCheckpoint, logs: Mapping[str, Sequence[NoteKey]], seen: Mapping[str, Seen]) -> Verdict:
    """A witness's answer to ``request``: ``logs`` are the keys it trusts by origin, ``seen`` what it has signed."""
    try:
        checkpoint = Checkpoint.parse(split_note(request.note)[0])
    except MalformedNote as error:
        return Verdict(400, error.message)
    keys = logs.get(checkpoint.origin)
    if keys is None:
        return Verdict(404, "this log is not watched here")
    try:
        text, signatures = verified_signatures(request.note, keys)
    except (MalformedNote, UntrustedNote) as error:
        return Verdict(403, error.message)
    if not signatures:
        return Verdict(403, "no key that is trusted for this log has signed it")
    if request.old > checkpoint.size:
        return Verdict(400, "the old size is larger than the checkpoint")
    return _consistent(request, checkpoint, seen.get(checkpoint.origin, EMPTY), text, signatures)


def _consistent(
    request: AddCheckpoint, checkpoint: Checkpoint, last: Seen, text: str, signatures: Iterable[Signature]
) -> Verdict:
    signed_by = tuple(signature.key for signature in signatures)
    if request.old != last.size:
        # Two roots for one size need no proof to be told apart.
        fork = checkpoint.size == last.size and checkpoint.root != last.root
        return Verdict(409, str(last.size), checkpoint, text, signed_by, fork)
    if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
        return Verdict(422, "the root of an empty log is not this", checkpoint, text, signed_by, is_fork=True)
    if last.size == 0 and request.proof:
        return Verdict(422, "the proof from an empty log is empty", checkpoint, text, signed_by)
    try:
        if last.size:
            verify_consistency(last.size, checkpoint.size, request.proof, last.root, checkpoint.root)
    except ProofMismatch as error:
        fork = checkpoint.size == last.size and checkpoint.root != last.root
        return Verdict(422, error.message, checkpoint, text, signed_by, fork)
    return Verdict(200, "", checkpoint, text, signed_by)


def origin_hash(origin: str) -> str:
    """How a log is named in a witness's monitoring prefix."""
    return sha256(origin.encode()).hexdigest()


def read_cosignatures(text: str, answer: bytes, keys: Collection[NoteKey]) -> list[tuple[Signature, str]]:
    """The cosignatures of ``keys`` in a witness's answer, each with its line; those of others are passed over.

    Raises ``MalformedNote``, or ``UntrustedNote`` for a false one: such a witness is not to be believed at all.
    """
    try:
        lines = answer.decode().splitlines()
    except UnicodeDecodeError:
        raise MalformedNote("the answer is not UTF-8") from None
    known = {(key.name, key.id): key for key in keys}
    found = []
    for line in lines:
        name, blob = split_signature(line)
        key = known.get((name, blob[:4]))
        if key is not None:
            seconds = key.verify(text, blob[4:])
            if seconds == 0:
                raise UntrustedNote(f"the {key.type_name} cosignature of {name} has no time")
            found.append((Signature(key, seconds), f"{line}\n"))
    return found


def read_size(text: str) -> int:
    """A size in decimal without leading zeros; raises ``MalformedNote``."""
    if not (text.isascii() and text.isdigit()) or (text[0] == "0" and text != "0") or len(text) > MAX_DIGITS:
        raise MalformedNote("a size is a whole number without leading zeros")
    return int(text)


def compare(ours: bytes, theirs: bytes, keys: Sequence[NoteKey]) -> tuple[Checkpoint, Checkpoint]:
    """Two checkpoints of one log, both signed by ``keys``; raises ``ForkFound`` where they contradict each other."""
    first, second = open_any_checkpoint(ours, keys), open_any_checkpoint(theirs, keys)
    if first.origin != second.origin:
        raise MalformedNote(f"the checkpoints are of two logs, {first.origin!r} and {second.origin!r}")
    if first.size == second.size and first.root != second.root:
        raise ForkFound(first.origin, first.size)
    return first, second


class ForkFound(Corrupt):
    """One log has signed two histories."""

    def __init__(self, origin: str, size: int) -> None:
        super().__init__(f"the log {origin} has signed two different trees of {size} entries")
        self.size = size
