"""``eastwest.containment.v1.Containment``: what administrators ask, start and end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from eastwest.api.eastwest.containment.v1 import containment_pb2 as pb
from eastwest.errors import InvalidInput
from eastwest.policy.enforcement import MtlsMode
from eastwest.policy.estate import Estate, Right
from eastwest.registry.administrators import Administrator, subject_of
from eastwest.registry.containment import MAX_CONTAINED, Containment
from eastwest.registry.listing import EntryFilter
from eastwest.registry.registry import Registry
from eastwest.rpc.service import Call, Service, StreamHandler, UnaryHandler
from eastwest.server.containment.keeper import Containments, Evidence
from eastwest.server.containment.progress import Progress
from eastwest.server.containment.selectors import Selectors
from eastwest.server.control import ControlHub
from eastwest.server.gate import Gate
from eastwest.spiffe.id import SpiffeId

MAX_REQUEST = 256 * 1024
"""Bytes; a thousand SPIFFE IDs fit."""
LOOK_EVERY = 5.0
"""Seconds after which a watcher is told again although nobody was heard."""
MAX_WATCHED = 600.0
_SERVICE = pb.DESCRIPTOR.services_by_name["Containment"]


class ContainmentApi:
    """The API over ``Containments``; ``service`` makes it for one gate."""

    def __init__(
        self,
        containments: Containments,
        selectors: Selectors,
        progress: Progress,
        hub: ControlHub,
        registry: Registry,
        estate: Callable[[], Estate | None],
        evidence: Evidence,
        jwt_seconds: int,
    ) -> None:
        """``jwt_seconds``: how long JWT-SVIDs that are out may still live at most."""
        self._containments = containments
        self._selectors = selectors
        self._progress = progress
        self._hub = hub
        self._registry = registry
        self._estate = estate
        self._evidence = evidence
        self._jwt_seconds = jwt_seconds

    def service(self, gate: Gate) -> Service:
        """The gRPC service."""

        async def resolve(request: pb.ResolveContainmentRequest, call: Call) -> pb.ContainmentReport:
            administrator = await gate.administrator(call)
            names = self._selectors.resolve(request.selector[:300])
            return _report(self._meant(names, administrator))

        async def start(request: pb.StartContainmentRequest, call: Call) -> pb.ContainmentReport:
            administrator = await gate.administrator(call)
            if len(request.spiffe_ids) > MAX_CONTAINED:
                raise InvalidInput(f"at most {MAX_CONTAINED} identities are contained at a time")
            names = list(request.spiffe_ids)
            self._check(administrator, names, "contain")
            made = await self._containments.start(
                names, request.selector, request.reason, administrator.name, self._evidence
            )
            return _report(self._told(made) | self._progress.as_dict())

        async def end(request: pb.EndContainmentRequest, call: Call) -> pb.ContainmentReport:
            administrator = await gate.administrator(call)
            found = self._containments.find(request.id, request.spiffe_id)
            self._check(administrator, found.spiffe_ids, "release")
            made = await self._containments.end(found.id, "", request.reason, administrator.name)
            return _report(self._told(made) | self._progress.as_dict())

        async def listed(request: pb.ListContainmentsRequest, _call: Call) -> pb.ContainmentReport:
            shown = [self._told(one) for one in self._containments.known if request.ended or one.is_active]
            return _report({"containments": shown} | self._progress.as_dict())

        async def watch(_request: pb.WatchContainmentRequest, call: Call) -> None:
            await self._watch(call)

        methods: dict[str, UnaryHandler | StreamHandler] = {
            "ResolveContainment": resolve,
            "StartContainment": start,
            "EndContainment": end,
            "ListContainments": listed,
            "WatchContainment": watch,
        }
        return Service(_SERVICE, methods, guard=gate.enter, limit=MAX_REQUEST)

    async def _watch(self, call: Call) -> None:
        """Tell how far it has come until nobody who is there is waited for."""
        sent: dict[str, Any] | None = None
        async with asyncio.timeout(MAX_WATCHED):
            while True:
                # Asked for before the look, so that nothing which is heard in between is missed.
                heard = asyncio.ensure_future(self._hub.heard())
                try:
                    await asyncio.sleep(0)
                    report = self._progress.as_dict()
                    if report != sent:
                        await call.send(_report(report))
                        sent = report
                    if not report["waiting"]:
                        return
                    await asyncio.wait({heard}, timeout=LOOK_EVERY)
                finally:
                    heard.cancel()

    def _check(self, administrator: Administrator, names: Sequence[str], what: str) -> None:
        for name in names:
            spiffe_id = SpiffeId.parse(name)
            subject = subject_of(spiffe_id, self._registry.entries.rules)
            administrator.require_for(Right.CONTAINMENT, subject, f"{what} {spiffe_id}")
        if what == "contain" and administrator.name in names:
            raise InvalidInput(f"{administrator.name} would cut itself off", fix="have another administrator do it")

    def _meant(self, names: Sequence[str], administrator: Administrator) -> dict[str, Any]:
        estate = self._estate()
        services = estate.services if estate is not None else ()
        workloads = {one.spiffe_id: one for one in estate.workloads} if estate is not None else {}
        identities = []
        for name in names:
            entries = self._registry.entries.list(EntryFilter(spiffe_id=SpiffeId.parse(name))).items
            workload = workloads.get(name)
            identities.append(
                {
                    "spiffe_id": name,
                    "owner": workload.owner if workload is not None else "",
                    "domain": workload.domain if workload is not None else "",
                    "serves": [one.service for one in services if one.workload == name],
                    "registered": bool(entries),
                    "foreign": self._is_foreign(name),
                    "nodes": len(self._registry.holders(entries)),
                    "contained": name in self._containments.contained,
                }
            )
        permissive = [one.service for one in services if one.listen.mtls == MtlsMode.PERMISSIVE]
        why_not = ""
        try:
            self._check(administrator, names, "contain")
        except InvalidInput as error:
            why_not = str(error)
        report = {"identities": identities, "refused": why_not, "plaintext_at": sorted(permissive)}
        return report | {"jwt_svids_live_seconds": self._jwt_seconds} | self._progress.as_dict()

    def _told(self, one: Containment) -> dict[str, Any]:
        foreign = [name for name in one.spiffe_ids if self._is_foreign(name)]
        own = len(foreign) < len(one.spiffe_ids)
        live = self._jwt_seconds if own else 0  # how long a foreign trust domain's live, it alone knows
        return {**asdict(one), "active": one.is_active, "jwt_svids_live_seconds": live, "foreign": foreign}

    def _is_foreign(self, name: str) -> bool:
        return SpiffeId.parse(name).trust_domain != self._registry.trust_domain


def _report(value: dict[str, Any]) -> pb.ContainmentReport:
    return pb.ContainmentReport(report=msgspec.json.encode(value))
