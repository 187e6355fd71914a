"""Services that know nothing of SPIFFE believe our tokens, by stock libraries, over a change of the signing key."""

import asyncio
import json
import ssl
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import jwt as pyjwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc import jwk as joserfc_keys
from joserfc import jwt as joserfc_tokens
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.errors import InvalidInput
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import Instance, JwtRequest
from eastwest.pki.jwks import export_signing_keys
from eastwest.pki.jwt import JwtSigningKey
from eastwest.pki.signer import KeyAlgorithm, SoftwareSigner, generate_private_key
from eastwest.server.public.https import CertificateFiles, PublicListener
from eastwest.server.public.oidc import KEYS_MAX_AGE, check_issuer, discovery, oidc_app
from eastwest.spiffe.bundle import Bundle, JwtAuthority
from eastwest.testing import FakeClock, TestCA
from eastwest.testing.log import MemoryLog


def new_key(ends=None, algorithm=KeyAlgorithm.EC_P256):
    return JwtSigningKey(SoftwareSigner(generate_private_key(algorithm)), ends or datetime.now(UTC) + timedelta(days=1))


class Provider:
    """An issuer with its discovery endpoint on a real port, and the bundle it publishes."""

    def __init__(self, directory, path):
        self.ca = TestCA(now=datetime.now(UTC))
        self.keys = [self.ca.jwt_key]
        # A server certificate that stock clients accept: this CA's roots, and the host's name.
        chain, key = self.ca.pem(*self.ca.svid("/oidc", dns_names=("localhost",)))
        (directory / "tls.pem").write_bytes(chain)
        (directory / "tls.key").write_bytes(key)
        self.files = CertificateFiles(directory / "tls.pem", directory / "tls.key")
        self.trust = ssl.create_default_context(
            cadata="".join(x509.load_der_x509_certificate(r).public_bytes(Encoding.PEM).decode() for r in self.ca.roots)
        )
        self.path = path

    def bundle(self):
        return Bundle(self.ca.trust_domain, jwt_authorities=tuple(key.authority for key in self.keys))

    @asynccontextmanager
    async def serving(self):
        # The issuer's name has the port in it, so the socket is taken first.
        box = {}

        async def app(scope, receive, send):
            await box["app"](scope, receive, send)

        listener = PublicListener(app, "oidc", tls=self.files.listening)
        port = listener.bind("127.0.0.1", 0)
        self.issuer = f"https://localhost:{port}{self.path}"
        box["app"] = oidc_app(self.issuer, self.bundle, SystemClock())
        self.door = Issuer(
            {"": self.ca.authority},
            self.keys[0],
            MemoryLog(),
            SystemClock(),
            SystemEntropy(),
            Instance("one", "0"),
            jwt_issuer=self.issuer,
        )
        task = asyncio.create_task(listener.run())
        try:
            yield
        finally:
            listener.stop()
            await asyncio.wait_for(task, 10)

    async def token(self, path="/prod/billing", audience="shop"):
        subject = self.ca.trust_domain.id(path)
        request = JwtRequest(spiffe_id=subject, audience=(audience,), door="workload-api", caller=str(subject))
        return (await self.door.issue_jwt(request)).token

    def get(self, url, **headers):
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.urlopen(request, context=self.trust, timeout=10)


@pytest.fixture(params=["", "/tenants/one"])
async def provider(request, tmp_path):
    made = Provider(tmp_path, request.param)
    async with made.serving():
        yield made


async def test_stock_libraries_believe_a_token(provider):
    token = await provider.token()
    subject = "spiffe://saas.example/prod/billing"

    def read():
        with provider.get(f"{provider.issuer}/.well-known/openid-configuration") as reply:
            configuration = json.load(reply)
        assert configuration["issuer"] == provider.issuer
        with provider.get(configuration["jwks_uri"]) as reply:
            assert reply.headers["content-type"] == "application/jwk-set+json"
            keys = json.load(reply)

        client = pyjwt.PyJWKClient(configuration["jwks_uri"], ssl_context=provider.trust)
        key = client.get_signing_key_from_jwt(token)
        found = pyjwt.decode(
            token,
            key,
            algorithms=configuration["id_token_signing_alg_values_supported"],
            audience="shop",
            issuer=provider.issuer,
            options={"require": ["exp", "iat", "iss", "sub", "aud"]},
        )
        assert found["sub"] == subject

        claims = joserfc_tokens.decode(token, joserfc_keys.KeySet.import_key_set(keys), ["ES256"]).claims
        registry = joserfc_tokens.JWTClaimsRegistry(
            iss={"essential": True, "value": provider.issuer}, aud={"essential": True, "value": "shop"}
        )
        registry.validate(claims)
        assert claims["sub"] == subject

    await asyncio.to_thread(read)


def relying_service(provider, allowed):
    """A service of somebody else, that trusts the provider as it would any other."""
    client = pyjwt.PyJWKClient(f"{provider.issuer}/keys", ssl_context=provider.trust, cooldown_duration=3600)

    def whoami(request: Request):
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            assert scheme == "Bearer"
            key = client.get_signing_key_from_jwt(token)
            claims = pyjwt.decode(token, key, algorithms=["ES256"], audience="shop", issuer=provider.issuer)
        except (AssertionError, pyjwt.PyJWTError) as error:
            return JSONResponse({"error": type(error).__name__}, 401)
        if claims["sub"] not in allowed:
            return JSONResponse({"error": "who?"}, 403)
        return JSONResponse({"hello": claims["sub"]})

    return Starlette(routes=[Route("/whoami", whoami)]), client


