"""A CA's keeper on a real store and log, which can be killed, and an authority above it."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from eastwest.entropy import SystemEntropy, serial_numbers
from eastwest.errors import Unavailable
from eastwest.log.entry import decode
from eastwest.pki.ca import certify_ca
from eastwest.pki.confirmation import Holder
from eastwest.pki.upstream import CaRequest, MintedCa
from eastwest.plugins.disk_keys import DiskKeyStore
from eastwest.server.ca.opening import open_authority
from eastwest.server.ca.rotation import AuthorityKeeper
from eastwest.server.config import ServerConfig, ServerFile
from eastwest.server.init import init_server
from eastwest.testing.ca import TestCA
from eastwest.testing.clock import FakeClock

ME = "unix:uid:0"
DAY = 86_400


@dataclass
class World:
    data: Path
    clock: FakeClock
    keeper: AuthorityKeeper
    stack: AsyncExitStack

    @property
    def keys(self) -> set[str]:
        """All but the log's second key, which is no key of the authority's: the state knows nothing of it."""
        return set(DiskKeyStore(self.data / "server" / "keys").names()) - {"log-ml-dsa-1"}

    async def reopen(self) -> None:
        """As after a kill: nothing of the old process is used again."""
        await self.stack.aclose()
        self.stack = AsyncExitStack()
        config = ServerConfig.load(self.data)
        self.keeper = (await open_authority(config, self.clock, SystemEntropy(), self.stack)).keeper

    async def records(self, *kinds: str) -> list[dict]:
        await self.stack.aclose()
        self.stack = AsyncExitStack()
        opened = await open_authority(ServerConfig.load(self.data), self.clock, SystemEntropy(), self.stack)
        self.keeper = opened.keeper
        entries = [decode(raw) for raw in await opened.log.entries(0, opened.log.size)]
        return [{"kind": e.kind, **e.body} for e in entries if e.kind in kinds]


async def make(data: Path, **settings: object) -> World:
    clock = FakeClock()
    await init_server(data, ServerFile(trust_domain="td.test", **settings), clock, SystemEntropy())
    stack = AsyncExitStack()
    opened = await open_authority(ServerConfig.load(data), clock, SystemEntropy(), stack)
    return World(data, clock, opened.keeper, stack)


def holder(sequence: int, **facts: object) -> Holder:
    return Holder(agent="spiffe://td.test/spire/agent/a", sequence=sequence, not_after=2_000_000_000, **facts)


class Above:
    """An authority above ours: certifies below its present root, and may come to have another."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.ca = TestCA("td.test", clock.now())
        self.is_away = False

    async def mint(self, request: CaRequest) -> MintedCa:
        if self.is_away:
            raise Unavailable("out to lunch")
        certificate = certify_ca(
            request.csr_der,
            self.ca.root,
            self.ca.root_signer,
            request.trust_domain,
            serial_numbers(SystemEntropy(), 1)[0],
            self.clock.now(),
            request.lifetime,
        )
        return MintedCa((certificate,), (self.ca.root,))

    async def roots(self) -> list[bytes]:
        return [self.ca.root]

    async def publish_jwt(self, keys: object) -> None:
        assert keys is not None
