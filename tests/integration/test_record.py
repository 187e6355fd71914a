"""The record under real agents and sidecars: what is called is in it once, or is counted as lost.

One agent that is stopped, killed and without its server, and one that cannot write its spool.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from agent_authority import FakeAuthority, running, settings
from envoy_mesh import App, Http, Reply
from test_agent_sidecars import CLIENT, acknowledged, authority, data, sidecar, sidecars

from eastwest.agent.spool_frame import Frame
from eastwest.ledger.record import Decision, Lost, Row
from eastwest.policy.enforcement import DecisionCode, Recording
from eastwest.testing.ports import free_port

__all__ = ["authority", "data"]  # fixtures


def rows(authority: FakeAuthority) -> list[Row]:
    return [row for body in authority.decisions for row in msgspec.json.decode(body, type=list[Row])]


def recorded(authority: FakeAuthority) -> tuple[int, int]:
    """Calls that are recorded, and those that are known to be lost."""
    found = rows(authority)
    return (
        sum(row.count for row in found if isinstance(row, Decision)),
        sum(row.count for row in found if isinstance(row, Lost)),
    )


def count_of(line: bytes) -> int:
    """Calls that a line of the spool stands for."""
    frame = Frame.parse(line + b"\n")
    return frame.calls if frame is not None else 0


@asynccontextmanager
async def agent_process(authority: FakeAuthority, data: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`eastwest agent run`, ready; killed at the end if it still runs."""
    token = data / "token"
    token.write_text("t1")
    token.chmod(0o600)
    words = ["agent", "run", "--data", data, "--server", f"127.0.0.1:{authority.port}"]
    words += ["--bundle", authority.write_bundle(data / "bundle.pem"), "--join-token-file", token]
    with (data / "agent.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "eastwest.cli.main", *map(str, words), stdout=asyncio.subprocess.PIPE, stderr=log
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        assert b"agent ready" in line, (data / "agent.log").read_text()[-3000:]
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Calls:
    """Counts the calls that were answered by the service's side."""

    def __init__(self, out: Http) -> None:
        self._out = out
        self.made = 0

    async def __call__(self) -> Reply:
        reply = await self._out.ask("GET", "/healthz", host="billing")
        self.made += reply.status != 503
        return reply

    async def many(self, count: int) -> float:
        begin = time.monotonic()
        for _ in range(count):
            assert (await self()).status == 200
        return (time.monotonic() - begin) / count

    async def close(self) -> None:
        await self._out.close()

    async def open(self) -> None:
        """Wait until the service's port is there."""
        while (await self()).status == 503:
            await asyncio.sleep(0.02)


async def test_an_agent_that_stops_is_killed_and_has_no_server_records_each_call_once(
    authority: FakeAuthority, data: Path
) -> None:
    data.mkdir()
    app = App(data / "app.sock")
    await app.start()
    for name in ("client", "billing"):
        authority.put(name, f"unix:path:{data / name / 'envoy'}")
    for each in sidecars(free_port(), app.path, "v1", CLIENT):
        authority.put_sidecar(each)
    async with agent_process(authority, data) as agent, sidecar(data, "client") as way_out, sidecar(data, "billing"):
        async with asyncio.timeout(60):
            await authority.until(lambda: acknowledged(authority, "v1"))
        call = Calls(await Http.unix(way_out))
        await call.open()
        usual = await call.many(100)

        # An agent that stands still holds no call up.
        agent.send_signal(signal.SIGSTOP)
        assert await call.many(100) < 10 * usual + 0.01
        agent.send_signal(signal.SIGCONT)

        # A server that is away gets everything when it is back, although the agent was killed meanwhile.
        async with asyncio.timeout(30):
            await authority.until(lambda: recorded(authority) == (call.made, 0))
        await authority.stop()
        await call.many(50)
        spooled = max((data / "agent" / "spool").glob("*.spool"))
        async with asyncio.timeout(20):
            while sum(count_of(line) for line in spooled.read_bytes().splitlines()) < call.made:
                await asyncio.sleep(0.05)
        agent.kill()
        await agent.wait()
        await authority.start()
        async with agent_process(authority, data) as again:
            await call.many(30)
            async with asyncio.timeout(30):
                await authority.until(lambda: sum(recorded(authority)) >= call.made)
            assert recorded(authority) == (call.made, 0)
            again.terminate()
            await again.wait()
        await call.close()
    await app.stop()


async def test_a_service_that_requires_its_record_refuses_while_there_is_none(
    authority: FakeAuthority, data: Path
) -> None:
    config = settings(authority, data)
    (data / "agent").mkdir()
    in_the_way = data / "agent" / "spool"
    in_the_way.write_text("no directory")
    app = App(data / "app.sock")
    await app.start()
    for name in ("client", "billing"):
        authority.put(name, f"unix:path:{data / name / 'envoy'}")
    client, billing = sidecars(free_port(), app.path, "v1", CLIENT)
    required = msgspec.structs.replace(billing.inbound[0], recording=Recording.REQUIRED)
    authority.put_sidecar(client)
    authority.put_sidecar(msgspec.structs.replace(billing, inbound=(required,)))
    async with running(config), sidecar(data, "client") as way_out, sidecar(data, "billing"):
        async with asyncio.timeout(60):
            await authority.until(lambda: acknowledged(authority, "v1"))
        call = Calls(await Http.unix(way_out))
        await call.open()
        reply = await call()
        assert (reply.status, reply.code) == (403, "RECORD_UNAVAILABLE")

        # By itself, once the disk is well again.
        in_the_way.unlink()
        async with asyncio.timeout(30):
            while (reply := await call()).status == 403:
                assert reply.code == "RECORD_UNAVAILABLE"
                await asyncio.sleep(0.1)
        assert reply.status == 200
        assert os.listdir(in_the_way)

        # What was refused is told as soon as that is possible, by memory meanwhile.
        refused = {DecisionCode.RECORD_UNAVAILABLE, DecisionCode.ALLOWED}
        async with asyncio.timeout(20):
            await authority.until(lambda: refused <= {row.code for row in rows(authority) if isinstance(row, Decision)})
            await authority.until(lambda: recorded(authority) == (call.made, 0))
        await call.close()
    (policy,) = {row.policy_version for row in rows(authority) if isinstance(row, Decision)}
    assert policy == "v1"
    await app.stop()
