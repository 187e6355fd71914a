"""Verify a transparency log, or a proof from one, without trusting who runs it. One file; needs Python >= 3.11 and
`cryptography` (one that has ML-DSA, for such keys), and shares no code with the program that writes the log.

    python verify_log.py LOG --vkey log.vkey --vkey log.ml-dsa-44.vkey      every entry, tile and signature
    python verify_log.py LOG --vkey log.vkey --policy witnesses.policy      and enough witnesses
    python verify_log.py LOG --vkey log.vkey --against old/checkpoint       and nothing was taken back since
    python verify_log.py --proof FILE --entry FILE --vkey log.vkey          one entry by its tlog-proof, offline

LOG is a directory or a URL with `checkpoint` and `tile/` (C2SP tlog-tiles). A vkey is a file or the text itself; take
it by a way that you trust. Every key that is given must have signed. Exit status: 0 verified, 1 not, 2 wrong usage.
"""

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_FILE = 64 << 20
Key = tuple[str, bytes, int, bytes]  # name, key id, signature type, public key
Head = tuple[str, int, bytes]  # origin, size, root


class Refused(Exception):
    """What was given does not verify; the text says why."""


def demand(true: object, why: str) -> None:
    if not true:
        raise Refused(why)


def unbase64(text: str) -> bytes:
    raw = base64.b64decode(text, validate=True)
    demand(base64.b64encode(raw).decode() == text, "base64 that is not in canonical form")
    return raw


def number(text: str) -> int:
    demand(text.isascii() and text.isdigit() and len(text) < 20 and str(int(text)) == text, f"no number: {text[:40]!r}")
    return int(text)


def hashed(*parts: bytes) -> bytes:
    return sha256(b"".join(parts)).digest()


def read_vkey(text: str) -> Key:
    """``name+hex(key id)+base64(type || public key)``, or a file with that line (C2SP signed-note)."""
    if "+" not in text or (len(text) < 250 and Path(text).is_file()):
        text = Path(text).read_text()
    name, shown, blob = text.strip().split("+", 2)
    raw = unbase64(blob)
    key = (name, hashed(name.encode(), b"\n", raw)[:4], raw[0], raw[1:])
    known = {1: 32, 4: 32, 6: 1312}.get(raw[0]) == len(raw) - 1
    demand(known and key[1].hex() == shown, f"the verifier key of {name} is malformed or of an unknown type")
    return key


def check_signature(key: Key, text: str, blob: bytes) -> None:
    """Raise ``InvalidSignature`` unless ``blob`` is the key's signature of a note's text (C2SP tlog-cosignature)."""
    name, _, kind, public = key
    time, signature = blob[:8], blob[8:]
    if kind == 1:
        Ed25519PublicKey.from_public_bytes(public).verify(blob, text.encode())
    elif kind == 4:
        lines = f"cosignature/v1\ntime {int.from_bytes(time)}\n{text}"
        Ed25519PublicKey.from_public_bytes(public).verify(signature, lines.encode())
    else:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey  # older libraries have none

        origin, size, root = text.split("\n")[:3]
        cosigner, log = (bytes([len(part)]) + part for part in (name.encode(), origin.encode()))
        tree = bytes(8) + number(size).to_bytes(8) + unbase64(root)
        MLDSA44PublicKey.from_public_bytes(public).verify(signature, b"subtree/v1\n\0" + cosigner + time + log + tree)


def open_checkpoint(raw: bytes, keys: list[Key], policy: "Policy | None") -> Head:
    """The tree head that all ``keys`` (or any log of the policy), and enough witnesses, have signed."""
    text, _, block = raw.decode().rpartition("\n\n")
    sound = all(text.split("\n")) and block.endswith("\n") and {c for c in raw.decode() if c < " "} == {"\n"}
    demand(sound, "the checkpoint is no signed note, or has an empty line or a control character in it")
    text += "\n"
    origin, size, root = text.split("\n")[:3]
    trusted = {key[:2]: key for key in ([*keys, *policy.logs, *policy.witnesses.values()] if policy else keys)}
    signed: set[Key] = set()
    for line in block[:-1].split("\n"):
        dash, name, encoded = line.split(" ")
        blob = unbase64(encoded)
        key = trusted.get((name, blob[:4]))
        if dash != "\u2014" or key is None:
            continue
        try:
            check_signature(key, text, blob[4:])
        except (InvalidSignature, ValueError):
            raise Refused(f"the checkpoint's signature by {name} (type {key[2]}) is false") from None
        signed.add(key)
    missing = [f"{key[0]} (type {key[2]})" for key in keys if key not in signed]
    demand(not missing, f"the checkpoint is not signed by {missing}")
    logs = keys or [key for key in (policy.logs if policy else []) if key in signed]
    ours = logs and all(key[0] == origin and key[2] != 4 for key in logs)
    demand(ours, f"the checkpoint is of the log {origin!r}, which no key that was given is of")
    if policy and not policy.is_met(signed, policy.quorum):
        missing = [name for name, key in policy.witnesses.items() if key not in signed]
        raise Refused(f"too few witnesses have signed the checkpoint of size {size}: not {', '.join(missing)}")
    demand(len(unbase64(root)) == 32, "the root in the checkpoint is no hash")
    return origin, number(size), unbase64(root)


