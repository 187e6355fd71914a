"""What a peer can make our HTTP/2 server hold or do; every bound of the wire in one place.

- connections: so many in all, so many of one known caller, so many that have not proved who they are from one address;
  none that calls nothing, and none for long whose caller proves nothing. A caller has proved who it is when a gate has
  let it in as somebody: a certificate that TLS verified is any workload's
- memory: one frame, one header block, one window of unread data for each connection, ``MAX_STREAMS`` calls; calls and
  messages that are not whole or not read are counted together for each caller (``HELD_OF_CALLER``), however many
  connections it has; and ``eastwest.rpc.outgoing.MAX_UNREAD`` bytes of answers to a peer that reads nothing
- time: a message that has begun, and the request of a call that takes only one, must be there soon
- work: frames that carry nothing (PING, SETTINGS, WINDOW_UPDATE, RST_STREAM, PRIORITY, empty DATA, CONTINUATION,
  refused streams) and large header blocks are paid for from an ``Allowance`` that refills with time and with data sent
- a call whose caller has reset it holds its place until its handler has ended, so that opening and resetting
  streams does not pile up work
"""

from __future__ import annotations

from eastwest.rpc import frames

MAX_CONNECTIONS = 20_000
"""Of one listener; fewer where the process may not have as many descriptors."""
DESCRIPTORS_KEPT = 256
"""Descriptors that connections leave to the rest of the process."""
MAX_UNPROVEN_OF_SOURCE = 512
"""Connections from one IPv4 address or IPv6 /64 whose callers have proved nothing, TLS handshakes included."""
MAX_CONNECTIONS_OF_CALLER = 64
"""Connections of one SPIFFE ID over TCP; one more ends the oldest. An agent has one, two while it renews."""
UNDISTURBED_SECONDS = 1.0
"""How long a stranger that was let in keeps its place where all others have as good a claim to it."""
UNPROVEN_SECONDS = 60.0
"""After which a connection over TCP is ended whose caller has proved nothing; attestation ends sooner."""
MAX_CONNECTIONS_OF_USER = 1024
"""Connections to a unix socket by one user; root and the user that serves are not counted."""
IDLE_SECONDS = 30.0
"""After which a connection that has never called, or that calls nothing and has proved nothing, is ended."""
MAX_STREAMS = 100
"""Calls of one connection at a time."""
REQUEST_SECONDS = 10.0
"""How long the request of a unary call may take, and the rest of any small message."""
HELD_OF_SOURCE = 16 * 1024 * 1024
HELD_OF_STRANGERS = 4 * HELD_OF_SOURCE
"""Bytes held for connections that have proved nothing, of one address and in all; each has ``HELD_FREELY`` besides."""
HELD_OF_CALLER = 64 * 1024 * 1024
"""Bytes held for one SPIFFE ID, or one user on a unix socket; root and the user that serves are not counted."""
HELD_FREELY = 16 * 1024
"""Bytes that any connection may have held: small requests get through beside a caller that fills what is shared."""
CALL_COST = 4 * 1024
"""Bytes that a call counts for beside its header list: tasks and what else stands behind it."""
STREAM_WINDOW = 256 * 1024
CONNECTION_WINDOW = 2 * 1024 * 1024
MAX_HEADER_BLOCK = 32 * 1024
"""Bytes of one header block as it comes, all its frames together."""
MAX_HEADER_LIST = 16 * 1024
"""Bytes of a header list once decoded, as RFC 7541 counts them."""
ALLOWANCE = 2000
"""Frames without content that come at once; 1000 more in each second."""
ALLOWANCE_PER_SECOND = 1000
RESET_COST = 10
HEADERS_FREE = 512
HEADERS_PER_FRAME = 64
"""Bytes of a header block that cost as much as one such frame, as Huffman's code is slow to read. A block below
``HEADERS_FREE`` costs nothing: a call's is mostly smaller, and pays by being a call."""
GREETING_SECONDS = 10.0
GRACE_SECONDS = 2.0
"""How long calls with one answer may still take when the server stops."""
LINGER_SECONDS = 5.0
"""How long a peer may take to read the last words, or to answer the end of TLS."""
HANDSHAKE_SECONDS = 20.0
KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}


class Fault(Exception):
    """The peer broke the protocol, or went too far: the connection ends."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Allowance:
    """What a connection may still send without content."""

    __slots__ = ("_left", "_refilled")

    def __init__(self, now: float) -> None:
        self._left = ALLOWANCE
        self._refilled = now

    def earn(self, reward: int) -> None:
        """Give some back, for data that the peer was sent."""
        if self._left < ALLOWANCE:
            self._left += reward

    def spend(self, cost: int, now: float) -> None:
        """Raises ``Fault`` when there is nothing left. ``now`` is in seconds of any steady clock."""
        self._left -= cost
        if self._left >= 0:
            return
        refill = min(ALLOWANCE, int((now - self._refilled) * ALLOWANCE_PER_SECOND))
        if refill > 0:
            self._refilled = now
        self._left += refill
        if self._left < 0:
            raise Fault(frames.ENHANCE_YOUR_CALM, "too many frames that carry nothing")
