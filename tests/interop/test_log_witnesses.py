"""Witnesses of others, and readers of others over our own listener: our log as the world meets it.

The Go witness is on torchwood's cosigner, filippo.io/mldsa and x/mod's proofs; told to, it lies.
"""

import datetime as dt
import json
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from interop_harness import EASTWEST, Authority, Peers, attempt, run, wait_for

PARENT = "spiffe://interop.test/spire/agent/join_token/no-such-node"
FSCK_SECONDS = 10


@dataclass
class GoWitness:
    """The witness of others, as a process."""

    peers: Peers
    folder: Path
    name: str
    lie: str = ""
    url: str = ""
    vkeys: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    def start(self, vkey: Path) -> None:
        with (self.folder / f"{self.name}.err").open("ab") as errors:
            self.process = subprocess.Popen(
                [self.peers.tlog_witness, "-vkey", vkey, "-name", f"{self.name}.example/go", "-lie", self.lie],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.url, self.vkeys = told["url"], told["vkeys"]

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(5)
            assert self.process.stdout is not None
            self.process.stdout.close()

    def policy(self) -> str:
        lines = [f"witness {self.name}-{i} {vkey} {self.url}" for i, vkey in enumerate(self.vkeys)]
        return "\n".join([*lines, f"group {self.name} all {self.name}-0 {self.name}-1", ""])


@dataclass
class World:
    """Our server, its listener, and witnesses."""

    authority: Authority
    witnesses: list[GoWitness]
    tls: Path | None = None

    def start(self, quorum: str, settings: str = "") -> None:
        self.authority.initialise()
        home = self.authority.data / "server"
        for witness in self.witnesses:
            witness.start(self.authority.log_key)
        policy = "".join(witness.policy() for witness in self.witnesses)
        (home / "witnesses.policy").write_text(f"log {self.authority.log_key.read_text()}{policy}quorum {quorum}\n")
        if self.tls is not None:
            certify(self.tls, home)
            settings += 'certificate = "tls.pem"\nkey = "tls.key"\n'
        with (home / "server.toml").open("a") as file:
            file.write(f'\n[log]\nport = 0\nwitness_policy = "witnesses.policy"\n{settings}')
        self.authority.start()

    def stop(self) -> None:
        self.authority.stop()
        for witness in self.witnesses:
            witness.stop()

    @property
    def url(self) -> str:
        scheme = "https" if self.tls is not None else "http"
        return f"{scheme}://localhost:{(self.authority.data / 'server/log.port').read_text().strip()}"

    def ready(self) -> dict[str, Any]:
        port = (self.authority.data / "server/health.port").read_text().strip()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as refused:
            with refused:
                return dict(json.load(refused))

    def witnessed(self) -> int:
        file = self.authority.log / "checkpoint.witnessed"
        return int(file.read_text().split("\n")[1]) if file.exists() else 0

    def keys(self, folder: Path) -> list[str | Path]:
        """The flags of `tlog-verify` for the log's keys and the first witness's."""
        words: list[str | Path] = ["-vkey", self.authority.log_key]
        words += ["-mldsa", self.authority.data / "server" / "log.ml-dsa-44.vkey"]
        for i, vkey in enumerate(self.witnesses[0].vkeys):
            (folder / f"{i}.vkey").write_text(vkey)
            words += ["-witness", folder / f"{i}.vkey"]
        return words


def certify(trust: Path, home: Path) -> None:
    """A certificate for localhost, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    for path in (trust, home / "tls.pem"):
        path.write_bytes(certificate.public_bytes(Encoding.PEM))
    (home / "tls.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.fixture(scope="module")
def world(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A log of more than one full tile, watched by an honest witness and by three that lie, served over HTTPS."""
    folder = tmp_path_factory.mktemp("watched")
    names = {"honest": "", "forger": "forged", "stranger": "wrong-key", "forgetful": "older"}
    watching = [GoWitness(peers, folder, name, lie) for name, lie in names.items()]
    made = World(Authority(folder / "data", peers), watching, folder / "trust.pem")
    try:
        made.start("honest")
        entries = [
            {
                "spiffe_id": f"spiffe://interop.test/logged/{number}",
                "parent_id": PARENT,
                "selectors": [{"type": "unix", "value": f"uid:{number + 1}"}],
            }
            for number in range(300)
        ]
        text = json.dumps({"entries": entries})
        made.authority.cli("entry", "create", "-data", "-", stdin=text, seconds=120)
        wait_for("a witnessed checkpoint over all entries", lambda: made.witnessed() >= 300)
        yield made
    finally:
        made.stop()


def test_the_go_witness_and_both_our_keys_are_on_the_checkpoint(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.authority.log, tmp_path / "log")
    shutil.copy(tmp_path / "log/checkpoint.witnessed", tmp_path / "log/checkpoint")
    told = json.loads(run([world.authority.peers.tlog_verify, *world.keys(tmp_path), tmp_path / "log"]))
    assert told["size"] >= 300
    # A witness that did not sign is found missing.
    (tmp_path / "stranger.vkey").write_text(world.witnesses[2].vkeys[0])
    refused = attempt(
        [
            world.authority.peers.tlog_verify,
            *world.keys(tmp_path),
            "-witness",
            tmp_path / "stranger.vkey",
            tmp_path / "log",
        ]
    )
    assert refused.returncode != 0


def test_what_the_liars_said_is_told_and_published_nowhere(world: World) -> None:
    def told() -> bool:
        warnings = " ".join(world.ready()["warnings"])
        return all(word in warnings for word in ("is false", "keys that the policy does not name", "forgets"))

    # The forgetful one shows itself with the second checkpoint.
    world.authority.register("one-more", PARENT, "unix:uid:4242")
    wait_for("warnings about all three", told)
    assert world.ready()["problems"] == []
    text = (world.authority.log / "checkpoint.witnessed").read_text()
    assert "honest.example/go" in text
    assert "forger.example/go" not in text
    assert "stranger.example/go" not in text


def test_readers_of_others_accept_the_log_over_https(world: World) -> None:
    assert world.tls is not None
    trust = {"SSL_CERT_FILE": str(world.tls)}
    peers, key = world.authority.peers, world.authority.log_key
    mldsa = world.authority.data / "server" / "log.ml-dsa-44.vkey"
    told = run([peers.tlog_verify, "-vkey", key, "-mldsa", mldsa, f"{world.url}/"], environment=trust)
    assert json.loads(told)["size"] >= 300
    place = ["-storage_url", world.url, "-public_key", key]
    done = attempt(
        [peers.fsck, "-ui=false", "-logtostderr", "-v", "1", *place], environment=trust, seconds=FSCK_SECONDS
    )
    assert "Successfully fsck'd" in done.stderr
    context = ssl.create_default_context(cafile=str(world.tls))
    with urllib.request.urlopen(f"{world.url}/tile/0/000", context=context, timeout=10) as answer:
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("name", ["tile/entries/000", "tile/0/000"])
def test_one_flipped_bit_is_found_over_https(world: World, name: str) -> None:
    assert world.tls is not None
    trust = {"SSL_CERT_FILE": str(world.tls)}
    peers, key, file = world.authority.peers, world.authority.log_key, world.authority.log / name
    whole = file.read_bytes()
    spoilt = bytearray(whole)
    spoilt[len(whole) // 2] ^= 1
    try:
        file.write_bytes(spoilt)
        refused = attempt([peers.tlog_verify, "-vkey", key, f"{world.url}/"], environment=trust)
        assert refused.returncode != 0
        place = ["-storage_url", f"file://{world.authority.log.resolve()}", "-public_key", key]
        try:
            found = attempt([peers.fsck, "-ui=false", "-logtostderr", *place], seconds=FSCK_SECONDS).stderr
        except subprocess.TimeoutExpired:
            found = "it tries again for ever, which is how it refuses"
        assert "Successfully fsck'd" not in found
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("lie", ["ahead", "refuse"])
def test_a_witness_that_knows_another_history_stops_the_log(peers: Peers, tmp_path: Path, lie: str) -> None:
    made = World(Authority(tmp_path / "data", peers), [GoWitness(peers, tmp_path, "other", lie)])
    try:
        made.start("other")
        fork = made.authority.data / "server" / "log-fork.txt"
        wait_for("evidence of the fork", fork.exists)
        wait_for("a server that is not ready", lambda: made.ready()["status"] == "not ready")
        assert "other-0" in " ".join(made.ready()["problems"])
        refused = made.authority.try_cli("entry", "create", "-spiffeID", "spiffe://interop.test/x", "-parentID", PARENT,
                                         "-selector", "unix:uid:7")  # fmt: skip
        assert refused.returncode != 0
        size = (made.authority.log / "checkpoint").read_text().split("\n")[1]
        made.authority.stop()
        again = attempt([EASTWEST, "server", "run", "--data", made.authority.data])
        assert again.returncode == 1
        assert "another history" in again.stderr
        assert (made.authority.log / "checkpoint").read_text().split("\n")[1] == size
        # Whoever has looked and found that the witness lied takes the evidence away; then the log goes on.
        fork.rename(tmp_path / "kept")
        with (made.authority.data / "server" / "server.toml").open("a") as file:
            file.write('witness_claims = "prove"\n')
        made.authority.start()
        assert made.ready()["status"] == "ready"
        kinds = run([EASTWEST, "log", "show", "--data", made.authority.data, "--kind", "log.split_view"])
        assert "log.split_view" in kinds
    finally:
        made.stop()
