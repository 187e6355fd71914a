"""``spire.api.server.localauthority.v1.LocalAuthority``: SPIRE's way to rotate by command, for its own CLI and tools.

With a root of our own an X.509 authority is a root with all that is below it. With an upstream authority it is the
default issuing CA, and roots are tainted and revoked by the upstream calls.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message
from msgspec.structs import replace

from eastwest.api.spire.api.server.localauthority.v1 import localauthority_pb2 as pb
from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.pki.rotation.state import Hierarchy, IssuingCa, JwtKey, Kind, Root, Source, Stage, State
from eastwest.rpc.service import SMALL_MESSAGE, Call, Service
from eastwest.server.ca.authority import DEFAULT
from eastwest.server.ca.rotation import AuthorityKeeper, Item
from eastwest.server.gate import Gate

_SERVICE = pb.DESCRIPTOR.services_by_name["LocalAuthority"]
M = TypeVar("M", bound=Message)


class LocalAuthority:
    """The calls, as the keeper's changes."""

    def __init__(self, keeper: AuthorityKeeper, gate: Gate) -> None:
        self._keeper = keeper
        self._gate = gate

    def service(self) -> Service:
        """The gRPC service of the admin socket."""
        return Service(
            _SERVICE,
            {
                "GetX509AuthorityState": self._x509_state,
                "PrepareX509Authority": self._prepare_x509,
                "ActivateX509Authority": self._activate_x509,
                "TaintX509Authority": self._taint_x509,
                "RevokeX509Authority": self._revoke_x509,
                "TaintX509UpstreamAuthority": self._taint_upstream,
                "RevokeX509UpstreamAuthority": self._revoke_upstream,
                "GetJWTAuthorityState": self._jwt_state,
                "PrepareJWTAuthority": self._prepare_jwt,
                "ActivateJWTAuthority": self._activate_jwt,
                "TaintJWTAuthority": self._taint_jwt,
                "RevokeJWTAuthority": self._revoke_jwt,
            },
            guard=self._gate.enter,
            limit=SMALL_MESSAGE,
        )

    async def _x509_state(
        self, _request: pb.GetX509AuthorityStateRequest, call: Call
    ) -> pb.GetX509AuthorityStateResponse:
        await self._gate.admin(call)
        return _told(self._x509(), pb.GetX509AuthorityStateResponse(), self._above())

    async def _prepare_x509(
        self, _request: pb.PrepareX509AuthorityRequest, call: Call
    ) -> pb.PrepareX509AuthorityResponse:
        actor = await self._gate.admin(call)
        changed = await self._keeper.prepare(Kind.X509, actor)
        item = changed.item
        if isinstance(item, Root) and item.source is Source.UPSTREAM:
            item = next(ca for ca in item.issuing if ca.environment == DEFAULT)
        return pb.PrepareX509AuthorityResponse(prepared_authority=_state(item, self._above()))

    async def _activate_x509(
        self, request: pb.ActivateX509AuthorityRequest, call: Call
    ) -> pb.ActivateX509AuthorityResponse:
        actor = await self._gate.admin(call)
        kind, authority_id = self._chosen(request.authority_id)
        await self._keeper.activate(kind, authority_id, actor)
        item = self._find(request.authority_id)
        return pb.ActivateX509AuthorityResponse(activated_authority=_state(item, self._above()))

    async def _taint_x509(self, request: pb.TaintX509AuthorityRequest, call: Call) -> pb.TaintX509AuthorityResponse:
        actor = await self._gate.admin(call)
        self._refuse_upstream("tainted")
        changed = await self._keeper.taint(Kind.X509, _given(request.authority_id), actor)
        return pb.TaintX509AuthorityResponse(tainted_authority=_state(changed.item))

    async def _revoke_x509(self, request: pb.RevokeX509AuthorityRequest, call: Call) -> pb.RevokeX509AuthorityResponse:
        actor = await self._gate.admin(call)
        self._refuse_upstream("revoked")
        changed = await self._keeper.revoke(Kind.X509, _given(request.authority_id), actor)
        return pb.RevokeX509AuthorityResponse(revoked_authority=_state(changed.item))

    async def _taint_upstream(
        self, request: pb.TaintX509UpstreamAuthorityRequest, call: Call
    ) -> pb.TaintX509UpstreamAuthorityResponse:
        actor = await self._gate.admin(call)
        self._require_upstream()
        await self._keeper.taint(Kind.X509, _given(request.subject_key_id, "subject_key_id"), actor)
        return pb.TaintX509UpstreamAuthorityResponse(upstream_authority_subject_key_id=request.subject_key_id)

    async def _revoke_upstream(
        self, request: pb.RevokeX509UpstreamAuthorityRequest, call: Call
    ) -> pb.RevokeX509UpstreamAuthorityResponse:
        actor = await self._gate.admin(call)
        self._require_upstream()
        await self._keeper.revoke(Kind.X509, _given(request.subject_key_id, "subject_key_id"), actor)
        return pb.RevokeX509UpstreamAuthorityResponse(upstream_authority_subject_key_id=request.subject_key_id)

    async def _jwt_state(self, _request: pb.GetJWTAuthorityStateRequest, call: Call) -> pb.GetJWTAuthorityStateResponse:
        await self._gate.admin(call)
        # Keys of other servers of the trust domain are in the bundle too, and theirs to rotate.
        own = [key for key in self._keeper.state.jwt if key.key]
        return _told(own, pb.GetJWTAuthorityStateResponse())

    async def _prepare_jwt(self, _request: pb.PrepareJWTAuthorityRequest, call: Call) -> pb.PrepareJWTAuthorityResponse:
        actor = await self._gate.admin(call)
        changed = await self._keeper.prepare(Kind.JWT, actor)
        return pb.PrepareJWTAuthorityResponse(prepared_authority=_state(changed.item))

    async def _activate_jwt(
        self, request: pb.ActivateJWTAuthorityRequest, call: Call
    ) -> pb.ActivateJWTAuthorityResponse:
        actor = await self._gate.admin(call)
        changed = await self._keeper.activate(Kind.JWT, _given(request.authority_id), actor)
        return pb.ActivateJWTAuthorityResponse(activated_authority=_state(changed.item))

    async def _taint_jwt(self, request: pb.TaintJWTAuthorityRequest, call: Call) -> pb.TaintJWTAuthorityResponse:
        actor = await self._gate.admin(call)
        changed = await self._keeper.taint(Kind.JWT, _given(request.authority_id), actor)
        return pb.TaintJWTAuthorityResponse(tainted_authority=_state(changed.item))

    async def _revoke_jwt(self, request: pb.RevokeJWTAuthorityRequest, call: Call) -> pb.RevokeJWTAuthorityResponse:
        actor = await self._gate.admin(call)
        changed = await self._keeper.revoke(Kind.JWT, _given(request.authority_id), actor)
        return pb.RevokeJWTAuthorityResponse(revoked_authority=_state(changed.item))

    def _x509(self) -> list[Root] | list[IssuingCa]:
        state = self._keeper.state
        if not self._is_upstream():
            # A root that is only trusted never signed anything here.
            # SPIRE's commands know one line of roots: the classical one.
            return [
                root
                for root in state.roots
                if root.source is not Source.EXTERNAL and root.hierarchy is Hierarchy.CLASSICAL
            ]
        return _default_cas(state)

    def _chosen(self, authority_id: str) -> tuple[Kind, str]:
        """What an X.509 authority's id stands for: with an upstream, a CA below a new root brings that root along."""
        given = _given(authority_id)
        if not self._is_upstream():
            return Kind.X509, given
        root, ca = self._keeper.state.issuing_ca(given)
        return (Kind.X509, root.id) if root.stage is Stage.PREPARED else (Kind.ISSUING, ca.id)

    def _find(self, authority_id: str) -> Item:
        state = self._keeper.state
        return state.issuing_ca(authority_id)[1] if self._is_upstream() else state.root(authority_id)

    def _is_upstream(self) -> bool:
        root = self._keeper.state.active_root
        return root is not None and root.source is Source.UPSTREAM

    def _above(self) -> str:
        root = self._keeper.state.active_root
        return root.id if root is not None and root.source is not Source.OWN else ""

    def _refuse_upstream(self, verb: str) -> None:
        if self._is_upstream():
            raise FailedPrecondition(
                f"with an upstream authority a local X.509 authority cannot be {verb}",
                fix="taint and revoke the upstream's root: upstreamauthority taint, upstreamauthority revoke",
            )

    def _require_upstream(self) -> None:
        if self._keeper.maker.upstream is None:
            raise FailedPrecondition("there is no upstream authority", fix="set upstream in server.toml")


def _default_cas(state: State) -> list[IssuingCa]:
    """The default issuing CAs of all generations, each at the stage it would have alone."""
    return [
        ca if root.stage is Stage.ACTIVE else replace(ca, stage=root.stage)
        for root in state.roots
        for ca in root.issuing
        if ca.environment == DEFAULT and root.hierarchy is Hierarchy.CLASSICAL
    ]


def _told(items: list[Root] | list[IssuingCa] | list[JwtKey], reply: M, above: str = "") -> M:
    """The reply with one authority for each stage; of several old ones the youngest."""
    ordered: list[Item] = sorted(items, key=lambda item: item.not_before)
    for item in ordered:
        getattr(reply, item.stage.value).CopyFrom(_state(item, above))
    return reply


def _state(item: Item, above: str = "") -> pb.AuthorityState:
    shown = above if isinstance(item, IssuingCa) else ""
    return pb.AuthorityState(authority_id=item.id, expires_at=item.not_after, upstream_authority_subject_key_id=shown)


def _given(value: str, what: str = "authority_id") -> str:
    if not value:
        raise InvalidInput(f"{what} is missing")
    return value
