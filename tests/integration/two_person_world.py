"""A small estate, edits of every kind, and a judge of its own: whether an edit needs a second person.

The judge asks the compiled tables call by call, for every call that there can be; for what no call shows, each edit
says it of itself.
"""

import copy
import itertools
import json
import os
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import cached_property

import msgspec

from eastwest.cli.admin import AdminClient
from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.policy.enforcement import Verdict
from eastwest.policy.load import load_estate
from eastwest.policy.operations import matcher, wire_form
from eastwest.policy.oracle import lookup
from eastwest.policy.problems import EstateInvalid
from eastwest.policy.table import compile_estate
from eastwest.policy.transaction import NoToken, Token
from eastwest.registry.administrators import NotAllowed
from eastwest.server.app import Server
from eastwest.server.config import ServerConfig, ServerFile, ServerPaths
from eastwest.server.gate import standing
from eastwest.server.init import init_server
from eastwest.spiffe.id import TrustDomain

TD = "t.example"
AUTHOR = f"unix:uid:{os.getuid()}"
OWNERS = {"red": "unix:uid:3001", "blue": "unix:uid:3002"}
WHOLE = "unix:uid:3003"
RISKY = {"control", "mutate", "restricted-read"}
STRICT = ("open", "read", "restricted-read", "mutate", "control")
HEAD = '@id("{}") @owner("group:x") @reason("r"){}\n'
CERTIFICATE = "0" * 64
NODES = ["join_token:group:nodes"]
WORDS = ["acme", "globex", "other", "all", "every", "bills", "x"]
OWN_TENANTS = "principal has tenants && context has tenant && principal.tenants.contains(context.tenant) };"
DOES = 'action in [Action::"desk:move:do", Action::"desk:close:do"]'
JOBS = f"spiffe://{TD}/prod/blue/jobs"


def workload(name, domain, environment="prod", **attributes):
    return {
        "spiffe_id": f"spiffe://{TD}/{environment}/{domain}/{name}",
        "environment": environment,
        "domain": domain,
        "owner": f"group:{domain}",
        "node": "group:nodes",
        "selectors": [f"unix:user:{name}", "unix:path:/bin/app"],
        "profile": "workload",
        "attributes": attributes,
    }


def operation(service, name, sensitivity, method, path, **more):
    match = {"method": method, "path": path}
    return {"name": f"{service}:{name}:do", "match": match, "sensitivity": sensitivity} | more


def service(name, domain, port, operations, **more):
    return {
        "service": name,
        "workload": f"spiffe://{TD}/prod/{domain}/{name}",
        "owner": f"group:{domain}",
        "domain": domain,
        "listen": {"port": port, "protocol": "http", "mtls": "strict"},
        "upstream": {"tcp": f"127.0.0.1:{port + 1000}"},
        "operations": operations,
    } | more


