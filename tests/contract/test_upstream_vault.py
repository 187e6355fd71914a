"""The Vault upstream against servers that answer badly; against a real one: tests/interop."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from eastwest.errors import FailedPrecondition, InvalidInput, Unavailable
from eastwest.pki.upstream import UpstreamContext
from eastwest.process.plugins import UPSTREAM_AUTHORITIES, load_plugin
from eastwest.spiffe.id import TrustDomain
from eastwest.testing import FakeClock, TestCA, UpstreamContract
from eastwest.testing.upstreams import new_signer


def private_file(path, text):
    path.write_text(text + "\n")
    path.chmod(0o600)
    return str(path)


def open_upstream(options, clock=None):
    context = UpstreamContext(
        trust_domain=TrustDomain.parse("td.test"), clock=clock or FakeClock(), directory="/nonexistent"
    )
    return load_plugin(UPSTREAM_AUTHORITIES, "vault", options, context, "server.toml: upstreams.vault")


@pytest.fixture
def answering(tmp_path):
    """An HTTP server that answers what it is told, and an upstream that asks it."""
    answers = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self):
            status, body = answers[-1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    token = private_file(tmp_path / "token", "s.secret-token")
    yield answers, open_upstream({"url": f"http://127.0.0.1:{server.server_port}", "token_file": token})
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"{}"),
        (503, b'{"errors":["Vault is sealed"]}'),
        (429, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"data": 7}'),
        (200, b'{"data": {}}'),
        (200, b'{"data": {"certificate": "none"}}'),
        (200, b" " * (1024 * 1024 + 1)),
        (302, b""),
    ],
)
async def test_an_answer_that_is_none_is_unavailable(answering, status, body):
    answers, upstream = answering
    answers.append((status, body))
    with pytest.raises(Unavailable) as caught:
        await upstream.mint(UpstreamContract().request(new_signer()))
    assert "s.secret-token" not in str(caught.value)
    assert "sealed" not in str(caught.value)


async def test_an_answer_for_another_key_is_not_taken(answering):
    answers, upstream = answering
    foreign = TestCA("td.test")
    pem = x509.load_der_x509_certificate(foreign.authority.chain[0]).public_bytes(Encoding.PEM).decode()
    root = x509.load_der_x509_certificate(foreign.root).public_bytes(Encoding.PEM).decode()
    answers.append((200, json.dumps({"data": {"certificate": pem, "ca_chain": [root]}}).encode()))
    with pytest.raises(FailedPrecondition, match="another key"):
        await upstream.mint(UpstreamContract().request(new_signer()))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"url": "http://vault.example:8200", "token_file": "t"}, "url must be https"),
        ({"url": "ftp://x", "token_file": "t"}, "url is not usable"),
        ({"url": "https://u:p@x", "token_file": "t"}, "url is not usable"),
        ({"url": "https://x", "mount": "../sys", "token_file": "t"}, "mount is not a path"),
        ({"url": "https://x", "mount": "a?b", "token_file": "t"}, "mount is not a path"),
        ({"url": "https://x"}, "either token_file"),
        ({"url": "https://x", "role_id": "r"}, "either token_file"),
        ({"url": "https://x", "role_id": "r", "secret_id_file": "s", "token_file": "t"}, "either token_file"),
        ({"url": "https://x", "token": "s.x"}, "no option 'token'.*did you mean 'token_file'"),
        ({"token_file": "t"}, "option 'url' is missing"),
    ],
)
def test_wrong_options_are_told(options, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        open_upstream(options)
