"""The processes of the interop tests: our server and agent, SPIRE's agent and command line, workloads.

Everything runs as a real process in its own session, with its output in a file that a failure shows. Whatever is
awaited is awaited by looking at it (a socket that answers, a file that grew), under a deadline.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eastwest.testing.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
EASTWEST = Path(sys.executable).parent / "eastwest"
TRUST_DOMAIN = "interop.test"
START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Peers:
    """The foreign programs."""

    spire_agent: Path
    spire_server_cli: Path
    spiffe_client: Path
    controller_client: Path
    tlog_verify: Path
    tlog_witness: Path
    fsck: Path
    zlint_check: Path
    oidc_verify: Path
    adminclient: Path
    downstreamclient: Path
    debugserver: Path
    debugagent: Path
    node_attestation: Path
    oidc_discovery_provider: Path
    rules_check: Path


class CommandFailedError(Exception):
    """A command that had to succeed did not; the text holds its output."""


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    seconds: float = 60,
    stdin: str | None = None,
) -> str:
    """Standard output of a command that must succeed."""
    done = attempt(command, environment=environment, seconds=seconds, stdin=stdin)
    if done.returncode != 0:
        told = f"{done.stdout}\n{done.stderr}".strip()
        raise CommandFailedError(f"{' '.join(map(str, command))}\nstatus {done.returncode}\n{told}")
    return done.stdout


def attempt(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    seconds: float = 60,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """A command's result, whatever it is."""
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
        input=stdin,
        check=False,
    )


def wait_for(what: str, look: Callable[[], object], seconds: float = START_SECONDS) -> None:
    """Looks until `look` answers something true."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {seconds} s")
        time.sleep(0.05)


def answers(path: Path) -> bool:
    """Whether something listens on the unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


class Process:
    """A long-running program; leaving the context ends it and its children."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._command = [str(part) for part in command]
        self.log = log
        self._environment = {**os.environ, **(environment or {})}
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._running = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def wait_until(self, what: str, look: Callable[[], object], seconds: float = START_SECONDS) -> None:
        """Waits, but fails at once if the process ends first."""

        def look_alive() -> object:
            if (status := self.status()) is not None:
                raise AssertionError(f"{self._command[0]} ended with status {status} before {what}:\n{self.tail()}")
            return look()

        try:
            wait_for(what, look_alive, seconds)
        except AssertionError as failure:
            raise AssertionError(f"{failure}\n{self.tail()}") from None

    def status(self) -> int | None:
        assert self._running is not None, "not started"
        return self._running.poll()

    def wait(self, seconds: float) -> int:
        assert self._running is not None, "not started"
        return self._running.wait(seconds)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ends the process with a signal; a polite one may take 15 s, then the group is killed."""
        if self._running is None:
            return
        if self._running.poll() is None:
            self._running.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running.pid, signal.SIGKILL)
        self._running.wait(5)

    def tail(self, lines: int = 40) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@dataclass