def base():
    """The estate as parts by path; ``policies`` by name."""
    bills = [
        operation("bills", "list", "restricted-read", "GET", "/t/{tenant}/bills"),
        operation("bills", "all", "control", "GET", "/t/all/bills"),
        operation("bills", "pay", "mutate", "POST", "/t/{tenant}/bills", demands=["step-up"]),
        operation("bills", "health", "open", "GET", "/health"),
    ]
    desk = [
        operation("desk", "see", "read", "GET", "/seats/{seat}"),
        operation("desk", "move", "mutate", "PUT", "/seats/{seat}"),
        operation("desk", "close", "control", "POST", "/close", demands=["step-up", "single-use"]),
    ]
    return {
        "estate.yaml": {
            "trust_domain": TD,
            "environments": [{"name": "prod", "kind": "vm"}, {"name": "staging", "kind": "vm"}],
            "domains": [{"name": one, "owners": [f"group:{one}"]} for one in OWNERS],
            "node_groups": [
                {
                    "name": "nodes",
                    "environment": "prod",
                    "selectors": ["join_token:group:nodes", "x509pop:subject:cn:a"],
                }
            ],
            "administrators": [
                {"who": AUTHOR, "may": ["everything"]},
                {"who": WHOLE, "may": ["everything"]},
                *({"who": who, "may": ["approvals"], "domains": [one]} for one, who in OWNERS.items()),
            ],
            "groups": [{"name": f"group:{one}", "members": [who]} for one, who in OWNERS.items()],
        },
        "profiles/p.yaml": {
            "profile": "workload",
            "doors": ["workload-api"],
            "keys": ["ec-p256"],
            "lifetime": {"default": "1h", "max": "2h"},
        },
        "workloads/w.yaml": {
            "workloads": [
                workload("bills", "red"),
                workload("desk", "blue"),
                workload("web", "red", tenants=["acme"]),
                workload("jobs", "blue", tenants=["acme", "globex"]),
                workload("idle", "blue"),
            ]
        },
        "services/bills.yaml": service("bills", "red", 8001, bills, tenant={"path": "tenant"}, recording="required"),
        "services/desk.yaml": service("desk", "blue", 8002, desk),
        "policies": {
            "tenants": (
                "",
                'permit (principal in Domain::"red", action, resource == Service::"bills") when { ' + OWN_TENANTS,
            ),
            "seats": (' @tenants("any")', 'permit (principal, action in Action::"read", resource == Service::"desk");'),
            "jobs": (
                ' @tenants("any")',
                f'permit (principal == Workload::"{JOBS}", {DOES}, resource);',
            ),
            "no-idle": ("", f'forbid (principal == Workload::"spiffe://{TD}/prod/blue/idle", action, resource);'),
        },
    }


def rendered(parts):
    files = {path: json.dumps(value).encode() for path, value in parts.items() if path != "policies"}
    texts = [HEAD.format(name, note) + text for name, (note, text) in parts["policies"].items()]
    return files | {"policies/all.cedar": "\n\n".join(texts).encode()}


# Each edit gives True where no call shows that a second person is needed and one is, else None.


def _services(parts):
    return [parts[path] for path in sorted(parts) if path.startswith("services/")]


def _some(random, parts):
    return random.choice(random.choice(_services(parts))["operations"])


def _worker(random, parts):
    return random.choice(parts["workloads/w.yaml"]["workloads"])


def add_permit(random, parts):
    who = random.choice(["principal", f"principal == {_named(random, parts)}", 'principal in Domain::"blue"'])
    what = random.choice(
        ["action", 'action in Action::"read"', 'action in Action::"open"', f"action == {_act(random, parts)}"]
    )
    where = random.choice(["resource", 'resource == Service::"desk"', 'resource == Service::"bills"'])
    note = random.choice(["", ' @tenants("any")'])
    parts["policies"]["added"] = (note, f"permit ({who}, {what}, {where});")


def _named(random, parts):
    return f'Workload::"{_worker(random, parts)["spiffe_id"]}"'


def _act(random, parts):
    return f'Action::"{_some(random, parts)["name"]}"'


def add_forbid(random, parts):
    parts["policies"]["added"] = ("", f"forbid (principal == {_named(random, parts)}, action, resource);")


def drop_policy(random, parts):
    del parts["policies"][random.choice(sorted(parts["policies"]))]


def trial(random, parts):
    name = random.choice(sorted(parts["policies"]))
    note, text = parts["policies"][name]
    parts["policies"][name] = (note + ' @mode("report") @until("2099-01-01")', text)


def sensitivity(random, parts):
    _some(random, parts)["sensitivity"] = random.choice(STRICT)


def rename(random, parts):
    chosen = _some(random, parts)
    chosen["name"] = chosen["name"].replace(":do", ":renamed")


def widen_template(random, parts):
    parts["services/bills.yaml"]["operations"][1]["match"]["path"] = random.choice(
        ["/t/all/{any}", "/x", "/t/every/bills"]
    )


def swap(random, parts):
    operations = random.choice(_services(parts))["operations"]
    one, other = random.sample(operations, 2)
    one["match"]["method"], other["match"]["method"] = other["match"]["method"], one["match"]["method"]


def drop_operation(random, parts):
    operations = random.choice(_services(parts))["operations"]
    operations.pop(random.randrange(len(operations)))


def drop_demands(random, parts):
    _some(random, parts).pop("demands", None)


def demand(random, parts):
    _some(random, parts)["demands"] = ["approval"]


