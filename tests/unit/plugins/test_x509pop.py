"""x509pop: who has the key of a certificate under the given authorities comes in, and nobody else."""

import base64
import hashlib
import ipaddress
import json
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.attest.node import NodeContext, ProverContext
from eastwest.errors import Error, FailedPrecondition, InvalidInput, PermissionDenied
from eastwest.plugins.x509pop import PathTemplate, X509PopAttestor, verify_device
from eastwest.plugins.x509pop_prover import X509PopProver
from eastwest.plugins.x509pop_wire import Answer, Nonce, Question, SignedPair
from eastwest.process.plugins import NODE_ATTESTORS, NODE_PROVERS, load_plugin
from eastwest.spiffe.bundle import Bundle, X509Authority
from eastwest.spiffe.id import TrustDomain
from eastwest.testing.ca import TestCA
from eastwest.testing.clock import START, FakeClock
from eastwest.testing.devices import Device, DeviceCA
from eastwest.testing.entropy import SeededEntropy

TD = TrustDomain("saas.example")
CA = DeviceCA()
OWN = TestCA("saas.example")
KEYS = {
    "ecdsa-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ecdsa-p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


def context(clock: FakeClock | None = None) -> NodeContext:
    return NodeContext(
        trust_domain=TD,
        clock=clock or FakeClock(),
        entropy=SeededEntropy(),
        tokens=None,  # type: ignore[arg-type] - a certificate needs no tokens
        bundle=lambda: Bundle(TD, (X509Authority(OWN.root),)),
    )


@pytest.fixture
def root_file(tmp_path: Path) -> Path:
    return CA.write_root(tmp_path / "roots.pem")


def attestor(clock: FakeClock | None = None, **options: object) -> X509PopAttestor:
    return load_plugin(NODE_ATTESTORS, "x509pop", options, context(clock), "server.toml: node_attestors.x509pop")


def prover(device: Device, directory: Path) -> X509PopProver:
    certificate, key = device.write(directory)
    table = {"certificate_path": str(certificate), "private_key_path": str(key)}
    given = ProverContext(trust_domain=TD, clock=FakeClock(), entropy=SeededEntropy(7))
    return load_plugin(NODE_PROVERS, "x509pop", table, given, "agent.toml: node_provers.x509pop")


class Asked:
    """An agent that has a prover answer, or says something else."""

    spki = b"key"

    def __init__(self, shows: X509PopProver | bytes, address: str = "192.0.2.7") -> None:
        self._shows = shows
        self.address = address
        self.questions: list[dict] = []

    async def __call__(self, question: bytes, /) -> bytes:
        self.questions.append(json.loads(question))
        return self._shows if isinstance(self._shows, bytes) else await self._shows.answer(question)


def payload(*certificates: x509.Certificate | bytes) -> bytes:
    ders = [c if isinstance(c, bytes) else c.public_bytes(Encoding.DER) for c in certificates]
    return json.dumps({"certificates": [base64.b64encode(der).decode() for der in ders]}).encode()


@pytest.mark.parametrize("kind", KEYS)
async def test_a_key_proves_its_certificate(kind: str, root_file: Path, tmp_path: Path) -> None:
    names = [
        x509.UniformResourceIdentifier("x509pop://saas.example/datacentre/eu-1"),
        x509.UniformResourceIdentifier("x509pop://saas.example/rack/row%201/4"),
        x509.UniformResourceIdentifier("x509pop://other.example/datacentre/us-1"),
        x509.UniformResourceIdentifier("x509pop://saas.example/lonely"),
        x509.DNSName("edge-1.saas.example"),
    ]
    device = CA.device("edge-1", KEYS[kind](), names=names)
    shows = prover(device, tmp_path)
    asked = Asked(shows)
    attested = await attestor(ca_bundle_path=str(root_file)).attest(await shows.payload(), asked)
    leaf = device.ders[0]
    assert attested.path == f"/spire/agent/x509pop/{hashlib.sha1(leaf).hexdigest()}"
    assert attested.can_reattest
    serial = f"{device.chain[0].serial_number:x}"
    assert {str(selector) for selector in attested.selectors} == {
        "x509pop:subject:cn:edge-1",
        f"x509pop:ca:fingerprint:{hashlib.sha1(device.ders[1]).hexdigest()}",
        f"x509pop:ca:fingerprint:{hashlib.sha1(CA.root.public_bytes(Encoding.DER)).hexdigest()}",
        f"x509pop:serialnumber:{serial if len(serial) % 2 == 0 else '0' + serial}",
        "x509pop:san:datacentre:eu-1",
        "x509pop:san:rack:row 1/4",
    }
    [question] = asked.questions
    set_fields = {name for name, value in question.items() if value}
    assert set_fields == {f"{kind.split('-', maxsplit=1)[0]}_signature"}
    assert {"rsa_signature", "ecdsa_signature"} <= set(question), "SPIRE sends both, one of them null"


async def test_another_key_does_not(root_file: Path, tmp_path: Path) -> None:
    for make in KEYS.values():
        device = CA.device("edge-1", make())
        thief = prover(CA.device("thief", make()), tmp_path)
        await thief.payload()
        with pytest.raises(PermissionDenied, match="does not have the private key"):
            await attestor(ca_bundle_path=str(root_file)).attest(payload(*device.chain), Asked(thief))


async def test_an_answer_cannot_be_used_again(root_file: Path, tmp_path: Path) -> None:
    device = CA.device()
    shows = prover(device, tmp_path)
    judge = attestor(ca_bundle_path=str(root_file))
    heard: list[bytes] = []

    class Listens(Asked):
        async def __call__(self, question: bytes, /) -> bytes:
            heard.append(await super().__call__(question))
            return heard[0]

    await judge.attest(await shows.payload(), Listens(shows))
    with pytest.raises(PermissionDenied):
        await judge.attest(await shows.payload(), Listens(shows))
    assert heard[0] != heard[1]


def wrong_devices() -> dict[str, tuple[Device, str]]:
    stranger = DeviceCA(name="Stranger")
    impostor = DeviceCA()  # the same names, other keys
    not_yet = DeviceCA(START + timedelta(days=2))
    sub_key = ec.generate_private_key(ec.SECP256R1())
    no_ca = CA.device("not an authority", sub_key)
    return {
        "unknown authority": (stranger.device(), "does not lead to a configured authority"),
        "same names, other keys": (impostor.device(), "does not lead to a configured authority"),
        "ended": (CA.device(life=timedelta(minutes=-5)), "not valid now"),
        "not begun": (not_yet.device(), "not valid now"),
        "no key usage": (CA.device(usage=None), "does not state its key usage"),
        "not for signatures": (CA.device(usage=False), "not for digital signatures"),
        "an authority": (CA.device(ca=True), "an authority's"),
        "weak": (CA.device(key=rsa.generate_private_key(65537, 1024)), "1024 bits"),
        "large": (CA.device(key=rsa.generate_private_key(65537, 3072)), "3072 bits"),
        "issued by a leaf": (
            Device((CA.device(above=no_ca.chain[0], above_key=sub_key).chain[0], *no_ca.chain), sub_key),
            "does not lead to a configured authority",
        ),
    }


@pytest.mark.parametrize("name", wrong_devices())
async def test_certificates_that_do_not_count(name: str, root_file: Path) -> None:
    device, told = wrong_devices()[name]
    asked = Asked(b"never asked")
    with pytest.raises((PermissionDenied, InvalidInput), match=told):
        await attestor(ca_bundle_path=str(root_file), max_rsa_key_size=2048).attest(payload(*device.chain), asked)
    assert asked.questions == [], "nothing is asked of whoever cannot come in"


async def test_intermediates_come_in_any_order_and_are_bounded(root_file: Path, tmp_path: Path) -> None:
    device = CA.device()
    other = DeviceCA(name="Other").issuing
    judge = attestor(ca_bundle_path=str(root_file), max_intermediates=2)
    shows = prover(device, tmp_path)
    await shows.payload()
    assert (await judge.attest(payload(device.chain[0], other, device.chain[1]), Asked(shows))).can_reattest
    with pytest.raises(InvalidInput, match="4 certificates; 1 to 3"):
        await judge.attest(payload(*device.chain, other, other), Asked(shows))


async def test_several_authority_files(root_file: Path, tmp_path: Path) -> None:
    second = DeviceCA(name="Second")
    paths = [str(root_file), str(second.write_root(tmp_path / "second.pem"))]
    shows = prover(second.device(), tmp_path)
    attested = await attestor(ca_bundle_paths=paths).attest(await shows.payload(), Asked(shows))
    assert attested.path.startswith("/spire/agent/x509pop/")


async def test_the_address_can_be_bound_to_the_certificate(root_file: Path, tmp_path: Path) -> None:
    judge = attestor(ca_bundle_path=str(root_file), verify_client_ip=True)
    device = CA.device(names=[x509.IPAddress(ipaddress.ip_address("192.0.2.7"))])
    shows = prover(device, tmp_path)
    await judge.attest(await shows.payload(), Asked(shows, "192.0.2.7"))
    for address in ("192.0.2.8", ""):
        with pytest.raises(PermissionDenied, match="address"):
            await judge.attest(await shows.payload(), Asked(shows, address))


async def test_paths_by_template(root_file: Path, tmp_path: Path) -> None:
    template = "/fleet/{{ .URISanSelectors.site }}/{{.Subject.CommonName}}"
    judge = attestor(ca_bundle_path=str(root_file), agent_path_template=template)
    site = x509.UniformResourceIdentifier("x509pop://saas.example/site/north")
    shows = prover(CA.device("edge-9", names=[site]), tmp_path)
    assert (await judge.attest(await shows.payload(), Asked(shows))).path == "/spire/agent/fleet/north/edge-9"
    for name, names in (("..", [site]), ("a/b", [site]), ("with space", [site]), ("edge-9", [])):
        shows = prover(CA.device(name, names=names), tmp_path)
        with pytest.raises(PermissionDenied):
            await judge.attest(await shows.payload(), Asked(shows))


async def test_mode_spiffe_exchanges_an_svid_under_the_prefix(tmp_path: Path) -> None:
    judge = attestor(FakeClock(OWN.now), mode="spiffe")
    for path, told in (("/spire-exchange/host-1", None), ("/shop", "not under /spire-exchange/")):
        svid, key = OWN.svid(path)
        chain_pem, key_pem = TestCA.pem(svid, key)
        (tmp_path / "c.pem").write_bytes(chain_pem)
        (tmp_path / "k.pem").write_bytes(key_pem)
        (tmp_path / "k.pem").chmod(0o600)
        options = X509PopProver.Options(
            certificate_path=str(tmp_path / "c.pem"), private_key_path=str(tmp_path / "k.pem")
        )
        shows = X509PopProver(options, SeededEntropy())
        if told is None:
            attested = await judge.attest(await shows.payload(), Asked(shows))
            assert attested.path == "/spire/agent/x509pop/host-1"
        else:
            with pytest.raises(PermissionDenied, match=told):
                await judge.attest(await shows.payload(), Asked(shows))
    shows = prover(CA.device(), tmp_path)
    with pytest.raises(PermissionDenied):
        await judge.attest(await shows.payload(), Asked(shows))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "ca_bundle_path is missing"),
        ({"ca_bundle_path": "ROOT", "ca_bundle_paths": ["ROOT"]}, "both set"),
        ({"ca_bundle_path": "/nowhere.pem"}, r"/nowhere\.pem: the authorities cannot be read"),
        ({"ca_bundle_path": "EMPTY"}, "no PEM certificates"),
        ({"ca_bundle_paht": "ROOT"}, r"no option 'ca_bundle_paht' \(did you mean 'ca_bundle_path'\?"),
        ({"mode": "other"}, r"node_attestors\.x509pop\.mode: Invalid enum value 'other'"),
        ({"mode": "spiffe", "ca_bundle_path": "ROOT"}, "own authorities count"),
        ({"mode": "spiffe", "svid_prefix": "x"}, "does not begin with a slash"),
        ({"ca_bundle_path": "ROOT", "max_intermediates": 0}, "max_intermediates is 0"),
        ({"ca_bundle_path": "ROOT", "max_intermediates": "4"}, r"max_intermediates: Expected `int`"),
        ({"ca_bundle_path": "ROOT", "max_rsa_key_size": 512}, "max_rsa_key_size is 512"),
        ({"ca_bundle_path": "ROOT", "agent_path_template": "/x"}, "the same for all nodes"),
        ({"ca_bundle_path": "ROOT", "agent_path_template": "/{{ .Subject.Country }}"}, r"Subject\.Country"),
        ({"ca_bundle_path": "ROOT", "agent_path_template": "/{{ .Fingerprint | upper }}"}, "not known here"),
    ],
)
def test_each_wrong_option_of_the_server_is_told(options: dict, told: str, root_file: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    paths = {"ROOT": str(root_file), "EMPTY": str(empty)}
    filled = {
        name: [paths.get(v, v) for v in value] if isinstance(value, list) else paths.get(value, value)
        for name, value in options.items()
    }
    with pytest.raises(Error, match=told):
        attestor(**filled)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"private_key_path": None}, "'private_key_path' is missing"),
        ({"certificate_path": "/nowhere"}, "/nowhere: cannot be read"),
        ({"certificate_path": "KEY"}, "no PEM certificates"),
        ({"private_key_path": "CERTIFICATE"}, "unencrypted PEM private key"),
        ({"private_key_path": "OTHER"}, "does not belong to the private key"),
        ({"private_key_path": "OPEN"}, "open to every user"),
        ({"intermediates_path": "/nowhere"}, "/nowhere: cannot be read"),
    ],
)
def test_each_wrong_option_of_the_agent_is_told(change: dict, told: str, tmp_path: Path) -> None:
    certificate, key = CA.device().write(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = CA.device().write(tmp_path / "other")
    opened = tmp_path / "open.key"
    opened.write_bytes(key.read_bytes())
    opened.chmod(0o644)
    paths = {"KEY": str(key), "CERTIFICATE": str(certificate), "OTHER": str(other), "OPEN": str(opened)}
    table = {"certificate_path": str(certificate), "private_key_path": str(key)}
    table |= {name: paths.get(value, value) for name, value in change.items()}
    given = ProverContext(trust_domain=TD, clock=FakeClock(), entropy=SeededEntropy())
    with pytest.raises(Error, match=told):
        load_plugin(NODE_PROVERS, "x509pop", {k: v for k, v in table.items() if v is not None}, given, "agent.toml: p")


async def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    shows = prover(CA.device("before"), tmp_path)
    first = await shows.payload()
    CA.device("after").write(tmp_path)
    assert await shows.payload() != first


async def test_a_challenge_that_is_none_is_refused(tmp_path: Path) -> None:
    shows = prover(CA.device(), tmp_path)
    with pytest.raises(FailedPrecondition, match="before"):
        await shows.answer(b"{}")
    await shows.payload()
    short = json.dumps({"ecdsa_signature": {"nonce": base64.b64encode(b"short").decode()}}).encode()
    rsa_one = json.dumps({"rsa_signature": {"nonce": base64.b64encode(b"n" * 32).decode()}}).encode()
    for question in (b"", b"{}", b"null", b"\xff", short, rsa_one, b'{"ecdsa_signature":{"nonce":"!"}}'):
        with pytest.raises(InvalidInput):
            await shows.answer(question)


def test_only_fields_of_a_certificate_are_in_templates() -> None:
    rendered = PathTemplate("{{ .PluginName }}/{{.Fingerprint}}").render({"PluginName": "x509pop", "Fingerprint": "ab"})
    assert rendered == "/spire/agent/x509pop/ab"


GOOD = CA.device()


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.lists(st.binary(max_size=80), max_size=6).map(lambda parts: payload(*parts)),
        st.integers(0, len(GOOD.ders[0]) - 1).map(lambda at: payload(_flip(GOOD.ders[0], at), *GOOD.ders[1:])),
        st.integers(0, len(GOOD.ders[1]) - 1).map(lambda at: payload(GOOD.ders[0], _flip(GOOD.ders[1], at))),
    ),
    st.one_of(st.binary(max_size=100), st.just(b'{"ecdsa_signature":{"nonce":"AA==","r":"AA==","s":"AA=="}}')),
)
async def test_whatever_is_sent_is_refused_in_our_words(data: bytes, answer: bytes) -> None:
    options = X509PopAttestor.Options(ca_bundle_path="unused")
    judge = X509PopAttestor(options, [CA.root], TD, lambda: Bundle(TD), FakeClock(), SeededEntropy())
    with pytest.raises((InvalidInput, PermissionDenied)):
        await judge.attest(data, Asked(answer))


