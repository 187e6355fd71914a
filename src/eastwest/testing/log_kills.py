"""kill -9 of a process that issues, again and again: no certificate is released whose entry is not in the log.

A helper process has everything imported and forks one child for each life, so that hundreds of lives take a minute.
A child opens the log, issues real certificates in batches of all sizes from several tasks, publishes and packs
without a pause, and writes what it releases into a pipe, where it is out of its reach. It is killed at a random
moment, opening and closing included. Then the log is judged as the crash left it, opened again and read.

    outcome = await kill_loop(folder, runs=300, seed=1)
    assert outcome.losses == []
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Self

import msgspec

from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.errors import Error
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import Instance, X509Request
from eastwest.log.checkpoint import Checkpoint
from eastwest.log.note import NoteKey
from eastwest.log.ports import Recorder
from eastwest.log.proof import consistency_proof, verify_consistency
from eastwest.log.tiles import TileReader
from eastwest.log.verify import verify_log
from eastwest.pki.csr import make_csr
from eastwest.pki.profile import Door
from eastwest.pki.signer import KeyAlgorithm, generate_private_key
from eastwest.store.database import Database
from eastwest.store.log import SqliteLog
from eastwest.store.log_files import LogDirectory
from eastwest.testing.ca import TestCA
from eastwest.testing.log import ORIGIN, TestSigner

LONGEST_LIFE_SECONDS = 0.12
LIVES_IN_A_FOLDER = 50
"""After so many a new log is begun: judging all of it after each kill would take longer and longer."""

_DOMAIN = "test.example"
_KEY = NoteKey.of(ORIGIN, TestSigner())
_SIZES = (1, 1, 2, 3, 16, 30)


@dataclass
class Outcome:
    """What a loop has seen: ``losses`` are sentences, and there should be none."""

    runs: int = 0
    killed_while_opening: int = 0
    released: int = 0
    entries: int = 0
    losses: list[str] = field(default_factory=list)


async def kill_loop(folder: Path, runs: int, seed: int, *, broken: bool = False) -> Outcome:
    """Kill ``runs`` children at moments that ``seed`` chooses, in logs below ``folder``.

    With ``broken`` certificates are released before their entries are durable: then there must be losses.
    """
    chance = random.Random(seed)  # noqa: S311 - it chooses moments, and must choose them again
    outcome = Outcome()
    with _Helper(broken=broken) as helper:
        judge: _Judge | None = None
        for number in range(runs):
            if judge is None or number % LIVES_IN_A_FOLDER == 0:
                judge = _Judge(folder / f"log-{number:04}")
            # Most live for a while; one in eight dies while it opens the log.
            life = chance.uniform(0, LONGEST_LIFE_SECONDS)
            released = helper.live(judge.folder, life, early=chance.random() < 0.125)
            outcome.runs += 1
            outcome.killed_while_opening += released is None
            outcome.released += len(released or ())
            try:
                outcome.entries += await judge.judge(released or [])
            except Error as error:
                outcome.losses.append(f"life {number}: {error}")
                judge = None
            else:
                outcome.losses += [f"life {number}: {sentence}" for sentence in judge.losses()]
    return outcome


class _Judge:
    """One log through many lives."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._released: set[str] = set()
        self._recorded: set[str] = set()
        self._read = 0
        self._last = Checkpoint(ORIGIN, 0, b"")
        self._losses: list[str] = []

    def losses(self) -> list[str]:
        """What was found since it was asked last."""
        found, self._losses = self._losses, []
        return found

    async def judge(self, released: list[str]) -> int:
        """Judge what a kill left behind; returns how many entries are new."""
        self._released.update(released)
        files = LogDirectory(self.folder / "log")
        if (self.folder / "log" / "checkpoint").exists():
            self._verify(files, "as the kill left it")
        database = Database.open(self.folder / "db", trust_domain=_DOMAIN, clock=SystemClock())
        try:
            log = await SqliteLog.open(
                database, self.folder / "log", origin=ORIGIN, signer=TestSigner(), clock=SystemClock()
            )
            try:
                added = await log.entries(self._read, log.size)
                size = log.size
            finally:
                await log.close()
        finally:
            await database.close()
        self._verify(files, "opened again")
        if self._last.size != size:
            self._losses.append(f"the log has {size} entries, its checkpoint {self._last.size}")
        self._read = size
        self._recorded.update(msgspec.json.decode(entry)["certificate_sha256"] for entry in added)
        if lost := self._released - self._recorded:
            self._losses.append(f"{len(lost)} certificates were released and have no entry, such as {min(lost)}")
            self._released -= lost
        return len(added)

    def _verify(self, files: LogDirectory, when: str) -> None:
        report = verify_log(files, _KEY, list(files.paths()))
        self._losses += [f"{when}: {problem}" for problem in report.problems]
        new, old = report.checkpoint, self._last
        if new is None:
            return
        if new.size < old.size:
            self._losses.append(f"{when}: the checkpoint went back from {old.size} to {new.size}")
            return
        if old.size:
            proof = consistency_proof(old.size, new.size, TileReader(files, new.size).node)
            verify_consistency(old.size, new.size, proof, old.root, new.root)
        self._last = new


