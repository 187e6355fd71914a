"""systemd: a process has the selectors of its unit, asked of a service manager on a real bus of the test's own."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from dbus_fast import Message, MessageFlag, MessageType, RequestNameReply, Variant
from dbus_fast.aio import MessageBus

from eastwest.attest.workload import AttestationFailed, ProcessGone, WorkloadContext
from eastwest.errors import Error
from eastwest.plugins.systemd import SystemdAttestor
from eastwest.process.plugins import WORKLOAD_ATTESTORS, load_plugin
from eastwest.spiffe.selector import Selector
from eastwest.testing.clock import FakeClock

NGINX = "/org/freedesktop/systemd1/unit/nginx_2eservice"
FRAGMENT = "/lib/systemd/system/nginx.service"
POLICY = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>"""


@pytest.fixture(scope="module")
def bus_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    daemon = shutil.which("dbus-daemon")
    if daemon is None:
        pytest.skip("dbus-daemon is not installed (Debian: apt install dbus)")
    folder = tmp_path_factory.mktemp("bus")
    (folder / "bus.conf").write_text(POLICY.format(path=folder / "bus"))
    command = [daemon, f"--config-file={folder / 'bus.conf'}", "--nofork", "--nopidfile", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("unix:path=")
        yield address
        process.terminate()


class Manager:
    """systemd as the attestor sees it; units by pid. It can be old (no pidfds), slow, or wrong."""

    def __init__(self) -> None:
        self.units: dict[int, str] = {}
        self.properties = {"Id": "nginx.service", "FragmentPath": FRAGMENT}
        self.takes_pidfd = True
        self.silent = False
        self.error = ""
        self.calls: list[str] = []

    async def start(self, address: str) -> None:
        self.bus = await MessageBus(bus_address=address, negotiate_unix_fd=True).connect()
        assert await self.bus.request_name("org.freedesktop.systemd1") is RequestNameReply.PRIMARY_OWNER
        self.bus.add_message_handler(self._handle)

    def _handle(self, message: Message) -> Message | bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        self.calls.append(message.member)
        for descriptor in message.unix_fds:
            self.pid_of_fd = _pid_of(descriptor)
            os.close(descriptor)
        if self.silent:
            # Handled, and never answered.
            message.flags |= MessageFlag.NO_REPLY_EXPECTED
            return True
        if self.error:
            return Message.new_error(message, self.error, "no")
        if message.member == "GetUnitByPIDFD":
            if not self.takes_pidfd:
                return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "old")
            return self._unit(message, self.pid_of_fd, "osay", lambda path: [path, "nginx.service", b"\0" * 16])
        if message.member == "GetUnitByPID":
            return self._unit(message, message.body[0], "o", lambda path: [path])
        if message.member == "Get" and message.path == NGINX:
            value = self.properties[message.body[1]]
            return Message.new_method_return(message, "v", [Variant("s" if isinstance(value, str) else "u", value)])
        return False

    def _unit(self, message: Message, pid: int, signature: str, body) -> Message:
        if pid not in self.units:
            return Message.new_error(message, "org.freedesktop.systemd1.NoUnitForPID", "none")
        return Message.new_method_return(message, signature, body(self.units[pid]))


