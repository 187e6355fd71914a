"""Judge an evidence archive of Eastwest, on any machine: Python 3.9 or later, no network, nothing installed.

    python verify.py ARCHIVE --vkey FILE|TEXT [--unsealed] [--json]

ARCHIVE is the .zip or .tar.gz, or the directory that it was unpacked into. Give the log's verifier key as you have it
from a source you trust: the one inside the archive comes from whoever made the archive, so without --vkey nothing more
is found than whether the archive agrees with itself. Signatures of checkpoints are checked with ``cryptography`` where
that is installed, else with the arithmetic below (RFC 8032).

This file is part of each archive, and stands alone on purpose: read it before you rely on it.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import json
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

Files = Mapping[str, bytes]
Key = tuple[str, bytes, bytes]
Notes = dict[str, tuple[int, bytes]]
Point = tuple[int, int, int, int]

FORMAT = "eastwest-evidence/1"
MAX_BYTES = 4 << 30
MAX_FILES = 500_000
MAX_GROWTH = 200
"""How many times its own size an archive may unpack to, beyond ``FREE_BYTES``: a bomb says so by its size."""
FREE_BYTES = 256 << 20
SEAL = ("seal/entry.json", "seal/entry.tlog-proof")
SECOND_VKEY = "log/log.ml-dsa-44.vkey"
ED25519, ML_DSA_44 = (1, 32), (6, 1312)
"""Type and key length of a log's verifier keys (C2SP signed-note)."""


class Defect(Exception):
    """Something in the archive is not as it must be."""


class Report:
    """What was checked: ``failed`` must be empty, ``notes`` want a person's eye.

    ``trusted``: the key is one that the person who asks had from elsewhere.
    """

    def __init__(self, *, trusted: bool = False) -> None:
        self.trusted = trusted
        self.passed: list[str] = []
        self.failed: list[str] = []
        self.notes: list[str] = []

    @property
    def holds(self) -> bool:
        """Whether the archive is evidence: all checks passed, with a key that is trusted."""
        return self.trusted and not self.failed

    def check(self, what: str, test: Callable[[], str]) -> None:
        """Run one check; a ``Defect`` is a failure."""
        try:
            told = test()
        except Defect as defect:
            self.failed.append(f"{what}: {defect}")
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            self.failed.append(f"{what}: malformed ({type(error).__name__}: {error})")
        else:
            self.passed.append(f"{what}: {told}" if told else what)


def verify(files: Files, vkey: str | None = None, *, unsealed: bool = False) -> Report:
    """Judge an archive given as ``{path: bytes}``; ``vkey`` is the verifier key that is trusted.

    ``unsealed``: a missing seal, which anybody can bring about, is a note and no failure.
    """
    report = Report(trusted=vkey is not None)
    given = files.get("log/log.vkey", b"").decode("ascii", "replace").strip()
    if vkey is None:
        report.notes.append(f"no --vkey was given: the archive's own key was used; compare it: {given}")
    try:
        key = read_vkey(given if vkey is None else from_argument(vkey))
    except (Defect, ValueError, OSError) as error:
        report.failed.append(f"verifier key: {error}")
        return report
    try:
        manifest = json.loads(files["manifest.json"])
        if manifest["format"] != FORMAT:
            raise Defect(f"the format is {manifest['format']!r}, not {FORMAT}")
    except Defect as defect:
        report.failed.append(f"manifest: {defect}")
        return report
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        report.failed.append(f"manifest: manifest.json cannot be used: {error}")
        return report
    notes: Notes = {}
    report.check("files", lambda: check_files(files, manifest))
    report.check("checkpoint", lambda: check_checkpoint(files, manifest, key, notes))
    report.check("entries", lambda: check_entries(files, manifest, key, notes))
    report.check("certificates", lambda: check_certificates(files, manifest))
    report.check("policy", lambda: check_policy(files, manifest))
    report.check("segments", lambda: check_segments(files, manifest))
    report.check("decisions", lambda: check_decisions(files, manifest))
    if any(path in files for path in SEAL):
        report.check("seal", lambda: check_seal(files, key, notes))
    else:
        told = "the archive has no seal: the choice of its contents, rows of decisions and pages are its maker's word"
        if unsealed:
            report.notes.append(told)
        else:
            report.failed.append(f"seal: {told}; --unsealed takes that")
    report.check("one history", lambda: check_history(notes))
    if SECOND_VKEY in files and knows_ml_dsa():
        report.check("second signature", lambda: check_second(files, key, notes, report.notes))
    elif SECOND_VKEY in files:
        report.notes.append("the log's ML-DSA-44 signatures were not checked: that takes a newer package cryptography")
    return report


