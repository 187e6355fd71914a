"""Random calls of a random estate: mostly what its operations expect, often a little beside it, sometimes hostile.

A call is what goes over the wire, byte for byte: texts here are latin-1, so that any byte can be in them.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

import msgspec

from eastwest.policy.transaction import HEADER as TOKEN_HEADER
from eastwest.policy.transaction import NoToken, Presented, Token
from eastwest.testing.estates import APPROVERS, FOREIGN, HEADER, TENANTS, TRUST_DOMAIN, RandomEstate, Route

STRANGERS = (f"spiffe://{TRUST_DOMAIN}/prod/d1/nobody", f"spiffe://{FOREIGN}/nobody")
"""Callers with good certificates whom nobody has registered."""
GATEWAY = f"spiffe://{TRUST_DOMAIN}/prod/d1/gateway"


class Defect(enum.Enum):
    """What is wrong with a token itself."""

    EXPIRED = "expired"
    SIGNATURE = "signature"  # of somebody else's key
    ALGORITHM = "algorithm"  # unsigned
    ISSUER = "issuer"
    AUDIENCE = "audience"
    EARLY = "early"  # not valid yet
    LONG = "long"  # lives longer than tokens may
    ENDLESS = "endless"
    CLAIMS = "claims"  # signed, and not of the form of a token


@dataclass(frozen=True)
class Brought:
    """A token in a header of its own; with ``raw``, that text stands there instead, ``{}`` in it for the token."""

    token: Token
    defect: Defect | None = None
    raw: str | None = None
    header: str = TOKEN_HEADER


@dataclass(frozen=True)
class Call:
    """A request of ``caller`` (None: over plaintext). ``headers`` go before the tokens."""

    caller: str | None
    service: str
    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    tokens: tuple[Brought, ...] = ()
    host: str = "svc"

    @property
    def presented(self) -> Presented:
        """What the tokens amount to."""
        if not self.tokens:
            return NoToken.MISSING
        if len(self.tokens) > 1:
            return NoToken.INVALID
        (brought,) = self.tokens
        if brought.raw is not None:
            return NoToken.INVALID
        if brought.defect is None:
            return brought.token
        return NoToken.EXPIRED if brought.defect is Defect.EXPIRED else NoToken.INVALID


def fingerprint(caller: str) -> str:
    """A stand-in for the hash of ``caller``'s certificate, where there are no certificates."""
    return hashlib.sha256(caller.encode()).hexdigest()


def random_calls(
    random: Random, estate: RandomEstate, count: int, certificates: Mapping[str, str] | None = None, now: int = 0
) -> Iterator[Call]:
    """``count`` calls of ``estate``; ``certificates`` holds hashes of callers' certificates, ``now`` is in seconds."""
    writer = _Calls(random, estate, certificates or {}, now)
    for _ in range(count):
        yield writer.call()


