"""gRPC methods from descriptor sets."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodOptions

from eastwest.policy.imports.merge import merge
from eastwest.policy.imports.model import DocumentInvalid
from eastwest.policy.imports.protobuf import read_protobuf
from eastwest.policy.imports.servicefile import ServiceFile


def descriptors(*services):
    """Descriptors of ``(package, service, methods)``, one file each."""
    made = FileDescriptorSet()
    for package, name, methods in services:
        file = made.file.add(name=f"{name.lower()}.proto", package=package)
        service = file.service.add(name=name)
        for method in methods:
            one = service.method.add(name=method, input_type=".In", output_type=".Out")
            if method.startswith("Peek"):
                one.options.idempotency_level = MethodOptions.NO_SIDE_EFFECTS
    return made.SerializeToString()


NOTIFY = descriptors(
    ("notify.v1", "Notify", ["Send", "ListMessages", "PeekQueue"]),
    ("notify.v1", "MessageService", ["ListMessages", "HTTPPing"]),
    ("google.longrunning", "Operations", ["GetOperation"]),
)
FILE = "service: notify\noperations:\n  - name: notify:web:read\n    match: {method: GET, path: /web}\n"


def test_methods_become_operations():
    contents = read_protobuf("api.binpb", NOTIFY)
    assert [(o.grpc, o.names[0], o.suggestion) for o in contents.operations] == [
        ("notify.v1.Notify/Send", ("notify", "send"), "mutate"),
        ("notify.v1.Notify/ListMessages", ("messages", "list"), "read"),
        ("notify.v1.Notify/PeekQueue", ("queue", "peek"), "read"),
        ("notify.v1.MessageService/ListMessages", ("messages", "list"), "read"),
        ("notify.v1.MessageService/HTTPPing", ("ping", "http"), "mutate"),
        ("google.longrunning.Operations/GetOperation", ("operation", "get"), "read"),
    ]


def test_packages_and_services_limit_what_is_taken():
    def methods(**limits):
        return [o.grpc for o in read_protobuf("f", NOTIFY, **limits).operations]

    assert methods(packages=["google.longrunning"]) == ["google.longrunning.Operations/GetOperation"]
    assert methods(services=["notify.v1.Notify"])[0] == "notify.v1.Notify/Send"
    with pytest.raises(DocumentInvalid, match=r"no package 'notify\.v2'"):
        methods(packages=["notify.v2"])
    with pytest.raises(DocumentInvalid, match="no gRPC service 'Notify'"):
        methods(services=["Notify"])


def test_web_operations_of_the_same_file_are_not_missed():
    contents = read_protobuf("f", NOTIFY, packages=["notify.v1"])
    outcome = merge(ServiceFile("services/notify.yaml", FILE.encode()), "notify", contents, prune=True)
    assert outcome.text.startswith(FILE)
    assert outcome.vanished == []
    assert [a.name for a in outcome.appeared] == [
        "notify:notify:send",
        "notify:notify-messages:list",
        "notify:queue:peek",
        "notify:messages:list",
        "notify:ping:http",
    ]
    again = merge(ServiceFile("services/notify.yaml", outcome.text.encode()), "notify", contents)
    assert not again.is_changed
    fewer = read_protobuf("f", descriptors(("notify.v1", "Notify", ["Send"])))
    gone = merge(ServiceFile("services/notify.yaml", outcome.text.encode()), "notify", fewer)
    assert len(gone.vanished) == 4
    assert not gone.is_changed


def test_a_moved_method_keeps_its_words():
    text = merge(
        ServiceFile("f", FILE.encode()), "notify", read_protobuf("f", NOTIFY, services=["notify.v1.Notify"])
    ).text
    text = text.replace("# suggested: sensitivity: mutate", "sensitivity: control")
    moved = read_protobuf("f", descriptors(("notify.v2", "Notify", ["Send", "ListMessages", "PeekQueue"])))
    outcome = merge(ServiceFile("f", text.encode()), "notify", moved)
    assert ("notify:notify:send", "notify.v1.Notify/Send", "notify.v2.Notify/Send") in [
        (c.name, c.before, c.after) for c in outcome.changed
    ]
    assert "match: {grpc: notify.v2.Notify/Send}\n    sensitivity: control\n" in outcome.text


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff", b"openapi: 3.1.0", b"\x0a\x00"])
def test_what_is_no_descriptor_set_is_refused(data):
    with pytest.raises(DocumentInvalid, match="not a set of protobuf descriptors"):
        read_protobuf("api.binpb", data)


def test_descriptors_without_services_say_so():
    only = FileDescriptorSet()
    only.file.add(name="types.proto")
    contents = read_protobuf("f", only.SerializeToString())
    assert [n.message for n in contents.notes] == ["the descriptors have no services"]
    twice = read_protobuf("f", descriptors(("a", "S", ["M"]), ("a", "S", ["M"])))
    assert [out.reason for out in twice.left_out] == ["the same method is in two files"]
