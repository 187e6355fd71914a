"""What the commands of ``eastwest log`` share: which log is meant, and how entries are proven and shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eastwest.errors import Corrupt, InvalidInput, NotFound

if TYPE_CHECKING:
    from eastwest.log.checkpoint import Checkpoint
    from eastwest.log.note import NoteKey
    from eastwest.log.tiles import TileReader
    from eastwest.store.log_files import LogDirectory


def locate(data: Path | None, log_dir: Path | None, vkey: str | None) -> tuple[LogDirectory, NoteKey]:
    """The log's files and key; the options for either win over the data directory."""
    from eastwest.log.note import NoteKey
    from eastwest.store.log_files import LogDirectory

    if data is None and (log_dir is None or vkey is None):
        raise InvalidInput("it is not said which log", fix="give --data DIR, or both --log-dir and --vkey")
    folder = log_dir if log_dir is not None else Path(data or "") / "server" / "log"
    if not (folder / "checkpoint").exists() and not (folder / "tile").exists():
        fix = "give --data DIR of a server that has run" if log_dir is None else "give the directory that holds tile/"
        raise NotFound(f"there is no log in {folder}", fix=fix)
    if vkey is not None and "+" in vkey and not Path(vkey).exists():
        return LogDirectory(folder), NoteKey.parse(vkey)
    file = Path(vkey) if vkey is not None else Path(data or "") / "server" / "log.vkey"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"the log's verifier key {file} cannot be read", fix="give --vkey FILE or its text") from error
    return LogDirectory(folder), NoteKey.parse(text)


def second_keys(data: Path) -> list[NoteKey]:
    """The key of the log's second signature, where the server has one."""
    from eastwest.log.note import NoteKey

    try:
        return [NoteKey.parse((data / "server" / "log.ml-dsa-44.vkey").read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []


def open_log(files: LogDirectory, key: NoteKey) -> tuple[Checkpoint, str, TileReader]:
    from eastwest.log.checkpoint import open_checkpoint
    from eastwest.log.tiles import CHECKPOINT_PATH, TileReader

    raw = files.read(CHECKPOINT_PATH)
    checkpoint = open_checkpoint(raw, key)
    return checkpoint, raw.decode(), TileReader(files, checkpoint.size)


def proof_of(index: int, entry: bytes, checkpoint: Checkpoint, note: str, reader: TileReader) -> str:
    """The proof's text, verified; raises ``Corrupt`` if the files do not lead to the checkpoint."""
    from eastwest.log.proof import LogProof, ProofMismatch, inclusion_proof, verify_inclusion
    from eastwest.log.tree import leaf_hash

    proof = inclusion_proof(index, checkpoint.size, reader.node)
    try:
        verify_inclusion(leaf_hash(entry), index, checkpoint.size, proof, checkpoint.root)
    except ProofMismatch as error:
        raise Corrupt(error.message, fix="eastwest log verify names the files at fault") from error
    return LogProof(index, tuple(proof), note).text


def head(key: NoteKey, checkpoint: Checkpoint | None) -> dict[str, Any]:
    if checkpoint is None:
        return {"origin": key.name, "size": None, "root": None}
    return {"origin": key.name, "size": checkpoint.size, "root": checkpoint.root.hex()}


def readable(entry: bytes) -> Any:
    """An entry's JSON; what is none is shown as hex."""
    import msgspec

    try:
        return msgspec.json.decode(entry)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {"hex": entry.hex()}


def line(index: int, value: Any) -> str:
    """One entry for people. What it says may come from whoever was refused: nothing in it commands a terminal."""
    from eastwest.cli.table import printable

    if not isinstance(value, dict) or "kind" not in value:
        return printable(f"{index:>8}  {value}")
    time, kind, subject = (str(value.get(name, "")) for name in ("time", "kind", "subject"))
    return printable(f"{index:>8}  {time:<27}  {kind:<18}  {subject}")
