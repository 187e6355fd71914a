"""``eastwest server check``: what would keep a server from starting or from being trusted, with the fix."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from eastwest.attest.node import NodeContext
from eastwest.clock import Clock
from eastwest.entropy import SystemEntropy
from eastwest.errors import Error, FailedPrecondition
from eastwest.pki.rotation.state import Hierarchy
from eastwest.pki.schedule import waits_for_people
from eastwest.pki.upstream import UpstreamContext
from eastwest.process.findings import Finding
from eastwest.process.plugins import NODE_ATTESTORS, UPSTREAM_AUTHORITIES, load_plugin
from eastwest.server.ca.authority import DEFAULT, open_key_store
from eastwest.server.config import ServerConfig
from eastwest.store.authority import peek

if TYPE_CHECKING:
    from eastwest.log.verify import Report
    from eastwest.store.log_files import LogDirectory

MAX_SOCKET_PATH = 107
LOW_DISK = 256 * 1024 * 1024


async def check_server(data: Path, clock: Clock) -> list[Finding]:
    """Look at configuration, permissions, keys, certificates, log and space; the server need not run."""
    try:
        config = ServerConfig.load(data)
    except Error as error:
        return [Finding("configuration", error.message, bad=True, fix=error.fix)]
    findings = [Finding("configuration", f"trust domain {config.trust_domain}")]
    findings.append(_socket(config))
    findings += _permissions(config)
    findings += _plugins(config, clock)
    findings += _authority(config, clock)
    findings += _pairs(config, clock)
    findings += _tokens(config)
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
    for path in [path for path in (config.paths.keys, *private) if path.exists()]:  # a token's keys are in no file
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            findings.append(Finding(str(path), f"mode {mode:o} lets others in", bad=True, fix=f"chmod go-rwx {path}"))
    return findings or [Finding("permissions", "keys, database and configuration are private")]


def _plugins(config: ServerConfig, clock: Clock) -> list[Finding]:
    """Node attestors and the upstream authority, made from their options as the server makes them; nothing is asked."""
    findings = []
    nobody = _NoServer()
    context = NodeContext(
        trust_domain=config.trust_domain, clock=clock, entropy=SystemEntropy(), tokens=nobody, bundle=nobody.bundle
    )
    for name, table in config.file.node_attestors.items():
        try:
            load_plugin(NODE_ATTESTORS, name, table, context, f"{config.paths.config}: node_attestors.{name}")
        except Error as error:
            findings.append(Finding("node attestor", str(error), bad=True))
        else:
            findings.append(Finding("node attestor", name))
    name = config.file.upstream
    if name:
        # Its directory is not made here: this may be root, and the server another user.
        above = UpstreamContext(
            trust_domain=config.trust_domain, clock=clock, directory=str(config.paths.home / "upstream" / name)
        )
        table = config.file.upstreams.get(name, {})
        try:
            load_plugin(UPSTREAM_AUTHORITIES, name, table, above, f"{config.paths.config}: upstreams.{name}")
        except Error as error:
            findings.append(Finding("upstream", str(error), bad=True))
        else:
            findings.append(Finding("upstream", name))
    return findings


class _NoServer:
    """What attestors may ask of a running server: a plug-in that asks while it is made would fail there as well."""

    async def check(self, value: str, spki: bytes, now: datetime) -> NoReturn:  # noqa: ARG002 - TokenBook's signature
        raise FailedPrecondition("no server runs that knows tokens")

    def bundle(self) -> NoReturn:
        raise FailedPrecondition("no server runs that knows the bundle")


def _authority(config: ServerConfig, clock: Clock) -> list[Finding]:
    try:
        state = peek(config.paths.database)
        if state is None:
            raise FailedPrecondition("the trust domain has no CA", fix="run `eastwest server init`")
        keys = open_key_store(config)
        for name in state.key_names():
            keys.load(name)
    except Error as error:
        return [Finding("authority", str(error), bad=True)]
    now = int(clock.now().timestamp())
    default = state.issuing().get(DEFAULT)
    if default is None:
        return [Finding("authority", "no issuing CA yet", bad=True, fix="eastwest ca export-csr, then ca import")]
    findings = [_authority_end(f"issuing CA {default.id}", default.not_after, now)]
    findings += [
        _authority_end(f"issuing CA {ca.id} of environment {environment}", ca.not_after, now)
        for environment, ca in sorted(state.issuing().items())
        if environment
    ]
    findings += [
        _authority_end(f"ML-DSA-65 issuing CA {ca.id}" + (f" of environment {name}" if name else ""), ca.not_after, now)
        for name, ca in sorted(state.issuing(Hierarchy.POST_QUANTUM).items())
    ]
    findings += [Finding("authority", sentence, bad=True) for sentence in waits_for_people(state, now)]
    return findings


def _authority_end(what: str, not_after: int, now: int) -> Finding:
    told = f"{what} until {datetime.fromtimestamp(not_after, UTC):%Y-%m-%d}"
    if not_after <= now:
        return Finding("authority", f"{told}: it has ended", bad=True, fix="see docs/how-to/rotate-the-ca.md")
    return Finding("authority", told)


def _pairs(config: ServerConfig, clock: Clock) -> list[Finding]:
    """The certificates that listeners for everybody show."""
    from eastwest.server.public.https import CertificateFiles

    file = config.file
    used = [
        ("oidc certificate", file.oidc_port, file.oidc_certificate, file.oidc_key),
        (
            "bundle endpoint certificate",
            file.bundle_endpoint_port,
            file.bundle_endpoint_certificate,
            file.bundle_endpoint_key,
        ),
    ]
    findings = []
    for what, port, certificate, key in used:
        if port is None or not certificate:
            continue
        try:
            files = CertificateFiles(config.paths.home / certificate, config.paths.home / key)
        except Error as error:
            findings.append(Finding(what, str(error), bad=True))
            continue
        complaint = files.complaint(clock.now())
        findings.append(Finding(what, complaint or f"until {files.not_after:%Y-%m-%d}", bad=bool(complaint)))
    return findings


def _tokens(config: ServerConfig) -> list[Finding]:
    """What the estate in force demands and this server does not make."""
    from eastwest.policy.load import load_estate
    from eastwest.server.reach import TOKENS_FIX, out_of_reach
    from eastwest.store.estate import peek as peek_estate

    if config.file.tokens is not None:
        return [Finding("tokens", "transaction tokens are made")]
    try:
        applied = peek_estate(config.paths.database)
        unreachable = out_of_reach(load_estate(applied.files)) if applied is not None else []
    except Error as error:
        return [Finding("tokens", str(error), bad=True)]
    return [Finding("tokens", sentence, bad=True, fix=TOKENS_FIX) for sentence in unreachable]


def _log(config: ServerConfig) -> list[Finding]:
    from eastwest.log.note import NoteKey
    from eastwest.log.tiles import CHECKPOINT_PATH
    from eastwest.log.verify import verify_log
    from eastwest.server.log.fork import refuse_forked
    from eastwest.server.log.witnesses import load_policy
    from eastwest.store.log_files import LogDirectory

    paths = config.paths
    try:
        refuse_forked(paths)
        keys = [NoteKey.parse(file.read_text()) for file in (paths.log_vkey, paths.log_ml_dsa_vkey) if file.exists()]
        if config.file.log is not None and config.file.log.witness_policy:
            load_policy(paths.home / config.file.log.witness_policy, keys)
        if not (paths.log / CHECKPOINT_PATH).exists():
            return [Finding("log", "nothing is published yet")]
        files = LogDirectory(paths.log)
        if not paths.log_vkey.exists():
            fix = "put the line back: whoever verifies this log has it"
            return [Finding("log", f"{paths.log_vkey} is missing", bad=True, fix=fix)]
        report = verify_log(files, keys[0], files.paths(), keys[1:])
        differing = _differing(paths.database, files, report)
    except (Error, OSError) as error:
        return [Finding("log", str(error), bad=True, fix="see docs/how-to/recover-the-log.md")]
    if report.problems or report.checkpoint is None:
        state = "; ".join(str(problem) for problem in report.problems[:3])
        return [Finding("log", state, bad=True, fix="see docs/how-to/recover-the-log.md")]
    if differing:
        return [Finding("log", "; ".join(differing[:3]), bad=True, fix="see docs/how-to/recover-the-log.md")]
    return [Finding("log", f"{report.checkpoint.size} entries verified")]


def _differing(database: Path, files: LogDirectory, report: Report) -> list[str]:
    """Where the database is not what the log's files say, as after it was rolled back."""
    from eastwest.log.proven import ProvenReader
    from eastwest.store.log_check import verify_database

    if report.checkpoint is None:
        return []
    uri = f"{database.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            reader = ProvenReader(files, report.checkpoint)
            return [str(one) for one in verify_database(connection, reader, "server.db", pruned=report.pruned)]
    except sqlite3.Error as error:
        return [f"{database} cannot be read: {error}"]


def _space(config: ServerConfig) -> Finding:
    free = shutil.disk_usage(config.paths.home).free
    if free < LOW_DISK:
        return Finding("disk", f"{free >> 20} MiB free", bad=True, fix="free space: without it nothing is issued")
    return Finding("disk", f"{free >> 20} MiB free")
