"""Which connections may be, and for how long: on asyncio's loop and on uvloop, which runs the product."""

import asyncio
import contextlib
import errno
import socket
import ssl

import pytest
import uvloop
from http2_client import GREETING, RawClient
from rpc_authority import Authority

from eastwest.api.grpc.health.v1 import health_pb2 as pb
from eastwest.rpc import accepting, admission, frames, limits
from eastwest.rpc.service import Listener, Service
from eastwest.rpc.tls import client_context, server_context

HEALTH = pb.DESCRIPTOR.services_by_name["Health"]
AUTHORITY = Authority()
OTHER = "127.0.0.2"


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Runs a coroutine function with a served port."""

    def work(test):
        async def main():
            async with serving() as port:
                async with asyncio.timeout(20):
                    await test(port)

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main())

    return work


@contextlib.asynccontextmanager
async def serving():
    release = asyncio.Event()

    async def check(request, _call):
        if request.service == "wait":
            await release.wait()
        return pb.HealthCheckResponse()

    listener = Listener([Service(HEALTH, {"Check": check})])
    identity = AUTHORITY.leaf("spiffe://td.test/spire/server")
    await listener.listen_tcp("127.0.0.1", 0, server_context(*identity, [AUTHORITY.root]))
    try:
        yield listener.port
    finally:
        release.set()
        await listener.close()


async def knock(port, source="127.0.0.1"):
    """A TCP connection that says nothing; whether it was let in shows in ``let_in``."""
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))


async def connect(port, *, proven=False, source="127.0.0.1"):
    """A greeted HTTP/2 connection over TLS."""
    tls = client_context([AUTHORITY.root], *(AUTHORITY.leaf("spiffe://td.test/agent") if proven else ()))
    client = RawClient(*await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=(source, 0)))
    client.send(GREETING)
    await client.until(lambda: client.settings)
    if not client.settings:
        await client.close()
        raise ConnectionResetError("not let in")
    return client


async def refused(port, **how):
    with pytest.raises((OSError, ssl.SSLError)):
        await connect(port, **how)


def test_strangers_of_one_address_have_few_connections(run, monkeypatch):
    monkeypatch.setattr(limits, "MAX_UNPROVEN_OF_SOURCE", 3)

    async def test(port):
        agents = [await connect(port, proven=True) for _ in range(5)]
        strangers = [await connect(port) for _ in range(2)]
        strangers.append(RawClient(*await knock(port)))  # in the middle of a handshake
        await refused(port)
        await refused(port, proven=True)
        elsewhere = await connect(port, source=OTHER)
        await strangers.pop(0).close()
        agents.append(await eventually(lambda: connect(port, proven=True)))
        for client in (*agents, *strangers, elsewhere):
            await client.close()

    run(test)


def test_strangers_leave_half_of_all_places(run, monkeypatch):
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 4)

    async def test(port):
        clients = [await connect(port, proven=True), await connect(port), await connect(port, source=OTHER)]
        await refused(port, source="127.0.0.3")
        await clients.pop().close()
        clients.append(await eventually(lambda: connect(port, proven=True)))
        clients.append(await connect(port, proven=True))
        await refused(port, proven=True)
        await clients.pop().close()
        clients.append(await eventually(lambda: connect(port, proven=True)))
        for client in clients:
            await client.close()

    run(test)


def test_a_handshake_that_does_not_end_gives_its_place_back(run, monkeypatch):
    monkeypatch.setattr(limits, "HANDSHAKE_SECONDS", 0.1)
    monkeypatch.setattr(limits, "MAX_UNPROVEN_OF_SOURCE", 1)

    async def test(port):
        reader, writer = await knock(port)
        assert await reader.read() == b""
        writer.close()
        await (await eventually(lambda: connect(port))).close()
        reader, writer = await knock(port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        await (await eventually(lambda: connect(port))).close()

    run(test)


def test_who_calls_nothing_is_left(run, monkeypatch):
    monkeypatch.setattr(limits, "IDLE_SECONDS", 0.2)

    async def test(port):
        silent = await connect(port)
        silent_agent = await connect(port, proven=True)
        once, agent = await connect(port), await connect(port, proven=True)
        waiting = await connect(port)
        for client in (once, agent):
            client.send(client.call(1))
            await client.ended(1)
        waiting.send(waiting.call(1, pb.HealthCheckRequest(service="wait").SerializeToString()))
        for client in (silent, silent_agent, once):
            assert await client.gone() == frames.NO_ERROR
        # Those that call, and an agent between its calls, are still there.
        for client in (waiting, agent):
            client.send(client.call(3))
            await client.ended(3)
            assert client.answers[3].status == 0
        for client in (silent, silent_agent, once, agent, waiting):
            await client.close()

    run(test)


async def test_a_unix_socket_drops_who_calls_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "IDLE_SECONDS", 0.05)
    listener = Listener([])
    await listener.listen_unix(tmp_path / "s", 0o600)
    client = await RawClient.connect(tmp_path / "s")
    assert await client.gone() == frames.NO_ERROR
    await client.close()
    await listener.close()


async def test_accepting_goes_on_when_descriptors_were_short(monkeypatch):
    """The kernel's refusal comes from a loop that has none left for a moment; nothing spins meanwhile."""
    monkeypatch.setattr(accepting, "PAUSE_SECONDS", 0.05)
    loop, tries = asyncio.get_running_loop(), []
    real = loop.sock_accept

    async def short(sock):
        tries.append(loop.time())
        if len(tries) <= 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return await real(sock)

    monkeypatch.setattr(loop, "sock_accept", short)
    async with serving() as port:
        await (await connect(port)).close()
    assert tries[2] - tries[0] >= 0.08


def test_a_host_of_ipv6_is_its_64():
    def source(address):
        class Peer:
            def getpeername(self):
                return (address, 1, 0, 0)

        return admission._source(Peer())

    assert source("2001:db8:1:2:3:4:5:6") == source("2001:db8:1:2::9") == "2001:db8:1:2::/64"
    assert source("2001:db8:1:3::1") != source("2001:db8:1:2::1")
    assert source("::ffff:10.1.2.3") == "10.1.2.3"
    assert source("fe80::1%eth0") == "fe80::/64"


def test_places_follow_the_descriptors_that_the_process_may_have(monkeypatch):
    import resource

    for soft, most in ((1024, 768), (300, 150), (10**6, limits.MAX_CONNECTIONS), (resource.RLIM_INFINITY, 20_000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert admission._as_many_as_possible() == most


async def test_a_place_is_given_back_once():
    listening = socket.create_server(("127.0.0.1", 0))
    with listening, socket.create_connection(listening.getsockname()), listening.accept()[0] as sock:
        connections = admission.Connections(2)
        place = connections.admit(sock)
        assert connections.admit(sock) is None, "one stranger is half of two"
        place.prove()
        place.prove()
        second = connections.admit(sock)
        assert connections.admit(sock) is None
        for _ in range(2):
            place.release()
            second.release()
        assert (connections._all, connections._unproven, dict(connections._by_source)) == (0, 0, {})


async def eventually(attempt):
    """What succeeds once the server has seen that a place is free."""
    while True:
        try:
            return await attempt()
        except OSError:
            await asyncio.sleep(0.01)


def test_users_of_a_unix_socket_leave_root_its_way_in(monkeypatch):
    uids = iter([1001, 1002, 1003, 0])
    monkeypatch.setattr(admission, "peer_credentials", lambda _: (1, next(uids), 1))
    ours, other = socket.socketpair()
    with ours, other:
        connections = admission.Connections(2)
        assert [connections.admit(ours) is not None for _ in range(4)] == [True, True, False, True]