def check_files(files: Files, manifest: dict[str, Any]) -> str:
    """Every file is in the manifest with its hash, and none is missing."""
    told = manifest["files"]
    present = {path for path in files if path != "manifest.json" and path not in SEAL}
    if missing := sorted(told.keys() - present):
        raise Defect(f"missing: {', '.join(missing[:5])}")
    if foreign := sorted(present - told.keys()):
        raise Defect(f"not in the manifest: {', '.join(foreign[:5])}")
    changed = sorted(path for path in present if sha256(files[path]) != told[path])
    if changed:
        raise Defect(f"changed: {', '.join(changed[:5])}")
    return f"{len(present)} as the manifest has them"


def check_checkpoint(files: Files, manifest: dict[str, Any], key: Key, notes: Notes) -> str:
    """The log's head is signed, and the one that the manifest names."""
    note = files["log/checkpoint"].decode("utf-8")
    size, root = notes[note] = open_checkpoint(note, key)
    if manifest["log"] != {"origin": key[0], "size": size, "root": root.hex()}:
        raise Defect(f"the manifest names another than the signed one, of {size} entries with the root {root.hex()}")
    return f"{size} entries of {key[0]}"


def check_history(notes: Notes) -> str:
    """No two checkpoints in the archive contradict each other: else the log has signed two histories."""
    roots: dict[int, bytes] = {}
    for size, root in notes.values():
        if roots.setdefault(size, root) != root:
            raise Defect(f"the log has signed two different trees of {size} entries: keep this archive")
    return ""


def check_entries(files: Files, manifest: dict[str, Any], key: Key, notes: Notes) -> str:
    """Each entry is in the log: its proof leads to a checkpoint that the log's key signed."""
    indices = manifest["entries"]
    if sorted(indices) != indices or len(set(indices)) != len(indices):
        raise Defect("the manifest's list of entries is not in order")
    found = {path for path in files if path.startswith("log/entries/")}
    wanted = {f"log/entries/{index}.{end}" for index in indices for end in ("json", "tlog-proof")}
    if found != wanted:
        raise Defect(f"the entries are not those of the manifest: {sorted(found ^ wanted)[:4]}")
    for index in indices:
        name = f"log/entries/{index}"
        if check_proof(files[f"{name}.json"], files[f"{name}.tlog-proof"], key, notes) != index:
            raise Defect(f"the proof of {name} is of another entry")
    sizes = sorted({size for size, _root in notes.values()})
    return f"{len(indices)}, each proven in the log {key[0]} of {sizes[-1] if sizes else 0} entries"


def check_certificates(files: Files, manifest: dict[str, Any]) -> str:
    """The certificates inside entries have the hashes that these entries name."""
    count = 0
    for entry in entries(files, manifest):
        if "certificate" in entry and "certificate_sha256" in entry:
            if sha256(base64.b64decode(entry["certificate"])) != entry["certificate_sha256"]:
                raise Defect(f"the certificate with serial {entry.get('serial')} is not the one that was recorded")
            count += 1
    return f"{count} in full"


