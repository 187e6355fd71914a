"""The page about verify runs keeps its promises, against the demonstration's company."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import guide_pages
import pytest

pytestmark = [
    pytest.mark.skipif(shutil.which("bash") is None, reason="the page is written for bash"),
    pytest.mark.timeout(180),
]


@pytest.fixture
def place():
    """A short path: sockets will lie below it."""
    made = Path(tempfile.mkdtemp(prefix="ewv-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    for running in made.glob("*/company/demo/processes.json"):
        stop = [sys.executable, "-m", "eastwest.cli.main", "demo", "--stop", str(running.parents[1])]
        subprocess.run(stop, check=True, capture_output=True)
    shutil.rmtree(made, ignore_errors=True)


def settled(text: str) -> str:
    """Without what differs from run to run: ports, versions, how long it took."""
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", text)
    text = re.sub(r"rules [0-9a-f]{12}|under [0-9a-f]{12}", "rules", text)
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "id", text)
    text = re.sub(r" +", " ", text)
    text = re.sub(r"^ ?\d+ (?=\d{4}-)", "", text, flags=re.MULTILINE)
    return re.sub(r", [\d.]+ s:|of \d+ entries", "", text)


def test_every_command_prints_what_the_page_shows(place):
    blocks = [block for block in guide_pages.blocks("prove-what-runs.md") if block.language == "sh"]
    assert len(blocks) == 6
    scripts = [block.text.replace("/tmp/proof", str(place / "p")).replace("-r proof", "-r p") for block in blocks]
    scripts[-1] = scripts[-1].replace("cd /tmp &&", f"cd {place} &&")
    printed = guide_pages.run_in_one_shell(place, scripts, timeout=150)
    pairs = zip(blocks, printed, strict=True)
    wrong = [guide_pages.complaint(settled(block.output or ""), settled(text)) for block, text in pairs]
    assert not any(wrong), "\n".join(wrong)
    assert not (place / "p").exists()
