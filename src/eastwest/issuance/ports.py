"""What issuance needs of the process around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from eastwest.pki.signer import Signer


class SigningPool(Protocol):
    """Makes signatures away from the event loop, for signers that say ``is_remote``."""

    async def sign(self, signer: Signer, messages: Sequence[bytes]) -> Sequence[bytes]:
        """One signature for each message, in order, made by ``signer.sign`` with as much at once as the pool allows.

        Raises what the signer raises; then none of the messages counts as signed.
        """
        ...
