"""Tools of others judge our transparency log: a verifier on torchwood and x/mod, and Tessera's fsck.

They read the published files only: `checkpoint`, `tile/` and the verifier key.
"""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from interop_harness import (
    TRUST_DOMAIN,
    Authority,
    Peers,
    attempt,
    checkpoint_size,
    run,
    wait_for,
    workload_id,
)

PARENT = f"spiffe://{TRUST_DOMAIN}/spire/agent/join_token/no-such-node"
# fsck retries a tile that does not match for ever, so its time is bounded and running out of it is a refusal.
FSCK_SECONDS = 10


@pytest.fixture(scope="module")
def written(authority: Authority) -> Authority:
    """A server whose log holds more than one full tile of entries, all of them under a checkpoint."""
    entries = [
        {
            "spiffe_id": workload_id(f"logged/{number}"),
            "parent_id": PARENT,
            "selectors": [{"type": "unix", "value": f"uid:{number + 1}"}],
        }
        for number in range(300)
    ]
    authority.cli("entry", "create", "-data", "-", stdin=json.dumps({"entries": entries}), seconds=120)
    wait_for("checkpoint over all entries", lambda: checkpoint_size(authority.log) >= 300)
    return authority


@pytest.fixture
def copy(written: Authority, tmp_path: Path) -> Path:
    """A copy of the log's published files that a test may spoil."""
    return Path(shutil.copytree(written.log, tmp_path / "log"))


def test_torchwood_accepts_the_log(written: Authority, peers: Peers) -> None:
    lines = run([peers.tlog_verify, "-vkey", written.log_key, "-entries", written.log]).splitlines()
    verdict, entries = json.loads(lines[-1]), lines[:-1]
    assert verdict["size"] == len(entries) >= 300
    for text in entries:
        entry = json.loads(text)
        assert entry["v"] == 1
        assert entry["kind"]
        canonical = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert text == canonical, "an entry is canonical JSON"


def test_fsck_accepts_the_log(written: Authority, peers: Peers) -> None:
    assert _fsck(peers, written.log, written.log_key) is None


def test_a_later_log_extends_an_earlier_one(written: Authority, peers: Peers, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    shutil.copy(written.log / "checkpoint", earlier)
    _grow(written, "grown")
    run([peers.tlog_verify, "-vkey", written.log_key, "-against", earlier, written.log])


def test_a_killed_servers_log_goes_on(written: Authority, peers: Peers, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    shutil.copy(written.log / "checkpoint", earlier)
    written.stop(signal.SIGKILL)
    written.start()
    _grow(written, "after-the-kill")
    run([peers.tlog_verify, "-vkey", written.log_key, "-against", earlier, written.log])


@pytest.mark.parametrize("name", ["tile/entries/000", "tile/0/000"])
def test_one_flipped_bit_is_found(written: Authority, peers: Peers, copy: Path, name: str) -> None:
    _flip(copy / name, 1000)
    refused = attempt([peers.tlog_verify, "-vkey", written.log_key, copy])
    assert refused.returncode != 0
    assert "entry" in refused.stderr or "hash" in refused.stderr or "tile" in refused.stderr
    assert _fsck(peers, copy, written.log_key) is not None


def test_an_entry_exchanged_for_another_is_found(written: Authority, peers: Peers, copy: Path) -> None:
    bundle = copy / "tile" / "entries" / "000"
    data = bundle.read_bytes()
    assert b"/logged/7" in data
    bundle.write_bytes(data.replace(b"/logged/7", b"/logged/8", 1))
    assert "hash mismatch" in attempt([peers.tlog_verify, "-vkey", written.log_key, copy]).stderr


@pytest.mark.parametrize("spoil", [lambda text: text.replace("\n", "0\n", 2), lambda text: text[:-10] + "AAAAAAAA=\n"])
def test_a_checkpoint_that_was_changed_is_refused(
    written: Authority, peers: Peers, copy: Path, spoil: Callable[[str], str]
) -> None:
    checkpoint = copy / "checkpoint"
    checkpoint.write_text(spoil(checkpoint.read_text()))
    # The last line is the ML-DSA-44 signature, which only readers with its key look at.
    keys = ["-vkey", written.log_key, "-mldsa", written.log_key.with_name("log.ml-dsa-44.vkey")]
    refused = attempt([peers.tlog_verify, *keys, copy])
    assert refused.returncode != 0
    assert "checkpoint" in refused.stderr


def _grow(authority: Authority, name: str) -> None:
    before = checkpoint_size(authority.log)
    authority.register(name, PARENT, "unix:uid:424242")
    wait_for("larger checkpoint", lambda: checkpoint_size(authority.log) > before)


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def _fsck(peers: Peers, log: Path, key: Path) -> str | None:
    """What Tessera's fsck has against the log. It ends with status 0 whatever it finds, so its words decide."""
    place = ["-storage_url", f"file://{log.resolve()}", "-public_key", key]
    try:
        done = attempt([peers.fsck, "-ui=false", "-logtostderr", "-v", "1", *place], seconds=FSCK_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not done in {FSCK_SECONDS} s"
    return None if "Successfully fsck'd" in done.stderr else done.stderr
