"""http_challenge: a name proves itself by what HTTP shows there; a hostile name gains nothing."""

import asyncio
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.attest.node import NodeContext, ProverContext
from eastwest.errors import Error, Exhausted, FailedPrecondition, InvalidInput, PermissionDenied, Unavailable
from eastwest.plugins.http_challenge import HttpChallengeAttestor, path_of
from eastwest.plugins.http_challenge_prover import HttpChallengeProver
from eastwest.plugins.http_fetch import AddressPolicy, fetch
from eastwest.process.plugins import NODE_ATTESTORS, NODE_PROVERS, load_plugin
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import TrustDomain
from eastwest.testing.clock import FakeClock
from eastwest.testing.entropy import SeededEntropy

TD = TrustDomain("saas.example")
LOOPBACK = ["127.0.0.0/8", "::1/128"]
ANY = ["[a-z0-9.-]+"]
# A name of this machine that is not localhost; where it is unknown to the resolver, tests of the fetch are told so.
HOST = socket.gethostname().lower()


def attestor(**options: object) -> HttpChallengeAttestor:
    context = NodeContext(
        trust_domain=TD,
        clock=FakeClock(),
        entropy=SeededEntropy(),
        tokens=None,  # type: ignore[arg-type] - a host name needs no tokens
        bundle=lambda: Bundle(TD),
    )
    table = {"allowed_dns_patterns": ANY, **options}
    return load_plugin(NODE_ATTESTORS, "http_challenge", table, context, "server.toml: node_attestors.http_challenge")


def prover(**options: object) -> HttpChallengeProver:
    given_ = ProverContext(trust_domain=TD, clock=FakeClock(), entropy=SeededEntropy())
    return load_plugin(NODE_PROVERS, "http_challenge", options, given_, "agent.toml: node_provers.http_challenge")


class Asked:
    """An agent whose prover answers."""

    address = "192.0.2.1"
    spki = b"key"

    def __init__(self, answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._answer = answer
        self.asked = 0

    async def __call__(self, question: bytes, /) -> bytes:
        self.asked += 1
        return await self._answer(question)


async def silent(_question: bytes) -> bytes:
    return b"\n"


def payload(hostname: str = HOST, agentname: str = "default", port: int = 80) -> bytes:
    return json.dumps({"hostname": hostname, "agentname": agentname, "port": port}).encode()


@pytest.fixture
async def page() -> AsyncIterator[Callable[[bytes], Awaitable[int]]]:
    """A server on loopback that gives every caller the same bytes; the port of each."""
    servers = []

    async def serve(raw: bytes) -> int:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(raw)
            await writer.drain()
            writer.close()

        servers.append(await asyncio.start_server(answer, "127.0.0.1", 0))
        return servers[-1].sockets[0].getsockname()[1]

    yield serve
    for server in servers:
        server.close()


async def get(port: int, path: str, limit: int = 64, seconds: float = 5) -> bytes:
    return await fetch("localhost", port, path, AddressPolicy.parse(LOOPBACK), limit, seconds)


async def test_a_name_that_shows_the_nonce_comes_in() -> None:
    shows = prover(hostname=HOST.upper(), agentname="blue")
    judge = attestor(allowed_networks=LOOPBACK)
    try:
        evidence = await shows.payload()
        port = json.loads(evidence)["port"]
        asked = Asked(shows.answer)
        attested = await judge.attest(evidence, asked)
        assert attested.path == f"/spire/agent/http_challenge/{HOST}"
        assert {str(selector) for selector in attested.selectors} == {f"http_challenge:hostname:{HOST}"}
        assert not attested.can_reattest, "trusted on first use"
        with pytest.raises(PermissionDenied, match="status 404"):
            await get(port, path_of("green"))
        # The nonce of one attestation is worth nothing in the next.
        await shows.finish()
        with pytest.raises(Unavailable, match="nothing answers"):
            await get(port, path_of("blue"))
    finally:
        await shows.finish()


async def test_without_tofu_a_name_attests_again() -> None:
    assert not attestor(tofu=True)._options.required_port
    for options in ({"required_port": 80}, {"allow_non_root_ports": False}):
        assert attestor(tofu=False, **options)


async def test_another_nonce_is_refused(page) -> None:
    body = b"somebody else's nonce\n"
    port = await page(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    with pytest.raises(PermissionDenied, match="does not show the challenge"):
        await attestor(allowed_networks=LOOPBACK).attest(payload(port=port), Asked(silent))


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n", "status 302"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 65\r\n\r\n" + b"a" * 65, "more than 64 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n" + b"a" * 4096, "more than 64 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", "does not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 70_000 + b"\r\n\r\n", "does not answer in HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not answer in HTTP"),
        (b"", "does not answer in HTTP"),
    ],
)
async def test_answers_that_will_not_do(page, raw: bytes, told: str) -> None:
    port = await page(raw)
    with pytest.raises(PermissionDenied, match=told):
        await get(port, "/")


