"""Importing what was imported changes nothing, whatever the document, its order, and what people wrote since."""

from __future__ import annotations

import json
from random import Random

import pytest
from ruamel.yaml import YAML

from eastwest.policy.imports.merge import merge
from eastwest.policy.imports.openapi import read_openapi
from eastwest.policy.imports.servicefile import SUGGESTED, ServiceFile
from eastwest.policy.load import load_estate

ESTATE = {
    "estate.yaml": b"trust_domain: saas.example\nenvironments: [{name: prod, kind: vm}]\n"
    b"domains: [{name: commerce, owners: ['group:commerce']}]\n",
    "workloads/all.yaml": b"workloads:\n  - {spiffe_id: spiffe://saas.example/prod/commerce/storefront, "
    b"environment: prod, domain: commerce, owner: 'group:commerce', node: spiffe://saas.example/spire/agent/n, "
    b"selectors: ['unix:uid:1'], profile: workload}\n",
}
HEAD = """\
service: shop
workload: spiffe://saas.example/prod/commerce/storefront
owner: group:commerce
domain: commerce
listen: {port: 8449, protocol: http, mtls: strict}
upstream: {unix: /run/shop/app.sock}
"""
WORDS = ("a", "b", "users", "listUsers", "v1", "api", "A.b", "x~1", "$y", "c-d", "c_d", "ping")
PARAMETERS = ("id", "user", "user.id", "_x", "9", "User-Id", "a b", "id")
SENSITIVITIES = ("open", "read", "restricted-read", "mutate", "control")


def random_document(random):
    paths = {}
    for _ in range(random.randint(1, 15)):
        segments = [_segment(random) for _ in range(random.randint(1, 4))]
        item = paths.setdefault("/" + "/".join(segments), {})
        for method in random.sample(["get", "put", "post", "delete", "head", "patch"], random.randint(1, 3)):
            item[method] = _operation(random)
    return {"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": paths}


def _segment(random):
    if random.random() < 0.05:
        return random.choice(["{a}.json", "{a}-{b}", "a%20b", "..", "", "{+rest}", "a*"])
    return "{" + random.choice(PARAMETERS) + "}" if random.random() < 0.35 else random.choice(WORDS)


def _operation(random):
    operation = {}
    if random.random() < 0.5:
        operation["operationId"] = random.choice(["", "list-", "get/", "x."]) + random.choice(WORDS)
    if random.random() < 0.2:
        operation["x-eastwest-sensitivity"] = random.choice(SENSITIVITIES)
    if random.random() < 0.1:
        operation["x-eastwest-data"] = "personal"
    return operation


def run(text, document, **options):
    contents = read_openapi("api.json", json.dumps(document).encode())
    return merge(ServiceFile("services/shop.yaml", text.encode()), "shop", contents, **options)


def shuffled(random, value):
    if not isinstance(value, dict):
        return value
    return {key: shuffled(random, value[key]) for key in random.sample(list(value), len(value))}


def edited(random, text):
    """What people do to a file: comments, sensitivities, quotes, order, a name of their own."""
    lines = text.splitlines(keepends=True)
    for i, line in enumerate(lines):
        if random.random() < 0.2 and line.strip().startswith(SUGGESTED):
            lines[i] = line.replace(SUGGESTED, "sensitivity: ").replace("\n", random.choice(["\n", "  # said\n"]))
        elif random.random() < 0.1 and "- name: " in line:
            lines[i] = random.choice(["\n", "  # a comment\n", "      # deep\n"]) + line
        elif random.random() < 0.1 and 'path: "' in line and "'" not in line:
            lines[i] = line.replace('"', "'")
        elif random.random() < 0.1 and "match: " in line:
            lines[i] = line.replace("\n", "   # hm\n")
        elif random.random() < 0.1 and "- name: " in line:
            lines[i] = line.replace("\n", "-ours\n")
    return "".join(lines)


@pytest.mark.parametrize("seed", range(60))
def test_importing_again_changes_nothing(seed):
    random = Random(seed)
    document = random_document(random)
    first = run(HEAD, document)
    if not first.appeared:
        return
    load_estate(ESTATE | {"services/shop.yaml": first.text.encode()})
    mixed = shuffled(random, document)
    assert not run(first.text, mixed).is_changed
    names = {o.name: o.what for o in first.appeared}
    assert names.keys() == {o.name for o in run(HEAD, mixed).appeared} or first.left_out, (
        "same shapes: the first is kept"
    )
    by_hand = edited(random, first.text)
    again = run(by_hand, mixed)
    assert again.text == by_hand
    assert (again.appeared, again.vanished) == ([], [])


@pytest.mark.parametrize("seed", range(60))
def test_another_document_touches_only_what_differs(seed):
    random = Random(seed)
    before, after = random_document(random), random_document(random)
    for path in random.sample(list(before["paths"]), len(before["paths"]) // 2):
        after["paths"].setdefault(path, before["paths"][path])
    by_hand = edited(random, run(HEAD, before).text)
    if "operations:" not in by_hand:
        return
    outcome = run(by_hand, after)
    changed = {c.name for c in outcome.changed}
    old, new = (_operations(text) for text in (by_hand, outcome.text))
    for name, operation in old.items():
        assert name in new, "nothing is removed"
        if name not in changed:
            assert new[name] == operation
    assert new.keys() - old.keys() == {a.name for a in outcome.appeared}
    for line in by_hand.splitlines():
        if line.strip().startswith("#") and SUGGESTED not in line:
            assert line in outcome.text.splitlines()
    settled = run(outcome.text, after)
    assert not settled.is_changed
    pruned = run(outcome.text, after, prune=True)
    assert _operations(pruned.text).keys() == new.keys() - {v.name for v in outcome.vanished}
    load_estate(ESTATE | {"services/shop.yaml": pruned.text.encode()})


def _operations(text):
    return {o["name"]: o for o in YAML(typ="safe").load(text)["operations"] or ()}
