"""The JSON Schema of the files accepts what the reader accepts."""

from __future__ import annotations

import pytest

from eastwest.policy.load import KINDS, json_schema


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_schemas_are_closed_and_self_contained(kind) -> None:
    schema = json_schema(kind)
    assert schema["$schema"].endswith("2020-12/schema")
    references = []

    def walk(node) -> None:
        if isinstance(node, dict):
            references.extend([node["$ref"]] if "$ref" in node else [])
            assert node.get("type") != "object" or "additionalProperties" in node
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(schema)
    assert references
    assert {r.removeprefix("#/$defs/") for r in references} == set(schema["$defs"])


def test_service_fields_and_choices() -> None:
    definitions = json_schema("services")["$defs"]
    assert definitions["Service"]["required"][:2] == ["service", "workload"]
    assert definitions["Listen"]["properties"]["address"]["default"] == "127.0.0.1"
    assert definitions["Sensitivity"]["enum"] == ["control", "mutate", "open", "read", "restricted-read"]
