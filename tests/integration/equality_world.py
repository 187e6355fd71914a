"""One Envoy that is given one random estate after another, and everybody who calls it: is each answer Cedar's?"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import ssl
import tempfile
import time
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from envoy_mesh import Ca, Mesh
from raw_http import Answer, Http1, Http2, Recorder, Seen

from eastwest.ledger.record import Decision as Row
from eastwest.mesh.secrets import Identity
from eastwest.mesh.tree import http_match
from eastwest.pki.compact import read_keys
from eastwest.policy.enforcement import (
    DecisionCode,
    MtlsMode,
    OperationRules,
    Sidecar,
    Verdict,
    decode_sidecar,
    encode_sidecar,
    uses_tokens,
)
from eastwest.policy.load import load_estate
from eastwest.policy.normalise import Refused, Request, normalise
from eastwest.policy.operations import can_be_tenant
from eastwest.policy.oracle import Decision, Oracle, lookup
from eastwest.policy.table import compile_estate
from eastwest.policy.transaction import MAX_LIFE, TYPE, Token, claims
from eastwest.registry.containment import NOBODY, Contained
from eastwest.sdk.decide import decide
from eastwest.sdk.peers import Peer
from eastwest.sdk.source import Rules
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.testing.calls import STRANGERS, Brought, Call, Defect, random_calls
from eastwest.testing.estates import APPROVERS, FOREIGN, HEADER, SHAPES, TRUST_DOMAIN, random_estate
from eastwest.testing.ports import free_port

SERVER = f"spiffe://{TRUST_DOMAIN}/prod/d1/server"
REFUSED = "REQUEST_REFUSED"
_ONE_HOST = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
TCP = "wire"
"""The service that is no HTTP, of ``eastwest.testing.estates``."""
_FOR_EVER = datetime.max.replace(tzinfo=UTC)
_ADDED = {
    *(b":method", b":scheme", b":authority", b":path", b"host", b"content-length"),
    *(b"x-forwarded-proto", b"x-request-id", b"x-eastwest-caller", b"x-forwarded-client-cert"),
}
"""What Envoy adds, and what says the request itself."""


class Mint:
    """Makes tokens as the trust domain does, and as it never would."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._other = ec.generate_private_key(ec.SECP256R1())

    @property
    def keys(self) -> bytes:
        """The JWK set."""
        point = self._key.public_key().public_numbers()
        x, y = (_base64url(number.to_bytes(32)) for number in (point.x, point.y))
        jwk = {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": "k1", "alg": "ES256", "use": "sig"}
        return json.dumps({"keys": [jwk]}).encode()

    def text(self, brought: Brought, now: int) -> str:
        """The JWT as it goes over the wire."""
        issuer = f"spiffe://{TRUST_DOMAIN}"
        said = claims(brought.token, issuer, now)
        header = {"alg": "ES256", "kid": "k1", "typ": TYPE}
        key = self._key
        match brought.defect:
            case Defect.EXPIRED:
                said |= {"iat": now - 200, "exp": now - 60}
            case Defect.ISSUER:
                said["iss"] = f"spiffe://{FOREIGN}"
            case Defect.AUDIENCE:
                said["aud"] = f"spiffe://{FOREIGN}"
            case Defect.EARLY:
                said["nbf"] = now + 100
            case Defect.LONG:
                said["exp"] = now + MAX_LIFE + 100
            case Defect.ENDLESS:
                del said["exp"]
            case Defect.CLAIMS:
                del said["tctx"]["origin"]
            case Defect.SIGNATURE:
                key = self._other
            case Defect.ALGORITHM:
                header["alg"] = "none"
        signed = f"{_base64url(json.dumps(header).encode())}.{_base64url(json.dumps(said).encode())}"
        if brought.defect is Defect.ALGORITHM:
            return f"{signed}."
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64url(r.to_bytes(32) + s.to_bytes(32))}"


@dataclass
class Told:
    """An answer to one call: what a decider said, and for an allowed call what the application was handed."""

    code: str
    policy: str = ""
    operation: str = ""
    tenant: str | None = ""
    report: tuple[str, str] = ("", "")
    """Code and policy of rules in report mode, where they would answer otherwise."""
    request: Request | None = field(default=None, compare=False, repr=False)


