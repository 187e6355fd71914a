"""The page about going strict keeps its promises, against a service with the callers that it tells of."""

import asyncio
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import guide_pages
import pytest
from server_process import EASTWEST, eastwest
from strict_world import Caller, StrictWorld

pytestmark = [
    pytest.mark.skipif(shutil.which("bash") is None, reason="the page is written for bash"),
    pytest.mark.timeout(180),
]
CALLERS = [
    Caller("web", "good", uid=20_000),
    Caller("reports", "plaintext", "127.0.1.7", uid=20_001),
    Caller("backup", "plaintext", "127.0.1.7", uid=20_002, registered=False),
    Caller("billing", "expired", uid=20_003),
    Caller("month-end", "absent", uid=20_004, period="31d"),
]


@pytest.fixture
async def world(tmp_path_factory):
    place: Path = tmp_path_factory.mktemp("s")
    for each in (place, *place.parents[:2]):
        each.chmod(0o755)
    made = StrictWorld(place, CALLERS)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


def settled(text: str, port: int) -> str:
    """Without the port, how long it took, and where this Python lies."""
    text = re.sub(rf"\b({port}|10600)\b", "PORT", text)
    text = re.sub(r"\d+ seconds were", "N seconds were", text)
    text = re.sub(r"(exe|path):[^\s\"]*/python[\d.]*", r"\1:PYTHON", text)
    return re.sub(r" +", " ", text)


async def test_every_command_prints_what_the_page_shows(world):
    for name, content in world.estate().items():
        file = world.place / "estate" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for _ in range(2):
        await world.all_call()
    await world.recorded(4)
    text = (guide_pages.ROOT / "docs/how-to/go-strict.md").read_text()
    blocks = re.findall(r"^```\n(\$ .*?)^```$", text, re.MULTILINE | re.DOTALL)
    shown = [part for block in blocks for part in block.split("$ ")[1:]]
    commands = [part.partition("\n") for part in shown]
    assert len(commands) == 6
    printed = await asyncio.to_thread(
        guide_pages.run_in_one_shell, world.place, [command for command, _, _ in commands], timeout=100
    )
    wrong = [
        guide_pages.complaint(settled(output, world.port), settled(text, world.port))
        for (_, _, output), text in zip(commands, printed, strict=True)
    ]
    assert not any(wrong), "\n".join(wrong)


def answered(answer: bytes, *words: object) -> tuple[int, str]:
    """A command on a terminal whose question gets this answer: its exit code, and what it prints."""
    ours, theirs = pty.openpty()
    command = [str(word) for word in (*EASTWEST, *words)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        told = b""
        while b"Go on?" not in told:
            told += os.read(ours, 4096)
        os.write(ours, answer)
        code = process.wait(30)
        told += os.read(ours, 4096)
    os.close(ours)
    return code, told.decode()


async def test_what_is_asked_and_how_it_ends(world):
    """Answers at a terminal, ports, reasons that say nothing, files that follow later, and an end date that is over."""

    def mtls(*words: object) -> subprocess.CompletedProcess[str]:
        return eastwest("mtls", *words, "--data", world.data)

    async def in_force() -> bytes:
        async with world.server.admin() as admin:
            return (await admin.estate_status())["files"]["services/orders.yaml"]

    later = ("mtls", "permissive", "orders", "--until", "2099-03-01", "--data", world.data)
    before = await in_force()
    for answer in (b"n\n", b"\n", b"\x04"):
        code, told = await asyncio.to_thread(answered, answer, *later)
        assert code == 1, told
        assert await in_force() == before
    code, told = await asyncio.to_thread(answered, b"y\n", *later)
    assert code == 0, told
    assert b"2099-03-01" in await in_force()

    wrong = mtls("strict", "orders", "--port", "1", "--override", "the test", "--yes")
    assert (wrong.returncode, f"orders listens on {world.port}, not 1" in wrong.stderr) == (1, True)
    assert mtls("strict", "orders", "--override", "  ", "--yes").returncode == 1, "a blank is no reason"
    assert mtls("who-breaks", "--window", "2099-01-01").returncode == 2
    done = mtls("strict", "orders", "--port", world.port, "--override", "the test", "--yes")
    assert done.returncode == 0, done.stderr

    file = world.place / "files" / "services" / "orders.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(before)
    for expected in (f"written: {file}\n", ""):
        follows = mtls("strict", "orders", "--write", file.parents[1])
        assert follows.returncode == 0, follows.stderr
        assert follows.stdout == f"orders is strict already: nothing to change\n{expected}"
        assert file.read_bytes() == await in_force()

    over = before.replace(b"2099-01-01", b"2026-01-01")
    async with world.server.admin() as admin:
        await admin.apply_estate(dict(world.estate()) | {"services/orders.yaml": over})
    status = mtls("status")
    assert (status.returncode, "2026-01-01 EXPIRED" in status.stdout) == (1, True)
    told = mtls("status", "--json")
    assert (told.returncode, '"expired": true' in told.stdout, '"ok": false' in told.stdout) == (1, True, True)
