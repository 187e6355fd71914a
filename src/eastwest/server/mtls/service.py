"""``eastwest.mtls.v1.Mtls``: reports, and the switch behind its gate."""

from __future__ import annotations

import datetime as dt
from datetime import UTC, datetime
from typing import Any

import msgspec

from eastwest.api.eastwest.mtls.v1 import mtls_pb2 as pb
from eastwest.clock import Clock
from eastwest.errors import FailedPrecondition, InvalidInput, PermissionDenied
from eastwest.ledger.breaks import Report
from eastwest.policy.enforcement import MtlsMode
from eastwest.policy.estate import Right, Service
from eastwest.policy.modes import Edit, set_mode
from eastwest.registry.administrators import Administrator, Subject
from eastwest.rpc.service import SMALL_MESSAGE, Call
from eastwest.rpc.service import Service as Served
from eastwest.server.activation import Wish, rollout_facts
from eastwest.server.estate import EstateKeeper
from eastwest.server.gate import Gate
from eastwest.server.journal import Journal
from eastwest.server.ledger.service import scope_of
from eastwest.server.mtls.reports import Reports

MAX_REASON = 1000
MAX_NAMED = 100
_SERVICE = pb.DESCRIPTOR.services_by_name["Mtls"]


class MtlsService:
    """The API for one gate."""

    def __init__(self, reports: Reports, estate: EstateKeeper, journal: Journal, clock: Clock, gate: Gate) -> None:
        self._reports = reports
        self._estate = estate
        self._journal = journal
        self._clock = clock
        self._gate = gate

    def service(self) -> Served:
        """The gRPC service."""
        return Served(
            _SERVICE,
            {"GetReports": self._get_reports, "Switch": self._switch},
            guard=self._gate.enter,
            limit=SMALL_MESSAGE,
        )

    async def _get_reports(self, request: pb.GetReportsRequest, call: Call) -> pb.GetReportsResponse:
        administrator = await self._gate.administrator(call)
        scope = scope_of(administrator, self._estate.intended)
        if request.service:
            services = [self._reports.service(request.service)]
            if scope is not None and request.service not in scope.services:
                # An empty answer would read as nobody who breaks.
                raise PermissionDenied(f"{administrator.name} may not see who calls {request.service!r}")
        else:
            services = list(self._estate.intended.services) if self._estate.intended is not None else []
        services = [one for one in services if scope is None or one.service in scope.services]
        found = await self._reports.of(services, _moment(request.start), _moment(request.end))
        told = [self._told(one, service) for one, service in zip(found, services, strict=True)]
        return pb.GetReportsResponse(reports=msgspec.json.encode(told))

    async def _switch(self, request: pb.SwitchRequest, call: Call) -> pb.SwitchResponse:
        administrator = await self._gate.administrator(call)
        service = self._reports.service(request.service)
        administrator.require_for(
            Right.SERVICES, Subject(domain=service.domain), f"change the mode of service {service.service!r}"
        )
        outcome = await self._switched(request, service, administrator)
        return pb.SwitchResponse(outcome=msgspec.json.encode(outcome))

    async def _switched(
        self, request: pb.SwitchRequest, service: Service, administrator: Administrator
    ) -> dict[str, Any]:
        mode, until = self._wanted(request, service)
        override, version = request.override.strip(), self._estate.version
        if request.expected_version not in {"", version}:
            raise FailedPrecondition(
                f"version {version[:12]} is in force, not {request.expected_version[:12]}",
                fix="look again, then switch",
            )
        file, edit, files = self._edited(service, mode, until)
        outcome: dict[str, Any] = {
            "service": service.service,
            "port": service.listen.port,
            "mode": mode.value,
            "until": until,
            "file": file,
            "line": edit.line,
            "before": edit.before,
            "after": edit.after,
            "in_force": version,
            "version": "",
            "refused": [],
            "warnings": [],
            "report": None,
        }
        if mode is MtlsMode.STRICT:
            [found] = await self._reports.of([service], _moment(request.start))
            outcome["report"] = self._told(found, service)
            outcome["refused"] = [reason.text for reason in found.reasons]
            if found.reasons and override and not request.dry_run:
                await self._record(found, override, version, administrator)
        if request.dry_run or (outcome["refused"] and not override):
            return outcome
        wish = Wish(change=request.change, accept_breaks=request.accept_breaks or bool(override))
        done = await self._estate.apply(files, version, administrator, wish)
        return outcome | {
            "version": self._estate.version,
            "warnings": list(done.get("warnings", ())),
            "rollout": done.get("rollout"),
        }

    def _wanted(self, request: pb.SwitchRequest, service: Service) -> tuple[MtlsMode, dt.date | None]:
        if request.port not in {0, service.listen.port}:
            raise InvalidInput(f"{service.service} listens on {service.listen.port}, not {request.port}")
        if request.mode not in {one.value for one in MtlsMode}:
            raise InvalidInput(f"{request.mode[:32]!r} is no mode", fix="strict or permissive")
        if len(request.override) > MAX_REASON:
            raise InvalidInput(f"a reason has at most {MAX_REASON} characters")
        mode = MtlsMode(request.mode)
        if mode is MtlsMode.STRICT:
            return mode, None
        try:
            until = dt.date.fromisoformat(request.until)
        except ValueError:
            raise InvalidInput("permissive needs the day on which it ends", fix="--until 2027-03-31") from None
        if until < self._clock.now().astimezone(UTC).date():
            raise InvalidInput(f"{until} is over", fix="give a day to come")
        return mode, until

    def _edited(self, service: Service, mode: MtlsMode, until: dt.date | None) -> tuple[str, Edit, dict[str, bytes]]:
        """The file that says the mode, how it changes, and all files with the change."""
        applied, estate = self._estate.applied, self._estate.intended
        assert applied is not None
        assert estate is not None
        file = estate.position("service", service.service).file
        edit = set_mode(file, applied.files[file].decode("utf-8-sig"), service.service, mode, until)
        return file, edit, dict(applied.files) | {file: edit.text.encode()}

    async def _record(self, found: Report, reason: str, version: str, administrator: Administrator) -> None:
        callers = list(dict.fromkeys(one.caller for one in found.breaks))
        await self._journal.record(
            "mtls.overridden",
            actor=administrator.name,
            subject=found.service,
            reason=reason,
            previous=version,
            against=[one.text for one in found.reasons][:MAX_NAMED],
            callers=callers[:MAX_NAMED],
            breaks=len(found.breaks),
        )

    def _told(self, found: Report, service: Service) -> dict[str, Any]:
        """A report with how the service stands: its end date, and the ring that a rollout has reached."""
        until = service.listen.until
        today = self._clock.now().astimezone(UTC).date()
        progress = self._estate.tables.progress
        facts = rollout_facts(progress) if progress is not None and progress.is_open else None
        told: dict[str, Any] = msgspec.to_builtins(found)
        return told | {
            "ready": found.ready,
            "until": until,
            "expired": found.mode == MtlsMode.PERMISSIVE and until is not None and until < today,
            "ring": facts["ring"] if facts is not None else "",
            "owner": service.owner,
            "domain": service.domain,
        }


def _moment(seconds: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds else None
    except (ValueError, OverflowError, OSError):
        raise InvalidInput("a window begins and ends at times that there are") from None
