"""The unix attestor on real processes: who they are, what they run, and what they must not borrow."""

import asyncio
import grp
import hashlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from eastwest.attest.workload import AttestationFailed, ProcessGone, attest_process
from eastwest.plugins import unix
from eastwest.plugins.unix import MAX_WAITING, UnixAttestor, _Facts, _File
from eastwest.rpc.peer import Peer

PYTHON = os.path.realpath(sys.executable)
SLEEP = os.path.realpath(shutil.which("sleep"))
IMPORTS = "import os, socket, sys; "
CONNECT = "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
HOLD = CONNECT + "sys.stdin.read()"
# The pipe closes when the next program is in place: that is the signal.
BECOME = (
    CONNECT + "os.set_inheritable(s.fileno(), True); os.set_inheritable(1, False); os.execv(sys.argv[2], sys.argv[2:])"
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be someone else")


@pytest.fixture
def folder(tmp_path_factory):
    # Other users must be able to reach the socket and the programs.
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def call(folder):
    """Start a process that connects; give its peer."""
    started: list[tuple[subprocess.Popen[bytes], socket.socket, Peer]] = []
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(folder / "s"))
        (folder / "s").chmod(0o777)
        listener.listen()
        listener.settimeout(30)

        def call(script: str = HOLD, *arguments: str, become: str = "") -> tuple[subprocess.Popen[bytes], Peer]:
            command = [PYTHON, "-S", "-c", IMPORTS + become + script, str(folder / "s"), *arguments]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            connection, _ = listener.accept()
            peer = Peer.of(connection)
            started.append((process, connection, peer))
            if script == BECOME:
                process.stdout.read()
            return process, peer

        yield call
        for process, connection, peer in started:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                pipe.close()
            connection.close()
            peer.close()


def become(uid: int, gid: int, *groups: int) -> str:
    """Change user before connecting: the interpreter may lie where that user could not start it."""
    return f"os.setgroups({list(groups)}); os.setgid({gid}); os.setuid({uid}); "


async def selectors(peer: Peer, attestor: UnixAttestor | None = None) -> set[str]:
    return {str(selector) for selector in await attest_process(peer, [attestor or UnixAttestor()])}


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


async def test_user_group_and_program_of_a_process(call):
    _, peer = call()
    uid, gid = os.geteuid(), os.getegid()
    expected = {f"unix:uid:{uid}", f"unix:gid:{gid}", f"unix:path:{PYTHON}", f"unix:sha256:{sha256(PYTHON)}"}
    with suppress(KeyError):  # a uid or gid may have no name, as in many containers
        expected.add(f"unix:user:{pwd.getpwuid(uid).pw_name}")
    with suppress(KeyError):
        expected.add(f"unix:group:{grp.getgrgid(gid).gr_name}")
    found = await selectors(peer)
    assert {one for one in found if "supplementary" not in one} == expected
    assert {one for one in found if "supplementary_gid" in one} == {
        f"unix:supplementary_gid:{group}" for group in os.getgroups()
    }


@as_root
async def test_another_user_with_groups_of_its_own(call):
    nobody = pwd.getpwnam("nobody")
    _, peer = call(become=become(nobody.pw_uid, nobody.pw_gid, nobody.pw_gid, 23457))
    name = grp.getgrgid(nobody.pw_gid).gr_name
    found = await selectors(peer)
    assert found >= {
        f"unix:uid:{nobody.pw_uid}",
        "unix:user:nobody",
        f"unix:gid:{nobody.pw_gid}",
        f"unix:group:{name}",
        f"unix:supplementary_gid:{nobody.pw_gid}",
        f"unix:supplementary_group:{name}",
        "unix:supplementary_gid:23457",
    }
    assert "unix:uid:0" not in found


@as_root
async def test_numbers_without_names_give_numbers_only(call):
    _, peer = call(become=become(54321, 54321))
    found = await selectors(peer)
    assert {one for one in found if "path" not in one and "sha256" not in one} == {"unix:uid:54321", "unix:gid:54321"}


