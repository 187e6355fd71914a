"""A run from begin to finding: lease, certificates, what came back, what it means, and the record of it.

While a run lasts, agents let its canaries count; a run that nobody ends is over after ``LEASE`` seconds. Runs go one
after another, so that an agent looks at its sidecars for one of them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.clock import Clock
from eastwest.entropy import Entropy, random_hex
from eastwest.errors import Error, FailedPrecondition, InvalidInput, NotFound
from eastwest.issuance.issuer import MAX_BATCH, Issuer
from eastwest.issuance.request import X509Request
from eastwest.mesh.action import inbound_version
from eastwest.pki.profile import CANARY, Door
from eastwest.policy.canary import Observation, Plan, Point, is_canary
from eastwest.policy.enforcement import Inbound
from eastwest.policy.load import load_estate
from eastwest.policy.table import compile_estate
from eastwest.server.control import ControlHub
from eastwest.server.estate import EstateKeeper
from eastwest.server.journal import Journal
from eastwest.server.telemetry import Metrics
from eastwest.server.verification.credentials import Wallet, Wanted
from eastwest.server.verification.diagnosis import (
    DRIFTS,
    Finding,
    Instance,
    diagnose,
    examined,
    is_by_application,
    meant_by_others,
)
from eastwest.server.verification.points import instances, points
from eastwest.server.verification.prober import Prober
from eastwest.server.view import CANARIES, AgentView
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.store.estate import SqliteEstates

LEASE = 180
"""Seconds after which a run that nobody ended is over."""
WAIT = 30.0
"""Seconds that a run waits for the one before it."""
EXAMINED = 6.0
"""Seconds that agents have, from the beginning, to look at their sidecars."""
MAX_POINTS = 20_000
EARLIER = 200
"""Versions before the present one among which the rules of a point are looked for."""
NAMED = 3
"""Sidecars that a note names of those it is about."""
LOOKING_BACK = 10.0
"""Seconds that it may take."""
_log = structlog.get_logger()


@dataclass(slots=True)
class _Run:
    plan: Plan
    by: str
    began: float
    expires_at: int


class Verification:
    """All runs of one server. ``report`` is the last one's; None: there was none since the server started."""

    def __init__(
        self,
        trust_domain: TrustDomain,
        hub: ControlHub,
        view: AgentView,
        estate: EstateKeeper,
        store: SqliteEstates,
        issuer: Issuer,
        journal: Journal,
        clock: Clock,
        entropy: Entropy,
        roots: Callable[[], Sequence[bytes]],
        metrics: Metrics,
    ) -> None:
        self._trust_domain = trust_domain
        self._hub = hub
        self._view = view
        self._estate = estate
        self._store = store
        self._issuer = issuer
        self._journal = journal
        self._clock = clock
        self._entropy = entropy
        self._roots = roots
        self._metrics = metrics
        self._run: _Run | None = None
        self._over = asyncio.Event()
        self._over.set()
        self._last: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._earlier: dict[tuple[str, str], str] = {}
        self._looked: set[str] = set()
        self._wallet = Wallet()
        self.report: dict[str, Any] | None = None
        self.patience = WAIT
        """Seconds that a run waits for the one before it."""

    def canaries(self) -> control.Canaries | None:
        """The run that is under way, as agents are told of it."""
        run = self._run
        if run is None or run.expires_at <= self._clock.now().timestamp():
            return None
        return control.Canaries(run=run.plan.run, expires_at=run.expires_at)

    def last(self, agent: str, node_id: str) -> dict[str, Any] | None:
        """What the last run found at one sidecar: ``at``, ``run`` and ``findings``; None where it was not looked at."""
        found = self._last.get((agent, node_id))
        if found is None or self.report is None:
            return None
        return {"at": self.report["at"], "run": self.report["run"], "findings": found}

    def warnings(self) -> list[str]:
        """What people should see to, after the last run."""
        if self.report is None or not self.report["findings"]:
            return []
        drifts = sorted({f"{each['drift']} at {each['service']}" for each in self.report["findings"]})
        return [f"the last verify run found {', '.join(drifts[:5])}; see `eastwest verify show`"]

    async def begin(self, services: Collection[str], by: str) -> Plan:
        """Make the plan of a new run and let its canaries count.

        Raises ``NotFound`` for a service that the estate does not have, and ``FailedPrecondition`` while another run
        lasts, or before there is an estate.
        """
        await self._turn()
        if self._estate.intended is None:
            raise FailedPrecondition("there is nothing to prove yet", fix="apply an estate first")
        running = instances(self._hub, self._view)
        try:
            found = tuple(self._points(running, services))
        except KeyError as error:
            raise NotFound(f"the estate has no service {error.args[0]!r}", fix="see `eastwest mesh status`") from None
        if len(found) > MAX_POINTS:
            raise FailedPrecondition(f"there are more than {MAX_POINTS} points", fix="name services with --service")
        now = self._clock.now().timestamp()
        plan = Plan(
            run=random_hex(self._entropy, 16),
            trust_domain=self._trust_domain.name,
            roots=tuple(self._roots()),
            canaries=tuple(sorted({check.caller for point in found for check in point.checks if check.caller})),
            points=found,
        )
        self._run = _Run(plan, by, now, int(now) + LEASE)
        self._over.clear()
        self._hub.wake()
        return plan

    async def issue(self, run: str, asked: Sequence[tuple[str, bytes, int]], caller: str) -> list[tuple[bytes, ...]]:
        """SVIDs of the run's canaries: SPIFFE ID, CSR (DER) and lifetime in seconds (0: the profile's own) for each."""
        self._current(run)
        if len(asked) > MAX_BATCH:
            raise InvalidInput(f"at most {MAX_BATCH} canaries are certified at once")
        requests = []
        for name, csr, ttl in asked:
            spiffe_id = SpiffeId.parse(name)
            if not is_canary(self._trust_domain.name, name):
                raise InvalidInput(f"{name[:200]} is no canary")
            requests.append(
                X509Request(
                    spiffe_id=spiffe_id,
                    door=Door.INTERNAL,
                    caller=caller,
                    caller_kind="administrator",
                    profile=CANARY.name,
                    evidence={"run": run},
                    ttl=ttl or None,
                    csr_der=csr,
                )
            )
        issued = await self._issuer.issue_x509(requests)
        refused = next((one for one in issued if isinstance(one, Error)), None)
        if refused is not None:
            raise refused
        return [one.chain for one in issued if not isinstance(one, Error)]

    def abandon(self, run: str) -> None:
        """End a run of which nothing was found out."""
        self._current(run)
        self._end()

    async def finish(
        self, run: str, observations: Sequence[Observation], allow_ports: Collection[int] = ()
    ) -> dict[str, Any]:
        """End the run: what was seen, what it means, in the log and for ``last``. Returns the report."""
        current = self._current(run)
        plan = current.plan
        _check(plan, observations)
        running = await self._examined(current)
        moved = self._moved(plan, running)
        observations = [o for o in observations if o.point not in moved or o.check < 0]
        findings = await self._findings(plan, observations, running, allow_ports)
        told = [msgspec.to_builtins(one) for one in findings]
        summary = sorted([one.drift, one.service, one.point, one.node_id] for one in findings)
        now = self._clock.now()
        reached = {o.point for o in observations if o.check >= 0}
        report = {
            "run": run,
            "at": now.isoformat(timespec="milliseconds"),
            "by": current.by,
            "seconds": round(now.timestamp() - current.began, 3),
            "version": self._estate.version,
            "points": len(plan.points),
            "reached": len(reached),
            "sidecars": len(running),
            "checks": sum(o.check >= 0 for o in observations),
            "canaries": len(plan.canaries),
            "findings": told,
            "findings_sha256": hashlib.sha256(msgspec.json.encode(summary)).hexdigest(),
            "notes": sorted({*_notes(plan, observations, running, moved), *map(_moved_note, moved.values())}),
        }
        await self._journal.record(
            "verify.finished",
            actor=current.by,
            subject=self._trust_domain.uri,
            run=run,
            version=self._estate.version,
            points=report["points"],
            reached=report["reached"],
            sidecars=report["sidecars"],
            checks=report["checks"],
            findings=len(told),
            drifts={drift: str(count) for drift, count in _counted(findings).items()},
            findings_sha256=report["findings_sha256"],
        )
        self._keep(report, findings, running)
        self._end()
        return report

    def _moved(self, plan: Plan, running: Sequence[Instance]) -> dict[int, Point]:
        """The points that were given other rules while they were asked: what they answered proves nothing."""
        names = {point.service for point in plan.points}
        try:
            now = {_key(one): one.version for one in self._points(running, names)}
        except KeyError:  # a service is gone
            now = {_key(one): one.version for one in self._points(running, ())}
        return {n: point for n, point in enumerate(plan.points) if now.get(_key(point)) != point.version}

    def _points(self, running: Sequence[Instance], services: Collection[str]) -> Sequence[Point]:
        return tuple(points(self._estate, self._view, running, self._trust_domain.name, services))

    async def run_by_itself(self, interval: float, allow_ports: Collection[int] = ()) -> None:
        """A run every ``interval`` seconds, for ever; by this server, over the network that it has."""
        actor = f"{self._trust_domain.uri}/spire/server"
        while True:
            with suppress(FailedPrecondition):  # nothing to prove yet, or somebody proves it now
                try:
                    await self._one_run(actor, allow_ports)
                except FailedPrecondition:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever a point answered, the next run is made
                    _log.error("verify.failed", error=str(error)[:500])
            await self._clock.sleep(interval)

    async def _one_run(self, actor: str, allow_ports: Collection[int]) -> None:
        plan = await self.begin((), actor)
        try:
            now = self._clock.now().timestamp()
            shown = await self._wallet.credentials(plan, lambda asked: self._certified(plan, asked, actor), now)
            report = await self.finish(plan.run, await Prober(plan, shown, self._clock).run(), allow_ports)
        finally:
            if self._run is not None and self._run.plan is plan:
                self._end()
        for finding in report["findings"]:
            _log.error("verify.drift", **{name: finding[name] for name in ("drift", "service", "point", "cause")})

    async def _certified(self, plan: Plan, asked: Sequence[Wanted], caller: str) -> list[tuple[bytes, ...]]:
        found: list[tuple[bytes, ...]] = []
        for start in range(0, len(asked), MAX_BATCH):
            batch = [(one.spiffe_id, one.csr, one.ttl) for one in asked[start : start + MAX_BATCH]]
            found += await self.issue(plan.run, batch, caller)
        return found

    async def _turn(self) -> None:
        """Until no other run is under way."""
        while (run := self._run) is not None:
            left = run.expires_at - self._clock.now().timestamp()
            if left <= 0:
                self._end()
                break
            try:
                async with asyncio.timeout(min(self.patience, left)):
                    await self._over.wait()
            except TimeoutError:
                if left > self.patience:
                    raise FailedPrecondition(
                        f"a verify run of {run.by} is under way", fix=f"try again; it is over in {left:.0f} s at most"
                    ) from None

    def _current(self, run: str) -> _Run:
        if self._run is None or self._run.plan.run != run:
            raise FailedPrecondition("this verify run is over", fix="begin another")
        return self._run

    def _end(self) -> None:
        self._run = None
        self._over.set()
        self._hub.wake()

    async def _examined(self, run: _Run) -> list[Instance]:
        """The sidecars as they stand, once agents that are there have looked at theirs."""
        until = run.began + EXAMINED
        while True:
            found = instances(self._hub, self._view, run.plan.run)
            capable = {str(a) for a, stream in self._hub.streams.items() if CANARIES in stream.capabilities}
            waiting = [
                one
                for one in found
                if one.examination is None and one.connected and one.agent_connected and one.agent in capable
            ]
            left = until - self._clock.now().timestamp()
            if left <= 0 or not waiting:
                return found
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._hub.heard()

    async def _findings(
        self, plan: Plan, observations: Sequence[Observation], running: Sequence[Instance], allow_ports: Collection[int]
    ) -> list[Finding]:
        by_point: dict[int, list[Observation]] = {}
        for observation in observations:
            by_point.setdefault(observation.point, []).append(observation)
        unknown = {
            (plan.points[o.point].service, o.version)
            for o in observations
            if o.decided and o.version != plan.points[o.point].version
        }
        if unknown - self._earlier.keys():
            await self._look_back(unknown)
        found: list[Finding] = []
        by_workload: dict[str, set[str]] = {}
        for number, seen in sorted(by_point.items()):
            point = plan.points[number]
            behind = [one for one in running if one.spiffe_id == point.spiffe_id]
            shown = diagnose(point, seen, behind, self._earlier)
            found += shown
            by_workload.setdefault(point.spiffe_id, set()).update(one.drift for one in shown)
        services: dict[str, list[str]] = {}
        for point in plan.points:
            if point.service not in services.setdefault(point.spiffe_id, []):
                services[point.spiffe_id].append(point.service)
        for one in running:
            if one.spiffe_id in services:
                names = ", ".join(services[one.spiffe_id])
                shown_there = by_workload.get(one.spiffe_id, set())
                found += examined(one, names, shown_there, allow_ports, meant_by_others(one, running))
        return found

    async def _look_back(self, wanted: Collection[tuple[str, str]]) -> None:
        """Learn the rules' versions of the policy versions before the present one, until ``wanted`` are known."""
        until = self._clock.monotonic() + LOOKING_BACK
        for activation in (await self._store.versions(EARLIER + 1))[1:]:
            if activation.version in self._looked or activation.version == self._estate.version:
                continue
            self._looked.add(activation.version)
            applied = await self._store.find(activation.version)
            if applied is None:
                continue
            try:
                compiled = await asyncio.to_thread(lambda files: compile_estate(load_estate(files)), applied.files)
            except Error as error:
                _log.warning("verify.version_unreadable", version=activation.version, error=str(error))
                continue
            rules: list[Inbound] = [one for sidecar in compiled.sidecars.values() for one in sidecar.inbound]
            for inbound in rules:
                self._earlier.setdefault((inbound.service, inbound_version(inbound)), activation.version)
            if self._earlier.keys() >= set(wanted) or self._clock.monotonic() > until:
                return

    def _keep(self, report: dict[str, Any], findings: Sequence[Finding], running: Sequence[Instance]) -> None:
        self.report = report
        self._last = {}
        for one in running:
            mine = [f for f in findings if f.spiffe_id == one.spiffe_id and f.node_id in {"", one.node_id}]
            self._last[one.agent, one.node_id] = [{"drift": f.drift, "cause": f.cause} for f in mine]
        counts = _counted(findings)
        for drift in DRIFTS:
            self._metrics.verify_findings.labels(drift).set(counts.get(drift, 0))
        self._metrics.verify_last_run.set(self._clock.now().timestamp())