class _Calls:
    def __init__(self, random: Random, estate: RandomEstate, certificates: Mapping[str, str], now: int) -> None:
        self._random = random
        self._estate = estate
        self._certificates = certificates
        self._now = now
        self._serial = 0

    def call(self) -> Call:
        random = self._random
        route = random.choice(self._estate.routes)
        caller = random.choice(self._estate.callers if random.random() < 0.95 else STRANGERS)
        if not route.method:
            return Call(caller, route.service, "", "")
        tenant = random.choice([*TENANTS, "other", "unheard-of"]) if route.tenant != "path" else self._word()
        named = tenant if route.tenant == "path" else self._word()
        target = _filled(route.template, {"tenant": named, "item": self._word(), "part": self._word()})
        method = route.method
        headers = self._headers(route, tenant)
        tokens = self._tokens(route, caller, tenant)
        if random.random() < 0.06:
            method = random.choice(["GET", "POST", "DELETE", "HEAD", "OPTIONS", "get", "Post", "TRACE", "PUT", "FOO"])
        if random.random() < 0.15:
            target = random.choice(MUTATIONS)(random, target)
        if random.random() < 0.1:
            headers = (*headers, random.choice(_SPOOFS))
        return Call(caller, route.service, method, target, headers, tokens)

    def _word(self) -> str:
        return self._random.choice(["acme", "globex", "a.b", "x~1", "ACME", "any-other", "GET", "i", "all", "x", "..."])

    def _headers(self, route: Route, tenant: str) -> tuple[tuple[str, str], ...]:
        random = self._random
        if route.tenant != "header" and random.random() < 0.8:
            return ()
        if random.random() < 0.7:
            return ((random.choice([HEADER, HEADER, "X-Tenant", "x-TENANT"]), tenant),)
        other = random.choice(TENANTS)
        return random.choice(
            [
                (),
                ((HEADER, ""),),
                ((HEADER, tenant), (HEADER, tenant)),
                ((HEADER, tenant), ("X-TENANT", other)),
                ((HEADER, ""), (HEADER, tenant)),
                ((HEADER, f"{tenant},{other}"),),
                ((HEADER, f"{tenant}, {other}"),),
                ((HEADER, f"{tenant} {other}"),),
                ((HEADER, f"{tenant}\t{other}"),),
                ((HEADER, f"  {tenant}\t "),),
                ((HEADER, f"{tenant},"),),
                ((HEADER, f"{tenant};{other}"),),
                ((HEADER, f'"{tenant}"'),),
                ((HEADER, "münchen"),),
                ((HEADER, _latin("münchen")),),
                ((HEADER, f"{tenant}\xa0"),),
                ((HEADER, f"{tenant}%2C{other}"),),
                ((HEADER, tenant.swapcase()),),
                (("x-tenant-", tenant),),
            ]
        )

    def _tokens(self, route: Route, caller: str, tenant: str) -> tuple[Brought, ...]:
        random = self._random
        if random.random() < 0.4:
            return ()
        good = self._token(route, caller, tenant)
        if random.random() < 0.6:
            return (Brought(good),)
        if random.random() < 0.5:
            return (Brought(self._misused(good)),)
        other = self._token(route, caller, tenant)
        return random.choice(
            [
                *[(Brought(good, defect),) for defect in Defect],
                (Brought(good, random.choice(list(Defect))),),
                (Brought(good), Brought(other)),
                (Brought(good), Brought(good)),
                (Brought(good, Defect.SIGNATURE), Brought(other)),
                (Brought(good), Brought(other, Defect.EXPIRED)),
                (Brought(good, raw="a.b.c"),),
                (Brought(good, raw="no token"),),
                (Brought(good, raw="{},{}"),),
                (Brought(good, raw="Bearer {}"),),
            ]
        )

    def _token(self, route: Route, caller: str, tenant: str) -> Token:
        random = self._random
        self._serial += 1
        origin = random.choice([caller, caller, GATEWAY, *self._estate.callers])
        approver = random.choice(["", "", *APPROVERS])
        return Token(
            id=f"t-{self._serial}-{random.getrandbits(64):x}",
            transaction=f"x-{random.getrandbits(64):x}",
            caller=caller,
            certificate=self._certificate(caller),
            action=route.operation,
            resource=route.service,
            origin=origin,
            expires=self._now + random.randint(60, 290),
            tenant=tenant if route.tenant else "",
            approval=f"a-{random.getrandbits(32):x}" if approver else "",
            approver=approver,
            chain=tuple(dict.fromkeys((origin, caller))),
        )

    def _misused(self, token: Token) -> Token:
        """The token as it would be for another call, in one respect or two."""
        random = self._random
        for _ in range(random.choice([1, 1, 1, 2])):
            another = random.choice(self._estate.routes)
            somebody = random.choice([*self._estate.callers, *STRANGERS])
            tenant = random.choice([*TENANTS, ""])
            token = random.choice(
                [
                    replace_token(token, action=another.operation),
                    replace_token(token, resource=another.service),
                    replace_token(token, caller=somebody),
                    replace_token(token, certificate=self._certificate(somebody + " before")),
                    replace_token(token, tenant=tenant),
                ]
            )
        return token

    def _certificate(self, caller: str) -> str:
        return self._certificates.get(caller) or fingerprint(caller)


def replace_token(token: Token, **changed: str) -> Token:
    """The token with other claims."""
    return msgspec.structs.replace(token, **changed)


