"""Federation as an administrator sees it: the commands, against two real servers."""

import json

import pytest
from server_process import ServerProcess, eastwest

from eastwest import errors
from eastwest.api.spire.api.server.bundle.v1 import bundle_pb2
from eastwest.rpc.client import Channel, method
from eastwest.rpc.tls import client_context, expect_server

PARTNER = "partner.test"
GET = method(bundle_pb2.DESCRIPTOR.services_by_name["Bundle"], "GetFederatedBundle")


@pytest.fixture(scope="module")
def partner(tmp_path_factory):
    """A server that offers its bundle, which is all that is wanted of it."""
    made = ServerProcess(tmp_path_factory.mktemp("partner") / "data", PARTNER)
    made.init()
    config = made.data / "server/server.toml"
    config.write_text(f"{config.read_text()}\nbundle_endpoint_port = 0\n")
    made.start()
    yield made
    made.kill()


@pytest.fixture
def both(server, partner):
    """Two servers: one to be administered, and the partner."""
    return server, partner


def done(server, *words) -> str:
    result = eastwest(*words, "--data", server.data)
    assert result.returncode == 0, result.stderr
    return result.stdout


def shown(server) -> dict:
    return json.loads(done(server, "federation", "show", PARTNER, "--json"))


async def test_a_relationship_made_by_hand(both, tmp_path) -> None:
    ours, partner = both
    first = tmp_path / "partner.json"
    first.write_text(done(partner, "bundle", "show", "--format", "spiffe"))
    port = (partner.data / "server/bundle-endpoint.port").read_text().strip()
    endpoint = ["--endpoint", f"https://127.0.0.1:{port}/", "--endpoint-spiffe-id", f"spiffe://{PARTNER}/spire/server"]
    sequence = json.loads(first.read_text())["spiffe_sequence"]
    done(ours, "federation", "create", PARTNER, *endpoint, "--bundle", first)
    assert done(ours, "federation", "refresh", PARTNER) == f"the bundle of {PARTNER} is at sequence {sequence}\n"
    told = shown(ours)
    assert (told["managed_by"], told["problem"], told["sequence"], told["x509_authorities"]) == ("api", "", sequence, 1)
    assert told["succeeded_at"] is not None
    elsewhere = f"https://localhost:{port}/"
    done(ours, "federation", "update", PARTNER, "--endpoint", elsewhere)
    told = shown(ours)
    assert (told["endpoint"], told["profile"], told["sequence"]) == (elsewhere, "https_spiffe", sequence)
    done(ours, "federation", "update", PARTNER, "--profile", "https_web")
    assert (shown(ours)["profile"], shown(ours)["endpoint_spiffe_id"]) == ("https_web", "")
    done(ours, "federation", "update", PARTNER, "--endpoint-spiffe-id", endpoint[-1])
    assert (shown(ours)["profile"], shown(ours)["endpoint_spiffe_id"]) == ("https_spiffe", endpoint[-1])
    for nothing in (
        [],
        ["--profile", "https_spiffe"],
        ["--profile", "https_web", "--endpoint-spiffe-id", endpoint[-1]],
    ):
        assert eastwest("federation", "update", PARTNER, *nothing, "--data", ours.data).returncode == 2
    again = eastwest("federation", "create", PARTNER, *endpoint, "--data", ours.data)
    assert (again.returncode, "already" in again.stderr) == (1, True)

    # What is held is what the partner shows, in both forms; and it survives a kill.
    ours.kill()
    ours.start()
    pem = done(partner, "bundle", "show")
    assert done(ours, "bundle", "show", "--trust-domain", PARTNER) == pem
    kept = json.loads(done(ours, "bundle", "show", "--trust-domain", PARTNER, "--format", "spiffe"))
    assert kept == json.loads(first.read_text())
    table = done(ours, "federation", "list").splitlines()
    assert table[0].split() == ["TRUST", "DOMAIN", "MANAGED", "BY", "ENDPOINT", "SEQUENCE", "NEXT", "LOOK", "PROBLEM"]
    assert table[1].split()[:2] == [PARTNER, "api"]

    done(ours, "federation", "delete", PARTNER)
    assert json.loads(done(ours, "federation", "list", "--json")) == {"trust_domains": []}
    gone = eastwest("bundle", "show", "--trust-domain", PARTNER, "--data", ours.data)
    assert (gone.returncode, "no bundle" in gone.stderr) == (1, True)

    # Every step is in the log.
    async with ours.admin() as admin:
        await admin.flush_log()
    entries = _entries(ours)
    changes = [entry["change"] for entry in entries if entry["kind"] == "federation.changed"]
    began, ended = ["relationship_created", "bundle_changed"], ["relationship_deleted", "bundle_deleted"]
    assert changes == [*began, *["relationship_updated"] * 3, *ended]


