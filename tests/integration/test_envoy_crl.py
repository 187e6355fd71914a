"""A device gateway's Envoy, in front of devices with long-lived certificates: its default validator reads our CRLs.

(Its SPIFFE validator reads none: for workloads revocation is a push of policy.)
"""

import asyncio
import json
import signal
import ssl
from base64 import b64encode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from revocable_world import KEY, NowClock, new_world

from eastwest.agent.envoy import sidecar_command
from eastwest.pki.revocation import shard_of
from eastwest.testing.ports import free_port


def pem(*ders):
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders)


def bootstrap(folder, port):
    """Envoy that answers 200 to whoever the default validator lets in; the CRL lies beside, and is watched."""
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "disable_stateless_session_resumption": True,
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(folder / "server.pem")},
                    "private_key": {"filename": str(folder / "server.key")},
                }
            ],
            "validation_context_sds_secret_config": {
                "name": "devices",
                "sds_config": {
                    "resource_api_version": "V3",
                    "path_config_source": {
                        "path": str(folder / "devices.json"),
                        "watched_directory": {"path": str(folder)},
                    },
                },
            },
        },
    }
    manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    answer = {
        "@type": f"type.googleapis.com/{manager}",
        "stat_prefix": "devices",
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
    }
    listener = {
        "name": "devices",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {
                "transport_socket": {"name": "tls", "typed_config": tls},
                "filters": [{"name": "http", "typed_config": answer}],
            }
        ],
    }
    return {"static_resources": {"listeners": [listener]}, "node": {"id": "gateway", "cluster": "gateway"}}


def publish(folder, crl):
    """Hand Envoy the roots and one shard's CRL, as a file that appears in one step."""
    context = {
        "trusted_ca": {"filename": str(folder / "root.pem")},
        "crl": {"inline_bytes": b64encode(crl.public_bytes(Encoding.PEM)).decode()},
        # The issuing CA's own revocation is the trust bundle's matter: there is no CRL of the root.
        "only_verify_leaf_cert_crl": True,
    }
    secret = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "devices",
        "validation_context": context,
    }
    fresh = folder / "devices.new"
    fresh.write_text(json.dumps({"resources": [secret]}))
    fresh.rename(folder / "devices.json")


@pytest.fixture
async def gateway(tmp_path):
    port = free_port()
    (tmp_path / "bootstrap.json").write_text(json.dumps(bootstrap(tmp_path, port)))
    started = []

    async def start():
        with (tmp_path / "envoy.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *sidecar_command(tmp_path / "bootstrap.json"), stdout=log, stderr=log
            )
        started.append(process)
        return port

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 20)


def device(folder, svid, name):
    (folder / f"{name}.pem").write_bytes(pem(*svid.chain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "root.pem")
    context.load_cert_chain(folder / f"{name}.pem", folder / "device.key")
    return context


async def ask(port, context):
    """The status of a request, or how the handshake failed."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except ConnectionRefusedError:
        return "closed"
    try:
        writer.write(b"GET / HTTP/1.1\r\nhost: devices\r\nconnection: close\r\n\r\n")
        reply = await asyncio.wait_for(reader.readline(), 10)
    except (ssl.SSLError, ConnectionError) as error:
        return getattr(error, "reason", "reset")
    finally:
        writer.transport.abort()
    return reply.split(b" ", 2)[1].decode() if reply else "ended"


async def until(look, wanted, explain):
    for _ in range(200):
        found = await look()
        if found == wanted:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"{found}, not {wanted}\n{explain()}")


async def test_a_revoked_device_is_refused_and_its_neighbour_is_not(tmp_path, gateway):
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    async with new_world(tmp_path, NowClock()) as world:
        (tmp_path / "root.pem").write_bytes(pem(world.ca.root))
        (tmp_path / "device.key").write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        chain, key = world.ca.pem(*world.ca.svid("/gateway"))
        (tmp_path / "server.pem").write_bytes(chain)
        (tmp_path / "server.key").write_bytes(key)
        good, bad = await world.issue("/edge/pump-1"), await world.issue("/edge/pump-2")
        assert shard_of(good.not_after) == shard_of(bad.not_after)
        devices = device(tmp_path, good, "good"), device(tmp_path, bad, "bad")

        publish(tmp_path, await world.crl(bad))
        port = await gateway()
        log = (tmp_path / "envoy.log").read_text

        async def both():
            return [await ask(port, context) for context in devices]

        await until(both, ["200", "200"], log)
        await world.revoke(bad)
        publish(tmp_path, await world.crl(bad))
        await until(both, ["200", "SSLV3_ALERT_CERTIFICATE_REVOKED"], log)