@as_root
@pytest.mark.parametrize("change", ["os.setuid(54321)", "os.setgid(54321)", "os.seteuid(54321)"])
async def test_who_became_another_user_after_connecting_is_refused(call, change):
    process, peer = call(CONNECT + change + "; os.write(1, b'x'); sys.stdin.read()")
    assert process.stdout.read(1) == b"x"
    with pytest.raises(ProcessGone, match="another user"):
        await selectors(peer)


async def test_who_ends_after_connecting_is_refused(call):
    process, peer = call()
    process.communicate()
    with pytest.raises(ProcessGone):
        await selectors(peer)


async def test_who_ends_while_it_is_looked_at_is_refused(call):
    process, peer = call()

    class Slow(UnixAttestor):
        async def attest(self, process_held):
            found = await super().attest(process_held)
            process.communicate()
            return found

    with pytest.raises(ProcessGone):
        await selectors(peer, Slow())


async def test_a_program_that_is_hashed_as_another_takes_its_place_is_refused(call):
    process, peer = call(
        CONNECT
        + "os.set_inheritable(s.fileno(), True); os.set_inheritable(1, False); sys.stdin.read(); "
        + "os.execv(sys.argv[2], sys.argv[2:])",
        SLEEP,
        "60",
    )
    attestor = UnixAttestor()
    async with attestor._turn:  # the attestor has read everything else and waits for its turn to hash
        attesting = asyncio.create_task(selectors(peer, attestor))
        while not attestor._turn._waiters:
            await asyncio.sleep(0)
        process.stdin.close()
        await asyncio.to_thread(process.stdout.read)
    with pytest.raises(ProcessGone, match="another program"):
        await attesting


async def test_the_program_is_the_one_that_runs_now(call):
    _, peer = call(BECOME, SLEEP, "60")
    found = await selectors(peer)
    assert f"unix:path:{SLEEP}" in found
    assert f"unix:sha256:{sha256(SLEEP)}" in found
    assert f"unix:path:{PYTHON}" not in found


async def test_a_program_replaced_while_it_runs_keeps_its_path_and_its_own_hash(call, folder):
    program = folder / "program"
    shutil.copy(SLEEP, program)
    _, peer = call(BECOME, str(program), "60")
    new = folder / "new"
    new.write_bytes(b"#!/bin/sh\n")
    new.rename(program)
    found = await selectors(peer)
    assert {f"unix:path:{program}", f"unix:sha256:{sha256(SLEEP)}"} <= found


async def test_a_name_that_ends_like_the_kernels_mark_is_a_name(call, folder):
    program = folder / "program (deleted)"
    shutil.copy(SLEEP, program)
    _, peer = call(BECOME, str(program), "60")
    assert f"unix:path:{program}" in await selectors(peer)
    assert f"unix:path:{folder / 'program'}" not in await selectors(peer)


@as_root
@pytest.mark.parametrize("deleted", [False, True])
async def test_a_path_of_another_mount_namespace_is_not_vouched_for(call, folder, deleted):
    trusted, own = folder / "bin" / "program", folder / "own"
    trusted.parent.mkdir()
    trusted.write_bytes(b"trusted")
    shutil.copy(SLEEP, own)
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], check=False).returncode:
        pytest.skip("mount namespaces cannot be made here")
    forge = f"mount -t tmpfs tmpfs {trusted.parent} && cp {own} {trusted} && exec {trusted} 60"
    # The caller keeps its pid through all of these programs.
    become_another = "os.set_inheritable(s.fileno(), True); os.execv(sys.argv[2], sys.argv[2:])"
    process, peer = call(CONNECT + become_another, unshare, "-m", "sh", "-c", forge)
    while Path(f"/proc/{process.pid}/comm").read_text() != "program\n":
        await asyncio.sleep(0.01)
    if deleted:
        Path(f"/proc/{process.pid}/root{trusted}").unlink()
    assert str(Path(f"/proc/{process.pid}/exe").readlink()) == f"{trusted}{' (deleted)' if deleted else ''}"
    found = await selectors(peer)
    assert not {one for one in found if one.startswith("unix:path")}
    assert f"unix:sha256:{sha256(SLEEP)}" in found