def tenant_source(random, parts):
    parts["services/bills.yaml"]["tenant"] = random.choice([{"header": "x-tenant"}, {"claim": True}])


def tenants(random, parts):
    _worker(random, parts)["attributes"]["tenants"] = random.choice([["acme", "globex"], [], ["globex"]])


def move(random, parts):
    chosen = parts["workloads/w.yaml"]["workloads"][random.choice([3, 4])]
    chosen["domain"], chosen["owner"] = "red", "group:red"


def register(random, parts):
    domain = random.choice(["red", "blue"])
    parts["workloads/w.yaml"]["workloads"].append(workload("new", domain, tenants=random.choice([[], ["acme"]])))


def unregister(_random, parts):
    parts["workloads/w.yaml"]["workloads"].pop(2)


def new_service(random, parts):
    level = random.choice(STRICT)
    parts["services/new.yaml"] = service(
        "new", "blue", 8003, [operation("new", "read", level, "GET", "/seats/{seat}")]
    ) | {"workload": f"spiffe://{TD}/prod/blue/jobs", "upstream": {"tcp": "127.0.0.1:9055"}}
    parts["policies"]["new"] = ("", 'permit (principal, action, resource == Service::"new");')


def permissive(random, parts):
    random.choice(_services(parts))["listen"] |= {"mtls": "permissive", "until": "2099-01-01"}


def permissive_until(random, parts):
    permissive(random, parts)


def unrecorded(_random, parts):
    parts["services/bills.yaml"]["recording"] = "best-effort"


def owner(random, parts):
    random.choice(_services(parts))["owner"] = "group:green"


def selectors(random, parts):
    chosen = _worker(random, parts)
    chosen["selectors"] = random.choice(
        [chosen["selectors"][:1], [*chosen["selectors"], "unix:group:x"], ["unix:uid:9"]]
    )


def node(random, parts):
    _worker(random, parts)["node"] = f"spiffe://{TD}/spire/agent/x/1"


def node_group(random, parts):
    parts["estate.yaml"]["node_groups"][0]["selectors"] = random.choice(
        [["join_token:group:nodes"], ["join_token:group:nodes", "x509pop:subject:cn:a", "x509pop:subject:cn:b"]]
    )


def profile(random, parts):
    parts["profiles/p.yaml"]["lifetime"] = random.choice(
        [{"default": "2h", "max": "4h"}, {"default": "30m", "max": "1h"}]
    )


def administrators(random, parts):
    rows = parts["estate.yaml"]["administrators"]
    random.choice(
        [
            lambda: rows.append({"who": "unix:uid:3009", "may": ["read"]}),
            lambda: rows.pop(2),
            lambda: rows[3].pop("domains"),
        ]
    )()


def groups(random, parts):
    parts["estate.yaml"]["groups"][0]["members"].append("unix:uid:3002")


def prose(random, parts):
    name = random.choice(sorted(parts["policies"]))
    note, text = parts["policies"][name]
    parts["policies"][name] = (note, text + " // as agreed")


EDITS = [
    one
    for one in list(globals().values())
    if callable(one)
    and getattr(one, "__code__", None) is not None
    and one.__code__.co_varnames[:2] in {("random", "parts"), ("_random", "parts")}
    and not one.__name__.startswith("_")
]


@dataclass
class Edited:
    name: str
    parts: dict
    files: dict

    @cached_property
    def estate(self):
        return load_estate(self.files)

    @cached_property
    def tables(self):
        compiled = compile_estate(self.estate)
        return {i.service: s for s in compiled.sidecars.values() for i in s.inbound}

    @cached_property
    def classes(self):
        return {o["name"]: o["sensitivity"] for one in _services(self.parts) for o in one["operations"]}


def edited(random):
    """One edit, or two at once, of the base."""
    while True:
        parts = copy.deepcopy(base())
        chosen = random.sample(EDITS, random.choice([1, 1, 2]))
        try:
            for edit in chosen:
                edit(random, parts)
            files = rendered(parts)
            compile_estate(load_estate(files))
        except (EstateInvalid, LookupError):
            continue  # an edit that makes no estate is none
        return Edited("+".join(edit.__name__ for edit in chosen), parts, files)