@dataclass
class Asked:
    """A call as it is made: over HTTP/2 or not, with the texts of its tokens."""

    call: Call
    http2: bool
    headers: list[tuple[str, str]]
    expected: Told = field(default_factory=lambda: Told(""))

    @property
    def version(self) -> str:
        return "2" if self.http2 else "1.1"

    @property
    def with_host(self) -> list[tuple[str, str]]:
        """As they go over the wire, where names are in lower case in HTTP/2."""
        headers = [(name.lower(), value) for name, value in self.headers] if self.http2 else self.headers
        return [("host", self.call.host), *headers]


@dataclass
class Difference:
    """Two answers to one call that are not the same."""

    seed: int
    call: Call
    what: str
    expected: object
    found: object

    def __str__(self) -> str:
        call = self.call
        brought = [(b.token.action, b.defect, b.raw) for b in call.tokens]
        asked = f"{call.method} {call.target!r} of {call.service} by {call.caller} {call.headers} {brought}"
        return f"seed {self.seed}: {self.what}: expected {self.expected}, found {self.found}: {asked}"


@dataclass
class Estate:
    """An estate in force."""

    seed: int
    callers: tuple[str, ...]
    oracle: Oracle
    sidecar: Sidecar
    rules: Rules
    reporting: Oracle
    contained: Contained = NOBODY
    _answers: dict[tuple, tuple[Decision, Decision]] = field(default_factory=dict)

    @property
    def enforced(self) -> bool:
        """Whether refusals are more than reported."""
        return self.sidecar.inbound[0].mode is MtlsMode.STRICT

    def decide(self, caller, service, method, target, headers, presented, certificate) -> tuple[Decision, Decision]:
        """Cedar's answer, and the one that counts rules in report mode.

        Of headers only those that name tenants go in: equal questions are asked once.
        """
        tenants = tuple(pair for pair in headers if pair[0] == HEADER)
        question = (caller, service, method, target, tenants, presented, certificate)
        if question not in self._answers:
            answer = self.oracle.decide(*question)
            report = self.reporting.decide(*question) if self.reporting is not self.oracle else answer
            self._answers[question] = answer, report
        return self._answers[question]

    def cut_off(self, call: Call) -> str:
        """The code of a call that is refused because somebody is contained, "" of others."""
        inbound = next(i for i in self.sidecar.inbound if i.service == call.service)
        if call.caller in self.contained:
            return "CALLER_CONTAINED"
        brought = call.presented if inbound.protocol != "tcp" and uses_tokens(inbound) else None
        named = (brought.caller, brought.origin, brought.approver) if isinstance(brought, Token) else ()
        return "TOKEN_CONTAINED" if any(name in self.contained for name in named) else ""

    def refuses(self, expected: Told) -> bool:
        """Whether this answer is more than reported."""
        return self.enforced or expected.code.endswith("_CONTAINED")

    def operation(self, service: str, name: str) -> OperationRules | None:
        inbound = next(i for i in self.sidecar.inbound if i.service == service)
        return next((o for o in inbound.operations if o.name == name), None)


@dataclass
class Count:
    """What was compared."""

    estates: int = 0
    requests: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    reports: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What was answered, and what rules in report mode would have, where that is something else."""
    differences: list[Difference] = field(default_factory=list)


async def compare(root: Path, *, first: int, requests: int, calls: int) -> Count:
    """``requests`` in all, ``calls`` for each of the random estates whose seeds begin with ``first``."""
    world = World(root)
    try:
        for seed in range(first, first + -(-requests // calls)):
            await world.random_calls(seed, calls)
    finally:
        await world.close()
    return world.count


def compared(first: int, requests: int, calls: int) -> Count:
    """``compare``, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="ew-") as place:
        return asyncio.run(compare(Path(place), first=first, requests=requests, calls=calls))


