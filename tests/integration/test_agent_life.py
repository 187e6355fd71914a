"""An agent's own life: renewal, restarts, losing the server, and every way it can be refused."""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from agent_authority import FakeAuthority, running, settings, start
from agent_workload import ME, first, ids, stream

from eastwest import errors
from eastwest.agent.app import Ports
from eastwest.agent.bootstrap import JoinTokenRefused
from eastwest.agent.connection import Dismissed
from eastwest.api.spire.api.types import types_pb2 as types
from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.pki.chain import dump_chain_pem
from eastwest.plugins.unix import UnixAttestor
from eastwest.rpc.status import Refused
from eastwest.testing.ca import TestCA


class WrongClock(SystemClock):
    """A machine whose clock was set by hand."""

    def __init__(self, off: timedelta) -> None:
        self._off = off

    def now(self) -> datetime:
        return super().now() + self._off


@pytest.fixture
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        yield Path(directory) / "d"


@pytest.fixture
async def authority() -> AsyncIterator[FakeAuthority]:
    authority = FakeAuthority()
    await authority.start()
    yield authority
    await authority.stop()


async def test_a_restart_needs_no_token_and_resumes_where_it_was(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config):
        before = await first(config.paths.socket)
    assert authority.tokens == set()
    authority.put("billing", ME)
    async with running(settings(authority, data, join_token="")), stream(config.paths.socket) as opened:
        reply = await opened.next()
        while ids(reply) != ["billing", "shop"]:
            reply = await opened.next()
        # The SVID was kept, sealed; only the new entry was signed.
        assert reply.svids[1].x509_svid == before.svids[0].x509_svid
        assert authority.hellos[-1].number == authority.number - 1
        assert authority.batches == [["shop"], ["billing"]]


async def test_a_restart_serves_what_still_lives_while_the_server_is_down(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config):
        before = await first(config.paths.socket)
    await authority.stop()
    async with running(config) as ready:
        assert ready.endswith("from cache (not connected to the server yet)")
        assert (await first(config.paths.socket)).svids[0] == before.svids[0]
        with pytest.raises(errors.PermissionDenied):
            async with stream(config.paths.socket) as opened:
                await opened.next()
                await authority.start()
                authority.remove("shop")
                await opened.next(30)


async def test_keys_are_never_on_disk_in_clear(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config):
        key = (await first(config.paths.socket)).svids[0].x509_svid_key
    kept = {file: file.read_bytes() for file in config.paths.home.rglob("*") if file.is_file()}
    assert config.paths.cache / "svids.sealed" in kept
    assert all(key[36:68] not in content for content in kept.values())
    assert all(file.stat().st_mode & 0o077 == 0 for file in kept)


async def test_a_damaged_cache_counts_as_none(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config):
        await first(config.paths.socket)
    for name in ("state", "svids.sealed"):
        file = config.paths.cache / name
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    async with running(config) as ready:
        assert "from cache" not in ready
        assert ids(await first(config.paths.socket)) == ["shop"]


async def test_the_own_certificate_is_renewed_and_kept(data: Path) -> None:
    authority = FakeAuthority(agent_ttl=timedelta(seconds=6))
    await authority.start()
    authority.put("shop", ME)
    config = settings(authority, data)
    try:
        async with running(config):
            await authority.until(lambda: authority.renewals >= 2)
            await authority.until(lambda: len(authority.hellos) >= 2)
            assert len(list(config.paths.keys.glob("agent-*.pem"))) <= 2
            assert ids(await first(config.paths.socket)) == ["shop"]
    finally:
        await authority.stop()


async def test_updates_after_the_server_returns(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config), stream(config.paths.socket) as opened:
        await opened.next()
        await authority.stop()
        authority.epoch = "e2"
        await authority.start()
        authority.put("billing", ME)
        assert ids(await opened.next(30)) == ["billing", "shop"]


