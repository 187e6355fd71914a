"""Every class of identity failure, made by real handshakes with real Envoys, and told by the right name.

Each attempt has a service of its own, so that rows and attempts cannot be confused.
"""

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
from collections import Counter
from dataclasses import dataclass

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2
from envoy_mesh import TD, Ca, Http, Mesh, spiffe

from eastwest.ledger.failure import FailureClass, class_of, classify
from eastwest.mesh import names
from eastwest.mesh.resources import config_resources, sidecar_secrets
from eastwest.mesh.secrets import Identity
from eastwest.mesh.snapshot import Resource, Snapshot
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Outbound,
    Rule,
    Sidecar,
    TcpMatch,
    Verdict,
)
from eastwest.registry.containment import Contained
from eastwest.spiffe.bundle import Bundle, X509Authority
from eastwest.spiffe.id import TrustDomain
from eastwest.testing.ports import free_port

CLIENT, OTHER, SERVICE, CUT = spiffe("client"), spiffe("other"), spiffe("service"), spiffe("cut")
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
U = x509.UniformResourceIdentifier
FORMS = [(protocol, mode) for protocol in ("http", "tcp") for mode in (MtlsMode.STRICT, MtlsMode.PERMISSIVE)]


def key_id(public_key) -> str:
    return x509.SubjectKeyIdentifier.from_public_key(public_key).digest.hex()