async def test_forms_of_a_good_answer(page) -> None:
    for raw in (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nab",
    ):
        assert await get(await page(raw), "/") == b"ab"


async def test_silence_is_waited_for_only_so_long() -> None:
    async def never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            writer.close()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    with pytest.raises(Unavailable, match="did not answer within"):
        await get(server.sockets[0].getsockname()[1], "/", seconds=0.2)
    server.close()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "0.0.0.0",
        "::",
        "169.254.169.254",
        "fe80::1",
        "fd00:ec2::254",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "240.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_addresses_that_are_not_asked(address: str) -> None:
    assert not AddressPolicy().admits(ipaddress.ip_address(address))


def test_addresses_that_are() -> None:
    for address in ("10.1.2.3", "192.168.1.1", "172.16.0.9", "203.0.113.5", "2001:db8::1", "fd12::1", "93.184.216.34"):
        assert AddressPolicy().admits(ipaddress.ip_address(address)), address
    only = AddressPolicy.parse(["10.0.0.0/8"])
    assert only.admits(ipaddress.ip_address("10.1.2.3"))
    assert only.admits(ipaddress.ip_address("::ffff:10.1.2.3"))
    assert not only.admits(ipaddress.ip_address("192.168.1.1"))


async def test_a_name_of_this_machine_is_not_asked_by_default() -> None:
    with pytest.raises(PermissionDenied, match="no address that this server asks"):
        await fetch("localhost", 1, "/", AddressPolicy(), 64, 5)


async def test_an_unknown_name_is_told() -> None:
    with pytest.raises(Unavailable, match="is not found"):
        await fetch("no-such-host.invalid", 80, "/", AddressPolicy(), 64, 30)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (payload("localhost"), "localhost is no name"),
        (payload("a.localhost"), "localhost is no name"),
        (payload("10.0.0.1"), "not a DNS name"),
        (payload("[::1]"), "not a DNS name"),
        (payload("a/b"), "not a DNS name"),
        (payload("a:80"), "not a DNS name"),
        (payload("a@b"), "not a DNS name"),
        (payload("a b"), "not a DNS name"),
        (payload("a.example."), "not a DNS name"),
        (payload("-a.example"), "not a DNS name"),
        (payload("a..example"), "not a DNS name"),
        (payload(""), "not a DNS name"),
        (payload("x" * 64 + ".example"), "not a DNS name"),
        (payload(".".join(["a" * 60] * 5)), "not a DNS name"),
        (payload("a\r\nhost: b"), "not a DNS name"),
        (payload("p1.shop.example.evil.example"), "not allowed here"),
        (payload("evil-p1.shop.example"), "not allowed here"),
        (payload("p1.shop.example", port=0), "not one"),
        (payload("p1.shop.example", port=70000), "not one"),
        (payload("p1.shop.example", port=-1), "not one"),
        (payload("p1.shop.example", "../x"), "agent name"),
        (payload("p1.shop.example", "a.b"), "agent name"),
        (payload("p1.shop.example", ""), "agent name"),
        (payload("p1.shop.example", "a" * 33), "agent name"),
        (b"", "not of SPIRE's form"),
        (b"[]", "not of SPIRE's form"),
        (b'{"hostname":"a"}', "not of SPIRE's form"),
        (b"\xff", "not of SPIRE's form"),
    ],
)
async def test_what_is_refused_before_anything_is_asked(sent: bytes, told: str) -> None:
    asked = Asked(silent)
    with pytest.raises((InvalidInput, PermissionDenied), match=told):
        await attestor(allowed_dns_patterns=[r"p[0-9]\.shop\.example"]).attest(sent, asked)
    assert asked.asked == 0


