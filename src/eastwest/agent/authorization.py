"""Whether a token that counts once may be used now: the question that a sidecar asks when its tree has allowed a call.

Envoy's external authorization (``envoy.service.auth.v3``). Everything else about the call is decided in the sidecar;
nothing of it comes here but the token's identifier and what it was made for. An answer that does not come in time, or
cannot be given, refuses the call; the token may be used up even so, as it counts once at most.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from envoy.service.auth.v3 import external_auth_pb2
from google.rpc import code_pb2, status_pb2

from eastwest.agent.peers.finder import PeerFinder
from eastwest.agent.xds import Identify, Principal
from eastwest.errors import InvalidInput, PermissionDenied
from eastwest.mesh.action import InForce
from eastwest.mesh.tokens import claim_header
from eastwest.registry.containment import NOBODY, Contained
from eastwest.rpc.service import SMALL_MESSAGE, Call, Service

MAX_TEXT = 256
_MAX_TIME = 1 << 40
_FORBIDDEN = 403

UseToken = Callable[[str, int, str, str], Awaitable[bool]]
"""Whether a token may be used now: its ``jti``, its ``exp`` (Unix seconds), its approval's id or "", the operation.

True only once. Raises ``eastwest.errors.Error`` when nobody can say.
"""


class Rules(Protocol):
    """What services enforce now."""

    def current(self, principal: Principal, service: str) -> InForce | None: ...


class Authorization:
    """The external authorization service of one agent; it answers sidecars whose workload runs the service.

    ``peers`` hears of plaintext connections, which sidecars ask about with nothing of a request; None: they go on
    without a name.
    """

    def __init__(self, identify: Identify, rules: Rules, use_token: UseToken, peers: PeerFinder | None = None) -> None:
        self._identify = identify
        self._rules = rules
        self._use_token = use_token
        self._peers = peers
        self.contained: Callable[[], Contained] = lambda: NOBODY
        """Gives who is cut off now: tokens that name one of them do not count."""

    def services(self) -> list[Service]:
        """To be added to the agent's listener."""
        descriptor = external_auth_pb2.DESCRIPTOR.services_by_name["Authorization"]
        return [Service(descriptor, {"Check": self._check}, limit=SMALL_MESSAGE)]

    async def _check(self, request: Any, call: Call) -> Any:
        if not request.attributes.request.HasField("http"):
            if self._peers is None or self._peers.is_flooded(request):
                return _ALLOWED
            return await self._peers.check(request, await self._identify(call))
        principal = await self._identify(call)
        said = request.attributes.request.http.headers
        service, operation = _text(said, "resource"), _text(said, "action")
        rules = self._rules.current(principal, service)
        if rules is None or not any(one.name == operation and one.single_use for one in rules.inbound.operations):
            raise PermissionDenied("the caller runs no such operation that demands single-use")
        if any(_text(said, claim, needed=False) in self.contained() for claim in ("caller", "origin", "approver")):
            return _REFUSED
        may = await self._use_token(_text(said, "id"), _time(said), _text(said, "approval", needed=False), operation)
        return _ALLOWED if may else _REFUSED


def _text(said: Mapping[str, str], claim: str, *, needed: bool = True) -> str:
    text = said.get(claim_header(claim), "")
    if len(text) > MAX_TEXT or (needed and not text):
        raise InvalidInput(f"the token has no usable {claim}")
    return text


def _time(said: Mapping[str, str]) -> int:
    text = _text(said, "expires")
    if not (text.isascii() and text.isdecimal()) or int(text) > _MAX_TIME:
        raise InvalidInput("the token has no usable time of expiry")
    return int(text)


_ALLOWED = external_auth_pb2.CheckResponse(status=status_pb2.Status(), ok_response={})
_REFUSED = external_auth_pb2.CheckResponse(
    status=status_pb2.Status(code=code_pb2.PERMISSION_DENIED), denied_response={"status": {"code": _FORBIDDEN}}
)
