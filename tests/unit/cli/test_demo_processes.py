"""Children of the demo: they end with it, however it ends, and a failing one shows its log."""

import asyncio
import os
import select
import signal
import subprocess
import sys

import pytest

from eastwest.cli.demo.processes import Lines, Processes, ProcessFailed, stop_recorded, tail, wait_for
from eastwest.errors import NotFound, Unavailable

FOREVER = [sys.executable, "-c", "import signal; signal.pause()"]


def make(tmp_path, *, tied=True):
    return Processes(tmp_path, tmp_path / "processes.json", os.environ, tied=tied)


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_leaving_ends_everything_and_forgets_it(tmp_path):
    async with make(tmp_path) as processes:
        children = [processes.start(f"child-{i}", FOREVER) for i in range(3)]
        assert [p.pid for p in processes.running] == [c.pid for c in children]
    assert not any(lives(child.pid) for child in children)
    assert (tmp_path / "processes.json").read_bytes() == b"[]"


async def test_grandchildren_end_too(tmp_path):
    script = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); sys.exit(3)"
    async with make(tmp_path) as processes:
        child = processes.start("parent", [sys.executable, "-c", script])
        await child.exited.wait()
        grandchild = int((tmp_path / "parent.log").read_text())
        fd = None
        try:
            fd = os.pidfd_open(grandchild)
            assert select.select([fd], [], [], 5)[0]
        except ProcessLookupError:
            pass
        finally:
            if fd is not None:
                os.close(fd)


async def test_a_process_that_ends_before_it_is_ready_shows_its_log(tmp_path):
    async with make(tmp_path) as processes:
        child = processes.start("child", [sys.executable, "-c", "import sys; print('the reason'); sys.exit(7)"])
        with pytest.raises(ProcessFailed, match=r"(?s)child .*status 7 before it sang.*the reason"):
            await child.ready(nothing, "it sang", 30)


async def test_work_is_given_up_when_a_process_ends_that_is_needed(tmp_path):
    async with make(tmp_path) as processes:
        short = processes.start("short", [sys.executable, "-c", ""])
        short.may_end = True
        await short.exited.wait()
        needed = processes.start("needed", [sys.executable, "-c", "input(); print('so it ends')"], pipes=True)

        async def work():
            needed.popen.stdin.close()
            await asyncio.Event().wait()

        with pytest.raises(ProcessFailed, match=r"needed .* though it was needed"):
            await processes.guard(work())
        needed.popen.stdout.close()


async def test_guarded_work_gives_its_result(tmp_path):
    async with make(tmp_path) as processes:
        child = processes.start("child", FOREVER)

        async def work():
            await processes.stop([child])
            return 7

        assert await processes.guard(work()) == 7


async def test_waiting_has_an_end(tmp_path):
    async with make(tmp_path) as processes:
        child = processes.start("child", FOREVER)
        with pytest.raises(ProcessFailed, match=r"was given 0.05 s"):
            await child.ready(nothing, "it sang", 0.05)


async def test_not_yet_is_not_an_error_but_other_errors_are(tmp_path):
    async with make(tmp_path) as processes:
        child = processes.start("child", FOREVER)
        answers = iter([Unavailable("not yet"), ConnectionRefusedError(), None, "there"])

        async def check():
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        assert await wait_for(check, "it was there", 30, child) == "there"

        async def broken():
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await wait_for(broken, "it was there", 30, child)


async def test_lines_ask_and_answer(tmp_path):
    script = (
        "import json, sys\nprint(json.dumps({'ready': 'x'}), flush=True)\n"
        "for line in sys.stdin:\n    c = json.loads(line)\n"
        "    print(json.dumps(c | {'twice': 2 * c['n']}), flush=True)\n"
    )
    async with make(tmp_path) as processes:
        lines = Lines(processes.start("echo", [sys.executable, "-c", script], pipes=True))
        await lines.open()
        await lines.ready.wait()
        answers = await asyncio.gather(*(lines.ask({"n": n}) for n in range(5)))
        assert [answer["twice"] for answer in answers] == [0, 2, 4, 6, 8]
        await processes.stop([lines.process])
        with pytest.raises(ProcessFailed):
            await lines.ask({"n": 1})


async def test_an_unanswered_question_fails_when_the_process_ends(tmp_path):
    async with make(tmp_path) as processes:
        lines = Lines(processes.start("mute", [sys.executable, "-c", "input()"], pipes=True))
        await lines.open()
        with pytest.raises(ProcessFailed, match="mute"):
            await lines.ask({"n": 1})


def test_kill_9_of_the_demo_leaves_no_child(tmp_path):
    script = f"""
import asyncio, os, sys
from pathlib import Path
from eastwest.cli.demo.processes import Processes
async def main():
    there = Path({str(tmp_path)!r})
    async with Processes(there, there / "processes.json", os.environ, tied=True) as processes:
        child = processes.start("child", {FOREVER!r})
        print(child.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    demo = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    fd = os.pidfd_open(int(demo.stdout.readline()))
    demo.kill()
    demo.wait()
    demo.stdout.close()
    try:
        assert select.select([fd], [], [], 10)[0], "the child outlived its parent"
    finally:
        os.close(fd)


def test_what_was_kept_can_be_ended_later_and_nothing_else(tmp_path):
    record = tmp_path / "processes.json"
    script = f"""
import asyncio, os
from pathlib import Path
from eastwest.cli.demo.processes import Processes
async def main():
    there = Path({str(tmp_path)!r})
    async with Processes(there, there / "processes.json", os.environ, tied=False) as processes:
        print(processes.start("kept", {FOREVER!r}).pid, flush=True)
        processes.keep()
asyncio.run(main())
"""
    pid = int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout)
    fd = os.pidfd_open(pid)
    try:
        other = record.read_bytes().replace(b'"started": ', b'"started": 1')
        kept = record.read_bytes()
        record.write_bytes(other)
        assert stop_recorded(record) == []  # the same pid with another start time is another process
        record.write_bytes(kept)
        assert stop_recorded(record) == ["kept"]
        assert select.select([fd], [], [], 5)[0]
    finally:
        os.close(fd)
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


def test_stopping_where_nothing_was_kept(tmp_path):
    with pytest.raises(NotFound, match="no demo was kept"):
        stop_recorded(tmp_path / "processes.json")


def test_the_tail_of_a_log(tmp_path):
    log = tmp_path / "x.log"
    assert "No such file" in tail(log)
    log.write_text("")
    assert "empty" in tail(log)
    log.write_text("".join(f"line {i}\n" for i in range(100)))
    assert tail(log).splitlines()[-1] == "  line 99"
    assert len(tail(log).splitlines()) == 25


async def nothing():
    return None