async def test_ports_can_be_demanded() -> None:
    for options, port in (({"required_port": 80}, 8080), ({"allow_non_root_ports": False}, 1024)):
        with pytest.raises(InvalidInput, match=f"port {port} is not allowed"):
            await attestor(**options).attest(payload(port=port), Asked(silent))


async def test_only_so_many_fetches_at_a_time(page) -> None:
    judge = attestor(allowed_networks=LOOPBACK)
    judge.most_fetches = 0
    port = await page(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(Exhausted):
        await judge.attest(payload(port=port), Asked(silent))
    judge.most_fetches = 1
    for _ in range(2):  # a fetch gives its place back
        with pytest.raises(PermissionDenied, match="does not show"):
            await judge.attest(payload(port=port), Asked(silent))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"allowed_dns_patterns": []}, "allowed_dns_patterns is empty"),
        ({"allowed_dns_patterns": ["("]}, "no regular expression"),
        ({"allowed_dns_patterns": "x"}, r"allowed_dns_patterns: Expected `array`"),
        ({"allowed_dns_pattern": ["x"]}, "did you mean 'allowed_dns_patterns'"),
        ({"required_port": 0}, "required_port is 0"),
        ({"required_port": 8080, "allow_non_root_ports": False}, "forbids it"),
        ({"tofu": False}, "any user of a node could open the port"),
        ({"tofu": False, "required_port": 8080}, "any user of a node could open the port"),
        ({"allowed_networks": ["10.0.0.1/8"]}, "has host bits set"),
        ({"allowed_networks": ["example"]}, "write networks like"),
    ],
)
def test_each_wrong_option_of_the_server_is_told(options: dict, told: str) -> None:
    with pytest.raises(Error, match=told):
        attestor(**options)


@pytest.mark.parametrize(
    ("options", "told"), [({"port": 70000}, "port is 70000"), ({"prot": 1}, "did you mean 'port'")]
)
def test_each_wrong_option_of_the_agent_is_told(options: dict, told: str) -> None:
    with pytest.raises(Error, match=told):
        prover(**options)


async def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FailedPrecondition, match=f"cannot listen on port {port}"):
            await prover(port=port, address="127.0.0.1").payload()


async def test_the_agent_shows_the_nonce_and_nothing_else() -> None:
    shows = prover(hostname="h", address="127.0.0.1", advertised_port=80)
    evidence = json.loads(await shows.payload())
    assert evidence == {"hostname": "h", "agentname": "default", "port": 80}
    assert shows._server is not None
    port = shows._server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(PermissionDenied, match="404"):  # before the server has asked there is nothing to show
            await get(port, path_of("default"))
        for bad in (b"", b"{}", b'{"nonce":1}', b'{"nonce":"a\\r\\nSet-Cookie: x"}', b'{"nonce":"\\u00e9"}'):
            with pytest.raises(InvalidInput):
                await shows.answer(bad)
        assert await shows.answer(b'{"nonce":"n1"}') == b"\n"
        assert await get(port, path_of("default")) == b"n1\n"
        for path in ("/", path_of("other"), path_of("default") + "/"):
            with pytest.raises(PermissionDenied, match="404"):
                await get(port, path)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * 20_000)
        assert await reader.read() == b""
        writer.close()
    finally:
        await shows.finish()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=80).map(payload) | st.integers().map(lambda n: payload(port=n)))
async def test_whatever_is_sent_is_refused_in_our_words(data: bytes) -> None:
    with pytest.raises((InvalidInput, PermissionDenied)):
        await attestor(allowed_dns_patterns=["never"]).attest(data, Asked(silent))
