from __future__ import annotations

import pytest

from eastwest.policy.load import load_estate
from eastwest.policy.table import compile_estate

ESTATE = """\
trust_domain: t.example
environments: [{name: prod, kind: vm}]
domains: [{name: d, owners: ["group:d"]}]
federation:
  - trust_domain: f.example
    workloads: [{spiffe_id: "spiffe://f.example/partner", environment: prod, domain: d, owner: "group:f",
                  attributes: {tenants: []}}]
"""
SERVICE = """\
service: {name}
workload: spiffe://t.example/prod/d/{workload}
owner: group:d
domain: d
listen: {{port: {port}, protocol: {protocol}, mtls: {mtls}}}
upstream: {{tcp: "127.0.0.1:9000"}}
{tenant}
operations:
"""


def workload(name, tenants=()):
    return (
        f"  - {{spiffe_id: spiffe://t.example/prod/d/{name}, environment: prod, domain: d, owner: 'group:d', "
        f"node: spiffe://t.example/spire/agent/n, selectors: ['unix:user:{name}'], profile: workload, "
        f"attributes: {{tenants: {list(tenants)}}}}}\n"
    )


@pytest.fixture
def compiled():
    """Compile services (name → operations as (name, match, sensitivity and more)) under policies."""

    def run(services, policies, *, workloads=(("a", ("acme",)), ("b", ("acme", "globex"))), **options):
        files = {"estate.yaml": ESTATE, "workloads/all.yaml": "workloads:\n" + workload("s")}
        files["workloads/all.yaml"] += "".join(workload(*one) for one in workloads)
        for port, (name, rows) in enumerate(services.items(), 8000):
            said = {"protocol": "http", "mtls": "strict", "tenant": "", "workload": "s", **options}
            head = SERVICE.format(name=name, port=port, **said)
            files[f"services/{name}.yaml"] = head + "".join(f"  - {{{row}}}\n" for row in rows)
        numbered = (f'@id("p{i}") @owner("group:d") @reason("r")\n{text}\n' for i, text in enumerate(policies))
        files["policies/all.cedar"] = "\n".join(numbered)
        return compile_estate(load_estate({name: text.encode() for name, text in files.items()}))

    return run
