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
from eastwest.rpc.tls import certificate_id, client_context, server_context

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


async def gate(call):
    """Knows agents, and no workloads, as the server's does."""
    der = call.peer_certificate
    caller = None if der is None else certificate_id(der)
    if caller is not None and caller.path.startswith("/agent"):
        call.prove(str(caller))


@contextlib.asynccontextmanager
async def serving():
    release = asyncio.Event()

    async def check(request, _call):
        if request.service == "wait":
            await release.wait()
        return pb.HealthCheckResponse()

    listener = Listener([Service(HEALTH, {"Check": check}, guard=gate)])
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


async def connect(port, *, who="", proven=False, source="127.0.0.1"):
    """A greeted HTTP/2 connection over TLS; ``proven``: it has called, as ``who`` or as an agent."""
    who = who or ("/agent" if proven else "")
    tls = client_context([AUTHORITY.root], *(AUTHORITY.leaf(f"spiffe://td.test{who}") if who else ()))
    client = RawClient(*await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=(source, 0)))
    client.send(GREETING)
    await client.until(lambda: client.settings)
    if not client.settings:
        await client.close()
        raise ConnectionResetError("not let in")
    if proven:
        client.send(client.call(1))
        await client.ended(1)
        assert client.answers[1].status == 0
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
        await refused(port, who="/agent")
        await refused(port, who="/workload")
        elsewhere = await connect(port, source=OTHER)
        await strangers.pop(0).close()
        agents.append(await eventually(lambda: connect(port, proven=True)))
        assert not any(client.closed for client in (*agents, *strangers))
        # Once they have had their time, the next one takes the place of the first.
        monkeypatch.setattr(limits, "UNDISTURBED_SECONDS", 0.0)
        strangers += [await connect(port, who="/workload") for _ in range(2)]
        agents.append(await connect(port, proven=True))
        assert await strangers[0].gone() is None
        assert await strangers[1].gone() is None  # whose handshake had not ended
        await still_there(*strangers[2:], elsewhere, *agents)
        for client in (*agents, *strangers, elsewhere):
            await client.close()

    run(test)


def test_a_crowd_pushes_out_nobody_but_itself(run, monkeypatch):
    """Strangers that hold all their places open the moment somebody else wants one, however young they are."""
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 8)

    async def test(port):
        crowd = [await connect(port, source=OTHER) for _ in range(2)]
        crowd += [await connect(port, who="/workload", source=OTHER) for _ in range(2)]
        await refused(port, source=OTHER)
        stranger = await connect(port)
        agents = [await connect(port, proven=True) for _ in range(4)]
        assert await crowd[0].gone() is None
        await still_there(stranger, *crowd[2:], *agents)
        for client in (*crowd, stranger, *agents):
            await client.close()

    run(test)


def test_one_caller_has_few_connections_however_good_its_certificate(run, monkeypatch):
    monkeypatch.setattr(limits, "MAX_CONNECTIONS_OF_CALLER", 2)

    async def test(port):
        one = [await connect(port, proven=True) for _ in range(2)]
        other = await connect(port, who="/agent/other", proven=True)
        one.append(await connect(port, proven=True))
        assert await one[0].gone() is None
        await still_there(*one[1:], other)
        for client in (*one, other):
            await client.close()

    run(test)


def test_who_proves_nothing_is_left_after_a_while_whatever_it_calls(run, monkeypatch):
    monkeypatch.setattr(limits, "UNPROVEN_SECONDS", 0.3)
    monkeypatch.setattr(limits, "IDLE_SECONDS", 0.1)

    async def test(port):
        stranger, workload = await connect(port), await connect(port, who="/workload")
        agent = await connect(port, proven=True)
        for client in (stranger, workload, agent):
            client.send(client.call(3, pb.HealthCheckRequest(service="wait").SerializeToString()))
        for client in (stranger, workload):
            assert await client.gone() == frames.NO_ERROR
        await still_there(agent)
        for client in (stranger, workload, agent):
            await client.close()

    run(test)


def test_a_request_that_does_not_come_is_not_waited_for(run, monkeypatch):
    monkeypatch.setattr(limits, "REQUEST_SECONDS", 0.1)

    async def test(port):
        for part in (b"", b"\0\0\0", b"\0\0\0\0\x09begun"):
            client = await connect(port, proven=True)
            client.send(client.headers(3), frames.frame(frames.DATA, 0, 3, part))
            await client.ended(3)
            assert client.answers[3].status == 4, part
            await still_there(client)
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
        silent_agent = await connect(port, who="/agent")
        once, agent = await connect(port, who="/workload"), await connect(port, proven=True)
        waiting = await connect(port)
        once.send(once.call(1))
        await once.ended(1)
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
        assert admission.as_many_as_possible() == most


