"""What other meshes make of exported objects, after their documentation and sources: models to hold exports against.

Istio: istio.io/latest/docs/reference/config/security/authorization-policy. Linkerd: linkerd2-proxy's
``linkerd/http/route`` (a path expression must match the whole path; a route is found by method and path). Where they
leave room, the models allow more than the originals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ruamel.yaml import YAML

UNRESERVED = re.compile(r"[A-Za-z0-9._~-]+")


def documents(text):
    return list(YAML(typ="safe").load_all(text))


class Istio:
    def __init__(self, text):
        self.policies = documents(text)

    def matches(self, name, port, caller, method, path, headers):
        """All (paths template) by which the request is allowed; empty: denied."""
        path = path.partition("?")[0]
        found = []
        for policy in self.policies:
            if not re.fullmatch(rf"eastwest-{re.escape(name)}(-\d+)?", policy["metadata"]["name"]):
                continue
            assert policy["spec"]["action"] == "ALLOW"
            for rule in policy["spec"].get("rules", ()):
                principals = [p for source in rule["from"] for p in source["source"]["principals"]]
                if caller.removeprefix("spiffe://") not in principals:
                    continue
                if not all(self._condition(condition, headers) for condition in rule.get("when", ())):
                    continue
                found += [hit for to in rule["to"] for hit in self._operation(to["operation"], port, method, path)]
        return found

    def _operation(self, operation, port, method, path) -> Iterator[str]:
        if str(port) not in operation["ports"]:
            return
        if "methods" not in operation:
            assert set(operation) == {"ports"}
            yield ""
            return
        if method not in operation["methods"] or any(self._path(p, path) for p in operation.get("notPaths", ())):
            return
        yield from (p for p in operation["paths"] if self._path(p, path))

    def _path(self, template, path):
        if "{*}" in template:
            expression = re.escape(template).replace(re.escape("{*}"), "[^/]+")
            return re.fullmatch(expression, path, re.DOTALL)
        assert "*" not in template
        return template == path

    def _condition(self, condition, headers):
        name = re.fullmatch(r"request\.headers\[(.+)\]", condition["key"])[1]
        values = [value for key, value in headers if key.lower() == name]
        there = ",".join(values) if values else None
        if "notValues" in condition and any(self._value(v, there) for v in condition["notValues"]):
            return False
        return "values" not in condition or any(self._value(v, there) for v in condition["values"])

    def _value(self, pattern, value):
        if pattern == "*":
            return value is not None
        if value is None:
            return False
        if pattern.startswith("*"):
            return value.endswith(pattern[1:])
        return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern


class Linkerd:
    def __init__(self, text):
        self.objects = documents(text)
        self.identities = {
            o["metadata"]["name"]: o["spec"]["identities"] for o in self.objects if o["kind"] == "MeshTLSAuthentication"
        }

    def routes(self, server, method, path):
        """Names of the routes that match."""
        path = path.partition("?")[0]
        for route in self.objects:
            if route["kind"] != "HTTPRoute" or route["spec"]["parentRefs"][0]["name"] != server:
                continue
            matches = [m for rule in route["spec"]["rules"] for m in rule["matches"]]
            if any(m["method"] == method and self._path(m["path"], path) for m in matches):
                yield route["metadata"]["name"]

    def authorized(self, kind, name):
        """Who may use the route or server."""
        for policy in self.objects:
            if policy["kind"] == "AuthorizationPolicy" and policy["spec"]["targetRef"] == {
                "group": "policy.linkerd.io",
                "kind": kind,
                "name": name,
            }:
                (reference,) = policy["spec"]["requiredAuthenticationRefs"]
                yield from self.identities[reference["name"]]

    def allows(self, service, caller, method, path):
        server = f"eastwest-{service}"
        if caller in self.authorized("Server", server):
            return True
        return any(caller in self.authorized("HTTPRoute", name) for name in self.routes(server, method, path))

    def _path(self, match, path):
        if match["type"] == "Exact":
            return match["value"] == path
        return re.fullmatch(match["value"].removeprefix("^").removesuffix("$"), path, re.DOTALL)
