"""Questions about decisions over the admin API, each within what the asking administrator may see."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

import msgspec

from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
from eastwest.errors import InvalidInput
from eastwest.ledger.query import DecisionQuery, Scope
from eastwest.policy.estate import Estate, Right
from eastwest.registry.administrators import Administrator, Subject
from eastwest.rpc.service import Call, StreamHandler, UnaryHandler
from eastwest.server.gate import Gate
from eastwest.server.ledger.keeper import Ledger
from eastwest.spiffe.id import SpiffeId

MAX_QUERY = 256 * 1024
"""Bytes of a query; one by identity failure may name some thousands of causes."""
_decoder = msgspec.json.Decoder(DecisionQuery)


class DecisionQueries:
    """The methods of ``eastwest.admin.v1.Admin`` that read the ledger."""

    def __init__(self, ledger: Ledger, estate: Callable[[], Estate | None], gate: Gate) -> None:
        """``estate``: the one in force, which says whose a service and a caller are."""
        self._ledger = ledger
        self._estate = estate
        self._gate = gate

    def handlers(self) -> dict[str, UnaryHandler | StreamHandler]:
        """By method name."""
        return {"ListDecisions": self._list, "CountDecisions": self._count, "ExportDecisions": self._export}

    async def _list(self, request: pb.ListDecisionsRequest, call: Call) -> pb.ListDecisionsResponse:
        if request.query:
            query = read_query(request.query)
        else:
            query = DecisionQuery(
                after=request.after,
                limit=request.limit or 100,
                caller=request.caller,
                service=request.service,
                verdict=request.verdict,
                code=request.code,
                newest_first=request.newest_first,
                kind="decision",
            )
        query = await self._within(query, call)
        rows = await self._ledger.search(query)
        return pb.ListDecisionsResponse(decisions=msgspec.json.encode(rows), lost=await self._lost(query))

    async def _count(self, request: pb.CountDecisionsRequest, call: Call) -> pb.CountDecisionsResponse:
        query = await self._within(read_query(request.query), call)
        if request.by == "edges":
            rows = await self._ledger.edges(query)
        else:
            rows = await self._ledger.top(query, request.by)
        return pb.CountDecisionsResponse(rows=msgspec.json.encode(rows), lost=await self._lost(query))

    async def _export(self, request: pb.ExportDecisionsRequest, call: Call) -> None:
        query = await self._within(read_query(request.query), call)
        # Closed with the call: what it keeps on the disk goes when the caller does.
        async with aclosing(self._ledger.export(query, request.format)) as pieces:
            async for piece in pieces:
                await call.send(pb.ExportDecisionsResponse(piece=piece))

    async def _within(self, query: DecisionQuery, call: Call) -> DecisionQuery:
        administrator = await self._gate.administrator(call)
        return msgspec.structs.replace(query, scope=scope_of(administrator, self._estate()))

    async def _lost(self, query: DecisionQuery) -> int:
        """What was lost is of all services together: no part of it is told to who may see a part."""
        return await self._ledger.lost() if query.scope is None else 0


def scope_of(administrator: Administrator, estate: Estate | None) -> Scope | None:
    """What of the ledger an administrator sees; None: all of it.

    Any right lets read. One whose every right is limited to domains, environments or SPIFFE IDs sees the decisions
    about the services within, and those about calls of the callers within, whoever was called.
    """
    grants = [grant for grant in administrator.grants if grant.gives(Right.READ)]
    if any(not grant.is_limited for grant in grants):
        return None
    if estate is None:
        return Scope()
    environments = {workload.spiffe_id: workload.environment for workload in estate.workloads}

    def covered(spiffe_id: str, domain: str, environment: str) -> bool:
        subject = Subject(SpiffeId.parse(spiffe_id), domain, environment)
        # A right that is limited in ways which say nothing of an identity (nodes, selectors, DNS names) shows nothing.
        return any(
            (grant.domains or grant.environments or grant.spiffe_ids) and grant.covers(subject) for grant in grants
        )

    return Scope(
        services=tuple(
            one.service
            for one in estate.services
            if covered(one.workload, one.domain, environments.get(one.workload, ""))
        ),
        callers=tuple(one.spiffe_id for one in estate.callers if covered(one.spiffe_id, one.domain, one.environment)),
    )


def read_query(raw: bytes) -> DecisionQuery:
    """A query as it travels; raises ``InvalidInput``."""
    if len(raw) > MAX_QUERY:
        raise InvalidInput(f"a query has at most {MAX_QUERY} bytes")
    try:
        return _decoder.decode(raw or b"{}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the query is malformed: {error}") from None
