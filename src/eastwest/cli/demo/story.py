"""The order of events: prepare a place, outcome A beside the authority's start, outcome B, the report."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eastwest.agent.envoy import envoy_binary
from eastwest.cli.demo import containment, stepup, strong, weak
from eastwest.cli.demo.authority import EASTWEST, Authority
from eastwest.cli.demo.calls import Call, Load, Made, command, make
from eastwest.cli.demo.estate import Intent
from eastwest.cli.demo.evidence import carry
from eastwest.cli.demo.janitor import janitor
from eastwest.cli.demo.launch import Launcher, broken_connections
from eastwest.cli.demo.ledger import join
from eastwest.cli.demo.place import LOOPBACK, SERVICES, WORKLOADS, Place, Ports, Workload, choose_uids
from eastwest.cli.demo.processes import Lines, Processes, tail, wait_for
from eastwest.cli.demo.records import PublicLog, digest_of, serial_of
from eastwest.cli.demo.report import ModeSwitch, Report, Rotation, expect_all
from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy, random_hex
from eastwest.errors import FailedPrecondition

TEMPORARY = "temporary"
"""A file of this name marks a data directory that the demo made and may remove."""
BILLING_TTL = "16s"
_LOAD_RATE = 40  # calls a second
_LOAD_CONNECTIONS = 4
_LEDGER_PATIENCE = 15.0  # seconds until every decision must have arrived
_ROTATION_TIMEOUT = 60.0
_BILLING = next(workload for workload in WORKLOADS if workload.name == "billing")
_COMPROMISED = next(workload for workload in WORKLOADS if workload.name == "notification")
_STOREFRONT = next(workload for workload in WORKLOADS if workload.name == "storefront")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``data`` None: a directory of its own, removed at the end unless ``keep``. ``port_base`` None: free ports."""

    data: Path | None = None
    keep: bool = False
    port_base: int | None = None
    seconds: float = 3.0  # the load runs at least so long


async def run(options: Options, progress: Callable[[str], None]) -> Report:
    """The whole demo. When this returns or raises, nothing is left but what ``options`` ask for."""
    clock = SystemClock()
    started = clock.monotonic()
    data = _make_data(options.data, keep=options.keep)
    with contextlib.ExitStack() as undo:
        if options.data is None:
            undo.callback(shutil.rmtree, data, ignore_errors=True)
        else:
            undo.callback(_remove_if_empty, data)
        ports = Ports(options.port_base)
        undo.callback(ports.close)
        uids = choose_uids(data)
        undo.callback(uids.release)
        place = Place(data, uids)
        if not options.keep:
            undo.enter_context(janitor(place.record, None if options.data else data))
        place.make(envoy_binary())
        async with Processes(place.logs, place.record, os.environ, tied=not options.keep) as processes:
            report = await processes.guard(_Story(options, place, processes, ports, progress).tell())
            report.seconds = round(clock.monotonic() - started, 2)
            if not report.ok:
                for process in processes.running:
                    if process.log.stat().st_size:
                        progress(f"the end of the log of {process.name}:\n{tail(process.log)}")
            if options.keep:
                report.kept = True
                report.processes = [{"name": p.name, "pid": p.pid} for p in processes.running]
                processes.keep()
        if report.kept:
            undo.pop_all()
            ports.close()
            uids.release()
        return report