def needs_second(before: Edited, after: Edited, past=()) -> str:
    """Why a second person is needed, or "". ``past`` are versions that were in force before."""
    return _by_calls(before, after, past) or _by_facts(before.parts, after.parts)


def _classes(parts):
    return {o["name"]: o["sensitivity"] for one in _services(parts) for o in one["operations"]}


def _by_calls(before, after, past):
    estates = before.estate, after.estate
    tables, classes = (before.tables, after.tables), (before.classes, after.classes)

    def former(name, *asked):
        """The strictest class that somebody's version had for what has none before."""
        told = [] if classes[0].get(name) else [one.classes.get(name) for one in past]
        was = lookup(tables[0][asked[1]], *asked)[3] if asked[1] in tables[0] else ""
        if not classes[0].get(was):
            told += [one.classes.get(lookup(one.tables[asked[1]], *asked)[3]) for one in past if asked[1] in one.tables]
        return max((one for one in told if one), key=STRICT.index, default=None)

    callers = {caller.spiffe_id for estate in estates for caller in estate.callers}
    for one in estates[1].services:
        known = [s for estate in estates for s in estate.services if s.service == one.service]
        names = sorted({o.name for s in known for o in s.operations})
        routes = {route for s in known for o in s.operations for route in _routes(o)}
        tokens = [None, *itertools.product(names, ["", "somebody"], ["", "acme", "globex", "other", "all"])]
        headers = [[], [("x-tenant", "acme")], [("x-tenant", "globex")], [("x-tenant", "other")]]
        if not any(s.tenant is not None and s.tenant.header for s in known):
            headers = headers[:1]
        kept = {}
        for method, path in sorted(routes):
            asked = JOBS, one.service, method, path, [], NoToken.MISSING, CERTIFICATE
            names = [lookup(table[one.service], *asked)[3] if one.service in table else "" for table in tables]
            now, kept[method, path] = classes[1].get(names[1]), former(names[1], *asked) if names[1] else None
            was = max((c for c in (classes[0].get(names[0]), kept[method, path]) if c), key=STRICT.index, default="")
            if was in RISKY and now and STRICT.index(now) < STRICT.index(was):
                return f"{method} {path} is {now}, and was {was}"
        for (method, path), header, token, caller in itertools.product(routes, headers, tokens, sorted(callers)):
            asked = caller, one.service, method, path, header, _token(token, caller, one.service), CERTIFICATE
            now = lookup(tables[1][one.service], *asked)
            if now[0] is not Verdict.ALLOW:
                continue
            was = lookup(tables[0][one.service], *asked) if one.service in tables[0] else (Verdict.DENY, "", "", "")
            told = [classes[0].get(now[3]), classes[0].get(was[3]), classes[1].get(now[3]), kept[method, path]]
            worst = max((c for c in told if c), key=STRICT.index)
            renamed = now[3] not in classes[0] and one.service in tables[0]
            if (was[0] is not Verdict.ALLOW or renamed) and worst in RISKY:
                return f"{asked[:5]} {token} {now[3]}"
    return ""


def _routes(operation):
    method, template = wire_form(matcher(operation))
    words = [[text] if not name else WORDS for text, name in template.segments]
    return [(method, "/" + "/".join(chosen)) for chosen in itertools.product(*words)]


def _token(told, caller, service):
    if told is None:
        return NoToken.MISSING
    action, approver, tenant = told
    return Token(
        id="j",
        transaction="t",
        caller=caller,
        certificate=CERTIFICATE,
        action=action,
        resource=service,
        origin=caller,
        expires=1,
        tenant=tenant,
        approver=approver,
    )


