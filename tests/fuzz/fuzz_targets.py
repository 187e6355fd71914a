"""What reads bytes of strangers, each as a function of bytes, with a few good inputs to begin from.

A target returns, or raises one of ``eastwest.errors`` that is not ``Internal``; anything else is a finding.
``open_targets`` makes them all; the default suite mutates their seeds, ``make fuzz`` gives them to atheris.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

from eastwest.agent import als_wire
from eastwest.agent.als import AccessLogs
from eastwest.agent.handshakes import Outgoing
from eastwest.agent.state import State
from eastwest.agent.xds import Principal
from eastwest.api.eastwest.control.v1 import control_pb2
from eastwest.errors import Error, Internal, InvalidInput
from eastwest.ledger.record import Decision
from eastwest.log.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from eastwest.log.note import NoteKey, cosign
from eastwest.log.policy import Policy
from eastwest.log.proof import LogProof
from eastwest.log.tiles import CHECKPOINT_PATH, decode_bundle, encode_bundle
from eastwest.log.verify import verify_log
from eastwest.log.witness import AddCheckpoint, judge, read_cosignatures
from eastwest.mesh.action import InForce
from eastwest.mesh.subscription import DeltaSession, SecretSession
from eastwest.pki.ca import make_ca_csr, read_ca_csr
from eastwest.pki.chain import dump_chain_pem, load_certificate, load_chain_pem, verify_chain
from eastwest.pki.csr import make_csr, verify_csr
from eastwest.pki.jwks import export_bundle, parse_bundle
from eastwest.pki.jwt import unverified_subject, validate
from eastwest.pki.profile import AGENT
from eastwest.pki.revocation import RevocationUrls, build_crl, parse_crl, read_ocsp_request, shard_of
from eastwest.plugins.http_challenge import HttpChallengeAttestor
from eastwest.plugins.join_token import JoinTokenAttestor
from eastwest.plugins.x509pop import X509PopAttestor
from eastwest.plugins.x509pop_wire import DeviceKey, Question, answer_with
from eastwest.policy.enforcement import HttpMatch, Inbound, MtlsMode, OperationRules, TenantSource
from eastwest.policy.load import load_estate
from eastwest.registry.federation import check_bundle
from eastwest.rpc import spire
from eastwest.server.agents import _checked
from eastwest.server.public.revocation import decode_get
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.pattern import matches
from eastwest.spiffe.selector import Selector
from eastwest.testing import FakeClock, SeededEntropy, TestCA
from eastwest.testing.devices import DeviceCA
from eastwest.testing.log import MemoryFiles, TestSigner, build_files

__all__ = ["Target", "open_targets"]


@dataclass(frozen=True)
class Target:
    """One reader of bytes."""

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]

    def feed(self, data: bytes) -> None:
        """Give it the bytes; returns when they were read or refused properly."""
        try:
            self.run(data)
        except Internal:
            raise
        except Error:
            pass


def open_targets() -> dict[str, Target]:
    """Every target by name."""
    return {**_certificates(), **_attestation(), **_tokens(), **_log(), **_files(), **_envoy(), **_server()}


def _certificates() -> dict[str, Target]:
    ca = TestCA()
    key = ec.generate_private_key(ec.SECP256R1())
    edwards = ed25519.Ed25519PrivateKey.generate()
    leaf, _ = ca.svid("/shop/web", timedelta(hours=1))
    csrs = [make_csr(each, ca.trust_domain.id("/shop/web")) for each in (key, edwards)]
    issuer = x509.load_der_x509_certificate(ca.authority.chain[0])
    urls = RevocationUrls("http://pki.example/x")
    crl = build_crl(ca.authority, shard_of(ca.now + timedelta(days=3)), [], 1, ca.now, urls, timedelta(days=1))
    certificate = x509.load_der_x509_certificate(leaf.chain[0])
    asked = [
        build.build().public_bytes(Encoding.DER)
        for build in (
            ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA1()),
            ocsp.OCSPRequestBuilder()
            .add_certificate(certificate, issuer, hashes.SHA256())
            .add_extension(x509.OCSPNonce(b"n" * 16), critical=False),
        )
    ]
    joined = b"".join(len(der).to_bytes(2) + der for der in leaf.chain)

    def chain(data: bytes) -> object:
        ders, rest = [], data
        while len(rest) > 2 and len(ders) < 12:
            size = 2 + int.from_bytes(rest[:2])
            ders.append(rest[2:size])
            rest = rest[size:]
        proven = verify_chain(ders, ca.roots, ca.now, ca.trust_domain)
        assert proven.id == leaf.id, "a hostile chain proved another identity"
        return proven

    def answered(data: bytes) -> object:
        return read_ocsp_request(data).is_for(ca.authority)

    return {
        "csr": Target(partial(verify_csr, allowed=AGENT.keys), csrs),
        "ca csr": Target(
            lambda data: read_ca_csr(data, ca.trust_domain), [make_ca_csr(ca.authority.signer, ca.trust_domain), *csrs]
        ),
        "certificate": Target(load_certificate, [*leaf.chain, *ca.roots]),
        "chain": Target(chain, [joined, _odd_issuer(leaf.chain, ca)]),
        "chain pem": Target(load_chain_pem, [dump_chain_pem(leaf.chain)]),
        "crl": Target(lambda data: parse_crl(data, issuer, ca.now), [crl]),
        "ocsp request": Target(answered, asked),
        "ocsp path": Target(lambda data: decode_get(data.decode("latin-1")), [b"MEIwQDA+MDwwOjAJBgUrDgMCGgUABBQ="]),
    }


def _odd_issuer(chain: Sequence[bytes], ca: TestCA) -> bytes:
    """The chain with an authority whose issuer's name has no valid text: names are parsed late."""
    assert chain[1].count(b"est root") == 1
    odd = chain[1].replace(b"est root", b"e\xff\xff root")
    return b"".join(len(der).to_bytes(2) + der for der in (chain[0], odd, *ca.roots))


