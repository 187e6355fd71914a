"""The pages about rules on trial and explanations: their commands run as they stand, against one company for both."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import guide_pages
import pytest

pytestmark = [
    pytest.mark.skipif(
        shutil.which("bash") is None or shutil.which("curl") is None, reason="the pages are written for bash and curl"
    ),
    pytest.mark.timeout(240),
]


@pytest.fixture
def place():
    """A short path: sockets will lie below it."""
    made = Path(tempfile.mkdtemp(prefix="ewx-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    for running in made.glob("*/company/demo/processes.json"):
        stop = [sys.executable, "-m", "eastwest.cli.main", "demo", "--stop", str(running.parents[1])]
        subprocess.run(stop, check=True, capture_output=True)
    shutil.rmtree(made, ignore_errors=True)


def test_every_command_prints_what_the_pages_show(place):
    explain, trial = (
        [block for block in guide_pages.blocks(page) if block.language == "sh"]
        for page in ("explain-a-decision.md", "try-a-rule-before-it-counts.md")
    )
    assert (len(explain), len(trial)) == (7, 5)
    # Both begin and end alike: the second goes on in the company of the first.
    assert (explain[0], explain[-1]) == (trial[0], trial[-1])
    blocks = [*explain[:-1], *trial[1:]]
    scripts = [block.text.replace("/tmp/trial", str(place / "d")) for block in blocks]
    printed = guide_pages.run_in_one_shell(place, scripts, timeout=200)
    wrong = [
        said
        for block, text in zip(blocks, printed, strict=True)
        if (said := guide_pages.complaint(block.output or "", text))
    ]
    assert not wrong, "\n".join(wrong)
    assert not (place / "d").exists()
