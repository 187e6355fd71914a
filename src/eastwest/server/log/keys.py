"""The log's keys: the Ed25519 one that every log began with, and the ML-DSA-44 one beside it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import structlog

from eastwest.errors import Error, FailedPrecondition, InvalidInput, NotFound
from eastwest.log.entry import decode
from eastwest.log.note import NoteKey
from eastwest.pki.signer import KeyStore, NoteKeyStore, NoteSigner
from eastwest.process.files import replace_file
from eastwest.server.config import ServerPaths
from eastwest.store.database import Database
from eastwest.store.log_rows import read_entries

_log = structlog.get_logger()

ML_DSA_KEY = "log-ml-dsa-1"


@dataclass(frozen=True, slots=True)
class SecondKey:
    """The key that was opened, or why there is none; ``is_new``: nobody has been told of it yet."""

    signer: NoteSigner | None = None
    lacking: str = ""
    is_new: bool = False


async def check_first_key(database: Database, paths: ServerPaths, key: NoteKey, name: str) -> None:
    """Raise ``FailedPrecondition`` unless ``key``, the key store's ``name``, is the one that this log began with.

    Before anything is signed: what another key signs is no part of this log to whoever knows it. ``log.vkey`` is
    written again where it is missing or damaged and the log's first entry confirms the key.
    """
    first = ""
    with suppress(Error):  # one that is pruned or damaged, of which the log's own checks know more
        entries = await database.read(lambda connection: read_entries(connection, 0, 1))
        first = str(decode(entries[0]).body.get("vkey", "")) if entries else ""
    told = paths.log_vkey.read_text(encoding="utf-8", errors="replace").strip() if paths.log_vkey.exists() else ""
    if (first or told or key.vkey) != key.vkey:
        raise FailedPrecondition(
            f"the key {name} is not the one that this log began with",
            where=str(paths.log_vkey),
            fix="put the original key back in the key store; see docs/how-to/recover-the-log.md",
        )
    if told != key.vkey:
        if told:
            _log.warning("log.vkey_restored", file=str(paths.log_vkey))
        replace_file(paths.log_vkey, f"{key.vkey}\n".encode(), 0o644)


def open_second_key(keys: KeyStore, paths: ServerPaths, origin: str) -> SecondKey:
    """Load the key, or make it for a log that is from before there was one. Blocks.

    Raises ``FailedPrecondition`` when the log has had another one: a log does not change its keys by itself.
    """
    told = paths.log_ml_dsa_vkey.read_text(encoding="utf-8").strip() if paths.log_ml_dsa_vkey.exists() else ""
    if not isinstance(keys, NoteKeyStore):
        if told:
            raise FailedPrecondition(
                "the log has an ML-DSA-44 key, and this key store keeps none",
                where=str(paths.log_ml_dsa_vkey),
                fix="go back to the key store that has it",
            )
        return SecondKey(lacking="the key store makes no ML-DSA-44 keys: checkpoints bear Ed25519 signatures alone")
    try:
        signer = keys.load_note_key(ML_DSA_KEY)
    except NotFound:
        if told:
            raise FailedPrecondition(
                f"the log's ML-DSA-44 key {ML_DSA_KEY} is not in the key store",
                where=str(paths.log_ml_dsa_vkey),
                fix="put the key back; auditors hold its public half",
            ) from None
        return make_second_key(keys)
    if told and NoteKey.of(origin, signer).vkey != told:
        raise FailedPrecondition(
            f"the key {ML_DSA_KEY} is not the one that auditors were told",
            where=str(paths.log_ml_dsa_vkey),
            fix="put the original key back",
        )
    return SecondKey(signer, is_new=not told)


def make_second_key(keys: KeyStore) -> SecondKey:
    """A new key, where the key store can make one. Blocks."""
    if not isinstance(keys, NoteKeyStore):
        return SecondKey(lacking="the key store makes no ML-DSA-44 keys: checkpoints bear Ed25519 signatures alone")
    try:
        return SecondKey(keys.create_note_key(ML_DSA_KEY), is_new=True)
    except InvalidInput as error:
        return SecondKey(lacking=f"the key store makes no ML-DSA-44 key for the log: {error.message}")


def write_vkey(paths: ServerPaths, key: NoteKey) -> None:
    """Tell auditors the key: one line beside ``log.vkey``."""
    replace_file(paths.log_ml_dsa_vkey, f"{key.vkey}\n".encode(), 0o644)
