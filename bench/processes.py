"""The processes that are measured: started as a user would, on loopback, and ended by their own pid."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from eastwest.cli.admin import AdminClient
from eastwest.rpc.client import Channel

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
EASTWEST = Path(sys.executable).parent / "eastwest"
TRUST_DOMAIN = "bench.test"
START_SECONDS = 30.0


class Process:
    """A program with its output in a file; leaving the context ends it and what it started."""

    def __init__(self, command: Sequence[str | Path], log: Path) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def __enter__(self) -> Self:
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, start_new_session=True
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._popen is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.terminate()
            self._popen.wait(10)
        # Its own session, so its own group: whatever it started and left behind goes too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(5)

    def wait_for(self, what: str, look: Callable[[], object], seconds: float = START_SECONDS) -> None:
        """Wait until ``look`` finds something; fails with the program's last words."""
        assert self._popen is not None
        deadline = time.monotonic() + seconds
        while not look():
            if (status := self._popen.poll()) is not None or time.monotonic() > deadline:
                told = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
                ended = "no answer in time" if status is None else f"ended with status {status}"
                raise RuntimeError(f"{' '.join(self.command[:4])}: {what}: {ended}\n{told}")
            time.sleep(0.02)


class Server(Process):
    """``eastwest server run`` on a fresh data directory."""

    def __init__(self, data: Path) -> None:
        super().__init__([EASTWEST, "server", "run", "--data", data, "--port", "0"], data.parent / "server.log")
        self.data = data
        run([EASTWEST, "server", "init", "--data", data, "--trust-domain", TRUST_DOMAIN])

    def __enter__(self) -> Self:
        told = self.log.stat().st_size if self.log.exists() else 0
        super().__enter__()
        self.wait_for("ready", lambda: b"server ready" in self.log.read_bytes()[told:])
        return self

    @property
    def address(self) -> str:
        """Where agents call."""
        return f"127.0.0.1:{(self.data / 'server' / 'agent.port').read_text().strip()}"

    def bundle(self) -> Path:
        """The trust bundle in a file."""
        path = self.data.parent / "bundle.pem"
        path.write_text(run([EASTWEST, "bundle", "show", "--data", self.data]))
        return path

    def admin(self, work: Callable[[AdminClient], Awaitable[T]]) -> T:
        """Do some work with the admin API."""

        async def main() -> T:
            async with AdminClient.connect(self.data) as client:
                return await work(client)

        return asyncio.run(main())

    def call(self, descriptor: MethodDescriptor, request: Message) -> Any:
        """One call on the admin socket."""

        async def main() -> Any:
            channel = Channel(path=str(self.data / "server" / "api.sock"))
            try:
                return await channel.unary(descriptor, request)
            finally:
                channel.close()

        return asyncio.run(main())

    def token(self, group: str = "") -> str:
        """A join token."""
        return self.admin(lambda client: client.create_join_token(group=group)).value


class Agent(Process):
    """``eastwest agent run``, joined to a server with a fresh token."""

    def __init__(self, server: Server, group: str = "") -> None:
        self.data = server.data
        token = server.token(group)
        self.path = f"/spire/agent/join_token/{token}"
        where = ["--data", self.data, "--server", server.address]
        proof = ["--join-token", token, "--bundle", server.bundle()]
        super().__init__([EASTWEST, "agent", "run", *where, *proof], self.data.parent / "agent.log")

    def __enter__(self) -> Self:
        super().__enter__()
        self.wait_for("its socket", lambda: answers(self.socket))
        return self

    @property
    def socket(self) -> Path:
        """The Workload API's."""
        return self.data / "agent" / "agent.sock"


class Helper:
    """One of our own modules as a process that answers one JSON line for each JSON line.

    ``program``: a copy of this interpreter, for a process that is to be attested by another path.
    """

    def __init__(self, module: str, *arguments: str | Path, program: Path | None = None) -> None:
        self._command = [str(program or sys.executable), "-m", module, *(str(argument) for argument in arguments)]
        self._environment = None if program is None else _as_here()
        self._popen: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def __enter__(self) -> Self:
        self._popen = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=ROOT,
            env=self._environment,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._popen is not None
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        try:
            self._popen.wait(5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait(5)

    def ask(self, **question: Any) -> Any:
        """One question, one answer."""
        assert self._popen is not None
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(json.dumps(question) + "\n")
        self._popen.stdin.flush()
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._command[2]} ended with status {self._popen.wait(5)}")
        return json.loads(line)


def _as_here() -> dict[str, str]:
    """The environment in which a copied interpreter finds what this one has."""
    return {**os.environ, "PYTHONHOME": sys.base_prefix, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def run(command: Sequence[str | Path], seconds: float = 120) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory with a short name (unix sockets have 107 characters), gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="ewb-") as folder:
        yield Path(folder)


def answers(path: Path) -> bool:
    """Whether something listens on the unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