def _flip(der: bytes, at: int) -> bytes:
    return der[:at] + bytes([der[at] ^ 0x01]) + der[at + 1 :]


def test_name_constraints_of_an_authority_hold() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "Constrained")]))
        .issuer_name(CA.root.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(START - timedelta(days=1))
        .not_valid_after(START + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.NameConstraints([x509.DNSName("north.example")], None), critical=True)
    )
    constrained = builder.sign(CA.root_key, SHA256())
    inside, outside = (
        CA.device(names=[x509.DNSName(name)], above=constrained, above_key=key)
        for name in ("a.north.example", "a.south.example")
    )
    assert len(verify_device(list(inside.chain), [CA.root], START, 4)) == 2
    with pytest.raises(PermissionDenied):
        verify_device(list(outside.chain), [CA.root], START, 4)


def test_the_messages_are_those_of_spire() -> None:
    assert json.loads(msgspec.json.encode(Question(ecdsa_signature=Nonce(b"n" * 32)))) == {
        "rsa_signature": None,
        "ecdsa_signature": {"nonce": base64.b64encode(b"n" * 32).decode()},
    }
    assert json.loads(msgspec.json.encode(Answer(ecdsa_signature=SignedPair(b"n", b"r", b"s")))) == {
        "rsa_signature": None,
        "ecdsa_signature": {"nonce": "bg==", "r": "cg==", "s": "cw=="},
    }
