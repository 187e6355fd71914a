"""The certificate authority as ``eastwest ca`` reaches it: a running server, or the data directory of one that cannot
run yet because its first issuing CA has no certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from eastwest.api.eastwest.authority.v1 import authority_pb2 as pb
from eastwest.cli.admin import admin_channel
from eastwest.clock import Clock
from eastwest.errors import InvalidInput, NotFound, Unavailable
from eastwest.rpc.client import Channel, method

SHORTEST_ID = 4
LOOK_SECONDS = 1.0
"""Between two looks at who has confirmed."""
_AUTHORITY = pb.DESCRIPTOR.services_by_name["Authority"]


class AuthorityClient:
    """The CA of a running server. Use as ``async with AuthorityClient.connect(data) as ca``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    def connect(cls, data: Path) -> AuthorityClient:
        """Reach the server of ``data``; raises ``Unavailable`` when none runs there."""
        return cls(admin_channel(data))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._channel.close()

    async def state(self, *, holders: bool = False) -> pb.State:
        """Everything about the CA."""
        reply: pb.State = await self._call("GetState", pb.GetStateRequest(holders=holders))
        return reply

    async def confirmed_state(self, seconds: float, clock: Clock, confirmed: Callable[[pb.State], bool]) -> pb.State:
        """The state with holders as soon as ``confirmed`` says so, or as it is when ``seconds`` are over."""
        end = clock.monotonic() + seconds
        while True:
            state = await self.state(holders=True)
            left = end - clock.monotonic()
            if confirmed(state) or left <= 0:
                return state
            # Asked again: who confirms, a stock agent or somebody outside who gets time, is no event that can be sent.
            await clock.sleep(min(LOOK_SECONDS, left))

    async def prepare(self, kind: str, environment: str, *, post_quantum: bool = False) -> pb.Change:
        """Make a successor."""
        hierarchy = "post-quantum" if post_quantum else "classical"
        request = pb.PrepareRequest(kind=kind, environment=environment, hierarchy=hierarchy)
        reply: pb.Change = await self._call("Prepare", request)
        return reply

    async def change(self, verb: str, authority_id: str, *, force: bool = False) -> pb.Change:
        """``verb``: Activate, Taint, Revoke or Discard. The id may be shortened as long as it is one authority's."""
        item = find_item(await self.state(), authority_id)
        reply: pb.Change = await self._call(verb, pb.ChangeRequest(kind=item.kind, id=item.id, force=force))
        return reply

    async def export(self, environments: Sequence[str], *, everything: bool) -> pb.ExportCsrsResponse:
        """Requests for issuing CAs."""
        request = pb.ExportCsrsRequest(environments=environments, all=everything)
        reply: pb.ExportCsrsResponse = await self._call("ExportCsrs", request)
        return reply

    async def take(self, request: pb.ImportRequest) -> pb.ImportResponse:
        """Certificates and roots from files."""
        reply: pb.ImportResponse = await self._call("Import", request)
        return reply

    async def cross_sign(self, certificate: bytes, lifetime: int, *, constrained: bool) -> bytes:
        """Our root's certificate for another root."""
        request = pb.CrossSignRequest(certificate=certificate, lifetime=lifetime, unconstrained=not constrained)
        reply: pb.CrossSignResponse = await self._call("CrossSign", request)
        return reply.certificate

    async def _call(self, name: str, request: Any) -> Any:
        return await self._channel.unary(method(_AUTHORITY, name), request, deadline=120)


async def export_requests(data: Path, environments: Sequence[str], *, everything: bool) -> list[tuple[str, bytes]]:
    """Requests (environment, DER) from the running server, or from its directory where it does not run."""
    try:
        client = AuthorityClient.connect(data)
    except Unavailable:
        async with AsyncExitStack() as stack:
            files = await _offline(data, stack)
            return [tuple(one) for one in await files.export(environments, _actor(), everything=everything)]
    async with client:
        reply = await client.export(environments, everything=everything)
    return [(one.environment, one.csr) for one in reply.csrs]


async def import_files(data: Path, request: pb.ImportRequest) -> pb.ImportResponse:
    """Hand certificates to the running server, or put them into its directory where it does not run."""
    try:
        client = AuthorityClient.connect(data)
    except Unavailable:
        from eastwest.server.ca.service import item_to_proto

        if request.trust_only or request.cross:
            raise
        async with AsyncExitStack() as stack:
            files = await _offline(data, stack)
            changed = await files.take(list(request.certificates), list(request.roots), _actor())
            items = [item_to_proto(one.kind, one.item) for one in changed]
            return pb.ImportResponse(items=items, bundle_sequence=changed[0].sequence)
    async with client:
        return await client.take(request)


async def _offline(data: Path, stack: AsyncExitStack) -> Any:
    """The files of a CA whose server does not run, under its lock."""
    from eastwest.clock import SystemClock
    from eastwest.entropy import SystemEntropy
    from eastwest.process.locked import locked
    from eastwest.server.ca.files import CaFiles
    from eastwest.server.ca.opening import open_authority
    from eastwest.server.config import ServerConfig

    config = ServerConfig.load(data)
    stack.enter_context(locked(config.paths.lock, "server"))
    clock, entropy = SystemClock(), SystemEntropy()
    opened = await open_authority(config, clock, entropy, stack)
    return CaFiles(opened.keeper, clock, entropy)


def _actor() -> str:
    import os

    return f"unix:uid:{os.geteuid()}"


def find_item(state: pb.State, given: str) -> pb.Item:
    """The one authority whose id is, or begins with, ``given``."""
    if len(given) < SHORTEST_ID:
        raise InvalidInput(f"{given!r} is too short for an id", fix=f"give at least {SHORTEST_ID} characters")
    found = [item for item in state.items if item.id.startswith(given.lower())]
    if not found:
        raise NotFound(f"there is no authority {given[:80]!r}", fix="`eastwest ca show` lists them")
    if len(found) > 1:
        raise InvalidInput(f"{given!r} begins {len(found)} ids", fix="give more of it")
    return found[0]
