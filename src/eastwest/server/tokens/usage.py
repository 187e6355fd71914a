"""Which single-use tokens were used: what agents ask before a call that counts once goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection

from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.clock import Clock
from eastwest.errors import InvalidInput, PermissionDenied
from eastwest.policy.transaction import MAX_LIFE, SKEW
from eastwest.rpc.service import Call, Service
from eastwest.server.gate import Gate
from eastwest.spiffe.id import SpiffeId
from eastwest.store.tokens import SqliteTokens

MAX_ID = 128
FORGOTTEN_AFTER = 60
"""Seconds after a token's end until its use is forgotten; a token that ended by the server's clock is never usable."""
_SERVICE = pb.DESCRIPTOR.services_by_name["Control"]


def usage_service(
    store: SqliteTokens, gate: Gate, services: Callable[[SpiffeId], Collection[str]], clock: Clock
) -> Service:
    """``Control/UseToken``, for the agents' port; ``services`` says which services an agent's node runs."""

    async def use(request: pb.UseTokenRequest, call: Call) -> pb.UseTokenResponse:
        agent = await gate.agent(call)
        if not 0 < len(request.token_id) <= MAX_ID or len(request.approval_id) > MAX_ID:
            raise InvalidInput(f"a token's id has 1 to {MAX_ID} characters")
        service = request.operation.partition(":")[0]
        if service not in services(agent.id):
            raise PermissionDenied(f"{agent.id} runs no service {service[:64]!r}", fix="ask about calls to your node")
        now = int(clock.now().timestamp())
        if request.expires_at > now + MAX_LIFE + SKEW:
            raise InvalidInput(f"no token ends more than {MAX_LIFE} seconds from now")
        if now > request.expires_at + SKEW:
            return pb.UseTokenResponse(used=True)
        first = await store.use(request.token_id, request.expires_at, request.approval_id, now - FORGOTTEN_AFTER)
        return pb.UseTokenResponse(used=not first)

    return Service(_SERVICE, {"UseToken": use}, guard=gate.enter)