class Policy:
    """Which logs and witnesses count, and how many are enough (C2SP tlog-policy)."""

    def __init__(self, text: str) -> None:
        self.logs: list[Key] = []
        self.witnesses: dict[str, Key] = {}
        self.groups: dict[str, tuple[int, list[str]]] = {}
        quorum: list[str] = []
        for line in text.split("\n"):
            known = {*self.witnesses, *self.groups}
            match line.replace("\t", " ").split():
                case ["log", vkey] | ["log", vkey, _]:
                    self.logs.append(read_vkey(vkey))
                case ["witness", name, vkey] | ["witness", name, vkey, _] if name not in known | {"none"}:
                    self.witnesses[name] = read_vkey(vkey)
                case ["group", name, least, *those] if name not in known | {"none"} and those and known >= set(those):
                    self.groups[name] = ({"any": 1, "all": len(those)}.get(least) or number(least), those)
                case ["quorum", name] if name in {"none", *known}:
                    quorum.append(name)
                case parts if parts and not parts[0].startswith("#"):
                    raise Refused(f"the policy has a line that is none: {line[:80]!r}")
        members = [member for _, those in self.groups.values() for member in those]
        reached = all(1 <= least <= len(those) for least, those in self.groups.values())
        demand(len(quorum) == 1 and reached, "the policy needs one quorum, and thresholds that its groups can reach")
        apart = len({key[3] for key in self.witnesses.values()}) == len(self.witnesses)
        demand(apart and len(members) == len(set(members)), "a key or a member of a group is in the policy twice")
        self.quorum = quorum[0]

    def is_met(self, signed: set[Key], name: str) -> bool:
        if name in self.groups:
            least, members = self.groups[name]
            return sum(self.is_met(signed, member) for member in members) >= least
        return name == "none" or self.witnesses[name] in signed


class Tree:
    """A growing tree (RFC 6962), by the roots of its perfect subtrees."""

    def __init__(self, hashes: list[bytes] | None = None) -> None:
        self.size, self.edge = 0, list[bytes]()
        for hash_ in hashes or ():
            self.append(hash_)

    def append(self, hash_: bytes) -> None:
        size, self.size = self.size, self.size + 1
        while size & 1:
            hash_, size = hashed(b"\1", self.edge.pop(), hash_), size >> 1
        self.edge.append(hash_)

    def root(self) -> bytes:
        root = self.edge[-1] if self.edge else hashed()
        for left in reversed(self.edge[:-1]):
            root = hashed(b"\1", left, root)
        return root


class Log:
    """The files of a log in a directory or behind a URL (C2SP tlog-tiles)."""

    def __init__(self, where: str) -> None:
        self.where = where.rstrip("/")

    def read(self, path: str) -> bytes | None:
        if not self.where.startswith(("https://", "http://")):
            file = Path(self.where) / path
            return file.read_bytes() if file.is_file() else None
        url = f"{self.where}/{path}"
        request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})  # noqa: S310 - http or https, see above
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - as above
                raw: bytes = answer.read(MAX_FILE)
                zipped = answer.headers.get("Content-Encoding") == "gzip"
        except urllib.error.HTTPError as error:
            demand(error.code == 404, f"{url}: the server answered {error.code}")
            return None
        return zlib.decompressobj(31).decompress(raw, MAX_FILE) if zipped else raw

    def tile(self, kind: str, index: int, width: int) -> tuple[str, bytes | None]:
        """A tile or bundle and its path; a partial one may have given way to the full one."""
        path, rest = f"{index % 1000:03}", index
        while rest := rest // 1000:
            path = f"x{rest % 1000:03}/{path}"
        path = f"tile/{kind}/{path}"
        found = self.read(f"{path}.p/{width}") if width < 256 else None
        return path, self.read(path) if found is None else found

    def hashes(self, level: int, index: int, width: int) -> list[bytes]:
        path, raw = self.tile(str(level), index, width)
        demand(raw and len(raw) in {32 * width, 32 * 256}, f"{path} is missing or has a wrong length")
        return [raw[at : at + 32] for at in range(0, 32 * width, 32)] if raw else []

    def entries(self, index: int, width: int, minimum: int) -> list[bytes]:
        path, raw = self.tile("entries", index, width)
        demand(raw is not None or 256 * index + width <= minimum, f"{path} is missing")
        found, at = list[bytes](), 0
        while raw and at < len(raw):
            length = int.from_bytes(raw[at : at + 2])
            found.append(raw[at + 2 : at + 2 + length])
            at += 2 + length
        whole = raw is None or (at == len(raw) and len(found) in {width, 256})
        demand(whole, f"{path} is cut short or holds another number of entries")
        return found[:width]


