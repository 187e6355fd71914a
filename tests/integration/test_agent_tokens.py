"""The agent as a judge of tokens: of its own trust domain, and of those that the caller's entry federates with."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from agent_authority import BUNDLE, FakeAuthority, running, settings
from agent_workload import ME, ask

from eastwest import errors
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.api.spiffe.workload import workload_pb2 as api
from eastwest.rpc import spire
from eastwest.testing import TestCA


@pytest.fixture
def data() -> Iterator[Path]:
    # The socket's path must stay short.
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        yield Path(directory) / "d"


@pytest.fixture
async def authority() -> AsyncIterator[FakeAuthority]:
    authority = FakeAuthority()
    await authority.start()
    yield authority
    await authority.stop()


async def test_a_token_of_a_federated_trust_domain(authority: FakeAuthority, data: Path) -> None:
    partner, stranger = (TestCA(name, datetime.now(UTC)) for name in ("partner.example", "stranger.example"))
    authority.put("shop", ME, federates_with=frozenset({partner.trust_domain}))
    config = settings(authority, data)

    async def validate(token: str, audience: str = "orders") -> api.ValidateJWTSVIDResponse:
        request = api.ValidateJWTSVIDRequest(audience=audience, svid=token)
        return await ask(config.paths.socket, "ValidateJWTSVID", request)

    async def until_valid(token: str) -> api.ValidateJWTSVIDResponse:
        async with asyncio.timeout(20):
            while True:
                try:
                    return await validate(token)
                except errors.InvalidInput:
                    await asyncio.sleep(0.02)  # the push has its own way to the agent

    async with running(config):
        token = partner.jwt("/orders/clerk", "orders")
        with pytest.raises(errors.InvalidInput, match=r"no bundle for trust domain partner\.example"):
            await validate(token)
        for ca in (partner, stranger):
            name = control.ResourceName(kind=BUNDLE, name=ca.trust_domain.name)
            bundle = spire.bundle_to_proto(ca.bundle)
            authority.push(control.Update(upserts=[control.Resource(name=name, bundle=bundle)]))
        assert (await until_valid(token)).spiffe_id == "spiffe://partner.example/orders/clerk"
        # Known to the agent, yet not to this caller.
        with pytest.raises(errors.InvalidInput, match=r"no bundle for trust domain stranger\.example"):
            await validate(stranger.jwt("/orders/clerk", "orders"))
        with pytest.raises(errors.InvalidInput, match="not meant for 'bank'"):
            await validate(token, "bank")
        # Each bundle speaks for its own trust domain alone.
        forged = TestCA("saas.example", datetime.now(UTC))
        forged.jwt_key = partner.jwt_key
        with pytest.raises(errors.InvalidInput, match=r"no key of trust domain saas\.example"):
            await validate(forged.jwt("/shop", "orders"))
