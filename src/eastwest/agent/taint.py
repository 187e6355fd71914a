"""Whether what this node holds still stands on ground that will last."""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from datetime import datetime

from cryptography import x509

from eastwest.pki.chain import Expired, InvalidSvid, verify_chain
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.spiffe.bundle import Bundle

_UNREADABLE: tuple[type[Exception], ...] = (x509.ExtensionNotFound, *PARSE_ERRORS)


class Standing(enum.Enum):
    """``TAINTED``: trusted today, to be given up soon. ``DISTRUSTED``: nobody who has the bundle accepts it."""

    FINE = enum.auto()
    TAINTED = enum.auto()
    DISTRUSTED = enum.auto()


class Ground:
    """Judges chains by one bundle and the tainted issuing CAs (subject key identifiers) that came with it.

    Chains that share their issuers share the verdict, so a thousand SVIDs cost one verification.
    """

    def __init__(self, bundle: Bundle, tainted: Collection[bytes]) -> None:
        self._bundle = bundle
        self._tainted = frozenset(tainted)
        self._verdicts: dict[tuple[bytes, ...], Standing] = {}
        self.is_clean = not tainted and not any(root.tainted for root in bundle.x509_authorities)
        """Nothing can be tainted here."""

    def same_as(self, bundle: Bundle, tainted: Collection[bytes]) -> bool:
        """Whether these would give the same verdicts."""
        return bundle.x509_authorities == self._bundle.x509_authorities and self._tainted == frozenset(tainted)

    def standing(self, chain: Sequence[bytes], now: datetime) -> Standing:
        """What is to be thought of a chain (DER, leaf first). One that has only ended is fine: others see to that."""
        issuers = tuple(chain[1:])
        found = self._verdicts.get(issuers)
        if found is None:
            found = self._verdicts[issuers] = self._judge(chain, now)
        return found

    def _judge(self, chain: Sequence[bytes], now: datetime) -> Standing:
        roots = self._bundle.x509_authorities
        if not _chains(chain, [root.der for root in roots], now):
            return Standing.DISTRUSTED
        if any(key_id in self._tainted for key_id in map(_key_id, chain[1:])):
            return Standing.TAINTED
        lasting = _chains(chain, [root.der for root in roots if not root.tainted], now)
        return Standing.FINE if lasting else Standing.TAINTED


def _chains(chain: Sequence[bytes], roots: list[bytes], now: datetime) -> bool:
    try:
        verify_chain(chain, roots, now)
    except Expired:
        return True
    except InvalidSvid:
        return False
    return True


def _key_id(der: bytes) -> bytes:
    try:
        extensions = x509.load_der_x509_certificate(der).extensions
        return extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except _UNREADABLE:
        return b""