def _filled(template: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", value)
    return template


def _latin(text: str) -> str:
    """The UTF-8 bytes of ``text``, as a text of one character for each byte."""
    return text.encode().decode("latin-1")


_SPOOFS = (
    ("x-eastwest-caller", GATEWAY),
    ("X-Eastwest-Token-Action", "x"),
    ("x-eastwest-token-tenant", "acme"),
    ("x-forwarded-client-cert", f"URI={GATEWAY}"),
    ("x-http-method-override", "DELETE"),
    ("x-original-url", "/t/acme"),
    ("x-envoy-original-path", "/t/acme"),
    ("x_tenant", "acme"),
    ("txn_token", "a.b.c"),
    ("forwarded", "for=127.0.0.1"),
    ("x-tenants", "acme"),
    ("authorization", "Bearer a.b.c"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)

Mutation = Callable[[Random, str], str]


def _encoded(random: Random, path: str) -> str:
    """One character percent-encoded."""
    at = random.randrange(len(path)) if path else 0
    character = path[at : at + 1] or "/"
    code = f"%{ord(character):02x}"
    return path[:at] + random.choice([code, code.upper(), code.replace("%", "%25")]) + path[at + 1 :]


def _inserted(*texts: str) -> Mutation:
    """One of ``texts`` in place of a slash."""

    def mutate(random: Random, path: str) -> str:
        slashes = [i for i, c in enumerate(path) if c == "/"] or [0]
        at = random.choice(slashes)
        return path[:at] + random.choice(texts) + path[at + 1 :]

    return mutate


def _appended(*texts: str) -> Mutation:
    return lambda random, path: path + random.choice(texts)


def _within(*texts: str) -> Mutation:
    """One of ``texts`` somewhere."""

    def mutate(random: Random, path: str) -> str:
        at = random.randint(1, max(1, len(path)))
        return path[:at] + random.choice(texts) + path[at:]

    return mutate


def _recased(random: Random, path: str) -> str:
    at = random.randrange(len(path)) if path else 0
    return path[:at] + path[at:].swapcase()


def _made(*forms: str) -> Mutation:
    """Another text, the path in it where there is ``{}``."""
    return lambda random, path: random.choice(forms).replace("{}", path)


def _lookalike(random: Random, path: str) -> str:
    """Cyrillic, fullwidth and accented in place of an ``a``."""
    return _latin(path.replace("a", random.choice(["\u0430", "\uff41", "\u00e1"])))


MUTATIONS: tuple[Mutation, ...] = (
    _encoded,
    _encoded,
    _recased,
    _inserted("//", "///", "/./", "/x/../", "/../", "/%2e/", "/%2E%2e/", "/.%2e/", "/;/", "/..;/", "/.;x/"),
    _inserted("%2f", "%2F", "\\", "%5c", "%252f", "/%2f", "%c0%af", "%ef%bc%8f", "/%00/", "/%20/"),
    _appended("/", "/.", "/..", "/../", ".", "..", ";x=1", ";", "%00", "%20", "%09", "%0a", "%0d%0ax:y", "/%2e"),
    _appended("?", "?a=/../b", "?a=%2f", "?/t/acme", "?a?b", "?a#b", "?\xe9", "?a=%00", "?x-tenant=acme", "?a=b;c"),
    _appended("#", "#/t/acme", "%23", "%3f", "%3Fa=b", "&x-tenant=acme", "*", "%", "%2", "%zz", "\xe9", "\xc3\xa9"),
    _within("%", "%0", "%gg", "|", "^", "`", "{", "}", "<", '"', "[", "]", "@", ":", "~", "\x7f", "%7f", "%7e"),
    _within("%2e", "%252e", "..", "%u002e", "\xc0\xae", "%e3%80%82", "%00", "\xe2\x80\xae", "\x80", "'", "(", "+"),
    _made("http://svc{}", "https://svc{}", "http://other:80{}", "HTTP://svc{}"),
    _made("*", "/", "//", "/..", "/.", "/%2e%2e", "a", "/?", "?"),
    _made("/{}", "{}/x", "{}/" + "x" * 200, "./{}", "//{}", "%2f{}"),
    _lookalike,
)
