from __future__ import annotations

import msgspec
import pytest

from eastwest.errors import InvalidInput
from eastwest.pki.profile import (
    AGENT,
    SERVER,
    WORKLOAD,
    Door,
    InvalidProfile,
    Profile,
    ProfileConfig,
    ProfileViolation,
    Revocation,
    Usage,
    check_dns_name,
    parse_duration,
)
from eastwest.pki.signer import KeyAlgorithm
from eastwest.spiffe.id import SpiffeId

WRITTEN = {
    "profile": "device",
    "doors": ["est", "acme", "gateway"],
    "environments": ["plants"],
    "keys": ["ec-p256"],
    "lifetime": {"default": "90d", "max": "365d"},
    "names": {"spiffe_id": "exactly-one", "dns": ["*.saas.example", "db.internal"]},
    "usage": ["client"],
    "revocation": "crl",
}


def config(**changes):
    return msgspec.convert({**WRITTEN, **changes}, ProfileConfig)


def test_a_profile_as_written_becomes_a_checked_one():
    profile = Profile.from_config(config())
    assert profile.name == "device"
    assert profile.doors == {Door.EST, Door.ACME, Door.GATEWAY}
    assert profile.keys == (KeyAlgorithm.EC_P256,)
    assert (profile.default_ttl, profile.max_ttl) == (90 * 86400, 365 * 86400)
    assert profile.usage == {Usage.CLIENT}
    assert profile.revocation is Revocation.CRL


def test_a_profile_may_replace_the_built_in_workload():
    assert Profile.from_config(config(profile="workload")).name == WORKLOAD.name


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"profile": "Bad Name"}, "profile: "),
        ({"profile": "agent"}, "built in"),
        ({"profile": "server"}, "built in"),
        ({"doors": ["window"]}, "doors: 'window' is unknown"),
        ({"doors": ["internal"]}, "doors: 'internal' is unknown"),
        ({"doors": []}, "doors: nothing is listed"),
        ({"keys": ["rsa-2048"]}, "keys: 'rsa-2048' is unknown"),
        ({"keys": []}, "keys: nothing"),
        ({"usage": ["email"]}, "usage: "),
        ({"revocation": "ocsp"}, "revocation: "),
        ({"lifetime": {"default": "2h", "max": "1h"}}, "longer than the maximum"),
        ({"lifetime": {"default": "1x", "max": "1h"}}, "lifetime.default: '1x' is not a duration"),
        ({"lifetime": {"default": "0s", "max": "1h"}}, "lifetime.default: 0s is out of bounds"),
        ({"lifetime": {"default": "1h", "max": "99999d"}}, "lifetime.max: 99999d is out of bounds"),
        ({"names": {"dns": ["*.*.example"]}}, "names.dns: "),
    ],
)
def test_a_mistake_names_profile_field_and_place(changes, field):
    with pytest.raises(InvalidProfile, match=field.replace("(", r"\(")) as caught:
        Profile.from_config(config(**changes), where="profiles/device.yaml:1:1")
    assert caught.value.fix
    assert str(caught.value).startswith("profiles/device.yaml:1:1: profile ")


@pytest.mark.parametrize("changes", [{"colour": "red"}, {"names": {"spiffe_id": "many"}}, {"lifetime": {"max": "1h"}}])
def test_unknown_and_missing_fields_do_not_convert(changes):
    with pytest.raises(msgspec.ValidationError):
        config(**changes)


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("1h", 3600), ("90d", 7776000), ("1h30m", 5400)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "1 h", "-1h", "1.5h", "1H", "1h ", "\uff11h"])
def test_what_is_no_duration(text):
    with pytest.raises(InvalidInput, match="duration"):
        parse_duration(text)


def test_lifetimes():
    assert WORKLOAD.ttl(None) == WORKLOAD.ttl(0) == 3600
    assert WORKLOAD.ttl(60) == 60
    assert WORKLOAD.ttl(4 * 3600) == 4 * 3600
    with pytest.raises(ProfileViolation, match="14401 s is more than profile workload allows"):
        WORKLOAD.ttl(4 * 3600 + 1)
    with pytest.raises(InvalidInput):
        WORKLOAD.ttl(-1)


@pytest.mark.parametrize(
    ("profile", "path", "allowed"),
    [
        (WORKLOAD, "/prod/billing", True),
        (WORKLOAD, "", False),
        (WORKLOAD, "/spire", False),
        (WORKLOAD, "/spire/agent/x", False),
        (WORKLOAD, "/spirex", True),
        (AGENT, "/spire/agent/join_token/1", True),
        (AGENT, "/spire/agent", False),
        (AGENT, "/spire/server", False),
        (AGENT, "/prod/billing", False),
        (SERVER, "/spire/server", True),
        (SERVER, "/spire/agent/x", False),
    ],
)
def test_each_profile_keeps_to_its_part_of_the_name_space(profile, path, allowed):
    spiffe_id = SpiffeId.parse(f"spiffe://saas.example{path}")
    if allowed:
        profile.check_id(spiffe_id)
    else:
        with pytest.raises(ProfileViolation, match="may not name"):
            profile.check_id(spiffe_id)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("a.saas.example", True),
        ("a.b.saas.example", True),
        ("*.saas.example", True),
        ("db.internal", True),
        ("saas.example", False),
        ("asaas.example", False),
        ("a.saas.example.evil", False),
        ("x.db.internal", False),
    ],
)
def test_dns_patterns(name, allowed):
    profile = Profile.from_config(config())
    if allowed:
        profile.check_dns_names([name])
    else:
        with pytest.raises(ProfileViolation, match="does not allow the DNS name"):
            profile.check_dns_names([name])


@pytest.mark.parametrize("name", ["localhost", "a-b.c9", "*.example", "xn--nxasmq6b.example", "a" * 63 + ".b"])
def test_dns_names(name):
    check_dns_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "a.", ".a", "a..b", "-a.b", "a-.b", "A.b", "a_b", "a b", "a\nb", "*", "*.", "a.*.b", "*a.b"),
        *("10.0.0.1", "é.example", "a" * 64, ".".join(["a" * 50] * 6), "a\0b"),
    ],
)
def test_what_is_no_dns_name(name):
    with pytest.raises(InvalidInput):
        check_dns_name(name)


def test_too_many_dns_names():
    with pytest.raises(InvalidInput, match="at most 32"):
        WORKLOAD.check_dns_names([f"n{number}.example" for number in range(33)])


def test_doors_and_environments():
    profile = Profile.from_config(config())
    profile.check_door("est")
    profile.check_environment("plants")
    WORKLOAD.check_environment("anything")
    with pytest.raises(ProfileViolation, match="not issued through spire-api"):
        profile.check_door("spire-api")
    with pytest.raises(ProfileViolation, match="not for environment prod"):
        profile.check_environment("prod")
