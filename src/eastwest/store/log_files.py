"""The log's public directory: ``checkpoint`` and ``tile/...``, as any static web server can hand it out.

A file appears whole or not at all, and a tile never changes once it is there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path

from eastwest.errors import Corrupt, NotFound, Unavailable
from eastwest.log.tiles import CHECKPOINT_PATH, WITNESSED_PATH, Tile, bundle_path

RETENTION_PATH = "retention"
_NEW = ".new"
_AT_ONCE = 32
_SYNC_THREADS = 8


class LogDirectory:
    """Reads and writes the files under ``root``; serves ``eastwest.log.ports.LogFiles``. One writer at most."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Paths of the log are plain text below it: pathlib took a fifth of a publication's time.
        self._prefix = f"{root}{os.sep}"
        self._unsynced: set[Path] = set()

    def read(self, path: str) -> bytes:
        try:
            with open(self._prefix + path, "rb") as file:  # noqa: PTH123 - see __init__
                return file.read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"the log has no file {path}", where=str(self.root)) from None
        except OSError as error:
            raise Unavailable(f"{self.root / path} cannot be read: {error.strerror}") from error

    def paths(self) -> Iterator[str]:
        """Every file of the log, relative to the directory; unfinished ones are left out."""
        if (self.root / CHECKPOINT_PATH).exists():
            yield CHECKPOINT_PATH
        for folder, _, names in os.walk(self.root / "tile"):
            for name in names:
                yield (Path(folder) / name).relative_to(self.root).as_posix()

    def write_checkpoint(self, note: bytes) -> None:
        """Replace the checkpoint, durably."""
        with _disk_trouble(self.root / CHECKPOINT_PATH):
            self._write(CHECKPOINT_PATH, note)
            self._sync_folders()

    def write_witnessed(self, note: bytes) -> None:
        """Replace the last checkpoint that a quorum of witnesses has signed, durably."""
        with _disk_trouble(self.root / WITNESSED_PATH):
            self._write(WITNESSED_PATH, note)
            self._sync_folders()

    def write_tile(self, path: str, content: bytes) -> bool:
        """Write a tile or bundle unless it is there; durable after ``sync``. Returns whether it was missing.

        Raises ``Corrupt`` if it is there with other contents.
        """
        if not self._is_missing(path, content):
            return False
        with _disk_trouble(self.root / path):
            self._write(path, content)
        return True

    def write_tiles(self, contents: Iterable[tuple[str, bytes]]) -> list[str]:
        """As ``write_tile`` for many (path, content), the disk's waits shared; returns the paths that were missing."""
        written: list[str] = []
        remaining = iter(contents)
        while group := list(islice(remaining, _AT_ONCE)):
            missing = [(path, content) for path, content in group if self._is_missing(path, content)]
            with _disk_trouble(self.root):
                self._write_group(missing)
            written += [path for path, _ in missing]
        return written

    def sync(self) -> None:
        """Make the names of all files written so far durable."""
        with _disk_trouble(self.root):
            self._sync_folders()

    def drop_partials(self, tile: Tile) -> None:
        """Remove the partial forms of a tile (and its bundle) whose full form is there."""
        places = [tile.full.path]
        if tile.level == 0:
            places.append(bundle_path(tile.index))
        for place in places:
            if (self.root / place).exists():
                shutil.rmtree(self.root / f"{place}.p", ignore_errors=True)

    def write_retention(self, text: str) -> None:
        """State, beside the log's files, how long entries are kept and from which index on they are."""
        with _disk_trouble(self.root / RETENTION_PATH):
            self._write(RETENTION_PATH, text.encode())
            self._sync_folders()

    def drop_bundles(self, end: int) -> int:
        """Remove the full bundles below the bundle ``end``; returns how many there were.

        The earliest go first, so that what a crash leaves is found again: the ones right below ``end``.
        """
        first = end
        while first and (self.root / bundle_path(first - 1)).exists():
            first -= 1
        with _disk_trouble(self.root):
            for index in range(first, end):
                file = self.root / bundle_path(index)
                file.unlink()
                with suppress(OSError):  # the folder of a thousand of them, once it is empty
                    file.parent.rmdir()
        return end - first

    def widths(self, place: str) -> list[int]:
        """The partial widths there are of the tile or bundle at the (full) path ``place``; 256 for the full one."""
        found = [256] if (self.root / place).exists() else []
        with suppress(FileNotFoundError, NotADirectoryError):
            found += [int(file.name) for file in (self.root / f"{place}.p").iterdir() if file.name.isdigit()]
        return sorted(found)

    def _is_missing(self, path: str, content: bytes) -> bool:
        with suppress(NotFound):
            if self.read(path) == content:
                return False
            raise Corrupt(
                f"{path} exists and differs from what the database holds",
                where=str(self.root),
                fix="find out who changed it; put the original back, or remove it to have it written again",
            )
        return True

    def _write_group(self, contents: Sequence[tuple[str, bytes]]) -> None:
        """Write all, make all durable, and only then give each its name."""
        made: list[tuple[str, str]] = []
        with ExitStack() as stack:
            descriptors, folders = [], set[str]()
            for number, (path, content) in enumerate(contents):
                folder = os.path.dirname(self._prefix + path)  # noqa: PTH120 - see __init__
                if folder not in folders:
                    self._make_folder(Path(folder))
                    folders.add(folder)
                new = f"{self._prefix}{_NEW}.{number}"
                file = stack.enter_context(open(new, "wb"))  # noqa: PTH123 - see __init__
                file.write(content)
                file.flush()
                descriptors.append(file.fileno())
                made.append((new, self._prefix + path))
            # Together they take little longer than one: the file system's journal is written once for all.
            pool = stack.enter_context(ThreadPoolExecutor(_SYNC_THREADS))
            list(pool.map(os.fsync, descriptors))
        for new, target in made:
            os.replace(new, target)  # noqa: PTH105 - see __init__
        self._unsynced.update(map(Path, folders))

    def _write(self, path: str, content: bytes) -> None:
        target = self.root / path
        self._make_folder(target.parent)
        new = self.root / _NEW
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
        self._unsynced.add(target.parent)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(mode=0o755, exist_ok=True)
        self._unsynced.add(folder.parent)

    def _sync_folders(self) -> None:
        while self._unsynced:
            folder = self._unsynced.pop()
            try:
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_mark(mark: Path, note: bytes) -> None:
    """Keep a checkpoint in a file outside of the log, durably; raises ``Unavailable``."""
    with _disk_trouble(mark):
        new = mark.with_name(mark.name + _NEW)
        with new.open("wb") as file:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())
        new.replace(mark)


class _disk_trouble:  # noqa: N801 - reads as a phrase after with
    """Turns what the disk refuses into ``Unavailable``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise Unavailable(f"{self._path} cannot be written: {error.strerror}") from error
