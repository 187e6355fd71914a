"""Every method of the server, called with messages that no client of ours would send."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fuzz_messages import Words, messages, mutated
from fuzz_settings import few
from fuzz_world import INTERNAL, METHODS, TD, UNKNOWN, certified
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from eastwest.pki.csr import make_csr

_SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
KEY = ec.generate_private_key(ec.SECP256R1())
ATTEST = "/spire.api.server.agent.v1.Agent/AttestAgent"
SOCKET_ONLY = (
    "/eastwest.authority.v1.",
    "/eastwest.certificates.v1.",
    "/spire.api.server.debug.v1.",
    "/spire.api.server.localauthority.v1.",
    "/spire.api.server.logger.v1.",
)
CALLED = sorted(METHODS)
UNSERVED = {path for path in METHODS if path.startswith(SOCKET_ONLY)}
INVALID_ARGUMENT = 3


def words(world):
    return Words(
        texts=[
            "td.test",
            "other.test",
            "spiffe://td.test/prod/shop/web",
            "/prod/shop/web",
            "/spire/agent/x",
            "unix",
            "uid:1000",
            "join_token",
            "x509pop",
            "http_challenge",
            "https://endpoint.invalid/",
            "prod",
            "estate.yaml",
            *world.entries.values(),
            *map(str, world.agents),
            *(agent.path for agent in world.agents),
        ],
        blobs=[
            make_csr(KEY, TD.id("/prod/shop/web")),
            *world.roots,
            KEY.public_key().public_bytes(*_SPKI),
            b'{"keys": []}',
            b"trust_domain: td.test\n",
            b'[{"time":"2026-01-01T00:00:00Z"}]',
        ],
    )


def check(world, caller, path, raw):
    status, replies = world.run(caller.call(path, *raw))
    broken = world.failures()
    assert not broken, (path, broken, raw)
    assert status not in {INTERNAL, UNKNOWN}, (path, raw)
    kind = GetMessageClass(METHODS[path].output_type)
    if caller.name != "socket":
        for reply in replies:
            foreign = certified(kind.FromString(reply)) - caller.may_have - {f"{TD.uri}"}
            assert not foreign, (path, raw)
    return status


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for path in CALLED for name in ("socket", "agent") if name == "socket" or path not in UNSERVED],
)
def test_no_message_breaks_a_method(world, name, path):
    method, caller = METHODS[path], world.callers[name]
    drawn = messages(method.input_type, words(world)).map(lambda message: message.SerializeToString())
    inputs = drawn | mutated(drawn) | st.binary(max_size=64)

    @few(12)
    @given(st.lists(inputs, max_size=3) if method.client_streaming else inputs.map(lambda raw: [raw]))
    def run(raw):
        check(world, caller, path, raw)

    run()


def test_found_before(world):
    """What broke a method once."""
    unknown = (99).to_bytes(1)
    for service, name, raw in [
        ("spire.api.server.agent.v1.Agent", "CountAgents", b"\n\x04\x12\x02\x10" + unknown),
        ("spire.api.server.agent.v1.Agent", "ListAgents", b"\n\x04\x12\x02\x10" + unknown),
        ("spire.api.server.entry.v1.Entry", "CountEntries", b"\n\x04\x1a\x02\x10" + unknown),
        ("spire.api.server.entry.v1.Entry", "ListEntries", b"\n\x04\x1a\x02\x10" + unknown),
    ]:
        assert check(world, world.callers["socket"], f"/{service}/{name}", [raw]) == INVALID_ARGUMENT
