"""``eastwest server check``: what would keep a server from starting or from being trusted, with the fix."""

from __future__ import annotations

import os
import shutil
import stat
from datetime import timedelta
from pathlib import Path

from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.process.findings import Finding
from eastwest.server.authority import load_authority, open_key_store
from eastwest.server.config import ServerConfig

MAX_SOCKET_PATH = 107
LOW_DISK = 256 * 1024 * 1024
SOON = timedelta(days=30)


async def check_server(data: Path, clock: Clock) -> list[Finding]:
    """Look at configuration, permissions, keys, certificates, log and space; the server need not run."""
    try:
        config = ServerConfig.load(data)
    except Error as error:
        return [Finding("configuration", error.message, bad=True, fix=error.fix)]
    findings = [Finding("configuration", f"trust domain {config.trust_domain}")]
    findings.append(_socket(config))
    findings += _permissions(config)
    findings += _authority(config, clock)
    findings += _log(config)
    findings.append(_space(config))
    return findings


def _socket(config: ServerConfig) -> Finding:
    length = len(os.fsencode(config.paths.admin_socket))
    if length > MAX_SOCKET_PATH:
        state = f"its path has {length} characters, more than {MAX_SOCKET_PATH}"
        return Finding("admin socket", state, bad=True, fix="use a shorter --data")
    return Finding("admin socket", str(config.paths.admin_socket))


def _permissions(config: ServerConfig) -> list[Finding]:
    findings = []
    private = [config.paths.config, config.paths.database, *config.paths.keys.glob("*.pem")]
    for path in [config.paths.keys, *(path for path in private if path.exists())]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            findings.append(Finding(str(path), f"mode {mode:o} lets others in", bad=True, fix=f"chmod go-rwx {path}"))
    return findings or [Finding("permissions", "keys, database and configuration are private")]


def _authority(config: ServerConfig, clock: Clock) -> list[Finding]:
    try:
        loaded = load_authority(open_key_store(config), config.paths.certificates, config.trust_domain)
    except Error as error:
        return [Finding("authority", str(error), bad=True)]
    left = loaded.authority.not_after - clock.now()
    state = f"issuing CA {loaded.authority.key_id} until {loaded.authority.not_after:%Y-%m-%d}"
    if left < SOON:
        return [Finding("authority", f"{state}: {left.days} days left", bad=True, fix="replace the issuing CA")]
    return [Finding("authority", state)]


def _log(config: ServerConfig) -> list[Finding]:
    from eastwest.log.note import NoteKey
    from eastwest.log.verify import verify_log
    from eastwest.store.log_files import LogDirectory

    if not (config.paths.log / "checkpoint").exists():
        return [Finding("log", "nothing is published yet")]
    try:
        key = NoteKey.parse(config.paths.log_vkey.read_text().strip())
        files = LogDirectory(config.paths.log)
        report = verify_log(files, key, files.paths())
    except (Error, OSError) as error:
        return [Finding("log", str(error), bad=True, fix="see docs/how-to/recover-the-log.md")]
    if report.problems or report.checkpoint is None:
        state = "; ".join(str(problem) for problem in report.problems[:3])
        return [Finding("log", state, bad=True, fix="see docs/how-to/recover-the-log.md")]
    return [Finding("log", f"{report.checkpoint.size} entries verified")]


def _space(config: ServerConfig) -> Finding:
    free = shutil.disk_usage(config.paths.home).free
    if free < LOW_DISK:
        return Finding("disk", f"{free >> 20} MiB free", bad=True, fix="free space: without it nothing is issued")
    return Finding("disk", f"{free >> 20} MiB free")
