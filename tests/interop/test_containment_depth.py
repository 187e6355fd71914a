"""Containment where it is hard: an agent that may close nothing, and a workload with a sidecar of its own."""

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from containment_world import DB, NOTIFY, OTHER, ContainmentWorld

from eastwest.agent import netlink

needs_root = pytest.mark.skipif(
    bool(netlink.can_destroy()) or shutil.which("setpriv") is None, reason="needs CAP_NET_ADMIN, and setpriv to drop it"
)


@contextlib.asynccontextmanager
async def world(*prefix: str):
    with tempfile.TemporaryDirectory(prefix="ew-") as place:
        Path(place).chmod(0o755)
        made = ContainmentWorld(Path(place), prefix)
        try:
            await made.start()
            yield made
        finally:
            await made.stop()


@needs_root
async def test_an_agent_without_the_capability_refuses_and_says_that_it_closes_nothing():
    async with world("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin") as made:
        idle = await made.connect(made.db_port, await made.context(NOTIFY))
        idle.writer.write(b"ping")
        assert await asyncio.wait_for(idle.reader.read(100), 10) == b"ping"
        asking = await made.connect(made.web_port, await made.context(NOTIFY))
        contained = await made.contain()
        assert (contained["exit"], contained["enforced"], contained["closed"]) == (0, 3, {})
        assert len(contained["cannot_close"]) == 1
        reply = await asking.ask("GET", "/items")
        assert (reply.status, reply.code) == (403, "CALLER_CONTAINED"), "on the connection that it had"
        idle.writer.write(b"ping")
        assert await asyncio.wait_for(idle.reader.read(100), 10) == b"ping", "what is open lives until its age"


@needs_root
async def test_a_contained_workload_with_a_sidecar_neither_calls_nor_serves():
    async with world() as made:
        await made.mesh.load.once()
        caller = await made.contain(OTHER)
        assert caller["exit"] == 0
        with pytest.raises((ConnectionError, TimeoutError, OSError)):
            await made.mesh.load.once()
        await made.release(caller["id"])

        async def calls_again() -> bool:
            with contextlib.suppress(OSError, TimeoutError):
                await made.mesh.load.once()
                return True
            return False

        await made.until(calls_again)
        tls = await made.context(NOTIFY)
        open_one = await made.connect(made.web_port, tls)
        assert (await open_one.ask("GET", "/items")).status == 200
        service = await made.contain(DB)
        assert service["exit"] == 0
        assert await asyncio.wait_for(_end(open_one), 10), "all connections of its sidecar end"
        reply = await (await made.connect(made.web_port, tls)).ask("GET", "/items")
        assert (reply.status, reply.code) == (403, "IDENTITY_CONTAINED")
        await made.release(service["id"])

        async def serves_again() -> bool:
            with contextlib.suppress(OSError, EOFError):
                return (await (await made.connect(made.web_port, tls)).ask("GET", "/items")).status == 200
            return False

        await made.until(serves_again)


async def _end(connection) -> bool:
    with contextlib.suppress(ConnectionError):
        while await connection.reader.read(1000):
            pass
    return True
