"""A log in memory that can be told to fail, and the contract every log keeps.

``MemoryLog`` is a real log (same tree, tiles and checkpoints) without a disk. ``LogStoreContract`` is
run on each adapter: subclass it in a test module and give it a fixture ``log``.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from eastwest.errors import InvalidInput, LogUnavailable, NotFound
from eastwest.log.checkpoint import Checkpoint, sign_checkpoint
from eastwest.log.entry import MAX_ENTRY_BYTES
from eastwest.log.note import NoteKey, Signer
from eastwest.log.ports import LogStore
from eastwest.log.proof import LogProof, inclusion_proof
from eastwest.log.tiles import CHECKPOINT_PATH, TileReader, bundle_path, encode_bundle, tiles_of
from eastwest.log.tree import leaf_hash, root_of
from eastwest.log.verify import verify_log

ORIGIN = "test.example/eastwest-log"


class Failure(enum.Enum):
    """How an append goes wrong."""

    REFUSED = "fails, and nothing is stored"
    UNHEARD = "fails, but the entries are stored"


class TestSigner:
    """An Ed25519 key made from a fixed seed; never for anything but tests."""

    __test__ = False  # pytest should not take it for a class of tests

    def __init__(self, seed: bytes = bytes(32)) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    @property
    def public_key(self) -> Ed25519PublicKey:
        return self._key.public_key()

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)


class MemoryFiles(dict[str, bytes]):
    """Public files of a log by path; serves ``eastwest.log.ports.LogFiles``."""

    def read(self, path: str) -> bytes:
        if path not in self:
            raise NotFound(f"the log has no file {path}")
        return self[path]


class MemoryLog:
    """Serves ``eastwest.log.ports.LogStore`` without a disk."""

    def __init__(self, *, origin: str = ORIGIN, signer: Signer | None = None) -> None:
        self._signer = signer or TestSigner()
        self.key = NoteKey.of(origin, self._signer)
        self.files = MemoryFiles()
        self.stored: list[bytes] = []
        self._failures: list[Failure] = []
        self._always: Failure | None = None
        self._open = asyncio.Event()
        self._open.set()

    def fail_next(self, *failures: Failure) -> None:
        """Let the next appends fail, one for each failure given."""
        self._failures.extend(failures)

    def fail_always(self, failure: Failure | None) -> None:
        """Let every append fail, until called with None."""
        self._always = failure

    def pause(self) -> None:
        """Let appends wait before anything is stored."""
        self._open.clear()

    def resume(self) -> None:
        """Let waiting appends go on."""
        self._open.set()

    @property
    def size(self) -> int:
        return len(self.stored)

    async def append(self, entries: Sequence[bytes]) -> Sequence[int]:
        if not all(0 < len(entry) <= MAX_ENTRY_BYTES for entry in entries):
            raise InvalidInput(f"a log entry has 1 to {MAX_ENTRY_BYTES} bytes")
        await self._open.wait()
        failure = self._failures.pop(0) if self._failures else self._always
        if failure is Failure.REFUSED:
            raise LogUnavailable(f"the log was told to fail: {failure.value}")
        first = len(self.stored)
        self.stored.extend(bytes(entry) for entry in entries)
        if failure is Failure.UNHEARD:
            raise LogUnavailable(f"the log was told to fail: {failure.value}")
        return range(first, len(self.stored))

    async def entry(self, index: int) -> bytes:
        if not 0 <= index < len(self.stored):
            raise NotFound(f"the log has no entry {index}")
        return self.stored[index]

    async def entries(self, start: int, end: int) -> Sequence[bytes]:
        return self.stored[start:end] if 0 <= start < end else []

    async def flush(self) -> Checkpoint:
        self.files.update(build_files(self.stored, self.key.name, self._signer))
        return Checkpoint(self.key.name, self.size, root_of(map(leaf_hash, self.stored)))

    async def prove(self, index: int) -> str:
        note = self.files.get(CHECKPOINT_PATH, b"\n0\n").decode()
        size = int(note.split("\n")[1])
        if not 0 <= index < size:
            raise NotFound(f"no checkpoint covers entry {index} yet")
        proof = inclusion_proof(index, size, TileReader(self.files, size).node)
        return LogProof(index, tuple(proof), note).text


def build_files(entries: Sequence[bytes], origin: str, signer: Signer) -> MemoryFiles:
    """All public files of a log of these entries, made in the plainest way."""
    files = MemoryFiles()
    level = 0
    hashes = [leaf_hash(entry) for entry in entries]
    root = root_of(hashes)
    for tile in tiles_of(len(entries), 0):
        start = tile.index * 256
        files[bundle_path(tile.index, tile.width)] = encode_bundle(entries[start : start + tile.width])
    while hashes:
        above = []
        for tile in tiles_of(len(hashes), level):
            part = hashes[tile.index * 256 : tile.index * 256 + tile.width]
            files[tile.path] = b"".join(part)
            if tile.is_full:
                above.append(root_of(part))
        hashes = above
        level += 1
    files[CHECKPOINT_PATH] = sign_checkpoint(Checkpoint(origin, len(entries), root), signer).encode()
    return files


class LogStoreContract:
    """What holds for every ``LogStore``; each test gets a fresh, empty ``log``."""

    async def test_indices_count_from_zero_without_gaps(self, log: LogStore) -> None:
        assert list(await log.append([b"a", b"b"])) == [0, 1]
        assert list(await log.append([b"c"])) == [2]
        assert list(await log.append([])) == []
        assert log.size == 3
        assert [await log.entry(i) for i in range(3)] == [b"a", b"b", b"c"]

    async def test_equal_entries_get_places_of_their_own(self, log: LogStore) -> None:
        assert list(await log.append([b"same", b"same"])) == [0, 1]
        assert await log.entries(0, 9) == [b"same", b"same"]

    async def test_tasks_that_append_at_once_share_no_index(self, log: LogStore) -> None:
        batches = [[f"{task}-{i}".encode() for i in range(1 + task % 7)] for task in range(60)]
        answers = await asyncio.gather(*(log.append(batch) for batch in batches))
        indices = [index for answer in answers for index in answer]
        assert sorted(indices) == list(range(sum(map(len, batches))))
        for batch, answer in zip(batches, answers, strict=True):
            assert list(answer) == list(range(answer[0], answer[0] + len(batch)))
            assert await log.entries(answer[0], answer[-1] + 1) == batch

    async def test_ranges_are_cut_at_the_end(self, log: LogStore) -> None:
        stored = [str(i).encode() for i in range(600)]
        await log.append(stored[:100])
        await log.append(stored[100:513])
        await log.append(stored[513:])
        for start, end in ((0, 600), (99, 101), (255, 257), (256, 512), (511, 514), (590, 700), (600, 601), (5, 5)):
            assert await log.entries(start, end) == stored[start:end]

    async def test_what_lies_beyond_the_end_is_not_found(self, log: LogStore) -> None:
        await log.append([b"a"])
        for index in (1, 2, 1000, -1):
            await _raises(NotFound, log.entry(index))
            await _raises(NotFound, log.prove(index))

    async def test_entries_of_any_legal_length_are_kept_as_they_are(self, log: LogStore) -> None:
        entries = [b"\x00", bytes(range(256)), b"x" * MAX_ENTRY_BYTES]
        await log.append(entries)
        assert await log.entries(0, 3) == entries

    async def test_one_illegal_entry_refuses_the_whole_append(self, log: LogStore) -> None:
        for bad in (b"", b"x" * (MAX_ENTRY_BYTES + 1)):
            await _raises(InvalidInput, log.append([b"good", bad]))
        assert log.size == 0
        assert list(await log.append([b"next"])) == [0]

    async def test_every_entry_is_proven_once_it_is_published(self, log: LogStore) -> None:
        entries = [str(i).encode() for i in range(300)]
        await log.append(entries[:200])
        await _raises(NotFound, log.prove(0))
        await log.flush()
        await log.append(entries[200:])
        await _raises(NotFound, log.prove(200))
        assert LogProof.parse(await log.prove(199)).verify(entries[199], log.key).size == 200
        await log.flush()
        for index in (0, 1, 199, 200, 255, 256, 299):
            proof = LogProof.parse(await log.prove(index))
            assert proof.index == index
            checkpoint = proof.verify(entries[index], log.key)
            assert checkpoint.size == 300
            assert checkpoint.root == root_of(map(leaf_hash, entries))

    async def test_flushing_twice_publishes_the_same(self, log: LogStore) -> None:
        await log.append([b"a"])
        assert await log.flush() == await log.flush()


def assert_verifies(files: MemoryFiles, key: NoteKey) -> Checkpoint:
    """The checkpoint of a log that is right in every file; fails the test with the defects otherwise."""
    report = verify_log(files, key, files)
    assert report.ok, [str(problem) for problem in report.problems]
    assert report.checkpoint is not None
    return report.checkpoint


async def _raises(kind: type[Exception], awaitable: object) -> None:
    try:
        await awaitable  # type: ignore[misc]
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")