def _entries(server) -> list[dict]:
    """The log's entries, from its newest, unfinished tile; older states of that lie beside it."""
    tiles = [path for path in (server.data / "server/log/tile/entries").rglob("*") if path.is_file()]
    data = max(tiles, key=lambda path: path.stat().st_size).read_bytes()
    found = []
    while data:
        size = int.from_bytes(data[:2])
        found.append(json.loads(data[2 : 2 + size]))
        data = data[2 + size :]
    return found


async def test_a_bundle_set_by_hand_reaches_agents_that_ask_and_nobody_else(both, tmp_path) -> None:
    ours, partner = both
    first = tmp_path / "partner.json"
    first.write_text(done(partner, "bundle", "show", "--format", "spiffe"))
    done(ours, "bundle", "set", PARTNER, first)
    agent = await ours.join()
    request = bundle_pb2.GetFederatedBundleRequest(trust_domain=PARTNER)
    found = await agent.channel.unary(GET, request)
    assert (found.trust_domain, len(found.x509_authorities)) == (PARTNER, 1)
    for refused, kind in (
        ("td.test", errors.InvalidInput),
        ("nobody.test", errors.NotFound),
        ("!", errors.InvalidInput),
    ):
        with pytest.raises(kind):
            await agent.channel.unary(GET, bundle_pb2.GetFederatedBundleRequest(trust_domain=refused))
    agent.channel.close()
    server = ours.trust_domain.id("/spire/server")
    stranger = Channel(host="127.0.0.1", port=ours.port, tls=client_context(agent.roots), check=expect_server(server))
    with pytest.raises(errors.Unauthenticated):
        await stranger.unary(GET, request)
    stranger.close()
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    for words, reason in (
        (["bundle", "set", PARTNER, wrong], "wrong.json"),
        (["bundle", "set", PARTNER, tmp_path / "absent.json"], "absent.json"),
        (["bundle", "set", "td.test", first], "own trust domain"),
        (["bundle", "delete", "nobody.test"], "not found"),
        (["federation", "refresh", PARTNER], "no relationship"),
        (["federation", "show", "nobody.test"], "no federation"),
        (["federation", "create", PARTNER, "--endpoint", "http://x/"], "https://"),
    ):
        refused = eastwest(*words, "--data", ours.data)
        assert refused.returncode == 1, words
        assert reason in refused.stderr, refused.stderr
    done(ours, "bundle", "delete", PARTNER)
    assert json.loads(done(ours, "federation", "list", "--json")) == {"trust_domains": []}


def test_a_bad_bundle_in_the_estate_is_refused_before_anything_changes(both, tmp_path) -> None:
    ours, partner = both
    estate = tmp_path / "estate"
    (estate / "federation").mkdir(parents=True)
    (estate / "estate.yaml").write_text(
        "trust_domain: td.test\nenvironments: [{name: prod, kind: vm}]\ndomains: [{name: d, owners: ['group:d']}]\n"
        f"federation: [{{trust_domain: {PARTNER}, bundle: federation/partner.json}}]\n"
    )
    file = estate / "federation/partner.json"
    own = done(ours, "bundle", "show", "--format", "spiffe")
    for content, reason in (("{}", "cannot be read"), (own, "another trust domain"), ('{"keys": []}', "no X.509")):
        file.write_text(content)
        refused = eastwest("apply", estate, "--data", ours.data)
        assert refused.returncode == 1
        assert reason in refused.stderr, refused.stderr
    assert json.loads(done(ours, "federation", "list", "--json")) == {"trust_domains": []}
    file.write_text(done(partner, "bundle", "show", "--format", "spiffe"))
    done(ours, "apply", estate)
    told = shown(ours)
    assert (told["managed_by"], told["endpoint"], told["sequence"] is not None) == ("estate", "", True)
    for words in (["federation", "delete", PARTNER], ["bundle", "delete", PARTNER], ["bundle", "set", PARTNER, file]):
        refused = eastwest(*words, "--data", ours.data)
        assert (refused.returncode, "estate.yaml" in refused.stderr) == (1, True), refused.stderr
