"""The auditor's single file: run alone, where this project cannot be imported, on a log of real processes."""

import json
import select
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from server_process import EASTWEST, ServerProcess, eastwest

from eastwest.log.checkpoint import open_checkpoint_of_all
from eastwest.log.note import NoteKey

# The interpreter sees the standard library and what is linked beside the file: cryptography and its foreign functions.
LINKED = ("cryptography", "_cffi_backend*", "cffi", "pycparser")
RUN = """
import runpy, sys
del sys.argv[0]
sys.path.insert(0, sys.argv.pop(0))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Auditor:
    """An empty directory with the verifier in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "verify_log.py"
        self.file.write_text(eastwest("log", "verifier").stdout)
        self.linked = folder / "linked"
        self.linked.mkdir()
        site = Path(sysconfig.get_path("platlib"))
        for pattern in LINKED:
            for found in site.glob(pattern):
                (self.linked / found.name).symlink_to(found)

    def python(self, *words):
        return subprocess.run(
            [sys.executable, "-I", "-S", *map(str, words)],
            cwd=self.folder, capture_output=True, text=True, timeout=60, check=False, env={},
        )  # fmt: skip

    def verify(self, *words):
        done = self.python("-c", RUN, self.linked, self.file, *words)
        assert done.returncode in {0, 1}, done.stderr
        assert "Traceback" not in done.stderr
        assert (done.returncode == 0) == ('"verified": true' in done.stdout)
        return done