@dataclass
class Authority:
    """A CA that can sign anything. ``above`` are the certificates (PEM) that a leaf of it is shown with."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    above: bytes = b""

    @classmethod
    def below(cls, root: Ca) -> "Authority":
        """An issuing CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuing")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        extensions = [(x509.BasicConstraints(ca=True, path_length=0), True), (usage, True)]
        made = build(root.key, root.certificate.subject, key, name, [U(f"spiffe://{TD}")], extensions)
        return cls(key, made, made.public_bytes(serialization.Encoding.PEM))

    def leaf(self, *names, begins: float = -5, ends: float = 60) -> Identity:
        """A certificate with these names, which begins and ends so many minutes from now, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        extensions = [(x509.BasicConstraints(ca=False, path_length=None), True), (usage, True)]
        issuer = self.certificate.subject
        made = build(self.key, issuer, key, x509.Name([]), names, extensions, begins=begins, ends=ends)
        uris = ",".join(name.value for name in names if isinstance(name, U))
        return Identity(uris, made.public_bytes(serialization.Encoding.PEM) + self.above, pem_of(key))


def build(signer, issuer, key, subject, names, extensions, *, begins: float = -5, ends: float = 60):
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(minutes=begins))
        .not_valid_after(now + dt.timedelta(minutes=ends))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, hashes.SHA256())


def pem_of(key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def authority(ca: Ca) -> Authority:
    return Authority(ca.key, ca.certificate)


@dataclass
class Attempt:
    """One handshake that must fail, or be refused after it: how, and how it must be told."""

    service: str
    expected: FailureClass
    port: int
    protocol: str = "http"
    mode: MtlsMode = MtlsMode.STRICT
    identity: Identity | None = None
    plaintext: bool = False
    tls12: bool = False
    caused: str = ""


class World:
    def __init__(self, tmp_path) -> None:
        self.ca, self.old, self.rogue, self.friend, self.next = Ca(), Ca(), Ca(), Ca("far.test"), Ca()
        self.mesh = Mesh(tmp_path, {TD: self.ca.pem + self.old.pem})
        self.issuing = Authority.below(self.old)

    def trust(self, *roots: Ca) -> None:
        bundle = Bundle(TrustDomain(TD), tuple(X509Authority(der_of(root.certificate)) for root in roots))
        self.mesh.bundles[TD] = b"".join(root.pem for root in roots)
        self.mesh.departed.learn([bundle], [(b"", der_of(self.issuing.certificate))])

    def inbound(self) -> list[Attempt]:
        """What callers may do wrong, at HTTP and TCP services, strict and permissive."""
        own, rogue = authority(self.ca), authority(self.rogue)
        ca_as_leaf = Identity(f"spiffe://{TD}", self.ca.pem, pem_of(self.ca.key))
        kinds = {
            "nothing": (FailureClass.NO_CERTIFICATE, {}),
            "plain": (FailureClass.NO_CERTIFICATE, {"plaintext": True}),
            "expired": (FailureClass.EXPIRED, {"identity": own.leaf(U(CLIENT), begins=-60, ends=-1)}),
            "early": (FailureClass.NOT_YET_VALID, {"identity": own.leaf(U(CLIENT), begins=10)}),
            "rogue": (FailureClass.UNKNOWN_AUTHORITY, {"identity": rogue.leaf(U(CLIENT))}),
            "stranger": (FailureClass.WRONG_TRUST_DOMAIN, {"identity": own.leaf(U(spiffe("x", "far.test")))}),
            "nosan": (FailureClass.MALFORMED_SAN, {"identity": own.leaf()}),
            "dns": (FailureClass.MALFORMED_SAN, {"identity": own.leaf(x509.DNSName("client.mesh.test"))}),
            "two": (FailureClass.MALFORMED_SAN, {"identity": own.leaf(U(CLIENT), U(OTHER))}),
            "old": (FailureClass.STALE_BUNDLE, {"identity": authority(self.old).leaf(U(CLIENT))}),
            "policy": (FailureClass.POLICY, {"identity": own.leaf(U(OTHER))}),
            "cut": (FailureClass.CONTAINED, {"identity": own.leaf(U(CUT))}),
        }
        strict = {
            "tls12": (FailureClass.NO_CERTIFICATE, {"identity": own.leaf(U(CLIENT)), "tls12": True}),
            "https": (FailureClass.MALFORMED_SAN, {"identity": own.leaf(U("https://mesh.test/client"))}),
            "upper": (FailureClass.MALFORMED_SAN, {"identity": own.leaf(U("spiffe://MESH.test/client"))}),
            "pathless": (FailureClass.MALFORMED_SAN, {"identity": own.leaf(U("spiffe://mesh.test"))}),
            "ca": (FailureClass.MALFORMED_SAN, {"identity": ca_as_leaf}),
            "below": (FailureClass.STALE_BUNDLE, {"identity": self.issuing.leaf(U(CLIENT))}),
            "unknown": (FailureClass.POLICY, {"identity": own.leaf(U(spiffe("nobody")))}),
        }
        found = [
            Attempt(f"{kind}-{protocol}-{mode.value}", expected, free_port(), protocol, mode, **how)
            for kind, (expected, how) in kinds.items()
            for protocol, mode in FORMS
        ]
        return found + [Attempt(kind, expected, free_port(), **how) for kind, (expected, how) in strict.items()]

    def services(self, attempts, app) -> tuple[Inbound, ...]:
        def operation(attempt):
            match = HttpMatch(method="GET", path="/pub") if attempt.protocol == "http" else TcpMatch()
            return OperationRules(name="any:thing:read", match=match, cells=(Cell(callers=(CLIENT,), rule=ALLOW),))

        return tuple(
            Inbound(
                service=attempt.service,
                address="127.0.0.1",
                port=attempt.port,
                protocol=attempt.protocol,
                mode=attempt.mode,
                upstream=f"unix:{app.path}",
                operations=(operation(attempt),),
            )
            for attempt in attempts
        )

    async def serve(self, attempts, app, *, spiffe_id=SERVICE):
        sidecar = Sidecar(
            spiffe_id=spiffe_id,
            version="v1",
            known_callers=(CLIENT, OTHER, SERVICE),
            inbound=self.services(attempts, app),
        )
        return await self.mesh.add(sidecar, self.ca.identity(spiffe_id))

    async def attempt(self, attempt: Attempt) -> None:
        """Do it. How it ends does not matter here; what the row says does."""
        with contextlib.suppress(ssl.SSLError, OSError, EOFError):
            if attempt.plaintext:
                http = await self.mesh.plain(attempt.port)
            else:
                context = self.mesh.context(attempt.identity)
                if attempt.tls12:
                    context.maximum_version = ssl.TLSVersion.TLSv1_2
                http = await self.mesh.tls(attempt.port, None, context=context)
            await http.ask("GET", "/pub")

    async def row(self, attempt: Attempt):
        found = await self.mesh.decision(lambda d: d.service == attempt.service)
        assert [d for d in self.mesh.decisions if d.service == attempt.service] == [found], "one row for one attempt"
        return found


def der_of(certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    try:
        yield world
    finally:
        await world.mesh.close()


async def test_what_callers_do_wrong_is_classified_rightly_each_time(world):
    world.trust(world.ca, world.old)
    attempts = world.inbound()
    assert len(attempts) >= 50
    before = Attempt("before", FailureClass.STALE_BUNDLE, free_port(), identity=authority(world.old).leaf(U(CLIENT)))
    app = await world.mesh.app("any")
    server = await world.serve([*attempts, before], app)
    await world.mesh.settled()
    world.mesh.decisions.clear()  # of the looks whether ports are open
    reply = await (await world.mesh.tls(before.port, before.identity)).ask("GET", "/pub")
    assert reply.status == 200, "the old authority is trusted as long as it is in the bundle"

    world.trust(world.ca)
    world.mesh.contained = Contained(1, (CUT,))
    world.mesh.publish(server, msgspec.structs.replace(server.sidecar, version="v2"))
    await world.mesh.settled()
    await refused(world, before)
    world.mesh.decisions.clear()
    await asyncio.gather(*(world.attempt(attempt) for attempt in attempts))
    rows = {attempt.service: await world.row(attempt) for attempt in attempts}

    told = {service: class_of(row) for service, row in rows.items()}
    assert told == {attempt.service: attempt.expected for attempt in attempts}
    reached = Counter(told.values())
    assert set(FailureClass) - set(reached) == {FailureClass.REVOKED}, reached
    for attempt in attempts:
        row = rows[attempt.service]
        shown = attempt.identity.spiffe_id if attempt.identity and not attempt.tls12 else ""
        if attempt.service == "ca":
            shown = ""  # refused before Envoy keeps the certificate
        assert row.caller == shown, row
        assert row.claimed == (
            bool(shown)
            and row.code not in {DecisionCode.OPERATION_NOT_PERMITTED, DecisionCode.CALLER_CONTAINED}
            and "nobody" not in shown
        )
        assert row.mode is attempt.mode
        # A handshake that fails fails in both modes, and so does who is contained; plaintext and what policy says is
        # only reported in permissive.
        after = attempt.plaintext or attempt.expected is FailureClass.POLICY or "," in shown
        assert row.enforced == (attempt.mode is MtlsMode.STRICT or not after), row


async def refused(world, attempt: Attempt) -> None:
    """Until Envoy has taken the bundle without the old root: the secret comes beside the version."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(ssl.SSLError, OSError, EOFError):
                if (await (await world.mesh.tls(attempt.port, attempt.identity)).ask("GET", "/pub")).status == 200:
                    continue
            return


