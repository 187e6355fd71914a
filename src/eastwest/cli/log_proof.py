"""``eastwest log prove``, ``verify-proof``, ``schema``: one entry to carry away, and judged where there is no log."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.log_reading import head, locate, open_log, proof_of, readable
from eastwest.cli.options import print_json, run
from eastwest.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from eastwest.log.note import NoteKey

CertificateFile = Annotated[
    Path | None, typer.Option("--certificate", metavar="FILE", help="The entry that issued this certificate (PEM).")
]
SerialNumber = Annotated[str, typer.Option("--serial", metavar="HEX", help="The newest entry with this serial.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write the entry, its proof and the verifier key as files into this directory."),
]
Wait = Annotated[
    bool,
    typer.Option("--wait", help="First have the running server of --data publish all that is recorded by now."),
]


def publish(data: Path | None, *, decisions: bool = False) -> None:
    """Have the server of ``data`` publish what it has recorded; raises ``Unavailable`` when none runs there.

    ``decisions``: seal those first.
    """
    from eastwest.cli.admin import AdminClient

    if data is None:
        raise InvalidInput("--wait asks the running server, and it is not said which", fix="give --data DIR")
    where = data

    async def flush() -> None:
        async with AdminClient.connect(where) as admin:
            await admin.flush_log(decisions=decisions)

    run(flush)


def prove(
    index: int | None,
    data: Path | None,
    log_dir: Path | None,
    vkey: str | None,
    certificate: Path | None,
    serial: str,
    out: Path | None,
    *,
    json: bool,
) -> None:
    """What ``eastwest log prove`` does."""
    if (index is not None) + (certificate is not None) + bool(serial) != 1:
        raise InvalidInput("it is not said which entry", fix="give its index, --certificate FILE or --serial HEX")
    files, key = locate(data, log_dir, vkey)
    if index is None:
        index = _found(data, log_dir, vkey, certificate, serial)
    checkpoint, note, reader = open_log(files, key)
    entry = reader.entry(index)
    text = proof_of(index, entry, checkpoint, note, reader)
    if out is not None:
        write_receipt(out, f"entry-{index}", entry, text)
        (out / "log.vkey").write_text(f"{key.vkey}\n", encoding="ascii")
    if json:
        print_json({"index": index, **head(key, checkpoint), "entry": readable(entry), "proof": text})
    elif out is None:
        print(text, end="")
    else:
        print(f"entry {index} with its proof is in {out}; judge it anywhere:")
        print(f"  eastwest log verify-proof --entry {out}/entry-{index}.json --proof {out}/entry-{index}.tlog-proof")
        print(f"    --vkey {out}/log.vkey")


def write_receipt(out: Path, name: str, entry: bytes, proof: str) -> None:
    """``NAME.json``, the entry's own bytes, and ``NAME.tlog-proof`` in the directory ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_bytes(entry)
    (out / f"{name}.tlog-proof").write_text(proof, encoding="utf-8")


def verify_proof(entry: Path, proof: Path, vkey: str, certificate: Path | None, *, json: bool) -> None:
    """What ``eastwest log verify-proof`` does."""
    from eastwest.cli.table import printable
    from eastwest.log.proof import LogProof

    raw = _bytes(entry)
    try:
        text = _bytes(proof).decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"{proof} is no proof: it is not text") from None
    key = _key(vkey)
    read = LogProof.parse(text)
    checkpoint = read.verify(raw, key)
    value = readable(raw)
    if certificate is not None:
        check_about(value, certificate)
    about: dict[str, Any] = value if isinstance(value, dict) else {}
    told = {"index": read.index, **head(key, checkpoint), "entry": value}
    if json:
        print_json({"ok": True, **told})
        return
    print(f"entry {read.index} is in the log {key.name}, whose checkpoint covers {checkpoint.size} entries")
    print(printable(f"  {about.get('time', '')}  {about.get('kind', '')}  {about.get('subject', '')}"))
    if certificate is not None:
        print(f"  it is about the certificate in {certificate}")


def check_about(value: object, certificate: Path) -> None:
    """Raise ``InvalidInput`` unless an entry records the issuance of the first certificate of a PEM file."""
    wanted = _sha256(certificate)
    found = value.get("certificate_sha256") if isinstance(value, dict) else None
    if found != wanted:
        raise InvalidInput(
            f"the entry is not about the certificate in {certificate}, whose SHA-256 is {wanted}",
            fix="ask for the entry of this certificate: eastwest log prove --certificate FILE",
        )


def _found(data: Path | None, log_dir: Path | None, vkey: str | None, certificate: Path | None, serial: str) -> int:
    from eastwest.cli.log_search import opened
    from eastwest.log.index import LogQuery

    sha256 = _sha256(certificate) if certificate is not None else ""
    with opened(data, log_dir, vkey) as finder:
        hits = finder.find(LogQuery(certificate_sha256=sha256, serial=serial, limit=1, newest_first=True))
    if not hits:
        what = f"certificate {certificate}" if certificate is not None else f"serial {serial}"
        raise NotFound(
            f"no entry that the log's checkpoint covers is about {what}",
            fix="add --wait if it was only just issued; ask the log of the server that issued it",
        )
    return hits[0][0]


def _sha256(certificate: Path) -> str:
    from eastwest.cli.pem import read_certificates

    return hashlib.sha256(read_certificates(certificate)[0]).hexdigest()


def _key(vkey: str) -> NoteKey:
    from eastwest.log.note import NoteKey

    if "+" in vkey and not Path(vkey).exists():
        return NoteKey.parse(vkey)
    return NoteKey.parse(_bytes(Path(vkey)).decode("utf-8", "replace"))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from None