def _counted(findings: Sequence[Finding]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in findings:
        counts[one.drift] = counts.get(one.drift, 0) + 1
    return counts


def _check(plan: Plan, observations: Sequence[Observation]) -> None:
    """A prober answers about its own plan, and about each check of a point that it reached."""
    seen: dict[int, set[int]] = {}
    for o in observations:
        if not 0 <= o.point < len(plan.points) or not -1 <= o.check < len(plan.points[o.point].checks):
            raise InvalidInput("an observation is about no check of this run")
        seen.setdefault(o.point, set()).add(o.check)
    for number, point in enumerate(plan.points):
        mine = seen.get(number, set())
        if mine != {-1} and mine != set(range(len(point.checks))):
            raise InvalidInput(f"not all checks of {point.service} at {point.host}:{point.port} were made")


def _key(point: Point) -> tuple[str, str, int]:
    return point.service, point.host, point.port


def _moved_note(point: Point) -> str:
    return f"{point.service}: its rules changed while {_place(point)} was asked; run again"


def _notes(
    plan: Plan, observations: Sequence[Observation], running: Sequence[Instance], moved: Collection[int]
) -> list[str]:
    """What was not proved, and why."""
    by_point: dict[int, list[Observation]] = {}
    for o in observations:
        by_point.setdefault(o.point, []).append(o)
    reached = {o.point for o in observations if o.check >= 0}
    notes = {f"{point.service}: {point.note}" for point in plan.points if point.note}
    alive = {one.spiffe_id for one in running if one.connected}
    for number, point in enumerate(plan.points):
        behind = [one for one in running if one.spiffe_id == point.spiffe_id]
        if number not in reached and number not in moved and point.spiffe_id not in alive:
            should = "its sidecar is away" if behind else "no agent says that it should"
            notes.add(f"{point.service}: nothing runs at {_place(point)}, and {should}")
        if is_by_application(point, by_point.get(number, ()), behind):
            notes.add(f"{point.service}: no sidecar at {_place(point)}; proved is that it refuses strangers")
    asked = {point.spiffe_id for point in plan.points}
    unread: dict[str, list[str]] = {}
    for one in (each for each in running if each.spiffe_id in asked):
        for words in one.examination.unread if one.examination is not None else ():
            unread.setdefault(words, []).append(one.node_id)
        if one.examination is None and one.connected:
            notes.add(f"{one.node_id}: its agent did not look at it")
    for words, where in unread.items():
        more = f" and {len(where) - NAMED} more" if len(where) > NAMED else ""
        notes.add(f"{', '.join(where[:NAMED])}{more}: not looked at: {words}")
    return sorted(notes)


def _place(point: Point) -> str:
    return f"{point.host}:{point.port}"
