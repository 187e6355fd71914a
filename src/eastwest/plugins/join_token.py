"""Node attestation by join token: the payload is the token's text, as SPIRE agents send it."""

from __future__ import annotations

from typing import Self

from eastwest.attest.node import Attested, Challenge, NodeContext, ProverContext, TokenBook
from eastwest.clock import Clock
from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.registry.groups import token_selector
from eastwest.registry.tokens import JOIN_TOKEN_PREFIX, InvalidJoinToken


class JoinTokenAttestor:
    """Lets a node in for a token, once.

    The token becomes the end of the agent's SPIFFE ID, which SPIRE agents check; by then it opens nothing. A token
    made for a node group gives the selector ``join_token:group:<name>``.
    """

    name = "join_token"

    def __init__(self, tokens: TokenBook, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock

    @classmethod
    def from_options(cls, _options: None, context: NodeContext) -> Self:
        """As the entry point makes it."""
        return cls(context.tokens, context.clock)

    async def attest(self, payload: bytes, challenge: Challenge) -> Attested:
        try:
            value = payload.decode("ascii")
        except UnicodeDecodeError:
            raise InvalidJoinToken("the join token is not text", fix="send the token as it was printed") from None
        token = await self._tokens.check(value, challenge.spki, self._clock.now())
        selectors = frozenset({token_selector(token.group)}) if token.group else frozenset()
        return Attested(path=JOIN_TOKEN_PREFIX + value, selectors=selectors, can_reattest=False, token=token)


class JoinTokenProver:
    """Shows the token that the agent was started with."""

    name = "join_token"
    repeatable = False

    def __init__(self, token: str) -> None:
        self._token = token

    @classmethod
    def from_options(cls, _options: None, context: ProverContext) -> Self:
        """As the entry point makes it."""
        return cls(context.join_token)

    async def payload(self) -> bytes:
        if not self._token:
            raise InvalidInput(
                "this agent has no identity yet, and there is no join token, or an empty one",
                fix="make one on the server with `eastwest token create` and give it by --join-token-file",
            )
        return self._token.encode()

    async def answer(self, challenge: bytes) -> bytes:  # noqa: ARG002 - whatever is asked, a token has no answer
        raise FailedPrecondition("the server asks a challenge, and a join token has none")

    async def finish(self) -> None:
        """Nothing is held."""
