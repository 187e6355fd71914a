"""The page about failures keeps its promises, against the demonstration's company."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import guide_pages
import pytest

pytestmark = [
    pytest.mark.skipif(
        not all(map(shutil.which, ("bash", "curl", "openssl"))), reason="the page is written for bash, curl and openssl"
    ),
    pytest.mark.timeout(180),
]


@pytest.fixture
def place():
    """A short path: sockets will lie below it."""
    made = Path(tempfile.mkdtemp(prefix="ewf-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    for running in made.glob("*/company/demo/processes.json"):
        stop = [sys.executable, "-m", "eastwest.cli.main", "demo", "--stop", str(running.parents[1])]
        subprocess.run(stop, check=True, capture_output=True)
    shutil.rmtree(made, ignore_errors=True)


def settled(text: str) -> str:
    """Without how many calls the demonstration makes, which differs, and what follows from that."""
    text = re.sub(r"^.* burn faster than .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"(%\s+\d+d)\s+\d+\s+\d+\s+-?[\d.]+%(\s+[\d.]+){3}", r"\1", text)


def test_every_command_prints_what_the_page_shows(place):
    blocks = [block for block in guide_pages.blocks("watch-identity-failures.md") if block.language == "sh"]
    assert len(blocks) == 8
    scripts = [block.text.replace("/tmp/failures", str(place / "f")) for block in blocks]
    printed = guide_pages.run_in_one_shell(place, scripts, timeout=150)
    pairs = zip(blocks, printed, strict=True)
    wrong = [guide_pages.complaint(settled(block.output or ""), settled(text)) for block, text in pairs]
    assert not any(wrong), "\n".join(wrong)
    assert not (place / "f").exists()
