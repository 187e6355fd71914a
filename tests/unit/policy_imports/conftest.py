from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from eastwest.policy.imports.merge import merge
from eastwest.policy.imports.openapi import read_openapi
from eastwest.policy.imports.servicefile import ServiceFile

HERE = Path(__file__).parent
HEAD = """\
# who answers for it
service: shop
workload: spiffe://saas.example/prod/commerce/storefront
owner: group:commerce
domain: commerce
listen: {port: 8449, protocol: http, mtls: strict}
upstream: {unix: /run/shop/app.sock}
"""


@pytest.fixture
def document():
    """The bytes of a document of this folder."""
    return lambda name: (HERE / "documents" / name).read_bytes()


@pytest.fixture
def imported(document):
    """Import a document, or its text, into the text of a service file."""

    def run(source, text=HEAD, *, prune=False, **options):
        data = document(source) if "\n" not in source else source.encode()
        contents = read_openapi(source if "\n" not in source else "api.yaml", data, **options)
        return merge(ServiceFile("services/shop.yaml", text.encode()), "shop", contents, prune=prune)

    return run


@pytest.fixture
def operations():
    """The operations of a service file's text, by name."""
    return lambda text: {o["name"]: o for o in YAML(typ="safe").load(text)["operations"]}
