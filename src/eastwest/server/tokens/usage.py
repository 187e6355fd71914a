"""Which single-use tokens were used: what agents ask before a call that counts once goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection

from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.clock import Clock
from eastwest.errors import InvalidInput, PermissionDenied
from eastwest.issuance.transaction import Targets
from eastwest.policy.transaction import MAX_LIFE, SKEW
from eastwest.rpc.service import Call, Service
from eastwest.server.gate import Gate
from eastwest.server.tokens.buckets import Buckets
from eastwest.spiffe.id import SpiffeId
from eastwest.store.tokens import SqliteTokens

MAX_ID = 128
FORGOTTEN_AFTER = 60
"""Seconds after a token's end until its use is forgotten; a token that ended by the server's clock is never usable."""
USES_PER_SECOND = 200.0
"""At one service, told by one agent; twice as many at once."""
_SERVICE = pb.DESCRIPTOR.services_by_name["Control"]


def usage_service(
    store: SqliteTokens,
    gate: Gate,
    targets: Callable[[], Targets],
    services: Callable[[SpiffeId], Collection[str]],
    clock: Clock,
) -> Service:
    """``Control/UseToken``, for the agents' port.

    ``targets`` gives the operations of the policy in force, ``services`` which services an agent's node runs.
    """
    buckets = Buckets(USES_PER_SECOND, 2 * USES_PER_SECOND, clock)

    async def use(request: pb.UseTokenRequest, call: Call) -> pb.UseTokenResponse:
        agent = await gate.agent(call)
        if not 0 < len(request.token_id) <= MAX_ID or len(request.approval_id) > MAX_ID:
            raise InvalidInput(f"a token's id has 1 to {MAX_ID} characters")
        known = targets()
        target = known.operation(request.operation)
        if known.beside is not None and (target is None or not target.rules.single_use):
            target = known.beside.operation(request.operation) or target
        if target is None or target.service not in services(agent.id):
            name = request.operation.partition(":")[0]
            raise PermissionDenied(f"{agent.id} runs no service {name[:64]!r}", fix="ask about calls to your node")
        if not target.rules.single_use:
            raise PermissionDenied(
                f"tokens for {target.rules.name} do not count once", fix="ask about operations that demand single-use"
            )
        buckets.take(f"{agent.id} {target.service}", f"uses of tokens at {target.service} told by {agent.id}")
        now = int(clock.now().timestamp())
        if request.expires_at > now + MAX_LIFE + SKEW:
            raise InvalidInput(f"no token ends more than {MAX_LIFE} seconds from now")
        if now > request.expires_at + SKEW:
            return pb.UseTokenResponse(used=True)
        first = await store.use(
            target.service, request.token_id, request.expires_at, request.approval_id, now - FORGOTTEN_AFTER
        )
        return pb.UseTokenResponse(used=not first)

    return Service(_SERVICE, {"UseToken": use}, guard=gate.enter)
