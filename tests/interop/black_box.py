"""SPIRE's integration suites without their containers: its own clients and agent, against our server.

Each suite is a file of ``test/integration/suites`` of SPIRE's repository, replayed step by step. Where a suite tells
workloads apart by user, these tests tell them apart by program: a link of its own for each, so that no root is needed.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha1
from pathlib import Path
from typing import Any

from cryptography import x509
from interop_harness import EASTWEST, Authority, Node, Peers, attempt, run, spire_agent, wait_for

from eastwest.testing.devices import DeviceCA

SYNC_SECONDS = 30.0


@dataclass
class Domain:
    """A server of ours that lets machines in by certificate, as most suites have it."""

    authority: Authority
    folder: Path
    devices: DeviceCA = field(default_factory=lambda: DeviceCA(datetime.now(UTC)))

    @property
    def name(self) -> str:
        return self.authority.trust_domain

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.authority.port}"

    def id(self, path: str) -> str:
        return f"spiffe://{self.name}/{path}"

    def configure(self, settings: str = "") -> None:
        """Makes the server, with attestation by x509pop and ``settings`` in its file."""
        self.folder.mkdir(exist_ok=True)
        roots = self.devices.write_root(self.folder / "devices.pem")
        config = self.folder / "server.toml"
        config.write_text(
            f'trust_domain = "{self.name}"\nagent_port = {self.authority.port}\n{settings}\n'
            f'[node_attestors.x509pop]\nca_bundle_path = "{roots}"\n'
        )
        where: list[str | Path] = ["--data", self.authority.data, "--trust-domain", self.name]
        run([EASTWEST, "server", "init", *where, "--config", config])

    def agent(self, name: str, *, san: str = "") -> Node:
        """SPIRE's agent, unmodified, by a certificate; not started."""
        folder = self.folder / name
        folder.mkdir()
        names = [x509.UniformResourceIdentifier(f"x509pop://{self.name}/{san}")] if san else []
        device = self.devices.device(name, names=names)
        certificate, key = device.write(folder)
        node = spire_agent(self.authority, folder, "unused")
        config = folder / "agent.conf"
        before, rest = (
            config.read_text().replace('    join_token = "unused"\n', "").split('NodeAttestor "join_token" {')
        )
        after = rest.split("plugin_data {}", 1)[1]
        options = f'private_key_path = "{key}"\ncertificate_path = "{certificate}"'
        config.write_text(f'{before}NodeAttestor "x509pop" {{\nplugin_data {{\n{options}\n}}{after}')
        fingerprint = sha1(device.ders[0]).hexdigest()
        return Node(node.process, node.socket, self.id(f"spire/agent/x509pop/{fingerprint}"))

    def joining_agent(self, name: str, token: str) -> Node:
        """SPIRE's agent with a join token, not started."""
        folder = self.folder / name
        folder.mkdir()
        return spire_agent(self.authority, folder, token)


@dataclass
class Program:
    """A foreign program under a path of its own, which is what its selector names."""

    path: Path
    socket: Path

    @property
    def selector(self) -> str:
        return f"unix:path:{self.path}"

    def run(self, *words: str | Path, seconds: float = 90) -> str:
        return run([self.path, *words], seconds=seconds)

    def attempt(self, *words: str | Path, seconds: float = 90) -> subprocess.CompletedProcess[str]:
        return attempt([self.path, *words], seconds=seconds)

    def fetch_x509(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """`spire-agent api fetch x509`: one try."""
        return self.attempt("api", "fetch", "x509", "-socketPath", self.socket, "-timeout", "5s", *words)

    def x509(self) -> Any:
        """What it prints as JSON; it must succeed."""
        done = self.fetch_x509("-output", "json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def fetch_jwt(self, audience: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """`spire-agent api fetch jwt`: one try."""
        where: list[str | Path] = ["-socketPath", self.socket, "-timeout", "5s", "-audience", audience]
        return self.attempt("api", "fetch", "jwt", *where, *words)

    def jwt(self, audience: str) -> Any:
        done = self.fetch_jwt(audience, "-output", "json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def wait_for_identity(self, spiffe_id: str) -> None:
        """Until the agent has heard of the entry: what the suites look up in the agent's log."""
        wait_for(f"{spiffe_id} at {self.path.name}", lambda: spiffe_id in self.fetch_x509().stdout, SYNC_SECONDS)


def program(binary: Path, folder: Path, name: str, node: Node) -> Program:
    """A link to ``binary``, for a workload on ``node``."""
    path = folder.resolve() / name
    try:
        os.link(binary, path)
    except OSError:  # another file system
        path.write_bytes(binary.read_bytes())
        path.chmod(0o755)
    return Program(path, node.socket)


def domain(peers: Peers, folder: Path, trust_domain: str) -> Domain:
    """A trust domain below ``folder``, neither made nor started."""
    return Domain(Authority(folder / trust_domain / "data", peers, trust_domain=trust_domain), folder / trust_domain)


@contextmanager
def started(*what: Domain | Node) -> Iterator[None]:
    """Servers and agents started in this order and stopped in the other."""
    with ExitStack() as stack:
        for each in what:
            running = each.authority if isinstance(each, Domain) else each
            stack.callback(running.stop)
            running.start()
        yield


def lines_with(text: str, *words: str) -> Sequence[str]:
    """What a suite's chain of greps lets through."""
    return [line for line in text.splitlines() if all(word in line for word in words)]