class _Helper:
    """The process that forks the children."""

    def __init__(self, *, broken: bool) -> None:
        self._broken = broken

    def __enter__(self) -> Self:
        answers, answer = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import _serve; _serve({answer}, broken={self._broken})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[answer],
        )
        os.close(answer)
        self._answers = os.fdopen(answers)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._said = self._process.stdin, self._process.stdout
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.close()
        self._process.wait()
        self._said.close()
        self._answers.close()

    def live(self, folder: Path, seconds: float, *, early: bool) -> list[str] | None:
        """Let a child live so long after it has opened the log, or with ``early`` after it was made.

        Returns the hashes of the certificates it has released; None if it had not opened the log.
        """
        pipe = self._said
        self._orders.write(f"{folder}\n".encode())
        self._orders.flush()
        pid = int(self._answers.readline())
        os.set_blocking(pipe.fileno(), False)
        said = b""
        end = time.monotonic() + (seconds / 4 if early else 30)
        opened = early
        while (left := end - time.monotonic()) > 0:
            # Read while it lives: a full pipe would stop it at a place that is always the same.
            if select.select([pipe], [], [], left)[0]:
                said += os.read(pipe.fileno(), 1 << 16)
            if not opened and said.startswith(b"open\n"):
                opened, end = True, time.monotonic() + seconds
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        status = int(self._answers.readline())
        if status != signal.SIGKILL:
            raise AssertionError(f"a child ended by itself with status {status}")
        while select.select([pipe], [], [], 0)[0]:
            said += os.read(pipe.fileno(), 1 << 16)
        lines = said[: said.rfind(b"\n") + 1].decode().splitlines()
        return lines[1:] if lines else None


def _serve(answer: int, *, broken: bool) -> None:
    """The helper: a folder a line on standard input; a child's pid, and how it ended, on ``answer``."""
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                asyncio.run(_life(Path(line.strip()), broken=broken))
            finally:
                os._exit(1)
        os.write(answer, b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(answer, b"%d\n" % status)


async def _life(folder: Path, *, broken: bool) -> None:
    """A child: opens the log and issues until it is killed."""
    clock = SystemClock()
    database = Database.open(folder / "db", trust_domain=_DOMAIN, clock=clock)
    log = await SqliteLog.open(database, folder / "log", origin=ORIGIN, signer=TestSigner(), clock=clock)
    ca = TestCA(now=clock.now())
    recorder: Recorder = _Hasty(log) if broken else log
    issuer = Issuer({"": ca.authority}, ca.jwt_key, recorder, clock, SystemEntropy(), Instance("killed", "0"))
    requests = [_request(ca, number) for number in range(4)]
    os.write(1, b"open\n")

    async def issue(task: int) -> None:
        turn = task
        while True:
            turn += 1
            size = _SIZES[turn % len(_SIZES)]
            released = await issuer.issue_x509([requests[i % len(requests)] for i in range(size)])
            hashes = [sha256(svid.chain[0]).hexdigest() for svid in released if not isinstance(svid, Error)]
            os.write(1, "".join(f"{hash_}\n" for hash_ in hashes).encode())

    async def publish() -> None:
        while True:
            await log.flush()
            while await log.pack():
                pass
            await asyncio.sleep(0)

    await asyncio.gather(publish(), *(issue(task) for task in range(3)))


class _Hasty:
    """A recorder that does what none may: it answers first and appends later."""

    def __init__(self, log: SqliteLog) -> None:
        self._log = log
        self._later: set[asyncio.Task[Sequence[int]]] = set()

    async def append(self, entries: Sequence[bytes]) -> Sequence[int]:
        self._later.add(asyncio.create_task(self._log.append(entries)))
        return range(len(entries))


def _request(ca: TestCA, number: int) -> X509Request:
    spiffe_id = ca.trust_domain.id(f"/service-{number}")
    return X509Request(
        csr_der=make_csr(generate_private_key(KeyAlgorithm.EC_P256), spiffe_id),
        spiffe_id=spiffe_id,
        door=Door.SPIRE_API,
        caller="spiffe://test.example/agent",
        node="spiffe://test.example/agent",
        entry_id=f"entry-{number}",
        entry_revision=1,
        evidence={"selectors": ["unix:uid:1000"]},
    )
