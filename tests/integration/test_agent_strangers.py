"""Who is calling is the kernel's word: a connection stays its opener's, and dies with it."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agent_authority import FakeAuthority, running, settings
from agent_workload import HEADER, ME, SERVICE

from eastwest import errors
from eastwest.api.spiffe.workload import workload_pb2 as api
from eastwest.rpc.client import Channel, method

NOBODY = 65534
# Connects as the given user, hands the connection over, and stays until its input ends.
OPENER = """
import os, socket, sys
fd, path, uid = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if uid >= 0:
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
connection = socket.socket(socket.AF_UNIX)
connection.connect(path)
socket.send_fds(socket.socket(fileno=fd), [b"x"], [connection.fileno()])
connection.close()
sys.stdin.read()
"""


class GivenChannel(Channel):
    """A channel over a connection that somebody else opened."""

    def __init__(self, given: socket.socket) -> None:
        super().__init__(path="given")
        self._given = given

    async def _create_connection(self) -> Any:
        _, protocol = await self._loop.create_unix_connection(self._protocol_factory, sock=self._given)
        return protocol

    async def token(self) -> api.JWTSVIDResponse:
        request = api.JWTSVIDRequest(audience=["x"])
        return await self.unary(method(SERVICE, "FetchJWTSVID"), request, metadata=HEADER)


@pytest.fixture
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "d"


@pytest.fixture
async def authority() -> AsyncIterator[FakeAuthority]:
    authority = FakeAuthority()
    await authority.start()
    yield authority
    await authority.stop()


@asynccontextmanager
async def opened_by_another(path: Path, uid: int) -> AsyncIterator[tuple[GivenChannel, asyncio.subprocess.Process]]:
    ours, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        OPENER,
        str(theirs.fileno()),
        str(path),
        str(uid),
        stdin=subprocess.PIPE,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    with ours:
        _, (fd,), _, _ = await asyncio.to_thread(socket.recv_fds, ours, 1, 1)
    channel = GivenChannel(socket.socket(fileno=fd))
    try:
        yield channel, process
    finally:
        channel.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_connection_dies_with_its_opener(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config), opened_by_another(config.paths.socket, -1) as (channel, opener):
        assert (await channel.token()).svids[0].spiffe_id == "spiffe://saas.example/shop"
        opener.kill()
        await opener.wait()
        with pytest.raises(errors.Unavailable):
            await channel.token()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_users_process_has_no_share_in_ours(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config), opened_by_another(config.paths.socket, NOBODY) as (channel, _):
        with pytest.raises(errors.PermissionDenied, match="no identity issued"):
            await channel.token()
        authority.put("theirs", f"unix:uid:{NOBODY}")
        async with asyncio.timeout(10):
            await authority.until(lambda: authority.acks[-1].number == authority.number)
        assert (await channel.token()).svids[0].spiffe_id == "spiffe://saas.example/theirs"
