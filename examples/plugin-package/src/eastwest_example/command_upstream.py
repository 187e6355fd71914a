"""Has CAs signed by a program of yours: the request goes to its standard input, the certificate comes from its output.

    [upstreams.command]
    command = ["/usr/local/bin/sign-ca", "--profile", "spiffe"]
    roots_file = "/etc/pki/corporate-roots.pem"

The program is given a PEM request and the wanted lifetime in the environment variable ``LIFETIME`` (seconds). It must
copy the request's URI name, write PEM certificates (the new CA first), and exit with 0.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from eastwest.errors import FailedPrecondition, InvalidInput, PermissionDenied, Unavailable
from eastwest.pki.chain import InvalidSvid, load_chain_pem
from eastwest.pki.upstream import CaRequest, MintedCa, UpstreamContext
from eastwest.plugins.upstream_chain import minted, requested_key
from eastwest.spiffe.bundle import JwtAuthority

MAX_BYTES = 256 * 1024


class CommandUpstream:
    """Runs the program once for each CA."""

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``command``: program and arguments. ``roots_file``: PEM, what peers must trust. ``timeout``: seconds."""

        command: list[str]
        roots_file: str
        timeout: float = 60.0

    def __init__(self, options: Options) -> None:
        self._options = options

    @classmethod
    def from_options(cls, options: Options, _context: UpstreamContext) -> Self:
        """As the entry point makes it."""
        if not options.command:
            raise InvalidInput("command is empty", fix='command = ["/path/to/program"]')
        return cls(options)

    async def mint(self, request: CaRequest) -> MintedCa:
        """Run it, and believe nothing of what it says without a check."""
        requested_key(request)
        pem = x509.load_der_x509_csr(request.csr_der).public_bytes(Encoding.PEM)
        program = self._options.command[0]
        certificates = _certificates(await self._run(pem, int(request.lifetime.total_seconds())), program)
        return minted(request, certificates[0], certificates[1:], await self.roots(), program)

    async def roots(self) -> Sequence[bytes]:
        """What the file says now."""
        path = self._options.roots_file
        try:
            text = await asyncio.to_thread(Path(path).read_bytes)
        except OSError as error:
            raise Unavailable(f"the roots cannot be read: {error.strerror}", where=path) from None
        return _certificates(text, path)

    async def publish_jwt(self, keys: Sequence[JwtAuthority]) -> None:
        """A CA like this keeps no JWT keys."""

    async def _run(self, text: bytes, lifetime: int) -> bytes:
        program = self._options.command[0]
        try:
            process = await asyncio.create_subprocess_exec(
                *self._options.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "LIFETIME": str(lifetime)},
            )
        except OSError as error:
            raise Unavailable(f"the program does not start: {error.strerror}", where=program) from None
        try:
            async with asyncio.timeout(self._options.timeout):
                output, _ = await process.communicate(text)
        except TimeoutError:
            raise Unavailable("the program does not come to an end", where=program) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise PermissionDenied(f"the program refuses (exit code {process.returncode})", where=program)
        if len(output) > MAX_BYTES:
            raise FailedPrecondition("the program's answer is too long", where=program)
        return output


def _certificates(pem: bytes, where: str) -> tuple[bytes, ...]:
    try:
        return load_chain_pem(pem)
    except InvalidSvid as error:
        raise FailedPrecondition(error.message, where=where) from None
