"""A receiver that means harm: it holds nobody for long."""

import asyncio
import threading

import pytest

from eastwest.errors import Unavailable
from eastwest.plugins.http_post import HttpPost


async def test_an_answer_that_drips_ends_in_time_and_frees_its_thread():
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            ended.set()
        finally:
            writer.close()

    ended = asyncio.Event()
    before = set(threading.enumerate())  # other tests of this process leave some
    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        post = HttpPost(f"http://127.0.0.1:{port}", timeout=0.2)
        with pytest.raises(Unavailable, match="too long"):
            await post.post("/", b"{}", {})
        async with asyncio.timeout(10):
            await ended.wait()
        await asyncio.get_running_loop().shutdown_default_executor()
    assert not any(thread.name.startswith("asyncio") for thread in set(threading.enumerate()) - before)


async def test_a_redirect_is_not_followed():
    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    asked: list[bytes] = []
    server = await asyncio.start_server(elsewhere, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable, match="307"):
            await HttpPost(f"http://127.0.0.1:{port}").post("/", b"{}", {})
    assert len(asked) == 1
