"""A large log that is made up: entries as an issuing server writes them, any of them again from its index alone.

Entries are not kept: a bundle is made when it is wanted. Tiles and the index are real files, so ten million entries
take 1.2 GB and not 17.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from eastwest.errors import NotFound
from eastwest.log.checkpoint import Checkpoint, sign_checkpoint
from eastwest.log.note import NoteKey
from eastwest.log.tiles import CHECKPOINT_PATH, TILE_WIDTH, Tile, encode_bundle, level_sizes, tiles_of
from eastwest.log.tree import fold_edge, leaf_hash, root_of, split_hashes
from eastwest.store.log_files import LogDirectory
from eastwest.store.log_index import RUN, Covered, SqliteLogIndex, index_rows
from eastwest.testing.log import ORIGIN, TestSigner

WORKLOADS = 5000
NODES = 100
SIGNER = TestSigner()
KEY = NoteKey.of(ORIGIN, SIGNER)

# Field by field what issuance/record.py writes for a P-256 SVID; the certificate is noise of the right length.
_ISSUED = (
    b'{"actor":"spiffe://saas.example/spire/agent/join_token/%(node)08x","authority":"server-1",'
    b'"authority_build":"0.6.0","certificate":"%(noise)s","certificate_sha256":"%(sha)s","dns_names":[],'
    b'"door":"spire-api","entry_id":"entry-%(entry)06d","entry_revision":1,"environment":"","evidence":{"selectors":'
    b'["unix:uid:1000","unix:path:/usr/bin/service"]},"issuer_key_id":"1f0d7c52f0c1d8ab0c3d7a7b7b6d2a3c15f0a1d2",'
    b'"kind":"%(kind)s","node":"spiffe://saas.example/spire/agent/join_token/%(node)08x",'
    b'"not_after":"2026-11-22T11:00:00.000000Z","not_before":"2026-11-22T09:59:50.000000Z","profile":"workload",'
    b'"serial":"%(serial)s","spki_sha256":"%(spki)s",'
    b'"subject":"spiffe://saas.example/prod/commerce/service-%(entry)04d","time":"%(time)s",'
    b'"trust_domain":"saas.example","v":1}'
)
_NOISE = hashlib.shake_256(b"certificate").hexdigest(300).encode()


def serial(index: int) -> str:
    """The serial number in entry ``index``."""
    return f"{(index + 1) * 0xC2B2AE3D27D4EB4F165667B19E3779F9 % (1 << 128):x}"


def certificate_sha256(index: int) -> str:
    """The certificate's hash in entry ``index``."""
    return f"{(index + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC8341082276BF3A27251F86C6A11D0C18E95 % (1 << 256):064x}"


def subject(workload: int) -> str:
    """The SPIFFE ID of a workload."""
    return f"spiffe://saas.example/prod/commerce/service-{workload:04d}"


def node(workload: int) -> str:
    """The agent of a workload."""
    return f"spiffe://saas.example/spire/agent/join_token/{workload % NODES:08x}"


def moment(index: int) -> str:
    """The time of entry ``index``: a hundred a second."""
    seconds, rest = divmod(index, 100)
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"2026-{1 + days // 28:02}-{1 + days % 28:02}T{hour:02}:{minute:02}:{second:02}.{rest:02}0000Z"


def entry(index: int) -> bytes:
    """Entry ``index``: some 1,500 bytes; one in a hundred thousand is of another kind."""
    # Workloads come in an order that looks random, as renewals do.
    workload = index * 2654435761 % 4294967291 % WORKLOADS
    sha = certificate_sha256(index).encode()
    return _ISSUED % {
        b"node": workload % NODES,
        b"noise": _NOISE + sha * 3,
        b"sha": sha,
        b"entry": workload,
        b"kind": b"x509_svid.issued" if index % 100_000 else b"policy.activated",
        b"serial": serial(index).encode(),
        b"spki": sha[::-1],
        b"time": moment(index).encode(),
    }


@dataclass
class GeneratedFiles:
    """Serves ``eastwest.log.ports.LogFiles``: tiles and checkpoint from a directory, bundles made when asked for."""

    directory: LogDirectory
    size: int
    keeps: bool = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within it, bundles that were made stay as files, so that reading them again is reading."""
        self.keeps = True
        try:
            yield
        finally:
            self.keeps = False
            shutil.rmtree(self.directory.root / "tile/entries", ignore_errors=True)

    def read(self, path: str) -> bytes:
        if not path.startswith("tile/entries/"):
            return self.directory.read(path)
        if self.keeps:
            with suppress(NotFound):
                return self.directory.read(path)
        raw = self._made(path)
        if self.keeps:
            _save(self.directory.root / path, raw)
        return raw

    def _made(self, path: str) -> bytes:
        body, _, width = path.removeprefix("tile/entries/").partition(".p/")
        first = int(body.replace("x", "").replace("/", "")) * TILE_WIDTH
        end = first + int(width or TILE_WIDTH)
        if end > self.size:
            raise NotFound(f"the log has no file {path}")
        return encode_bundle(map(entry, range(first, end)))


def generate(folder: Path, size: int) -> tuple[GeneratedFiles, Checkpoint]:
    """Make the tiles, the checkpoint and ``index.db`` of a log of ``size`` entries in ``folder``."""
    directory = LogDirectory(folder / "log")
    index = SqliteLogIndex.open(folder / "index.db")
    hashes: list[bytes] = []
    at = 0
    for joined, keys, spans in _made(size):
        at += len(joined) // 32
        index.extend(keys, spans, Covered(ORIGIN, at, joined[-32:]))
        hashes += split_hashes(joined)
    index.close()
    roots: list[bytes] = []
    below = hashes
    for level, count in enumerate(level_sizes(size)):
        above = []
        for tile in tiles_of(count, level):
            part = below[tile.index * TILE_WIDTH : tile.index * TILE_WIDTH + tile.width]
            _write(folder / "log", tile, b"".join(part))
            if tile.is_full:
                above.append(root_of(part))
        if width := count % TILE_WIDTH:
            roots = _edge(below[count - width : count]) + roots
        below = above
    checkpoint = Checkpoint(ORIGIN, size, fold_edge(roots))
    (folder / "log" / CHECKPOINT_PATH).write_text(sign_checkpoint(checkpoint, SIGNER))
    return GeneratedFiles(directory, size), checkpoint


def _made(size: int) -> Iterator[tuple[bytes, list[int], list[tuple[int, str, str]]]]:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_run, range(0, size, RUN), [size] * (-(-size // RUN)))


def _run(first: int, size: int) -> tuple[bytes, list[int], list[tuple[int, str, str]]]:
    entries = [entry(index) for index in range(first, min(size, first + RUN))]
    return b"".join(map(leaf_hash, entries)), *index_rows(first, entries)


def _write(root: Path, tile: Tile, content: bytes) -> None:
    _save(root / tile.path, content)


def _save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _edge(hashes: list[bytes]) -> list[bytes]:
    from eastwest.log.tree import CompactRange

    tree = CompactRange()
    tree.extend(hashes)
    return tree.edge