async def test_an_authority_that_has_not_arrived_is_known_to_who_knows_it(world):
    world.trust(world.ca)
    attempt = Attempt(
        "early", FailureClass.UNKNOWN_AUTHORITY, free_port(), identity=authority(world.next).leaf(U(CLIENT))
    )
    await world.serve([attempt], await world.mesh.app("any"))
    await world.mesh.settled()
    world.mesh.decisions.clear()
    await world.attempt(attempt)
    row = await world.row(attempt)
    assert class_of(row) is FailureClass.UNKNOWN_AUTHORITY
    assert class_of(row, ours={key_id(world.next.key.public_key())}) is FailureClass.STALE_BUNDLE
    assert class_of(row, ours={key_id(world.rogue.key.public_key())}) is FailureClass.UNKNOWN_AUTHORITY


async def test_revoked_certificates(world):
    """Envoy's default validator reads CRLs (its SPIFFE validator reads none): a device gateway's listeners."""
    own = authority(world.ca)
    leaf = own.leaf(U(CLIENT))
    serial = x509.load_pem_x509_certificate(leaf.chain).serial_number
    now = dt.datetime.now(dt.UTC)
    entry = (
        x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - dt.timedelta(minutes=1)).build()
    )
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(world.ca.certificate.subject)
        .last_update(now - dt.timedelta(minutes=2))
        .next_update(now + dt.timedelta(hours=1))
        .add_revoked_certificate(entry)
        .sign(world.ca.key, hashes.SHA256())
    )
    attempts = [
        Attempt(f"gateway-{protocol}-{mode.value}", FailureClass.REVOKED, free_port(), protocol, mode, identity=leaf)
        for protocol, mode in FORMS
    ]
    good = Attempt("good", FailureClass.POLICY, free_port(), identity=own.leaf(U(CLIENT)))
    server = await world.serve([*attempts, good], await world.mesh.app("any"))
    context = common_pb2.CertificateValidationContext(
        trusted_ca={"inline_bytes": world.ca.pem}, crl={"inline_bytes": crl.public_bytes(serialization.Encoding.PEM)}
    )
    secret = secret_pb2.Secret(name=names.CALLERS_SECRET, validation_context=context)
    devices = Resource.of(names.CALLERS_SECRET, names.SECRET, secret)
    secrets = sidecar_secrets(server.sidecar, server.identity, world.mesh.bundles)
    rest = [one for one in secrets.resources() if one.name != names.CALLERS_SECRET]
    config = config_resources(server.sidecar, server.settings)
    server.snapshots.set(Snapshot.of("v1", [*config, *rest, devices]))
    await world.mesh.settled()
    world.mesh.decisions.clear()
    await refused(world, attempts[0])
    await asyncio.gather(*(world.attempt(attempt) for attempt in attempts[1:]))
    for attempt in attempts:
        row = await world.mesh.decision(lambda d, a=attempt: d.service == a.service)
        assert (class_of(row), row.caller, row.claimed) == (FailureClass.REVOKED, CLIENT, True)
    assert (await (await world.mesh.tls(good.port, good.identity)).ask("GET", "/pub")).status == 200


