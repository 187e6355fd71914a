"""Making a witness and running it until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from eastwest.clock import Clock
from eastwest.errors import AlreadyExists, FailedPrecondition
from eastwest.log.note import NoteKey, Signer
from eastwest.pki.signer import KeyAlgorithm
from eastwest.plugins.disk_keys import DiskKeyStore
from eastwest.process.descriptors import raise_file_limit
from eastwest.process.files import make_private, replace_file
from eastwest.process.locked import locked
from eastwest.process.notify import notify
from eastwest.server.public.endpoints import tell_port
from eastwest.server.public.https import CertificateFiles, PublicListener
from eastwest.server.witness.config import CONFIG_NAME, WitnessConfig, WitnessFile, check_witness_name
from eastwest.server.witness.http import witness_app
from eastwest.server.witness.service import WitnessService
from eastwest.store.witness import WitnessStore

ED25519_KEY = "witness-1"
ML_DSA_KEY = "witness-ml-dsa-1"
_TEXT = """\
# A witness of transparency logs (C2SP tlog-witness). It signs with the keys in keys/, and remembers in witness.db.
name = {name}
address = {address}
port = {port}
# Beyond loopback, TLS is needed; a pair is read again when it changes.
# certificate = "tls.pem"
# key = "tls.key"

# One of these for each log that is watched. Take the keys by a way that you trust.
# [[logs]]
# vkeys = ["shop.example/eastwest-log+ab5641c3+AQTF...", "shop.example/eastwest-log+0f2b81aa+BlQz..."]
"""


@dataclass(frozen=True, slots=True)
class WitnessKeys:
    """The signers of a witness, and their public halves as others configure them."""

    signers: tuple[Signer, ...]
    vkeys: tuple[NoteKey, ...]


def init_witness(directory: Path, name: str, address: str, port: int) -> WitnessKeys:
    """Make keys and ``witness.toml`` in a new directory; raises ``AlreadyExists`` where a witness is."""
    check_witness_name(name)
    path = directory.absolute() / CONFIG_NAME
    if path.exists():
        raise AlreadyExists(f"{directory} holds a witness already", fix=f"eastwest witness run --config {path}")
    # Checked before anything is made.
    config = WitnessConfig.checked(path, WitnessFile(name=name, address=address, port=port))
    try:
        make_private(path.parent)
        store = DiskKeyStore(config.keys)
        names = store.names()
        if ED25519_KEY not in names:
            store.create(ED25519_KEY, KeyAlgorithm.ED25519)
        if ML_DSA_KEY not in names:
            store.create_note_key(ML_DSA_KEY)
        keys = open_keys(config)
        for key, file in zip(keys.vkeys, ("witness.vkey", "witness.ml-dsa-44.vkey"), strict=True):
            replace_file(path.parent / file, f"{key.vkey}\n".encode(), 0o644)
        WitnessStore(config.database).close()
        text = _TEXT.format(name=_quoted(name), address=_quoted(address), port=port)
        replace_file(path, text.encode(), 0o600)
    except OSError as error:
        raise FailedPrecondition(f"cannot write to {directory}: {error.strerror}", fix="choose another") from None
    return keys


def open_keys(config: WitnessConfig) -> WitnessKeys:
    """The witness's own keys; raises the key store's errors."""
    store = DiskKeyStore(config.keys)
    signers: tuple[Signer, ...] = (store.load(ED25519_KEY), store.load_note_key(ML_DSA_KEY))
    return WitnessKeys(signers, tuple(NoteKey.of(config.file.name, signer, cosigner=True) for signer in signers))


def open_store(config: WitnessConfig) -> WitnessStore:
    """What was signed; raises ``FailedPrecondition`` when it is gone, since a new one would sign any history."""
    if not config.database.exists():
        raise FailedPrecondition(
            "what the witness has signed so far is gone",
            where=str(config.database),
            fix="put it back; a witness that forgets must become a new one: eastwest witness init",
        )
    return WitnessStore(config.database)


async def run_witness(config: WitnessConfig, clock: Clock, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; ``announce`` gets a line once it listens."""
    raise_file_limit()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        stack.enter_context(locked(config.lock, "witness"))
        keys = open_keys(config)
        store = open_store(config)
        stack.callback(store.close)
        service = WitnessService(config.file.name, keys.signers, config.logs, store, clock)
        files = None
        if config.file.certificate:
            files = CertificateFiles(config.home / config.file.certificate, config.home / config.file.key)
        listener = PublicListener(witness_app(service), "witness", tls=files.listening if files is not None else None)
        port = listener.bind(config.file.address, config.file.port)
        tell_port(config.port_file, port, stack)
        serving = asyncio.create_task(listener.run(), name="witness")
        scheme = "https" if files is not None else "http"
        host = f"[{config.file.address}]" if ":" in config.file.address else config.file.address
        announce(f"witness ready: {config.file.name} at {scheme}://{host}:{port}/, watching {len(config.logs)} logs")
        notify("READY=1")
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        listener.stop()
        stopped.cancel()
        await serving


def _quoted(text: str) -> str:
    # A basic TOML string; names have no quotes or backslashes beyond what JSON escapes in the same way.
    import msgspec

    return msgspec.json.encode(text).decode()
