"""Server and agent as they run in earnest: two processes, a join token, an entry, a kill and a return."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agent_workload import ME, ask, first, ids, stream

from eastwest.api.spiffe.workload import workload_pb2 as workload
from eastwest.api.spire.api.server.entry.v1 import entry_pb2 as entry
from eastwest.api.spire.api.types import types_pb2 as types
from eastwest.rpc.client import Channel, method

EASTWEST = [sys.executable, "-m", "eastwest.cli.main"]


@pytest.fixture
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        yield Path(directory)


def eastwest(*arguments: object) -> str:
    return subprocess.run([*EASTWEST, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


@asynccontextmanager
async def process(log: Path, *arguments: object) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process of ours that says when it is ready."""
    with log.open("ab") as errors:
        running = await asyncio.create_subprocess_exec(
            *EASTWEST, *map(str, arguments), stdout=subprocess.PIPE, stderr=errors
        )
    try:
        assert running.stdout is not None
        async with asyncio.timeout(60):
            line = (await running.stdout.readline()).decode()
        assert " ready: " in line, log.read_text()
        yield running, line
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await running.communicate()


async def register(data: Path, token: str, name: str) -> None:
    admin = Channel(path=str(data / "server" / "api.sock"))
    made = types.Entry(
        spiffe_id=types.SPIFFEID(trust_domain="saas.example", path=f"/{name}"),
        parent_id=types.SPIFFEID(trust_domain="saas.example", path=f"/spire/agent/join_token/{token}"),
        selectors=[types.Selector(type="unix", value=ME.removeprefix("unix:"))],
    )
    create = method(entry.DESCRIPTOR.services_by_name["Entry"], "BatchCreateEntry")
    try:
        reply = await admin.unary(create, entry.BatchCreateEntryRequest(entries=[made]))
    finally:
        admin.close()
    assert reply.results[0].status.code == 0


def agent(data: Path) -> list[object]:
    port = (data / "server" / "agent.port").read_text().strip()
    return ["agent", "run", "--data", data, "--server", f"127.0.0.1:{port}"]


async def test_from_init_to_identity_and_through_losses(data: Path) -> None:
    eastwest("server", "init", "--data", data, "--trust-domain", "saas.example", "--port", "0")
    socket = data / "agent" / "agent.sock"
    server_log, agent_log = data / "server.log", data / "agent.log"
    async with process(server_log, "server", "run", "--data", data):
        bundle = data / "bundle.pem"
        bundle.write_text(eastwest("bundle", "show", "--data", data))
        token = eastwest("token", "create", "--data", data).strip()
        token_file = data / "token"
        token_file.write_text(token)
        start = [*agent(data), "--bundle", bundle]
        async with process(agent_log, *start, "--join-token-file", token_file) as (running, line):
            assert line == f"agent ready: socket {socket}, id spiffe://saas.example/spire/agent/join_token/{token}\n"
            await register(data, token, "shop")
            async with asyncio.timeout(20):
                while not (found := await _try(socket)):
                    await asyncio.sleep(0.05)
            assert found == ["shop"]
            async with stream(socket) as opened:
                await opened.next()
                await register(data, token, "billing")
                assert sorted(ids(await opened.next(5))) == ["billing", "shop"]
            reply = await ask(socket, "FetchJWTSVID", workload.JWTSVIDRequest(audience=["x"]))
            assert len(reply.svids) == 2
            running.kill()
            await running.wait()
        # Again, with the same token: it is spent, and not needed.
        async with process(agent_log, *start, "--join-token-file", token_file):
            assert sorted(ids(await first(socket))) == ["billing", "shop"]
        # A wrong one, elsewhere.
        other = data / "other"
        refused = await asyncio.create_subprocess_exec(
            *EASTWEST, *map(str, [*start, "--data", other, "--join-token", token]), stderr=subprocess.PIPE
        )
        _, told = await refused.communicate()
        assert refused.returncode == 1
        assert b"error: the server refuses the join token" in told
        assert token.encode() not in told
    async with process(agent_log, *start) as (running, line):
        assert line.endswith("from cache (not connected to the server yet)\n")
        assert sorted(ids(await first(socket))) == ["billing", "shop"]
        running.send_signal(signal.SIGTERM)
        assert await running.wait() == 0
    assert not socket.exists()
    assert os.listdir(data / "agent" / "keys")


async def _try(socket: Path) -> list[str]:
    from eastwest import errors

    try:
        return ids(await first(socket))
    except errors.PermissionDenied:
        return []


async def test_an_agent_killed_at_any_moment_comes_back_with_all_it_may_hold(data: Path) -> None:
    eastwest("server", "init", "--data", data, "--trust-domain", "saas.example", "--port", "0")
    socket = data / "agent" / "agent.sock"
    async with process(data / "server.log", "server", "run", "--data", data):
        bundle = data / "bundle.pem"
        bundle.write_text(eastwest("bundle", "show", "--data", data))
        token = eastwest("token", "create", "--data", data).strip()
        join = [*agent(data), "--bundle", bundle, "--join-token", token]
        names: list[str] = []
        for number, delay in enumerate((0.0, 0.05, 0.2, 0.01, 0.1, 0.4)):
            async with process(data / "agent.log", *join) as (running, _):
                names.append(f"shop-{number}")
                await register(data, token, names[-1])
                # The moment of the kill is what the test varies: before, during or after issuance and caching.
                await asyncio.sleep(delay)
                running.kill()
                await running.wait()
        async with process(data / "agent.log", *join), asyncio.timeout(20), stream(socket) as opened:
            while sorted(ids(await opened.next())) != names:
                pass
    # Exits with an error, which the helper raises, when anything in the log disagrees.
    assert eastwest("log", "verify", "--data", data)
