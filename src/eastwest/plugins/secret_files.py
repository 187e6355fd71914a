"""Secrets that options name by file or by environment variable: read once, never shown.

A file must belong to this user (or root), be closed to all others, and be no link: who could change it could choose
what protects the keys.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from eastwest.errors import FailedPrecondition, InvalidInput, Unavailable

MAX_SECRET_BYTES = 16 * 1024


class ExposedFile(FailedPrecondition):
    """A file that should be private is open to others, belongs to someone else, or is no regular file."""


class OversizedFile(InvalidInput):
    """A file is larger than what it should hold can be."""


def read_private(path: Path, what: str, limit: int = MAX_SECRET_BYTES) -> bytes:
    """The content of a private file. ``what`` names it in errors, such as ``the key file``.

    Raises ``ExposedFile``, ``OversizedFile`` above ``limit`` bytes, and ``OSError``.
    """
    # The checks are on the open file, so that the name cannot be pointed elsewhere between check and read.
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ExposedFile(f"{what} is not a regular file", where=str(path))
        if found.st_mode & 0o077:
            raise ExposedFile(
                f"{what} is open to other users (mode {stat.S_IMODE(found.st_mode):04o})",
                fix=f"chmod 600 {path}, and replace what it holds if others may have read it",
                where=str(path),
            )
        if found.st_uid not in {os.geteuid(), 0}:
            raise ExposedFile(f"{what} belongs to another user (uid {found.st_uid})", where=str(path))
        if found.st_size > limit:
            raise OversizedFile(f"{what} is larger than {limit} bytes", where=str(path))
        return file.read(limit)


def secret_from_file(path: str, option: str) -> bytes:
    """The secret in the file that ``option`` names, without the line's end. Raises ``FailedPrecondition``."""
    content = bytes_from_file(path, option).rstrip(b"\r\n")
    if not content or b"\n" in content:
        raise FailedPrecondition(f"the file of {option} must hold one line", where=path)
    return content


def bytes_from_file(path: str, option: str) -> bytes:
    """All that is in the file that ``option`` names. Raises ``FailedPrecondition`` or ``Unavailable``."""
    try:
        return read_private(Path(path), f"the file of {option}")
    except FileNotFoundError:
        raise FailedPrecondition(f"the file of {option} does not exist", where=path, fix="make it, mode 0600") from None
    except OSError as error:
        raise Unavailable(f"the file of {option} cannot be read: {error.strerror}", where=path) from None


def secret_from_environment(variable: str, option: str) -> bytes:
    """The secret in the environment variable that ``option`` names. Raises ``FailedPrecondition``."""
    value = os.environ.get(variable, "")
    if not value:
        raise FailedPrecondition(
            f"the environment variable {variable} of {option} is not set", fix="set it for this process, or use a file"
        )
    return os.fsencode(value)


def one_secret(**sources: str) -> bytes | None:
    """The secret of the one option that is set, or None when none is; options end in ``_file`` or ``_env``.

    Raises ``InvalidInput`` when two are set.
    """
    chosen = [(option, value) for option, value in sources.items() if value]
    if len(chosen) > 1:
        raise InvalidInput(f"set only one of {' and '.join(option for option, _ in chosen)}")
    for option, value in chosen:
        if option.endswith("_env"):
            return secret_from_environment(value, option)
        return secret_from_file(value, option)
    return None
