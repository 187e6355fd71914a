"""What observations mean: each kind of evidence leads to one name, and one cause is told once."""

import dataclasses

import msgspec
import pytest

from eastwest.mesh import names
from eastwest.policy.canary import OWN_FILE, REFUSED_HANDSHAKE, Check, Examination, Observation, Point
from eastwest.server.verification.diagnosis import Instance, diagnose, examined, is_by_application, meant_by_others

READ = Check(
    kind="operation", expected="ALLOWED", caller="c", method="GET", path="/x", operation="s:x:read", reads=True
)
WRITE = Check(kind="operation", expected="OPERATION_NOT_PERMITTED", caller="c", method="POST", path="/x", operation="w")
PLAIN = Check(kind="plaintext", expected="MTLS_REQUIRED", method="GET", path="/u")
FORGED = Check(kind="foreign-root", expected=REFUSED_HANDSHAKE, method="GET", path="/u")
EXPIRED = Check(kind="expired", expected=REFUSED_HANDSHAKE, method="GET", path="/u")
POINT = Point(
    service="s",
    spiffe_id="spiffe://td.test/s",
    host="127.0.0.1",
    port=1,
    protocol="http",
    strict=True,
    version="new",
    checks=(READ, WRITE, PLAIN, FORGED, EXPIRED),
)
FINE = Instance(
    agent="a",
    node_id="n",
    spiffe_id="spiffe://td.test/s",
    connected=True,
    agent_connected=True,
    agent_behind=False,
    acknowledged="v",
    intended="v",
)


def seen(**changed):
    """What a healthy point shows, but for ``changed``: fields of the observation by kind of check."""
    found = []
    for place, (kind, check) in enumerate(
        zip(("read", "write", "plain", "forged", "expired"), POINT.checks, strict=True)
    ):
        fields = {"happened": check.expected, "status": 403 if check.expected != "ALLOWED" else 204}
        if check.caller:
            fields |= {"decided": True, "enforced": True, "version": "new"}
        if check.expected == REFUSED_HANDSHAKE:
            fields["status"] = 0
        found.append(Observation(point=0, check=place, **(fields | changed.get(kind, {}))))
    return found


def drifts(observations, instance=FINE, earlier=None):
    return [f.drift for f in diagnose(POINT, observations, [instance], earlier or {})]


UNKNOWN = {"happened": "UNKNOWN_CALLER"}
OLD = {"version": "old"}
SILENT = {"problem": "timeout", "happened": "no answer", "status": 0, "decided": False}
NOT_TOLD = {"decided": False, "enforced": False, "version": "", "happened": "HTTP 200", "status": 200}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"read": {"happened": "UNLISTED_OPERATION"}}, ["missing-read-rule"]),
        ({"write": {"happened": "ALLOWED"}}, ["edited-config"]),
        ({"read": OLD, "write": OLD}, ["edited-config"]),
        ({"read": UNKNOWN, "write": UNKNOWN}, ["stale-point"]),
        ({"read": {"enforced": False}, "write": {"enforced": False}}, ["permissive-left-on"]),
        ({"plain": {"happened": "HTTP 200", "status": 200}}, ["permissive-left-on"]),
        ({"read": NOT_TOLD, "write": NOT_TOLD}, ["disabled-filter"]),
        ({"forged": {"happened": "UNKNOWN_CALLER", "status": 403}}, ["wrong-root"]),
        ({"expired": {"happened": "UNKNOWN_CALLER", "status": 403}}, ["edited-config"]),
        (
            {"read": {"problem": "tls", "happened": "x"}, "write": {"problem": "closed", "happened": "x"}},
            ["wrong-root"],
        ),
        ({"read": {"problem": "server-certificate", "happened": "x"}}, ["wrong-root"]),
        ({"read": SILENT, "write": SILENT}, ["unreachable"]),
        ({"forged": SILENT}, ["unreachable"]),
        ({"plain": SILENT}, []),
    ],
)
def test_each_kind_of_evidence_has_a_name(changed, expected):
    assert drifts(seen(**changed)) == expected


