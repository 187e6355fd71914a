"""Parts that the agent's unit tests share."""

import asyncio
from datetime import timedelta

from eastwest import errors
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.api.spire.api.types import types_pb2 as types
from eastwest.entropy import serial_numbers
from eastwest.pki.csr import verify_csr
from eastwest.pki.jwt import mint
from eastwest.pki.profile import BACKDATE, Usage
from eastwest.pki.signer import KeyAlgorithm
from eastwest.pki.template import encode_validity
from eastwest.policy.enforcement import Sidecar, encode_sidecar
from eastwest.registry.entry import Entry
from eastwest.rpc import spire
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.testing.ca import TestCA
from eastwest.testing.clock import FakeClock
from eastwest.testing.entropy import SeededEntropy

TD = TrustDomain("saas.example")
AGENT = TD.id("/spire/agent/join_token/t1")
ENTRY = control.ResourceName.KIND_ENTRY
BUNDLE = control.ResourceName.KIND_BUNDLE
SIDECAR = control.ResourceName.KIND_SIDECAR
CA = TestCA()


def entry(name: str, *selectors: str, **fields: object) -> Entry:
    return Entry(
        id=name,
        spiffe_id=TD.id(f"/{name}"),
        parent_id=AGENT,
        selectors=frozenset(map(Selector.parse, selectors or (f"unix:user:{name}",))),
        **fields,
    )


def update(
    number: int,
    *,
    full: bool = False,
    epoch: str = "e1",
    entries: tuple[Entry, ...] = (),
    bundles: tuple[Bundle, ...] = (),
    sidecars: tuple[Sidecar, ...] = (),
    remove: tuple[tuple[int, str], ...] = (),
    keys: tuple[str, ...] = (),
) -> control.Update:
    """``keys``: of the profile of all ``entries``."""
    made = control.Update(epoch=epoch, number=number, full=full)
    for each in entries:
        name = control.ResourceName(kind=ENTRY, name=each.id)
        made.upserts.add(name=name, entry=spire.entry_to_proto(each), keys=keys)
    for bundle in bundles:
        name = control.ResourceName(kind=BUNDLE, name=bundle.trust_domain.name)
        made.upserts.add(name=name, bundle=spire.bundle_to_proto(bundle))
    for sidecar in sidecars:
        name = control.ResourceName(kind=SIDECAR, name=sidecar.spiffe_id)
        made.upserts.add(name=name, sidecar=encode_sidecar(sidecar))
    for kind, gone in remove:
        made.removals.add(kind=kind, name=gone)
    return made


class SigningServer:
    """The server as the agent's parts see it: signs with a test CA, and fails as it is told."""

    def __init__(self, clock: FakeClock, ca: TestCA = CA) -> None:
        self.clock = clock
        self.ca = ca
        self.ttl = timedelta(hours=1)
        self.down = False
        self.refused: set[str] = set()
        self.calls: list[list[str]] = []
        self.jwts = 0
        self.reports: list[tuple[str, int, bytes]] = []
        self.hold: asyncio.Event | None = None
        self._entropy = SeededEntropy()

    async def sign(self, params: list[tuple[str, bytes]]) -> list[types.X509SVID | errors.Error]:
        self.calls.append([name for name, _ in params])
        if self.hold is not None:
            await self.hold.wait()
        if self.down:
            raise errors.Unavailable("the server is down")
        return [
            errors.Unavailable("refused") if name in self.refused else self._svid(TD.id(f"/{name}"), csr)
            for name, csr in params
        ]

    async def new_jwt(self, name: str, audience: list[str]) -> types.JWTSVID:
        self.jwts += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.down:
            raise errors.Unavailable("the server is down")
        now = self.clock.now()
        end = now + timedelta(minutes=5)
        token = mint(self.ca.jwt_key, TD.id(f"/{name}"), audience, now, end, f"j{self.jwts}").token
        return types.JWTSVID(token=token, issued_at=int(now.timestamp()), expires_at=int(end.timestamp()))

    async def report(self, spool: str, sequence: int, rows: bytes) -> int:
        if self.down:
            raise errors.Unavailable("the server is down")
        held = max((number for name, number, _ in self.reports if name == spool), default=0)
        if sequence > held:
            self.reports.append((spool, sequence, rows))
        return max(held, sequence)

    def _svid(self, spiffe_id: SpiffeId, csr: bytes) -> types.X509SVID:
        key = verify_csr(csr, set(KeyAlgorithm))
        start = self.clock.now().replace(microsecond=0)
        template = self.ca.authority.template(frozenset(Usage))
        validity = encode_validity(start - BACKDATE, start + self.ttl)
        unsigned = template.to_be_signed(serial_numbers(self._entropy, 1)[0], validity, key, str(spiffe_id), ())
        leaf = template.wrap(unsigned, self.ca.authority.signer.sign(unsigned))
        return types.X509SVID(cert_chain=[leaf, *self.ca.authority.chain], id=spire.id_to_proto(spiffe_id))


class Processes:
    """Who runs: pid → when it started."""

    def __init__(self) -> None:
        self.started = {42: 1000}

    def __call__(self, pid: int) -> int:
        return self.started.get(pid, 0)
