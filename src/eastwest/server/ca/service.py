"""``eastwest.authority.v1.Authority``: the certificate authority, for its administrators."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from eastwest.api.eastwest.authority.v1 import authority_pb2 as pb
from eastwest.errors import InvalidInput
from eastwest.pki.rotation.state import Hierarchy, IssuingCa, Kind, Root, Source, Stage
from eastwest.pki.schedule import activate_at, prepare_at
from eastwest.rpc.service import Call, Service
from eastwest.server.ca.files import CaFiles
from eastwest.server.ca.rotation import AuthorityKeeper, Changed, Item
from eastwest.server.gate import Gate

_SERVICE = pb.DESCRIPTOR.services_by_name["Authority"]
MAX_CROSS_DAYS = 3650


class CaService:
    """The calls, as changes of the keeper and exchanges of files."""

    def __init__(self, keeper: AuthorityKeeper, files: CaFiles, gate: Gate, rotation: str) -> None:
        """``rotation`` is the setting ``ca_rotation``, to be shown."""
        self._keeper = keeper
        self._files = files
        self._gate = gate
        self._rotation = rotation

    def service(self) -> Service:
        """The gRPC service of the admin socket."""
        return Service(
            _SERVICE,
            {
                "GetState": self._get_state,
                "Prepare": self._prepare,
                "Activate": self._activate,
                "Taint": self._taint,
                "Revoke": self._revoke,
                "Discard": self._discard,
                "ExportCsrs": self._export,
                "Import": self._import,
                "CrossSign": self._cross_sign,
            },
            guard=self._gate.enter,
        )

    async def _get_state(self, request: pb.GetStateRequest, call: Call) -> pb.State:
        await self._gate.admin(call)
        return told(self._keeper, self._rotation, holders=request.holders)

    async def _prepare(self, request: pb.PrepareRequest, call: Call) -> pb.Change:
        actor = await self._gate.admin(call)
        hierarchy = _hierarchy(request.hierarchy)
        return self._reply(await self._keeper.prepare(_kind(request.kind), actor, request.environment, hierarchy))

    async def _activate(self, request: pb.ChangeRequest, call: Call) -> pb.Change:
        actor = await self._gate.admin(call)
        return self._reply(await self._keeper.activate(_kind(request.kind), request.id, actor, force=request.force))

    async def _taint(self, request: pb.ChangeRequest, call: Call) -> pb.Change:
        actor = await self._gate.admin(call)
        return self._reply(await self._keeper.taint(_kind(request.kind), request.id, actor))

    async def _revoke(self, request: pb.ChangeRequest, call: Call) -> pb.Change:
        actor = await self._gate.admin(call)
        return self._reply(await self._keeper.revoke(_kind(request.kind), request.id, actor, force=request.force))

    async def _discard(self, request: pb.ChangeRequest, call: Call) -> pb.Change:
        actor = await self._gate.admin(call)
        return self._reply(await self._keeper.discard(_kind(request.kind), request.id, actor))

    async def _export(self, request: pb.ExportCsrsRequest, call: Call) -> pb.ExportCsrsResponse:
        actor = await self._gate.admin(call)
        found = await self._files.export(list(request.environments), actor, everything=request.all)
        return pb.ExportCsrsResponse(
            csrs=[pb.ExportCsrsResponse.Csr(environment=one.environment, csr=one.csr) for one in found]
        )

    async def _import(self, request: pb.ImportRequest, call: Call) -> pb.ImportResponse:
        actor = await self._gate.admin(call)
        certificates, roots = list(request.certificates), list(request.roots)
        if request.trust_only and request.cross:
            raise InvalidInput("a root is either trusted or has signed ours, not both at once")
        if request.trust_only:
            changed = await self._files.trust([*certificates, *roots], actor)
        elif request.cross:
            changed = await self._files.take_cross(certificates, roots, actor)
        else:
            changed = await self._files.take(certificates, roots, actor)
        items = [item_to_proto(one.kind, one.item, self._above(one.item)) for one in changed]
        return pb.ImportResponse(items=items, bundle_sequence=self._keeper.state.sequence)

    async def _cross_sign(self, request: pb.CrossSignRequest, call: Call) -> pb.CrossSignResponse:
        actor = await self._gate.admin(call)
        if not 0 <= request.lifetime <= MAX_CROSS_DAYS * 86_400:
            raise InvalidInput(f"a cross certificate lives at most {MAX_CROSS_DAYS} days")
        lifetime = timedelta(seconds=request.lifetime or MAX_CROSS_DAYS * 86_400)
        crossed = await self._files.cross_sign(
            request.certificate, lifetime, actor, constrained=not request.unconstrained
        )
        return pb.CrossSignResponse(certificate=crossed)

    def _reply(self, changed: Changed) -> pb.Change:
        item = item_to_proto(changed.kind, changed.item, self._above(changed.item))
        return pb.Change(item=item, bundle_sequence=changed.sequence)

    def _above(self, item: Item) -> Root | None:
        return next((root for root in self._keeper.state.roots for ca in root.issuing if ca.id == item.id), None)


def told(keeper: AuthorityKeeper, rotation: str, *, holders: bool) -> pb.State:
    """Everything about the CA, as administrators see it."""
    state = keeper.state
    reply = pb.State(
        trust_domain=keeper.maker.trust_domain.name,
        bundle_sequence=state.sequence,
        items=list(_items(keeper)),
        pending_environments=[request.environment for request in state.requests],
        missing_environments=sorted(keeper.awaiting | keeper.awaiting_post_quantum),
        rotation=rotation,
        revoked=[pb.Revoked(kind=one.kind.value, id=one.id, not_after=one.not_after) for one in state.revoked],
    )
    if holders:
        for holder in sorted(keeper.holders(), key=lambda holder: holder.agent):
            reply.holders.add(
                agent_id=holder.agent,
                bundle_sequence=holder.sequence,
                not_after=holder.not_after,
                tainted_svids=holder.tainted,
                connected=holder.connected,
                stock=holder.stock,
                waiting=holder.waiting,
            )
    return reply


def item_to_proto(kind: Kind, item: Item, above: Root | None = None) -> pb.Item:
    """One authority; an issuing CA with the root ``above`` it, without which it issues nothing."""
    message = pb.Item(
        kind=kind.value,
        id=item.id,
        stage=item.stage.value,
        tainted=item.tainted,
        not_before=item.not_before,
        not_after=item.not_after,
        tainted_sequence=item.tainted_sequence,
    )
    if isinstance(item, Root):
        message.source = item.source.value
        message.hierarchy = item.hierarchy.value
        message.certificate = item.certificate
        message.sequence = item.sequence
    elif isinstance(item, IssuingCa):
        message.environment = item.environment
        message.certificate = item.chain[0]
        if above is not None:
            message.parent = above.id
            message.hierarchy = above.hierarchy.value
            if above.stage is not Stage.ACTIVE:
                message.stage = above.stage.value
    else:
        message.certificate = item.spki
        message.sequence = item.sequence
    scheduled = message.stage == Stage.ACTIVE and not (isinstance(item, Root) and item.source is not Source.OWN)
    if scheduled:
        message.prepare_at, message.activate_at = prepare_at(item), activate_at(item)
    return message


def _items(keeper: AuthorityKeeper) -> Iterator[pb.Item]:
    for root in keeper.state.roots:
        item = item_to_proto(Kind.X509, root)
        item.usable_at = keeper.usable_at(Kind.X509, root)
        yield item
        for ca in root.issuing:
            yield item_to_proto(Kind.ISSUING, ca, root)
    for key in keeper.state.jwt:
        item = item_to_proto(Kind.JWT, key)
        item.usable_at = keeper.usable_at(Kind.JWT, key)
        yield item


def _hierarchy(text: str) -> Hierarchy:
    try:
        return Hierarchy(text or Hierarchy.CLASSICAL)
    except ValueError:
        raise InvalidInput(f"{text[:32]!r} is no hierarchy", fix=f"one of {', '.join(Hierarchy)}") from None


def _kind(text: str) -> Kind:
    try:
        return Kind(text)
    except ValueError:
        raise InvalidInput(f"{text[:32]!r} is no kind of authority", fix=f"one of {', '.join(Kind)}") from None
