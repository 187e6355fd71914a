"""Issuance records, checked as a stranger would: from the log's public files and its verifier key alone."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from eastwest.errors import Corrupt
from eastwest.issuance.record import X509_ISSUED
from eastwest.log.checkpoint import open_checkpoint
from eastwest.log.entry import decode
from eastwest.log.note import NoteKey
from eastwest.log.proof import LogProof, inclusion_proof
from eastwest.log.tiles import CHECKPOINT_PATH, TileReader
from eastwest.log.verify import verify_log
from eastwest.store.log_files import LogDirectory


@dataclass(frozen=True, slots=True)
class Record:
    """One issuance: its place in the log, and whether its inclusion proof holds against the signed checkpoint."""

    index: int
    subject: str
    serial: str
    not_after: str
    actor: str
    node: str
    certificate_sha256: str
    proof_hashes: int
    checkpoint_size: int
    verified: bool


@dataclass(frozen=True, slots=True)
class LogReport:
    """The log as a whole: how long it is, whether all of it verifies, and the records that were asked for."""

    origin: str
    size: int
    verified: bool
    problems: tuple[str, ...]
    records: tuple[Record, ...]


class PublicLog:
    """The public files below ``server``, the server's directory."""

    def __init__(self, server: Path) -> None:
        self._files = LogDirectory(server / "log")
        self._key = NoteKey.parse((server / "log.vkey").read_text())

    def issued_to(self, subject: str) -> list[str]:
        """SHA-256 of each certificate issued to ``subject`` and covered by the checkpoint, the oldest first."""
        return [body["certificate_sha256"] for _, _, body in self._issuances() if body["subject"] == subject]

    def count(self, kind: str) -> int:
        """How many entries of a kind the checkpoint covers."""
        checkpoint = open_checkpoint(self._files.read(CHECKPOINT_PATH), self._key)
        reader = TileReader(self._files, checkpoint.size)
        return sum(1 for index in range(checkpoint.size) if decode(reader.entry(index)).kind == kind)

    def report(self, certificates: list[str]) -> LogReport:
        """Verify the whole log, and the inclusion of the issuances of ``certificates`` (PEM), in their order."""
        whole = verify_log(self._files, self._key, self._files.paths())
        checkpoint = whole.checkpoint
        if checkpoint is None:
            return LogReport("", 0, verified=False, problems=tuple(map(str, whole.problems)), records=())
        by_hash = {body["certificate_sha256"]: (index, raw, body) for index, raw, body in self._issuances()}
        records = [self._record(*by_hash[digest]) for pem in certificates if (digest := digest_of(pem)) in by_hash]
        return LogReport(checkpoint.origin, checkpoint.size, whole.ok, tuple(map(str, whole.problems)), tuple(records))

    def _record(self, index: int, raw: bytes, body: dict[str, Any]) -> Record:
        note = self._files.read(CHECKPOINT_PATH)
        size = open_checkpoint(note, self._key).size
        hashes = inclusion_proof(index, size, TileReader(self._files, size).node)
        proof = LogProof.parse(LogProof(index, tuple(hashes), note.decode()).text)
        # Raises unless the checkpoint is signed by the log's key and the entry lies where the proof says.
        checkpoint = proof.verify(raw, self._key)
        return Record(
            index=index,
            subject=body["subject"],
            serial=body["serial"],
            not_after=body["not_after"],
            actor=body["actor"],
            node=body["node"],
            certificate_sha256=body["certificate_sha256"],
            proof_hashes=len(hashes),
            checkpoint_size=checkpoint.size,
            verified=True,
        )

    def _issuances(self) -> list[tuple[int, bytes, dict[str, Any]]]:
        checkpoint = open_checkpoint(self._files.read(CHECKPOINT_PATH), self._key)
        reader = TileReader(self._files, checkpoint.size)
        found = []
        for index in range(checkpoint.size):
            raw = reader.entry(index)
            entry = decode(raw)
            if entry.kind == X509_ISSUED:
                found.append((index, raw, dict(entry.body)))
        return found


def digest_of(pem: str) -> str:
    """SHA-256 of a certificate, as the log writes it."""
    try:
        return sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    except ValueError as error:
        raise Corrupt(f"no certificate: {error}") from None


def serial_of(pem: str) -> str:
    """A certificate's serial number in hex."""
    from cryptography import x509

    return f"{x509.load_pem_x509_certificate(pem.encode()).serial_number:x}"
