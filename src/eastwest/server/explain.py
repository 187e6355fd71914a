"""``eastwest.insight.v1.Insight``: recorded calls, and calls thought of, explained to who may see them.

A recorded call is explained by the version of the estate that decided it, and what the version in force would say is
told beside it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container, Mapping
from typing import Any

import msgspec

from eastwest.api.eastwest.insight.v1 import insight_pb2 as pb
from eastwest.errors import FailedPrecondition, InvalidInput, NotFound, PermissionDenied
from eastwest.ledger.query import DecisionQuery, Scope
from eastwest.policy.enforcement import DecisionCode
from eastwest.policy.estate import Estate
from eastwest.policy.explain import Asked, Explainer, Explanation
from eastwest.policy.load import load_estate
from eastwest.policy.table import compile_estate
from eastwest.rpc.service import Call, Service
from eastwest.server.estate import EstateKeeper
from eastwest.server.gate import Gate
from eastwest.server.ledger.service import scope_of

MAX_ASKED = 16 * 1024
"""Bytes of a question."""
MAX_WAITING = 4
_VERSIONS = 2
"""Versions that are kept as they were read: explanations come in bursts about one."""
_SERVICE = pb.DESCRIPTOR.services_by_name["Insight"]

FilesOf = Callable[[str], Awaitable[Mapping[str, bytes] | None]]
Search = Callable[[DecisionQuery], Awaitable[list[dict[str, Any]]]]


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An explanation, and where it comes from."""

    explanation: Explanation
    row: dict[str, Any] = {}  # the recorded decision
    others: int = 0  # more recorded calls with the same reference, which callers may choose
    in_force: str = ""  # version, where it is not the one explained
    now: str = ""  # the code that the version in force would give
    note: str = ""


class Explanations:
    """Answers administrators."""

    def __init__(
        self,
        estate: EstateKeeper,
        files_of: FilesOf,
        search: Search,
        gate: Gate,
        contained: Callable[[], Container[str]],
    ) -> None:
        """``files_of``: an applied version's files; ``search`` asks the ledger; ``contained``: SPIFFE IDs cut off."""
        self._estate = estate
        self._files_of = files_of
        self._search = search
        self._gate = gate
        self._contained = contained
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0
        self._read: OrderedDict[str, Explainer] = OrderedDict()

    def service(self) -> Service:
        """To be added to a listener."""
        return Service(_SERVICE, {"Explain": self._explain})

    async def _explain(self, request: pb.ExplainRequest, call: Call) -> pb.ExplainResponse:
        administrator = await self._gate.administrator(call)
        estate = self._estate.intended
        if estate is None:
            raise FailedPrecondition("no estate is in force", fix="eastwest apply DIR --data DATA")
        scope = scope_of(administrator, estate)
        if self._waiting >= MAX_WAITING:
            raise FailedPrecondition(f"{MAX_WAITING} explanations are being made", fix="try again in a moment")
        self._waiting += 1
        try:
            async with self._turn:
                if request.reference:
                    report = await self._recorded(request.reference, scope)
                else:
                    report = await self._imagined(_asked(request.asked), estate, scope)
        finally:
            self._waiting -= 1
        return pb.ExplainResponse(report=msgspec.json.encode(report))

    async def _imagined(self, asked: Asked, estate: Estate, scope: Scope | None) -> Report:
        service = asked.service
        if not asked.operation and not service:
            raise InvalidInput("nothing is asked", fix="name an operation, or a service with method and path")
        owned = {o.name: s.service for s in estate.services for o in s.operations}
        within(scope, owned.get(asked.operation, service))
        explainer = await self._in_force()
        # Whatever the table says: containment comes before it, at every enforcement point.
        told = DecisionCode.CALLER_CONTAINED if asked.caller in self._contained() else None
        return Report(explanation=await asyncio.to_thread(explainer.explain, asked, told))

    async def _recorded(self, reference: str, scope: Scope | None) -> Report:
        query = DecisionQuery(reference=reference, kind="decision", newest_first=True, limit=100, scope=scope)
        rows = await self._search(query.checked())
        if not rows:
            fix = "calls that passed are counted together and have no row of their own: give --caller and --operation"
            raise NotFound(f"the ledger has no call with the reference {reference[:80]!r}", fix=fix)
        row = rows[0]
        within(scope, row["service"])
        told, asked, cause = DecisionCode(row["code"]), asked_of(row), str(row.get("cause", ""))
        present = await self._in_force()
        explainer, note = await self._of_version(str(row.get("policy_version", "")), present)
        try:
            found = await asyncio.to_thread(explainer.explain, asked, told, cause)
        except NotFound as error:
            raise NotFound(f"{error.message}: it has changed since the call", fix=error.fix) from None
        if found.code is not told:
            note = f"the call got {told}; {note or 'callers registered by API may have been others then'}"
        report = Report(explanation=found, row=row, others=len(rows) - 1, note=note)
        if explainer is present:
            return report
        try:
            now = await asyncio.to_thread(present.explain, asked, told, cause)
        except NotFound as error:
            return msgspec.structs.replace(report, in_force=self._estate.version, now=error.message)
        return msgspec.structs.replace(report, in_force=self._estate.version, now=str(now.code))

    async def _in_force(self) -> Explainer:
        newest = self._estate.tables.newest
        if newest is None:
            raise FailedPrecondition("no estate is in force", fix="eastwest apply DIR --data DATA")
        whole = newest.whole
        kept = self._read.get("")
        if kept is None or kept.compiled is not whole:
            estate = msgspec.structs.replace(newest.estate, registered=newest.registered)
            kept = self._read[""] = Explainer(estate, whole)
        return kept

    async def _of_version(self, version: str, present: Explainer) -> tuple[Explainer, str]:
        """What explains the version that decided, and a sentence where that is not it."""
        if version in {"", self._estate.version}:
            return present, ""
        if version in self._read:
            return self._read[version], ""
        files = await self._files_of(version)
        if files is None:
            return present, "its version is not known here, so the version in force is what explains it"

        def read() -> Explainer:
            estate = load_estate(files)
            return Explainer(estate, compile_estate(estate))

        made = self._read[version] = await asyncio.to_thread(read)
        while len(self._read) > _VERSIONS + 1:
            del self._read[next(name for name in self._read if name)]
        return made, ""


def asked_of(row: Mapping[str, Any]) -> Asked:
    """The question that a recorded decision answered. A name that was only claimed is none."""
    texts = {name: str(row.get(name, "")) for name in ("service", "operation", "tenant", "method", "path")}
    return Asked(
        caller="" if row.get("claimed") else str(row.get("caller", "")),
        **texts,
        token=bool(row.get("token")),
        approver=str(row.get("approver", "")),
        origin=str(row.get("origin", "")),
    )


def _asked(raw: bytes) -> Asked:
    if len(raw) > MAX_ASKED:
        raise InvalidInput(f"a question has at most {MAX_ASKED} bytes")
    try:
        return msgspec.json.decode(raw or b"{}", type=Asked)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(f"this is no question: {error}") from None


def within(scope: Scope | None, service: str) -> None:
    """Raise ``PermissionDenied`` for who may not see the service: an explanation tells policies about it."""
    if scope is not None and service not in scope.services:
        raise PermissionDenied("you may see no policy of that service", fix="ask its owner")
