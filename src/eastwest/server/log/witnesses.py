"""Collecting cosignatures: each new checkpoint goes to the witnesses, and is published again with what they signed.

Nothing waits for it. When no quorum has signed for too long, the log says so (``/ready``, a metric, an entry), and
where it is told to, issues nothing until one does. A witness that knows another history stops the log for good.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from eastwest.clock import Clock
from eastwest.errors import Corrupt, Error, InvalidInput
from eastwest.log.checkpoint import Checkpoint, open_any_checkpoint
from eastwest.log.note import NoteKey, Signature, verified_signatures
from eastwest.log.policy import NONE, Policy
from eastwest.log.ports import LogFiles
from eastwest.log.proof import Node, consistency_proof, verify_consistency
from eastwest.log.tiles import TileReader
from eastwest.log.tree import fold_edge
from eastwest.server.config import LogSettings, ServerPaths
from eastwest.server.journal import Journal
from eastwest.server.log.fork import forked
from eastwest.server.log.peer import Claim, Peer, peers_of
from eastwest.store.log import SqliteLog

MIN_WAIT = 1.0
"""Seconds between two rounds, however fast checkpoints come."""
_log = structlog.get_logger()


class Witnesses:
    """Asks the witnesses of ``policy`` for as long as ``run`` runs."""

    def __init__(
        self,
        policy: Policy,
        settings: LogSettings,
        log: SqliteLog,
        files: LogFiles,
        journal: Journal,
        clock: Clock,
        paths: ServerPaths,
        trust: ssl.SSLContext,
        subject: str,
    ) -> None:
        """``trust`` verifies https witnesses; ``subject`` is the trust domain's SPIFFE ID."""
        self.peers = peers_of(policy, str(paths.home / settings.witness_policy))
        self._policy = policy
        self._settings = settings
        self._log = log
        self._files = files
        self._journal = journal
        self._clock = clock
        self._paths = paths
        self._trust = trust
        self._subject = subject
        self._lines: dict[NoteKey, tuple[datetime, str]] = {}
        self._head: Checkpoint | None = None
        self._fresh = asyncio.Event()
        self._stopped = ""
        self.witnessed = 0
        """The size that a quorum last signed."""
        self._met_at = self._last_met()
        self._is_lost = False
        log.on_published.append(self._fresh.set)

    @property
    def age(self) -> float:
        """Seconds since a quorum last signed the newest checkpoint of its time."""
        return max(0.0, (self._clock.now() - self._met_at).total_seconds())

    @property
    def is_stale(self) -> bool:
        """Whether that is longer ago than ``witness_stale_after``."""
        return self._policy.quorum != NONE and self.age > self._settings.witness_stale_after

    def warnings(self) -> list[str]:
        """What people should see to although nothing stops yet."""
        troubled = [f"witness {peer.name}: {peer.problem}" for peer in self.peers if peer.problem]
        if self.is_stale:
            missing = ", ".join(self._silent())
            told = f"no quorum of witnesses has signed the log since {self._met_at:%Y-%m-%dT%H:%M:%SZ}"
            troubled.append(f"{told}; missing: {missing}" if missing else told)
        return troubled

    def problems(self) -> list[str]:
        """Why nothing is issued, when it is for the witnesses' sake."""
        return [told for told in (self._stopped, self._log.held) if told]

    async def run(self) -> None:
        """Ask after each new checkpoint, and every ``witness_interval`` seconds so that cosignatures stay fresh."""
        while True:
            self._fresh.clear()
            await self._round()
            if self._stopped:
                return
            await self._clock.sleep(MIN_WAIT)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.witness_interval):
                    await self._fresh.wait()

    async def _round(self) -> None:
        signed = self._log.signed
        if signed is not None:
            checkpoint, note = signed
            if checkpoint != self._head:
                self._head, self._lines = checkpoint, {}
            asked = [asyncio.create_task(self._ask(peer, checkpoint, note)) for peer in self.peers]
            try:
                for answered in asyncio.as_completed(asked):
                    has_signed = await answered
                    if self._stopped:
                        return
                    if has_signed:
                        await self._publish(checkpoint, note)
            finally:
                for task in asked:
                    task.cancel()
        await self._judge_quorum()

    async def _ask(self, peer: Peer, checkpoint: Checkpoint, note: str) -> bool:
        """Whether there are new lines."""

        async def prove(old: int) -> Sequence[bytes]:
            return await asyncio.to_thread(self._prove, old, checkpoint)

        before = peer.problem
        answer = await peer.ask(checkpoint, note, self._trust, prove)
        if peer.problem and peer.problem != before:
            _log.warning("witness.problem", witness=peer.name, problem=peer.problem)
        if isinstance(answer, Claim):
            await self._weigh(answer)
            return False
        now = self._clock.now()
        for signature, line in answer:
            # The witness's own word on when: what it signed long ago and repeats is not fresh for coming now.
            at = datetime.fromtimestamp(min(now.timestamp(), signature.seconds), UTC)
            self._lines[signature.key] = (at, line)
            if (now - at).total_seconds() > self._settings.witness_stale_after:
                peer.problem = (
                    f"it signed at {at:%Y-%m-%dT%H:%M:%SZ}: it repeats what it signed then, or its clock is wrong"
                )
        return bool(answer)

    async def _publish(self, checkpoint: Checkpoint, note: str) -> None:
        """Put the checkpoint out with all lines there are; a disk that refuses is tried again in the next round."""
        quorum = self._policy.quorum != NONE and self._policy.is_met(self._lines)
        try:
            lines = "".join(line for _, line in self._lines.values())
            await self._log.cosigned(checkpoint, note + lines, quorum=quorum)
        except Error as error:
            _log.warning("witness.not_published", error=str(error))
            return
        if quorum:
            self._met_at, self.witnessed = self._quorum_time(), checkpoint.size

    def _silent(self) -> list[str]:
        """The witnesses that have not signed for longer than is allowed."""
        now, allowed = self._clock.now(), self._settings.witness_stale_after
        return self._policy.missing(
            [key for key, (at, _) in self._lines.items() if (now - at).total_seconds() <= allowed]
        )

    def _quorum_time(self) -> datetime:
        """Since when a quorum has signed what is there: the latest moment after which enough lines came."""
        signed: set[NoteKey] = set()
        for key, (at, _) in sorted(self._lines.items(), key=lambda item: item[1][0], reverse=True):
            signed.add(key)
            if self._policy.is_met(signed):
                return at
        raise AssertionError("asked for lines that are no quorum")

    async def _judge_quorum(self) -> None:
        """Tell in the log when the quorum is lost or back, and hold the log where that is asked for."""
        closing = self._settings.witness_fail_closed_after
        if self.is_stale != self._is_lost:
            kind = "witness.quorum_lost" if self.is_stale else "witness.quorum_regained"
            self._log.held = self._log.held if self.is_stale else ""
            facts = {"missing": self._silent()} if self.is_stale else {}
            try:
                await self._journal.record(
                    kind, actor=self._actor, subject=self._subject, size=self.witnessed, since=self._met_at, **facts
                )
            except Error as error:
                # It is tried again in the next round.
                _log.error("witness.not_recorded", kind=kind, error=str(error))
            else:
                self._is_lost = self.is_stale
                _log.log(40 if self._is_lost else 20, kind, since=self._met_at.isoformat(), size=self.witnessed)
        if closing and self._is_lost and self.age > closing:
            self._log.held = (
                f"no quorum of witnesses has signed since {self._met_at:%Y-%m-%dT%H:%M:%SZ}, "
                f"and witness_fail_closed_after is {closing} s"
            )

    async def _weigh(self, claim: Claim) -> None:
        """Stop the log if the claim is proven by our own signature; without proof, if the settings say so."""
        ours = self._log.signed
        if ours is None or self._stopped:
            return
        theirs, proof = self._shown(claim.shown), ""
        if theirs is not None and not (theirs.size > ours[0].size and await self._has_signed(theirs)):
            proof = await asyncio.to_thread(self._contradiction, theirs, ours[0])
        if theirs is not None and not proof and 0 < claim.size <= theirs.size:
            # Somebody else brought the witness a newer checkpoint of ours than it was asked about.
            _log.info("witness.ahead", witness=claim.witness, size=theirs.size)
            return
        if not proof and self._settings.witness_claims == "prove":
            _log.error("witness.claim_unproven", witness=claim.witness, what=claim.what)
            return
        what = f"witness {claim.witness}: {claim.what}" + (f"; {proof}" if proof else "; it shows no proof")
        shown = claim.shown.decode("utf-8", "replace") or "(nothing)\n"
        evidence = f"Our checkpoint:\n\n{ours[1]}\nWhat the witness shows:\n\n{shown}"
        self._stopped = what
        error: Corrupt = forked(self._paths, what, evidence, self._clock.now())
        async with self._log.stopping(error):
            facts = {"theirs": theirs.root.hex()} if theirs is not None else {}
            with suppress(Error):
                await self._journal.record(
                    "log.split_view",
                    actor=self._actor,
                    subject=self._subject,
                    size=ours[0].size,
                    ours=ours[0].root.hex(),
                    claim=what[:1000],
                    witness=claim.witness,
                    **facts,
                )

    def _contradiction(self, theirs: Checkpoint, ours: Checkpoint) -> str:
        """What a checkpoint under our own key proves against our log; "" when nothing. Blocks."""
        if theirs.size > ours.size:
            return f"our own signature stands on a tree of {theirs.size} entries, and there are {ours.size} here"
        if prefix_root(theirs.size, TileReader(self._files, ours.size).node) != theirs.root:
            return f"our own signature stands on another tree of {theirs.size} entries"
        return ""

    async def _has_signed(self, theirs: Checkpoint) -> bool:
        """Whether a checkpoint beyond the last one that we know to be out is one of this very log.

        A checkpoint is a file before it is known here as published, and stays one when its last write fails.
        """
        if theirs.size > self._log.size:
            return False
        try:
            return await self._log.root_of(theirs.size) == theirs.root
        except Error:
            return False  # no append ended there

    def _shown(self, shown: bytes) -> Checkpoint | None:
        """A checkpoint under our own key; None if it is none."""
        try:
            return open_any_checkpoint(shown, self._log.keys)
        except Error:
            return None

    def _prove(self, old: int, checkpoint: Checkpoint) -> list[bytes]:
        """The consistency proof from ``old``; raises ``ProofMismatch`` if our own tiles do not bear it out. Blocks."""
        if old in (0, checkpoint.size):
            return []
        node = TileReader(self._files, checkpoint.size).node
        proof = consistency_proof(old, checkpoint.size, node)
        verify_consistency(old, checkpoint.size, proof, prefix_root(old, node), checkpoint.root)
        return proof

    def _last_met(self) -> datetime:
        """When a quorum signed before this process began: a restart does not make a stale log fresh."""
        last = self._log.witnessed
        if last is None:
            return self._clock.now()
        checkpoint, note = last
        keys = [witness.key for witness in self._policy.witnesses.values()]
        try:
            found: list[Signature] = verified_signatures(note.encode(), keys)[1]
        except Error:
            found = []
        if not found or not self._policy.is_met({signature.key for signature in found}):
            return self._clock.now()
        self.witnessed = checkpoint.size
        # The times are the witnesses' words: one from the far future is no date at all.
        now = self._clock.now()
        return datetime.fromtimestamp(min(now.timestamp(), *(signature.seconds for signature in found)), UTC)

    @property
    def _actor(self) -> str:
        return f"{self._subject}/spire/server"


def prefix_root(size: int, node: Node) -> bytes:
    """The root of the first ``size`` entries, out of a larger tree's hashes."""
    edge, start = [], 0
    while start < size:
        height = (size - start).bit_length() - 1
        edge.append(node(height, start >> height))
        start += 1 << height
    return fold_edge(edge)


def load_policy(path: Path, own: Sequence[NoteKey]) -> Policy:
    """The policy for our own log; raises ``InvalidInput`` if it is another's or can never be met."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"the policy cannot be read: {error.strerror}", where=str(path), fix="witness_policy names a file"
        ) from None
    policy = Policy.parse(raw, str(path))
    if policy.logs and not any(log.key in own for log in policy.logs):
        raise InvalidInput("none of its logs is this one", where=str(path), fix=f"log {own[0].vkey}")
    if not policy.is_met({witness.key for witness in policy.witnesses.values() if witness.url}):
        raise InvalidInput(
            "the witnesses that have a URL are no quorum", where=str(path), fix="witness NAME VKEY URL for each"
        )
    return policy
