"""The kernel's keyring as a place for one secret: it outlives the agent and dies with the machine.

Linux only, by ``add_key`` and ``keyctl`` (keyrings(7)): the user keyring of the agent's uid holds one key for all
agents of that uid. Containers often forbid these calls; that is found out by trying.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

from eastwest import errors
from eastwest.entropy import Entropy

DESCRIPTION = "eastwest:agent"
KEY_BYTES = 32
_SYSCALLS = {"x86_64": (248, 250), "aarch64": (217, 219)}  # add_key, keyctl
_USER_KEYRING = -4
_SETPERM, _UNLINK, _SEARCH, _READ = 5, 9, 10, 11
# The possessor may do all; the same uid all but change attributes. A later login session does not possess
# what lies in the user keyring, so the uid's own bits are needed.
_PERMISSIONS = 0x3F1F0000
_NO_KEY = {errno.ENOKEY, errno.EKEYEXPIRED, errno.EKEYREVOKED, errno.EKEYREJECTED}


class KeyringUnavailable(errors.Unavailable):
    """The kernel, container or architecture has no usable keyring."""


def node_key(entropy: Entropy, description: str = DESCRIPTION) -> bytes:
    """The 32-byte key of this uid on this machine, made at first use; raises ``KeyringUnavailable``."""
    found = _find(description)
    if found is not None:
        return found
    key = entropy.token_bytes(KEY_BYTES)
    add_key, keyctl = _numbers()
    serial = _call(add_key, b"user", description.encode(), key, ctypes.c_size_t(len(key)), _USER_KEYRING)
    if serial < 0:
        raise KeyringUnavailable(f"the kernel keyring takes no key: {os.strerror(ctypes.get_errno())}")
    _call(keyctl, _SETPERM, serial, ctypes.c_ulong(_PERMISSIONS))
    if _find(description) != key:
        raise KeyringUnavailable("the kernel keyring does not give back what it took")
    return key


def forget(description: str) -> None:
    """Take the key called ``description`` out of the keyring; nothing happens when there is none."""
    serial = _search(description)
    if serial is not None:
        _call(_numbers()[1], _UNLINK, serial, _USER_KEYRING)


def _find(description: str) -> bytes | None:
    serial = _search(description)
    if serial is None:
        return None
    buffer = ctypes.create_string_buffer(KEY_BYTES + 1)
    length = _call(_numbers()[1], _READ, serial, buffer, ctypes.c_size_t(len(buffer)))
    if length < 0:
        raise KeyringUnavailable(f"the kernel keyring does not give the key: {os.strerror(ctypes.get_errno())}")
    return buffer.raw[:KEY_BYTES] if length == KEY_BYTES else None


def _search(description: str) -> int | None:
    serial = _call(_numbers()[1], _SEARCH, _USER_KEYRING, b"user", description.encode(), 0)
    if serial >= 0:
        return serial
    if ctypes.get_errno() in _NO_KEY:
        return None
    raise KeyringUnavailable(f"there is no kernel keyring: {os.strerror(ctypes.get_errno())}")


def _numbers() -> tuple[int, int]:
    try:
        return _SYSCALLS[platform.machine()]
    except KeyError:
        raise KeyringUnavailable(f"the keyring's calls on {platform.machine()} are not known here") from None


def _call(number: int, *arguments: object) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return int(library.syscall(ctypes.c_long(number), *arguments))
