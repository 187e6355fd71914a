"""A server that shows itself to everybody: OpenID Connect discovery, CRLs and OCSP, asked by stock programs."""

import asyncio
import json
import ssl
import subprocess
import urllib.request
from datetime import UTC, datetime

import jwt as pyjwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from server_process import ServerProcess, eastwest

from eastwest.testing import TestCA

ESTATE = {
    "estate.yaml": b"""
trust_domain: td.test
environments: [{name: prod, kind: vm}]
domains: [{name: plant, owners: ["group:plant"]}]
node_groups: [{name: gateways, environment: prod, selectors: ["join_token:group:gateways"]}]
""",
    "profiles/device.yaml": b"""
profile: device
doors: [spire-api]
keys: [ec-p256]
lifetime: {default: 90d, max: 180d}
usage: [client]
revocation: crl
""",
    "workloads/all.yaml": b"""
workloads:
  - spiffe_id: spiffe://td.test/prod/plant/pump-1
    environment: prod
    domain: plant
    owner: group:plant
    node: group:gateways
    selectors: ["unix:uid:1000"]
    profile: device
  - spiffe_id: spiffe://td.test/prod/plant/pump-2
    environment: prod
    domain: plant
    owner: group:plant
    node: group:gateways
    selectors: ["unix:uid:1001"]
    profile: device
""",
}


def write_web_certificate(home):
    """A certificate for localhost by a CA of its own, as a company would have; returns trust in it."""
    ca = TestCA("web.test", now=datetime.now(UTC))
    chain, key = ca.pem(*ca.svid("/web", dns_names=("localhost",)))
    (home / "web.pem").write_bytes(chain)
    (home / "web.key").write_bytes(key)
    root = x509.load_der_x509_certificate(ca.root).public_bytes(Encoding.PEM)
    (home / "web-root.pem").write_bytes(root)
    return ssl.create_default_context(cadata=root.decode())


def configure(server, **settings):
    path = server.data / "server" / "server.toml"
    lines = [line for line in path.read_text().splitlines() if line.partition(" ")[0] not in settings]
    path.write_text("\n".join([*lines, *(f"{name} = {json.dumps(value)}" for name, value in settings.items())]) + "\n")


@pytest.fixture
def stopped(tmp_path):
    made = ServerProcess(tmp_path / "data")
    made.init()
    yield made
    made.kill()


@pytest.fixture
def public(stopped):
    """A running server whose CRLs and OCSP are at the address that its certificates say."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configure(
        stopped, revocation_url=f"http://127.0.0.1:{port}", revocation_port=port, jwt_issuer="https://localhost:1/id"
    )
    stopped.start()
    return stopped


async def devices(server):
    """Two devices' certificates, issued to an agent of the group: (certificate, chain) by name."""
    async with server.admin() as admin:
        await admin.apply_estate(ESTATE, "")
    agent = await server.join(group="gateways")
    shown = json.loads(eastwest("entry", "show", "--data", server.data, "--json").stdout)["entries"]
    found = {}
    for name in ("pump-1", "pump-2"):
        [entry] = [each["id"] for each in shown if each["spiffe_id"].endswith(name)]
        [result] = (await agent.issue(entry)).results
        assert result.status.code == 0, result.status.message
        found[name] = list(result.svid.cert_chain)
    agent.close()
    return found, agent.roots


