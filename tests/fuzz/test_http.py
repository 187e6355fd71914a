"""Bytes on the HTTP listeners that anybody may reach: OpenID Connect discovery, CRLs and OCSP, the bundle, health."""

import logging
import re

import pytest
from fuzz_messages import mutated
from fuzz_settings import few
from hypothesis import given
from hypothesis import strategies as st

PATHS = {
    "oidc": ["/.well-known/openid-configuration", "/keys"],
    "revocation": ["/crl/00/2026-11.crl", "/crl/../../etc/passwd/2026-11.crl", "/crl/%2e%2e/%00.crl", "/ocsp/MAA="],
    "bundle": ["/", "//", "/?x"],
    "health": ["/live", "/ready", "/metrics"],
}
CRLF = "\r\n"
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
HEADERS = ["Host: x", "If-None-Match: *", "Content-Length: 5", "Content-Length: -1", "Transfer-Encoding: chunked"]
HEADERS += ["Expect: 100-continue", "Upgrade: h2c", "Connection: close", "X: " + "a" * 9000, "Range: bytes=0-0"]
HEADERS += ["Content-Length: 99999999999999999999", "Content-Length: \u0665", "Host: x\r\n y"]
HOSTILE = [
    b"\0" * 64,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000,
    b"POST /ocsp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n",
    b"POST /ocsp HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /ocsp HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n" + b"a" * 90000,
    b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /%ff%fe HTTP/1.1\r\nHost: \xff\r\n\r\n",
    b"GET /ocsp/" + b"A" * 60000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
]


@pytest.fixture
def broken():
    """What uvicorn says of errors within an application."""
    found = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def requests(name):
    method = st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "CONNECT", "get"]) | st.text(max_size=5)
    path = st.sampled_from(PATHS[name]) | st.text(max_size=30).map(lambda text: f"/{text}")
    headers = st.lists(st.sampled_from(HEADERS), max_size=4)
    return st.builds(
        lambda method, path, headers, body: (
            f"{method} {path} HTTP/1.1\r\n{''.join(header + CRLF for header in headers)}\r\n".encode() + body
        ),
        method,
        path,
        headers,
        st.binary(max_size=200),
    )


@pytest.mark.parametrize("name", PATHS)
def test_no_request_breaks_a_listener(world, broken, name):
    good = f"GET {PATHS[name][0]} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()

    # TLS cannot say that nothing more comes: there each unfinished request is waited for.
    @few(20 if name == "bundle" else 80)
    @given(requests(name) | mutated(requests(name)) | st.binary(max_size=80) | st.sampled_from(HOSTILE))
    def run(raw):
        answer = world.run(world.http(name, raw, seconds=0.2 if name == "bundle" else 12.0))
        assert name == "bundle" or answer is not None, "neither answered nor closed"
        assert all(int(status) < 500 for status in STATUS.findall(answer or b"")), answer[:200]
        assert not broken
        assert not world.failures()

    run()
    assert STATUS.match(world.run(world.http(name, good, whole=False)))[1] in {b"200", b"404"}