def check_policy(files: Files, manifest: dict[str, Any]) -> str:
    """The files of each estate are those whose hashes the log recorded when it was applied."""
    by_version = {e["version"]: e["files"] for e in entries(files, manifest) if e.get("kind") == "policy.activated"}
    held: dict[str, dict[str, str]] = {}
    for path in files:
        if path.startswith("estate/"):
            version, _, name = path[len("estate/") :].partition("/")
            held.setdefault(version, {})[name] = sha256(files[path])
    for version, hashes in held.items():
        if version not in by_version:
            raise Defect(f"version {version} is not in any entry of the archive")
        if hashes != by_version[version]:
            raise Defect(f"the files of version {version} are not those that were applied")
    absent = sorted(by_version.keys() - held.keys())
    return f"{len(held)} versions in full" + (f", {len(absent)} by hash only" if absent else "")


def check_segments(files: Files, manifest: dict[str, Any]) -> str:
    """Each segment of the decision ledger is one that was sealed in the log; those included are whole."""
    sealed = {
        entry["segment"]: entry for entry in entries(files, manifest) if entry.get("kind") == "decision.segment.sealed"
    }
    facts = ("first_row", "last_row", "rows", "decisions", "lost")
    whole = 0
    for segment in manifest["segments"]:
        entry = sealed.get(segment["segment"])
        if entry is None or entry["sha256"] != segment["sha256"]:
            raise Defect(f"{segment['segment']} was not sealed with this hash")
        if any(segment[name] != entry[name] for name in facts):
            raise Defect(f"{segment['segment']} was sealed with other numbers of rows")
        data = files.get(f"decisions/segments/{segment['segment']}")
        if data is not None:
            if sha256(data) != entry["sha256"]:
                raise Defect(f"{segment['segment']} was changed since it was sealed")
            whole += 1
    return f"{len(manifest['segments'])} sealed in the log, {whole} of them here in full"


def check_decisions(files: Files, manifest: dict[str, Any]) -> str:
    """The rows are as many as the manifest says, in order, and each lies in a sealed segment or is said not to."""
    lines = files["decisions/rows.jsonl"].splitlines()
    told = manifest["decisions"]
    last, calls, loose = 0, 0, 0
    for line in lines:
        row = json.loads(line)
        if not isinstance(row["row"], int) or row["row"] <= last:
            raise Defect(f"row {row['row']} is out of order")
        last = row["row"]
        calls += row.get("count", 1) if row.get("kind", "decision") == "decision" else 0
        if not any(s["first_row"] <= last <= s["last_row"] for s in manifest["segments"]):
            loose += 1
    if [len(lines), calls, loose] != [told["rows"], told["calls"], told["unsealed_rows"]]:
        raise Defect(f"{len(lines)} rows of {calls} calls, {loose} unsealed; the manifest says {told}")
    return f"{len(lines)} rows for {calls} calls, {loose} rows in no sealed segment that is proven here"


def check_seal(files: Files, key: Key, notes: Notes) -> str:
    """The log has an entry that names this very manifest."""
    if missing := [path for path in SEAL if path not in files]:
        raise Defect(f"{missing[0]} is missing")
    try:
        check_proof(files[SEAL[0]], files[SEAL[1]], key, notes)
        entry = json.loads(files[SEAL[0]])
    except (Defect, ValueError, IndexError) as error:
        raise Defect(f"{SEAL[0]} or {SEAL[1]} was changed: {error}") from None
    if entry["kind"] != "evidence.collected" or entry["manifest_sha256"] != sha256(files["manifest.json"]):
        raise Defect("the entry is not about this manifest: manifest.json was changed, or the seal is another's")
    return f"the log recorded this very collection at {entry['time']}, by {entry['actor']}"


