"""The demo's HTTP/1.1: messages survive being written and read, and malformed ones are told apart from ended ones."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest.cli.demo.http1 import (
    Malformed,
    Request,
    Response,
    encode_request,
    encode_response,
    read_request,
    read_response,
)


def reader(data: bytes) -> asyncio.StreamReader:
    stream = asyncio.StreamReader(limit=1 << 16)
    stream.feed_data(data)
    stream.feed_eof()
    return stream


@given(st.binary(max_size=300), st.sampled_from(["GET", "POST"]))
def test_a_request_survives_the_wire(body, method):
    request = Request(method, "/a/b?c=d", {"host": "billing", "x-tenant": "acme"}, body)

    async def there_and_back():
        return await read_request(reader(encode_request(request)))

    found = asyncio.run(there_and_back())
    assert (found.method, found.path, found.body) == (method, "/a/b?c=d", body)
    assert found.headers["x-tenant"] == "acme"


async def test_a_response_survives_the_wire():
    found = await read_response(reader(encode_response(Response(403, {"x-eastwest-code": "A"}, b"no"))))
    assert (found.status, found.headers["x-eastwest-code"], found.body) == (403, "A", b"no")


async def test_chunks_are_joined():
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    assert (await read_response(reader(data))).body == b"abcde"


async def test_the_end_of_requests_is_not_an_error():
    assert await read_request(reader(b"")) is None


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", ConnectionResetError),
        (b"HTTP/1.1 200 OK\r\ncontent-len", ConnectionResetError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc", ConnectionResetError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n", Malformed),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", Malformed),
        (b"\x15\x03\x03\x00\x02\x02\x28 nothing\r\n\r\n", Malformed),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", Malformed),
    ],
)
async def test_what_is_no_response(data, error):
    with pytest.raises(error):
        await read_response(reader(data))