@pytest.fixture
def accepted():
    """A socket that was accepted, from loopback."""
    listening = socket.create_server(("127.0.0.1", 0))
    with listening, socket.create_connection(listening.getsockname()), listening.accept()[0] as sock:
        yield sock


def counted(connections):
    known = {source: len(places) for source, places in connections._known.items()}
    strangers = connections._strangers
    assert strangers.total == sum(map(len, strangers._places.values()))
    assert strangers._most == max(map(len, strangers._places.values()), default=0)
    return connections._all, strangers.total, known, {s: n for s, n in connections._held.items() if n}


def test_a_place_is_given_back_once(accepted):
    connections = admission.Connections(2)
    place = connections.admit(accepted)
    assert connections.admit(accepted) is None, "one stranger is half of two"
    place.prove("spiffe://td.test/a")
    place.prove("spiffe://td.test/a")
    second = connections.admit(accepted)
    assert connections.admit(accepted) is None
    assert counted(connections) == (2, 1, {"spiffe://td.test/a": 1}, {})
    for _ in range(2):
        place.release()
        second.release()
    assert counted(connections) == (0, 0, {}, {})


def test_what_is_held_counts_for_the_caller_whatever_its_connections(accepted, monkeypatch):
    monkeypatch.setattr(limits, "HELD_FREELY", 100)
    monkeypatch.setattr(limits, "HELD_OF_SOURCE", 1000)
    monkeypatch.setattr(limits, "HELD_OF_CALLER", 2000)
    connections = admission.Connections(100)
    one, two, three = (connections.admit(accepted) for _ in range(3))
    assert one.hold(900)
    assert not two.hold(101)
    assert two.hold(100), "a little may always be held"
    assert not two.hold(1)
    one.let_go(100)
    assert one.hold(100)
    assert not one.hold(1)
    one.prove("a")
    assert (two.hold(900), one.hold(1100), one.hold(1)) == (True, True, False)
    three.prove("a")
    assert (three.hold(100), three.hold(1)) == (True, False)
    one.release()
    assert three.hold(1)
    one.let_go(2000)  # its calls end after it
    for place in (two, three):
        place.release()
    assert counted(connections) == (0, 0, {}, {})
    assert connections._held_of_strangers == 0


def test_strangers_together_have_little_held(accepted, monkeypatch):
    monkeypatch.setattr(limits, "HELD_FREELY", 10)
    monkeypatch.setattr(limits, "HELD_OF_SOURCE", 100)
    monkeypatch.setattr(limits, "HELD_OF_STRANGERS", 150)
    sources = iter(["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    monkeypatch.setattr(admission, "_source", lambda _: next(sources))
    connections = admission.Connections(100)
    one, two, three = (connections.admit(accepted) for _ in range(3))
    assert [one.hold(100), two.hold(51), two.hold(50), three.hold(11), three.hold(10)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    one.prove("a")
    assert three.hold(90)


def test_a_caller_for_whom_too_much_is_held_gets_no_more(run, monkeypatch):
    monkeypatch.setattr(limits, "HELD_OF_SOURCE", 0)
    monkeypatch.setattr(limits, "HELD_FREELY", 5 * limits.CALL_COST)
    waiting = pb.HealthCheckRequest(service="wait").SerializeToString()

    async def test(port):
        client = await connect(port)
        large = client.data(1, bytes(10_000), end=False, length=20_000)
        client.send(
            client.headers(1), large, client.headers(3), client.data(3, bytes(10_000), end=False, length=20_000)
        )
        await client.ended(3)
        assert client.answers[3].status == 8
        client.send(*(client.call(stream, waiting) for stream in (5, 7)))
        await client.ended(7)
        assert (client.answers[7].reset, client.answers[5].ended) == (frames.REFUSED_STREAM, False)
        client.send(frames.rst_stream(5, frames.CANCEL), frames.rst_stream(1, frames.CANCEL))
        await still_there(client)
        client.send(client.call(11))
        await client.ended(11)
        assert client.answers[11].status == 0
        await client.close()

    run(test)


async def still_there(*clients):
    for client in clients:
        before = len(client.pongs)
        client.send(frames.frame(frames.PING, 0, 0, bytes(8)))
        await client.until(lambda client=client, before=before: len(client.pongs) > before)
        assert not client.closed


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
