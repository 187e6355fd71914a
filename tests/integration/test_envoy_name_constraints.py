"""What a real Envoy makes of a URI name constraint on the issuing CA: the table in docs/reference/certificates.md."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from eastwest.agent.envoy import envoy_binary
from eastwest.pki.chain import dump_chain_pem
from eastwest.spiffe.id import TrustDomain
from eastwest.testing import TestCA

TYPE = "type.googleapis.com/envoy.extensions."
TLS = f"{TYPE}transport_sockets.tls.v3."


@pytest.mark.parametrize("validator", ["spiffe", "plain"])
async def test_a_leaf_inside_is_let_in_and_one_outside_is_not(validator, tmp_path):
    now = dt.datetime.now(dt.UTC)
    inside, outside = (TestCA(now=now, constrained_to=TrustDomain(name)) for name in ("saas.example", "other.example"))
    free = TestCA(now=now)
    (tmp_path / "roots.pem").write_bytes(dump_chain_pem([inside.root, outside.root, free.root]))
    for name, ca in (("inside", inside), ("outside", outside), ("free", free)):
        svid, key = ca.svid("/caller")
        chain, private_key = ca.pem(svid, key)
        (tmp_path / f"{name}.pem").write_bytes(chain)
        (tmp_path / f"{name}.key").write_bytes(private_key)
    async with _envoy(tmp_path, validator) as port:
        assert await asyncio.to_thread(_answered, tmp_path / "free", port)
        assert await asyncio.to_thread(_answered, tmp_path / "inside", port)
        assert not await asyncio.to_thread(_answered, tmp_path / "outside", port)


def _answered(caller: Path, port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # The server's certificate is not what is looked at here.
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(f"{caller}.pem", f"{caller}.key")
    try:
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10)) as stream:
            stream.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return stream.recv(12) == b"HTTP/1.1 200"
    except (ssl.SSLError, ConnectionError):
        return False


@contextlib.asynccontextmanager
async def _envoy(directory: Path, validator: str):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    config = directory / "envoy.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [_listener(directory, validator, port)]}}))
    command = [envoy_binary(), "-c", config, "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]
    with (directory / "envoy.log").open("wb") as output, subprocess.Popen(command, stderr=output) as process:
        try:
            async with asyncio.timeout(30):
                while True:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                    except OSError:
                        assert process.poll() is None, (directory / "envoy.log").read_text()
                        await asyncio.sleep(0.02)
                    else:
                        writer.close()
                        break
            yield port
        finally:
            process.terminate()


def _listener(directory: Path, validator: str, port: int) -> dict:
    roots = {"filename": str(directory / "roots.pem")}
    context: dict = {"trusted_ca": roots}
    if validator == "spiffe":
        domains = [{"name": "saas.example", "trust_bundle": roots}]
        context = {
            "custom_validator_config": {
                "name": "envoy.tls.cert_validator.spiffe",
                "typed_config": {"@type": f"{TLS}SPIFFECertValidatorConfig", "trust_domains": domains},
            }
        }
    own = {
        "certificate_chain": {"filename": str(directory / "free.pem")},
        "private_key": {"filename": str(directory / "free.key")},
    }
    tls = {
        "@type": f"{TLS}DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {"tls_certificates": [own], "validation_context": context},
    }
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    http = {
        "@type": f"{TYPE}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [answer]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{TYPE}filters.http.router.v3.Router"}}],
    }
    return {
        "name": "test",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {
                "transport_socket": {"name": "tls", "typed_config": tls},
                "filters": [{"name": "http", "typed_config": http}],
            }
        ],
    }
