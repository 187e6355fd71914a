"""Small documents that would be large if written out, and large ones of next to nothing: refused, at little cost."""

from __future__ import annotations

import time

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from eastwest.policy.imports import protobuf
from eastwest.policy.imports.model import DocumentInvalid
from eastwest.policy.imports.openapi import read_openapi
from eastwest.policy.imports.protobuf import read_protobuf
from eastwest.policy.imports.source import MAX_MERGED, MAX_NODES, read_document

LAUGHS = "\n".join(
    ["x-0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"x-{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 8)]
)
"""``*x7`` is a hundred million texts, which take half a minute to write out."""


def said(data, read=read_openapi) -> str:
    """What is complained about, found at little cost."""
    started = time.process_time()
    with pytest.raises(DocumentInvalid) as caught:
        read("f", data.encode() if isinstance(data, str) else data)
    assert time.process_time() - started < 2
    return "\n".join(map(str, caught.value.problems))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("openapi: *x7", "OpenAPI 'a list' is not read"),
        ("swagger: *x7", "Swagger a list is not read"),
        ("paths: {/a: {get: {x-eastwest-demands: [*x7]}}}", "demands cannot be 'a list'"),
        ("paths: {/a: {get: {x-eastwest-demands: *x7}}}", "demands cannot be 'a list'"),
        ("paths: {/a: {get: {parameters: [{in: *x7, x-eastwest-tenant: true}]}}}", "cannot be in the a list"),
        ("paths: {/a: {get: {parameters: [{in: path, name: *x7, x-eastwest-tenant: true}]}}}", "is not a path param"),
        ("servers: [{url: '/{a}', variables: {a: {default: *x7}}}]", "'/{a}' is not a base path"),
        ("paths: {/a: {$ref: *x7}, b: 1}", "'b' must be a mapping"),
    ],
)
def test_values_that_repeat_themselves_are_not_written_out(body, complaint):
    head = "" if body.startswith(("openapi", "swagger")) else "openapi: 3.2.0\n"
    assert complaint in said(f"{LAUGHS}\n{head}{body}")


def test_a_reference_that_repeats_itself_is_left_out():
    contents = read_openapi("f", f"{LAUGHS}\nopenapi: 3.2.0\npaths: {{/a: {{$ref: *x7}}}}".encode())
    assert contents.left_out[0].reason.startswith("'a list' is in another document")


def test_everything_that_is_merged_counts():
    many = MAX_MERGED // 100
    empty = "x: &l [" + "{}, " * many + "]\nm:\n" + "- {<<: *l}\n" * 101
    assert f"merges (<<) of more than {MAX_MERGED} keys" in said(empty, read_document)
    keys = "x: &k {" + "".join(f"k{i}: 1, " for i in range(many)) + "}\nm:\n" + "- {<<: *k}\n" * 101
    assert f"merges (<<) of more than {MAX_MERGED} keys" in said(keys, read_document)


@pytest.mark.parametrize("value", ["[a, b]", "a", "[{a: 1}, b]", ""])
def test_only_mappings_are_merged(value):
    assert "<< must name a mapping" in said(f"m: {{<<: {value}}}", read_document)


def test_json_is_bounded():
    assert f"more than {MAX_NODES} values" in said('{"a": [' + "[]," * (MAX_NODES + 1) + "[]]}")
    assert "too many digits" in said('{"openapi": ' + "1" * 5000 + "}")
    assert "nested deeper" in said('{"a": ' + "[" * 100_000)


def test_a_document_of_one_operation_written_many_times():
    """Each path of few bytes stands for a thousand operations."""
    methods = ", ".join(f"M{i}: *o" for i in range(1000))
    body = f"openapi: 3.2.0\nx-o: &o {{}}\nx-m: &m {{{methods}}}\npaths:\n"
    body += "".join(f"  /a{i}: {{additionalOperations: *m}}\n" for i in range(1000))
    started = time.process_time()
    with pytest.raises(DocumentInvalid, match="refers to itself too often"):
        read_openapi("f", body.encode())
    assert time.process_time() - started < 20


def test_long_words_are_not_compared():
    word = "x" * 5_000_000
    assert "did you mean" not in said(f'{{"openapi": "3.2.0", "x-eastwest-{word}": 1}}')
    assert "is not known here" in said(f"a: *{word[:100_000]}", read_document)


def field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize("number", [4, 6])
def test_descriptors_of_nothing_are_counted_before_they_are_parsed(monkeypatch, number):
    """Messages and services of two bytes each."""
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 10_000)
    file = field(1, field(1, b"a.proto") + field(number, b"") * 10_001)
    assert "more than 10000 fields" in said(file, read_protobuf)


def test_options_are_not_parsed():
    """Nor anything else that is not looked at: a blob that is no message at all passes."""
    method = field(1, b"Get") + field(2, b"\xff") + field(4, bytes([34 << 3 & 0x7F | 0x80, 34 >> 4, 1]))
    service = field(1, b"S") + field(3, b"\xff\xff") + field(2, method)
    file = field(1, field(1, b"a.proto") + field(8, b"\xff\xff") + field(6, service))
    contents = read_protobuf("f", file)
    assert [(one.grpc, one.suggestion) for one in contents.operations] == [("S/Get", "read")]


def test_methods_are_counted_as_they_are_read(monkeypatch):
    monkeypatch.setattr(protobuf, "MAX_OPERATIONS", 100)
    for names in ([f"M{i}" for i in range(101)], ["M"] * 101, ["!"] * 101):
        made = FileDescriptorSet()
        service = made.file.add(name="a.proto", package="a").service.add(name="S")
        for name in names:
            service.method.add(name=name)
        assert "more than 100 methods" in said(made.SerializeToString(), read_protobuf)


@pytest.mark.parametrize(
    "inner",
    [b"\x0b\x0c", b"\x0a\x05ab", b"\x08", b"\x80" * 11, b"\x00\x00", b"\x09abc", b"\x0d"],
)
def test_what_is_no_message_is_refused(inner):
    """Groups, lengths beyond the end, numbers without one, and field 0."""
    assert "not a set of protobuf descriptors" in said(field(1, field(1, b"a") + field(6, inner)), read_protobuf)


def test_names_without_bound_are_left_out():
    file = field(1, field(1, b"a.proto") + field(6, field(1, b"S" * 1_000_000) + field(2, field(1, b"M"))))
    (out,) = read_protobuf("f", file).left_out
    assert out.reason == "longer than 512 characters"
    assert len(str(out)) < 1000