class Server:
    """A TLS server that shows what it is told to, and asks for a certificate."""

    def __init__(self, folder, name: str, identity: Identity) -> None:
        self.port = 0
        file = folder / f"server-{name}.pem"
        file.write_bytes(identity.chain + identity.key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(file)

    async def start(self) -> "Server":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, _reader, writer) -> None:
        writer.close()

    def stop(self) -> None:
        self._server.close()


async def test_what_services_show_wrong_is_an_event_of_the_caller(world, tmp_path):
    world.trust(world.ca, world.old)
    world.trust(world.ca)
    own = authority(world.ca)
    kinds = {
        "expired": (FailureClass.EXPIRED, own.leaf(U(SERVICE), begins=-60, ends=-1)),
        "early": (FailureClass.NOT_YET_VALID, own.leaf(U(SERVICE), begins=10)),
        "rogue": (FailureClass.UNKNOWN_AUTHORITY, authority(world.rogue).leaf(U(SERVICE))),
        "stranger": (FailureClass.WRONG_TRUST_DOMAIN, own.leaf(U(spiffe("service", "far.test")))),
        # Envoy keeps nothing of a certificate that it refuses on the way out, so these cannot be told more narrowly.
        "nosan": (FailureClass.WRONG_TRUST_DOMAIN, own.leaf()),
        "old": (FailureClass.UNKNOWN_AUTHORITY, authority(world.old).leaf(U(SERVICE))),
        "other": (FailureClass.POLICY, own.leaf(U(OTHER))),
    }
    servers, outbound, expected = [], [], {}
    for kind, (wanted, identity) in kinds.items():
        server = await Server(tmp_path, kind, identity).start()
        servers.append(server)
        for protocol in ("http", "tcp"):
            name = f"{kind}-{protocol}"
            outbound.append(
                Outbound(service=name, spiffe_id=SERVICE, endpoints=(f"127.0.0.1:{server.port}",), protocol=protocol)
            )
            expected[name] = wanted
    closed = Outbound(service="closed", spiffe_id=SERVICE, endpoints=(f"127.0.0.1:{free_port()}",), protocol="http")
    sidecar = Sidecar(spiffe_id=CLIENT, version="v1", known_callers=(), outbound=(*outbound, closed))
    client = await world.mesh.add(sidecar, world.ca.identity(CLIENT))
    await world.mesh.settled()
    try:
        assert (await (await world.mesh.way_out(client)).ask("GET", "/", host="closed")).status == 503
        for name in expected:
            if name.endswith("-http"):
                reply = await (await world.mesh.way_out(client)).ask("GET", "/", host=name)
                assert (reply.status, reply.code) == (503, "UPSTREAM_UNAVAILABLE")
            else:
                http = world.mesh._keep(await Http.unix(f"{client.settings.tcp_egress_directory}/{name}.sock"))
                http.writer.write(b"x")
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.wait_for(http.reader.read(10), 10) == b""
        for name, wanted in expected.items():
            row = await world.mesh.decision(lambda d, n=name: d.service == n)
            assert (class_of(row), row.code, row.caller, row.claimed) == (
                wanted,
                DecisionCode.SERVER_REFUSED,
                CLIENT,
                False,
            ), row
        assert not [d for d in world.mesh.decisions if d.service == "closed"], "a closed port says nothing of identity"
    finally:
        for server in servers:
            server.stop()


