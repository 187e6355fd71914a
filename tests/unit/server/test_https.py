"""The listener for strangers: certificates that change under it, and callers that try to wear it out."""

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager, suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from eastwest.errors import Exhausted, FailedPrecondition, InvalidInput
from eastwest.rpc.tls import client_context
from eastwest.server.public import https
from eastwest.server.public.https import CertificateFiles, PublicListener, bounded_body
from eastwest.testing import TestCA

CA = TestCA()


async def echo(request: Request):
    try:
        body = await bounded_body(request, 100)
    except Exhausted as error:
        return PlainTextResponse(error.message, 413)
    return PlainTextResponse(f"{request.url.path} {len(body)}")


APP = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])


@asynccontextmanager
async def serving(listener):
    task = asyncio.create_task(listener.run())
    try:
        yield
    finally:
        listener.stop()
        await asyncio.wait_for(task, 10)


async def ask(port, request=b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", tls=None):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(request)
    reply = await asyncio.wait_for(reader.read(), 10)
    peer = writer.get_extra_info("ssl_object")
    certificate = peer.getpeercert(binary_form=True) if peer else None
    writer.close()
    with suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()
    return reply, certificate


def write_pair(directory, path="/web"):
    chain, key = CA.pem(*CA.svid(path))
    (directory / "tls.pem").write_bytes(chain)
    (directory / "tls.key").write_bytes(key)
    return x509.load_pem_x509_certificate(chain).serial_number


def trusting():
    context = client_context(CA.roots)
    context.set_alpn_protocols(["http/1.1"])
    # The authority of tests lives at a fixed moment, long past.
    context.verify_mode = ssl.CERT_NONE
    return context


def serial(der):
    return x509.load_der_x509_certificate(der).serial_number


async def test_plain_and_bounded():
    listener = PublicListener(APP, "x")
    port = listener.bind("127.0.0.1", 0)
    async with serving(listener):
        reply, _ = await ask(port)
        assert reply.startswith(b"HTTP/1.1 200")
        assert reply.endswith(b"/x 0")
        large = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 101\r\n\r\n" + b"x" * 101
        assert (await ask(port, large))[0].startswith(b"HTTP/1.1 413")
        chunks = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        chunks += (b"40\r\n" + b"x" * 64 + b"\r\n") * 2 + b"0\r\n\r\n"
        assert (await ask(port, chunks))[0].startswith(b"HTTP/1.1 413")


async def test_a_new_certificate_is_used_and_a_damaged_one_is_not(tmp_path):
    first = write_pair(tmp_path)
    files = CertificateFiles(tmp_path / "tls.pem", tmp_path / "tls.key")
    listener = PublicListener(APP, "x", tls=files.listening)
    port = listener.bind("127.0.0.1", 0)
    async with serving(listener):
        assert serial((await ask(port, tls=trusting()))[1]) == first
        (tmp_path / "tls.pem").write_text("half a cert")
        assert serial((await ask(port, tls=trusting()))[1]) == first
        assert "not a certificate chain" in files.problem
        (tmp_path / "tls.key").unlink()
        assert serial((await ask(port, tls=trusting()))[1]) == first
        assert "cannot be read" in files.problem
        second = write_pair(tmp_path)
        assert serial((await ask(port, tls=trusting()))[1]) == second != first
        assert files.problem is None


def test_pairs_that_cannot_be_used(tmp_path):
    def refused():
        with pytest.raises(InvalidInput) as caught:
            CertificateFiles(tmp_path / "tls.pem", tmp_path / "tls.key")
        return str(caught.value)

    assert str(tmp_path / "tls.pem") in refused()
    write_pair(tmp_path)
    _, other = CA.pem(*CA.svid("/other"))
    (tmp_path / "tls.key").write_bytes(other)
    assert "the unencrypted key that belongs to it" in refused()
    _, key = CA.svid("/web")
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (tmp_path / "tls.key").write_bytes(locked)
    assert "the unencrypted key" in refused()
    (tmp_path / "tls.pem").write_bytes(b"x" * (https.MAX_FILE_BYTES + 1))
    assert "larger than" in refused()


async def test_who_says_nothing_is_let_go(monkeypatch):
    monkeypatch.setattr(https, "FIRST_REQUEST_SECONDS", 0.05)
    listener = PublicListener(APP, "x")
    port = listener.bind("127.0.0.1", 0)
    async with serving(listener):
        for beginning in (b"", b"GET /x HTTP/1.1\r\nhost: "):
            with suppress(ConnectionError):
                assert (await ask(port, beginning))[0] == b""


async def test_a_body_that_never_ends_is_let_go(monkeypatch):
    monkeypatch.setattr(https, "MAX_AGE_SECONDS", 0.05)
    listener = PublicListener(APP, "x")
    port = listener.bind("127.0.0.1", 0)
    async with serving(listener):
        with suppress(ConnectionError):
            reply, _ = await ask(port, b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 50\r\n\r\nx")
            assert reply == b""


async def test_connections_are_bounded(monkeypatch):
    monkeypatch.setattr(https, "MAX_CONNECTIONS", 2)
    listener = PublicListener(APP, "x")
    port = listener.bind("127.0.0.1", 0)
    async with serving(listener):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        with suppress(ConnectionError):
            assert (await ask(port))[0] == b""
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        for _ in range(100):  # the server hears of the ends in its own time
            with suppress(ConnectionError):
                if (await ask(port))[0].startswith(b"HTTP/1.1 200"):
                    return
        pytest.fail("the places were not given back")


async def test_a_taken_port_and_a_cancelled_listener():
    first = PublicListener(APP, "crl")
    port = first.bind("127.0.0.1", 0)
    with pytest.raises(FailedPrecondition, match="crl_port"):
        PublicListener(APP, "crl").bind("127.0.0.1", port)
    task = asyncio.create_task(first.run())
    while not (await ask(port))[0]:
        pass
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    with pytest.raises(ConnectionError):
        await ask(port)


async def test_a_unix_socket_replaces_its_own_remains_and_nothing_else(tmp_path):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = PublicListener(APP, "oidc")
    listener.bind_unix(path)
    assert path.stat().st_mode & 0o777 == 0o660
    async with serving(listener):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /y HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"/y 0")
        writer.close()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(FailedPrecondition, match="not a socket"):
        PublicListener(APP, "oidc").bind_unix(path)
    assert path.read_text() == "precious"
