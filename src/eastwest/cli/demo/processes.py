"""Child processes that never outlive the demo: each its own process group, watched by pidfd, killed by its own pid.

A child that ends before it is asked to is an error that shows the end of its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import msgspec

from eastwest.cli.demo.privilege import in_child
from eastwest.errors import Internal, NotFound, Unavailable

T = TypeVar("T")
Check = Callable[[], Awaitable[T | None]]
"""Gives something once it is there; ``Unavailable``, an ``OSError`` or None mean not yet."""
_GRACE = 5.0  # seconds between asking a process to end and ending it
_TAIL = 25  # lines of a log worth showing
_POLL = 0.02  # seconds between two looks at something that has no event


class ProcessFailed(Internal):
    """A process of the demo ended or did not get ready; the message ends with the tail of its log."""


class Process:
    """One child. ``exited`` is set when it has ended; ``may_end`` says that this is as it should be."""

    def __init__(
        self, name: str, popen: subprocess.Popen[bytes], log: Path, on_exit: Callable[[Process], None]
    ) -> None:
        self.name = name
        self.may_end = False
        self._tell = on_exit
        self.popen = popen
        self.log = log
        self.exited = asyncio.Event()
        self._pidfd = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def failure(self, what: str) -> ProcessFailed:
        """An error about this process, with the end of its log."""
        return ProcessFailed(f"{self.name} (pid {self.pid}) {what}; the end of {self.log}:\n{tail(self.log)}")

    async def ready(self, check: Check[T], what: str, timeout: float) -> T:  # noqa: ASYNC109 - names what it waited for
        """``wait_for`` with nothing else to watch."""
        return await wait_for(check, what, timeout, self)

    def signal_group(self, number: signal.Signals) -> None:
        """Send ``number`` to the process and its children; nothing happens once it has been waited for."""
        if self.popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, number)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        # What the process left of its group goes first: after the wait its pid may be another's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self.exited.set()
        self._tell(self)


async def wait_for(check: Check[T], what: str, timeout: float, *watched: Process) -> T:  # noqa: ASYNC109 - names what it waited for
    """Ask ``check`` until it gives something.

    ``ProcessFailed`` when one of ``watched`` ends before, or ``timeout`` seconds pass, which is put down to the
    first of them. ``what`` completes "it ended before ...".
    """
    asking = asyncio.create_task(_until(check))
    ends = {asyncio.create_task(process.exited.wait()): process for process in watched}
    try:
        await asyncio.wait({asking, *ends}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return asking.result()
        for end, process in ends.items():
            if end.done():
                raise process.failure(f"ended with status {process.popen.returncode} before {what}")
        raise watched[0].failure(f"was given {timeout:g} s, and not yet had {what}")
    finally:
        for task in (asking, *ends):
            task.cancel()
        await asyncio.gather(asking, *ends, return_exceptions=True)


class Processes:
    """All children of one demo. Leaving the context ends them, unless ``keep`` was called."""

    def __init__(self, logs: Path, record: Path, environment: Mapping[str, str], *, tied: bool) -> None:
        """``logs``: a directory for one log each. ``record``: a file that lists what runs. ``tied``: die with us."""
        self._logs = logs
        self._record = record
        self._environment = dict(environment)
        self._tied = tied
        self._running: list[Process] = []
        self._kept = False
        self._lost: asyncio.Future[Process] = asyncio.get_running_loop().create_future()

    @property
    def running(self) -> Sequence[Process]:
        """Those that live."""
        return [process for process in self._running if not process.exited.is_set()]

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        uid: int | None = None,
        pipes: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start ``command`` as ``uid`` (None: ours); with ``pipes`` its standard input and output are ours to use."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            popen: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=output,
                env={**self._environment, **(environment or {})},
                start_new_session=True,
                # Nothing but two system calls happens there; no flag of Popen can ask for a death signal.
                preexec_fn=in_child(os.getpid(), uid, tied=self._tied),  # noqa: PLW1509 - no threads run yet
            )
        process = Process(name, popen, log, self._ended)
        self._running.append(process)
        self._write_record()
        return process

    async def stop(self, processes: Sequence[Process] | None = None) -> None:
        """End ``processes`` (None: all) kindly, then by force."""
        chosen = [process for process in (processes or self._running) if not process.exited.is_set()]
        for process in reversed(chosen):
            process.may_end = True
            process.signal_group(signal.SIGTERM)
        waits = [asyncio.create_task(process.exited.wait()) for process in chosen]
        if waits:
            _, late = await asyncio.wait(waits, timeout=_GRACE)
            if late:
                for process in chosen:
                    if not process.exited.is_set():
                        process.signal_group(signal.SIGKILL)
                await asyncio.wait(late, timeout=_GRACE)
        self._running = list(self.running)
        self._write_record()

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """``work``, given up with ``ProcessFailed`` as soon as any child ends that may not."""
        task = asyncio.create_task(work)
        try:
            either: tuple[asyncio.Future[Any], ...] = (task, self._lost)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            lost = self._lost.result()
            raise lost.failure(f"ended with status {lost.popen.returncode} though it was needed")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def keep(self) -> None:
        """Let what runs go on after us."""
        self._kept = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        if not self._kept:
            await self.stop()

    def _ended(self, process: Process) -> None:
        if not process.may_end and not self._lost.done():
            self._lost.set_result(process)

    def _write_record(self) -> None:
        alive = [{"name": p.name, "pid": p.pid, "started": start_time(p.pid)} for p in self.running]
        with contextlib.suppress(FileNotFoundError):
            self._record.write_bytes(msgspec.json.format(msgspec.json.encode(alive)))


class Lines:
    """A child's standard input and output as lines of JSON: each command has a number, its answer the same one."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._input: IO[bytes] | None = process.popen.stdin
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self.ready = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to listen."""
        reader = asyncio.StreamReader(limit=1 << 20)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self.process.popen.stdout)
        self._reader = asyncio.create_task(self._listen(reader))

    async def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Send ``command`` and wait for its answer."""
        self._number += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[self._number] = answer
        assert self._input is not None
        if self.process.exited.is_set():
            raise self.process.failure("ended while it was needed")
        try:
            # A command is far smaller than a pipe's buffer, so this does not block.
            self._input.write(msgspec.json.encode({"id": self._number, **command}) + b"\n")
            self._input.flush()
        except BrokenPipeError:
            raise self.process.failure("ended while it was needed") from None
        return await answer

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            message: dict[str, Any] = msgspec.json.decode(line)
            if "ready" in message:
                self.ready.set()
            elif (answer := self._answers.pop(message["id"], None)) and not answer.done():
                # Done already: whoever asked was cancelled, as at Ctrl-C.
                answer.set_result(message)
        await self.process.exited.wait()
        assert self._input is not None
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self.process.failure("ended while it was needed"))