class Authority:
    """Our server on a data directory of its own, administered with SPIRE's command line."""

    data: Path
    peers: Peers
    port: int = field(default_factory=free_port)
    trust_domain: str = TRUST_DOMAIN
    process: Process = field(init=False)

    def __post_init__(self) -> None:
        self.process = Process([EASTWEST, "server", "run", "--data", self.data], self.data.parent / "server.log")

    @property
    def socket(self) -> Path:
        return self.data / "server" / "api.sock"

    @property
    def log(self) -> Path:
        return self.data / "server" / "log"

    @property
    def log_key(self) -> Path:
        return self.data / "server" / "log.vkey"

    @property
    def bundle_file(self) -> Path:
        return self.data.parent / "bundle.pem"

    def initialise(self, *flags: str) -> None:
        where: list[str | Path] = ["--data", self.data, "--trust-domain", self.trust_domain, "--port", str(self.port)]
        run([EASTWEST, "server", "init", *where, *flags])

    def start(self) -> None:
        self.process.start()
        self.process.wait_until("an answer on the admin socket", lambda: answers(self.socket))
        self.process.wait_until("an answer on the agents' port", self._port_answers)
        self.bundle_file.write_text(self.bundle())

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.stop(number)

    def bundle(self) -> str:
        return run([EASTWEST, "bundle", "show", "--data", self.data])

    def cli(self, *words: str | Path, seconds: float = 60, stdin: str | None = None) -> str:
        """What `spire-server WORDS` prints; it must succeed."""
        return run(self._spire_server(*words), seconds=seconds, stdin=stdin)

    def try_cli(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return attempt(self._spire_server(*words))

    def ask(self, *words: str | Path, seconds: float = 60, stdin: str | None = None) -> Any:
        """The JSON that `spire-server WORDS -output json` prints."""
        return json.loads(self.cli(*words, "-output", "json", seconds=seconds, stdin=stdin))

    def token(self, *words: str) -> str:
        value: str = self.ask("token", "generate", *words)["value"]
        return value

    def register(self, name: str, parent: str, *selectors: str, **options: str | int) -> str:
        """Creates spiffe://TRUST-DOMAIN/NAME with SPIRE's command line; returns the entry's id."""
        words = ["-spiffeID", f"spiffe://{self.trust_domain}/{name}", "-parentID", parent]
        words += [word for selector in selectors for word in ("-selector", selector)]
        words += [word for option, value in options.items() for word in (f"-{option}", str(value))]
        (result,) = self.ask("entry", "create", *words)["results"]
        assert result["status"]["code"] == 0, result
        identifier: str = result["entry"]["id"]
        return identifier

    def _spire_server(self, *words: str | Path) -> list[str | Path]:
        depth = 3 if words[0] == "localauthority" else 2
        verbs = [word for word in words[:depth] if not str(word).startswith("-")]
        return [self.peers.spire_server_cli, *verbs, "-socketPath", self.socket, *words[len(verbs) :]]

    def _port_answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


@dataclass
class Node:
    """An agent, ours or SPIRE's, with the socket of its Workload API."""

    process: Process
    socket: Path
    spiffe_id: str

    def start(self) -> None:
        self.process.start()
        self.process.wait_until("an answer on the Workload API socket", lambda: answers(self.socket), seconds=60)

    def stop(self) -> None:
        self.process.stop()


def our_agent(authority: Authority, folder: Path) -> Node:
    """Our agent with a fresh join token, not started."""
    token = authority.token()
    where: list[str | Path] = ["--data", folder, "--server", f"127.0.0.1:{authority.port}"]
    proof: list[str | Path] = ["--join-token", token, "--bundle", authority.bundle_file]
    process = Process([EASTWEST, "agent", "run", *where, *proof], folder / "agent.log")
    return Node(process, folder / "agent" / "agent.sock", agent_id(token, authority.trust_domain))


def spire_agent(authority: Authority, folder: Path, token: str | None = None) -> Node:
    """SPIRE's agent, unmodified, with a join token, not started. Its keys stay on disk, so it can be started again."""
    token = token or authority.token()
    socket_path = folder / "api.sock"
    config = folder / "agent.conf"
    config.write_text(f"""
agent {{
    data_dir = "{folder}/data"
    log_level = "DEBUG"
    server_address = "127.0.0.1"
    server_port = "{authority.port}"
    socket_path = "{socket_path}"
    trust_bundle_path = "{authority.bundle_file}"
    insecure_bootstrap = false
    trust_domain = "{authority.trust_domain}"
    join_token = "{token}"
    experimental {{
        sync_interval = "1s"
    }}
}}
plugins {{
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    KeyManager "disk" {{
        plugin_data {{
            directory = "{folder}/data"
        }}
    }}
    WorkloadAttestor "unix" {{
        plugin_data {{
            discover_workload_path = true
            workload_size_limit = -1
        }}
    }}
}}
""")
    command: list[str | Path] = [authority.peers.spire_agent, "run", "-config", config]
    return Node(Process(command, folder / "spire-agent.log"), socket_path, agent_id(token, authority.trust_domain))


@dataclass
class Workload:
    """A go-spiffe program under a path of its own, which is how the unix attestor tells it from others."""

    program: Path
    socket: Path
    name: str

    @property
    def selector(self) -> str:
        return f"unix:path:{self.program}"

    @property
    def spiffe_id(self) -> str:
        return workload_id(self.name)

    def ask(self, *words: str, seconds: int = 30) -> Any:
        """The one JSON line that the program prints; it must succeed."""
        return json.loads(run(self._command(words, seconds), environment=self._environment(), seconds=seconds + 5))

    def fails(self, *words: str, seconds: int = 5) -> str:
        """What the program says as it fails."""
        done = attempt(self._command(words, seconds), environment=self._environment(), seconds=seconds + 5)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def keep_running(self, *words: str, seconds: int = 90) -> "Lines":
        command = self._command(words, seconds)
        return Lines(Process(command, self.program.parent / f"{self.name}.out", self._environment()))

    def _command(self, words: Sequence[str], seconds: int) -> list[str | Path]:
        return [self.program, "-timeout", f"{seconds}s", *words]

    def _environment(self) -> Mapping[str, str]:
        return {"SPIFFE_ENDPOINT_SOCKET": f"unix://{self.socket}"}


@dataclass
class Lines:
    """A running workload that prints JSON lines."""

    process: Process

    def first(self, what: str, fits: Callable[[Any], object] = bool, seconds: float = 30) -> Any:
        """The first line that fits, once it is printed."""
        self.process.wait_until(what, lambda: any(fits(line) for line in self._lines()), seconds)
        return next(line for line in self._lines() if fits(line))

    def _lines(self) -> list[Any]:
        """The complete lines; one that is still being written is left for later."""
        lines = self.process.log.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def __enter__(self) -> Self:
        self.process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stop()


def workload(peers: Peers, node: Node, folder: Path, name: str) -> Workload:
    program = folder / name
    shutil.copy2(peers.spiffe_client, program)
    return Workload(program.resolve(), node.socket, name)


def workload_id(name: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/{name}"


def agent_id(token: str, trust_domain: str = TRUST_DOMAIN) -> str:
    return f"spiffe://{trust_domain}/spire/agent/join_token/{token}"


def checkpoint_size(log: Path) -> int:
    """The number of entries that the log's checkpoint covers; 0 where there is none yet."""
    try:
        return int((log / "checkpoint").read_text().splitlines()[1])
    except FileNotFoundError:
        return 0
