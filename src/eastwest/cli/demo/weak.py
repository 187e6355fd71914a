"""Outcome A: the same programs and real Envoys, put together as many estates are.

Plaintext listeners, callers trusted because they come from an internal network, one static key that every
service knows and every service checks, no policy.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from eastwest.cli.demo.calls import Call, Made, make
from eastwest.cli.demo.handlers import ACCEPTED_KEY_HEADER, KEY_HEADER, fingerprint
from eastwest.cli.demo.launch import Launcher
from eastwest.cli.demo.place import LOOPBACK, SERVICES, WORKLOADS, Place, Workload
from eastwest.cli.demo.processes import Process, Processes

NETWORK = "127.0.0.0/8"
KEY_NAME = "INTERNAL_KEY"
_TYPE = "type.googleapis.com/envoy."
_HCM = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_FLUSH_MS = "50"


@dataclass(slots=True)
class WeakOutcome:
    """What the attack achieved; ``key`` is the shared key's fingerprint."""

    calls: list[Made]
    key: str
    network: str = NETWORK

    @property
    def without_identity(self) -> int:
        """Calls that the services' own logs show with no caller identity at all."""
        return sum(1 for made in self.calls if not (made.record or {}).get("caller"))


def attack(key: str) -> list[Call]:
    """What a compromised notification does with what every service has."""
    return [
        Call(
            name="disable-user",
            story="disables a user of the company",
            caller="notification",
            service="admin",
            method="POST",
            path="/admin/users/u-17/disable",
            status=200,
            attack=True,
        ),
        Call(
            name="read-user",
            story="reads a person's data",
            caller="notification",
            service="admin",
            path="/admin/users/u-17",
            status=200,
            attack=True,
        ),
        Call(
            name="other-tenants-invoices",
            story="reads the invoices of a tenant it does not serve",
            caller="notification",
            service="billing",
            path="/api/v2/tenants/globex/invoices",
            tenant="globex",
            status=200,
            attack=True,
        ),
        Call(
            name="unlisted-export",
            story="finds an export that nobody remembers",
            caller="notification",
            service="billing",
            path="/internal/export",
            status=200,
            attack=True,
        ),
        Call(
            name="straight-to-the-port",
            story="does it again past its own proxy, with the key it read",
            caller="notification",
            service="admin",
            method="POST",
            path="/admin/users/u-17/disable",
            via="plaintext",
            status=200,
            attack=True,
            headers={KEY_HEADER: key},
        ),
    ]


async def run(
    place: Place, processes: Processes, launcher: Launcher, ports: Mapping[str, int], key: str
) -> WeakOutcome:
    """Start everything, attack, stop everything."""
    place.internal_key.touch(mode=0o600)
    place.internal_key.write_text(key)
    envoys = [_start_envoy(place, processes, workload, ports) for workload in WORKLOADS]
    apps = await launcher.start_apps("weak", key_file=place.internal_key)
    await asyncio.gather(
        *(
            launcher.envoy_live(envoy, place.admin_socket(workload, "weak"))
            for envoy, workload in zip(envoys, WORKLOADS, strict=True)
        )
    )
    made = [await make(apps, call, ports[call.service]) for call in attack(key)]
    await processes.stop([*envoys, *(app.process for app in apps.values())])
    for each in made:
        each.record = _logged(place, each)
    return WeakOutcome(made, fingerprint(key))


def _start_envoy(place: Place, processes: Processes, workload: Workload, ports: Mapping[str, int]) -> Process:
    config = json.dumps(bootstrap(place, workload, ports), indent=1)
    # The file is for people to look at: it lies where the workload may not, so Envoy is given the text.
    (place.home / f"weak-{workload.name}.json").write_text(config)
    return processes.start(
        f"weak-{workload.name}-envoy",
        [
            str(place.envoy(workload)),
            "--config-yaml",
            config,
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
            "--file-flush-interval-msec",
            _FLUSH_MS,
        ],
        uid=place.uids.of(workload),
    )


def bootstrap(place: Place, workload: Workload, ports: Mapping[str, int]) -> dict[str, Any]:
    """A classic static configuration: plaintext in from the internal network, plaintext out by name."""
    listeners = [_egress(place, workload)]
    clusters = [
        _cluster(f"remote-{service.name}", {"socket_address": {"address": LOOPBACK, "port_value": ports[service.name]}})
        for service in SERVICES
    ]
    if workload.serves:
        listeners.append(_inbound(place, workload, ports[workload.name]))
        clusters.append(_cluster("app", {"pipe": {"path": str(place.app_socket(workload, "weak"))}}))
    return {
        "node": {"id": f"weak-{workload.name}", "cluster": workload.name},
        "admin": {"address": {"pipe": {"path": str(place.admin_socket(workload, "weak")), "mode": 0o600}}},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def access_log(place: Place, workload: Workload) -> Path:
    """Where the service's Envoy writes what it saw."""
    return place.directory(workload, "weak") / "access.log"


def _inbound(place: Place, workload: Workload, port: int) -> dict[str, Any]:
    log = {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": _TYPE + "extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(access_log(place, workload)),
            "log_format": {
                "json_format": {
                    "reference": "%REQ(X-REQUEST-ID)%",
                    "caller": "%DOWNSTREAM_PEER_URI_SAN%",
                    "tls": "%DOWNSTREAM_TLS_VERSION%",
                    "source": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
                    "accepted_key": f"%RESP({ACCEPTED_KEY_HEADER})%",
                    "status": "%RESPONSE_CODE%",
                }
            },
        },
    }
    trusted = {
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": _TYPE + "extensions.filters.http.rbac.v3.RBAC",
            "rules": {
                "action": "ALLOW",
                "policies": {
                    "internal-network": {
                        "permissions": [{"any": True}],
                        "principals": [{"direct_remote_ip": {"address_prefix": "127.0.0.0", "prefix_len": 8}}],
                    }
                },
            },
        },
    }
    hosts = [{"name": "app", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}]
    return {
        "name": "inbound",
        "address": {"socket_address": {"address": LOOPBACK, "port_value": port}},
        "filter_chains": [{"filters": [_manager("inbound", hosts, [trusted], [log])]}],
    }


def _egress(place: Place, workload: Workload) -> dict[str, Any]:
    hosts = [
        {
            "name": service.name,
            "domains": [service.name],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": f"remote-{service.name}"}}],
        }
        for service in SERVICES
    ]
    return {
        "name": "egress",
        "address": {"pipe": {"path": str(place.egress_socket(workload, "weak")), "mode": 0o600}},
        "filter_chains": [{"filters": [_manager("egress", hosts, [], [])]}],
    }


def _manager(name: str, hosts: list[Any], filters: list[Any], logs: list[Any]) -> dict[str, Any]:
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": _TYPE + "extensions.filters.http.router.v3.Router"},
    }
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": _TYPE + _HCM,
            "stat_prefix": name,
            "route_config": {"name": name, "virtual_hosts": hosts},
            "http_filters": [*filters, router],
            "access_log": logs,
            "generate_request_id": True,
            "preserve_external_request_id": True,
            "always_set_request_id_in_response": True,
        },
    }


def _cluster(name: str, address: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def _logged(place: Place, made: Made) -> dict[str, Any] | None:
    """What the service's Envoy wrote about the call: found by the reference that the caller was given too."""
    service = next(workload for workload in SERVICES if workload.name == made.call.service)
    try:
        lines = access_log(place, service).read_bytes().splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        entry: dict[str, Any] = msgspec.json.decode(line)
        if entry.get("reference") == made.reference:
            return {**entry, "caller": entry.get("caller") or ""}
    return None