async def test_a_caller_that_refuses_our_certificate(world):
    """The service's side has the caller's alert, and no name; the caller's own sidecar tells the reason."""
    world.trust(world.ca)
    attempt = Attempt("svc", FailureClass.UNKNOWN_AUTHORITY, free_port())
    await world.serve([attempt], await world.mesh.app("svc"))
    await world.mesh.settled()
    world.mesh.decisions.clear()
    await asyncio.to_thread(reject, attempt.port, world.rogue)  # OpenSSL sends this alert in the clear
    row = await world.row(attempt)
    assert (class_of(row), row.code, row.caller) == (attempt.expected, DecisionCode.SERVER_REFUSED, "")
    assert row.cause == "alert_unreadable"

    world.mesh.decisions.clear()
    world.mesh.bundles[TD] = world.rogue.pem  # what the caller's node has, alone
    outbound = Outbound(service="svc", spiffe_id=SERVICE, endpoints=(f"127.0.0.1:{attempt.port}",), protocol="http")
    sidecar = Sidecar(spiffe_id=CLIENT, version="v1", known_callers=(), outbound=(outbound,))
    client = await world.mesh.add(sidecar, world.ca.identity(CLIENT))
    await world.mesh.settled(client)
    assert (await (await world.mesh.way_out(client)).ask("GET", "/pub", host="svc")).status == 503
    caller = await world.mesh.decision(lambda d: d.caller == CLIENT)
    assert (class_of(caller), caller.cause) == (FailureClass.UNKNOWN_AUTHORITY, "unknown_authority")
    service = await world.mesh.decision(lambda d: d.caller == "")
    assert (service.code, service.cause) == (DecisionCode.SERVER_REFUSED, "alert_certificate_unknown")


def reject(port: int, trusted: Ca) -> None:
    """Shake hands as an OpenSSL client that trusts one root, and send the alert that comes of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=trusted.pem.decode())
    with socket.create_connection(("127.0.0.1", port), 10) as plain, pytest.raises(ssl.SSLCertVerificationError):
        context.wrap_socket(plain)


@pytest.mark.parametrize("code", ["CALLER_CONTAINED", "TOKEN_CONTAINED", "IDENTITY_CONTAINED"])
def test_whatever_containment_refuses_is_of_its_class(code):
    assert classify(code, "") is FailureClass.CONTAINED
    assert classify("CERTIFICATE_REFUSED", "contained") is FailureClass.CONTAINED