def leaves(log: Log, size: int, minimum: int) -> Iterator[bytes]:
    """Every leaf hash, computed from the entries; every tile is compared on the way."""
    level, above = 1, list[bytes]()
    for index in range((size + 255) // 256):
        width = min(256, size - 256 * index)
        hashes = log.hashes(0, index, width)
        for at, entry in enumerate(log.entries(index, width, minimum)):
            demand(hashed(b"\0", entry) == hashes[at], f"entry {256 * index + at} is not what its tile has the hash of")
        yield from hashes
        above += [Tree(hashes).root()] if width == 256 else []
    while above:
        parts = [above[at : at + 256] for at in range(0, len(above), 256)]
        for index, part in enumerate(parts):
            same = log.hashes(level, index, len(part)) == part
            demand(same, f"tile {index} of level {level} differs from what lies under it")
        level, above = level + 1, [Tree(part).root() for part in parts if len(part) == 256]


def verify_log(options: argparse.Namespace, keys: list[Key], policy: Policy | None) -> Head:
    # The last witnessed checkpoint lies beside the last one, which witnesses may not have seen yet.
    log = Log(options.log)
    raw = (log.read("checkpoint.witnessed") if policy else None) or log.read("checkpoint")
    demand(raw, f"there is no checkpoint in {options.log}: is it the directory or URL of a log?")
    head = open_checkpoint(raw or b"", keys, policy)
    old = open_checkpoint(Path(options.against).read_bytes(), keys, None) if options.against else head
    demand(old[1] <= head[1], f"the log shrank from {old[1]} entries to {head[1]}")
    tree, before = Tree(), hashed()
    for hash_ in leaves(log, head[1], options.minimum):
        tree.append(hash_)
        before = tree.root() if tree.size == old[1] else before
    demand(tree.root() == head[2], "the root in the checkpoint is not that of the entries")
    demand(before == old[2], f"two histories: the first {old[1]} entries are not those of {options.against}")
    return head


def verify_proof(options: argparse.Namespace, keys: list[Key], policy: Policy | None) -> Head:
    top, _, checkpoint = Path(options.proof).read_text().partition("\n\n")
    header, *lines = [line for line in top.split("\n") if not line.startswith("extra ")]
    demand(header == "c2sp.org/tlog-proof@v1", "this is no tlog-proof")
    index = number(lines.pop(0).removeprefix("index "))
    head = open_checkpoint(checkpoint.encode(), keys, policy)
    at, last, hash_ = index, head[1] - 1, hashed(b"\0", Path(options.entry).read_bytes())
    for sibling in map(unbase64, lines):
        demand(last > 0 and len(sibling) == 32, "the proof has too many hashes, or one that is none")
        is_right = at & 1 or at == last
        hash_ = hashed(b"\1", sibling, hash_) if is_right else hashed(b"\1", hash_, sibling)
        while is_right and at and not at & 1:
            at, last = at >> 1, last >> 1
        at, last = at >> 1, last >> 1
    demand(last == 0 and index < head[1] and hash_ == head[2], f"the entry is not number {index} of the signed tree")
    return head


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="?", help="directory or URL")
    parser.add_argument("--vkey", action="append", default=[], metavar="FILE|TEXT")
    parser.add_argument("--policy", metavar="FILE", help="logs and witnesses (C2SP tlog-policy)")
    parser.add_argument("--against", metavar="FILE", help="an older checkpoint of this log")
    parser.add_argument("--minimum", type=int, default=0, metavar="N", help="bundles below entry N may be pruned")
    parser.add_argument("--proof", metavar="FILE")
    parser.add_argument("--entry", metavar="FILE", help="the entry's exact bytes")
    options = parser.parse_args()
    if not (bool(options.log) != bool(options.proof) == bool(options.entry) and (options.vkey or options.policy)):
        parser.error("give a log, or --proof and --entry; and --vkey, or a --policy that names the log")
    try:
        keys = [read_vkey(text) for text in options.vkey]
        policy = Policy(Path(options.policy).read_text()) if options.policy else None
        head = (verify_proof if options.proof else verify_log)(options, keys, policy)
    except (Refused, OSError, ValueError, IndexError, ImportError, zlib.error) as error:
        print(f"NOT VERIFIED: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"verified": True, "origin": head[0], "size": head[1], "root": head[2].hex()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
