"""``eastwest server init``: a new trust domain on disk, whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.errors import AlreadyExists, Corrupt, FailedPrecondition
from eastwest.plugins.disk_keys import DiskKeyStore
from eastwest.process.files import replace_file
from eastwest.server.authority import Loaded, create_authority
from eastwest.server.config import ServerConfig, ServerFile, ServerPaths, render


def init_server(data: Path, file: ServerFile, clock: Clock, entropy: Entropy) -> Loaded:
    """Make keys, certificates and configuration below ``data/server``; refuses to touch an existing server."""
    paths = ServerPaths(data.absolute())
    checked = ServerConfig.checked(paths, file)
    _refuse_existing(paths, file)
    if file.key_store != "disk":
        raise FailedPrecondition("init makes keys on disk", fix="set key_store in server.toml afterwards")
    try:
        # Passable, so that workloads of other users reach the agent's socket and auditors the log's public files;
        # what is private has its own mode.
        paths.data.mkdir(mode=0o711, parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".server-", dir=paths.data))
        building.chmod(0o711)
    except OSError as error:
        raise FailedPrecondition(f"cannot write to {data}: {error.strerror}", fix="choose another --data") from None
    try:
        keys = DiskKeyStore(building / "keys")
        loaded = create_authority(keys, building / "ca", file, checked.trust_domain, clock.now(), entropy)
        replace_file(building / "log.vkey", f"{loaded.log_key.vkey}\n".encode(), 0o644)
        replace_file(building / paths.config.name, render(file).encode(), 0o600)
        building.rename(paths.home)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot write to {data}: {error.strerror}", fix="free space or choose another"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return loaded


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
