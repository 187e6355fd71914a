"""SPIRE's own `spire-server` command line as the administrator of our server."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from interop_harness import TRUST_DOMAIN, Authority, agent_id, workload_id

from eastwest.pki.jwks import export_bundle
from eastwest.testing import TestCA

SERVER = f"spiffe://{TRUST_DOMAIN}/spire/server"
PARENT = f"spiffe://{TRUST_DOMAIN}/spire/agent/join_token/no-such-node"
# Selectors of the entries that the filters are tried on; nothing has C.
A, B, C = (["-selector", f"unix:{value}"] for value in ("uid:5001", "gid:5001", "gid:5009"))


def test_healthcheck(authority: Authority) -> None:
    assert "healthy" in authority.cli("healthcheck").lower()


def test_bundle_show_is_the_bundle_of_our_own_command(authority: Authority) -> None:
    shown = authority.cli("bundle", "show")
    assert shown.count("BEGIN CERTIFICATE") >= 1
    assert shown.split() == authority.bundle().split()


def test_bundle_show_as_a_spiffe_bundle(authority: Authority) -> None:
    document = json.loads(authority.cli("bundle", "show", "-format", "spiffe"))
    uses = {key["use"] for key in document["keys"]}
    assert uses == {"x509-svid", "jwt-svid"}
    assert all(key.get("kid") for key in document["keys"] if key["use"] == "jwt-svid")


def test_bundle_as_json(authority: Authority) -> None:
    bundle = authority.ask("bundle", "show")
    assert bundle["trust_domain"] == TRUST_DOMAIN
    assert bundle["x509_authorities"]
    assert bundle["jwt_authorities"]
    assert authority.ask("bundle", "count")["count"] == 1


def test_token_generate(authority: Authority) -> None:
    told = authority.cli("token", "generate", "-ttl", "60")
    assert told.startswith("Token: ")
    tokens = {authority.token(), authority.token(), told.split()[1]}
    assert len(tokens) == 3


def test_a_token_for_an_id_shows_in_no_entry_before_it_is_used(authority: Authority) -> None:
    # SPIRE makes the entry at once, and with it shows the token to whoever may list entries; here it comes at use.
    token = authority.token("-spiffeID", workload_id("edge"))
    assert authority.ask("entry", "show", "-spiffeID", workload_id("edge"))["entries"] == []
    assert token not in authority.cli("entry", "show", "-output", "json")


def test_an_entrys_life(authority: Authority) -> None:
    before = authority.ask("entry", "count")["count"]
    entry = authority.register("life", PARENT, "unix:uid:4001", "unix:gid:4001", x509SVIDTTL=300, hint="blue")
    assert authority.ask("entry", "count")["count"] == before + 1

    (shown,) = authority.ask("entry", "show", "-entryID", entry)["entries"]
    assert _id(shown["spiffe_id"]) == workload_id("life")
    assert _id(shown["parent_id"]) == PARENT
    assert sorted(each["value"] for each in shown["selectors"]) == ["gid:4001", "uid:4001"]
    assert (shown["x509_svid_ttl"], shown["hint"], shown["revision_number"]) == (300, "blue", "0")

    names = ["-spiffeID", workload_id("life"), "-parentID", PARENT, "-selector", "unix:uid:4002"]
    authority.cli("entry", "update", "-entryID", entry, *names, "-dns", "life.internal")
    (updated,) = authority.ask("entry", "show", "-entryID", entry)["entries"]
    assert [each["value"] for each in updated["selectors"]] == ["uid:4002"]
    assert updated["dns_names"] == ["life.internal"]
    assert updated["revision_number"] == "1"

    assert f"Deleted entry with ID: {entry}" in authority.cli("entry", "delete", "-entryID", entry)
    assert authority.ask("entry", "count")["count"] == before
    assert authority.try_cli("entry", "show", "-entryID", entry).returncode != 0
    again = authority.try_cli("entry", "delete", "-entryID", entry)
    assert again.returncode != 0
    assert "NotFound" in again.stderr + again.stdout


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["-parentID", SERVER], {"filter-node"}),
        (["-spiffeID", workload_id("filter-a")], {"filter-a"}),
        ([*A, "-matchSelectorsOn", "superset"], {"filter-a", "filter-b"}),
        ([*A, "-matchSelectorsOn", "exact"], {"filter-a"}),
        ([*A, *B, "-matchSelectorsOn", "exact"], {"filter-b"}),
        ([*A, *C, "-matchSelectorsOn", "any"], {"filter-a", "filter-b"}),
        ([*A, *C, "-matchSelectorsOn", "subset"], {"filter-a"}),
        (["-hint", "green"], {"filter-b"}),
    ],
)
def test_entry_show_filters(authority: Authority, filtered: None, filters: list[str], expected: set[str]) -> None:
    entries = authority.ask("entry", "show", *filters)["entries"]
    found = {_id(entry["spiffe_id"]).rsplit("/", 1)[1] for entry in entries}
    assert {name for name in found if name.startswith("filter-")} == expected


def test_a_similar_entry_already_exists(authority: Authority) -> None:
    entry = authority.register("twin", PARENT, "unix:uid:6001")
    words = ["-spiffeID", workload_id("twin"), "-parentID", PARENT, "-selector", "unix:uid:6001"]
    refused = authority.try_cli("entry", "create", *words)
    assert refused.returncode != 0
    assert "AlreadyExists" in refused.stderr + refused.stdout
    (result,) = authority.ask("entry", "create", *words)["results"]
    assert result["status"]["code"] == 6
    assert len(authority.ask("entry", "show", "-spiffeID", workload_id("twin"))["entries"]) == 1
    assert authority.ask("entry", "show", "-entryID", entry)["entries"][0]["id"] == entry


@pytest.mark.parametrize(
    ("spiffe_id", "parent"),
    [
        ("spiffe://elsewhere.test/shop", PARENT),
        (f"spiffe://{TRUST_DOMAIN}/spire/server", PARENT),
        (f"spiffe://{TRUST_DOMAIN}/spire/agent/x", PARENT),
        (workload_id("shop"), "spiffe://elsewhere.test/node"),
    ],
)
def test_an_entry_outside_what_it_may_name_is_refused(authority: Authority, spiffe_id: str, parent: str) -> None:
    words = ["-spiffeID", spiffe_id, "-parentID", parent, "-selector", "unix:uid:7001"]
    refused = authority.try_cli("entry", "create", *words)
    assert refused.returncode != 0
    assert "InvalidArgument" in refused.stderr + refused.stdout


def test_no_agents_yet(authority: Authority) -> None:
    assert authority.ask("agent", "count")["count"] == 0
    assert authority.ask("agent", "list")["agents"] == []
    assert authority.try_cli("agent", "show", "-spiffeID", agent_id("nobody")).returncode != 0


@pytest.mark.parametrize(
    ("selector", "told"),
    [
        ("unix:udi:1", "did you mean unix:uid:VALUE?"),
        ("unix:uid:abc", "can never match"),
        ("k8s:nss:payments", "did you mean k8s:ns:VALUE?"),
        ("kubernetes:ns:payments", "no attestor gives selectors of type"),
    ],
)
def test_a_selector_that_never_matches_is_refused(authority: Authority, selector: str, told: str) -> None:
    words = ["-spiffeID", workload_id("odd"), "-parentID", PARENT, "-selector", selector]
    refused = authority.try_cli("entry", "create", *words)
    assert refused.returncode != 0
    assert told in refused.stderr + refused.stdout


def test_every_field_of_an_entry_comes_back(authority: Authority, tmp_path: Path) -> None:
    words = ["-spiffeID", workload_id("whole"), "-parentID", PARENT, "-selector", "unix:uid:8001"]
    words += ["-x509SVIDTTL", "600", "-jwtSVIDTTL", "120", "-federatesWith", "spiffe://other.test", "-hint", "h"]
    words += ["-dns", "a.internal", "-dns", "b.internal", "-entryExpiry", "4000000000", "-admin", "-downstream"]
    refused = authority.try_cli("entry", "create", *words)
    assert refused.returncode != 0
    assert "unable to find federated bundle" in refused.stdout + refused.stderr
    other = tmp_path / "other.json"
    other.write_bytes(export_bundle(TestCA("other.test", datetime.now(UTC) - timedelta(minutes=5)).bundle))
    authority.cli("bundle", "set", "-id", "spiffe://other.test", "-format", "spiffe", "-path", other)
    (result,) = authority.ask("entry", "create", *words)["results"]
    entry = result["entry"]
    assert entry["federates_with"] == ["other.test"]
    assert entry["dns_names"] == ["a.internal", "b.internal"]
    assert (entry["x509_svid_ttl"], entry["jwt_svid_ttl"], entry["hint"]) == (600, 120, "h")
    assert (entry["admin"], entry["downstream"], entry["expires_at"]) == (True, True, "4000000000")
    words[5] = "unix:uid:8002"
    stored = authority.ask("entry", "create", *words, "-storeSVID")["results"][0]["entry"]
    assert stored["store_svid"]
    for made in (entry, stored):
        authority.cli("entry", "delete", "-entryID", made["id"])


def test_x509_mint(authority: Authority, tmp_path: Path) -> None:
    names = ["-spiffeID", workload_id("minted"), "-dns", "minted.internal", "-ttl", "10m"]
    authority.cli("x509", "mint", *names, "-write", str(tmp_path))
    leaf = x509.load_pem_x509_certificates((tmp_path / "svid.pem").read_bytes())[0]
    subject = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert subject.get_values_for_type(x509.UniformResourceIdentifier) == [workload_id("minted")]
    assert subject.get_values_for_type(x509.DNSName) == ["minted.internal"]
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc <= timedelta(minutes=11)
    assert (tmp_path / "bundle.pem").read_text().split() == authority.bundle().split()


def test_jwt_mint(authority: Authority) -> None:
    token = authority.cli("jwt", "mint", "-spiffeID", workload_id("minted"), "-audience", "shop", "-ttl", "1m").strip()
    body = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert (claims["sub"], claims["aud"]) == (workload_id("minted"), ["shop"])
    assert 0 < claims["exp"] - claims["iat"] <= 60


def test_logger(authority: Authority) -> None:
    # SPIRE names levels after its logging library.
    assert "info" in authority.cli("logger", "get").lower()
    assert "debug" in authority.cli("logger", "set", "-level", "debug").lower()
    assert "debug" not in authority.cli("logger", "reset").lower()


@pytest.fixture(scope="module")
def filtered(authority: Authority) -> None:
    authority.register("filter-a", PARENT, "unix:uid:5001")
    authority.register("filter-b", PARENT, "unix:uid:5001", "unix:gid:5001", hint="green")
    authority.register("filter-node", SERVER, "join_token:group:blue")


def _id(parts: dict[str, str]) -> str:
    return f"spiffe://{parts['trust_domain']}{parts['path']}"
