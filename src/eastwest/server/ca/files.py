"""Certificates that come and go as files: requests for a root kept elsewhere, what it signed, and foreign roots."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from msgspec.structs import replace

from eastwest.clock import Clock
from eastwest.entropy import Entropy, serial_numbers
from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.pki.ca import cross_certify
from eastwest.pki.hierarchy import UnfitAuthority
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.pki.rotation import additions, lifecycle
from eastwest.pki.rotation.state import IssuingCa, Kind, Request, Root, Source, Stage, State
from eastwest.server.ca.authority import DEFAULT, checked_chain, root_of
from eastwest.server.ca.rotation import AuthorityKeeper, Changed, find
from eastwest.server.journal import Event

MAX_CERTIFICATES = 64
LEAST_LEFT = timedelta(hours=1)
"""An imported CA that ends sooner is refused."""
_NO_PROOF: tuple[type[Exception], ...] = (*PARSE_ERRORS, InvalidSignature)


class Exported(NamedTuple):
    """One request: for which environment ("" is the default CA), and its DER."""

    environment: str
    csr: bytes


class CaFiles:
    """Exchanges files with those who hold other roots."""

    def __init__(self, keeper: AuthorityKeeper, clock: Clock, entropy: Entropy) -> None:
        self._keeper = keeper
        self._clock = clock
        self._entropy = entropy

    async def export(self, environments: Sequence[str], actor: str, *, everything: bool = False) -> list[Exported]:
        """Requests for ``environments``; with none named, those that lack a CA or have a request; or all of them."""
        keeper = self._keeper
        async with keeper.turn:
            state = keeper.state
            known = {DEFAULT, *keeper.environments, *state.issuing()}
            pending = {request.environment: request for request in state.requests}
            unknown = sorted(set(environments) - known)
            if unknown:
                raise InvalidInput(
                    f"the estate has no environment {unknown[0]!r}",
                    fix=f"known: {', '.join(sorted(known - {DEFAULT}))}",
                )
            lacking = known - state.issuing().keys()
            wanted = set(environments) or (known if everything else lacking | pending.keys())
            for environment in sorted(wanted - pending.keys()):
                [name] = await keeper.intend("issuing")
                key_id, csr = await keeper.maker.request(name)
                request = Request(environment=environment, key=name, key_id=key_id, csr=csr)
                facts = {"environment": environment, "authority_id": key_id}
                event = Event("ca.requested", actor, keeper.subject, facts)
                await keeper.commit(additions.add_request(keeper.state, request), [event])
            return [Exported(r.environment, r.csr) for r in keeper.state.requests if r.environment in wanted]

    async def take(self, certificates: Sequence[bytes], roots: Sequence[bytes], actor: str) -> list[Changed]:
        """Certificates for pending requests, each followed by those between it and its root.

        A root that is not in the bundle yet must be among ``roots``. What then signs at once, and what is prepared
        only, is as for any other: see ``eastwest.pki.rotation``.
        """
        keeper = self._keeper
        _check_count(certificates, roots)
        async with keeper.turn:
            requests = {request.key_id: request for request in keeper.state.requests}
            if not requests:
                raise FailedPrecondition("no request waits for a certificate", fix="run `eastwest ca export-csr` first")
            chains = _chains(certificates, requests)
            trusted = [*(root.certificate for root in keeper.state.roots), *roots]
            made: list[tuple[IssuingCa, bytes]] = []
            for request, chain in chains:
                signer = await keeper.maker.signer(request.key)
                try:
                    found = await asyncio.to_thread(
                        checked_chain,
                        keeper.maker.trust_domain,
                        signer,
                        request.key,
                        request.environment,
                        chain,
                        trusted,
                    )
                except UnfitAuthority as error:
                    raise FailedPrecondition(
                        f"the CA for {_words(request.environment)} cannot be taken: {error.message}",
                        fix=error.fix or "a root that is not in the bundle yet is given with --root",
                    ) from None
                self._check_times(found[0].chain[0], f"the CA for {_words(request.environment)}")
                made.append(found)
            return await self._place(made, actor)

    async def trust(self, roots: Sequence[bytes], actor: str) -> list[Changed]:
        """Trust these roots for our trust domain without issuing below them; also such as were revoked here."""
        keeper = self._keeper
        if not roots:
            raise InvalidInput("no root is given")
        _check_count(roots)
        async with keeper.turn:
            after, added = keeper.state, []
            for der in roots:
                self._check_root(der)
                root = root_of(der, Source.EXTERNAL)
                after = additions.trust_root(additions.reinstate_root(after, root.id), root)
                added.append(root.id)
            events = [
                keeper.event("ca.trusted", actor, Kind.X509, after.root(root_id), sequence=after.sequence)
                for root_id in added
            ]
            await keeper.commit(after, events)
            return [Changed(Kind.X509, after.root(root_id), after.sequence) for root_id in added]

    async def take_cross(self, certificates: Sequence[bytes], roots: Sequence[bytes], actor: str) -> list[Changed]:
        """Certificates for our root's key by other roots, which must be among ``roots`` so that they can be checked."""
        keeper = self._keeper
        _check_count(certificates, roots)
        if not certificates:
            raise InvalidInput("no certificate is given")
        async with keeper.turn:
            after, events, touched = keeper.state, [], []
            for der in certificates:
                crossed = _load(der)
                ours = _same_key(keeper.state, crossed)
                issuer = _issuer_among(crossed, roots)
                self._check_times(der, "the cross-signed certificate")
                after = additions.add_cross(after, ours.id, der)
                facts = {"issuer": issuer.subject.rfc4514_string(), "direction": "theirs"}
                events.append(keeper.event("ca.cross_signed", actor, Kind.X509, ours, **facts))
                touched.append(ours.id)
            await keeper.commit(after, events)
            return [Changed(Kind.X509, after.root(root_id), after.sequence) for root_id in touched]

    async def cross_sign(self, certificate: bytes, lifetime: timedelta, actor: str, *, constrained: bool) -> bytes:
        """Our active root's certificate for another root's key: who trusts ours then trusts what stems from theirs."""
        keeper = self._keeper
        async with keeper.turn:
            root = keeper.state.active_root
            if root is None or not root.key:
                raise FailedPrecondition(
                    "the root's key is not here", fix="run `eastwest ca cross-sign --root-key` where it is"
                )
            signer = await keeper.maker.signer(root.key)
            serial = serial_numbers(self._entropy, 1)[0]
            trust_domain = keeper.maker.trust_domain
            crossed = await asyncio.to_thread(
                lambda: cross_certify(
                    certificate,
                    root.certificate,
                    signer,
                    trust_domain,
                    serial,
                    self._clock.now(),
                    lifetime,
                    constrained=constrained,
                )
            )
            subject = _load(crossed).subject.rfc4514_string()
            facts = {"crossed": subject, "direction": "ours", "constrained": constrained}
            await keeper.commit(keeper.state, [keeper.event("ca.cross_signed", actor, Kind.X509, root, **facts)])
            return crossed

    async def _place(self, made: Sequence[tuple[IssuingCa, bytes]], actor: str) -> list[Changed]:
        """Put certified CAs below their roots, new roots into the bundle, and issue where nothing did before."""
        keeper = self._keeper
        after = keeper.state
        for ca, anchor in made:
            root = root_of(anchor, Source.OFFLINE)
            if all(known.id != root.id for known in after.roots):
                self._check_root(anchor)
                after = _with_new_root(after, root)
            elif after.root(root.id).stage is Stage.OLD:
                after = additions.adopt_root(after, root.id, Source.OFFLINE)
            after = additions.fulfil(additions.add_issuing(after, root.id, ca), ca.id)
        prepared = after.prepared_root
        if after.active_root is None and prepared is not None:
            after = lifecycle.activate(after, Kind.X509, prepared.id)
        roots = {known.id for known in keeper.state.roots}
        events = [
            keeper.event("ca.prepared", actor, Kind.X509, root, sequence=after.sequence)
            for root in after.roots
            if root.id not in roots
        ]
        for ca, _ in made:
            used = any(now.id == ca.id for now in after.issuing().values())
            events.append(keeper.event("ca.activated" if used else "ca.prepared", actor, Kind.ISSUING, ca))
        await keeper.commit(after, events)
        return [Changed(Kind.ISSUING, find(after, Kind.ISSUING, ca.id), after.sequence) for ca, _ in made]

    def _check_root(self, der: bytes) -> None:
        certificate = _load(der)
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        except _UNREADABLE:
            raise InvalidInput("the root does not say that it is a CA", fix="give the CA's own certificate") from None
        if not constraints.ca or not usage.key_cert_sign:
            raise InvalidInput("the root may not sign certificates", fix="give the CA's own certificate")
        try:
            certificate.verify_directly_issued_by(certificate)
        except _NO_PROOF:
            raise InvalidInput("the root is not self-signed", fix="give the last certificate of the chain") from None
        self._check_times(der, "the root")

    def _check_times(self, der: bytes, what: str) -> None:
        certificate, now = _load(der), self._clock.now()
        if now < certificate.not_valid_before_utc:
            raise InvalidInput(f"{what} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%SZ} on")
        if now + LEAST_LEFT > certificate.not_valid_after_utc:
            raise InvalidInput(f"{what} ends at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%SZ}")


