"""The log's doors to the world, opened by the server where ``[log]`` asks for them."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from eastwest.clock import Clock
from eastwest.errors import InvalidInput
from eastwest.log.ports import LogFiles
from eastwest.server.config import LogSettings, ServerConfig
from eastwest.server.journal import Journal
from eastwest.server.log.serving import log_app
from eastwest.server.log.witnesses import Witnesses, load_policy
from eastwest.server.public.endpoints import Spawn, tell_port
from eastwest.server.public.https import CertificateFiles, PublicListener
from eastwest.store.log import SqliteLog
from eastwest.store.log_files import LogDirectory


def listen_log(
    config: ServerConfig, log: SqliteLog, stack: AsyncExitStack, spawn: Spawn, files: LogFiles | None = None
) -> CertificateFiles | None:
    """Serve the log's public files on ``[log] port``; nothing where that is not set. Gives the certificate in use."""
    settings, paths = config.file.log or LogSettings(), config.paths
    if settings.port is None:
        return None
    pair = None
    if settings.certificate:
        pair = CertificateFiles(paths.home / settings.certificate, paths.home / settings.key)
    names = (paths.log_vkey.name, paths.log_ml_dsa_vkey.name)
    vkeys = {name: key.vkey for name, key in zip(names, log.keys, strict=False)}
    app = log_app(files or LogDirectory(paths.log), vkeys)
    listener = PublicListener(app, "log", tls=pair.listening if pair is not None else None)
    tell_port(paths.log_port, listener.bind(settings.address, settings.port), stack)
    spawn(listener.run(), "log-http")
    stack.callback(listener.stop)
    return pair


def open_witnesses(
    config: ServerConfig, log: SqliteLog, journal: Journal, clock: Clock, registry: CollectorRegistry
) -> Witnesses | None:
    """The witnesses of ``[log] witness_policy``, not running yet; None where there is none."""
    settings, paths = config.file.log or LogSettings(), config.paths
    if not settings.witness_policy:
        return None
    policy = load_policy(paths.home / settings.witness_policy, log.keys)
    trust = _trust(settings, paths.home)
    files = LogDirectory(paths.log)
    witnesses = Witnesses(policy, settings, log, files, journal, clock, paths, trust, config.trust_domain.uri)
    age = Gauge(
        "eastwest_log_witness_age_seconds", "Time since a quorum of witnesses last signed the log.", registry=registry
    )
    age.set_function(lambda: witnesses.age)
    registry.register(_Requests(lambda: witnesses))
    return witnesses


class _Requests(Collector):
    """How often each witness was asked; their number is bounded by the policy."""

    def __init__(self, witnesses: Callable[[], Witnesses]) -> None:
        self._witnesses = witnesses

    def collect(self) -> list[CounterMetricFamily]:
        """What Prometheus reads, made when it asks."""
        asked = CounterMetricFamily(
            "eastwest_log_witness_requests",
            "Checkpoints sent to a witness, by outcome: signed, refused, failed.",
            labels=["witness", "outcome"],
        )
        for peer in self._witnesses().peers:
            for outcome in ("signed", "refused", "failed"):
                asked.add_metric([peer.name, outcome], peer.requests.get(outcome, 0))
        return [asked]


def _trust(settings: LogSettings, home: Path) -> ssl.SSLContext:
    """By the machine's own roots, or by those in ``witness_ca_file`` (PEM)."""
    file = str(home / settings.witness_ca_file) if settings.witness_ca_file else None
    try:
        context = ssl.create_default_context(cafile=file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(
            f"log.witness_ca_file cannot be used: {error.strerror or error}", where=file or "", fix="give roots in PEM"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