class _Applicant:
    """An applicant whose answer is what the fuzzer says."""

    address = "192.0.2.1"
    spki = b"k"

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def __call__(self, _question: bytes) -> bytes:
        return self._answer


class _NoTokens:
    async def check(self, value: str, spki: bytes, now: object) -> object:
        assert value.isascii()
        raise InvalidInput("there is no such token")


def _attestation() -> dict[str, Target]:
    domain, clock, entropy = TrustDomain("saas.example"), FakeClock(), SeededEntropy()
    devices = DeviceCA()
    device = devices.device()
    options = X509PopAttestor.Options(ca_bundle_path="unused")
    pop = X509PopAttestor(options, [devices.root], domain, lambda: Bundle(domain), clock, entropy)
    payload = msgspec.json.encode({"certificates": device.ders})
    answer = b'{"ecdsa_signature":{"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","r":"AQ==","s":"AQ=="}}'
    http = HttpChallengeAttestor.from_options(
        HttpChallengeAttestor.Options(allowed_dns_patterns=[r"[a-z]\.allowed"]),
        # Nothing of the context but randomness is used.
        type("Context", (), {"entropy": entropy})(),
    )
    http.most_fetches = 0  # every check is made, nothing is fetched
    tokens = JoinTokenAttestor(_NoTokens(), clock)  # type: ignore[arg-type] - a book without tokens

    def never(attested: object) -> None:
        raise AssertionError(f"hostile evidence was accepted: {attested}")

    def run(attestor: object, data: bytes, answered: bytes = b"{}") -> None:
        never(asyncio.run(attestor.attest(data, _Applicant(answered))))  # type: ignore[attr-defined]

    questions = [b'{"ecdsa_signature":{"nonce":"AAAA"}}', b'{"rsa_signature":{"nonce":"AAAA"}}']
    key: DeviceKey = device.key

    def asked(data: bytes) -> object:
        try:
            question = msgspec.json.decode(data, type=Question)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return answer_with(key, question, bytes(32))

    return {
        "x509pop payload": Target(lambda data: run(pop, data), [payload]),
        "x509pop answer": Target(lambda data: run(pop, payload, data), [answer, b"{}"]),
        "x509pop question": Target(asked, questions),
        "http_challenge payload": Target(
            lambda data: run(http, data), [b'{"hostname":"a.allowed","agentname":"default","port":80}']
        ),
        "join token": Target(lambda data: run(tokens, data), [b"0123456789abcdef"]),
    }


def _tokens() -> dict[str, Target]:
    ca = TestCA()
    token = ca.jwt("/shop/web", "them").encode()
    other = TrustDomain("other.example")
    foreign = export_bundle(Bundle(other, (), ca.bundle.jwt_authorities, 3, 300))

    def jwt(data: bytes) -> None:
        text = data.decode("latin-1")
        unverified_subject(text)
        proven = validate(text, "them", ca.bundle, ca.now)
        assert text == token.decode(), f"a forged token proved {proven.id}"

    def bundle(data: bytes) -> None:
        check_bundle(parse_bundle(other, data), TrustDomain("saas.example"), ca.now)

    return {
        "jwt": Target(jwt, [token]),
        "bundle": Target(bundle, [export_bundle(ca.bundle), foreign]),
        "spiffe id": Target(lambda data: SpiffeId.parse(data.decode("latin-1")), [b"spiffe://a.example/b/c"]),
        "selector": Target(lambda data: Selector.parse(data.decode("latin-1")), [b"unix:uid:1000"]),
        "pattern": Target(
            lambda data: matches(data.decode("latin-1"), SpiffeId.parse("spiffe://a.example/b/c/d")),
            [b"spiffe://a.example/*/c/**"],
        ),
    }


