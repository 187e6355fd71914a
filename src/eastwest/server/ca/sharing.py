"""Letting a group of users reach the admin socket; what each of them may do is up to the estate's administrators."""

from __future__ import annotations

import grp
import os

from eastwest.errors import FailedPrecondition
from eastwest.server.config import ServerPaths

SHARED_SOCKET = 0o660
PASSABLE_HOME = 0o710
"""The group may pass through to the socket and list nothing; files in the directory keep their own modes."""


def share_socket(paths: ServerPaths, group: str) -> None:
    """Open the admin socket to ``group`` (a name). Raises ``FailedPrecondition`` when this user cannot do that."""
    if not group:
        return
    where = f"{paths.config}: admin_socket_group"
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        raise FailedPrecondition(f"this machine has no group {group[:64]!r}", where=where) from None
    try:
        for path, mode in ((paths.home, PASSABLE_HOME), (paths.admin_socket, SHARED_SOCKET)):
            os.chown(path, -1, gid)
            path.chmod(mode)
    except PermissionError:
        raise FailedPrecondition(
            f"this user cannot give files to group {group}", where=where, fix="make the server's user a member of it"
        ) from None
