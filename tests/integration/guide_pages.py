"""Pages of docs/ whose commands are run as they stand, and whose output is compared with what the page shows.

A page is a row of ``sh`` blocks for one shell. A block without a language after one shows what it prints, standard
error too: every line must come, in this order; ``...`` alone stands for any lines. What differs from run to run (times,
versions, ids) is compared by its form.
"""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VOLATILE = (
    (re.compile(r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]+Z"), "TIME"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "UUID"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "HASH"),
    (re.compile(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{12,40}\b"), "ID"),
    (re.compile(r"\beyJ[\w.-]*\.\.\.|\beyJ[\w-]+\.[\w-]+\.[\w-]+"), "JWT"),
    (re.compile(r"\b1[0-9]{9}\b"), "UNIX"),
    (re.compile(r"\brow [0-9]+, version"), "row N, version"),
    (re.compile(r"^[0-9]+(?= {2,}TIME)", re.MULTILINE), "ROW"),
    (re.compile(r"^ *[0-9]+(?= +TIME)", re.MULTILINE), "ROW"),
    (re.compile(r"\bunix:uid:[0-9]+"), "unix:uid:N"),
    (re.compile(r" {2,}"), "  "),
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block and, where the next one shows its output, that."""

    language: str
    text: str
    output: str | None


def blocks(page: str) -> list[Block]:
    """The blocks of a page of docs/how-to that have a language."""
    text = (ROOT / "docs" / "how-to" / page).read_text()
    found = list(_FENCE.finditer(text))
    made = []
    for this, after in zip(found, [*found[1:], None], strict=True):
        if not this[1]:
            continue
        follows = after is not None and not after[1] and text[this.end() : after.start()].strip() == ""
        made.append(Block(this[1], this[2], after[2] if after is not None and follows else None))
    return made


def same_form(text: str) -> list[str]:
    """The lines of ``text`` that are not empty, without what differs from run to run."""
    for pattern, name in _VOLATILE:
        text = pattern.sub(name, text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def complaint(shown: str, printed: str) -> str:
    """Why ``printed`` is not what a page shows; "" where it is."""
    wanted = r"\n".join("(.*)" if line == "..." else re.escape(line) for line in same_form(shown))
    wanted = wanted.replace(r"(.*)\n", r"(?:.*\n)*?").replace(r"\n(.*)", r"(?:\n.*)*?")
    if re.fullmatch(wanted, "\n".join(same_form(printed))):
        return ""
    return f"the page shows:\n{shown}\nthe commands print:\n{printed}"


def run_in_one_shell(place: Path, scripts: list[str], *, timeout: float, **environment: str) -> list[str]:
    """What each of ``scripts`` prints, one after the other in one bash that starts in ``place``.

    All that it started is ended when it takes longer than ``timeout`` seconds.
    """
    programs = place / "bin"
    programs.mkdir(exist_ok=True)
    for name, command in (("eastwest", f"{sys.executable} -m eastwest.cli.main"), ("python3", sys.executable)):
        (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (programs / name).chmod(0o755)
    mark = "=== end of block"
    whole = "\n".join(f"{script}\necho; echo '{mark}'" for script in scripts)
    shell = subprocess.Popen(
        ["bash", "-c", f"exec 2>&1\n{whole}"],
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": "400"} | environment,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGTERM)
        output, _ = shell.communicate(timeout=20)
        raise AssertionError(f"the page did not end:\n{output}") from None
    return output.split(f"\n{mark}\n")[:-1]
