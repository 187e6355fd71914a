"""Talking to a running server over its admin socket (``DATA/server/api.sock``)."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
from eastwest.api.spire.api.server.bundle.v1 import bundle_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.errors import PermissionDenied, Unavailable
from eastwest.ledger.query import DecisionQuery
from eastwest.rpc.client import Channel, method

ANY_VERSION = "*"
_ADMIN = pb.DESCRIPTOR.services_by_name["Admin"]
_BUNDLE = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]


class AdminClient:
    """The admin API as Python values. Use as ``async with AdminClient.connect(data) as admin``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    def connect(cls, data: Path) -> AdminClient:
        """Reach the server of ``data``; raises ``Unavailable`` when none runs there."""
        return cls(admin_channel(data))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._channel.close()

    async def status(self) -> pb.GetStatusResponse:
        """What the server says of itself."""
        reply: pb.GetStatusResponse = await self._call("GetStatus", pb.GetStatusRequest())
        return reply

    async def create_join_token(self, *, ttl: int = 600, group: str = "", spiffe_id: str = "") -> types_pb2.JoinToken:
        """A token for one new node; ``ttl`` in seconds."""
        request = pb.CreateJoinTokenRequest(ttl=ttl, group=group, spiffe_id=spiffe_id)
        reply: types_pb2.JoinToken = await self._call("CreateJoinToken", request)
        return reply

    async def estate_status(self) -> dict[str, Any] | None:
        """The estate in force as ``{version, files, applied_at, applied_by}``, or None before the first."""
        estate = await self._call("GetEstate", pb.GetEstateRequest())
        if not estate.version:
            return None
        return {
            "version": estate.version,
            "files": dict(estate.files),
            "applied_at": estate.applied_at,
            "applied_by": estate.applied_by,
        }

    async def apply_estate(
        self, files: Mapping[str, bytes], expected_version: str = ANY_VERSION, **wishes: Any
    ) -> dict[str, Any]:
        """Put an estate in force; refused when another version than ``expected_version`` is.

        ``wishes``: ``change``, the one that it carries out; ``break_glass``, why approvals are skipped, for
        ``break_glass_seconds``; ``accept_breaks``: recorded calls that a rollout would newly refuse are meant to be.
        """
        request = pb.ApplyEstateRequest(files=files, expected_version=expected_version, **wishes)
        reply = await self._call("ApplyEstate", request)
        return {"version": reply.version, "changes": msgspec.json.decode(reply.plan)}

    async def plan_estate(self, files: Mapping[str, bytes]) -> pb.PlanEstateResponse:
        """What applying these files would do to registrations, and why the caller may not ("": may)."""
        reply: pb.PlanEstateResponse = await self._call("PlanEstate", pb.PlanEstateRequest(files=files))
        return reply

    async def entries(self, wanted: pb.ListEntriesRequest) -> list[pb.ManagedEntry]:
        """All entries that the request's filter admits, page by page."""
        found: list[pb.ManagedEntry] = []
        while True:
            page = await self._call("ListEntries", wanted)
            found += page.entries
            wanted.page_token = page.next_page_token
            if not wanted.page_token:
                return found

    async def write_entries(self, request: pb.WriteEntriesRequest) -> pb.WriteEntriesResponse:
        """Create, change and delete entries; each result has its own status."""
        reply: pb.WriteEntriesResponse = await self._call("WriteEntries", request)
        return reply

    async def wait_for_entries(
        self, awaited: Sequence[pb.WaitForEntriesRequest.Awaited], seconds: float
    ) -> pb.WaitForEntriesResponse:
        """Which agents hold the entries, once all concerned do or the time is over."""
        request = pb.WaitForEntriesRequest(entries=awaited, timeout_ms=int(seconds * 1000))
        reply: pb.WaitForEntriesResponse = await self._channel.unary(
            method(_ADMIN, "WaitForEntries"), request, deadline=seconds + 30
        )
        return reply

    async def explain_entries(self, selectors: Sequence[str], node: str = "") -> dict[str, Any]:
        """Which entries a process with these selectors would match, and what it lacks for others."""
        request = pb.ExplainEntriesRequest(selectors=selectors, node=node)
        reply = await self._call("ExplainEntries", request)
        explanation: dict[str, Any] = msgspec.json.decode(reply.explanation)
        return explanation

    async def mesh_status(self) -> pb.GetMeshStatusResponse:
        """What every agent and sidecar was told and has acknowledged."""
        reply: pb.GetMeshStatusResponse = await self._call("GetMeshStatus", pb.GetMeshStatusRequest())
        return reply

    async def nodes(self, spiffe_id: str = "") -> list[pb.ListNodesResponse.Node]:
        """All attested nodes, or the one named; raises ``NotFound`` when that is not known."""
        found: list[pb.ListNodesResponse.Node] = []
        token = ""
        while True:
            page = await self._call("ListNodes", pb.ListNodesRequest(spiffe_id=spiffe_id, page_token=token))
            found += page.nodes
            token = page.next_page_token
            if not token:
                return found

    async def purge_nodes(self, ended_before: int, *, every_kind: bool, dry_run: bool) -> list[str]:
        """Forget nodes that ended before that moment (Unix seconds); gives the SPIFFE IDs of those, sorted."""
        request = pb.PurgeNodesRequest(ended_before=ended_before, every_kind=every_kind, dry_run=dry_run)
        return sorted((await self._call("PurgeNodes", request)).spiffe_ids)

    async def decisions(self, **query: Any) -> tuple[list[dict[str, Any]], int]:
        """Ledger rows that match (fields of ``ListDecisionsRequest``), and how many were ever lost."""
        reply = await self._call("ListDecisions", pb.ListDecisionsRequest(**query))
        return msgspec.json.decode(reply.decisions, type=list[dict[str, Any]]), reply.lost

    async def ledger_rows(self, query: DecisionQuery) -> tuple[list[dict[str, Any]], int]:
        """Ledger rows that match, losses included, and how many decisions were ever lost."""
        request = pb.ListDecisionsRequest(query=msgspec.json.encode(query))
        reply = await self._call("ListDecisions", request)
        return msgspec.json.decode(reply.decisions, type=list[dict[str, Any]]), reply.lost

    async def export_decisions(self, query: DecisionQuery, form: str) -> AsyncIterator[bytes]:
        """Matching rows as a file of this format, in pieces."""
        request = pb.ExportDecisionsRequest(query=msgspec.json.encode(query), format=form)
        async with self._channel.stream(method(_ADMIN, "ExportDecisions")) as stream:
            await stream.send_message(request, end=True)
            async for reply in stream:
                yield reply.piece

    async def count_decisions(self, query: DecisionQuery, by: str) -> list[dict[str, Any]]:
        """Totals of the ledger by a dimension of ``eastwest.ledger.query.DIMENSIONS``, or by ``edges``."""
        request = pb.CountDecisionsRequest(query=msgspec.json.encode(query), by=by)
        reply = await self._call("CountDecisions", request)
        return msgspec.json.decode(reply.rows, type=list[dict[str, Any]])

    async def flush_log(self, *, decisions: bool = False) -> pb.FlushLogResponse:
        """Publish a checkpoint that covers everything stored so far; ``decisions``: seal those first."""
        reply: pb.FlushLogResponse = await self._call("FlushLog", pb.FlushLogRequest(decisions=decisions))
        return reply

    async def bundle(self) -> types_pb2.Bundle:
        """The trust bundle of the server's trust domain."""
        request = bundle_pb2.GetBundleRequest()
        reply: types_pb2.Bundle = await self._channel.unary(method(_BUNDLE, "GetBundle"), request)
        return reply

    async def _call(self, name: str, request: Any) -> Any:
        return await self._channel.unary(method(_ADMIN, name), request, deadline=120)


def admin_channel(data: Path) -> Channel:
    """A channel to the admin socket of the server of ``data``; raises ``Unavailable`` when none answers there."""
    path = data.absolute() / "server" / "api.sock"
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(str(path))
    except PermissionError:
        raise PermissionDenied(
            f"this user may not open {path}",
            fix="run it as root, as the server's user, or as an administrator of admin_socket_group",
        ) from None
    except (FileNotFoundError, ConnectionRefusedError):
        # Killed, a server leaves its socket behind.
        raise Unavailable(f"no server runs on {data}", fix=f"start it: eastwest server run --data {data}") from None
    except OSError as error:
        raise Unavailable(f"{path} does not answer: {error}") from None
    return Channel(path=str(path))
