"""Replaying a window of the ledger on a candidate: in a process of its own, since it keeps one busy for a minute.

One job comes in by standard input (MessagePack), to its end; lines of JSON go out: ``Progress`` as it comes, then one
``Outcome``. Whoever starts it ends it by killing it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from eastwest.errors import Error, InvalidInput, NotFound
from eastwest.ledger.impact import NOT_AT_HAND, Histories, Impact, Names, sealed
from eastwest.ledger.observed import Observed, time_of
from eastwest.ledger.query import DecisionQuery, micros, moment
from eastwest.mesh.action import inbound_version
from eastwest.policy.cells import Memory
from eastwest.policy.estate import Estate, ForeignWorkload
from eastwest.policy.load import load_estate
from eastwest.policy.replay import Replayer
from eastwest.policy.suggest import Window as Evidence
from eastwest.policy.suggest import suggest_policies
from eastwest.policy.superseded import unused
from eastwest.policy.table import CompiledPolicy, compile_estate
from eastwest.store.estate import peek_versions
from eastwest.store.ledger_inputs import LedgerInputs, Window, reading
from eastwest.store.ledger_reader import LedgerReader

NICE = 10
"""How far the process gives way to the server that issues certificates."""
MEMORY_MB = 256
THREADS = 2
MAX_VERSIONS = 32
"""Policies in force before that are compiled again, to know under which rules rows were recorded: the newest."""
_PACE = 0.2  # seconds between two words of progress


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is to be replayed. ``before``: the estate in force (None: what was recorded is compared with).

    ``database``: where the server keeps earlier versions; "": nowhere. ``registered``: callers that no file names.
    """

    task: str  # impact, or suggest
    directory: str
    query: DecisionQuery
    files: dict[str, bytes]
    before: dict[str, bytes] | None = None
    registered: tuple[ForeignWorkload, ...] = ()
    database: str = ""
    memory_mb: int = MEMORY_MB
    threads: int = THREADS


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far it is: ``done`` of about ``total`` rows (grouping makes them fewer); 0 of 0 while it prepares."""

    phase: str
    done: int = 0
    total: int = 0


class Outcome(msgspec.Struct, frozen=True, tag="outcome", omit_defaults=True):
    """The report; or the code, message, fix and place of an error."""

    report: msgspec.Raw = msgspec.Raw(b"null")
    error: tuple[str, str, str, str] | None = None


Tell = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """For those who show no progress."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """An estate with its table; ``estate`` has the registered callers."""

    estate: Estate
    policy: CompiledPolicy


class Replay:
    """One job: the estates compiled, the window read."""

    def __init__(self, job: Job, tell: Tell = silent) -> None:
        self._job = job
        self._tell = tell
        self._memory = Memory()
        tell(Progress("compiling"))
        self.before = self.compile(job.before) if job.before is not None else None

    def compile(self, files: Mapping[str, bytes]) -> Compiled:
        """Load and compile, with the callers that are registered by API and that the files do not name."""
        estate = load_estate(files)
        named = {caller.spiffe_id for caller in estate.callers}
        environments = {one.name for one in estate.settings.environments}
        more = tuple(w for w in self._job.registered if w.spiffe_id not in named and w.environment in environments)
        if not more:
            return Compiled(estate, compile_estate(estate, self._memory))
        whole = msgspec.structs.replace(estate, registered=more)
        # The version is the files' own: that is what rows and the log call it.
        return Compiled(whole, compile_estate(whole, self._memory))

    def run(self) -> dict[str, Any]:
        """Do the job's task."""
        return self.suggest() if self._job.task == "suggest" else self.impact()

    def impact(self) -> dict[str, Any]:
        """What the candidate changes; see ``eastwest.ledger.impact.Impact.report``."""
        job = self._job
        after = self.compile(job.files)
        with self._reader() as reader, reading(reader, job.query) as inputs:
            self._tell(Progress("reading"))
            window = inputs.window()
            return self.replayed(inputs, window, after)

    def suggest(self) -> dict[str, Any]:
        """Policies for what was allowed in the window and still is; with what a replay says of them."""
        job, before = self._job, self.before
        if before is None or job.before is None:
            raise InvalidInput("there is no estate to suggest policies for", fix="give its directory")
        with self._reader() as reader, reading(reader, job.query) as inputs:
            self._tell(Progress("reading"))
            window = inputs.window()
            observed = Observed(before.estate)
            base = Replayer(before.policy)
            histories = Histories([base, *self._earlier(window, {before.policy.version})], inbound_version)
            for batch in inputs.inputs(identified=True):
                for row in batch:
                    known = histories.find(row.given.service, row.rules_version, row.policy_version)
                    observed.add(row, NOT_AT_HAND if known is None else base.decide(row.given, known))
            first, last = inputs.span()
            evidence = Evidence(
                start=job.query.start or time_of(first),
                end=job.query.end or time_of(last),
                days=inputs.days(),
                lost=inputs.lost() if job.query.scope is None else {},
            )
            narrow = job.query.scope is None  # who sees a part changes nothing about the rest
            made = suggest_policies(
                before.estate, job.before, observed.seen(), evidence, only=self._services(), narrow=narrow
            )
            files = made.superseded.files
            after = self.compile(files)
            report = self.replayed(inputs, window, after)
            report |= {
                "suggestions": [each.to_dict() for each in made.permits],
                "files": {n: t.decode() for n, t in files.items() if t != job.before.get(n)},
                "removed": sorted(job.before.keys() - files.keys()),
                "replaced": list(made.superseded.replaced),
                "narrowed": list(made.superseded.narrowed),
                "kept": list(made.superseded.kept),
                "unused": unused(before.estate, inputs.permitted(), only=self._services()),
                "left_out_of_policies": [*made.left_out, *observed.left_out()],
                "problems": [str(each) for each in after.policy.problems],
            }
            return sealed(report)

    def replayed(self, inputs: LedgerInputs, window: Window, after: Compiled) -> dict[str, Any]:
        """The report on a candidate of an opened window."""
        before = self.before
        replayer = Replayer(after.policy)
        base = Replayer(before.policy) if before is not None else None
        versions = [each for each in (base, replayer) if each is not None]
        versions += self._earlier(window, {each.compiled.version for each in versions})
        impact = Impact(base, replayer, Histories(versions, inbound_version))
        total, told = inputs.size(), 0.0
        for batch in inputs.inputs():
            for row in batch:
                impact.add(row)
            if (now := time.monotonic()) - told > _PACE:
                self._tell(Progress("deciding", impact.inputs, total))
                told = now
        self._tell(Progress("deciding", total, total))
        estates = [each.estate for each in (after, before) if each is not None]
        return impact.report(Names(estates), self.facts(window, after))

    def _services(self) -> frozenset[str] | None:
        """The services that are asked about, of which every call can be seen; None: all."""
        query = self._job.query
        asked = frozenset({query.service}) if query.service else None
        if query.scope is None:
            return asked
        seen = frozenset(query.scope.services)
        return seen if asked is None else seen & asked

    def facts(self, window: Window, after: Compiled) -> dict[str, Any]:
        """What a report was made of."""
        query = self._job.query
        return {
            "before": self.before.policy.version if self.before is not None else "",
            "candidate": after.policy.version,
            "window": {
                "from": moment(micros(query.start)) if query.start is not None else "",
                "to": moment(micros(query.end)) if query.end is not None else "",
                "service": query.service,
                "limited": query.scope is not None,
            },
            "data": {"segments": [list(each) for each in window.segments], "unsealed": window.hot},
            "lost": window.lost if query.scope is None else 0,
        }

    def _earlier(self, window: Window, known: set[str]) -> list[Replayer]:
        """The policies of the window that are in force no more."""
        wanted = [version for version in window.versions if version not in known][-MAX_VERSIONS:]
        if not wanted or not self._job.database:
            return []
        found = peek_versions(Path(self._job.database), wanted)
        return [Replayer(self.compile(found[version].files).policy) for version in reversed(wanted) if version in found]

    def _reader(self) -> LedgerReader:
        job = self._job
        return LedgerReader(Path(job.directory), memory_mb=job.memory_mb, threads=job.threads)


def _main() -> None:
    encoder = msgspec.json.Encoder()

    def tell(message: Progress | Outcome) -> None:
        sys.stdout.buffer.write(encoder.encode(message) + b"\n")
        sys.stdout.buffer.flush()

    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    try:
        report = Replay(job, tell).run()
        tell(Outcome(report=msgspec.Raw(encoder.encode(report))))
    except Error as error:
        tell(Outcome(error=(error.code, error.message, error.fix, error.where)))
    except OSError as error:
        tell(Outcome(error=(NotFound.code, f"the ledger's directory cannot be read: {error}", "", "")))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; who started it ends it
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _main()
