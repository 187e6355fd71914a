"""The pages about policy keep their promises: their commands run here as they stand and print what the pages show."""

import datetime as dt
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

import guide_pages
import pytest

from eastwest.cli.estate import read_directory
from eastwest.policy.plan import plan_files
from eastwest.policy.render import problem_lines

pytestmark = [
    pytest.mark.skipif(
        shutil.which("bash") is None or shutil.which("curl") is None, reason="the pages are written for bash and curl"
    ),
    pytest.mark.timeout(240),
]
SECONDS = 200
TEMPLATES = resources.files("eastwest.cli.demo") / "templates"


@pytest.fixture
def place():
    """A short path: sockets will lie below it."""
    made = Path(tempfile.mkdtemp(prefix="ewp-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    for running in made.glob("*/company/demo/processes.json"):
        stop = [sys.executable, "-m", "eastwest.cli.main", "demo", "--stop", str(running.parents[1])]
        subprocess.run(stop, check=True, capture_output=True)
    shutil.rmtree(made, ignore_errors=True)


def differences(blocks, printed):
    """What a page shows otherwise than it was printed, and what it should have shown."""
    return [
        wrong
        for block, text in zip(blocks, printed, strict=True)
        if (wrong := guide_pages.complaint(block.output or "", text))
    ]


def test_every_command_of_writing_policy_prints_what_the_page_shows(place):
    blocks = [block for block in guide_pages.blocks("write-policy.md") if block.language == "sh"]
    assert len(blocks) == 11
    scripts = [block.text.replace("/tmp/policy", str(place / "policy")) for block in blocks]
    printed = guide_pages.run_in_one_shell(place, scripts, timeout=SECONDS)
    wrong = differences(blocks, printed)
    assert not wrong, "\n".join(wrong)
    assert not (place / "policy").exists()


@pytest.mark.parametrize(
    ("page", "directory", "count"), [("demand-step-up.md", "step-up", 12), ("forward-transactions.md", "forward", 9)]
)
def test_every_command_about_tokens_prints_what_the_page_shows(place, page, directory, count):
    """Against the demonstration's company, which the page itself starts and ends."""
    blocks = [block for block in guide_pages.blocks(page) if block.language == "sh"]
    assert len(blocks) == count
    scripts = [block.text.replace(f"/tmp/{directory}", str(place / "d")) for block in blocks]
    printed = guide_pages.run_in_one_shell(place, scripts, timeout=SECONDS)
    wrong = differences(blocks, printed)
    assert not wrong, "\n".join(wrong)
    assert not (place / "d").exists()


@pytest.mark.parametrize("page", ["demand-step-up.md", "forward-transactions.md"])
def test_what_the_pages_show_of_the_demonstrations_files_is_in_them(page):
    files = [file for folder in TEMPLATES.iterdir() if folder.is_dir() for file in folder.iterdir()]
    estate = "".join(file.read_text() for file in files)
    shown = [block.text for block in guide_pages.blocks(page) if block.language in {"yaml", "cedar"}]
    assert shown
    assert all(text in estate for text in shown if text.startswith(("  - name: ", "@id")))
    assert sum(text.startswith(("  - name: ", "@id")) for text in shown) == 1


def test_every_mistake_of_writing_policy_is_told_as_the_page_shows(place):
    """Each policy of the page that stands by itself, in the estate as it was when the page ended."""
    blocks = guide_pages.blocks("write-policy.md")
    files = [block.text for block in blocks if block.language == "sh" and "cat >" in block.text]
    script = "\n".join(re.sub(r"^eastwest(?:.*\\\n)*.*\n|^until .*\n", "", text, flags=re.MULTILINE) for text in files)
    assert "server run" not in script
    guide_pages.run_in_one_shell(place, [script.replace("/tmp/policy", str(place / "policy"))], timeout=SECONDS)
    estate = read_directory(place / "policy" / "estate")
    today = dt.date(2026, 11, 22)
    assert plan_files(estate, today).ok
    mistakes = [block for block in blocks if block.language == "cedar"]
    assert len(mistakes) >= 10
    told = []
    for mistake in mistakes:
        plan = plan_files(estate | {"policies/try.cedar": mistake.text.encode()}, today)
        told.append("\n".join(problem_lines(plan, "estate/")))
    assert [block.output.strip() for block in mistakes] == told


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb", "a\nb", True),
        ("a\n...\nc", "a\nb1\nb2\nc", True),
        ("a\n...", "a\nb", True),
        ("a\n...\nc", "a\nc", True),
        ("a\nc", "a\nb\nc", False),
        ("a", "a\nb", False),
        ("", "a", False),
        ("at 2026-11-22T04:46:17.686737Z", "at 2027-01-01T00:00:00Z", True),
        ("version " + "0a" * 32, "version " + "1b" * 32, True),
        ("version " + "0a" * 32, "version of nothing", False),
    ],
)
def test_what_counts_as_the_same(shown, printed, same):
    assert (guide_pages.complaint(shown, printed) == "") is same


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="the page acts as another user, by setpriv and as root"
)
def test_a_change_is_approved_as_the_page_says(place):
    blocks = [block for block in guide_pages.blocks("approve-a-change.md") if block.language == "sh"]
    assert len(blocks) == 7
    # The other user has to find this interpreter, which may lie in somebody's home.
    (place / "bin").mkdir()
    look = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
    (place / "bin" / "setpriv").write_text(f'#!/bin/sh\nexec {shutil.which("setpriv")} {look} "$@"\n')
    (place / "bin" / "setpriv").chmod(0o755)
    scripts = [block.text.replace("/tmp/words", str(place / "w")) for block in blocks]
    printed = guide_pages.run_in_one_shell(place, scripts, timeout=SECONDS)
    wrong = differences(blocks, printed)
    assert not wrong, "\n".join(wrong)
    assert not (place / "w").exists()


def test_a_change_rolls_out_and_back_as_the_page_says(place):
    blocks = [block for block in guide_pages.blocks("roll-out-a-change.md") if block.language == "sh"]
    assert len(blocks) == 5
    scripts = [block.text.replace("/tmp/rings", str(place / "r")) for block in blocks]
    printed = guide_pages.run_in_one_shell(place, scripts, timeout=SECONDS)
    wrong = differences(blocks, printed)
    assert not wrong, "\n".join(wrong)
    assert not (place / "r").exists()