def _pid_of(descriptor: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Pid:")))


class Caller:
    """This process, as the kernel would name it."""

    uid = os.getuid()
    gid = os.getgid()

    def __init__(self, pid: int | None = None, *, alive: bool = True) -> None:
        self.pid = os.getpid() if pid is None else pid
        self.alive = alive

    def is_alive(self) -> bool:
        return self.alive


@pytest.fixture
async def manager(bus_address: str) -> AsyncIterator[Manager]:
    manager = Manager()
    await manager.start(bus_address)
    manager.units[os.getpid()] = NGINX
    yield manager
    manager.bus.disconnect()


def attestor(address: str, clock: FakeClock | None = None, **options: object) -> SystemdAttestor:
    context = WorkloadContext(clock=clock or FakeClock())
    table = {"address": address, **options}
    return load_plugin(WORKLOAD_ATTESTORS, "systemd", table, context, "agent.toml: workload_attestors.systemd")


BOTH = {Selector("systemd", "id:nginx.service"), Selector("systemd", f"fragment_path:{FRAGMENT}")}


async def test_a_process_has_the_selectors_of_its_unit(bus_address: str, manager: Manager) -> None:
    judge = attestor(bus_address)
    assert await judge.attest(Caller()) == BOTH
    assert manager.calls == ["GetUnitByPIDFD", "Get", "Get"]
    assert await judge.attest(Caller()) == BOTH
    judge._drop()


async def test_an_older_systemd_is_asked_by_pid(bus_address: str, manager: Manager) -> None:
    manager.takes_pidfd = False
    judge = attestor(bus_address)
    for _ in range(2):
        assert await judge.attest(Caller()) == BOTH
    assert manager.calls.count("GetUnitByPIDFD") == 1
    assert manager.calls.count("GetUnitByPID") == 2
    judge._drop()


async def test_no_unit_is_no_selector(bus_address: str, manager: Manager) -> None:
    manager.units.clear()
    judge = attestor(bus_address)
    assert await judge.attest(Caller()) == frozenset()
    manager.units[os.getpid()] = NGINX
    manager.properties["FragmentPath"] = ""  # a transient unit
    assert await judge.attest(Caller()) == {Selector("systemd", "id:nginx.service")}
    judge._drop()


async def test_a_process_that_ends_is_nobody(bus_address: str, manager: Manager) -> None:
    judge = attestor(bus_address)
    with pytest.raises(ProcessGone):
        await judge.attest(Caller(alive=False))
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    with pytest.raises(ProcessGone):
        await judge.attest(Caller(ended.pid))
    manager.takes_pidfd = False
    manager.error = "org.freedesktop.systemd1.NoSuchProcess"
    judge._takes_pidfd = False
    with pytest.raises(ProcessGone):
        await judge.attest(Caller())
    judge._drop()


@pytest.mark.parametrize("error", ["org.freedesktop.DBus.Error.AccessDenied", "org.example.Strange"])
async def test_a_refusal_says_nothing_of_the_process(bus_address: str, manager: Manager, error: str) -> None:
    manager.error = error
    judge = attestor(bus_address)
    with pytest.raises(AttestationFailed, match=error):
        await judge.attest(Caller())
    manager.error = ""
    assert await judge.attest(Caller()) == BOTH
    judge._drop()


async def test_a_value_that_is_no_text_is_no_answer(bus_address: str, manager: Manager) -> None:
    manager.properties["Id"] = 7  # type: ignore[assignment] - what a wrong service manager might say
    judge = attestor(bus_address)
    with pytest.raises(AttestationFailed, match="no text for Id"):
        await judge.attest(Caller())
    judge._drop()


async def test_silence_ends_in_time_and_is_not_asked_for_at_once(bus_address: str, manager: Manager) -> None:
    clock = FakeClock()
    judge = attestor(bus_address, clock, timeout=0.2)
    manager.silent = True
    before = asyncio.get_running_loop().time()
    with pytest.raises(AttestationFailed, match="does not answer"):
        await judge.attest(Caller())
    assert asyncio.get_running_loop().time() - before < 5
    manager.silent = False
    with pytest.raises(AttestationFailed, match="a moment ago"):
        await judge.attest(Caller())
    clock.advance(1.1)
    assert await judge.attest(Caller()) == BOTH
    judge._drop()


async def test_a_bus_that_comes_later_is_found(bus_address: str, manager: Manager, tmp_path: Path) -> None:
    clock = FakeClock()
    late = tmp_path / "late"
    judge = attestor(f"unix:path={late}", clock)
    with pytest.raises(AttestationFailed, match="does not answer"):
        await judge.attest(Caller())
    late.symlink_to(bus_address.removeprefix("unix:path=").partition(",")[0])
    clock.advance(1.1)
    assert await judge.attest(Caller()) == BOTH
    # The bus restarts: the connection is lost, and made anew.
    assert judge._bus is not None
    judge._bus.disconnect()
    await judge._bus.wait_for_disconnect()
    assert await judge.attest(Caller()) == BOTH
    judge._drop()


async def test_without_systemd_on_the_bus(bus_address: str) -> None:
    judge = attestor(bus_address)
    with pytest.raises(AttestationFailed, match="ServiceUnknown"):
        await judge.attest(Caller())
    judge._drop()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"address": "tcp:host=192.0.2.1"}, "not that of a local bus"),
        ({"address": "unix:path=/x", "timeout": 0.0}, "timeout is 0"),
        ({"address": "unix:path=/x", "timeout": "2"}, r"workload_attestors\.systemd\.timeout: Expected `float`"),
        ({"adress": "unix:path=/x"}, "did you mean 'address'"),
    ],
)
def test_each_wrong_option_is_told(options: dict, told: str) -> None:
    with pytest.raises(Error, match=told):
        attestor(**({"address": "unix:path=/x"} | options))
