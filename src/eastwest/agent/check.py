"""``eastwest agent check``: what would keep an agent from starting or its callers from reaching it, with the fix."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from eastwest import errors
from eastwest.agent import config as settings_of
from eastwest.agent.attestation import load_prover
from eastwest.agent.bootstrap import explain, read_bundle
from eastwest.agent.config import AgentConfig, Paths, Settings
from eastwest.agent.connection import SERVER_PATH
from eastwest.agent.keyring import KeyringUnavailable, node_key
from eastwest.agent.own import OwnIdentity, OwnSvid
from eastwest.api.spire.api.server.bundle.v1 import bundle_pb2 as bundle_api
from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.process.findings import Finding
from eastwest.process.locked import locked
from eastwest.rpc.client import Channel, method
from eastwest.rpc.tls import client_context, expect_server
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import TrustDomain

_SECONDS = 5.0


async def check_agent(
    data: Path, config: AgentConfig, clock: Clock, entropy: Entropy, where: str = "the agent's settings"
) -> list[Finding]:
    """Look at settings, paths, evidence, identity, keyring and server; neither agent nor server need run."""
    try:
        settings = settings_of.check(config, data, where=where)
    except errors.Error as error:
        return [_bad("settings", error)]
    findings = [Finding("settings", f"server {settings.host}:{settings.port}, data {settings.data}")]
    findings += [Finding("settings", warning) for warning in settings.warnings]
    findings.append(_reachable(settings.paths))
    findings.append(_running(settings.paths))
    repeatable, finding = _evidence(settings, entropy, clock)
    findings.append(finding)
    own, finding = _own(settings, entropy, clock, repeatable=repeatable)
    findings.append(finding)
    findings.append(_keyring(entropy))
    bundle, finding = _bundle(settings)
    findings.append(finding)
    if bundle is not None:
        if own is not None and own.id.trust_domain != bundle.trust_domain:
            state = f"the agent is {own.id}, the bundle of {bundle.trust_domain}"
            findings.append(Finding("trust domain", state, bad=True, fix="choose another --data, or the right bundle"))
        findings.append(await _server(settings, bundle))
    return findings


def _reachable(paths: Paths) -> Finding:
    """Whether every local user can get to the socket."""
    closed = [
        directory
        for directory in (paths.home, *paths.home.parents)
        if directory.is_dir() and not stat.S_IMODE(directory.stat().st_mode) & stat.S_IXOTH
    ]
    if closed:
        listed = ", ".join(map(str, closed))
        state = f"other users cannot pass through {listed} to {paths.socket}"
        return Finding("socket", state, bad=True, fix=f"chmod o+x {' '.join(map(str, closed))}")
    nearest = next(directory for directory in (paths.home, *paths.home.parents) if directory.is_dir())
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Finding("socket", f"{nearest} cannot be written", bad=True, fix="run as its owner")
    return Finding("socket", f"{paths.socket} can be made and reached")


def _running(paths: Paths) -> Finding:
    if not paths.lock.exists():
        return Finding("process", "no agent has run here yet")
    try:
        with locked(paths.lock, "agent"):
            return Finding("process", "no agent runs on this directory")
    except errors.FailedPrecondition as error:
        return Finding("process", f"in use: {error.message}")


def _evidence(settings: Settings, entropy: Entropy, clock: Clock) -> tuple[bool | None, Finding]:
    """Whether the node's evidence can be shown at any time (None: it is not usable), and what there is to say of it."""
    # The trust domain is not known yet, and the evidence of no built-in kind depends on it.
    trust_domain = settings.trust_domain or TrustDomain("unknown")
    try:
        prover = load_prover(settings, trust_domain, clock, entropy)
    except errors.Error as error:
        return None, _bad("evidence", error)
    how = "can be shown again at any time" if prover.repeatable else "works once"
    return prover.repeatable, Finding("evidence", f"{prover.name}, {how}")


def _own(
    settings: Settings, entropy: Entropy, clock: Clock, *, repeatable: bool | None
) -> tuple[OwnSvid | None, Finding]:
    try:
        own = OwnIdentity(settings.paths, entropy).load()
    except errors.Error as error:
        return None, _bad("identity", error)
    if own is None:
        how = {True: "attests", False: "needs a join token", None: "attests once the evidence is right"}[repeatable]
        return None, Finding("identity", f"none yet: the first start {how}")
    until = f"{own.not_after:%Y-%m-%dT%H:%M:%SZ}"
    if not own.is_live(clock.now()) and repeatable:
        return own, Finding("identity", f"{own.id} ended at {until}; the agent will attest again")
    if not own.is_live(clock.now()):
        fix = "put the evidence right" if repeatable is None else "start with a new join token"
        return own, Finding("identity", f"{own.id} ended at {until}", bad=True, fix=fix)
    return own, Finding("identity", f"{own.id}, until {until}")


def _keyring(entropy: Entropy) -> Finding:
    try:
        node_key(entropy)
    except KeyringUnavailable as error:
        return Finding("keyring", f"{error.message}; certificates and keys are not kept over a restart")
    return Finding("keyring", "certificates and keys are kept sealed over a restart")


def _bundle(settings: Settings) -> tuple[Bundle | None, Finding]:
    if settings.bundle_file is None:
        return None, Finding("bundle", "no file is named; the cached bundle is used where there is one")
    try:
        bundle = read_bundle(settings.bundle_file, settings.trust_domain)
    except errors.Error as error:
        return None, _bad("bundle", error)
    return bundle, Finding("bundle", f"{len(bundle.x509_authorities)} root(s) of {bundle.trust_domain}")


async def _server(settings: Settings, bundle: Bundle) -> Finding:
    channel = Channel(
        host=settings.host,
        port=settings.port,
        tls=client_context([authority.der for authority in bundle.x509_authorities]),
        check=expect_server(bundle.trust_domain.id(SERVER_PATH)),
    )
    get_bundle = method(bundle_api.DESCRIPTOR.services_by_name["Bundle"], "GetBundle")
    try:
        await channel.unary(get_bundle, bundle_api.GetBundleRequest(), deadline=_SECONDS)
    except errors.Unavailable as error:
        return Finding("server", error.message, bad=True, fix="start the server, or check --server and the network")
    except errors.Unauthenticated as error:
        return _bad("server", explain(error, channel.target))
    except errors.Error as error:
        return Finding("server", f"{channel.target} proves to be the server of {bundle.trust_domain}; {error.message}")
    finally:
        channel.close()
    return Finding("server", f"{channel.target} answers and proves to be the server of {bundle.trust_domain}")


def _bad(what: str, error: errors.Error) -> Finding:
    where = f"{error.where}: " if error.where else ""
    return Finding(what, f"{where}{error.message}", bad=True, fix=error.fix)
