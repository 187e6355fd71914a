"""An evidence archive: which files it has, its manifest, and its bytes, which depend on nothing but what is in it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from eastwest import __version__
from eastwest.cli.evidence.collect import Collected
from eastwest.cli.evidence.page import readme, summary
from eastwest.cli.evidence.verifier import FORMAT, SEAL
from eastwest.errors import InvalidInput
from eastwest.log.entry import timestamp
from eastwest.process.files import replace_file

SUFFIXES = (".zip", ".tar.gz", ".tgz")
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def build(made: Collected) -> dict[str, bytes]:
    """The files by path, the manifest among them, without a seal."""
    files: dict[str, bytes] = {"log/checkpoint": made.checkpoint.encode()}
    for name, text in made.vkeys.items():
        files[f"log/{name}"] = text.encode()
    for index, (entry, proof) in made.entries.items():
        files[f"log/entries/{index}.json"] = entry
        files[f"log/entries/{index}.tlog-proof"] = proof.encode()
    for version, estate in made.estates.items():
        for name, content in estate.items():
            files[f"estate/{version}/{name}"] = content
    files["decisions/rows.jsonl"] = b"".join(_line(row) for row in made.rows)
    for path, content in made.segment_files.items():
        files[f"decisions/segments/{path}"] = content
    files["verify.py"] = resources.files("eastwest.cli.evidence").joinpath("verifier.py").read_bytes()
    facts = describe(made)
    files["README.md"] = readme(made, facts).encode()
    files["summary.html"] = summary(made, facts).encode()
    facts["files"] = {path: sha256(content).hexdigest() for path, content in sorted(files.items())}
    files["manifest.json"] = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False).encode()
    return files


def describe(made: Collected) -> dict[str, Any]:
    """The manifest without the hashes of the files."""
    decisions = [row for row in made.rows if row.get("kind", "decision") == "decision"]
    unsealed = [
        row["row"]
        for row in made.rows
        if not any(one["first_row"] <= row["row"] <= one["last_row"] for one in made.segments)
    ]
    return {
        "format": FORMAT,
        "made_by": f"eastwest {__version__}",
        "principal": made.principal,
        "from": timestamp(made.window.start),
        "to": timestamp(made.window.end),
        "services": made.services,
        "log": {"origin": made.origin, "size": made.size, "root": made.root},
        "entries": sorted(made.entries),
        "segments": made.segments,
        "decisions": {
            "rows": len(made.rows),
            "calls": sum(row.get("count", 1) for row in decisions),
            "lost": sum(row.get("count", 0) for row in made.rows if row.get("kind") == "lost"),
            "unsealed_rows": len(unsealed),
        },
        "cut": made.cut,
    }


def sealed(files: Mapping[str, bytes], entry: bytes, proof: str) -> dict[str, bytes]:
    """The same files with the log's entry about their manifest."""
    return {**files, SEAL[0]: entry, SEAL[1]: proof.encode()}


def pack(files: Mapping[str, bytes], path: Path) -> None:
    """Write the archive, mode 0600: it may have personal data. The same files give the same bytes."""
    if path.name.endswith(".zip"):
        raw = _zip(files)
    elif path.name.endswith(SUFFIXES):
        raw = _tar(files)
    else:
        raise InvalidInput(f"{path} names no kind of archive", fix=f"end it in one of {', '.join(SUFFIXES)}")
    replace_file(path, raw, 0o600)


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, _ZIP_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            info.create_system = 3  # Unix, wherever it is made
            archive.writestr(info, files[name])
    return buffer.getvalue()


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            info.mode = 0o644
            archive.addfile(info, io.BytesIO(files[name]))
    return buffer.getvalue()


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
