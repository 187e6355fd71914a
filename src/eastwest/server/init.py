"""``eastwest server init``: a new trust domain on disk, whole or not at all."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.errors import AlreadyExists, Corrupt, Error, FailedPrecondition
from eastwest.log.note import NoteKey
from eastwest.pki.rotation import additions, lifecycle
from eastwest.pki.rotation.state import Hierarchy, Kind, Request, Source, State
from eastwest.pki.signer import KeyAlgorithm, KeyStore
from eastwest.process.files import replace_file
from eastwest.server.ca.authority import (
    DEFAULT,
    LOG_KEY,
    Lifetimes,
    Maker,
    log_name,
    open_key_store,
    root_of,
    write_public,
)
from eastwest.server.config import ServerConfig, ServerFile, ServerPaths, render
from eastwest.server.log.keys import make_second_key
from eastwest.store.authority import SqliteAuthority
from eastwest.store.database import Database


@dataclass(frozen=True, slots=True)
class Initialised:
    """What was made: the log's key, the default issuing CA and its end (none below an offline root)."""

    log_key: NoteKey
    issuing_id: str
    not_after: datetime | None


async def init_server(
    data: Path,
    file: ServerFile,
    clock: Clock,
    entropy: Entropy,
    offline_root: bytes | None = None,
    text: bytes | None = None,
) -> Initialised:
    """Make keys, certificates and configuration below ``data/server``; refuses to touch an existing server.

    Below ``offline_root`` (DER) nothing can be issued until the request that is made here comes back as a certificate;
    below an upstream authority the first start asks for it. ``text`` becomes the server.toml, where one was written
    beforehand. In a key store elsewhere, keys that were made are destroyed again when this fails.
    """
    paths = ServerPaths(data.absolute())
    checked = ServerConfig.checked(paths, file)
    _refuse_existing(paths, file)
    if offline_root is not None and file.upstream:
        raise FailedPrecondition("the root is offline, and an upstream is set too", fix="choose one of them")
    try:
        # Passable, so that workloads of other users reach the agent's socket and auditors the log's public files;
        # what is private has its own mode.
        paths.data.mkdir(mode=0o711, parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".server-", dir=paths.data))
        building.chmod(0o711)
    except OSError as error:
        raise FailedPrecondition(f"cannot write to {data}: {error.strerror}", fix="choose another --data") from None
    try:
        with _kept_if_done(open_key_store(checked, building / "keys")) as keys:
            maker = Maker(
                checked.trust_domain,
                keys,
                clock,
                entropy,
                Lifetimes.of(checked),
                depth=file.downstream_depth,
                algorithm=KeyAlgorithm(file.ca_key),
            )
            state = await _first_state(maker, offline_root, own_root=not file.upstream)
            if file.post_quantum:
                state = await _with_post_quantum(maker, state)
            log_key = NoteKey.of(log_name(checked.trust_domain), await maker.log_key())
            second = await asyncio.to_thread(make_second_key, keys)
            await _store(building / paths.database.name, checked, state, clock)
            write_public(building / paths.certificates.name, state)
            replace_file(building / paths.log_vkey.name, f"{log_key.vkey}\n".encode(), 0o644)
            if second.signer is not None:
                vkey = NoteKey.of(log_key.name, second.signer).vkey
                replace_file(building / paths.log_ml_dsa_vkey.name, f"{vkey}\n".encode(), 0o644)
            replace_file(building / paths.config.name, text or render(file).encode(), 0o600)
            building.rename(paths.home)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot write to {data}: {error.strerror}", fix="free space or choose another"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    default = state.issuing().get(DEFAULT)
    if default is None:
        return Initialised(log_key, "", None)
    return Initialised(log_key, default.id, datetime.fromtimestamp(default.not_after, clock.now().tzinfo))


@contextmanager
def _kept_if_done(keys: KeyStore) -> Iterator[KeyStore]:
    """The store; what is made in it meanwhile is destroyed again if this ends with an error."""
    before = set(keys.names())
    try:
        yield keys
    except BaseException:
        with suppress(Error):
            for name in set(keys.names()) - before:
                keys.delete(name)
        raise


async def _first_state(maker: Maker, offline_root: bytes | None, *, own_root: bool) -> State:
    [jwt] = maker.names("jwt")
    state = additions.prepare_jwt(State(log_key=LOG_KEY), await maker.jwt(jwt))
    if offline_root is None and not own_root:
        return state
    if offline_root is None:
        root = await maker.root(maker.names("root", "issuing"), [DEFAULT])
        return additions.prepare_root(state, root)
    state = additions.trust_root(state, root_of(offline_root, Source.EXTERNAL))
    state = additions.adopt_root(state, state.roots[0].id, Source.OFFLINE)
    [name] = maker.names("issuing")
    key_id, csr = await maker.request(name)
    return additions.add_request(state, Request(environment=DEFAULT, key=name, key_id=key_id, csr=csr))


async def _with_post_quantum(maker: Maker, state: State) -> State:
    """With a root and a CA for ML-DSA-65 keys, in use at once: no node is there yet that would have to confirm it."""
    root = await maker.root(maker.names("root", "issuing"), [DEFAULT], Hierarchy.POST_QUANTUM)
    return lifecycle.activate(additions.prepare_root(state, root), Kind.X509, root.id)


async def _store(path: Path, config: ServerConfig, state: State, clock: Clock) -> None:
    database = Database.open(path, trust_domain=config.trust_domain.name, clock=clock)
    try:
        await SqliteAuthority(database).save(state, 0)
    finally:
        await database.close()


def _refuse_existing(paths: ServerPaths, file: ServerFile) -> None:
    if not paths.home.exists():
        return
    try:
        existing = ServerConfig.load(paths.data)
    except FailedPrecondition:
        raise Corrupt(f"{paths.home} exists and holds no server.toml", fix="move it away and try again") from None
    if existing.file.trust_domain != file.trust_domain:
        raise FailedPrecondition(
            f"{paths.data} belongs to the trust domain {existing.file.trust_domain}, not {file.trust_domain}",
            fix="choose another --data",
        )
    raise AlreadyExists(
        f"{paths.data} already holds a server of {file.trust_domain}",
        fix=f"start it: eastwest server run --data {paths.data}",
    )