async def call(port, token):
    def ask():
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/whoami", headers={"authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    return await asyncio.to_thread(ask)


async def test_a_service_keeps_believing_over_a_change_of_keys(provider):
    app, client = relying_service(provider, {"spiffe://saas.example/prod/billing"})
    listener = PublicListener(app, "relying")
    port = listener.bind("127.0.0.1", 0)
    task = asyncio.create_task(listener.run())
    try:
        old = await provider.token()
        assert await call(port, old) == (200, {"hello": "spiffe://saas.example/prod/billing"})
        assert (await call(port, await provider.token("/prod/other")))[0] == 403
        assert (await call(port, await provider.token(audience="bank")))[1] == {"error": "InvalidAudienceError"}

        # Prepared: published, not yet used. The client's copy ends (here: is dropped) before the key signs.
        new = new_key()
        provider.keys.append(new)
        client.jwk_set_cache.jwk_set_with_timestamp = None
        assert (await call(port, old))[0] == 200
        # Activated. The client may not ask again for an hour (its cool-down), so a kid it has not heard of would fail.
        provider.door.replace(jwt_key=new)
        fresh = await provider.token()
        assert pyjwt.get_unverified_header(fresh)["kid"] == new.key_id
        assert (await call(port, fresh))[0] == 200
        assert (await call(port, old))[0] == 200

        # Revoked: the old key leaves the set, and its tokens end with the copy that the client keeps.
        provider.keys.pop(0)
        client.jwk_set_cache.jwk_set_with_timestamp = None
        assert (await call(port, fresh))[0] == 200
        assert await call(port, old) == (401, {"error": "PyJWKClientError"})

        # A key that the provider never published, though its name is.
        forged = pyjwt.encode(
            pyjwt.decode(fresh, options={"verify_signature": False}),
            new_key().signer._key,
            algorithm="ES256",
            headers={"kid": new.key_id},
        )
        assert await call(port, forged) == (401, {"error": "InvalidSignatureError"})
    finally:
        listener.stop()
        await asyncio.wait_for(task, 10)


async def test_answers_say_how_long_they_may_be_kept(provider):
    def read():
        with provider.get(f"{provider.issuer}/keys") as first:
            assert first.headers["cache-control"] == f"public, max-age={KEYS_MAX_AGE}, must-revalidate"
            tag = first.headers["etag"]
        with pytest.raises(urllib.error.HTTPError) as unchanged:
            provider.get(f"{provider.issuer}/keys", **{"If-None-Match": f'"other", W/{tag}'})
        assert unchanged.value.code == 304
        unchanged.value.close()
        provider.keys.append(new_key())
        with provider.get(f"{provider.issuer}/keys", **{"If-None-Match": tag}) as changed:
            assert len(json.load(changed)["keys"]) == 2
            assert changed.headers["etag"] != tag
        for path in ("/", "/keys/", "/.well-known/other"):
            with pytest.raises(urllib.error.HTTPError) as missing:
                provider.get(f"{provider.issuer}{path}")
            assert missing.value.code == 404
            missing.value.close()

    await asyncio.to_thread(read)


def test_the_key_set_says_what_each_key_is_for():
    clock = FakeClock()
    domain = TestCA().trust_domain
    keys = [new_key(clock.now() + timedelta(hours=1)), new_key(clock.now() + timedelta(days=1), KeyAlgorithm.EC_P384)]
    tainted = JwtAuthority(keys[1].authority.spki, keys[1].key_id, keys[1].authority.expires_at, tainted=True)
    bundle = Bundle(domain, jwt_authorities=(keys[0].authority, tainted))

    def published():
        return {key["kid"]: key for key in json.loads(export_signing_keys(bundle, clock.now()))["keys"]}

    found = published()
    assert {kid: (key["use"], key["alg"], key["crv"]) for kid, key in found.items()} == {
        keys[0].key_id: ("sig", "ES256", "P-256"),
        keys[1].key_id: ("sig", "ES384", "P-384"),
    }
    assert all(set(key) == {"use", "alg", "kid", "kty", "crv", "x", "y"} for key in found.values())
    clock.advance(3600)
    assert set(published()) == {keys[1].key_id}


def test_discovery_says_only_what_is_true():
    document = json.loads(discovery("https://id.saas.example/a"))
    assert document["jwks_uri"] == "https://id.saas.example/a/keys"
    assert "authorization_endpoint" not in document
    assert document["subject_types_supported"] == ["public"]


@pytest.mark.parametrize(
    "issuer", ["https://id.saas.example", "https://id.saas.example:8443/a/b", "https://[::1]:8443"]
)
def test_issuers(issuer):
    check_issuer(issuer)


@pytest.mark.parametrize(
    "issuer",
    [
        "",
        "id.saas.example",
        "http://id.saas.example",
        "https://",
        "https://id.saas.example/",
        "https://id.saas.example?a=b",
        "https://id.saas.example#a",
        "https://user@id.saas.example",
        "https://id.saas.example:99999",
        "https://[::1",
        "https://id.saas.example/a b",
        "https://id.saas.exämple",
    ],
)
def test_what_is_no_issuer(issuer):
    with pytest.raises(InvalidInput, match="cannot be an OpenID Connect issuer"):
        check_issuer(issuer)
