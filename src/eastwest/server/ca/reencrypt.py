"""Changing how keys are kept on disk, while the server is stopped."""

from __future__ import annotations

from eastwest.errors import FailedPrecondition
from eastwest.plugins.disk_keys import DiskKeyStore, Protection
from eastwest.process.locked import locked
from eastwest.server.ca.authority import open_key_store
from eastwest.server.config import ServerConfig


def reencrypt_keys(config: ServerConfig, former: Protection | None) -> list[str]:
    """Bring keys from ``former`` (None: in clear) under what ``key_stores.disk`` says now; names those changed.

    May be run again after a crash. Raises ``FailedPrecondition`` while the server runs, or when a key does not open.
    """
    if config.file.key_store != "disk":
        raise FailedPrecondition(
            f"the keys are in the key store {config.file.key_store!r}, and only those on disk can be re-encrypted",
            where=str(config.paths.config),
        )
    with locked(config.paths.lock, "server"):
        store = open_key_store(config)
        assert isinstance(store, DiskKeyStore)  # nothing else may have that name: load_plugin refuses two
        return store.reencrypt(former)