class World:
    """Callers, an Envoy, and the application behind it."""

    def __init__(self, root: Path) -> None:
        self.mint = Mint()
        self.count = Count()
        self.authorities = {name: Ca(name) for name in (TRUST_DOMAIN, FOREIGN)}
        self.mesh = Mesh(root, {name: ca.pem for name, ca in self.authorities.items()})
        self.mesh.token_keys = self.mint.keys
        self.recorder = Recorder(root / "recorder.sock")
        self._ports: dict[str, int] = {}
        self._contexts: dict[tuple[str, str], ssl.SSLContext] = {}
        self._certificates: dict[str, str] = {}
        self._identities: dict[str, Identity] = {}
        self._connections: dict[tuple[str, str, bool], Http1 | Http2] = {}
        self._rows: dict[str, Row] = {}
        self._read = 0
        self._serial = 0
        self._workload = None
        self.evaded: Estate | None = None

    async def close(self) -> None:
        for connection in self._connections.values():
            await connection.close()
        await self.mesh.close()
        await self.recorder.stop()

    async def random_calls(self, seed: int, count: int) -> None:
        """Put a random estate in force and judge ``count`` calls of it."""
        random = Random(seed)
        # Of four estates two have rules in report mode, one of these where nothing is enforced.
        made = random_estate(random, shapes=SHAPES, report=0.4 if seed % 2 else 0.0)
        mode = MtlsMode.PERMISSIVE if seed % 4 == 3 else MtlsMode.STRICT
        # And of five one has somebody cut off, whatever else it has.
        somebody = Random(f"{seed} contained").choice([*made.callers, STRANGERS[0], APPROVERS[1]])
        contained = Contained(seed, (somebody,)) if seed % 5 == 2 else NOBODY
        estate = await self.enforce(made.files, seed, mode, contained)
        known = {caller: self.certificate(caller) for caller in (*made.callers, *STRANGERS)}
        calls = list(random_calls(random, made, count, known, int(time.time())))
        protocols = [call.service != TCP and number % 3 == 0 for number, call in enumerate(calls)]
        await self.judge(estate, zip(calls, protocols, strict=True))

    async def enforce(
        self,
        files: dict[str, bytes],
        seed: int = 0,
        mode: MtlsMode = MtlsMode.STRICT,
        contained: Contained = NOBODY,
    ) -> Estate:
        """An estate of files, with its callers' certificates and all its services at one Envoy."""
        self.mesh.contained = contained
        loaded = load_estate(files)
        compiled = compile_estate(loaded)
        inbound = [i for sidecar in compiled.sidecars.values() for i in sidecar.inbound]
        sidecar = Sidecar(
            spiffe_id=SERVER,
            version=compiled.version,
            known_callers=next(one for one in compiled.sidecars.values() if one.inbound).known_callers,
            inbound=tuple(self._here(i, mode) for i in sorted(inbound, key=lambda i: i.service)),
            # Whom a table admits decides which bundles are trusted at the door; here all stay, as connections do.
            federated_callers=(FOREIGN,),
        )
        if self._workload is None:
            await self.recorder.start()
            ca = self.authorities[TRUST_DOMAIN]
            self._workload = await self.mesh.add(sidecar, ca.identity(SERVER))
        else:
            self.mesh.publish(self._workload, sidecar)
        await self.mesh.settled()
        self.count.estates += 1
        callers = tuple(caller.spiffe_id for caller in loaded.callers)
        travelled = decode_sidecar(encode_sidecar(sidecar))
        keys = read_keys(self.mint.keys)
        rules = Rules(TrustDomain.parse(TRUST_DOMAIN), travelled, token_keys=keys, contained=contained)
        oracle = Oracle(loaded)
        reporting = Oracle(loaded, report=True) if any(policy.report for policy in loaded.policies) else oracle
        return Estate(seed, callers, oracle, sidecar, rules, reporting, contained)

    def port(self, service: str) -> int:
        """Where the service listens, in every estate."""
        if service not in self._ports:
            self._ports[service] = free_port()
        return self._ports[service]

    def _here(self, inbound, mode):
        upstream = f"unix:{self.recorder.path}"
        return msgspec.structs.replace(inbound, port=self.port(inbound.service), upstream=upstream, mode=mode)

    async def judge(self, estate: Estate, calls: Iterable[tuple[Call, bool]]) -> None:
        """Make all calls, over HTTP/2 or not, and note where an answer is not Cedar's."""
        lanes: dict[tuple[str, str, bool], list[Asked]] = {}
        for call, http2 in calls:
            # All is asked of Cedar first: it takes its time, and the agent in this process must answer in its own.
            asked = Asked(call, http2, self.headers(call))
            asked.expected = self.expected(estate, asked)
            lanes.setdefault((call.caller or "", call.service, http2), []).append(asked)
        told = await asyncio.gather(*(self._lane(estate, lane) for lane in lanes.values()))
        rows = [row for lane in told for row in lane]
        await self.mesh.until(
            lambda: self._all_told(rows), lambda: f"not told: {[row for row in rows if row[2] not in self._rows]}"
        )
        for asked, expected, reference in rows:
            self._compare_row(estate, asked.call, expected, reference)
        await self._compare_connections(estate, [a for lane in lanes.values() for a in lane if a.call.service == TCP])

    async def _compare_connections(self, estate: Estate, made: list[Asked]) -> None:
        """Rows of TCP connections, which have no reference of their callers'."""
        expected = Counter((asked.call.caller, asked.expected.code, asked.expected.report) for asked in made)

        def told() -> Counter[tuple]:
            version = estate.sidecar.version
            rows = [r for r in self.mesh.decisions if r.service == TCP and r.policy_version == version]
            return Counter((row.caller, row.code, (row.report_code, row.report_policy)) for row in rows)

        await self.mesh.until(lambda: told().total() >= len(made), lambda: f"not told: {expected - told()}")
        if told() != expected:
            self._differ(estate, made[0].call, "connections", expected, told())

    def _all_told(self, rows: Iterable[tuple[Asked, Told, str]]) -> bool:
        for row in self.mesh.decisions[self._read :]:
            self._rows[row.reference] = row
        self._read = len(self.mesh.decisions)
        return all(reference in self._rows for _, _, reference in rows)

    async def _lane(self, estate: Estate, lane: list[Asked]) -> list[tuple[Asked, Told, str]]:
        """Calls one after the other over one connection."""
        rows = []
        for asked in lane:
            call, expected = asked.call, asked.expected
            self.count.requests += 1
            self.count.codes[expected.code] += 1
            if expected.report[0]:
                self.count.reports[expected.code, expected.report[0]] += 1
            if call.service == TCP:
                await self._tcp(estate, call, expected)
                continue
            rows += await self._http(estate, asked, expected)
            rules = estate.operation(call.service, expected.operation)
            if rules is not None and rules.single_use and expected.code == "ALLOWED" and estate.enforced:
                again = replace(expected, code="TOKEN_USED", policy="")
                self.count.codes[again.code] += 1
                rows += await self._http(estate, asked, again)
        return rows

    def expected(self, estate: Estate, asked: Asked) -> Told:
        """Cedar's answer, which the table's and the SDK's must equal."""
        told = self._expected(estate, asked)
        if asked.call.service != TCP:
            self._compare_sdk(estate, asked, told)
        return told

    def _expected(self, estate: Estate, asked: Asked) -> Told:
        call = asked.call
        handed_on = self._handed_on(asked)
        if isinstance(handed_on, Refused):
            return Told(REFUSED)
        certificate = self.certificate(call.caller) if call.caller else ""
        question = (call.caller, call.service, call.method, self._matched(handed_on), handed_on.headers, call.presented)
        answers = estate.decide(*question, certificate)
        for report, answer in enumerate(answers):
            found = lookup(estate.sidecar, *question, certificate, report=bool(report))
            if found != answer:
                self._differ(estate, call, "report's table" if report else "table", answer, found)
        (verdict, code, policy, operation), (_, report_code, report_policy, _) = answers
        assert (verdict is Verdict.ALLOW) == (code is DecisionCode.ALLOWED)
        if cut_off := estate.cut_off(call):
            return Told(cut_off)
        report = ("", "") if report_code is code else (report_code, report_policy)
        return Told(code, policy, operation, self._tenant(estate, call, handed_on, operation), report, handed_on)

    @staticmethod
    def _handed_on(asked: Asked) -> Request | Refused:
        """The request as Envoy hands it on."""
        call = asked.call
        if call.service == TCP:
            return Request("", "", "", "", ())
        return normalise(call.method, call.target, asked.with_host, http_version=asked.version)

    @staticmethod
    def _matched(request: Request) -> str:
        """The target by which an operation is found: none is where the request does not name one host."""
        return request.target if not request.method or _ONE_HOST.fullmatch(request.authority) else ""

    def _compare_sdk(self, estate: Estate, asked: Asked, expected: Told) -> None:
        call = asked.call
        peer = Peer(SpiffeId.parse(call.caller), self.certificate(call.caller), _FOR_EVER) if call.caller else None
        now = datetime.now(UTC)
        headers = asked.with_host
        found = decide(
            estate.rules, call.service, peer, call.method, call.target, headers, now, http_version=asked.version
        )
        told = Told(found.code, found.policy, found.operation, found.tenant, (found.report_code, found.report_policy))
        if expected.tenant is None or expected.code != "ALLOWED":
            told.tenant = expected.tenant
        if told != expected or (found.verdict is Verdict.ALLOW) != (expected.code == "ALLOWED"):
            self._differ(estate, call, f"SDK over HTTP/{asked.version}", expected, found)
        rules = estate.operation(call.service, expected.operation)
        once = rules is not None and rules.single_use and expected.code == "ALLOWED" and estate.enforced
        if found.once != once or (expected.request is not None and found.request != expected.request):
            self._differ(estate, call, "what the SDK hands on", (once, expected.request), (found.once, found.request))

    def _tenant(self, estate: Estate, call: Call, request: Request, operation: str) -> str | None:
        """The tenant of the call; None where it names none, or what it names cannot be one."""
        rules = estate.operation(call.service, operation)
        if rules is None or rules.tenant is None:
            return ""
        if rules.tenant.claim:
            return call.presented.tenant if isinstance(call.presented, Token) else None
        if rules.tenant.header:
            value = ",".join(value for name, value in request.headers if name == rules.tenant.header)
        else:
            value = (http_match(rules)[1].match(request.path) or {})[rules.tenant.path]
        return value if can_be_tenant(rules.tenant, value) else None

    async def _http(self, estate: Estate, asked: Asked, expected: Told) -> list[tuple[Asked, Told, str]]:
        self._serial += 1
        reference = f"r-{self._serial}"
        call = asked.call
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in asked.headers]
        headers.append((b"x-request-id", reference.encode()))
        key = (call.caller or "", call.service, asked.http2)
        connection = await self._connection(*key)
        method, target, host = (text.encode("latin-1") for text in (call.method, call.target, call.host))
        answer = await connection.ask(method, target, headers, host=host)
        if not connection.open:
            await self._connections.pop(key).close()
        code, seen = self.told(answer)
        passes = not estate.refuses(expected) and expected.code != REFUSED
        if code != ("ALLOWED" if passes else expected.code):
            self._differ(estate, call, f"code by HTTP/{asked.version}", expected, (code, answer.status))
            return []
        if seen is not None:
            self._compare_seen(estate, call, expected, seen)
        return [(asked, expected, reference)] if code != REFUSED else []

    def headers(self, call: Call) -> list[tuple[str, str]]:
        now = int(time.time())
        texts = [self.mint.text(brought, now) for brought in call.tokens]
        tokens = [
            (brought.header, brought.raw.format(text, text) if brought.raw is not None else text)
            for brought, text in zip(call.tokens, texts, strict=True)
        ]
        return [*call.headers, *tokens]

    def told(self, answer: Answer) -> tuple[str, Seen | None]:
        """The code, and what the application saw of an allowed call."""
        place = answer.value("x-seen")
        if place:
            assert not answer.value("x-eastwest-code"), "only the proxy speaks for the policy"
            return "ALLOWED", self.recorder.seen[int(place)]
        code = answer.value("x-eastwest-code")
        if code and answer.body:  # HEAD has none
            # A caller gets a code and a reference: no policy, and nothing of what one asks.
            assert json.loads(answer.body)["error"].keys() == {"code", "message", "reference"}
            assert not any(b"|" in value for _, value in answer.headers), answer.headers
        return code or REFUSED, None

    def _compare_seen(self, estate: Estate, call: Call, expected: Told, seen: Seen) -> None:
        """What was decided on reaches the application, byte for byte, and nothing else does."""
        request = expected.request
        assert request is not None
        told = (seen.method.decode(), seen.target.decode("latin-1"), seen.values("x-eastwest-caller"))
        wanted = (call.method, request.target, [(call.caller or "").encode()])
        if told != wanted:
            self._differ(estate, call, "what the application saw", wanted, told)
        passed = sorted((n.decode(), v.decode("latin-1").strip(" \t")) for n, v in seen.headers if n not in _ADDED)
        # Blanks around a value, which HTTP/2 keeps, are no part of it in HTTP/1.1.
        sent = sorted((name, value.strip(" \t")) for name, value in request.headers if name != "te")
        if [p for p in passed if p[0] != "te"] != sent:
            self._differ(estate, call, "headers that the application saw", sent, passed)

    def _compare_row(self, estate: Estate, call: Call, expected: Told, reference: str) -> None:
        row = self._rows.pop(reference)
        told = Told(row.code, row.policy, row.operation, row.tenant, (row.report_code, row.report_policy))
        if expected.tenant is None or (expected.code != "ALLOWED" and self._by_claim(estate, call, expected)):
            expected = replace(expected, tenant=row.tenant)  # told as it came, or not at all
        if told != expected or row.caller != call.caller or row.enforced != estate.refuses(expected):
            self._differ(estate, call, "decision", (expected, call.caller), (told, row.caller, row.cause))
        if row.policy_version != estate.sidecar.version:
            self._differ(estate, call, "version", estate.sidecar.version, row.policy_version)

    @staticmethod
    def _by_claim(estate: Estate, call: Call, expected: Told) -> bool:
        rules = estate.operation(call.service, expected.operation)
        return rules is not None and rules.tenant is not None and rules.tenant.claim

    async def _tcp(self, estate: Estate, call: Call, expected: Told) -> None:
        """A connection of its own, that speaks HTTP/1.1 as the recorder does."""
        connection = await Http1.tls(self.port(call.service), self.context(call.caller or "", ""))
        try:
            answer = await connection.ask(b"GET", b"/")
        finally:
            await connection.close()
        allowed = bool(answer.status)
        if allowed != (expected.code == "ALLOWED" or not estate.refuses(expected)):
            self._differ(estate, call, "TCP", expected, answer.status)

    def _differ(self, estate: Estate, call: Call, what: str, expected: object, found: object) -> None:
        self.count.differences.append(Difference(estate.seed, call, what, expected, found))

    async def _connection(self, caller: str, service: str, http2: bool) -> Http1 | Http2:
        key = (caller, service, http2)
        if key not in self._connections:
            context = self.context(caller, "h2" if http2 else "http/1.1")
            kind = Http2 if http2 else Http1
            self._connections[key] = await kind.tls(self.port(service), context)
        return self._connections[key]

    def certificate(self, caller: str) -> str:
        """The hash of the caller's certificate."""
        self.context(caller, "http/1.1")
        return self._certificates[caller]

    def context(self, caller: str, protocol: str) -> ssl.SSLContext:
        if (caller, protocol) not in self._contexts:
            if caller not in self._certificates:
                domain = caller.removeprefix("spiffe://").partition("/")[0]
                identity = self.authorities[domain].identity(caller)
                leaf = x509.load_pem_x509_certificate(identity.chain).public_bytes(serialization.Encoding.DER)
                self._certificates[caller] = hashlib.sha256(leaf).hexdigest()
                self._identities[caller] = identity
            context = self.mesh.context(self._identities[caller])
            if protocol:
                context.set_alpn_protocols([protocol])
            self._contexts[caller, protocol] = context
        return self._contexts[caller, protocol]


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
