"""The part of ``spire.api.server.bundle.v1.Bundle`` that is about foreign trust domains."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from eastwest.api.spire.api.server.bundle.v1 import bundle_pb2 as pb
from eastwest.api.spire.api.types import types_pb2
from eastwest.clock import Clock
from eastwest.errors import AlreadyExists, Error, FailedPrecondition, InvalidInput, NotFound
from eastwest.registry.entries import Writer
from eastwest.registry.entry import Entry
from eastwest.registry.listing import EntryFilter, Match
from eastwest.registry.registry import Registry
from eastwest.rpc.service import Call, UnaryHandler
from eastwest.rpc.spire import bundle_from_proto, bundle_to_proto, masked
from eastwest.rpc.status import status_of
from eastwest.server.federation.keeper import Federation
from eastwest.server.gate import Gate
from eastwest.server.journal import Event, Journal
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import TrustDomain

PAGE = 50
"""Bundles of one answer; agents written in Go refuse messages over 4 MiB."""
MAX_BATCH = 1000
Mask = types_pb2.BundleMask | None


class FederatedBundles:
    """Foreign bundles by API: agents read them, administrators set them."""

    def __init__(self, federation: Federation, registry: Registry, journal: Journal, clock: Clock, gate: Gate) -> None:
        self._federation = federation
        self._registry = registry
        self._journal = journal
        self._clock = clock
        self._gate = gate

    def handlers(self) -> Mapping[str, UnaryHandler]:
        """Methods by name, to be served with those about the own bundle."""
        return {
            "GetFederatedBundle": self._get,
            "ListFederatedBundles": self._list,
            "BatchCreateFederatedBundle": self._create,
            "BatchUpdateFederatedBundle": self._update,
            "BatchSetFederatedBundle": self._set,
            "BatchDeleteFederatedBundle": self._delete,
        }

    @property
    def count(self) -> int:
        """How many foreign bundles there are."""
        return len(self._federation.bundles)

    async def _get(self, request: pb.GetFederatedBundleRequest, _call: Call) -> types_pb2.Bundle:
        domain = TrustDomain.parse(request.trust_domain)
        if domain == self._federation.own:
            raise InvalidInput(f"{domain} is this server's own trust domain", fix="use GetBundle")
        bundle = self._federation.bundles.get(domain)
        if bundle is None:
            raise NotFound(f"no bundle of trust domain {domain} is known")
        return _shown(bundle, _mask(request))

    async def _list(self, request: pb.ListFederatedBundlesRequest, call: Call) -> pb.ListFederatedBundlesResponse:
        await self._gate.admin(call)
        names = sorted(domain.name for domain in self._federation.bundles)
        start = bisect_right(names, request.page_token) if request.page_token else 0
        size = min(request.page_size, PAGE) if request.page_size > 0 else len(names)
        page = names[start : start + size]
        more = page[-1] if page and start + size < len(names) else ""
        found = [_shown(self._federation.bundles[TrustDomain(name)], _mask(request)) for name in page]
        return pb.ListFederatedBundlesResponse(bundles=found, next_page_token=more)

    async def _create(
        self, request: pb.BatchCreateFederatedBundleRequest, call: Call
    ) -> pb.BatchCreateFederatedBundleResponse:
        actor = await self._gate.admin(call)

        async def create(message: types_pb2.Bundle) -> Bundle:
            bundle = bundle_from_proto(message)
            if bundle.trust_domain in self._federation.bundles:
                raise AlreadyExists("bundle already exists")
            await self._federation.set_bundle(bundle, actor, useless=True)
            return bundle

        response = pb.BatchCreateFederatedBundleResponse()
        await _each(request.bundle, create, response.results, _mask(request))
        return response

    async def _set(self, request: pb.BatchSetFederatedBundleRequest, call: Call) -> pb.BatchSetFederatedBundleResponse:
        actor = await self._gate.admin(call)

        async def put(message: types_pb2.Bundle) -> Bundle:
            bundle = bundle_from_proto(message)
            await self._federation.set_bundle(bundle, actor, useless=True)
            return bundle

        response = pb.BatchSetFederatedBundleResponse()
        await _each(request.bundle, put, response.results, _mask(request))
        return response

    async def _update(
        self, request: pb.BatchUpdateFederatedBundleRequest, call: Call
    ) -> pb.BatchUpdateFederatedBundleResponse:
        actor = await self._gate.admin(call)
        wanted = request.input_mask if request.HasField("input_mask") else None

        async def update(message: types_pb2.Bundle) -> Bundle:
            given = bundle_from_proto(message)
            held = self._federation.bundles.get(given.trust_domain)
            if held is None:
                raise NotFound("bundle not found")
            bundle = _merged(held, given, wanted)
            await self._federation.set_bundle(bundle, actor, useless=True)
            return bundle

        response = pb.BatchUpdateFederatedBundleResponse()
        await _each(request.bundle, update, response.results, _mask(request))
        return response

    async def _delete(
        self, request: pb.BatchDeleteFederatedBundleRequest, call: Call
    ) -> pb.BatchDeleteFederatedBundleResponse:
        actor = await self._gate.admin(call)
        # Entries that federate are changed with their own right: one over federation alone does not reach them.
        writer = (await self._gate.administrator(call)).writer(self._registry.entries.rules)
        if len(request.trust_domains) > MAX_BATCH:
            raise InvalidInput(f"a batch has at most {MAX_BATCH} items")
        response = pb.BatchDeleteFederatedBundleResponse()
        for name in request.trust_domains:
            try:
                await self._forget(name, request.mode, actor, writer)
            except Error as error:
                status = types_pb2.Status(code=status_of(error).value, message=str(error))
            else:
                status = types_pb2.Status()
            response.results.add(status=status, trust_domain=name)
        return response

    async def _forget(self, name: str, mode: int, actor: str, writer: Writer) -> None:
        domain = TrustDomain.parse(name)
        if domain == self._federation.own:
            raise InvalidInput("removing the bundle for the server trust domain is not allowed")
        if domain not in self._federation.bundles:
            raise NotFound("bundle not found")
        wanted = EntryFilter(federates_with=(frozenset({domain}), Match.ANY))
        entries = self._registry.entries.list(wanted).items
        if entries and mode == pb.BatchDeleteFederatedBundleRequest.RESTRICT:
            raise FailedPrecondition(
                f"{len(entries)} entries federate with {domain}", fix="delete or change them, or choose another mode"
            )
        if entries:
            await self._release(entries, domain, mode, actor, writer)
        await self._federation.delete_bundle(domain, actor)

    async def _release(self, entries: Any, domain: TrustDomain, mode: int, actor: str, writer: Writer) -> None:
        def without(entry: Entry) -> Entry:
            return replace(entry, federates_with=tuple(one for one in entry.federates_with if one != domain))

        ids = [entry.id for entry in entries]
        # Tried first, so that one entry that may not be touched keeps all of them as they are.
        for dry_run in (True, False):
            if mode == pb.BatchDeleteFederatedBundleRequest.DELETE:
                record = partial(self._note, "entry.deleted", actor)
                outcomes = await self._registry.entries.delete(ids, record, writer, dry_run=dry_run)
            else:
                record = partial(self._note, "entry.changed", actor)
                edits = [(entry_id, without) for entry_id in ids]
                now = self._clock.now()
                outcomes = await self._registry.entries.update(edits, now, record, writer, dry_run=dry_run)
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error

    async def _note(self, kind: str, actor: str, outcomes: Any) -> None:
        changed = [outcome.entry for outcome in outcomes if outcome.error is None and outcome.entry is not None]
        await self._journal.record_all(
            [Event(kind, actor, str(one.spiffe_id), {"entry": one.id, "revision": one.revision}) for one in changed]
        )


async def _each(messages: Any, work: Callable[[types_pb2.Bundle], Awaitable[Bundle]], results: Any, mask: Mask) -> None:
    if len(messages) > MAX_BATCH:
        raise InvalidInput(f"a batch has at most {MAX_BATCH} items")
    for message in messages:
        try:
            bundle = await work(message)
        except Error as error:
            results.add(status=types_pb2.Status(code=status_of(error).value, message=str(error)))
        else:
            results.add(status=types_pb2.Status(), bundle=_shown(bundle, mask))


def _merged(held: Bundle, given: Bundle, wanted: Mask) -> Bundle:
    if wanted is None:
        return given
    return replace(
        held,
        x509_authorities=given.x509_authorities if wanted.x509_authorities else held.x509_authorities,
        jwt_authorities=given.jwt_authorities if wanted.jwt_authorities else held.jwt_authorities,
        refresh_hint=given.refresh_hint if wanted.refresh_hint else held.refresh_hint,
        sequence=given.sequence if wanted.sequence_number else held.sequence,
    )


def _mask(request: Any) -> Mask:
    return request.output_mask if request.HasField("output_mask") else None


def _shown(bundle: Bundle, mask: Mask) -> types_pb2.Bundle:
    return masked(bundle_to_proto(bundle), mask, keep=("trust_domain",))
