"""Signatures by keys that live on another machine or device, made in threads so that the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from eastwest.pki.signer import Signer
from eastwest.pki.token_signer import TokenSigner

THREADS = 16


class ThreadSigningPool:
    """Serves ``eastwest.issuance.ports.SigningPool`` with at most ``threads`` signatures under way at once."""

    def __init__(self, threads: int = THREADS) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="signing")

    async def sign(self, signer: Signer | TokenSigner, messages: Sequence[bytes]) -> Sequence[bytes]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(self._executor, signer.sign, each) for each in messages))

    def close(self) -> None:
        """Let signatures under way end, drop those that wait, and give the threads back."""
        self._executor.shutdown(wait=True, cancel_futures=True)