class _Story:
    """One run of the demo in a place that is ready."""

    def __init__(
        self, options: Options, place: Place, processes: Processes, ports: Ports, progress: Callable[[str], None]
    ) -> None:
        self._options = options
        self._place = place
        self._processes = processes
        self._progress = progress
        self._ports = {service.name: ports.take() for service in SERVICES}
        self._launcher = Launcher(place, processes, tied=not options.keep)
        self._authority = Authority(place, processes, self._ports, progress)
        self._key = f"ik-{random_hex(SystemEntropy(), 12)}"
        self._apps: dict[str, Lines] = {}
        self._load_calls = 0
        self._loads: list[asyncio.Task[dict[str, Any]]] = []
        self._since = SystemClock().now().isoformat()
        self._unseen: list[Made] = []  # made besides, to be joined with the ledger but not told

    async def tell(self) -> Report:
        """Both outcomes and what they prove."""
        if self._place.uids.base is None:
            self._progress(f"weaker separation: {self._place.uids.why}; told apart by executable path")
        try:
            async with asyncio.TaskGroup() as group:
                first = Intent(billing_strict=False, billing_ttl=BILLING_TTL)
                authority = group.create_task(self._authority.start(first))
                outcome = await weak.run(self._place, self._processes, self._launcher, self._ports, self._key)
                self._progress(
                    f"outcome A: {sum(made.ok for made in outcome.calls)} of {len(outcome.calls)} attacks succeeded"
                )
                apps = group.create_task(self._launcher.start_apps("run"))
                await authority
                await self._authority.start_sidecars()
            self._apps = apps.result()
            self._progress(
                f"{len(WORKLOADS)} sidecars enforce policy {self._authority.version[:12]}, billing permissive"
            )
            return await self._strong(outcome)
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from None
        finally:
            for task in self._loads:
                task.cancel()
            await asyncio.gather(*self._loads, return_exceptions=True)
            await self._authority.close()

    async def _strong(self, outcome: weak.WeakOutcome) -> Report:
        clock = SystemClock()
        switch = await self._switch()
        load = self._start_load()
        began = clock.monotonic()
        broken = await self._broken()
        calls = strong.attack(self._key, own_uids=self._place.uids.base is not None)
        made = [await self._make(call) for call in (*calls, *strong.work())]
        self._progress(
            f"outcome B: {sum(each.status != 200 for each in made if each.call.attack)} of {len(calls)} attacks refused"
        )
        step_up = await stepup.run(self._make, self._authority.grant, stepup.forged)
        refused = sum(each.status != 200 for each in step_up.calls if each.call.attack)
        self._progress(f"with tokens: {refused} of {sum(c.call.attack for c in step_up.calls)} attacks refused")
        before = next(each for each in made if each.certificate).certificate
        after = await self._rotated(before)
        # The load's connections began under the old certificate; this one cannot.
        made.append(await self._make(strong.FIRST_AFTER_ROTATION))
        await clock.sleep(max(0.0, self._options.seconds - (clock.monotonic() - began)))
        during = await self._end_load(load)
        rotation = Rotation(
            before=serial_of(before),
            after=serial_of(after),
            calls=during.calls,
            failures=during.failures,
            connections=during.connections,
            broken_connections=await self._broken() - broken,
        )
        self._progress(f"billing's certificate rotated under {rotation.calls} calls, {len(rotation.failures)} failed")
        contained = await containment.run(
            EASTWEST, self._place.data, _COMPROMISED.spiffe_id, self._make, self._start_load, self._end_load
        )
        self._progress(
            f"{_COMPROMISED.name} was cut off at {contained.report['points']} points in {contained.denied_ms:.0f} ms; "
            f"{len(contained.load.failures)} calls of its neighbours failed"
        )
        every = [switch.permissive, switch.strict, *made, *step_up.calls, *contained.calls, *self._unseen]
        ledger = await join(self._authority.admin, every, self._load_calls, _LEDGER_PATIENCE)
        await self._authority.admin.flush_log()
        public = PublicLog(self._place.data / "server")
        log = public.report([before, after])
        step_up.recorded = {kind: public.count(kind) for kind in stepup.RECORDED}
        contained.recorded = {kind: public.count(kind) for kind in containment.RECORDED}
        carried = await carry(self._place.data, _COMPROMISED.spiffe_id, self._since, _STOREFRONT.spiffe_id)
        self._progress(f"evidence about {_COMPROMISED.name} {'holds' if carried.holds else 'does not hold'} offline")
        report = Report(
            data=str(self._place.data),
            selectors="path" if self._place.uids.base is None else "uid",
            note=self._place.uids.why,
            weak=outcome,
            strong=made,
            step_up=step_up,
            contained=contained,
            switch=switch,
            rotation=rotation,
            ledger=ledger,
            log=log,
            evidence=carried,
            policy_version=self._authority.version,
            ports=self._ports,
            sockets=self._sockets(),
        )
        report.expectations = expect_all(report)
        report.next = self._next(log.records[-1].index if log.records else 0)
        return report

    async def _switch(self) -> ModeSwitch:
        """A plaintext call that is reported, the switch, and the same call on the same connection."""
        clock = SystemClock()
        permissive = await self._make(strong.LEGACY, keep="legacy")
        load = self._start_load()
        began = clock.monotonic()
        await self._authority.apply(Intent(billing_strict=True, billing_ttl=BILLING_TTL))
        await self._authority.enforced()
        took = (clock.monotonic() - began) * 1000
        strict = await self._make(strong.LEGACY_AFTER, keep="legacy")
        result = await self._end_load(load)
        self._progress(f"billing went strict in {took:.0f} ms")
        return ModeSwitch(permissive, strict, round(took, 1), result.calls, len(result.failures))

    async def _rotated(self, before: str) -> str:
        """The certificate that billing's port presents once it is another than ``before`` (PEM)."""
        public = PublicLog(self._place.data / "server")
        known = digest_of(before)

        async def presented() -> str | None:
            await self._authority.admin.flush_log()
            issued = public.issued_to(_BILLING.spiffe_id)
            if issued.index(known) == len(issued) - 1:
                return None
            made = await self._make(strong.probe())
            self._unseen.append(made)
            return made.certificate if made.certificate and made.certificate != before else None

        return await wait_for(
            presented,
            "billing presented a new certificate",
            _ROTATION_TIMEOUT,
            self._authority.agent,
            self._authority.server,
        )

    async def _make(self, call: Call, *, keep: str = "") -> Made:
        socket = ""
        if call.via == "app-socket":
            socket = str(self._place.app_socket(_workload(call.service)))
        elif call.via == "borrowed-sidecar":
            socket = str(self._place.egress_socket(_workload(call.borrowed)))
        return await make(self._apps, call, self._ports.get(call.service, 0), socket=socket, keep=keep)

    async def _broken(self) -> int:
        return await broken_connections(self._place.admin_socket(_STOREFRONT), _BILLING.name)

    def _start_load(self) -> asyncio.Task[dict[str, Any]]:
        order = command(strong.LOAD, self._ports[strong.LOAD.service])
        order |= {"do": "load", "rate": _LOAD_RATE, "connections": _LOAD_CONNECTIONS}
        task = asyncio.create_task(self._apps[strong.LOAD.caller].ask(order))
        self._loads.append(task)
        return task

    async def _end_load(self, load: asyncio.Task[dict[str, Any]]) -> Load:
        await self._apps[strong.LOAD.caller].ask({"do": "stop"})
        result = await load
        self._load_calls += result["calls"]
        return Load(result["calls"], result["connections"], tuple(result["failures"]))

    def _sockets(self) -> dict[str, str]:
        data = self._place.data
        own = {"server (administration)": data / "server" / "api.sock", "agent": data / "agent" / "agent.sock"}
        outs = {f"{workload.name} (way out)": self._place.egress_socket(workload) for workload in WORKLOADS}
        return {name: str(path) for name, path in (own | outs).items()}

    def _next(self, entry: int) -> list[str]:
        eastwest = Path(sys.executable).parent / "eastwest"
        data = self._place.data if self._options.keep or self._options.data else Path("DIR")
        lines = []
        if not self._options.keep:
            lines.append(f"{eastwest} demo --keep             leaves it all running, and prints where")
        lines += [
            f"{eastwest} decisions --data {data} --code TENANT_NOT_PERMITTED",
            f"{eastwest} failures --data {data}",
            f"{eastwest} evidence --data {data} --principal {_COMPROMISED.spiffe_id} --from 1h",
            f"{eastwest} explain --data {data} --caller {_COMPROMISED.spiffe_id} --operation admin:users:disable",
            f"{eastwest} blast {_COMPROMISED.spiffe_id} --data {data}",
            f"{eastwest} policy lint --data {data}",
            f"{eastwest} policy status --data {data}",
            f"{eastwest} verify run --data {data}",
            f"{eastwest} containment list --ended --data {data}",
            f"{eastwest} approval list --data {data}",
            f"{eastwest} mesh status --data {data}",
            f"{eastwest} log verify --data {data}",
            f"{eastwest} log prove {entry} --data {data}",
            f"{eastwest} log show --data {data}",
            f"{eastwest} plan {data}/demo/estate --data {data}    after a change to the files there; then: apply",
            f"curl --unix-socket {data}/run/{_STOREFRONT.name}/out.sock http://billing/api/v2/tenants/acme/invoices",
            f"ls {data}/demo/logs",
        ]
        if self._options.keep:
            lines.append(f"openssl s_client -tls1_3 -connect {LOOPBACK}:{self._ports[_BILLING.name]} </dev/null")
            lines.append(f"{eastwest} demo --stop {data}     ends it")
        return lines


def _make_data(wanted: Path | None, *, keep: bool) -> Path:
    """The data directory: ``wanted``, which must be new or empty, or one of our own."""
    if wanted is None:
        data = Path(tempfile.mkdtemp(prefix="eastwest-demo-"))
        if keep:
            (data / TEMPORARY).touch()
        return data
    data = wanted.absolute()
    data.mkdir(parents=True, exist_ok=True)
    if any(data.iterdir()):
        raise FailedPrecondition(f"{wanted} is not empty", fix="give a new directory, or end an old demo and remove it")
    return data


def _remove_if_empty(data: Path) -> None:
    with contextlib.suppress(OSError):
        data.rmdir()


def _workload(name: str) -> Workload:
    return next(workload for workload in WORKLOADS if workload.name == name)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in a group that says something."""
    flat: Sequence[BaseException] = _flatten(group)
    told = [error for error in flat if isinstance(error, Exception)]
    return (told or flat)[0]


def _flatten(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _flatten(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
