"""The gate of the agents' port: what a connection proved when it was opened is judged at each of its calls."""

import pytest
from msgspec.structs import replace

from eastwest.errors import PermissionDenied
from eastwest.pki.rotation import lifecycle
from eastwest.pki.rotation.state import Kind, Source, Stage, State
from eastwest.policy.estate import Administrator, Right
from eastwest.registry.administrators import Administrators
from eastwest.registry.entry import Entry
from eastwest.registry.registry import Registry
from eastwest.rpc.service import Call
from eastwest.server.ca.authority import issuing_of, root_of
from eastwest.server.ca.own_issuers import OwnIssuers
from eastwest.server.gate import PortGate, standing
from eastwest.spiffe.selector import Selector
from eastwest.testing.ca import TestCA
from eastwest.testing.clock import FakeClock
from eastwest.testing.entropy import SeededEntropy
from eastwest.testing.registry import MemoryRegistryStore

CALLED = "/spire.api.server.entry.v1.Entry/ListEntries"


class Connection:
    """An open TLS connection as far as a gate asks: the certificate that it proved when it was opened."""

    def __init__(self, certificate: bytes) -> None:
        self._certificate = certificate
        self.proved: list[str] = []

    def prove(self, caller: str) -> None:
        self.proved.append(caller)

    @property
    def connection(self) -> object:
        return self

    transport = connection

    def get_extra_info(self, name: str) -> object:
        return self if name == "ssl_object" else None

    def getpeercert(self, *, binary_form: bool) -> bytes:
        assert binary_form
        return self._certificate


class Server:
    """A CA's state with two generations of issuing CAs, of which the second issues, and the gate before it."""

    def __init__(self, ca: TestCA) -> None:
        self.ca = ca
        self.newer = ca.new_authority()
        old, new = (issuing_of(name, "", a.chain) for name, a in (("old", ca.authority), ("new", self.newer)))
        root = replace(root_of(ca.root, Source.OWN, "root"), issuing=(replace(old, stage=Stage.OLD), new))
        self.old_id = old.id
        self.state = State(roots=(replace(root, stage=Stage.ACTIVE),))

    async def gate(self) -> PortGate:
        admin = str(self.ca.trust_domain.id("/ops"))
        administrators = Administrators()
        administrators.replace([Administrator(who=admin, may=(Right.READ,))])
        registry = await Registry.open(self.ca.trust_domain, MemoryRegistryStore(), SeededEntropy())
        return PortGate(registry, administrators, FakeClock(), OwnIssuers(lambda: self.state))


async def test_a_revoked_issuing_ca_ends_what_an_open_connection_may() -> None:
    server = Server(TestCA())
    gate = await server.gate()
    shown, newer = (
        Call(Connection(server.ca.svid("/ops", authority=a)[0].chain[0]), CALLED)
        for a in (server.ca.authority, server.newer)
    )
    await gate.enter(shown)
    server.state = lifecycle.taint(server.state, Kind.ISSUING, server.old_id)
    assert (await gate.administrator(shown)).name == "spiffe://saas.example/ops"
    await gate.enter(newer)
    server.state = lifecycle.revoke(server.state, Kind.ISSUING, server.old_id)
    with pytest.raises(PermissionDenied, match="its CA was revoked"):
        await gate.enter(shown)
    with pytest.raises(PermissionDenied, match="its CA was revoked"):
        await gate.administrator(shown)
    with pytest.raises(PermissionDenied, match="its CA was revoked"):
        gate.confirm(shown)
    gate.confirm(newer)
    await gate.enter(newer)


async def test_a_certificate_that_another_ca_signed_makes_no_caller() -> None:
    server = Server(TestCA())
    gate = await server.gate()
    connection = Connection(TestCA().svid("/ops")[0].chain[0])
    with pytest.raises(PermissionDenied, match="not issued by this server"):
        await gate.enter(Call(connection, CALLED))
    assert not connection.proved


async def test_only_whom_the_gate_knows_has_proved_something_to_the_port() -> None:
    """Any workload has a certificate that TLS verifies."""
    server = Server(TestCA())
    gate = await server.gate()
    workload, admin = (Connection(server.ca.svid(path)[0].chain[0]) for path in ("/shop", "/ops"))
    with pytest.raises(PermissionDenied, match="no administrator"):
        await gate.enter(Call(workload, CALLED))
    await gate.enter(Call(workload, "/spire.api.server.bundle.v1.Bundle/GetBundle"))
    await gate.enter(Call(admin, CALLED))
    assert (workload.proved, admin.proved) == ([], ["spiffe://saas.example/ops"])


async def test_who_has_a_name_now_is_whom_a_gate_would_find() -> None:
    clock, trust_domain = FakeClock(), TestCA().trust_domain
    registry = await Registry.open(trust_domain, MemoryRegistryStore(), SeededEntropy())
    administrators = Administrators()
    ops, chief = (str(trust_domain.id(path)) for path in ("/ops", "/chief"))
    administrators.replace([Administrator(who=ops, may=(Right.APPROVALS,))])

    def rights(name: str) -> set[Right]:
        found = standing(name, administrators, registry, clock.now())
        return set() if found is None else {right for grant in found.grants for right in grant.rights}

    assert rights(ops) == {Right.APPROVALS}
    assert rights(chief) == rights("unix:uid:4711") == set()
    assert rights("unix:uid:0") == {Right.EVERYTHING}
    # An entry with admin counts until it ends, and root only as the estate says where it says anything.
    entry = Entry(
        spiffe_id=trust_domain.id("/chief"),
        parent_id=trust_domain.id("/spire/agent/x/1"),
        selectors=frozenset({Selector("unix", "uid:1")}),
        admin=True,
        expires_at=int(clock.now().timestamp()) + 60,
    )
    [made] = await registry.entries.create([entry], clock.now())
    assert made.error is None
    assert rights(chief) == {Right.EVERYTHING}
    administrators.replace([Administrator(who="unix:uid:0", may=(Right.READ,))])
    assert rights("unix:uid:0") == {Right.READ}
    assert rights(ops) == set()
    clock.advance(61)
    assert rights(chief) == set()
