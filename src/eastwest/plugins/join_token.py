"""Node attestation by join token: the payload is the token's text, as SPIRE agents send it."""

from __future__ import annotations

from typing import Self

from eastwest.attest.node import Attested, Challenge, NodeContext, TokenBook
from eastwest.clock import Clock
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

    async def attest(self, payload: bytes, challenge: Challenge) -> Attested:  # noqa: ARG002 - a token needs none
        try:
            value = payload.decode("ascii")
        except UnicodeDecodeError:
            raise InvalidJoinToken("the join token is not text", fix="send the token as it was printed") from None
        token = await self._tokens.consume(value, self._clock.now())
        selectors = frozenset({token_selector(token.group)}) if token.group else frozenset()
        return Attested(path=JOIN_TOKEN_PREFIX + value, selectors=selectors, can_reattest=False)