def tail(path: Path) -> str:
    """The last lines of a log, indented; says so when there are none."""
    try:
        lines = path.read_text(errors="replace").splitlines()[-_TAIL:]
    except OSError as error:
        return f"  ({error.strerror})"
    return "\n".join(f"  {line[:400]}" for line in lines) or "  (empty)"


def start_time(pid: int) -> int:
    """When ``pid`` was started, in clock ticks since boot; 0 when it is gone. With the pid it names a process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


class _Recorded(msgspec.Struct, frozen=True):
    name: str
    pid: int
    started: int


def stop_recorded(record: Path) -> list[str]:
    """End the processes that a kept demo recorded, by pid and start time; returns their names."""
    try:
        recorded = msgspec.json.decode(record.read_bytes(), type=list[_Recorded])
    except FileNotFoundError:
        raise NotFound(f"no demo was kept there: {record} is missing") from None
    stopped = []
    fds = []
    for process in reversed(recorded):
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(process.pid)
            if start_time(process.pid) != process.started:
                os.close(fd)
                continue
            signal.pidfd_send_signal(fd, signal.SIGTERM)
            fds.append(fd)
            stopped.append(process.name)
    _end(fds)
    return stopped


def _end(fds: Sequence[int]) -> None:
    """Wait for the processes behind pidfds; whoever takes too long is killed."""
    import select

    for fd in fds:
        if not select.select([fd], [], [], _GRACE)[0]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            select.select([fd], [], [], _GRACE)
        os.close(fd)


async def _until(check: Check[T]) -> T:
    while True:
        with contextlib.suppress(Unavailable, OSError):
            found = await check()
            if found is not None:
                return found
        await asyncio.sleep(_POLL)