def check_second(files: Files, key: Key, notes: Notes, told: list[str]) -> str:
    """The log's ML-DSA-44 signatures on checkpoints; ``told`` gets whose signatures nothing here can check.

    The archive's own key is used, which the seal vouches for. Where the log's head bears such a signature, all do.
    """
    name, key_id, public = read_vkey(files[SECOND_VKEY].decode("ascii"), ML_DSA_44)
    signed: set[str] = set()
    others: set[str] = set()
    for note in notes:
        text, _, signatures = note.rpartition("\n\n")
        for line in signatures[:-1].split("\n"):
            _, signer, encoded = line.split(" ")
            blob = unbase64(encoded)
            if (signer, blob[:4]) == (name, key_id):
                if not ml_dsa_44(public, name, f"{text}\n", blob[4:]):
                    where = next((path for path in sorted(files) if files[path].endswith(note.encode())), "")
                    raise Defect(f"the ML-DSA-44 signature of {name} on the checkpoint in {where} is false")
                signed.add(note)
            elif (signer, blob[:4]) != key[:2]:
                others.add(signer)
    if others:
        told.append(f"not checked, their keys are not known here: signatures by {', '.join(sorted(others)[:5])}")
    if signed and len(signed) != len(notes):
        raise Defect("a checkpoint lacks the log's ML-DSA-44 signature that others here bear")
    return "ML-DSA-44, on every checkpoint" if signed else "none"


