"""What the ports promise, tested with the suites that Eastwest ships; run by ``pytest`` with both installed."""

import subprocess
from datetime import timedelta

import pytest
from eastwest_example.command_upstream import CommandUpstream
from eastwest_example.node_key import NodeKeyAttestor, NodeKeyProver
from eastwest_example.sqlite_keys import SqliteKeyStore

from eastwest.entropy import SystemEntropy
from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.spiffe.id import TrustDomain
from eastwest.testing import KeyStoreContract, UpstreamContract

KEY = "0f" * 32


class TestSqliteKeys(KeyStoreContract):
    @pytest.fixture(autouse=True)
    def _path(self, tmp_path):
        self.path = tmp_path / "keys" / "keys.db"

    def make_store(self):
        return SqliteKeyStore(self.path)

    def reopen(self, _store):
        return SqliteKeyStore(self.path)

    def test_the_file_is_private(self):
        self.make_store().names()
        assert self.path.stat().st_mode & 0o777 == 0o600


class TestCommandUpstream(UpstreamContract):
    """With a program that anybody could write: OpenSSL and a few lines of shell."""

    lifetime = timedelta(days=2)

    @pytest.fixture(autouse=True)
    def _ca(self, tmp_path):
        self.script = make_openssl_ca(tmp_path)
        self.roots = tmp_path / "root.pem"

    async def make_upstream(self):
        options = CommandUpstream.Options(command=["/bin/sh", str(self.script)], roots_file=str(self.roots))
        self.upstream = CommandUpstream(options)
        return self.upstream

    async def break_upstream(self):
        self.roots.unlink()
        self.upstream._options.command[:] = ["/nonexistent/program"]


def make_openssl_ca(home):
    """A root made by OpenSSL, and a script that signs below it."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
         "-subj", "/CN=Corporate root", "-keyout", home / "root.key", "-out", home / "root.pem",
         "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
        check=True, capture_output=True,
    )  # fmt: skip
    (home / "extensions").write_text(
        "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"
    )
    script = home / "sign.sh"
    script.write_text(
        f"exec openssl x509 -req -days $((LIFETIME / 86400)) -CA {home}/root.pem -CAkey {home}/root.key"
        f" -copy_extensions copy -extfile {home}/extensions 2>/dev/null\n"
    )
    return script


@pytest.fixture
def node_keys(tmp_path):
    for name, text in (("keys", f'node-1 = "{KEY}"\n'), ("key", KEY), ("other", "ab" * 32)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return tmp_path


def sides(home, node="node-1", key="key"):
    domain = TrustDomain.parse("td.test")
    prover = NodeKeyProver.Options(node=node, key_file=str(home / key))

    class Context:
        trust_domain = domain

    return (
        NodeKeyAttestor(home / "keys", domain, SystemEntropy()),
        NodeKeyProver.from_options(prover, Context),
    )


async def test_a_node_with_its_key_is_let_in(node_keys):
    attestor, prover = sides(node_keys)
    attested = await attestor.attest(await prover.payload(), prover.answer)
    assert attested.path == "/spire/agent/node_key/node-1"
    assert [str(selector) for selector in attested.selectors] == ["node_key:name:node-1"]


@pytest.mark.parametrize(("node", "key"), [("node-1", "other"), ("node-2", "key")])
async def test_a_node_without_its_key_is_not(node_keys, node, key):
    attestor, prover = sides(node_keys, node, key)
    with pytest.raises(InvalidInput, match="has not shown the key"):
        await attestor.attest(await prover.payload(), prover.answer)


def test_an_exposed_key_is_refused(node_keys):
    (node_keys / "key").chmod(0o644)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        sides(node_keys)