def _log() -> dict[str, Target]:
    signer = TestSigner()
    origin = "saas.example/eastwest-log"
    key = NoteKey.of(origin, signer)
    entries = [b'{"n":%d}' % number for number in range(300)]
    files = build_files(entries, origin, signer)
    note = files[CHECKPOINT_PATH]
    proof = LogProof(3, (bytes(32),) * 9, note.decode()).text.encode()
    paths = sorted(files)

    def whole(data: bytes) -> None:
        """The first byte chooses the file that is replaced; a damaged log must not be called good."""
        if not data:
            return
        name = paths[data[0] % len(paths)]
        broken = MemoryFiles(files)
        broken[name] = data[1:]
        report = verify_log(broken, key, list(broken))
        assert not report.ok or broken == files

    def signed(data: bytes) -> None:
        """A log whose own key signs what it likes: any text as a checkpoint."""
        lines = data.decode("latin-1").split("\n")
        size = int(lines[0]) if lines[0].isdecimal() and lines[0].isascii() and len(lines[0]) < 4000 else 1
        lying = MemoryFiles(files)
        lying[CHECKPOINT_PATH] = sign_checkpoint(Checkpoint(origin, size, bytes(32)), signer).encode()
        assert not verify_log(lying, key, list(lying)).ok

    def proven(data: bytes) -> None:
        LogProof.parse(data.decode()).verify(b"entry", key)
        raise AssertionError("a forged proof was accepted")

    cosigner = NoteKey.of("w.example", signer, cosigner=True)
    text_signed = note.decode().partition("\n\n")[0] + "\n"

    def witness(data: bytes) -> None:
        """Only the checkpoint that the log signed is ever to be signed."""
        verdict = judge(AddCheckpoint.parse(data), {origin: [key]}, {})
        assert verdict.status != 200 or verdict.text == text_signed

    def text(data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise InvalidInput("not text") from None

    return {
        "log note": Target(lambda data: open_checkpoint(data, key), [note]),
        "log key": Target(lambda data: NoteKey.parse(text(data)), [key.vkey.encode()]),
        "log proof": Target(lambda data: proven(text(data).encode()), [proof]),
        "log entries": Target(decode_bundle, [encode_bundle(entries[:20])]),
        "log files": Target(whole, [bytes([place]) + files[name] for place, name in enumerate(paths)]),
        "log size": Target(signed, [b"300", b"299", b"18446744073709551616"]),
        "log policy": Target(Policy.parse, [f"log {key.vkey}\nwitness w {cosigner.vkey}\nquorum w\n".encode()]),
        "witness request": Target(witness, [AddCheckpoint(0, (), note).encode()]),
        "witness answer": Target(
            lambda data: read_cosignatures(text_signed, data, [cosigner]),
            [cosign(text_signed, cosigner.name, signer, 1).encode()],
        ),
    }


ESTATE = b"""\
trust_domain: saas.example
environments: [{name: prod, kind: vm}]
domains: [{name: shop, owners: ["group:shop"]}]
node_groups: [{name: nodes, environment: prod, selectors: ["join_token:group:nodes"]}]
administrators: [{who: "unix:uid:0", may: [everything]}]
"""
WORKLOADS = b"""\
workloads:
  - {spiffe_id: spiffe://saas.example/prod/shop/web, environment: prod, domain: shop, owner: "group:shop",
     node: "group:nodes", selectors: ["unix:uid:1001"], profile: workload, ttl: 30m}
"""
POLICY = b'@id("p")\npermit (principal, action, resource);\n'


def _files() -> dict[str, Target]:
    def estate(name: str) -> Callable[[bytes], object]:
        return lambda data: load_estate({"estate.yaml": ESTATE, "workloads/a.yaml": WORKLOADS, name: data})

    return {
        "estate yaml": Target(estate("estate.yaml"), [ESTATE]),
        "workloads yaml": Target(estate("workloads/a.yaml"), [WORKLOADS]),
        "policy cedar": Target(estate("policies/a.cedar"), [POLICY]),
        "estate names": Target(
            lambda data: load_estate({"estate.yaml": ESTATE, data.decode("latin-1"): b""}),
            [b"../../etc/passwd", b"services/a.yaml"],
        ),
    }


def _envoy() -> dict[str, Target]:
    match = HttpMatch(method="GET", path="/t/{tenant}/items")
    operation = OperationRules(name="web:items:read", match=match, tenant=TenantSource(path="tenant"))
    inbound = Inbound(
        service="web",
        address="127.0.0.1",
        port=1,
        protocol="http",
        mode=MtlsMode.STRICT,
        upstream="unix:/a",
        operations=(operation,),
    )
    current = InForce("web", "aaaaaaaaaaaa", "v2", MtlsMode.STRICT, inbound)

    class Rules:
        def current(self, _principal: object, _service: str) -> InForce:
            return current

        def version(self, _version: str) -> InForce:
            return current

        def outgoing(self, _principal: object, _service: str) -> Outgoing:
            return Outgoing("spiffe://a.example/web", "v2")

    class Messages:
        def __init__(self, messages: list[object]) -> None:
            self._messages = messages

        async def __aiter__(self) -> AsyncIterator[object]:
            for message in self._messages:
                yield message

    async def identify(_call: object) -> Principal:
        return Principal(("spiffe://a.example/web",))

    def logs(data: bytes) -> None:
        for log in ("decisions/web", "connections/web", "egress"):
            named = als_pb2.StreamAccessLogsMessage(identifier={"log_name": log}).SerializeToString()
            message = _decoded(als_wire.Message, data + named)
            if message is None:
                return
            with suppress(InvalidInput, DecodeError):
                asyncio.run(AccessLogs(identify, Rules(), msgspec.json.encode)._stream(None, Messages([message] * 2)))

    def delta(data: bytes) -> None:
        session = DeltaSession()
        message = _decoded(discovery_pb2.DeltaDiscoveryRequest, data)
        if message is not None:
            for _ in range(3):
                session.on_request(message)
                session.status()

    def secrets(data: bytes) -> None:
        message = _decoded(discovery_pb2.DiscoveryRequest, data)
        if message is not None:
            session = SecretSession()
            session.on_request(message)
            session.on_request(message)

    logged = als_pb2.StreamAccessLogsMessage()
    entry = logged.http_logs.log_entry.add()
    entry.common_properties.start_time.seconds = 1_770_000_000
    entry.response.response_code.value = 400
    entry.request.path = "/t/acme/items"
    san = entry.common_properties.tls_properties.peer_certificate_properties.subject_alt_name.add()
    san.uri = "spiffe://a.example/b"
    refused = als_pb2.StreamAccessLogsMessage()
    failed = refused.tcp_logs.log_entry.add()
    failed.common_properties.downstream_transport_failure_reason = "TLS_error:|1:error:CERTIFICATE_VERIFY_FAILED"
    impossible = []
    for seconds, nanos in ((2**62, 0), (-(2**62), 0), (1, -5), (1, 2**31 - 1)):
        at = als_pb2.StreamAccessLogsMessage()
        at.CopyFrom(logged)
        at.http_logs.log_entry[0].common_properties.start_time.seconds = seconds
        at.http_logs.log_entry[0].common_properties.start_time.nanos = nanos
        impossible.append(at.SerializeToString())
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    wanted = discovery_pb2.DeltaDiscoveryRequest(type_url=kind, resource_names_subscribe=["ROOTCA", "*"])
    plain = discovery_pb2.DiscoveryRequest(type_url=kind, resource_names=["ROOTCA"], version_info="1")
    return {
        "access log": Target(logs, [logged.SerializeToString(), refused.SerializeToString(), *impossible]),
        "delta discovery": Target(delta, [wanted.SerializeToString()]),
        "secret discovery": Target(secrets, [plain.SerializeToString()]),
    }


def _server() -> dict[str, Target]:
    """What an agent reads of its server, and the server of agents' reports."""
    ca = TestCA()
    held = State(ca.trust_domain)
    update = control_pb2.Update(epoch="e", number=1, full=True)
    update.upserts.add(
        name=control_pb2.ResourceName(kind=control_pb2.ResourceName.KIND_BUNDLE, name=ca.trust_domain.name),
        bundle=spire.bundle_to_proto(ca.bundle),
    )

    def state(data: bytes) -> None:
        message = _decoded(control_pb2.Update, data)
        if message is not None:
            after = held.apply(message)
            assert after.bundle.x509_authorities

    def report(data: bytes) -> None:
        request = control_pb2.ReportDecisionsRequest(decisions=data, spool="ab" * 16, sequence=1)
        _checked(request, datetime(2026, 11, 22, tzinfo=UTC))

    def sidecar(data: bytes) -> None:
        message = control_pb2.Update(epoch="e", number=1, full=True)
        message.upserts.add(name=control_pb2.ResourceName(name="s"), sidecar=data)
        held.apply(message)

    row = Decision(
        time=ca.now, service="web", verdict="deny", code="CERTIFICATE_REFUSED", mode=MtlsMode.STRICT, enforced=True
    )
    return {
        "update": Target(state, [update.SerializeToString()]),
        "sidecar": Target(sidecar, [b'{"spiffe_id":"spiffe://a.example/b","version":"v","known_callers":[]}']),
        "decisions": Target(report, [msgspec.json.encode([row])]),
    }


def _decoded(kind: type, data: bytes) -> object:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return None
    return message
