"""``eastwest demo`` as people run it: it keeps its promises, two of them do not meet, and nothing is left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

EASTWEST = [sys.executable, "-m", "eastwest.cli.main"]
TIMEOUT = 90
README = (Path(__file__).parents[2] / "README.md").read_text()


def start(temporary, *flags):
    """A demo whose temporary directory lies in ``temporary``, so that what it leaves can be seen."""
    temporary.mkdir(mode=0o755)
    environment = os.environ | {"TMPDIR": str(temporary)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.Popen(
        [*EASTWEST, "demo", *flags],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(demo):
    """Output, progress and exit code of a demo."""
    try:
        output, progress = demo.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        demo.terminate()
        output, progress = demo.communicate(timeout=TIMEOUT)
        pytest.fail(f"the demo did not end:\n{progress}")
    return output, progress, demo.returncode


def processes_naming(directory):
    """Processes with ``directory`` in their command line or among the names of their programs."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                text = (process / "cmdline").read_bytes() + os.fsencode((process / "exe").readlink())
            except OSError:
                continue
            if os.fsencode(directory) in text:
                found.append(int(process.name))
    return found


def left_behind(directory):
    """Processes and data directories of demos below ``directory``."""
    # `os.walk`, for it does not mind directories that are being removed.
    found = [Path(folder) for folder, _, _ in os.walk(directory) if Path(folder).name.startswith("eastwest-demo-")]
    return [*processes_naming(directory), *found]


def wait_for(demo, moment):
    """Read the demo's progress until it tells of ``moment``."""
    for line in demo.stderr:
        if moment in line:
            return
    pytest.fail(f"the demo ended with {demo.wait()}")


@pytest.fixture
def short():
    """A directory with a short name that any uid may enter: sockets lie in it."""
    made = Path(tempfile.mkdtemp(prefix="ewt-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_two_demos_side_by_side_keep_every_promise(short):
    demos = [start(short / name, "--json") for name in ("one", "two")]
    results = []
    for demo in demos:
        output, progress, code = finish(demo)
        assert output, progress
        result = json.loads(output)
        failed = [each for each in result["expectations"] if not each["ok"]]
        assert (failed, code) == ([], 0), progress
        results.append(result)
    for result in results:
        names = {each["name"] for each in result["expectations"]}
        assert {
            "weak.disable-user",
            "weak.other-tenants-invoices",
            "mode.permissive-plaintext",
            "mode.strict-plaintext",
            "strong.disable-user",
            "strong.other-tenants-invoices",
            "strong.unlisted-export",
            "strong.straight-to-the-port",
            "strong.tls-without-certificate",
            "strong.console-disables-user",
            "strong.notification-own-interface",
            "strong.console-without-token",
            "strong.mute-with-stolen-token",
            "strong.mute-with-other-token",
            "strong.mute-with-forged-token",
            "strong.console-repeats-itself",
            "strong.notification-mutes-for-the-console",
            "step-up.console-asks-to-disable",
            "step-up.console-asks-again",
            "step-up.approval-granted-by-another",
            "step-up.every-step-is-in-the-log",
            "rotation.failed-calls",
            "rotation.new-certificate-presented",
            "ledger.agrees-with-callers",
            "log.verifies",
            "log.issuances-proved",
        } <= names
        codes = {call["code"] for call in result["strong"]["calls"] if call["attack"] and call["code"]}
        expected = {"MTLS_REQUIRED", "OPERATION_NOT_PERMITTED", "TENANT_NOT_PERMITTED", "UNLISTED_OPERATION"}
        tokens = {"STEP_UP_REQUIRED", "TOKEN_INVALID", "TOKEN_WRONG_ACTION", "TOKEN_WRONG_CALLER"}
        assert codes == expected | tokens
        asked = {each["name"]: each["observed"] for each in result["step_up"]["asked"]}
        assert asked["console-asks-to-disable"] == "APPROVAL_REQUIRED"
        assert {name for name, found in asked.items() if found == "a token"} == {
            "console-asks-again",
            "console-asks-to-mute",
            "console-begins-a-transaction",
            "notification-goes-on-with-it",
        }
        assert result["step_up"]["log_entries"]["token.minted"] == 4
        policies = {call["name"]: call["policy"] for call in result["strong"]["calls"]}
        assert policies["console-disables-user"] == "console-administers-users"
        assert result["weak"]["shared_key"]["fingerprint"].startswith("sha256:")
        assert policies["notification-mutes-for-the-console"] == "notification-mutes-for-the-console"
        assert "ik-" not in json.dumps(result)
        assert "eyJ" not in json.dumps(result)
        if os.geteuid() == 0:  # two attacks more than as another user
            count = len(names)
            assert f"\n{count} of {count} expectations hold, in " in README
        assert result["workloads_told_apart_by"] == ("uid" if os.geteuid() == 0 else "path")
    assert results[0]["rotation"]["before"] != results[1]["rotation"]["before"]
    assert left_behind(short) == []


@pytest.mark.parametrize(
    ("number", "moment", "running"),
    [(signal.SIGINT, "outcome A", 1), (signal.SIGTERM, "went strict", 14)],
)
def test_a_signal_leaves_nothing_behind(short, number, moment, running):
    demo = start(short / "tmp", "--json")
    wait_for(demo, moment)
    assert len(processes_naming(short)) >= running
    demo.send_signal(number)
    output, progress, code = finish(demo)
    assert (code, output) == (128 + number, ""), progress
    assert "Traceback" not in progress
    assert left_behind(short) == []


def test_kill_9_leaves_nothing_behind(short):
    demo = start(short / "tmp", "--json")
    wait_for(demo, "sidecars enforce")
    demo.kill()
    finish(demo)
    deadline = time.monotonic() + 20
    while (left := left_behind(short)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def test_a_demo_that_cannot_start_says_why_and_leaves_nothing(short):
    demo = start(short / "tmp", "--data", str(short / ("d" * 100)))
    output, progress, code = finish(demo)
    assert (code, output) == (1, "")
    assert "choose a shorter --data DIR" in progress
    assert processes_naming(short) == []
    busy = short / "busy"
    busy.mkdir()
    (busy / "file").touch()
    demo = subprocess.run([*EASTWEST, "demo", "--data", str(busy)], capture_output=True, text=True, check=False)
    assert demo.returncode == 1
    assert "is not empty" in demo.stderr


def test_what_is_kept_runs_on_until_it_is_stopped(short):
    """In a directory that other users cannot enter, so that workloads are told apart by path, even for root."""
    closed = short / "closed"
    closed.mkdir(mode=0o700)
    data = closed / "kept"
    output, progress, code = finish(start(short / "tmp", "--keep", "--json", "--data", str(data)))
    assert code == 0, progress
    result = json.loads(output)
    try:
        assert (result["workloads_told_apart_by"], bool(result["weaker"])) == ("path", True)
        assert {process["pid"] for process in result["processes"]} <= set(processes_naming(""))
        status = subprocess.run([*EASTWEST, "mesh", "status", "--data", str(data)], check=False, capture_output=True)
        assert status.returncode == 0, status.stdout
        verified = subprocess.run([*EASTWEST, "log", "verify", "--data", str(data)], check=False, capture_output=True)
        assert verified.returncode == 0, verified.stdout
    finally:
        stopped = subprocess.run([*EASTWEST, "demo", "--stop", str(data)], check=False, capture_output=True, text=True)
    assert stopped.returncode == 0
    assert f"ended {len(result['processes'])} processes" in stopped.stdout
    assert processes_naming(short) == []
