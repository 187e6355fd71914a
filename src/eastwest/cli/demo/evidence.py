"""What remains of the attack for somebody who trusts nobody here: a receipt and an archive, judged without us."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from eastwest.agent.config import Paths
from eastwest.agent.receipts import SUFFIX, read_receipt
from eastwest.cli.evidence.command import collect_archive
from eastwest.log.note import NoteKey
from eastwest.log.proof import LogProof

VERIFIER_SECONDS = 30
_TAMPERED = b'"verdict":"allow"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What was carried away, and what a stranger's check of it said. ``lines`` are the verifier's own."""

    principal: str
    archive: str
    entries: int
    calls: int
    segments: int
    sealed: bool
    holds: bool
    tampering_found: bool
    receipt_holds: bool
    lines: tuple[str, ...]


async def carry(data: Path, principal: str, since: str, receipt_of: str) -> Carried:
    """Collect evidence about ``principal``, and judge it and the receipt of ``receipt_of`` offline."""
    return await asyncio.to_thread(_carry, data, principal, since, receipt_of)


def _carry(data: Path, principal: str, since: str, receipt_of: str) -> Carried:
    folder = data / "demo" / "evidence"
    folder.mkdir(parents=True)
    archive = folder / "evidence.zip"
    told = collect_archive(data, principal, since, "", archive, whole_segments=False)
    vkey = (data / "server" / "log.vkey").read_text(encoding="ascii").strip()
    with zipfile.ZipFile(archive) as opened:
        opened.extract("verify.py", folder)
    holds, lines = _judge(folder, archive, vkey)
    forged = folder / "forged.zip"
    _forge(archive, forged)
    forged_holds, _ = _judge(folder, forged, vkey)
    forged.unlink()
    return Carried(
        principal=principal,
        archive=str(archive),
        entries=told["entries"],
        calls=told["decisions"]["calls"],
        segments=told["segments"],
        sealed=told["sealed"],
        holds=holds,
        tampering_found=not forged_holds,
        receipt_holds=_receipt_holds(data, receipt_of, NoteKey.parse(vkey)),
        lines=tuple(lines),
    )


def _judge(folder: Path, archive: Path, vkey: str) -> tuple[bool, list[str]]:
    """What the archive's own program says, run alone: no package of ours can be imported there."""
    command = [sys.executable, "-I", "-S", str(folder / "verify.py"), str(archive), "--vkey", vkey]
    done = subprocess.run(command, capture_output=True, text=True, timeout=VERIFIER_SECONDS, check=False, cwd=folder)
    return done.returncode == 0, done.stdout.splitlines()


def _forge(source: Path, target: Path) -> None:
    """A copy in which one call that was allowed is said to have been refused."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name == "decisions/rows.jsonl":
                content = content.replace(_TAMPERED, b'"verdict":"deny"', 1)
            after.writestr(name, content)


def _receipt_holds(data: Path, spiffe_id: str, key: NoteKey) -> bool:
    """Whether the agent's receipt for an identity's certificate holds, with nothing but the verifier key."""
    for path in Paths(data).receipts.glob(f"*{SUFFIX}"):
        receipt = read_receipt(path)
        if receipt is not None and receipt.spiffe_id == spiffe_id:
            LogProof.parse(receipt.proof).verify(receipt.entry.encode(), key)
            return True
    return False
