"""A method as a server of gRPC sees it: what to run for a call, and what that may ask of the call."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import Message


class Exchange(Protocol):
    """One call on the wire."""

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """Headers that the caller sent, beyond gRPC's own."""
        ...

    @property
    def connection(self) -> object:
        """Something that lives exactly as long as the caller's connection."""
        ...

    @property
    def transport(self) -> Transport:
        """Where the connection's socket and TLS are found."""
        ...

    async def receive(self) -> Any:
        """The next message, decoded, or None at the caller's end. Raises ``GRPCError`` for what is no message."""
        ...

    async def send(self, message: Message) -> None:
        """Send a message; waits while the caller takes nothing."""
        ...

    def prove(self, caller: str) -> None:
        """Whoever serves knows the caller, by this name: its connection may stay and need not call all the time."""
        ...


class Transport(Protocol):
    """What is asked of asyncio's transports here."""

    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


@dataclass(frozen=True, slots=True)
class Method:
    """``serve`` runs once for each call and raises ``GRPCError`` for a status other than OK.

    ``bounds`` gives the bytes that one incoming message may have, and the seconds that a large one may take; a small
    one, and the whole request where only one message is taken, has ``eastwest.rpc.limits.REQUEST_SECONDS``.
    """

    serve: Callable[[Exchange], Awaitable[None]]
    takes_stream: bool
    gives_stream: bool
    request_type: type[Message]
    reply_type: type[Message]
    bounds: Callable[[], tuple[int, float]]


class Place(Protocol):
    """What a connection that was admitted holds. ``ending`` is to end it at once, when its place is needed, and
    ``busy`` to tell whether anything is under way on it.
    """

    ending: Callable[[], object] | None
    busy: Callable[[], bool] | None
    unproven: bool

    def prove(self, caller: str) -> None:
        """Its caller is known by this name."""
        ...

    def hold(self, size: int) -> bool:
        """Whether ``size`` bytes more may be held for it; if so they count."""
        ...

    def let_go(self, size: int) -> None:
        """What was held is held no more."""
        ...

    def release(self) -> None:
        """It has ended."""
        ...


class Admission(Protocol):
    """Whether a connection may be: called with its socket once it is accepted, gives its place or None."""

    def __call__(self, sock: socket.socket, /) -> Place | None: ...
