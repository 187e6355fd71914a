"""What the authority signs, before judges that nobody here wrote: zlint over certificates and CRLs, and go-oidc.

zlint applies its rules of RFC 5280 and none of the public web's. No finding is accepted, not even a notice.
"""

import json
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from revocable_world import NowClock, new_world
from server_process import ServerProcess, eastwest
from test_public_endpoints import configure, write_web_certificate

from eastwest.issuance.request import DownstreamRequest
from eastwest.pki.ca import make_ca_csr
from eastwest.pki.signer import KeyAlgorithm, SoftwareSigner, generate_private_key
from eastwest.testing import TestCA


def lint(peers, files):
    """Everything that zlint finds, of any level, by file and rule; enough lints must have applied to each file."""
    done = subprocess.run([peers.zlint_check, *files], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for name, findings in json.loads(done.stdout).items():
        file = name.rpartition("/")[2]
        assert findings.pop("_lints") >= (5 if file.endswith(".crl") else 20), file
        found |= {(file, rule): finding["result"] for rule, finding in findings.items()}
    return found


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519])
async def test_certificates_and_crls_are_in_order(peers, tmp_path, algorithm):
    async with new_world(tmp_path, NowClock()) as world:
        ca = TestCA(now=world.clock.now(), algorithm=algorithm)
        world.ca, world.authority = ca, ca.new_authority(algorithm, timedelta(days=1000))
        world.authorities = {world.authority.key_id: world.authority}
        world.issuer.replace(authorities={"": world.authority})
        revoked = await world.issue("/edge/pump-2")
        files = {
            "root": ca.root,
            "issuing-ca": world.authority.chain[0],
            "workload": (await world.issue("/prod/billing", profile="workload")).chain[0],
            "workload-dns": ca.svid("/prod/web", dns_names=("web.saas.example", "*.web.saas.example"))[0].chain[0],
            "device": revoked.chain[0],
            "empty.crl": (await world.crl(revoked)).public_bytes(Encoding.DER),
        }
        await world.revoke(revoked)
        files["revoked.crl"] = (await world.crl(revoked)).public_bytes(Encoding.DER)
        for name, der in files.items():
            (tmp_path / name).write_bytes(der)
        assert lint(peers, [tmp_path / name for name in files]) == {}


async def test_a_downstream_ca_is_in_order(peers, tmp_path):
    async with new_world(tmp_path, NowClock()) as world:
        world.issuer.replace(downstream=world.ca.new_authority(path_length=1))
        downstream = await world.issuer.issue_ca(
            DownstreamRequest(
                spiffe_id=world.ca.trust_domain.id("/nested/server"),
                csr_der=make_ca_csr(SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P256)), world.ca.trust_domain),
                door="spire-api",
                caller="spiffe://saas.example/nested/server",
            )
        )
        for number, der in enumerate(downstream.chain):
            (tmp_path / f"ca-{number}").write_bytes(der)
        assert lint(peers, [tmp_path / f"ca-{number}" for number in range(len(downstream.chain))]) == {}


def test_the_judge_does_find_fault(peers, tmp_path):
    # A CA that does not say critically what it is, and has no key identifier.
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "faulty").write_bytes(certificate.public_bytes(Encoding.DER))
    assert lint(peers, [tmp_path / "faulty"]) == {
        ("faulty", "e_basic_constraints_not_critical"): "error",
        ("faulty", "e_ext_subject_key_identifier_missing_ca"): "error",
    }


def test_go_oidc_believes_our_tokens_over_a_change_of_keys(peers, tmp_path):
    """A stock relying party in another language; it keeps its keys, and asks again for a kid it has not seen."""
    server = ServerProcess(tmp_path / "data")
    server.init()
    home = server.data / "server"
    write_web_certificate(home)
    configure(server, jwt_issuer="https://localhost/id", oidc_port=0, oidc_certificate="web.pem", oidc_key="web.key")
    # The relying party asks again for a kid that it does not know, so that nothing need be waited for.
    configure(server, publish_wait=0)
    server.start()
    try:
        port = (home / "oidc.port").read_text().strip()
        relying = subprocess.Popen(
            [
                *(peers.oidc_verify, "-issuer", "https://localhost/id", "-audience", "shop"),
                *("-roots", home / "web-root.pem", "-address", f"127.0.0.1:{port}"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def judge(token):
            relying.stdin.write(f"{token}\n")
            relying.stdin.flush()
            return json.loads(relying.stdout.readline())

        def mint(audience="shop"):
            done = eastwest(*("jwt", "mint", "spiffe://td.test/prod/x", "--audience", audience, "--data", server.data))
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        old = mint()
        assert judge(old) == {"sub": "spiffe://td.test/prod/x"}
        assert "expected audience" in judge(mint("bank"))["error"]
        assert "error" in judge(old[:-4] + "AAAA")
        prepared = eastwest("ca", "prepare", "--kind", "jwt", "--data", server.data, "--json")
        assert prepared.returncode == 0, prepared.stderr
        assert judge(old) == {"sub": "spiffe://td.test/prod/x"}
        new_id = json.loads(prepared.stdout)["authority"]["id"]
        activated = eastwest("ca", "activate", new_id, "--data", server.data)
        assert activated.returncode == 0, activated.stderr
        fresh = mint()
        assert judge(fresh) == {"sub": "spiffe://td.test/prod/x"}
        assert judge(old) == {"sub": "spiffe://td.test/prod/x"}
        relying.stdin.close()
        assert relying.wait(10) == 0
        relying.stdout.close()
    finally:
        server.kill()
