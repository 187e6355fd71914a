"""Receipts from the transparency log for the certificates that this agent holds: fetched behind, kept beside them.

One file for each certificate held, named by its entry: the log's entry and its ``c2sp.org/tlog-proof@v1``. With the
certificate its receipt goes. Nothing waits for one: a server that has none leaves a certificate without, and says so in
the count.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from pathlib import Path

import msgspec
import structlog

from eastwest import errors
from eastwest.agent.backoff import Backoff
from eastwest.agent.connection import ServerConnection
from eastwest.agent.identities import Held, Identities
from eastwest.api.eastwest.log.v1 import log_pb2 as log
from eastwest.clock import Clock
from eastwest.process.files import make_private

SUFFIX = ".receipt.json"
GATHER_SECONDS = 1.0
"""After a change, this long is waited: the server's next checkpoint is as far away."""
MAX_RECEIPT = 256 * 1024
BATCH = 100
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_log = structlog.get_logger()


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """One receipt as it is kept: ``entry`` is the log's entry, byte for byte, and ``proof`` its tlog-proof."""

    certificate_sha256: str
    spiffe_id: str
    index: int
    entry: str
    proof: str


class _About(msgspec.Struct, frozen=True):
    certificate_sha256: str = ""


class Receipts:
    """Fetches and keeps receipts for what ``identities`` holds."""

    def __init__(
        self, connection: ServerConnection, identities: Identities, directory: Path, clock: Clock, backoff: Backoff
    ) -> None:
        self._connection = connection
        self._identities = identities
        self._directory = directory
        self._clock = clock
        self._backoff = backoff
        self._kept: dict[Path, str] = {}

    @property
    def lacking(self) -> int:
        """Certificates held without a receipt."""
        return sum(self._kept.get(path) != sha256 for path, (_, sha256) in self._wanted().items())

    async def run(self) -> None:
        """Follow what is held, until cancelled."""
        make_private(self._directory)
        self._kept = await asyncio.to_thread(self._present)
        while True:
            seen = self._identities.changes.count
            complete = await self._follow()
            if complete:
                self._backoff.reset()
                await self._identities.changes.beyond(seen)
                await self._clock.sleep(GATHER_SECONDS)
            else:
                await self._clock.sleep(self._backoff.delay())

    async def _follow(self) -> bool:
        """Fetch what is lacking and drop what is no longer held. False: something is lacking still, try again."""
        lacking = [(p, held, sha256) for p, (held, sha256) in self._wanted().items() if self._kept.get(p) != sha256]
        complete = True
        for start in range(0, len(lacking), BATCH):
            part = lacking[start : start + BATCH]
            try:
                answers = await self._connection.prove([bytes.fromhex(sha256) for _, _, sha256 in part])
            except errors.Error as error:
                # An older server, or one that is away; certificates do without.
                _log.info("agent.receipts.later", lacking=len(lacking) - start, why=error.message)
                complete = False
                break
            for (path, held, sha256), answer in zip(part, answers, strict=True):
                complete &= await self._keep(path, held, sha256, answer)
        wanted = self._wanted()
        for path in [path for path in self._kept if path not in wanted]:
            await asyncio.to_thread(path.unlink, missing_ok=True)
            del self._kept[path]
        return complete

    async def _keep(self, path: Path, held: Held, sha256: str, answer: log.ProveResponse) -> bool:
        """Write one receipt, if it is one for this certificate."""
        try:
            entry = answer.entry.decode()
            about = msgspec.json.decode(entry, type=_About).certificate_sha256
        except (UnicodeDecodeError, msgspec.MsgspecError):
            return False
        if about != sha256 or len(answer.entry) + len(answer.proof) > MAX_RECEIPT:
            return False
        receipt = Receipt(
            certificate_sha256=sha256,
            spiffe_id=str(held.svid.id),
            index=answer.index,
            entry=entry,
            proof=answer.proof,
        )
        try:
            await asyncio.to_thread(_write, path, msgspec.json.encode(receipt))
        except OSError as error:
            _log.warning("agent.receipt.unwritable", error=str(error))
            return False
        self._kept[path] = sha256
        return True

    def _wanted(self) -> dict[Path, tuple[Held, str]]:
        found = {}
        for held in self._identities.everything():
            path = self._directory / f"{_UNSAFE.sub('_', held.entry_id)[:100]}{SUFFIX}"
            found[path] = (held, hashlib.sha256(held.svid.chain[0]).hexdigest())
        return found

    def _present(self) -> dict[Path, str]:
        """What an earlier run has left; what cannot be read is fetched again."""
        kept = {}
        for path in self._directory.glob(f"*{SUFFIX}"):
            receipt = read_receipt(path)
            kept[path] = receipt.certificate_sha256 if receipt is not None else ""
        return kept


def forget(directory: Path) -> None:
    """Remove every receipt: the server no longer knows this agent."""
    for path in directory.glob(f"*{SUFFIX}"):
        path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """In one step, and without waiting for the disk: what a power cut takes is fetched again."""
    new = path.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    new.replace(path)


def read_receipt(path: Path) -> Receipt | None:
    """A kept receipt, unverified; None for a file that is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Receipt)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
