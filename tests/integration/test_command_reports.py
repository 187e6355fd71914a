"""What commands tell of a server: what waits for people, where things are served, and what machines read."""

import json
import subprocess
import urllib.request
from pathlib import Path

import pytest
from server_process import EASTWEST, ServerProcess, eastwest

ESTATE = Path(__file__).parents[2] / "examples" / "estate"
TD = "saas.example"


def told(*words, **options) -> dict:
    done = eastwest(*words, "--json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def server(tmp_path):
    made = ServerProcess(tmp_path / "data", TD)
    yield made
    made.kill()


def environments_told(server):
    """What `plan` says of environments. It also tells of operations that demand a token, of which it has none."""
    warnings = told("plan", ESTATE, "--data", server.data)["registrations"]["warnings"]
    return [warning for warning in warnings if not warning.startswith("nobody can call ")]


def test_an_environment_below_an_offline_root_is_told_until_its_ca_is_there(tmp_path, server):
    (tmp_path / "pass").write_text("three words and a dog\n")
    (tmp_path / "pass").chmod(0o600)
    root, key = tmp_path / "root.pem", tmp_path / "root.key"
    signs = ("--root", root, "--root-key", key, "--passphrase-file", tmp_path / "pass")
    made = told("ca", "init-root", "--trust-domain", TD, *signs)
    assert (len(made["id"]), made["root"], made["root_key"]) == (40, str(root), str(key))
    begun = told("server", "init", "--data", server.data, "--trust-domain", TD, "--port", 0, "--offline-root", root)
    assert (begun["issuing_ca"], "ca export-csr" in begun["next"]) == (None, True)
    bring(tmp_path, server, signs)
    server.start()

    planned = environments_told(server)
    names = [warning.split()[1] for warning in planned]
    assert names
    assert names == sorted(names)
    assert all(f"eastwest ca export-csr --environment {n}" in w for n, w in zip(names, planned, strict=True))
    applied = eastwest("apply", ESTATE, "--data", server.data)
    assert applied.returncode == 0, applied.stderr
    assert applied.stdout.count("warning: environment ") == len(names)
    assert [each for each in ready(server) if each.startswith("environment ")] == planned

    bring(tmp_path, server, signs)
    assert environments_told(server) == []
    assert not [each for each in ready(server) if each.startswith("environment ")]
    assert told("ca", "reencrypt-keys", "--data", stopped(server)) == {"keys": []}


def bring(tmp_path, server, signs) -> None:
    """Have all that waits signed, by way of the JSON of the commands."""
    requests = told("ca", "export-csr", "--data", server.data)
    assert requests["file"] is None
    (tmp_path / "csr").write_text("".join(each["csr"] for each in requests["requests"]))
    signed = told("ca", "sign-csr", tmp_path / "csr", *signs, "--out", tmp_path / "signed.pem")
    assert signed["file"] == str(tmp_path / "signed.pem")
    assert "".join(signed["certificates"]) == (tmp_path / "signed.pem").read_text()
    assert len(signed["certificates"]) == len(requests["requests"])
    eastwest("ca", "import", tmp_path / "signed.pem", "--data", server.data)


def ready(server) -> list[str]:
    port = (server.data / "server/health.port").read_text().strip()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10) as reply:
        return json.loads(reply.read())["warnings"]


def stopped(server) -> Path:
    server.stop()
    return server.data


def test_run_says_where_what_is_public_is_served(server):
    server.init()
    config = server.data / "server/server.toml"
    extra = 'bundle_endpoint_port = 0\nrevocation_url = "http://crl.saas.example/r"\nrevocation_port = 0\n'
    config.write_text(f"{config.read_text()}\n{extra}")
    server.start()
    ports = [(server.data / f"server/{name}.port").read_text().strip() for name in ("bundle-endpoint", "revocation")]
    lines = [server.process.stdout.readline().decode() for _ in ports]
    assert lines == [
        f"  bundle endpoint https://127.0.0.1:{ports[0]}/ (https_spiffe)\n",
        f"  CRLs and OCSP http://127.0.0.1:{ports[1]}/, for http://crl.saas.example/r\n",
    ]


async def test_status_waits_until_nobody_is_behind(server):
    server.init()
    server.start()
    node = await server.join()
    node.close()
    assert eastwest("ca", "prepare", "--data", server.data).returncode == 0
    late = eastwest("ca", "status", "--data", server.data, "--wait", 1.2)
    assert (late.returncode, "0 of 1 nodes have it" in late.stdout) == (1, True)
    waiting = subprocess.Popen([*EASTWEST, "ca", "status", "--data", str(server.data), "--wait", "60", "--json"])
    try:
        assert waiting.poll() is None
        banned = eastwest("node", "ban", node.id, "--data", server.data)
        assert (banned.returncode, banned.stdout) == (0, f"banned {node.id}\n")
        assert waiting.wait(30) == 0
    finally:
        waiting.kill()
        waiting.wait()
