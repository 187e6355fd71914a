"""What every upstream authority must do, as a test class: subclass it, give ``make_upstream``, let pytest collect it.

The tests are coroutines: pytest-asyncio, or something like it, must run them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509

from eastwest.errors import Error, InvalidInput, PermissionDenied, Unavailable
from eastwest.pki.ca import make_ca_csr
from eastwest.pki.chain import verify_path
from eastwest.pki.hierarchy import Authority
from eastwest.pki.signer import KeyAlgorithm, Signer, SoftwareSigner, SubjectKey, generate_private_key
from eastwest.pki.upstream import CaRequest, MintedCa, UpstreamAuthority
from eastwest.spiffe.bundle import JwtAuthority
from eastwest.spiffe.id import TrustDomain


class UpstreamContract:
    """The promises of ``eastwest.pki.upstream.UpstreamAuthority``, each one a test."""

    trust_domain = TrustDomain.parse("td.test")
    lifetime = timedelta(hours=2)
    path_length = 0
    secrets: tuple[str, ...] = ()
    """Texts that no error may show."""

    async def make_upstream(self) -> UpstreamAuthority:
        """A working upstream authority of ``trust_domain``."""
        raise NotImplementedError

    async def break_upstream(self) -> None:
        """Make the authority behind it unreachable until the test ends."""
        raise NotImplementedError

    def now(self) -> datetime:
        """The time by which the authority signs."""
        return datetime.now(UTC)  # noqa: TID251 - authorities outside of this process have no other clock

    def request(self, signer: Signer, **changed: Any) -> CaRequest:
        """A request that is in order, but for what is ``changed``."""
        values: dict[str, Any] = {
            "csr_der": make_ca_csr(signer, self.trust_domain),
            "trust_domain": self.trust_domain,
            "environment": "",
            "lifetime": self.lifetime,
            "path_length": self.path_length,
        }
        return CaRequest(**values | changed)

    async def test_a_certified_ca_can_issue(self) -> None:
        upstream = await self.make_upstream()
        for algorithm in (KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384):
            signer = new_signer(algorithm)
            answer = await upstream.mint(self.request(signer))
            authority = Authority.create(self.trust_domain, signer, answer.chain, answer.roots)
            assert authority.key_id == signer.key_id
            _verify(answer, self.now())

    async def test_a_ca_is_bounded_in_time_and_depth(self) -> None:
        answer = await (await self.make_upstream()).mint(self.request(new_signer()))
        certificate = x509.load_der_x509_certificate(answer.chain[0])
        assert certificate.not_valid_before_utc <= self.now()
        assert certificate.not_valid_after_utc <= self.now() + self.lifetime + timedelta(minutes=1)
        depth = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        assert depth == self.path_length

    async def test_the_chain_does_not_hold_a_root(self) -> None:
        answer = await (await self.make_upstream()).mint(self.request(new_signer()))
        assert answer.roots
        assert not set(answer.chain) & set(answer.roots)

    async def test_the_roots_are_those_of_what_is_signed(self) -> None:
        upstream = await self.make_upstream()
        answer = await upstream.mint(self.request(new_signer()))
        roots = await upstream.roots()
        assert set(answer.roots) <= set(roots)
        _verify(MintedCa(answer.chain, tuple(roots)), self.now())

    async def test_many_at_once(self) -> None:
        upstream = await self.make_upstream()
        signers = [new_signer() for _ in range(4)]
        answers = await asyncio.gather(*(upstream.mint(self.request(signer)) for signer in signers))
        for signer, answer in zip(signers, answers, strict=True):
            assert x509.load_der_x509_certificate(answer.chain[0]).public_key() == signer.public_key
        serials = {x509.load_der_x509_certificate(answer.chain[0]).serial_number for answer in answers}
        assert len(serials) == len(answers)

    async def test_a_request_that_is_not_one_is_refused(self) -> None:
        upstream = await self.make_upstream()
        signer = new_signer()
        good = make_ca_csr(signer, self.trust_domain)
        other = make_ca_csr(signer, TrustDomain.parse("other.test"))
        for csr in (b"", b"\x30", b"no request", good[:-3], good[:-1] + bytes([good[-1] ^ 1]), other):
            await self.expect_refusal(upstream.mint(self.request(signer, csr_der=csr)), InvalidInput, PermissionDenied)

    async def test_jwt_keys_are_kept_or_declined(self) -> None:
        upstream = await self.make_upstream()
        key = jwt_authority("kid-1", self.now())
        known = await upstream.publish_jwt([key])
        assert known is None or key in known

    async def test_an_unreachable_authority_is_unavailable(self) -> None:
        upstream = await self.make_upstream()
        await self.break_upstream()
        await self.expect_refusal(upstream.mint(self.request(new_signer())), Unavailable)
        await self.expect_refusal(upstream.roots(), Unavailable)

    async def expect_refusal(self, work: Awaitable[Any], *kinds: type[Error]) -> Error:
        """The error of one of ``kinds`` that ``work`` must end with, looked through for secrets."""
        try:
            await work
        except kinds as error:
            shown = f"{error!r} {error} {error.__cause__!r}"
            assert not [secret for secret in self.secrets if secret in shown]
            return error
        raise AssertionError(f"none of {[kind.__name__ for kind in kinds]} was raised")


def new_signer(algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256) -> SoftwareSigner:
    """A fresh key in memory."""
    return SoftwareSigner(generate_private_key(algorithm))


def jwt_authority(key_id: str, now: datetime) -> JwtAuthority:
    """The public half of a JWT key that lives an hour."""
    return JwtAuthority(subject_key(new_signer()), key_id, int((now + timedelta(hours=1)).timestamp()))


def subject_key(signer: Signer) -> bytes:
    """SubjectPublicKeyInfo in DER."""
    return SubjectKey.of(signer.public_key).spki


def _verify(answer: MintedCa, now: datetime) -> None:
    chain = [x509.load_der_x509_certificate(der) for der in answer.chain]
    path = verify_path(chain, answer.roots, now, below=1)
    assert len(path) == len(chain) + 1