@pytest.mark.parametrize("reason", ["AGENT_BANNED", "AGENT_NOT_ATTESTED", "AGENT_EXPIRED", "AGENT_NOT_ACTIVE"])
async def test_a_dismissed_agent_ends_and_leaves_nothing(authority: FakeAuthority, data: Path, reason: str) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    detail = types.PermissionDeniedDetails(reason=reason)
    agent, _ = await start(config)
    await first(config.paths.socket)
    authority.refuse = Refused("gone", [detail])
    await authority.stop()
    await authority.start()
    with pytest.raises(Dismissed, match="banned" if reason == "AGENT_BANNED" else reason):
        async with asyncio.timeout(20):
            await agent
    left = [file.name for file in config.paths.home.rglob("*") if file.is_file()]
    assert left == ["lock"]


async def test_a_used_token_is_told_and_not_tried_again(authority: FakeAuthority, data: Path) -> None:
    authority.tokens.clear()
    with pytest.raises(JoinTokenRefused, match=r"unknown or used.*make a new one"):
        async with running(settings(authority, data)):
            pass


async def test_no_token_at_the_first_start(authority: FakeAuthority, data: Path) -> None:
    with pytest.raises(errors.InvalidInput, match="no join token"):
        async with running(settings(authority, data, join_token="")):
            pass


async def test_the_bundle_of_another_server_is_told(authority: FakeAuthority, data: Path) -> None:
    config = settings(authority, data)
    assert config.bundle_file is not None
    config.bundle_file.write_bytes(dump_chain_pem(TestCA("saas.example", authority.ca.now).roots))
    with pytest.raises(errors.Unauthenticated, match="give the trust bundle"):
        async with running(config):
            pass
    assert authority.tokens == {"t1"}


async def test_a_data_directory_of_another_trust_domain(authority: FakeAuthority, data: Path) -> None:
    config = settings(authority, data)
    async with running(config):
        pass
    assert config.bundle_file is not None
    config.bundle_file.write_bytes(dump_chain_pem(TestCA("other.example", authority.ca.now).roots))
    with pytest.raises(errors.FailedPrecondition, match="data directory belongs to"):
        async with running(config):
            pass


async def test_the_server_is_waited_for_and_then_given_up(authority: FakeAuthority, data: Path) -> None:
    config = settings(authority, data, wait=0.5)
    await authority.stop()
    with pytest.raises(errors.Unavailable, match=r"tried for \d+ s"):
        async with running(config):
            pass
    config = settings(authority, data, wait=20.0)
    starting = asyncio.ensure_future(_start_later(authority))
    async with running(config) as ready:
        assert "ready" in ready
    await starting


async def _start_later(authority: FakeAuthority) -> None:
    await asyncio.sleep(0.5)
    await authority.start()


@pytest.mark.parametrize("seconds", [90, -90])
async def test_clock_skew_is_told_and_costs_nothing(authority: FakeAuthority, data: Path, seconds: int) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    wrong = WrongClock(timedelta(seconds=seconds))
    ports = Ports(wrong, SystemEntropy(), random.Random(1), (UnixAttestor(),))
    with pytest.raises(errors.FailedPrecondition, match="clock skew"):
        async with running(config, ports):
            pass
    # The clock is set right: the token that was spent is not needed.
    async with running(settings(authority, data, join_token="")):
        assert ids(await first(config.paths.socket)) == ["shop"]


async def test_a_second_agent_on_the_directory_is_refused(authority: FakeAuthority, data: Path) -> None:
    config = settings(authority, data)
    async with running(config):
        with pytest.raises(errors.FailedPrecondition, match="another agent"):
            async with running(config):
                pass


async def test_an_update_that_cannot_be_applied_changes_nothing(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data)
    async with running(config), stream(config.paths.socket) as opened:
        assert ids(await opened.next()) == ["shop"]
        # A gap in the numbers: the agent keeps what it has and asks for everything.
        authority.number += 5
        authority.put("billing", ME)
        assert ids(await opened.next()) == ["billing", "shop"]
        assert authority.hellos[-1].epoch == ""


async def test_health_and_metrics(authority: FakeAuthority, data: Path) -> None:
    authority.put("shop", ME)
    config = settings(authority, data, health_port=0)
    async with running(config):
        await first(config.paths.socket)
        port = int(config.paths.health_port.read_text())
        for path, expected in (("/healthz", b"ok"), ("/metrics", b"eastwest_agent_x509_svids 1.0")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200")
            assert expected in answer
    assert not config.paths.health_port.exists()
