"""``eastwest log``: judge and read the transparency log from its public files alone, no server needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.options import AsJson, examples, print_json
from eastwest.errors import Corrupt, InvalidInput, NotFound

if TYPE_CHECKING:
    from eastwest.log.checkpoint import Checkpoint
    from eastwest.log.note import NoteKey
    from eastwest.log.tiles import TileReader
    from eastwest.store.log_files import LogDirectory

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The transparency log: verify, prove and read it.")

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", envvar="EASTWEST_DATA", readable=False, help="The data directory of the server."
    ),
]
LogDir = Annotated[
    Path | None,
    typer.Option("--log-dir", metavar="DIR", help="The log's public directory, instead of DIR/server/log."),
]
Vkey = Annotated[
    str | None,
    typer.Option("--vkey", metavar="FILE|TEXT", help="The verifier key, instead of DIR/server/log.vkey."),
]
MAX_SHOWN_PROBLEMS = 20


@app.command(
    epilog=examples(
        "eastwest log verify --data data",
        "eastwest log verify --log-dir copy/log --vkey copy/log.vkey",
    )
)
def verify(data: DataDir = None, log_dir: LogDir = None, vkey: Vkey = None, *, json: AsJson = False) -> None:
    """Recompute every hash of the log and compare it with its tiles and its signed checkpoint."""
    from eastwest.log.verify import verify_log

    files, key = _locate(data, log_dir, vkey)
    report = verify_log(files, key, list(files.paths()))
    checkpoint = report.checkpoint
    if json:
        problems = [{"where": p.where, "entry": p.entry, "message": p.message} for p in report.problems]
        print_json({"ok": report.ok, **_head(key, checkpoint), "problems": problems})
    elif report.ok and checkpoint is not None:
        print(f"the log {key.name} is whole: {checkpoint.size} entries, root {checkpoint.root.hex()}")
    else:
        for problem in report.problems[:MAX_SHOWN_PROBLEMS]:
            print(problem)
        print(f"the log {key.name} does not verify: {len(report.problems)} defects")
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def prove(
    index: Annotated[int, typer.Argument(help="The entry's index.", min=0)],
    data: DataDir = None,
    log_dir: LogDir = None,
    vkey: Vkey = None,
    *,
    json: AsJson = False,
) -> None:
    """Print the proof (c2sp.org/tlog-proof@v1) that the log's checkpoint covers an entry."""
    files, key = _locate(data, log_dir, vkey)
    checkpoint, note, reader = _open(files, key)
    entry = reader.entry(index)
    text = _proof(index, entry, checkpoint, note, reader)
    if json:
        print_json({"index": index, **_head(key, checkpoint), "entry": _readable(entry), "proof": text})
    else:
        print(text, end="")


@app.command()
def show(
    data: DataDir = None,
    log_dir: LogDir = None,
    vkey: Vkey = None,
    kind: Annotated[str | None, typer.Option(help="Only entries of this kind, such as x509_svid.issued.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many, the latest ones.", min=1)] = 20,
    *,
    json: AsJson = False,
) -> None:
    """Show the latest entries, oldest first, each proven to be in the log."""
    files, key = _locate(data, log_dir, vkey)
    checkpoint, note, reader = _open(files, key)
    found: list[tuple[int, Any]] = []
    for index in reversed(range(checkpoint.size)):
        entry = reader.entry(index)
        value = _readable(entry)
        if kind is not None and not (isinstance(value, dict) and value.get("kind") == kind):
            continue
        _proof(index, entry, checkpoint, note, reader)
        found.append((index, value))
        if len(found) == limit:
            break
    found.reverse()
    if json:
        entries = [{"index": index, "entry": value} for index, value in found]
        print_json({**_head(key, checkpoint), "entries": entries})
        return
    for index, value in found:
        print(_line(index, value))
    print(f"{len(found)} of {checkpoint.size} entries shown, each proven against the checkpoint of {key.name}")


def _locate(data: Path | None, log_dir: Path | None, vkey: str | None) -> tuple[LogDirectory, NoteKey]:
    """The log's files and key; the options for either win over the data directory."""
    from eastwest.log.note import NoteKey
    from eastwest.store.log_files import LogDirectory

    if data is None and (log_dir is None or vkey is None):
        raise InvalidInput("it is not said which log", fix="give --data DIR, or both --log-dir and --vkey")
    folder = log_dir if log_dir is not None else Path(data or "") / "server" / "log"
    if not folder.is_dir():
        raise NotFound(f"there is no log in {folder}", fix="give --data DIR of a server that has run")
    if vkey is not None and "+" in vkey and not Path(vkey).exists():
        return LogDirectory(folder), NoteKey.parse(vkey)
    file = Path(vkey) if vkey is not None else Path(data or "") / "server" / "log.vkey"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"the log's verifier key {file} cannot be read", fix="give --vkey FILE or its text") from error
    return LogDirectory(folder), NoteKey.parse(text)


def _open(files: LogDirectory, key: NoteKey) -> tuple[Checkpoint, str, TileReader]:
    from eastwest.log.checkpoint import open_checkpoint
    from eastwest.log.tiles import CHECKPOINT_PATH, TileReader

    raw = files.read(CHECKPOINT_PATH)
    checkpoint = open_checkpoint(raw, key)
    return checkpoint, raw.decode(), TileReader(files, checkpoint.size)


def _proof(index: int, entry: bytes, checkpoint: Checkpoint, note: str, reader: TileReader) -> str:
    """The proof's text, verified; raises ``Corrupt`` if the files do not lead to the checkpoint."""
    from eastwest.log.proof import LogProof, ProofMismatch, inclusion_proof, verify_inclusion
    from eastwest.log.tree import leaf_hash

    proof = inclusion_proof(index, checkpoint.size, reader.node)
    try:
        verify_inclusion(leaf_hash(entry), index, checkpoint.size, proof, checkpoint.root)
    except ProofMismatch as error:
        raise Corrupt(error.message, fix="eastwest log verify names the files at fault") from error
    return LogProof(index, tuple(proof), note).text


def _head(key: NoteKey, checkpoint: Checkpoint | None) -> dict[str, Any]:
    if checkpoint is None:
        return {"origin": key.name, "size": None, "root": None}
    return {"origin": key.name, "size": checkpoint.size, "root": checkpoint.root.hex()}


def _readable(entry: bytes) -> Any:
    """An entry's JSON; what is none is shown as hex."""
    import msgspec

    try:
        return msgspec.json.decode(entry)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {"hex": entry.hex()}


def _line(index: int, value: Any) -> str:
    if not isinstance(value, dict) or "kind" not in value:
        return f"{index:>8}  {value}"
    return f"{index:>8}  {value.get('time', ''):<27}  {value['kind']:<18}  {value.get('subject', '')}"
