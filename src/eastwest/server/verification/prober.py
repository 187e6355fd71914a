"""The calls of a run: every check of every point, many points at once, and what each said.

Nothing is judged here. A point that knows no canaries yet is given a few seconds to hear of them.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from eastwest.clock import Clock
from eastwest.mesh.action import ActionName
from eastwest.mesh.canaries import DECIDED_HEADER, NOTHING, SHADOW_HEADER
from eastwest.mesh.replies import CODE_HEADER
from eastwest.policy.canary import REFUSED_HANDSHAKE, SNI_SUFFIX, Check, Observation, Plan, Point
from eastwest.policy.enforcement import DecisionCode
from eastwest.rpc.tls import certificate_id
from eastwest.server.verification.credentials import Credentials

POINTS_AT_ONCE = 32
SECONDS = 3.0
"""For a connection, and for an answer."""
SETTLE = 6.0
"""Seconds from the beginning of a run in which a point may still come to know its canaries."""
STEADY = 1.0
"""Seconds after which a point that knows some canaries and not others is taken to mean it."""
PATIENCE = 30.0
"""Seconds for all that canaries ask at one point; a slow one must not keep the others from being proved."""
MAX_HEAD = 16 * 1024
MAX_CODE = 64
TOO_SLOW = "not asked: it is too slow, or silent"
NOT_ASKED = "not asked: refusals are only reported here, or nothing decides"
_ENVOYS_WORDS = "rbac_access_denied_matched_policy["
_STATUS = re.compile("[1-5][0-9]{2}")
_LENGTH = re.compile("[0-9]{1,9}")
Progress = Callable[[int, int], None]


class Answer(NamedTuple):
    """The head of an HTTP answer; names in lower case."""

    status: int
    headers: dict[str, str]
    whole: bool  # nothing of its body is left on the connection


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, check: Check, point: Point, reference: str) -> Answer:
        lines = [f"{check.method} {check.path} HTTP/1.1", f"host: {point.service}", f"x-request-id: {reference}"]
        lines += [f"{name}: {value}" for name, value in check.headers]
        lines += ["content-length: 0"] if check.method not in {"GET", "HEAD"} else []
        self.writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
        async with asyncio.timeout(SECONDS):
            await self.writer.drain()
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *rest = head.decode("latin-1").split("\r\n")[:-2]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
            version, _, status = first.partition(" ")
            if not version.startswith("HTTP/1.") or not _STATUS.fullmatch(status[:3]):
                raise ConnectionError("the answer is not HTTP")
            length = headers.get("content-length", "")
            empty = status[:3] in {"204", "304"} or check.method == "HEAD"
            if not empty and _LENGTH.fullmatch(length) and int(length) <= MAX_HEAD:
                await self.reader.readexactly(int(length))
                empty = True
            return Answer(int(status[:3]), headers, empty and headers.get("connection") != "close")

    async def close(self) -> None:
        await _end(self.writer)


class Prober:
    """Carries out one plan."""

    def __init__(
        self, plan: Plan, credentials: Credentials, clock: Clock, progress: Progress = lambda _done, _all: None
    ) -> None:
        self._plan = plan
        self._credentials = credentials
        self._clock = clock
        self._progress = progress
        self._numbers: Iterator[int] = itertools.count()
        self._room = asyncio.Semaphore(POINTS_AT_ONCE)
        self._until = 0.0
        self._patience: dict[int, float] = {}  # by point, until when
        self._done = 0

    async def run(self) -> list[Observation]:
        """Everything that was seen, in no order; of each check one."""
        self._until = self._clock.monotonic() + SETTLE
        found = await asyncio.gather(*(self._point(i, point) for i, point in enumerate(self._plan.points)))
        return [observation for each in found for observation in each]

    async def _point(self, number: int, point: Point) -> list[Observation]:
        async with self._room:
            problem = await self._unreachable(point)
            if problem:
                found = [Observation(point=number, check=-1, happened=problem[1], problem=problem[0])]
            else:
                found = await self._checks(number, point)
            self._done += 1
            self._progress(self._done, len(self._plan.points))
            return found

    async def _unreachable(self, point: Point) -> tuple[str, str] | None:
        """Why nothing can be asked there: nobody listens."""
        try:
            async with asyncio.timeout(SECONDS):
                _, writer = await asyncio.open_connection(point.host, point.port)
        except TimeoutError:
            return "timeout", f"no connection within {SECONDS:.0f} s"
        except OSError as error:
            return "refused", error.strerror or "no connection"
        await _end(writer)
        return None

    async def _checks(self, number: int, point: Point) -> list[Observation]:
        by_caller: dict[str, list[int]] = {}
        alone = []
        for i, check in enumerate(point.checks):
            if check.caller:
                by_caller.setdefault(check.caller, []).append(i)
            else:
                alone.append(i)
        found: list[Observation] = []
        self._patience[number] = self._clock.monotonic() + PATIENCE
        for caller, checks in by_caller.items():
            found += await self._ask_as(number, point, caller, checks)
        found = await self._settled(number, point, found)
        if any(not each.enforced and not each.problem for each in found):
            # What is let in without TLS goes on to the application, and there is nothing left to find out.
            reports = [i for i in alone if point.checks[i].kind == "plaintext"]
            found += [Observation(point=number, check=i, happened=NOT_ASKED) for i in reports]
            alone = [i for i in alone if i not in reports]
        single = (self._alone(number, i, point, point.checks[i]) for i in alone)
        return [*found, *await asyncio.gather(*single)]

    async def _settled(self, number: int, point: Point, found: list[Observation]) -> list[Observation]:
        """Ask again, while there is time, what a point may yet come to answer as it should.

        Nobody tells a prober what a proxy has come to know; and one that never will is what it looks for. A proxy's
        threads learn of a run one after another, and may still forget the run before it.
        """
        places: set[int] = set()
        same_since = self._clock.monotonic()
        while (now := self._clock.monotonic()) < self._until:
            again: dict[str, list[int]] = {}
            for each in found:
                if _may_change(point, each):
                    again.setdefault(point.checks[each.check].caller, []).append(each.check)
            before, places = places, {place for checks in again.values() for place in checks}
            if places != before:
                same_since = now
            aware = any(each.happened != DecisionCode.UNKNOWN_CALLER for each in found)
            if not again or (aware and not point.settling and now - same_since > STEADY):
                break
            await self._clock.sleep(0.05)
            known = {each.check: each for each in found}
            for caller, checks in again.items():
                # One check tells whether the caller has become known; every other would be one more refusal on record.
                strange = all(known[check].happened == DecisionCode.UNKNOWN_CALLER for check in checks)
                first = checks[:1] if strange else checks
                asked = await self._ask_as(number, point, caller, first)
                if strange and any(each.happened != DecisionCode.UNKNOWN_CALLER for each in asked):
                    asked += await self._ask_as(number, point, caller, checks[1:])
                known |= {each.check: each for each in asked}
            found = list(known.values())
        return found

    async def _ask_as(self, number: int, point: Point, caller: str, checks: list[int]) -> list[Observation]:
        found: list[Observation] = []
        connection: _Connection | None = None
        for at, i in enumerate(checks):
            check = point.checks[i]
            if self._clock.monotonic() > self._patience[number]:
                found += [Observation(point=number, check=i, happened=TOO_SLOW, problem="timeout") for i in checks[at:]]
                break
            try:
                connection = connection or await self._connect(point, self._credentials.canaries[caller])
                answer = await connection.ask(check, point, self._reference())
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError) as error:
                problem, words = _failure(error)
                await _closed(connection)
                connection = None
                # Where a canary is not let in at all, or not answered, nothing else will come of it.
                rest = checks[at:] if problem in {"tls", "server-certificate", "timeout"} else [i]
                if problem == "timeout":
                    self._patience[number] = 0.0
                found += [Observation(point=number, check=each, happened=words, problem=problem) for each in rest]
                if len(rest) > 1:
                    break
                continue
            found.append(_observed(number, i, answer))
            if not answer.whole:
                await _closed(connection)
                connection = None
        await _closed(connection)
        return found

    async def _alone(self, number: int, place: int, point: Point, check: Check) -> Observation:
        """A check that no canary makes: without a certificate, with a wrong one, or without TLS."""
        connection = None
        contexts = {
            "no-certificate": self._credentials.nobody,
            "foreign-root": self._credentials.foreign,
            "wrong-trust-domain": self._credentials.elsewhere,
            "expired": self._credentials.expiring,
        }
        if check.kind == "expired":
            await self._clock.sleep(max(0.0, self._credentials.expired_at - self._clock.now().timestamp()))
        try:
            connection = await self._connect(point, contexts.get(check.kind))
            if point.protocol == "tcp":
                return await self._quiet(number, place, connection)
            return _observed(number, place, await connection.ask(check, point, self._reference()))
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError) as error:
            problem, words = _failure(error)
            if check.kind != "plaintext" and problem in {"tls", "closed"}:
                return Observation(point=number, check=place, happened=REFUSED_HANDSHAKE)
            return Observation(point=number, check=place, happened=words, problem=problem)
        finally:
            await _closed(connection)

    async def _quiet(self, number: int, place: int, connection: _Connection) -> Observation:
        """Whether a TLS connection of a TCP service stays: the client hears only afterwards that it was refused."""
        try:
            async with asyncio.timeout(1.0):
                said = await connection.reader.read(1)
        except TimeoutError:
            said = b"?"  # it is still there
        happened = "the connection came about" if said else REFUSED_HANDSHAKE
        return Observation(point=number, check=place, happened=happened)

    async def _connect(self, point: Point, context: ssl.SSLContext | None) -> _Connection:
        async with asyncio.timeout(SECONDS):
            name = self._plan.run + SNI_SUFFIX if context is not None else None
            reader, writer = await asyncio.open_connection(
                point.host, point.port, ssl=context, server_hostname=name, limit=MAX_HEAD
            )
        if context is not None:
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            proved = certificate_id(shown) if shown else None
            if str(proved) != point.spiffe_id:
                await _end(writer)
                raise WrongServer(f"it proves to be {proved or 'nobody'}, not {point.spiffe_id}")
        return _Connection(reader, writer)

    def _reference(self) -> str:
        return f"{self._plan.run}-{next(self._numbers)}"


class WrongServer(ConnectionError):
    """Something answers that cannot prove to be the service's workload."""