def _chains(certificates: Sequence[bytes], requests: dict[str, Request]) -> list[tuple[Request, list[bytes]]]:
    """The certificates grouped: each that answers a request begins a chain."""
    found: list[tuple[Request, list[bytes]]] = []
    for der in certificates:
        loaded = _load(der)
        key = x509.SubjectKeyIdentifier.from_public_key(loaded.public_key()).digest.hex()
        request = requests.get(key)
        if request is not None:
            found.append((request, [der]))
        elif not found:
            raise InvalidInput(
                "the first certificate answers none of our requests",
                fix="give the file that `eastwest ca sign-csr` wrote for the newest request",
            )
        elif loaded.subject != loaded.issuer:
            found[-1][1].append(der)
    if not found:
        raise InvalidInput("no certificate is given")
    return found


def _with_new_root(state: State, root: Root) -> State:
    """The root in the bundle and prepared, before its issuing CAs are below it."""
    if state.prepared_root is not None:
        raise FailedPrecondition(
            f"the root {state.prepared_root.id} is prepared already", fix="activate it, or discard it first"
        )
    return additions.adopt_root(
        additions.trust_root(state, replace(root, source=Source.EXTERNAL)), root.id, Source.OFFLINE
    )


def _same_key(state: State, crossed: x509.Certificate) -> Root:
    for root in state.roots:
        own = _load(root.certificate)
        if own.public_key() == crossed.public_key():
            if own.subject != crossed.subject:
                raise InvalidInput(
                    "the certificate is for our root's key, but under another subject, so no path leads through it",
                    fix="have it signed with our root's own subject",
                )
            return root
    raise InvalidInput("the certificate is not for the key of any of our roots")


def _issuer_among(certificate: x509.Certificate, roots: Sequence[bytes]) -> x509.Certificate:
    for der in roots:
        try:
            certificate.verify_directly_issued_by(_load(der))
        except _NO_PROOF:
            continue
        return _load(der)
    raise InvalidInput("none of the roots given signed this certificate", fix="give the other root with --root")


def _check_count(*certificates: Sequence[bytes]) -> None:
    if sum(map(len, certificates)) > MAX_CERTIFICATES:
        raise InvalidInput(f"at most {MAX_CERTIFICATES} certificates are taken at once")


def _load(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except PARSE_ERRORS:
        raise InvalidInput("a certificate cannot be read") from None


def _words(environment: str) -> str:
    return f"environment {environment}" if environment else "the trust domain"


_UNREADABLE: tuple[type[Exception], ...] = (x509.ExtensionNotFound, *PARSE_ERRORS)
