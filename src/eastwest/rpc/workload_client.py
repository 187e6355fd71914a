"""Calling a SPIFFE Workload API: what an agent of this machine says that this process is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from eastwest.api.spiffe.workload import workload_pb2 as api
from eastwest.errors import FailedPrecondition, Unauthenticated, Unavailable
from eastwest.pki.der import split_der
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.rpc.client import Channel, method
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId, TrustDomain

MAX_SVIDS = 100
_API = api.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
_HEADER = {"workload.spiffe.io": "true"}
_UNREADABLE: tuple[type[Exception], ...] = (MalformedSpiffeId, *PARSE_ERRORS)


@dataclass(frozen=True, slots=True)
class OwnSvid:
    """An identity of this process: chain and roots in DER, the key in PEM.

    ``federated``: the roots of other trust domains that it may talk to, by name.
    """

    id: SpiffeId
    chain: tuple[bytes, ...] = field(repr=False)
    key_pem: bytes = field(repr=False)
    roots: tuple[bytes, ...] = field(repr=False)
    federated: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict, repr=False)


async def fetch_own_svids(socket: str, deadline: float) -> list[OwnSvid]:
    """Ask the agent at the unix socket ``socket`` once; the first identity is the default one.

    Raises ``FailedPrecondition`` when this process has no identity, and ``Unavailable`` when the agent does not answer.
    """
    channel = Channel(path=socket)
    try:
        async with channel.stream(method(_API, "FetchX509SVID"), deadline=deadline, metadata=_HEADER) as stream:
            await stream.send_message(api.X509SVIDRequest(), end=True)
            reply = await stream.recv_message()
            if reply is not None:
                # Nothing more is wanted of a stream that never ends by itself.
                await stream.cancel()
    except Unauthenticated as error:
        raise FailedPrecondition(f"the agent gives this process no identity: {error.message}", where=socket) from None
    finally:
        channel.close()
    if reply is None:
        raise Unavailable("the agent ended the call without an answer", where=socket)
    return _own_svids(reply, socket)


async def watch_own_svids(channel: Channel) -> AsyncIterator[list[OwnSvid]]:
    """The identities of this process now, and again whenever one is renewed or the trust in others changes.

    Raises as ``fetch_own_svids``; ends when the agent ends the call.
    """
    try:
        async with channel.stream(method(_API, "FetchX509SVID"), metadata=_HEADER) as stream:
            await stream.send_message(api.X509SVIDRequest(), end=True)
            while (reply := await stream.recv_message()) is not None:
                yield _own_svids(reply, channel.target)
            await stream.recv_trailing_metadata()
    except Unauthenticated as error:
        raise FailedPrecondition(
            f"the agent gives this process no identity: {error.message}", where=channel.target
        ) from None


def _own_svids(reply: api.X509SVIDResponse, socket: str) -> list[OwnSvid]:
    if not 0 < len(reply.svids) <= MAX_SVIDS:
        raise FailedPrecondition(f"the agent gives this process {len(reply.svids)} identities", where=socket)
    try:
        federated = {TrustDomain.parse(name).name: split_der(roots) for name, roots in reply.federated_bundles.items()}
        return [_own_svid(svid, federated) for svid in reply.svids]
    except _UNREADABLE:
        raise Unavailable("the agent's answer cannot be read", where=socket) from None


def _own_svid(svid: api.X509SVID, federated: Mapping[str, tuple[bytes, ...]]) -> OwnSvid:
    key = load_der_private_key(svid.x509_svid_key, password=None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return OwnSvid(SpiffeId.parse(svid.spiffe_id), split_der(svid.x509_svid), pem, split_der(svid.bundle), federated)
