"""The pages about CAs keep their promises: their commands run here as they stand, and what they say comes true."""

import re
import shutil
import ssl
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from server_process import ServerProcess, eastwest

from eastwest.api.spire.api.server.svid.v1 import svid_pb2
from eastwest.cli.admin import admin_channel
from eastwest.pki.chain import UntrustedChain, dump_chain_pem, verify_chain
from eastwest.pki.csr import make_csr
from eastwest.rpc.client import method
from eastwest.spiffe.id import TrustDomain
from eastwest.testing.ca import TestCA

ROOT = Path(__file__).parents[2]
TD = "shop.example"
SVID = svid_pb2.DESCRIPTOR.services_by_name["SVID"]
pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("awk") is None, reason="the pages are written for a shell"
)


def commands(page: str) -> list[str]:
    text = (ROOT / "docs" / "how-to" / page).read_text()
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(place: Path, script: str) -> str:
    (place / "bin").mkdir(exist_ok=True)
    here = place / "bin" / "eastwest"
    here.write_text(f'#!/bin/sh\nexec {sys.executable} -m eastwest.cli.main "$@"\n')
    here.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'PATH="{place / "bin"}:$PATH"; cd {place}; {script}'],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def server(tmp_path):
    made = ServerProcess(tmp_path / "data", TD)
    made.data.mkdir()
    yield made
    made.stop()


async def test_the_offline_root(tmp_path, server):
    (tmp_path / "passphrase").write_text("three words and a dog\n")
    (tmp_path / "passphrase").chmod(0o600)
    server.data.rmdir()
    [make, begin, sign, take] = commands("offline-root.md")
    run(tmp_path, make + begin)
    assert b"ENCRYPTED" in (tmp_path / "root.key").read_bytes()
    refused = eastwest("server", "run", "--data", server.data)
    assert refused.returncode == 1
    assert "eastwest ca export-csr" in refused.stderr
    run(tmp_path, sign)
    assert "active" in run(tmp_path, take)
    server.start()
    agent = await server.join()
    chain = list(agent.svid.cert_chain)
    root = ssl.PEM_cert_to_DER_cert((tmp_path / "root.pem").read_text())
    assert verify_chain(chain, [root], datetime.now(UTC)).id == agent.id
    agent.close()
    keys = {path.name for path in (server.data / "server" / "keys").iterdir()}
    assert not any(name.startswith("root") for name in keys)


async def test_merging_two_pkis_cuts_nobody_off(tmp_path, server):
    old = TestCA(TD, datetime.now(UTC))
    (tmp_path / "old-root.pem").write_bytes(dump_chain_pem([old.root]))
    key = old.root_signer._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "old-root.key").write_bytes(key)
    (tmp_path / "old-root.key").chmod(0o600)
    theirs, _ = old.svid("/old/billing")
    server.init()
    server.start()
    [trust, wait, cross, again, drop] = commands("merge-two-pkis.md")
    with pytest.raises(UntrustedChain):
        verify_chain(theirs.chain, await roots(server), datetime.now(UTC))
    ours, our_key = await mint(server)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, ours, our_key, [old.root])

    run(tmp_path, trust)
    run(tmp_path, wait)
    assert verify_chain(theirs.chain, await roots(server), datetime.now(UTC)).id == theirs.id

    run(tmp_path, cross)
    ours, our_key = await mint(server)
    handshake(tmp_path, ours, our_key, [old.root])
    handshake(tmp_path, ours, our_key, (await roots(server))[:1])
    run(tmp_path, again)
    renewed, renewed_key = await mint(server)
    assert renewed[1] != ours[1]
    handshake(tmp_path, renewed, renewed_key, [old.root])

    run(tmp_path, drop)
    assert len(await roots(server)) == 1
    with pytest.raises(UntrustedChain):
        verify_chain(theirs.chain, await roots(server), datetime.now(UTC))


async def test_ours_for_theirs(tmp_path, server):
    old = TestCA(TD, datetime.now(UTC))
    (tmp_path / "old-root.pem").write_bytes(dump_chain_pem([old.root]))
    theirs, _ = old.svid("/old/billing")
    server.init()
    server.start()
    run(tmp_path, "eastwest ca cross-sign old-root.pem --data data --out crossed.pem")
    crossed = ssl.PEM_cert_to_DER_cert((tmp_path / "crossed.pem").read_text())
    found = verify_chain((*theirs.chain, crossed), await roots(server), datetime.now(UTC))
    assert found.id == theirs.id


async def test_what_an_import_refuses(tmp_path, server):
    server.init()
    server.start()
    stranger = TestCA("elsewhere.example", datetime.now(UTC))
    (tmp_path / "stranger.pem").write_bytes(dump_chain_pem([stranger.root]))
    for words, told in [
        (["stranger.pem"], "no request waits for a certificate"),
        (["stranger.pem", "--cross"], "not for the key of any of our roots"),
        (["stranger.pem", "--cross", "--trust-only"], "not both at once"),
    ]:
        refused = eastwest("ca", "import", *words, "--data", server.data, cwd=tmp_path)
        assert refused.returncode == 1
        assert told in refused.stderr
    run(tmp_path, "eastwest ca export-csr --all --out new.csr --data data")
    (tmp_path / "pass").write_text("three words and a dog")
    (tmp_path / "pass").chmod(0o600)
    run(
        tmp_path,
        "eastwest ca init-root --trust-domain shop.example --root r.pem --root-key r.key --passphrase-file pass",
    )
    sign = "eastwest ca sign-csr new.csr --root r.pem --root-key r.key --passphrase-file pass --out new.pem"
    run(tmp_path, sign)
    refused = eastwest("ca", "import", "new.pem", "--data", server.data, cwd=tmp_path)
    assert "given with --root" in refused.stderr
    assert "prepared" in run(tmp_path, "eastwest ca import new.pem --root r.pem --data data")
    shown = run(tmp_path, "eastwest ca show --data data")
    assert len(re.findall(r"prepared", shown)) == 2


async def mint(server: ServerProcess, path: str = "/new/billing") -> tuple[list[bytes], bytes]:
    """A new SVID as a workload gets it: chain in DER, key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = make_csr(key, TrustDomain(TD).id(path))
    channel = admin_channel(server.data)
    try:
        reply = await channel.unary(method(SVID, "MintX509SVID"), svid_pb2.MintX509SVIDRequest(csr=csr))
    finally:
        channel.close()
    return list(reply.svid.cert_chain), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def handshake(place: Path, chain: list[bytes], key: bytes, trusted: list[bytes]) -> None:
    """A TLS handshake: the server shows ``chain``, the client knows only ``trusted``. Raises when it fails."""
    file = place / "shown.pem"
    file.write_bytes(key + dump_chain_pem(chain))
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(file)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cadata=dump_chain_pem(trusted).decode())
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(down, up)
    other = shown.wrap_bio(up, down, server_side=True)
    waiting = [one, other]
    while waiting:
        for side in tuple(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue


async def roots(server: ServerProcess) -> list[bytes]:
    async with server.admin() as admin:
        return [authority.asn1 for authority in (await admin.bundle()).x509_authorities]