class WitnessProcess:
    """`eastwest witness run`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        done = eastwest("witness", "init", "--dir", folder, "--name", "witness.partner.test/w1", "--port", 0)
        assert done.returncode == 0, done.stderr
        self.vkeys = [(folder / name).read_text().strip() for name in ("witness.vkey", "witness.ml-dsa-44.vkey")]
        self.process = None

    def start(self):
        with (self.folder / "err").open("ab") as errors:
            self.process = subprocess.Popen(
                [*EASTWEST, "witness", "run", "--config", str(self.folder / "witness.toml")],
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        readable, _, _ = select.select([self.process.stdout], [], [], 30)
        line = self.process.stdout.readline().decode() if readable else ""
        assert "witness ready" in line, (self.folder / "err").read_text()
        return f"http://127.0.0.1:{(self.folder / 'witness.port').read_text().strip()}/"

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(15) == 0
            self.process.stdout.close()


class World:
    """A server whose log a witness of another organisation watches."""

    def __init__(self, folder: Path) -> None:
        self.server = ServerProcess(folder / "data", "shop.test")
        self.server.init()
        self.home = folder / "data" / "server"
        self.log = self.home / "log"
        self.keys = [self.home / "log.vkey", self.home / "log.ml-dsa-44.vkey"]
        self.witness = WitnessProcess(folder / "witness")
        vkeys = json.dumps([key.read_text().strip() for key in self.keys])
        with (folder / "witness" / "witness.toml").open("a") as file:
            file.write(f"\n[[logs]]\nvkeys = {vkeys}\n")
        self.policy = self.home / "witnesses.policy"

    def start(self):
        url = self.witness.start()
        lines = [f"log {key.read_text().strip()}" for key in self.keys]
        lines += [f"witness w{i} {vkey} {url}" for i, vkey in enumerate(self.witness.vkeys)]
        self.policy.write_text("\n".join([*lines, "group partner all w0 w1", "quorum partner", ""]))
        with (self.home / "server.toml").open("a") as file:
            file.write('\n[log]\nport = 0\nwitness_policy = "witnesses.policy"\n')
        self.server.start()
        deadline = time.monotonic() + 30
        while self.witnessed() < 7:
            assert time.monotonic() < deadline, (self.server.data / "server.err").read_text()
            time.sleep(0.05)

    def witnessed(self):
        """The size of the last checkpoint that the witness has signed."""
        file = self.log / "checkpoint.witnessed"
        return int(file.read_text().split("\n")[1]) if file.exists() else 0

    @property
    def url(self):
        return f"http://127.0.0.1:{(self.home / 'log.port').read_text().strip()}"

    def vkeys(self, *keys):
        return [word for key in keys or self.keys for word in ("--vkey", key)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    try:
        made.start()
        yield made
    finally:
        made.server.kill()
        made.witness.stop()


@pytest.fixture(scope="module")
def auditor(tmp_path_factory):
    return Auditor(tmp_path_factory.mktemp("auditor"))


@pytest.fixture
def copy(world, tmp_path):
    """The public files as the auditor got them; with the witnessed checkpoint as the checkpoint, so that all agree."""
    folder = tmp_path / "log"
    shutil.copytree(world.log, folder)
    shutil.copy(folder / "checkpoint.witnessed", folder / "checkpoint")
    return folder


def test_the_file_is_small_and_stands_alone(auditor):
    text = auditor.file.read_text()
    assert text.count("\n") < 300
    assert "import eastwest" not in text
    assert "from eastwest" not in text
    alone = auditor.python("-c", "import eastwest")
    assert "No module named 'eastwest'" in alone.stderr


def test_a_directory_and_a_url_verify_with_both_keys_and_the_witnesses(world, auditor, copy):
    for place in (copy, world.url):
        done = auditor.verify(place, *world.vkeys(), "--policy", world.policy)
        told = json.loads(done.stdout)
        assert told["origin"] == "shop.test/eastwest-log"
        assert told["size"] >= 7
    assert auditor.verify(copy, "--policy", world.policy).returncode == 0, "the policy names the log"
    assert auditor.verify(copy, *world.vkeys(world.keys[0]), "--against", world.log / "checkpoint").returncode == 0


def test_ours_and_the_witness_agree_and_the_probe_says_so(world):
    status = json.loads(
        eastwest("witness", "status", "--config", world.witness.folder / "witness.toml", "--json").stdout
    )
    assert status["logs"][0]["origin"] == "shop.test/eastwest-log"
    assert (status["logs"][0]["size"] >= 7, status["conflicts"]) == (True, [])
    same = eastwest("witness", "check", world.log, world.url, "--vkey", world.keys[0])
    assert (same.returncode, "same tree" in same.stdout or "beginning" in same.stdout) == (0, True), same.stderr


@pytest.mark.parametrize("path", ["checkpoint", "tile/entries", "tile/0"])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_one_flipped_bit_anywhere_is_found(world, auditor, copy, path, place):
    [file] = [copy / path] if path == "checkpoint" else [f for f in (copy / path).rglob("*") if f.is_file()]
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 1
    file.write_bytes(data)
    shutil.copy(copy / "checkpoint", copy / "checkpoint.witnessed")
    done = auditor.verify(copy, *world.vkeys(), "--policy", world.policy)
    assert (done.returncode, "NOT VERIFIED" in done.stderr) == (1, True)


def test_what_is_not_all_there_is_refused(world, auditor, copy, tmp_path):
    stranger = tmp_path / "stranger.vkey"
    stranger.write_text("o.test/log+7ee4ff3a+AYq1bQ==\n")
    assert auditor.verify(copy, "--vkey", stranger).returncode == 1
    assert auditor.verify(copy, "--vkey", world.witness.vkeys[0]).returncode == 1, "a witness is not the log"
    lines = (copy / "checkpoint").read_text().splitlines(keepends=True)
    for kept, told in ((lines[:5], "not signed by"), (lines[:6], "too few witnesses")):
        (copy / "checkpoint.witnessed").write_text("".join(kept))
        done = auditor.verify(copy, *world.vkeys(), "--policy", world.policy)
        assert (done.returncode, told in done.stderr) == (1, True), done.stderr
    twice = tmp_path / "policy"
    twice.write_text(
        f"witness a {world.witness.vkeys[0]}\nwitness b {world.witness.vkeys[0]}\ngroup g 2 a b\nquorum g\n"
    )
    assert "twice" in auditor.verify(copy, *world.vkeys(), "--policy", twice).stderr
    [bundle] = [f for f in (copy / "tile/entries").rglob("*") if f.is_file()]
    bundle.unlink()
    assert "is missing" in auditor.verify(copy, *world.vkeys()).stderr
    assert auditor.verify(copy, *world.vkeys(), "--minimum", "100000").returncode == 0, "pruned by a stated policy"


def test_a_proof_is_verified_without_the_log(world, auditor, copy, tmp_path):
    vkey = world.keys[0]
    shown = json.loads(eastwest("log", "prove", 3, "--log-dir", copy, "--vkey", vkey, "--json").stdout)
    proof, entry = tmp_path / "proof", tmp_path / "entry"
    proof.write_text(shown["proof"])
    entry.write_text(json.dumps(shown["entry"], sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    words = ("--proof", proof, "--entry", entry, *world.vkeys(), "--policy", world.policy)
    assert auditor.verify(*words).returncode == 0
    entry.write_text(entry.read_text().replace('"v":1', '"v":2'))
    assert "is not number 3" in auditor.verify(*words).stderr
    entry.write_text(entry.read_text().replace('"v":2', '"v":1'))
    proof.write_text(shown["proof"].replace("index 3", "index 2"))
    assert auditor.verify(*words).returncode == 1


def test_a_server_that_lost_its_ml_dsa_key_or_saw_a_fork_does_not_start(world, tmp_path):
    copied = tmp_path / "data"
    shutil.copytree(world.server.data, copied, ignore=shutil.ignore_patterns("*.sock", "*.port", "lock"))
    (copied / "server" / "log-fork.txt").write_text("evidence\n")
    forked = eastwest("server", "run", "--data", copied)
    assert (forked.returncode, "another history" in forked.stderr) == (1, True), forked.stderr
    assert "recover-the-log.md" in forked.stderr
    checked = eastwest("server", "check", "--data", copied)
    assert (checked.returncode, "another history" in checked.stdout) == (1, True), checked.stdout
    (copied / "server" / "log-fork.txt").unlink()
    (copied / "server" / "keys" / "log-ml-dsa-1.pem").unlink()
    lost = eastwest("server", "run", "--data", copied)
    assert (lost.returncode, "ML-DSA-44 key" in lost.stderr) == (1, True), lost.stderr


def test_a_log_from_before_there_was_a_second_key_gets_one_and_says_so(world, tmp_path):
    copied = tmp_path / "data"
    shutil.copytree(world.server.data, copied, ignore=shutil.ignore_patterns("*.sock", "*.port", "lock", "*.policy"))
    home = copied / "server"
    (home / "server.toml").write_text((home / "server.toml").read_text().partition("\n[log]\n")[0])
    for name in ("log.ml-dsa-44.vkey", "keys/log-ml-dsa-1.pem", "log/checkpoint.witnessed"):
        (home / name).unlink()
    checkpoint = home / "log/checkpoint"
    text, _, signatures = checkpoint.read_text().partition("\n\n")
    checkpoint.write_text(f"{text}\n\n{signatures.splitlines()[0]}\n")
    server = ServerProcess(copied, "shop.test")
    server.start()
    server.stop()
    again = json.loads(eastwest("log", "show", "--data", copied, "--kind", "log.key_added", "--json").stdout)
    assert again["entries"][-1]["entry"]["vkey"] == (home / "log.ml-dsa-44.vkey").read_text().strip()
    assert (home / "log.vkey").read_text() == world.keys[0].read_text()
    keys = [NoteKey.parse((home / name).read_text()) for name in ("log.vkey", "log.ml-dsa-44.vkey")]
    assert open_checkpoint_of_all(checkpoint.read_bytes(), keys).size > int(text.split("\n")[1])