async def test_a_large_program_gets_no_hash(call):
    _, peer = call()
    size = Path(PYTHON).stat().st_size
    assert not [one for one in await selectors(peer, UnixAttestor(hash_limit=size - 1)) if "sha256" in one]
    assert [one for one in await selectors(peer, UnixAttestor(hash_limit=size)) if "sha256" in one]


async def test_programs_can_be_left_alone(call):
    _, peer = call()
    found = await selectors(peer, UnixAttestor(executables=False))
    assert not [one for one in found if "sha256" in one or "path" in one]


async def test_callers_of_one_program_share_its_hash(call):
    attestor = UnixAttestor()
    peers = [call()[1] for _ in range(3)]
    found = await asyncio.gather(*(selectors(peer, attestor) for peer in peers))
    assert found[0] == found[1] == found[2]
    assert list(attestor._digests.values()) == [sha256(PYTHON)]


async def test_a_changed_program_is_hashed_again(call, folder):
    attestor, program = UnixAttestor(), folder / "program"
    shutil.copy(SLEEP, program)
    _, peer = call(BECOME, str(program), "60")
    before = await selectors(peer, attestor)
    program.unlink()
    shutil.copy(SLEEP, program)
    with program.open("ab") as file:
        file.write(b"\0")
    _, peer = call(BECOME, str(program), "60")
    after = await selectors(peer, attestor)
    assert f"unix:sha256:{sha256(SLEEP)}" in before
    assert f"unix:sha256:{sha256(program)}" in after
    assert sha256(program) != sha256(SLEEP)


@dataclass
class Stranger:
    """A process that needs no running: what the attestor reads of it is given."""

    uid: int
    file: _File
    pid: int = 1
    gid: int = 0

    def is_alive(self) -> bool:
        return True


class Hashing:
    """Stands for the reading of executables: holds each until it is let go, and notes which were begun."""

    def __init__(self, monkeypatch) -> None:
        self.begun: list[int] = []
        self._go = threading.Semaphore(0)
        monkeypatch.setattr(unix, "_read", lambda process, _: _Facts(frozenset(), process.file))
        monkeypatch.setattr(unix, "_hash", self._hash)

    def stranger(self, uid: int, inode: int) -> Stranger:
        return Stranger(uid, _File(1, inode, 1, 1, 1))

    def let_go(self, count: int) -> None:
        self._go.release(count)

    def _hash(self, _pid: int, file: _File) -> str:
        self.begun.append(file.inode)
        assert self._go.acquire(timeout=20)
        return f"{file.inode:064x}"


async def test_callers_that_hang_up_do_not_pile_up_hashing(monkeypatch):
    hashing, attestor = Hashing(monkeypatch), UnixAttestor()
    for inode in range(100):
        with suppress(TimeoutError, AttestationFailed):
            async with asyncio.timeout(0.005):
                await attestor.attest(hashing.stranger(1000, inode))
    assert len(hashing.begun) == 1
    waiting = len(attestor._hashing[1000])
    assert 1 < waiting <= MAX_WAITING
    hashing.let_go(waiting)
    while attestor._hashing:
        await asyncio.sleep(0.01)
    assert len(hashing.begun) == waiting


async def test_a_user_with_many_executables_delays_others_by_one_at_most(monkeypatch):
    hashing, attestor = Hashing(monkeypatch), UnixAttestor()
    greedy = [asyncio.ensure_future(attestor.attest(hashing.stranger(1000, inode))) for inode in range(MAX_WAITING)]
    while not hashing.begun or len(attestor._hashing[1000]) < MAX_WAITING:
        await asyncio.sleep(0.01)
    with pytest.raises(AttestationFailed, match="too many executables of user 1000"):
        await attestor.attest(hashing.stranger(1000, 500))
    other = asyncio.ensure_future(attestor.attest(hashing.stranger(1001, 600)))
    await asyncio.sleep(0.05)
    hashing.let_go(2)
    async with asyncio.timeout(5):
        assert {str(selector) for selector in await other} == {f"unix:sha256:{600:064x}"}
    assert hashing.begun.index(600) == 1
    hashing.let_go(MAX_WAITING)
    await asyncio.gather(*greedy)


def test_the_attestor_can_be_made_before_there_is_a_loop():
    assert UnixAttestor().name == "unix"
