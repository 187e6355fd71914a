"""The example of a plug-in package: built, installed beside the product without a network, and put to work."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from agent_workload import stream
from server_process import EASTWEST

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin-package"
DOMAIN = "saas.example"
KEY = "5a" * 32


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of processes that have the package installed."""
    site = tmp_path_factory.mktemp("site")
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, EXAMPLE],
        check=True,
        capture_output=True,
        env={**os.environ, "PATH": tools},
    )
    return {**os.environ, "PYTHONPATH": str(site)}


def run(environment, *words):
    finished = subprocess.run(
        [*EASTWEST, *map(str, words)], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


class Running:
    """A process of ours that has said that it is ready."""

    def __init__(self, environment, errors, *words):
        with errors.open("wb") as file:
            self._process = subprocess.Popen(
                [*EASTWEST, *map(str, words)], stdout=subprocess.PIPE, stderr=file, env=environment
            )
        readable, _, _ = select.select([self._process.stdout], [], [], 60)
        self.line = self._process.stdout.readline().decode() if readable else ""
        if " ready: " not in self.line:
            self.__exit__()
            raise AssertionError(errors.read_text()[-3000:])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)
        self._process.stdout.close()


def private_file(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_the_package_passes_its_own_tests(environment, tmp_path):
    options = ["-q", "-p", "no:cacheprovider", "-c", EXAMPLE / "pyproject.toml", f"--basetemp={tmp_path / 'base'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, EXAMPLE / "tests"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


async def test_a_server_and_an_agent_run_on_its_plugins(environment):
    # Short, since a unix socket's path may not be long.
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        home = Path(directory)
        settings = _settings(home)
        run(environment, "server", "init", "--data", home, "--trust-domain", DOMAIN, "--config", settings)
        assert [path.name for path in (home / "server" / "keys").iterdir()] == ["keys.db"]
        with Running(environment, home / "server.err", "server", "run", "--data", home):
            config = ["--config", _agent_settings(environment, home)]
            with Running(environment, home / "agent.err", "agent", "run", "--data", home, *config) as agent:
                assert f"spiffe://{DOMAIN}/spire/agent/node_key/node-1" in agent.line
                _register(environment, home)
                async with stream(home / "agent" / "agent.sock") as opened, asyncio.timeout(20):
                    reply = await opened.next(20)
                assert [svid.spiffe_id for svid in reply.svids] == [f"spiffe://{DOMAIN}/shop"]


def _settings(home):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "900",
         "-subj", "/CN=Corporate root", "-keyout", home / "root.key", "-out", home / "root.pem",
         "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
        check=True, capture_output=True,
    )  # fmt: skip
    (home / "ext").write_text("basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n")
    script = home / "sign.sh"
    script.write_text(
        f"exec openssl x509 -req -days $((LIFETIME / 86400)) -CA {home}/root.pem -CAkey {home}/root.key"
        f" -copy_extensions copy -extfile {home}/ext\n"
    )
    keys = private_file(home / "node-keys.toml", f'node-1 = "{KEY}"\n')
    settings = home / "settings.toml"
    settings.write_text(f"""
trust_domain = "{DOMAIN}"
agent_port = 0
key_store = "sqlite"
upstream = "command"

[upstreams.command]
command = ["/bin/sh", "{script}"]
roots_file = "{home}/root.pem"

[node_attestors.node_key]
keys_file = "{keys}"
""")
    return settings


def _agent_settings(environment, home):
    (home / "bundle.pem").write_text(run(environment, "bundle", "show", "--data", home))
    key = private_file(home / "node-1.key", KEY)
    port = (home / "server" / "agent.port").read_text().strip()
    settings = home / "agent.toml"
    settings.write_text(f"""
server = "127.0.0.1:{port}"
trust_domain = "{DOMAIN}"
bundle = "{home}/bundle.pem"
node_attestor = "node_key"

[node_provers.node_key]
node = "node-1"
key_file = "{key}"

[workload_attestors.cgroup]
""")
    return settings


def _register(environment, home):
    group = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::/"))
    words = ["--spiffe-id", f"spiffe://{DOMAIN}/shop", "--parent-id", f"spiffe://{DOMAIN}/spire/agent/node_key/node-1"]
    selector = f"cgroup:path:{group.removeprefix('0::')}"
    run(environment, "entry", "create", "--data", home, *words, "--selector", selector)