async def test_a_device_certificate_is_revoked_before_everybodys_eyes(public, tmp_path):
    server = public
    chains, roots = await devices(server)
    for name, ders in {**chains, "root": roots}.items():
        pem = b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders)
        (tmp_path / f"{name}.pem").write_bytes(pem)
    (tmp_path / "ca.pem").write_bytes(x509.load_der_x509_certificate(chains["pump-1"][1]).public_bytes(Encoding.PEM))

    def openssl(*words):
        done = subprocess.run(
            ["openssl", *map(str, words)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def verdicts():
        """What openssl finds by fetching CRL and OCSP from the addresses in the certificate itself."""
        found = {}
        for name in ("pump-1", "pump-2"):
            # The first certificate of the file is the leaf.
            by_crl = openssl(
                *("verify", "-x509_strict", "-crl_check", "-crl_download", "-CAfile", "root.pem"),
                *("-untrusted", "ca.pem", f"{name}.pem"),
            )
            _, url = openssl("x509", "-in", f"{name}.pem", "-noout", "-ocsp_uri")
            by_ocsp = openssl(
                *("ocsp", "-issuer", "ca.pem", "-cert", f"{name}.pem", "-url", url.strip()),
                *("-CAfile", "root.pem", "-verify_other", "ca.pem"),
            )
            assert "Response verify OK" in by_ocsp[1], by_ocsp
            assert "WARNING" not in by_ocsp[1], "the nonce was not repeated"
            ocsp_says = "revoked" if f"{name}.pem: revoked" in by_ocsp[1] else "good"
            assert f"{name}.pem: {ocsp_says}" in by_ocsp[1]
            crl_says = "good" if by_crl[0] == 0 else "revoked" if "certificate revoked" in by_crl[1] else by_crl
            found[name] = (crl_says, ocsp_says)
        return found

    assert await asyncio.to_thread(verdicts) == {"pump-1": ("good", "good"), "pump-2": ("good", "good")}
    listed = json.loads(eastwest("certificate", "list", "--data", server.data, "--json").stdout)["certificates"]
    assert {each["spiffe_id"].rpartition("/")[2] for each in listed} == {"pump-1", "pump-2"}
    serial = f"{x509.load_der_x509_certificate(chains['pump-2'][0]).serial_number:x}"
    done = eastwest("certificate", "revoke", serial, "--reason", "key-compromise", "--data", server.data)
    assert done.returncode == 0, done.stderr
    assert f"revoked {serial} of spiffe://td.test/prod/plant/pump-2 (key-compromise" in done.stdout
    assert "still lets" in done.stdout
    assert await asyncio.to_thread(verdicts) == {"pump-1": ("good", "good"), "pump-2": ("revoked", "revoked")}

    again = eastwest("certificate", "revoke", "spiffe://td.test/prod/plant/pump-2", "--data", server.data)
    assert (again.returncode, "(key-compromise" in again.stdout) == (0, True)
    shown = eastwest("certificate", "show", serial, "--data", server.data)
    assert "reason:         key-compromise" in shown.stdout
    pem = eastwest("certificate", "show", "spiffe://td.test/prod/plant/pump-1", "--pem", "--data", server.data)
    assert x509.load_pem_x509_certificate(pem.stdout.encode()).public_bytes(Encoding.DER) == chains["pump-1"][0]
    assert eastwest("certificate", "lint", tmp_path / "pump-1.pem").returncode == 0
    as_ca = eastwest("certificate", "lint", "--ca", tmp_path / "pump-1.pem", "--json")
    assert (as_ca.returncode, json.loads(as_ca.stdout)["ok"]) == (1, False)

    # Killed and started again, it has forgotten nothing.
    server.kill()
    server.start()
    assert await asyncio.to_thread(verdicts) == {"pump-1": ("good", "good"), "pump-2": ("revoked", "revoked")}
    log = eastwest("log", "show", "--data", server.data, "--kind", "certificate.revoked", "--json")
    [record] = json.loads(log.stdout)["entries"]
    assert (record["entry"]["serial"], record["entry"]["reason"]) == (serial, "key-compromise")


async def test_short_lived_certificates_are_answered_with_what_helps(public):
    for which in ("spiffe://td.test/prod/plant/pump-1", "0a1b2c"):
        refused = eastwest("certificate", "revoke", which, "--data", public.data)
        assert refused.returncode == 1
        assert "ban the node" in refused.stderr
    missing = eastwest("certificate", "show", "0a1b2c", "--data", public.data)
    assert (missing.returncode, "log show" in missing.stderr) == (1, True)
    wrong = eastwest("certificate", "revoke", "zz", "--data", public.data)
    assert "not a serial number" in wrong.stderr


async def test_a_stock_library_believes_a_token_of_the_process(stopped, tmp_path):
    trust = write_web_certificate(stopped.data / "server")
    configure(stopped, jwt_issuer="https://id.td.test/one", oidc_port=0, oidc_certificate="web.pem", oidc_key="web.key")
    stopped.start()
    port = int((stopped.data / "server" / "oidc.port").read_text())
    base = f"https://localhost:{port}/one"
    minted = eastwest(*("jwt", "mint", "spiffe://td.test/prod/x", "--audience", "shop", "--data", stopped.data))
    assert minted.returncode == 0, minted.stderr
    token = minted.stdout.strip()

    def judge():
        with urllib.request.urlopen(f"{base}/.well-known/openid-configuration", context=trust, timeout=10) as reply:
            configuration = json.load(reply)
        assert configuration["jwks_uri"] == "https://id.td.test/one/keys"
        # The issuer's name leads elsewhere here; only the host is replaced.
        key = pyjwt.PyJWKClient(f"{base}/keys", ssl_context=trust).get_signing_key_from_jwt(token)
        return pyjwt.decode(token, key, algorithms=["ES256"], audience="shop", issuer=configuration["issuer"])

    assert (await asyncio.to_thread(judge))["sub"] == "spiffe://td.test/prod/x"

    (tmp_path / "token").write_text(token + "\n")
    by_server = eastwest("jwt", "validate", tmp_path / "token", "--audience", "shop", "--data", stopped.data)
    assert by_server.returncode == 0, by_server.stderr
    assert "valid: spiffe://td.test/prod/x" in by_server.stdout
    bundle = eastwest("bundle", "show", "--format", "spiffe", "--data", stopped.data)
    (tmp_path / "bundle.json").write_text(bundle.stdout)
    offline = ["--bundle", tmp_path / "bundle.json", "--trust-domain", "td.test", "--json"]
    good = eastwest("jwt", "validate", "-", "--audience", "shop", *offline, input=token)
    assert json.loads(good.stdout)["claims"]["iss"] == "https://id.td.test/one"
    for text, audience, reason in (
        (token, "bank", "not meant for 'bank'"),
        (token[:-3] + "AAA", "shop", "signature"),
        ("noise", "shop", "compact form"),
    ):
        refused = eastwest("jwt", "validate", "-", "--audience", audience, *offline, input=text)
        assert (refused.returncode, reason in refused.stderr) == (1, True), refused.stderr
        assert text not in refused.stderr
    # A token in place of a file's name is not repeated.
    careless = eastwest("jwt", "validate", token, "--audience", "shop", *offline)
    assert (careless.returncode, token in careless.stderr) == (1, False)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"oidc_port": 0}, "needs jwt_issuer"),
        ({"oidc_port": 0, "jwt_issuer": "http://id.td.test"}, "cannot be an OpenID Connect issuer"),
        ({"oidc_port": 0, "jwt_issuer": "https://id.td.test"}, "served over TLS only"),
        ({"oidc_socket": "s", "oidc_port": 0, "jwt_issuer": "https://id.td.test"}, "both set"),
        ({"oidc_socket": "s", "oidc_key": "k", "jwt_issuer": "https://id.td.test"}, "belong together"),
        ({"oidc_port": 70000}, "oidc_port is not a port"),
        ({"revocation_port": 0}, "belong together"),
        ({"revocation_port": 0, "revocation_url": "https://pki.td.test"}, "plain http"),
        ({"revocation_port": 0, "revocation_url": "http://pki.td.test/"}, "revocation_url"),
        ({"crl_hours": 0}, "crl_hours"),
    ],
)
def test_settings_that_contradict_themselves(tmp_path, settings, reason):
    from eastwest.errors import InvalidInput
    from eastwest.server.config import ServerConfig, ServerFile, ServerPaths

    with pytest.raises(InvalidInput, match=reason) as caught:
        ServerConfig.checked(ServerPaths(tmp_path), ServerFile(trust_domain="td.test", **settings))
    assert str(tmp_path) in caught.value.where
    assert caught.value.fix or "crl_hours" in reason or "port" in reason