def entries(files: Files, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries as values."""
    return [json.loads(files[f"log/entries/{index}.json"]) for index in manifest["entries"]]


def sha256(data: bytes) -> str:
    """In lower-case hex."""
    return hashlib.sha256(data).hexdigest()


# The log: C2SP tlog-proof, tlog-checkpoint and signed-note; RFC 6962 hashes.


def check_proof(entry: bytes, proof: bytes, key: Key, notes: Notes) -> int:
    """The index of an entry, once its proof leads to a checkpoint signed by ``key``."""
    head, separator, note = proof.decode("utf-8").partition("\n\n")
    lines = head.split("\n")
    if not separator or lines[0] != "c2sp.org/tlog-proof@v1":
        raise Defect("not a c2sp.org/tlog-proof@v1")
    lines = lines[2:] if lines[1].startswith("extra ") else lines[1:]
    if not lines[0].startswith("index ") or not lines[0][6:].isdigit():
        raise Defect("the proof names no index")
    if note not in notes:
        notes[note] = open_checkpoint(note, key)
    size, root = notes[note]
    index = int(lines[0][6:])
    path = [base64.b64decode(line, validate=True) for line in lines[1:]]
    if not 0 <= index < size or root_from(hashlib.sha256(b"\0" + entry).digest(), index, size, path) != root:
        raise Defect(f"entry {index} is not in the log")
    return index


def root_from(hash_: bytes, index: int, size: int, path: list[bytes]) -> bytes | None:
    """The root that an audit path leads to (RFC 9162, 2.1.3.2); None if the path has the wrong length."""
    last = size - 1
    for sibling in path:
        if last == 0 or len(sibling) != 32:
            return None
        if index & 1 or index == last:
            hash_ = hashlib.sha256(b"\1" + sibling + hash_).digest()
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            hash_ = hashlib.sha256(b"\1" + hash_ + sibling).digest()
        index, last = index >> 1, last >> 1
    return hash_ if last == 0 else None


def open_checkpoint(note: str, key: Key) -> tuple[int, bytes]:
    """(size, root) of a checkpoint of the log that ``key`` belongs to, its signature checked."""
    text, separator, signatures = note.rpartition("\n\n")
    if not (separator and all(text.split("\n")) and signatures.endswith("\n")) or {c for c in note if c < " "} != {
        "\n"
    }:
        raise Defect("a checkpoint is no signed note, or has an empty line or a control character in it")
    text += "\n"
    name, key_id, public = key
    signed = False
    for line in signatures[:-1].split("\n"):
        dash, signer, encoded = line.split(" ")
        blob = unbase64(encoded)
        if dash == "\u2014" and signer == name and blob[:4] == key_id:
            if not ed25519(public, text.encode(), blob[4:]):
                raise Defect(f"the signature of {name} on a checkpoint is false")
            signed = True
    if not signed:
        raise Defect(f"a checkpoint is not signed by {name}")
    origin, size, root = text.split("\n")[:3]
    if origin != name or not size.isdigit() or str(int(size)) != size or len(size) > 19 or len(unbase64(root)) != 32:
        raise Defect("a checkpoint is malformed, or of another log")
    return int(size), unbase64(root)


def unbase64(text: str) -> bytes:
    """Base64 in its one canonical form."""
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise Defect("base64 that is not in canonical form")
    return raw


def from_argument(text: str) -> str:
    """A verifier key's text, which may be given as the file that holds it."""
    if "+" not in text or (len(text) < 250 and Path(text).is_file()):
        return Path(text).read_text(encoding="ascii")
    return text


def read_vkey(text: str, kind: tuple[int, int] = ED25519) -> Key:
    """(name, key ID, public key) of a verifier key of this type."""
    parts = text.strip().split("+", 2)
    if len(parts) != 3:
        raise Defect("a verifier key has the form name+id+base64")
    raw = base64.b64decode(parts[2], validate=True)
    key_id = hashlib.sha256(parts[0].encode() + b"\n" + raw).digest()[:4]
    if raw[:1] != bytes(kind[:1]) or len(raw) != 1 + kind[1] or key_id.hex() != parts[1]:
        raise Defect(f"the verifier key is not a whole one of type {kind[0]}")
    return parts[0], key_id, raw[1:]


def knows_ml_dsa() -> bool:
    """Whether the library that can check such signatures is here."""
    try:
        from cryptography.hazmat.primitives.asymmetric import mldsa
    except ImportError:
        return False
    return hasattr(mldsa, "MLDSA44PublicKey")


def ml_dsa_44(public: bytes, name: str, text: str, blob: bytes) -> bool:
    """Whether a timed signature of a checkpoint by its log is true (C2SP tlog-cosignature)."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

    origin, size, root = text.split("\n")[:3]
    cosigner, log = (bytes([len(part)]) + part for part in (name.encode(), origin.encode()))
    tree = bytes(8) + int(size).to_bytes(8, "big") + unbase64(root)
    try:
        MLDSA44PublicKey.from_public_bytes(public).verify(
            blob[8:], b"subtree/v1\n\0" + cosigner + blob[:8] + log + tree
        )
    except InvalidSignature:
        return False
    return True


# Ed25519 (RFC 8032, 5.1.7). Verification handles no secrets, so speed is all that this form of it lacks.
P = 2**255 - 19
Q = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def ed25519(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature is true."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        return ed25519_slow(public, message, signature)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def ed25519_slow(public: bytes, message: bytes, signature: bytes) -> bool:
    """The same by hand: S*B == R + h*A."""
    if len(signature) != 64:
        return False
    a, r = point(public), point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= Q:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % Q
    base = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
    if base is None:
        return False
    left, right = times(s, base), add(r, times(h, a))
    return (left[0] * right[2] - right[0] * left[2]) % P == 0 and (left[1] * right[2] - right[1] * left[2]) % P == 0


def point(raw: bytes) -> Point | None:
    """A point in extended coordinates, or None."""
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= P:
        return None
    xx = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if (x * x - xx) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - xx) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def add(one: Point, two: Point) -> Point:
    """The sum of two points."""
    a, b = (one[1] - one[0]) * (two[1] - two[0]) % P, (one[1] + one[0]) * (two[1] + two[0]) % P
    c, d = 2 * one[3] * two[3] * D % P, 2 * one[2] * two[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(number: int, one: Point) -> Point:
    """A multiple of a point."""
    result = (0, 1, 1, 0)
    while number:
        if number & 1:
            result = add(result, one)
        one, number = add(one, one), number >> 1
    return result


# Reading archives: everything into memory, by name; nothing is unpacked.


def read_archive(path: str) -> dict[str, bytes]:
    """``{path: bytes}`` of a directory, a .zip or a .tar.gz."""
    files: dict[str, bytes] = {}
    total, bound = 0, bound_of(Path(path))
    for name, size, read in members(Path(path), bound):
        total += size
        if total > bound or len(files) >= MAX_FILES:
            raise Defect("the archive is too large, or unpacks to far more than it is")
        # Nothing is unpacked here; but people do unpack archives that a program has found good.
        if name[1:2] == ":" or "\\" in name or {"", ".", ".."} & set(name.split("/")) or not name.isprintable():
            raise Defect(f"{name[:100]!r} is no name for a file")
        if name in files:
            raise Defect(f"{name} is in the archive twice")
        files[name] = read()
    return files


def bound_of(path: Path) -> int:
    """How many bytes an archive may unpack to."""
    return MAX_BYTES if path.is_dir() else min(MAX_BYTES, FREE_BYTES + MAX_GROWTH * path.stat().st_size)


def members(path: Path, bound: int) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """(name, size, function that reads it) of each file."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                yield file.relative_to(path).as_posix(), file.stat().st_size, file.read_bytes
        return
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise Defect(f"{info.filename[:100]!r} is compressed in a way that no archive of ours is")
                if not info.is_dir():
                    yield info.filename, info.file_size, partial(archive.read, info)
        return
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
    # As a stream, so that a header cannot make more be read than the bound either.
    plain: IO[bytes] = gzip.GzipFile(path) if is_gzip else path.open("rb")  # type: ignore[assignment]  # it reads alike
    bounded: Any = Bounded(plain, bound)  # of a stream nothing but read is asked
    with plain, tarfile.open(fileobj=bounded, mode="r|") as packed:
        for member in packed:
            if member.isfile():
                yield member.name, member.size, partial(extracted, packed, member)


class Bounded:
    """A file that ends with a ``Defect`` where more is read from it than is allowed."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self.file = file
        self.left = left

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes."""
        raw = self.file.read(size)
        self.left -= len(raw)
        if self.left < 0:
            raise Defect("the archive is too large, or unpacks to far more than it is")
        return raw


def extracted(packed: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """One file of a tar archive."""
    file = packed.extractfile(member)
    return file.read() if file is not None else b""


def main(arguments: list[str] | None = None) -> int:
    """The command: 0 when all checks passed, 1 when one failed, 2 for wrong usage."""
    parser = argparse.ArgumentParser(description="Judge an evidence archive offline.")
    parser.add_argument("archive", nargs="?", default=str(Path(__file__).resolve().parent))
    parser.add_argument("--vkey", help="the log's verifier key (file or text), from a source you trust")
    parser.add_argument("--unsealed", action="store_true", help="accept that the log has not recorded the archive")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not Path(options.archive).exists():
        parser.error(f"there is no {options.archive}")
    if options.vkey is not None and "+" not in options.vkey and not Path(options.vkey).is_file():
        parser.error(f"--vkey is neither a file nor of the form name+id+base64: {options.vkey}")
    report, _ = judge(options.archive, options.vkey, unsealed=options.unsealed)
    return show(report, as_json=options.json)


def judge(archive: str, vkey: str | None, *, unsealed: bool = False) -> tuple[Report, dict[str, bytes]]:
    """What is found of an archive, and its files."""
    try:
        files = read_archive(archive)
        if "manifest.json" not in files:
            raise Defect(f"{archive} holds no manifest.json: give the archive, or the directory it was unpacked to")
    except (
        Defect,
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        report = Report()
        report.failed.append(f"archive: {error}")
        return report, {}
    return verify(files, vkey, unsealed=unsealed), files


def show(report: Report, *, as_json: bool = False) -> int:
    """Print a report; the exit code."""
    if as_json:
        told = {"ok": report.holds, "passed": report.passed, "failed": report.failed, "notes": report.notes}
        print(json.dumps(told, indent=2))
        return 0 if report.holds else 1
    for sign, lines in (("ok  ", report.passed), ("note", report.notes), ("FAIL", report.failed)):
        for line in lines:
            # What an archive says of itself must not pass for what this program says.
            print(sign, "".join(c if c.isprintable() else "\ufffd" for c in line))
    if report.failed:
        print("the evidence does not hold")
    elif report.trusted:
        print("the evidence holds")
    else:
        print("the archive agrees with itself; with no --vkey that you trust, anybody can have made it")
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