def _by_facts(before, after):
    """What no call shows."""
    classes = [_classes(one) for one in (before, after)]
    for name, was in classes[0].items():
        now = classes[1].get(name)
        if now and was in RISKY and STRICT.index(now) < STRICT.index(was):
            return f"{name} is {now}"
    old = {one["service"]: one for one in _services(before)}
    for one in _services(after):
        was = old.get(one["service"])
        risky = {
            classes[side].get(o["name"]) for s in (was, one) if s for o in s["operations"] for side in (0, 1)
        } & RISKY
        if not risky:
            continue
        if one["listen"]["mtls"] == "permissive" and (was is None or was["listen"]["mtls"] == "strict"):
            return "permissive"
        if was and (was["owner"], was["domain"]) != (one["owner"], one["domain"]):
            return "owner"
        if was and was.get("recording") == "required" and one.get("recording") != "required":
            return "recording"
        demands = {o["name"]: o.get("demands", []) for o in one["operations"]}
        for o in was["operations"] if was else ():
            kept = o["name"] in demands and "single-use" not in demands[o["name"]]
            if (
                "single-use" in o.get("demands", [])
                and kept
                and {classes[0].get(o["name"]), classes[1].get(o["name"])} & RISKY
            ):
                return "single use"
    if _identity(before, after, classes):
        return "identity"
    rows = [{json.dumps(r, sort_keys=True) for r in one["estate.yaml"]["administrators"]} for one in (before, after)]
    if rows[0] != rows[1]:
        gone = rows[0] - rows[1]
        if rows[1] - rows[0] or any({"approvals", "everything"} & set(json.loads(r)["may"]) for r in gone):
            return "administrators"
    return "groups" if before["estate.yaml"]["groups"] != after["estate.yaml"]["groups"] else ""


def _identity(before, after, classes):
    loose = set()
    for one in after["workloads/w.yaml"]["workloads"]:
        was = next((w for w in before["workloads/w.yaml"]["workloads"] if w["spiffe_id"] == one["spiffe_id"]), None)
        if was is None:
            continue
        group = [set(side["estate.yaml"]["node_groups"][0]["selectors"]) for side in (before, after)]
        lives = [side["profiles/p.yaml"]["lifetime"]["max"] for side in (before, after)]
        longer = ["1h", "2h", "4h"].index(lives[1]) > ["1h", "2h", "4h"].index(lives[0])
        others = not set(was["selectors"]) <= set(one["selectors"]) or was["node"] != one["node"]
        if others or longer or (was["node"] == "group:nodes" and not group[0] <= group[1]):
            loose.add(one["spiffe_id"])
    for one in _services(after):
        if one["workload"] in loose and any(classes[1].get(o["name"]) in RISKY for o in one["operations"]):
            return True
    compiled = compile_estate(load_estate(rendered(after)))
    for sidecar in compiled.sidecars.values():
        for operation in (o for inbound in sidecar.inbound for o in inbound.operations):
            risky = {classes[0].get(operation.name), classes[1].get(operation.name)} & RISKY
            for cell in operation.cells if risky else ():
                if '"allow"' in json.dumps(_plain(cell)) and loose & set(cell.callers):
                    return True
    return False


def _plain(value):
    return msgspec.to_builtins(value)


class World:
    """A server in this process with the base in force; the author calls over the admin socket."""

    def __init__(self, data, clock=None) -> None:
        self.data = data
        self.clock = clock or SystemClock()
        self.stack = AsyncExitStack()

    async def __aenter__(self):
        file = ServerFile(trust_domain=TD, agent_port=0, health_port=0)
        if not self.data.exists():
            await init_server(self.data, file, self.clock, SystemEntropy())
        config = ServerConfig(ServerPaths(self.data), TrustDomain(TD), file)
        self.server = Server(config, self.clock, SystemEntropy())
        await self.server.start(self.stack)
        self.server.changes.impact = None  # a replay for each request takes a process of its own
        self.admin = AdminClient.connect(self.data)
        return self

    async def __aexit__(self, *exception):
        await self.admin.__aexit__(None, None, None)
        await self.stack.aclose()

    def administrator(self, name):
        server = self.server
        found = standing(name, server.administrators, server.registry, self.clock.now())
        assert found is not None, name
        return found

    async def second(self, change):
        """The words of all whose are needed; nobody of them is the author."""
        for who in (*OWNERS.values(), WHOLE):
            found = await self.server.changes.get(change)
            if found.state == "pending" and standing(
                who, self.server.administrators, self.server.registry, self.clock.now()
            ):
                with suppress(NotAllowed):
                    await self.server.changes.approve(change, self.administrator(who), "agreed")
        return (await self.server.changes.get(change)).state
