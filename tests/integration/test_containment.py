"""One identity is cut off through real processes: what it has open ends, what it begins is refused, others go on."""

import asyncio
import contextlib
import json
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
from agent_workload import first, ids, stream
from containment_world import DB, NEIGHBOUR, NOTIFY, OTHER, SIMULATED, ContainmentWorld
from envoy_mesh import Http
from grpclib.client import Channel
from grpclib.const import Cardinality

from eastwest.agent import netlink
from eastwest.api.grpc.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from eastwest.cli.containment import Api
from eastwest.errors import Error

pytestmark = pytest.mark.skipif(bool(netlink.can_destroy()), reason="connections cannot be closed by this user")


@pytest.fixture
async def world() -> AsyncIterator[ContainmentWorld]:
    with tempfile.TemporaryDirectory(prefix="ew-") as place:
        Path(place).chmod(0o755)
        made = ContainmentWorld(Path(place))
        try:
            await made.start()
            yield made
        finally:
            await made.stop()


class Open:
    """One connection of each kind that one identity has open; ``alive`` tells which of them still work."""

    def __init__(self, world: ContainmentWorld, context: ssl.SSLContext) -> None:
        self.world, self.tls = world, context
        self.ends: dict[str, asyncio.Task[None]] = {}
        self._channel: Channel | None = None
        self.keep_alive: Http | None = None

    async def start(self) -> None:
        world, tls = self.world, self.tls
        idle = await world.connect(world.db_port, tls)
        idle.writer.write(b"ping")
        assert await asyncio.wait_for(idle.reader.read(100), 10) == b"ping"
        self._watch("idle tcp", idle)
        socket = await world.connect(world.db_port, tls)
        socket.writer.write(b"GET /chat HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
        assert b"websocket" in await asyncio.wait_for(socket.reader.read(200), 10)
        self._watch("websocket", socket)
        self._watch("silent tcp", await world.connect(world.db_port, tls))
        self.keep_alive = await world.connect(world.web_port, tls)
        assert (await self.keep_alive.ask("GET", "/items")).status == 200
        self._watch("keep-alive", self.keep_alive)
        streaming = await world.connect(world.web_port, tls)
        streaming.writer.write(b"GET /stream HTTP/1.1\r\nhost: svc\r\n\r\n")
        assert b"200" in await asyncio.wait_for(streaming.reader.readline(), 10)
        self._watch("http stream", streaming)
        tls.set_alpn_protocols(["h2"])  # the others have begun
        self._channel = Channel("127.0.0.1", world.grpc_port, ssl=tls)
        told: asyncio.Event = asyncio.Event()
        self.ends["grpc stream"] = asyncio.create_task(self._grpc(self._channel, told))
        await asyncio.wait_for(told.wait(), 10)

    async def _grpc(self, channel: Channel, told: asyncio.Event) -> None:
        """Two streams on one connection; ends with either."""
        kind = ("/grpc.health.v1.Health/Watch", Cardinality.UNARY_STREAM, HealthCheckRequest, HealthCheckResponse)
        async with channel.request(*kind) as one, channel.request(*kind) as other:
            for each in (one, other):
                await each.send_message(HealthCheckRequest(service=""), end=True)
                await each.recv_message()
            told.set()
            await asyncio.gather(*(each.recv_message() for each in (one, other)), return_exceptions=True)

    def _watch(self, name: str, connection: Http) -> None:
        async def until_the_end() -> None:
            try:
                while await connection.reader.read(1000):
                    pass
            except ConnectionError:
                pass

        if name != "keep-alive":
            self.ends[name] = asyncio.create_task(until_the_end())

    @property
    def alive(self) -> set[str]:
        return {name for name, task in self.ends.items() if not task.done()}

    async def ended(self, seconds: float) -> None:
        _, left = await asyncio.wait(self.ends.values(), timeout=seconds)
        assert not left, f"still open after {seconds} s: {self.alive}"

    async def stop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        for task in self.ends.values():
            task.cancel()
        await asyncio.gather(*self.ends.values(), return_exceptions=True)


async def test_what_is_open_ends_what_is_new_is_refused_and_others_go_on(world: ContainmentWorld) -> None:
    notify = await world.context(NOTIFY)
    theirs, others = Open(world, await world.context(NOTIFY)), Open(world, await world.context(NEIGHBOUR))
    await theirs.start()
    await others.start()
    await asyncio.sleep(1.5)  # a request that lasts says once a second whose it is
    await selectors_mean(world)
    async with stream(world.agent_socket) as svids:
        assert len((await svids.next()).svids) == 2
        made = await world.contain()
        assert (made["exit"], made["behind"], made["enforced"], made["points"]) == (0, [], 3, 3)
        after = await svids.next()
        assert ids(after) == [NEIGHBOUR], "its identity is not given any more, the others of the process are"
    assert theirs.keep_alive is not None
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(theirs.keep_alive.reader.read(1000), 7) == b"", "its idle connection ends too"
    await theirs.ended(7)  # a session that never said anything tells whose it is every five seconds
    assert others.alive == set(others.ends), "a neighbour lost a connection"
    assert others.keep_alive is not None
    assert (await others.keep_alive.ask("GET", "/items")).status == 200
    await refused(world, notify)
    await nothing_is_issued(world)
    asked = await world.eastwest("explain", "--caller", NOTIFY, "--operation", "web:items:read", "--json")
    assert '"CALLER_CONTAINED"' in asked.stdout, asked.stderr
    snapshot = world.data / "server" / "containment" / f"{made['id']}.json"
    assert sha256(snapshot.read_bytes()).hexdigest() == made["evidence_sha256"]
    evidence = json.loads(snapshot.read_text())
    assert evidence["identities"][0]["owner"] == "group:shop"
    assert [point["state"] for point in evidence["points"]] == ["enforced"] * 3, "of the list before"
    await the_past_is_kept(world, made["id"])
    listed = json.loads((await world.eastwest("containment", "list", "--json")).stdout)
    assert listed["closed"] == {NOTIFY: listed["closed"][NOTIFY]}
    assert listed["closed"][NOTIFY] >= 6

    world.mesh.kill_agent()
    world.mesh.server.kill()  # whoever comes back first: both know it from their disks
    await refused(world, notify)
    world.mesh.server.start()

    async def all_back() -> bool:
        listed = json.loads((await world.eastwest("containment", "list", "--json")).stdout)
        return listed["enforced"] == 3 and not listed["behind"]

    await world.until(all_back)
    await refused(world, notify)
    await nothing_is_issued(world)
    ended = await world.release(made["id"])
    assert (ended["state"], ended["enforced"]) == ("released", 3)
    back = await world.connect(world.web_port, notify)
    assert (await back.ask("GET", "/items")).status == 200
    assert NOTIFY in ids(await first(world.agent_socket))
    assert others.alive == set(others.ends)
    await theirs.stop()
    await others.stop()


async def refused(world: ContainmentWorld, tls: ssl.SSLContext) -> None:
    """By HTTP with the code, by TCP before the service hears of it; and each is a row of the class ``contained``."""
    asking = await world.connect(world.web_port, tls)
    reply = await asking.ask("GET", "/items")
    assert (reply.status, reply.code) == (403, "CALLER_CONTAINED")
    saying = await world.connect(world.db_port, tls)
    saying.writer.write(b"ping")
    with contextlib.suppress(ConnectionError):  # ended by the kernel before Envoy had said goodbye
        assert await asyncio.wait_for(saying.reader.read(100), 10) == b""


async def nothing_is_issued(world: ContainmentWorld) -> None:
    done = await world.eastwest("jwt", "mint", NOTIFY, "--audience", "x")
    assert done.returncode == 1, done.stdout
    assert "IDENTITY_CONTAINED" in done.stderr
    assert ids(await first(world.agent_socket)) == [NEIGHBOUR]


async def the_past_is_kept(world: ContainmentWorld, containment: str) -> None:
    """Whom it called and what certificates of it live: looked up once the deny was on its way, and in the log."""
    file = world.data / "server" / "containment" / f"{containment}-past.json"

    async def told() -> str:
        done = await world.eastwest("log", "search", "--kind", "containment.evidence", "--json")
        return sha256(file.read_bytes()).hexdigest() if file.exists() and containment in done.stdout else ""

    await world.until(told)
    done = await world.eastwest("log", "search", "--kind", "containment.evidence", "--json")
    assert await told() in done.stdout
    past = json.loads(file.read_text())
    assert past["left_out"] == []
    assert {edge["caller"] for edge in past["calls_last_24h"]} == {NOTIFY}
    assert "web" in {edge["service"] for edge in past["calls_last_24h"]}
    assert {one["subject"] for one in past["certificates_live"]} == {NOTIFY}


async def selectors_mean(world: ContainmentWorld) -> None:
    """Who is registered there: of a node all that it may have had."""

    def resolve(selector: str) -> set[str]:
        with Api(world.data) as api:
            return {one["spiffe_id"] for one in api.ask("ResolveContainment", selector=selector)["identities"]}

    def refusal(selector: str) -> str:
        with pytest.raises(Error) as caught:
            resolve(selector)
        return str(caught.value)

    def look(node: str) -> None:
        everybody = {NOTIFY, NEIGHBOUR, OTHER, DB, SIMULATED}
        assert resolve(NOTIFY) == {NOTIFY}
        assert resolve(f"unix:path:{Path(sys.executable).resolve()}") == {NOTIFY, NEIGHBOUR}
        assert resolve("service:web") == {DB}
        for all_of in ("domain:shop", "environment:prod", f"node:{node}"):
            assert resolve(all_of) == everybody, all_of
        assert "means nobody" in refusal("unix:uid:4711")
        assert "means nobody" in refusal("domain:nowhere")
        assert "is no selector" in refusal("notify")
        assert "own identity" in refusal(node)
        assert "no node" in refusal(f"node:{node}x")

    listed = json.loads((await world.eastwest("node", "list", "--json")).stdout)
    [node] = [one["id"] for one in listed["nodes"]]
    await asyncio.to_thread(look, node)
