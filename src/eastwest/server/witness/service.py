"""What a witness does with a checkpoint: judge it, store it, and only then let its signatures go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from eastwest.clock import Clock
from eastwest.log.note import MalformedNote, NoteKey, Signer, cosign, signature_line, split_note
from eastwest.log.witness import EMPTY, AddCheckpoint, Seen, Verdict, judge, origin_hash
from eastwest.store.witness import Conflict, Signed, WitnessStore

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: 409 has the size that was signed last, 200 the cosignature lines, others a sentence."""

    status: int
    text: str


class WitnessService:
    """One witness. Its methods block, for a signature and a commit, and may be called from any thread."""

    def __init__(
        self,
        name: str,
        signers: Sequence[Signer],
        logs: Mapping[str, Sequence[NoteKey]],
        store: WitnessStore,
        clock: Clock,
    ) -> None:
        """``signers``: an Ed25519 key, an ML-DSA-44 key, or both; a line of each goes out."""
        self._name = name
        self._signers = signers
        self._logs = logs
        self._store = store
        self._clock = clock
        self._origins = {origin_hash(origin): origin for origin in logs}

    def add_checkpoint(self, body: bytes) -> Answer:
        """Answer ``POST add-checkpoint``. Raises ``Unavailable`` or ``Corrupt`` when nothing can be stored."""
        try:
            request = AddCheckpoint.parse(body)
            origin = split_note(request.note)[0].split("\n")[0]
        except MalformedNote as error:
            return Answer(400, error.message)
        while True:
            last = self._store.last(origin) if origin in self._logs else None
            verdict = judge(request, self._logs, {origin: last.seen} if last is not None else {})
            if verdict.is_fork and last is not None:
                self._accuse(request, verdict, last)
            if verdict.status != 200:
                return Answer(verdict.status, f"{verdict.why}\n")
            lines = self._sign(request, verdict, last)
            if lines is not None:
                return Answer(200, lines)

    def checkpoint(self, hashed: str) -> bytes | None:
        """The last checkpoint that was signed of the log with this ``origin_hash``; None if there is none."""
        origin = self._origins.get(hashed)
        last = self._store.last(origin) if origin is not None else None
        return last.note if last is not None else None

    def _sign(self, request: AddCheckpoint, verdict: Verdict, last: Signed | None) -> str | None:
        """The cosignature lines once they may go; None if another request was quicker."""
        checkpoint = verdict.checkpoint
        assert checkpoint is not None, "a verdict of 200 has one"
        seconds = int(self._clock.now().timestamp())
        lines = "".join(cosign(verdict.text, self._name, signer, seconds) for signer in self._signers)
        note = _own_note(request, verdict) + lines
        new = Signed(checkpoint.origin, Seen(checkpoint.size, checkpoint.root), note.encode(), seconds)
        return lines if self._store.replace(last.seen if last is not None else EMPTY, new) else None

    def _accuse(self, request: AddCheckpoint, verdict: Verdict, last: Signed) -> None:
        now = int(self._clock.now().timestamp())
        # Without whatever else stands on it: anybody may bring it again, with lines of their own.
        note = _own_note(request, verdict).encode()
        if self._store.keep(Conflict(last.origin, now, verdict.why, note, last.note)):
            _log.critical("witness.fork", origin=last.origin, size=last.seen.size, why=verdict.why)


def _own_note(request: AddCheckpoint, verdict: Verdict) -> str:
    """A checkpoint with the signatures of the log's keys that were verified, each once, Ed25519 first."""
    known = {(key.name, key.id): key for key in verdict.signed_by}
    own = {
        signature_line(known[name, blob[:4]], blob[4:]): None
        for name, blob in split_note(request.note)[1]
        if (name, blob[:4]) in known
    }
    return f"{verdict.text}\n{''.join(sorted(own, key=len))}"
