"""An attestor that cannot answer costs nobody an identity that does not hang on it, and gives nobody a part."""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from agent_authority import FakeAuthority, running, settings
from agent_workload import ME, first, ids, stream

from eastwest import errors
from eastwest.agent.app import Ports
from eastwest.attest.workload import AttestationFailed
from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.plugins.unix import UnixAttestor
from eastwest.spiffe.selector import Selector


class ServiceManager:
    """Knows every process as one unit, while it answers."""

    name = "systemd"

    def __init__(self) -> None:
        self.answers = False

    async def attest(self, _process: object) -> frozenset[Selector]:
        if not self.answers:
            raise AttestationFailed("systemd does not answer: no bus")
        return frozenset({Selector("systemd", "id:shop.service")})


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


async def test_who_needs_no_unit_is_served_while_systemd_is_away(authority: FakeAuthority, data: Path) -> None:
    manager = ServiceManager()
    authority.put("shop", ME)
    authority.put("elsewhere", "systemd:id:shop.service", "unix:uid:4294967294")
    ports = Ports(SystemClock(), SystemEntropy(), random.Random(7), (UnixAttestor(), manager))
    config = settings(authority, data)
    async with running(config, ports):
        async with stream(config.paths.socket) as opened:
            assert ids(await opened.next()) == ["shop"]
            # Now an entry may be this caller's: a new call is not told a part, the open one goes on.
            authority.put("unit", ME, "systemd:id:shop.service")
            await _until_refused(config.paths.socket)
            authority.put("second", ME)
            assert ids(await opened.next()) == ["second", "shop"]
        manager.answers = True
        assert ids(await first(config.paths.socket)) == ["second", "shop", "unit"]


async def _until_refused(socket: Path) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await first(socket)
            except errors.Unavailable as refused:
                assert "systemd" in refused.message  # noqa: PT017 - the loop ends here
                return
