"""Mistakes in who approves: told with the file and the line."""

import json

import pytest

from eastwest.policy.load import load_estate
from eastwest.policy.problems import EstateInvalid, Severity

HEAD = """trust_domain: t.example
environments: [{name: prod, kind: vm}]
domains: [{name: red, owners: [group:red]}, {name: blue, owners: [group:blue]}]
node_groups: [{name: nodes, environment: prod, selectors: ["join_token:group:nodes"]}]
"""
WORKLOAD = {
    "spiffe_id": "spiffe://t.example/prod/red/shop",
    "environment": "prod",
    "domain": "red",
    "owner": "group:red",
    "node": "group:nodes",
    "selectors": ["unix:uid:1"],
    "profile": "workload",
}
SERVICE = {
    "service": "shop",
    "workload": WORKLOAD["spiffe_id"],
    "owner": "group:red",
    "domain": "red",
    "listen": {"port": 8001, "protocol": "http", "mtls": "strict"},
    "upstream": {"tcp": "127.0.0.1:9001"},
    "operations": [{"name": "shop:x:do", "match": {"method": "GET", "path": "/x"}, "sensitivity": "control"}],
}
ROOT = '  - {who: "unix:uid:0", may: [everything]}\n'
RED = '  - {who: "unix:uid:1", may: [approvals], domains: [red]}\n'
BLUE = '  - {who: "unix:uid:2", may: [approvals], domains: [blue]}\n'
READER = '  - {who: "unix:uid:3", may: [read]}\n'


def found(administrators, rest):
    text = f"{HEAD}administrators:\n{administrators}{rest}" if administrators else HEAD + rest
    files = {"workloads/w.yaml": {"workloads": [WORKLOAD]}, "services/shop.yaml": SERVICE}
    encoded = {name: json.dumps(value).encode() for name, value in files.items()} | {"estate.yaml": text.encode()}
    try:
        problems = load_estate(encoded).notes
    except EstateInvalid as error:
        problems = error.problems
    lines = text.splitlines()
    for problem in problems:
        assert problem.where.file == "estate.yaml"
        assert problem.where.line
    return [(p.severity, p.message, lines[p.where.line - 1].strip()) for p in problems if p.severity != Severity.NOTE]


@pytest.mark.parametrize(
    ("administrators", "rest", "severity", "message", "line"),
    [
        (
            ROOT + READER,
            'groups:\n  - name: group:red\n    members:\n      - "unix:uid:0"\n      - "unix:uid:3"\n',
            Severity.WARNING,
            "unix:uid:3 of group:red is no administrator who may approve",
            '- "unix:uid:3"',
        ),
        (
            ROOT,
            'groups:\n  - {name: group:red, members: ["unix:uid:0", "unix:uid:0"]}\n',
            Severity.WARNING,
            "unix:uid:0 stands twice in group:red",
            '- {name: group:red, members: ["unix:uid:0", "unix:uid:0"]}',
        ),
        (
            ROOT + BLUE,
            'groups:\n  - {name: group:red, members: ["unix:uid:2"]}\n',
            Severity.WARNING,
            "nobody of group:red may approve for domain red, so others decide about its services",
            '- {name: group:red, members: ["unix:uid:2"]}',
        ),
        (
            ROOT,
            'groups:\n  - {name: group:green, members: ["unix:uid:0"]}\n',
            Severity.WARNING,
            "no service has group:green as its owner, so its members are asked for nothing",
            '- {name: group:green, members: ["unix:uid:0"]}',
        ),
        (
            ROOT,
            'groups:\n  - {name: group:red, members: ["unix:uid:0"]}\n  - {members: ["unix:uid:0"], name: group:red}\n',
            Severity.ERROR,
            "group:red is declared twice under groups",
            '- {members: ["unix:uid:0"], name: group:red}',
        ),
        (
            ROOT + READER,
            "changes:\n  two_person: always\n",
            Severity.ERROR,
            "two_person is always, and only unix:uid:0 may approve: nothing risky could ever be changed",
            "two_person: always",
        ),
        (
            "",
            "changes: {two_person: always}\n",
            Severity.ERROR,
            "two_person is always, and no administrator may approve: nothing risky could ever be changed",
            "changes: {two_person: always}",
        ),
        (
            ROOT + BLUE,
            "changes: {two_person: always}\n",
            Severity.WARNING,
            "two_person is always, and only unix:uid:0 may approve for domain red",
            "changes: {two_person: always}",
        ),
    ],
)
def test_a_mistake_is_told_where_it_stands(administrators, rest, severity, message, line) -> None:
    assert found(administrators, rest) == [(severity, message, line)]


def test_what_is_right_is_told_nothing() -> None:
    rest = 'groups:\n  - {name: group:red, members: ["unix:uid:1"]}\nchanges: {two_person: always}\n'
    assert found(ROOT + RED, rest) == []
