"""Who is at the other end of a TLS connection: chains verified by the roots of the trust domain that they name.

TLS verifies against all roots together; that alone would let one trust domain's authority speak for another's
workloads. So the chain is verified again, by the bundle of its own trust domain only.
"""

from __future__ import annotations

import hashlib
import ssl
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from eastwest.errors import Unauthenticated
from eastwest.pki.chain import MAX_CHAIN, check_leaf, load_certificate, verify_chain
from eastwest.spiffe.id import SpiffeId, TrustDomain

MAX_REMEMBERED = 1000
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_DER = 2  # _ssl.ENCODING_DER
Bundles = Mapping[TrustDomain, Sequence[bytes]]


class UnknownTrustDomain(Unauthenticated):
    """The certificate is of a trust domain of which nobody may call."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A workload that proved who it is. ``certificate``: SHA-256 of its certificate (DER) in lower-case hex."""

    id: SpiffeId
    certificate: str
    not_after: datetime


class Peers:
    """Verifies chains, each once while neither it nor the bundles change."""

    def __init__(self) -> None:
        self._bundles: Bundles = {}
        self._known: OrderedDict[tuple[bytes, ...], Peer] = OrderedDict()

    def verify(self, chain: Sequence[bytes], bundles: Bundles, now: datetime) -> Peer:
        """The workload that a chain (DER, leaf first) proves; raises ``Unauthenticated`` with the reason."""
        if bundles is not self._bundles:
            self._bundles = bundles
            self._known.clear()
        key = tuple(chain)
        known = self._known.get(key)
        if known is None or now > known.not_after:
            known = verify_peer(key, bundles, now)
            self._known[key] = known
            while len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        return known


def verify_peer(chain: Sequence[bytes], bundles: Bundles, now: datetime) -> Peer:
    """The workload that a chain (DER, leaf first) proves at ``now``; raises ``Unauthenticated``."""
    if not chain:
        raise Unauthenticated("no certificate was shown")
    trust_domain = check_leaf(load_certificate(chain[0])).trust_domain
    roots = bundles.get(trust_domain)
    if not roots:
        raise UnknownTrustDomain(f"workloads of trust domain {trust_domain} are not taken here")
    svid = verify_chain(chain, roots, now, trust_domain)
    # No authority's certificate ends before those that it signed; a root that goes leaves the bundle.
    return Peer(svid.id, hashlib.sha256(chain[0]).hexdigest(), svid.not_after)


def shown_chain(tls: Any) -> tuple[bytes, ...]:
    """The chain (DER, leaf first) that the peer of an ``ssl.SSLObject`` showed; empty where it showed none."""
    leaf = tls.getpeercert(binary_form=True)
    if leaf is None:
        return ()
    if hasattr(tls, "get_unverified_chain"):  # Python 3.13
        return tuple(tls.get_unverified_chain())
    shown = tls._sslobj.get_unverified_chain() or ()  # noqa: SLF001 - before 3.13 there is no public way
    chain = tuple(certificate.public_bytes(_DER) for certificate in shown)
    return chain if chain and chain[0] == leaf else (leaf, *chain)


def chain_of_pem(texts: Sequence[str]) -> tuple[bytes, ...]:
    """Certificates in PEM, one a text, as DER; raises ``Unauthenticated`` where one is none."""
    if len(texts) > MAX_CHAIN:
        raise Unauthenticated(f"a chain has at most {MAX_CHAIN} certificates")
    return tuple(_der(text) for text in texts)


def _der(text: str) -> bytes:
    body = text.strip()
    if not body.startswith(_BEGIN) or not body.endswith(_END):
        raise Unauthenticated("the certificate is not PEM")
    try:
        return b64decode("".join(body[len(_BEGIN) : -len(_END)].split()), validate=True)
    except ValueError:
        raise Unauthenticated("the certificate is not PEM") from None


def pem(der: bytes) -> str:
    """One certificate as PEM."""
    return ssl.DER_cert_to_PEM_cert(der)
