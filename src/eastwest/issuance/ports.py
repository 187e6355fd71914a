"""What issuance needs of the process around it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from eastwest.errors import Error
from eastwest.pki.signer import KeyAlgorithm, Signer, SubjectKey
from eastwest.pki.token_signer import TokenSigner


class SigningPool(Protocol):
    """Makes signatures away from the event loop, for signers that say ``is_remote``."""

    async def sign(self, signer: Signer | TokenSigner, messages: Sequence[bytes]) -> Sequence[bytes]:
        """One signature for each message, in order, made by ``signer.sign`` with as much at once as the pool allows.

        Raises what the signer raises; then none of the messages counts as signed.
        """
        ...


class CsrChecks(Protocol):
    """Checks signing requests beside the event loop."""

    async def check(self, requests: Sequence[tuple[bytes, Collection[KeyAlgorithm]]]) -> Sequence[SubjectKey | Error]:
        """What ``eastwest.pki.csr.verify_csr`` gives or raises for each request and the key types allowed, in order.

        A request that could not be checked at all gets ``Unavailable``.
        """
        ...