def test_rules_of_a_known_version_are_old_ones_unless_the_point_is_behind():
    observations = seen(read=OLD, write=OLD)
    assert drifts(observations, earlier={("s", "old"): "policy"}) == ["old-policy-replayed"]
    for changed in (
        {"agent_connected": False},
        {"agent_behind": True},
        {"connected": False},
        {"acknowledged": "older"},
    ):
        behind = Instance(**({name: getattr(FINE, name) for name in FINE.__slots__} | changed))
        assert drifts(observations, behind, {("s", "old"): "policy"}) == ["stale-point"]


def test_nobody_answers():
    gone = [Observation(point=0, check=-1, happened="refused", problem="refused")]
    assert drifts(gone) == ["unreachable"]
    assert diagnose(POINT, gone, [], {}) == []  # nothing is meant to run there


def test_an_application_that_enforces_by_itself_knows_no_canaries_and_that_is_no_drift():
    unknown = {"happened": "UNKNOWN_CALLER", "decided": False, "enforced": False, "version": ""}
    observations = seen(read=unknown, write=unknown, plain={"problem": "closed", "happened": "x", "status": 0})
    no_certificate = msgspec.structs.replace(observations[3], happened="MTLS_REQUIRED", status=403)
    observations[3] = no_certificate
    assert diagnose(POINT, observations, [], {}) == []
    assert is_by_application(POINT, observations, [])
    # Where there is a sidecar, the same is none.
    assert "stale-point" in drifts(seen(read=unknown, write=unknown))
    assert [f.drift for f in diagnose(POINT, observations, [FINE], {})] == ["wrong-root"]
    assert [f.drift for f in diagnose(POINT, seen(read=NOT_TOLD, write=unknown), [], {})] == ["disabled-filter"]


def looked_at(**found):
    return Instance(**({name: getattr(FINE, name) for name in FINE.__slots__} | {"examination": Examination(**found)}))


def test_what_agents_see_is_told_unless_calls_have_told_it():
    port = "127.0.0.1:9090 of app (pid 1), which serves s"
    assert [f.drift for f in examined(looked_at(listening=(port,)), "s", (), ())] == ["bypass-port"]
    assert examined(looked_at(listening=(port,)), "s", (), (9090,)) == []
    assert [f.drift for f in examined(looked_at(differs=(names.CALLERS_SECRET,)), "s", (), ())] == ["wrong-root"]
    assert [f.drift for f in examined(looked_at(foreign=("back-door",)), "s", (), ())] == ["edited-config"]
    changed = looked_at(differs=("eastwest.operations/s",))
    assert [f.drift for f in examined(changed, "s", (), ())] == ["edited-config"]
    assert examined(changed, "s", ("disabled-filter",), ()) == []
    assert examined(FINE, "s", (), ()) == []
    # What its own file brought is an edit, however its agent stands with it; and no text breaks a run.
    own = dataclasses.replace(looked_at(foreign=(f"x {OWN_FILE}",)), acknowledged="")
    assert [f.drift for f in examined(own, "s", (), ())] == ["stale-point", "edited-config"]
    assert [f.drift for f in examined(looked_at(listening=("1.2.3.4:\u00b2 of x",)), "s", (), ())] == ["bypass-port"]


def test_a_socket_that_another_agents_sidecar_is_meant_to_have_is_no_way_around() -> None:
    words = "127.0.0.2:8443 of envoy (pid 7), a stranger"
    mine = dataclasses.replace(FINE, examination=Examination(listening=(words,), strangers={words: "boot/77"}))
    neighbour = dataclasses.replace(FINE, agent="b", node_id="m", examination=Examination(meant=("boot/77",)))
    away = dataclasses.replace(neighbour, connected=False)
    other = dataclasses.replace(neighbour, examination=Examination(meant=("boot/78", "other/77")))

    def told(*running: Instance) -> list[str]:
        return [f.drift for f in examined(mine, "s", (), (), meant_by_others(mine, [mine, *running]))]

    assert told(neighbour) == []
    assert told() == told(away) == told(other) == ["bypass-port"]
    assert told(dataclasses.replace(neighbour, agent="a")) == ["bypass-port"]  # an agent's own word about its node
    nameless = dataclasses.replace(mine, examination=Examination(listening=(words,)))
    assert len(examined(nameless, "s", (), (), frozenset({"boot/77"}))) == 1
