"""A bundle endpoint under the web's PKI and those who look at it: files that change and break, and what is told."""

import json
import ssl
import urllib.request
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from server_process import ServerProcess, eastwest

from eastwest.testing import TestCA

PARTNER = "partner.test"


def configure(server: ServerProcess, text: str) -> None:
    config = server.data / "server/server.toml"
    config.write_text(f"{config.read_text()}\n{text}\n")


def write_pair(server: ServerProcess, ca: TestCA) -> None:
    chain, key = ca.pem(*ca.svid("/web", dns_names=("localhost",)))
    home = server.data / "server"
    (home / "web.key").write_bytes(key)
    (home / "web.pem").write_bytes(chain)


@pytest.fixture
def web():
    return TestCA("web.test", now=datetime.now(UTC))


@pytest.fixture
def both(tmp_path, web):
    """Two servers: the partner offers its bundle by a certificate for localhost, and we trust who signed that."""
    ours, partner = ServerProcess(tmp_path / "ours"), ServerProcess(tmp_path / "partner", PARTNER)
    for server in (ours, partner):
        server.init()
    root = x509.load_der_x509_certificate(web.root).public_bytes(Encoding.PEM)
    (ours.data / "server/web-roots.pem").write_bytes(root)
    configure(ours, 'federation_ca_file = "web-roots.pem"')
    write_pair(partner, web)
    pair = 'bundle_endpoint_certificate = "web.pem"\nbundle_endpoint_key = "web.key"'
    configure(partner, f"bundle_endpoint_port = 0\n{pair}")
    for server in (ours, partner):
        server.start()
    yield ours, partner
    for server in (ours, partner):
        server.kill()


def done(server, *words) -> str:
    result = eastwest(*words, "--data", server.data)
    assert result.returncode == 0, result.stderr
    return result.stdout


def shown(server) -> dict:
    return json.loads(done(server, "federation", "show", PARTNER, "--json"))


def health(server, path: str) -> str:
    port = (server.data / "server/health.port").read_text().strip()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as reply:
        return reply.read().decode()


def federate(ours, partner) -> int:
    port = int((partner.data / "server/bundle-endpoint.port").read_text())
    done(ours, "federation", "create", PARTNER, "--endpoint", f"https://localhost:{port}/")
    return port


def test_files_change_break_and_are_mended_under_a_relationship(both, web):
    ours, partner = both
    port = federate(ours, partner)
    sequence = json.loads(done(partner, "bundle", "show", "--format", "spiffe"))["spiffe_sequence"]
    assert done(ours, "federation", "refresh", PARTNER) == f"the bundle of {PARTNER} is at sequence {sequence}\n"
    told = shown(ours)
    assert (told["profile"], told["problem"], told["x509_authorities"]) == ("https_web", "", 1)
    assert f'eastwest_federated_bundle_age_seconds{{trust_domain="{PARTNER}"}}' in health(ours, "metrics")
    assert "last_success_timestamp_seconds" in health(ours, "metrics")

    # Somebody else's certificate for the same name is no proof; what is held stays, and the status outlives a kill.
    write_pair(partner, TestCA("impostor.test", now=datetime.now(UTC)))
    refused = eastwest("federation", "refresh", PARTNER, "--data", ours.data)
    assert (refused.returncode, "did not prove itself" in refused.stderr) == (3, True)
    succeeded = shown(ours)["succeeded_at"]
    ours.kill()
    ours.start()
    told = shown(ours)
    assert (told["x509_authorities"], told["succeeded_at"]) == (1, succeeded)
    assert "did not prove itself" in told["problem"]

    # A new pair of the same CA is used without a restart.
    write_pair(partner, web)
    assert "is at sequence" in done(ours, "federation", "refresh", PARTNER)
    assert shown(ours)["problem"] == ""

    # A broken one is not: the last good one goes on, and the administrator is told.
    assert json.loads(health(partner, "ready"))["warnings"] == []
    assert "ok   bundle endpoint certificate" in eastwest("server", "check", "--data", partner.data).stdout
    (partner.data / "server/web.pem").write_text("half a cert")
    told = json.loads(health(partner, "ready"))
    assert told["status"] == "ready"
    [warning] = told["warnings"]
    assert "the certificate of bundle_endpoint is not fit for use" in warning
    assert "web.pem" in warning
    checked = eastwest("server", "check", "--data", partner.data)
    assert (checked.returncode, "FAIL bundle endpoint certificate" in checked.stdout) == (1, True)
    assert "is at sequence" in done(ours, "federation", "refresh", PARTNER)
    context = ssl.create_default_context(cafile=str(ours.data / "server/web-roots.pem"))
    with urllib.request.urlopen(f"https://localhost:{port}/", context=context, timeout=10) as reply:
        assert json.load(reply)["spiffe_sequence"] == sequence


async def test_peers_who_cannot_confirm_are_given_time(both):
    ours, partner = both
    federate(ours, partner)
    for server, kind in ((partner, "x509"), (partner, "jwt"), (ours, "jwt")):
        made = json.loads(done(server, "ca", "prepare", "--kind", kind, "--json"))["authority"]
        early = eastwest("ca", "activate", made["id"], "--data", server.data)
        assert early.returncode == 1
        assert "those outside the trust domain may not have it before" in early.stderr
        status = eastwest("ca", "status", "--data", server.data, "--json")
        waiting = json.loads(status.stdout)["waiting"]
        assert (status.returncode, made["id"] in [item["id"] for item in waiting]) == (1, True)
        assert "those outside the trust domain have it by" in eastwest("ca", "status", "--data", server.data).stdout
        done(server, "ca", "activate", made["id"], "--force")
        async with server.admin() as admin:
            await admin.flush_log()
        log = json.loads(done(server, "log", "show", "--kind", "ca.activated", "--json"))["entries"]
        assert log[-1]["entry"]["forced"] is True
        assert "has been published for" in log[-1]["entry"]["unconfirmed"]


def test_an_entry_federates_only_with_whom_we_know(both):
    ours, partner = both
    words = ["--spiffe-id", "spiffe://td.test/shop", "--parent-id", "spiffe://td.test/spire/agent/x/1"]
    words += ["--selector", "unix:uid:1", "--federates-with", PARTNER]
    unknown = eastwest("entry", "create", *words, "--data", ours.data)
    assert (unknown.returncode, f"unable to find federated bundle '{PARTNER}'" in unknown.stderr) == (1, True)
    federate(ours, partner)
    done(ours, "entry", "create", *words)
