"""The estate of a large company as files: 500 services, 5,000 workloads, 10,000 operations at its full size.

Twenty domains in two environments. A service has list, read, create and delete operations per tenant, some that are
open, and reads that are not per tenant. Workloads of a domain differ in their tier and in the tenants that they serve,
so that policies fall apart into classes; a few are named by policies one by one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from bench.processes import TRUST_DOMAIN

_RESOURCES = ("invoices", "orders", "contacts", "reports", "settings")
_TIERS = ("web", "batch", "support", "core")
_TENANTS = ("acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "wonka")


@dataclass(frozen=True, slots=True)
class Company:
    """How large it is. Each service has twenty operations; each domain has the same number of everything."""

    domains: int = 20
    services: int = 25  # of each domain
    workloads: int = 250  # of each domain, those that are services included

    @property
    def operations(self) -> int:
        return self.domains * self.services * 20

    def files(self, *, edition: int = 0) -> dict[str, bytes]:
        """The estate by path. Editions differ in one policy: which tier of the first domain it admits, and why."""
        texts = {"estate.yaml": self._settings(), "profiles/workload.yaml": _PROFILE}
        for number in range(self.domains):
            name = f"domain-{number:02}"
            texts[f"workloads/{name}.yaml"] = self._workloads(number)
            for index in range(self.services):
                texts[f"services/{_service(number, index)}.yaml"] = _listener(number, index) + _operations(
                    number, index
                )
            policies = [self._policies(number, index) for index in range(self.services)]
            texts[f"policies/{name}.cedar"] = "\n".join(policies)
        texts["policies/company.cedar"] = _COMPANY
        if edition:
            tier = _TIERS[edition % 2]
            first = texts["policies/domain-00.cedar"].replace("its core tier", f"edition {edition}: its {tier} tier", 1)
            first = first.replace('principal.tier == "core"', f'principal.tier == "{tier}"', 1)
            texts["policies/domain-00.cedar"] = first
        return {path: text.encode() for path, text in texts.items()}

    def _settings(self) -> str:
        domains = "".join(f"  - {{name: domain-{d:02}, owners: [group:domain-{d:02}]}}\n" for d in range(self.domains))
        return _ESTATE.format(trust_domain=TRUST_DOMAIN, uid=os.geteuid()) + domains

    def _workloads(self, domain: int) -> str:
        rows = ["workloads:\n"]
        for index in range(self.workloads):
            attributes = f'tier: "{_TIERS[index % 4]}"'
            if index % 3:  # two thirds serve tenants; the sets repeat
                first = (domain + index) % len(_TENANTS)
                attributes += f', tenants: ["{_TENANTS[first]}", "{_TENANTS[(first + 3) % len(_TENANTS)]}"]'
            rows.append(
                f"  - spiffe_id: {workload(domain, index)}\n    environment: {_environment(index)}\n"
                f"    domain: domain-{domain:02}\n    owner: group:domain-{domain:02}\n"
                f"    node: group:{_environment(index)}-nodes\n    profile: workload\n"
                f'    selectors: ["unix:path:/srv/{domain:02}/{index:03}/envoy"]\n    attributes: {{{attributes}}}\n'
            )
        return "".join(rows)

    def _policies(self, domain: int, index: int) -> str:
        service, owner = _service(domain, index), f"group:domain-{domain:02}"
        named = workload((domain + 1) % self.domains, self.workloads - 1 - index % 5)
        return f"""@id("{service}-reads")
@owner("{owner}")
@reason("the domain reads what is of the tenants it serves")
permit (
  principal in Domain::"domain-{domain:02}",
  action in Action::"restricted-read",
  resource == Service::"{service}"
)
when {{ principal has tenants && principal.tenants.contains(context.tenant) }};

@id("{service}-writes")
@owner("{owner}")
@reason("its core tier keeps them")
permit (principal in Domain::"domain-{domain:02}", action in Action::"mutate", resource == Service::"{service}")
when {{
  principal has tier && principal.tier == "core" &&
  principal has tenants && principal.tenants.contains(context.tenant)
}};

@id("{service}-for-a-neighbour")
@owner("{owner}")
@reason("one workload of the next domain asks for its state")
permit (principal == Workload::"{named}", action == Action::"{service}:state:read", resource == Service::"{service}");
"""


def workload(domain: int, index: int) -> str:
    """The SPIFFE ID of a workload; the first of a domain are its services."""
    return f"spiffe://{TRUST_DOMAIN}/{_environment(index)}/domain-{domain:02}/workload-{index:03}"


def _environment(index: int) -> str:
    return "staging" if index % 5 == 4 else "prod"


def _service(domain: int, index: int) -> str:
    return f"service-{domain:02}-{index:02}"


def _listener(domain: int, index: int) -> str:
    return (
        f"service: {_service(domain, index)}\nworkload: {workload(domain, index)}\nowner: group:domain-{domain:02}\n"
        f"domain: domain-{domain:02}\nlisten: {{port: {10_000 + domain * 100 + index}, protocol: http, mtls: strict}}\n"
        f"upstream: {{tcp: 127.0.0.1:9000}}\nendpoints: [10.{domain}.{index}.1:8443, 10.{domain}.{index}.2:8443]\n"
        "tenant: {path: tenant}\noperations:\n"
    )


def _operations(domain: int, index: int) -> str:
    service = _service(domain, index)
    rows = []
    for kind in _RESOURCES[:4]:
        each = f"/v1/tenants/{{tenant}}/{kind}"
        rows += [
            (f"{kind}:list", "GET", each, "restricted-read"),
            (f"{kind}:read", "GET", f"{each}/{{id}}", "restricted-read"),
            (f"{kind}:create", "POST", each, "mutate"),
            (f"{kind}:delete", "DELETE", f"{each}/{{id}}", "mutate"),
        ]
    rows += [
        ("state:read", "GET", "/v1/state/{part}", "read"),
        ("state:replace", "PUT", "/v1/state/{part}", "control"),
        ("health:read", "GET", "/healthz", "open"),
        ("ready:read", "GET", "/readyz", "open"),
    ]
    return "".join(
        f'  - name: {service}:{name}\n    match: {{method: {method}, path: "{path}"}}\n    sensitivity: {sensitivity}\n'
        for name, method, path, sensitivity in rows
    )


_ESTATE = """trust_domain: {trust_domain}
naming: "/{{environment}}/{{domain}}/{{service}}"
environments:
  - {{name: prod, kind: vm}}
  - {{name: staging, kind: vm}}
node_groups:
  - {{name: prod-nodes, environment: prod, selectors: ["join_token:group:prod-nodes"]}}
  - {{name: staging-nodes, environment: staging, selectors: ["join_token:group:staging-nodes"]}}
administrators:
  - {{who: "unix:uid:{uid}", may: [everything]}}
domains:
"""
_PROFILE = """profile: workload
doors: [workload-api, spire-api]
environments: [prod, staging]
keys: [ec-p256]
lifetime: {default: 1h, max: 4h}
"""
_COMPANY = """@id("anyone-may-use-open-operations")
@owner("group:platform")
@reason("health carries nobody's data")
permit (principal, action in Action::"open", resource);

@id("nothing-across-environments")
@owner("group:platform")
@reason("rights do not flow between environments")
forbid (principal, action, resource) unless { principal.environment == resource.environment };
"""
