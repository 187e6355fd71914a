"""The guide of README.md: its script keeps its promises, and the page says what the script does."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from eastwest.testing.ports import free_ports

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/two-services"
GUIDE = (ROOT / "README.md").read_text().partition("## Ten minutes")[2].partition("\n## ")[0]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCE.findall(GUIDE)
SECONDS = 110

needs_tools = pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("bash") is None or not (ROOT / ".venv/bin/eastwest").exists(),
    reason="the guide needs curl, bash and what `make setup` makes",
)


@pytest.fixture
def place():
    """A short path that does not exist yet and that any user could enter: sockets will lie in it."""
    parent = Path(tempfile.mkdtemp(prefix="ewg-", dir="/tmp"))
    parent.chmod(0o755)
    yield parent / "two"
    shutil.rmtree(parent, ignore_errors=True)


def run_guide(place, **environment):
    """The script's output and exit code; it and all it started are ended when it takes too long."""
    ports = free_ports(2)
    given = {"ORDERS_PORT": str(ports[0]), "STOCK_PORT": str(ports[1]), "PATIENCE": "40"}
    script = subprocess.Popen(
        [EXAMPLE / "run.sh", place],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | given | environment,
        start_new_session=True,
    )
    try:
        output, _ = script.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(script.pid, signal.SIGTERM)
        output, _ = script.communicate(timeout=20)
        pytest.fail(f"the guide did not end:\n{output}")
    return output, script.returncode


@needs_tools
def test_every_step_of_the_guide_does_what_it_says(place):
    output, status = run_guide(place)
    assert status == 0, output
    assert output.rstrip().endswith("Every step did what the guide says.")
    assert not place.exists()


@needs_tools
def test_a_step_that_does_something_else_fails_the_guide(place):
    """Somebody else has the port: the sidecar cannot listen, and no step after that goes as it should."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        output, status = run_guide(place, STOCK_PORT=str(taken.getsockname()[1]), PATIENCE="8")
    assert status != 0, output
    assert "FAILED" in output
    assert not place.exists()


def test_the_files_shown_are_the_files_of_the_example():
    shown = {}
    for _, text in BLOCKS:
        first, _, rest = text.partition("\n")
        if first.startswith("# estate/"):
            shown[first.removeprefix("# ")] = rest
    real = {
        str(path.relative_to(EXAMPLE)): path.read_text() for path in (EXAMPLE / "estate").rglob("*") if path.is_file()
    }
    assert shown == real


def commands(text):
    """Lines that do something, without what differs between reading and running."""
    joined = text.replace("\\\n", " ")
    return [" ".join(line.split("  #")[0].split()) for line in joined.splitlines() if line.strip()]


def test_the_commands_shown_are_the_commands_that_run():
    """In the same order; how to wait and how to end are the script's own affair."""
    text = (EXAMPLE / "run.sh").read_text().replace('"$place"', "/tmp/two-services").replace("$port", "18442")
    script = iter(commands(text))
    shown = [line for kind, text in BLOCKS if kind == "sh" for line in commands(text)]
    assert len(shown) > 30
    for line in shown:
        if not line.startswith(("until ", "sleep ", "make setup", "kill ", "cd / ")):
            assert line in script, f"{line!r} is not in run.sh, or not in this order"
