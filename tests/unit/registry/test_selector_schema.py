"""A selector that no attestor could produce is refused with what was probably meant."""

import pytest

from eastwest.spiffe.selector import Selector
from eastwest.spiffe.selector_schema import WELL_KNOWN, ImpossibleSelector

SHA256 = "ab" * 32

POSSIBLE = [
    "unix:uid:0",
    "unix:user:billing",
    "unix:path:/usr/bin/a b",
    f"unix:sha256:{SHA256}",
    "systemd:id:nginx.service",
    "k8s:ns:payments",
    "k8s:pod-label:app.kubernetes.io/name:billing",
    "k8s:pod-image-count:2",
    "k8s:image-signature:verified",
    "docker:label:com.example.name:foo",
    "docker:env:VAR=val",
    f"docker:image_config_digest:sha256:{SHA256}",
    "windows:user_name:NT AUTHORITY\\SYSTEM",
    "spiffe_id:spiffe://td.test/spire/agent/x",
    "join_token:group:prod-nodes",
    "x509pop:subject:cn:node1",
    "x509pop:ca:fingerprint:" + "0a" * 20,
    "x509pop:san:environment:prod",
    "http_challenge:hostname:node1.example.org",
    "aws_iid:sg:name:default",
    "k8s_psat:agent_ns:spire",
    "gcp_iit:project-id:p1",
    "slurm:job_id:3",
]
IMPOSSIBLE = [
    ("unx:uid:0", "did you mean unix:"),
    ("K8S:ns:x", "no attestor gives selectors of type 'K8S'"),
    ("unix:udi:0", "did you mean unix:uid:VALUE?"),
    ("unix:uid:abc", "use unix:user:NAME"),
    ("unix:uid:007", "can never match (write a number"),
    ("unix:uid", "has no value (write unix:uid:VALUE)"),
    ("unix:sha256:" + "AB" * 32, "64 hexadecimal digits"),
    ("unix:sha256:abcd", "64 hexadecimal digits"),
    ("unix:path:bin/x", "absolute path"),
    ("k8s:nss:payments", "did you mean k8s:ns:VALUE?"),
    ("k8s:pod-lable:app:x", "did you mean k8s:pod-label:VALUE?"),
    ("k8s:ns:Payments", "a Kubernetes name"),
    ("k8s:pod-label:app", "NAME:VALUE"),
    ("k8s:pod-image-count:two", "write a number"),
    ("x509pop:subject:on:node1", "did you mean x509pop:subject:cn:VALUE?"),
    ("x509pop:serialnumber:abc", "even number"),
    ("spiffe_id:td.test/x", "is not a spiffe_id selector"),
    ("join_token:grp:x", "join_token:group"),
]


@pytest.mark.parametrize("text", POSSIBLE)
def test_what_attestors_produce_is_accepted(text):
    selector = Selector.parse(text)
    WELL_KNOWN.check(selector)
    assert str(selector) == text


@pytest.mark.parametrize(("text", "told"), IMPOSSIBLE)
def test_what_none_could_produce_is_refused_with_a_suggestion(text, told):
    with pytest.raises(ImpossibleSelector) as caught:
        WELL_KNOWN.check(Selector.parse(text))
    assert told in str(caught.value)


def test_a_plug_ins_type_is_accepted_once_it_is_declared():
    selector = Selector.parse("acme:anything")
    with pytest.raises(ImpossibleSelector, match="selector_types in server"):
        WELL_KNOWN.check(selector)
    schemas = WELL_KNOWN.with_types(["acme", "unix"])
    schemas.check(selector)
    # Declaring a known type again does not make it less strict.
    with pytest.raises(ImpossibleSelector):
        schemas.check(Selector.parse("unix:uid:x"))