def _may_change(point: Point, seen: Observation) -> bool:
    """Whether the answer may be another in a moment: it knows no canaries yet, or takes newer rules just now."""
    if point.cut_off or not seen.decided:
        return False
    wrong = seen.happened != point.checks[seen.check].expected
    if seen.happened == DecisionCode.UNKNOWN_CALLER and wrong:
        return True
    return point.settling and (wrong or seen.version != point.version)


def _failure(error: BaseException) -> tuple[str, str]:
    match error:
        case ssl.SSLCertVerificationError():
            return "server-certificate", f"its certificate does not verify: {error.verify_message}"
        case WrongServer():
            return "server-certificate", str(error)
        case ssl.SSLError():
            return "tls", f"TLS refused: {(error.reason or 'no reason').lower().replace('_', ' ')}"
        case TimeoutError():
            return "timeout", f"no answer within {SECONDS:.0f} s"
        case asyncio.IncompleteReadError() | ConnectionResetError() | BrokenPipeError():
            return "closed", "the connection was closed"
        case _:
            return "refused", str(error)[:200] or type(error).__name__


async def _end(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    # Whatever the connection ended with was told already; asked for by nobody, asyncio would print it.
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(SECONDS):
            await writer.wait_closed()


async def _closed(connection: _Connection | None) -> None:
    if connection is not None:
        await connection.close()


def _observed(number: int, place: int, answer: Answer) -> Observation:
    enforced, shadow = (_action(answer.headers.get(name, "")) for name in (DECIDED_HEADER, SHADOW_HEADER))
    action = enforced or shadow
    if action is None:
        code = answer.headers.get(CODE_HEADER, "")
        happened = code[:MAX_CODE] or f"HTTP {answer.status}"
        return Observation(point=number, check=place, happened=happened, status=answer.status)
    return Observation(
        point=number,
        check=place,
        happened=action.code,
        version=action.version,
        enforced=enforced is not None,
        decided=True,
        status=answer.status,
    )


def _action(text: str) -> ActionName | None:
    if text.startswith(_ENVOYS_WORDS):
        text = text[len(_ENVOYS_WORDS) :].removesuffix("]")
    return None if text in {"", NOTHING} else ActionName.parse(text)
