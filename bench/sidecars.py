"""Real Envoys with the product's own resources, served by the product's config streams from a thread of this process.

For what concerns the data plane alone: no server, no attestation, identities from a test CA.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvloop

from bench.processes import TRUST_DOMAIN, Process, answers
from eastwest.agent.als import AccessLogs, Rules
from eastwest.agent.authorization import Authorization
from eastwest.agent.envoy import sidecar_command
from eastwest.agent.xds import ConfigStreams, Identify, Latest, Principal, SidecarStatus
from eastwest.clock import SystemClock
from eastwest.mesh.action import InForce
from eastwest.mesh.bootstrap import bootstrap
from eastwest.mesh.resources import config_resources, sidecar_secrets, versions_in_force
from eastwest.mesh.secrets import Identity, SecretSet
from eastwest.mesh.settings import Settings
from eastwest.mesh.snapshot import Resource, Snapshot
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.signer import KeyAlgorithm
from eastwest.policy.enforcement import Sidecar
from eastwest.rpc.service import Call, Listener, Servable
from eastwest.spiffe.id import SpiffeId
from eastwest.testing import TestCA
from eastwest.testing.tokens import TokenUses

Rewrite = Callable[[list[Resource]], list[Resource]]
"""Changes what a sidecar is told, to measure one part of it without another."""


@dataclass
class Envoy:
    """One sidecar: what it is to enforce, and its process."""

    name: str
    sidecar: Sidecar
    identity: Identity
    settings: Settings
    rewrite: Rewrite
    process: Process
    snapshots: Latest[Snapshot] = field(default_factory=Latest)
    secrets: Latest[SecretSet] = field(default_factory=Latest)
    acknowledged: str = ""
    token_keys: bytes = b""

    @property
    def egress(self) -> Path:
        return Path(self.settings.egress_socket)


class Sidecars:
    """An agent for measurements, as a context; leaving it ends the Envoys."""

    def __init__(
        self,
        folder: Path,
        keys: KeyAlgorithm = KeyAlgorithm.EC_P256,
        logs: Callable[[Identify, Rules], Servable] | None = None,
    ) -> None:
        """``keys``: of the CA and of all leaves; ``logs`` makes what takes the access logs, in place of our own."""
        self._folder = folder
        self._keys = keys
        self._logs = logs
        self._ca = TestCA(TRUST_DOMAIN, SystemClock().now(), keys)
        self.uses = TokenUses()
        self._envoys: list[Envoy] = []
        self._listeners: list[Listener] = []
        self._loop = uvloop.new_event_loop()  # as agents have
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for envoy in self._envoys:
            envoy.process.__exit__(None, None, None)
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def add(self, sidecar: Sidecar, rewrite: Rewrite = list, token_keys: bytes = b"") -> Envoy:
        """Start one more Envoy; returns at once."""
        name = f"e{len(self._envoys)}"
        svid, key = self._ca.svid(SpiffeId.parse(sidecar.spiffe_id).path, algorithm=self._keys)
        chain, key_pem = self._ca.pem(svid, key)
        file = self._folder / f"{name}.json"
        agent = self._folder / f"{name}.agent"
        settings = Settings(egress_socket=str(self._folder / f"{name}.egress"), tcp_egress_directory=str(self._folder))
        file.write_bytes(
            bootstrap(
                node_id=name,
                spiffe_id=sidecar.spiffe_id,
                agent_socket=str(agent),
                admin_socket=str(self._folder / f"{name}.admin"),
            )
        )
        process = Process(sidecar_command(file), self._folder / f"{name}.log")
        envoy = Envoy(name, sidecar, Identity(sidecar.spiffe_id, chain, key_pem), settings, rewrite, process)
        envoy.token_keys = token_keys
        self._do(self._serve(envoy, agent))
        self.publish(envoy, sidecar)
        process.__enter__()
        self._envoys.append(envoy)
        return envoy

    def publish(self, envoy: Envoy, sidecar: Sidecar) -> None:
        """Tell an Envoy something new."""
        snapshot, secrets = self._made(envoy, sidecar)

        def put() -> None:
            envoy.sidecar = sidecar
            envoy.secrets.set(secrets)
            envoy.snapshots.set(snapshot)

        self._loop.call_soon_threadsafe(put)

    @property
    def thread(self) -> int:
        """The thread that answers the Envoys, as the kernel numbers it."""
        assert self._thread.native_id is not None
        return self._thread.native_id

    def settle(self) -> None:
        """Wait until every Envoy enforces what it was told and listens."""
        for envoy in self._envoys:
            envoy.process.wait_for("config", lambda e=envoy: e.acknowledged == e.sidecar.version)
            envoy.process.wait_for("way out", lambda e=envoy: answers(e.egress))

    def _made(self, envoy: Envoy, sidecar: Sidecar) -> tuple[Snapshot, SecretSet]:
        roots = {TRUST_DOMAIN: dump_chain_pem(self._ca.roots)}
        secrets = sidecar_secrets(
            sidecar, envoy.identity, roots, roots if self._keys is KeyAlgorithm.ML_DSA_65 else None
        )
        resources = envoy.rewrite(config_resources(sidecar, envoy.settings, envoy.token_keys))
        return Snapshot.of(sidecar.version, [*resources, *secrets.resources()]), secrets

    async def _serve(self, envoy: Envoy, path: Path) -> None:
        principal = Principal((envoy.sidecar.spiffe_id,))

        async def identify(_call: Call) -> Principal:
            return principal

        def report(status: SidecarStatus) -> None:
            envoy.acknowledged = status.session.version_acked

        streams = ConfigStreams(_Source(envoy), identify, report)
        rules = _Rules(envoy)
        make = self._logs or _unheard
        checks = Authorization(identify, rules, self.uses.use_token)
        listener = Listener([*streams.services(), make(identify, rules), *checks.services()])
        await listener.listen_unix(path, 0o600)
        self._listeners.append(listener)

    async def _close(self) -> None:
        for listener in self._listeners:
            await listener.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)


def _unheard(identify: Identify, rules: Rules) -> Servable:
    (service,) = AccessLogs(identify, rules, lambda _decisions: None).services()
    return service


class _Source:
    def __init__(self, envoy: Envoy) -> None:
        self._envoy = envoy

    def snapshots(self, _principal: Principal) -> AsyncIterator[Snapshot]:
        return self._envoy.snapshots.watch()

    def secrets(self, _principal: Principal) -> AsyncIterator[SecretSet]:
        return self._envoy.secrets.watch()


class _Rules:
    def __init__(self, envoy: Envoy) -> None:
        self._envoy = envoy
        self._known: tuple[Sidecar, dict[str, InForce]] | None = None

    def current(self, _principal: Principal, service: str) -> InForce | None:
        return next((rules for rules in self._versions().values() if rules.service == service), None)

    def version(self, version: str) -> InForce | None:
        return self._versions().get(version)

    def _versions(self) -> dict[str, InForce]:
        if self._known is None or self._known[0] is not self._envoy.sidecar:
            self._known = self._envoy.sidecar, versions_in_force(self._envoy.sidecar)
        return self._known[1]
