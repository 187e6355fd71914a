"""Each mistake a person can make in an estate is told with its place and its fix."""

from __future__ import annotations

import pytest

from eastwest.policy.estate import Sensitivity
from eastwest.policy.load import load_estate
from eastwest.policy.problems import EstateInvalid, Severity
from eastwest.policy.table import compile_estate

BILLING, NOTIFICATION, ADMIN = "services/billing.yaml", "services/notification.yaml", "services/admin.yaml"
ALL, TOP, PROFILE = "workloads/all.yaml", "estate.yaml", "profiles/workload.yaml"
REPORTING = "services/reporting.yaml"
COMMERCE = "policies/commerce.cedar"
NOTIFICATION_WAIVER = "waivers/notification-plaintext.yaml"
EVERYTHING = "may: [everything]}"
LIMITED = 'may: [everything]}}\n  - {{who: "spiffe://saas.example/prod/platform/ci", may: [{}], {}}}'
CI_ROW = '\n  - {{who: "spiffe://saas.example/prod/platform/ci", may: [{}], {}}}'
REPORTING_ID = "spiffe://saas.example/prod/commerce/reporting"

ERRORS = [
    # fields, types and values
    (BILLING, "owner:", "ownr:", "3:1: unknown field 'ownr' (did you mean 'owner'?)"),
    (BILLING, "owner:", "ownr:", "1:1: field 'owner' is missing (add owner: ...)"),
    (BILLING, "mtls: strict", "mtls: strct", "5:44: field 'mtls' cannot be 'strct' (did you mean 'strict'?)"),
    (BILLING, "8443", '"8443"', "5:16: field 'port' must be a whole number, not '8443' (write 1 to 65535)"),
    (BILLING, "8443", "84430", "5:16: field 'port' is 84430, outside 1 to 65535 (write 1 to 65535)"),
    (BILLING, "8443", "", "field 'port' has no value (write one, or remove the field)"),
    (BILLING, "8443", "[1]", "5:16: field 'port' must be one value, not a list"),
    (BILLING, "domain: commerce", "domain: 5", "4:9: field 'domain' must be a text, not 5 (write \"5\")"),
    (BILLING, "listen: {", "listen: x #", "5:9: field 'listen' must be a mapping, not a single value"),
    (BILLING, "restricted-read", "restricted_read", "11:18: field 'sensitivity' cannot be 'restricted_read'"),
    (ALL, '["unix:user:storefront"]', "x", "7:16: field 'selectors' must be a list, not a single value"),
    (ALL, '["unix:user:storefront"]', "[]", "7:16: field 'selectors' is empty (list at least 1)"),
    (ALL, "workloads:", "workload:", "1:1: unknown field 'workload' (did you mean 'workloads'?)"),
    (ALL, None, "- a", "1:1: this must be a mapping, not a list (write workloads)"),
    (TOP, "kind: vm", "kind: vms", "4:24: field 'kind' cannot be 'vms' (did you mean 'vm'?)"),
    (PROFILE, "ec-p256", "rsa-2048", "4:8: an item of field 'keys' cannot be 'rsa-2048' (known: ec-p256,"),
    # where a tenant is read
    (
        BILLING,
        "{path: tenant}",
        "{path: tenat}",
        "7:16: no operation of 'billing' has the parameter {tenat}, so no call",
    ),
    (BILLING, "{path: tenant}", "{path: tenat}", "would be held to a tenant (did you mean {tenant}?)"),
    (BILLING, "{path: tenant}", "{path: customer}", "would be held to a tenant (did you mean {tenant}?)"),
    (ADMIN, "operations:", "tenant: {path: account}\noperations:", "(parameters of its paths: {user})"),
    (REPORTING, "/reports/{tenant}", "/reports", "7:16: no operation of 'reporting' has the parameter {tenant}"),
    (REPORTING, "/reports/{tenant}", "/reports", "(remove tenant: no path has parameters)"),
    # forms of texts
    (BILLING, "commerce/billing", "commerce/bil ling", "2:11: field 'workload': 'spiffe://saas.example/prod/commerce"),
    (ALL, "spiffe_id: spiffe://", "spiffe_id: http://", "2:16: field 'spiffe_id': 'http://saas.example/prod/commerce/"),
    (ALL, "/prod/commerce/storefront", "", "2:16: field 'spiffe_id': 'spiffe://saas.example' names a trust domain"),
    (TOP, "saas.example", "SAAS.example", "1:15: field 'trust_domain': trust domain 'SAAS.example' has a character"),
    (TOP, "{environment}/{domain}", "{env}", "2:9: field 'naming': '/{env}/{service}' is not a naming template"),
    (BILLING, "group:commerce", "commerce", "3:8: field 'owner': 'commerce' is not an owner (write kind:name,"),
    (BILLING, '/invoices"', '/inv*"', "10:32: field 'path': 'inv*' is a wildcard"),
    (BILLING, '"/api/v2', '"api/v2', "10:32: field 'path': path 'api/v2/tenants/{tenant}/invoices' does not start"),
    (BILLING, "/{tenant}/", "/x-{tenant}/", "10:32: field 'path': 'x-{tenant}' is not a whole-segment parameter"),
    (BILLING, "method: GET", "method: get", "10:21: field 'method': 'get' is not an HTTP method"),
    (
        BILLING,
        "billing:invoices:list",
        "billing:invoices",
        "9:11: field 'name': 'billing:invoices' is not an operation",
    ),
    (BILLING, "/run/billing/app.sock", "run/app.sock", "6:18: field 'unix': 'run/app.sock' is not an absolute path"),
    (BILLING, "unix: /run/billing/app.sock", "tcp: x", "6:17: field 'tcp': 'x' is not host:port"),
    (BILLING, "mtls: strict", "mtls: strict, address: localhost", "field 'address': 'localhost' is not an IP address"),
    (NOTIFICATION, "x-tenant", "X_Tenant", "7:18: field 'header': header 'X_Tenant' has an underscore"),
    *(
        (NOTIFICATION, "x-tenant", name, f"7:18: field 'header': header {name!r} has a meaning of its own to HTTP")
        # Envoy sets, drops or joins each of these by a rule of its own, so the SDK would read another tenant.
        for name in ("host", "x-request-id", "x-forwarded-proto", "x-envoy-external-address", "x-forwarded-client-cert")
    ),
    *(
        (NOTIFICATION, "x-tenant", name, f"field 'header': header {name!r} has a meaning of its own to HTTP")
        for name in ("x-eastwest-token-tenant", "te", "connection", "cookie", "authorization", "txn-token", "x-real-ip")
    ),
    (NOTIFICATION, "2027-03-31", "2027-02-31", "5:63: field 'until': '2027-02-31' is not a date (write year-month-day"),
    (PROFILE, "default: 1h", "default: 1x", "5:21: field 'default': '1x' is not a duration"),
    (ALL, "unix:user:storefront", "storefront", "7:17: an item of field 'selectors': 'storefront' is not a selector"),
    (ALL, "unix:user:storefront", "unix:usr:storefront", "7:17: 'unix:usr:storefront' is not a unix selector (did you"),
    (
        ALL,
        "unix:user:storefront",
        "unix:uid:abc",
        "7:17: 'unix:uid:abc' can never match (write a number, or use unix:user",
    ),
    (
        ALL,
        "unix:user:storefront",
        "unix:path:bin/x",
        "7:17: 'unix:path:bin/x' can never match (write an absolute path)",
    ),
    (ALL, "unix:user:storefront", "unix:sha256:AB", "7:17: 'unix:sha256:AB' can never match (write 64 hex"),
    (ALL, "group:prod-nodes", "prod-nodes", "6:11: field 'node': 'prod-nodes' names no node (write group:NAME"),
    (ALL, '"acme", "globex"', '"ac me"', "9:28: 'ac me' is not a tenant that a request can name"),
    (ALL, 'tenants: ["acme", "globex"]', "tenants: acme", '9:27: tenants must be a list (write tenants: ["acme"])'),
    (ALL, 'tenants: ["acme", "globex"]', "owner: x", "9:25: attribute 'owner' is a field of its own"),
    (ALL, 'tenants: ["acme", "globex"]', "Tier: x", "9:24: 'Tier' is not an attribute name (use a-z, 0-9 and _)"),
    # names that must exist, agree or differ
    (
        BILLING,
        "commerce/billing",
        "commerce/biling",
        "2:11: service 'billing' names the workload spiffe://saas.example",
    ),
    (BILLING, "domain: commerce", "domain: comerce", "4:9: unknown domain 'comerce' (did you mean 'commerce'?)"),
    (ALL, "environment: prod", "environment: prd", "3:18: unknown environment 'prd' (did you mean 'prod'?)"),
    (ALL, "group:prod-nodes", "group:prod-node", "6:11: unknown node group 'prod-node' (did you mean 'prod-nodes'?)"),
    (ALL, "profile: workload", "profile: worklod", "8:14: unknown profile 'worklod' (did you mean 'workload'?)"),
    (
        ALL,
        REPORTING_ID,
        "spiffe://saas.example/prod/commerce/storefront",
        "is declared twice (the first is at workloads/",
    ),
    (ALL, REPORTING_ID, "spiffe://other.example/prod/commerce/reporting", "is of another trust domain than the estate"),
    (ALL, REPORTING_ID, "spiffe://saas.example/spire/x", "lies under /spire, which servers and agents keep"),
    (ALL, REPORTING_ID, "spiffe://saas.example/staging/commerce/reporting", "says 'staging' where the naming"),
    (
        ALL,
        REPORTING_ID,
        "spiffe://saas.example/reporting",
        (
            "does not follow the naming /{environment}/{domain}/{service} "
            "(write spiffe://saas.example/prod/commerce/{service}, or add a waiver with rule: naming)"
        ),
    ),
    (
        TOP,
        EVERYTHING,
        LIMITED.format("workloads", "domains: [comerce]"),
        "unknown domain 'comerce' (did you mean 'comm",
    ),
    (TOP, EVERYTHING, LIMITED.format("workloads", "nodes: [group:x]"), "unknown node group 'x'"),
    (TOP, EVERYTHING, LIMITED.format("workloads, ca", "domains: [commerce]"), "ca cannot be limited by domains"),
    (TOP, EVERYTHING, LIMITED.format("workload", "domains: []"), "cannot be 'workload' (did you mean 'workloads'?)"),
    (TOP, EVERYTHING, LIMITED.format("workloads", "spiffe_ids: [spiffe://saas.example/a/*x]"), "has a path character"),
    (TOP, "unix:uid:0", "unix:gid:0", "names no administrator (write unix:uid:NUMBER"),
    (TOP, "may: [everything]", "may: [read]", "nobody may do everything, so this could never be changed again"),
    (
        NOTIFICATION_WAIVER,
        "service: notification",
        "workload: spiffe://saas.example/x/**",
        "rule 'mtls-strict' is about",
    ),
    (NOTIFICATION_WAIVER, "service: notification, ", "", "exactly one of service and workload"),
    (
        ALL,
        "profile: workload",
        "profile: workload\n    ttl: 5h",
        "9:10: ttl 5h is longer than profile 'workload' allows",
    ),
    (
        ALL,
        "profile: workload",
        "profile: workload\n    dns_names: [a.b]",
        "9:17: profile 'workload' does not allow the DNS",
    ),
    (PROFILE, "1h", "6h", "5:21: the default lifetime 6h is longer than the longest, 4h"),
    (PROFILE, "[prod, staging]", "[staging]", "profile 'workload' is not for environment 'prod'"),
    (PROFILE, "[prod, staging]", "[prod, stagin]", "3:22: unknown environment 'stagin' (did you mean 'staging'?)"),
    (TOP, "name: staging", "name: prod", "5:12: 'prod' is declared twice in environments (keep one)"),
    (TOP, "environment: prod,", "environment: pro,", "11:37: unknown environment 'pro' (did you mean 'prod'?)"),
    ("waivers/notification-plaintext.yaml", "service: notification", "service: x", "3:23: unknown service 'x'"),
    (
        BILLING,
        "billing:invoices:list",
        "bill:invoices:list",
        "9:11: operation 'bill:invoices:list' does not begin with",
    ),
    (BILLING, "billing:invoices:list", "billing:invoices:read", "13:11: operation 'billing:invoices:read' is declared"),
    (BILLING, "/invoices/{invoice}", "/invoices", "14:12: 'billing:invoices:read' matches the same requests as"),
    (BILLING, "{method: GET, path: /healthz}", "{tcp: true}", "'billing:health:read' does not fit protocol http"),
    (BILLING, "{method: GET, path: /healthz}", "{method: GET}", "must be method and path, or grpc, or tcp: true"),
    (BILLING, "{unix: /run/billing/app.sock}", "{}", "6:11: upstream needs exactly one of unix and tcp"),
    (NOTIFICATION, "{header: x-tenant}", "{}", "7:9: tenant needs exactly one of path, header and claim"),
    (NOTIFICATION, "permissive", "strict", "until says when permissive mode ends, and this is strict"),
    # YAML
    (
        BILLING,
        "service: billing",
        "service: a\nservice: billing",
        "2:1: 'service' is written twice (keep one; the first",
    ),
    (BILLING, "    match", "   match", "10:4: not YAML: "),
    (
        TOP,
        "  - {name: prod",
        "\t- {name: prod",
        "4:1: not YAML: found character '\\t' that cannot start any token (indent",
    ),
    (TOP, "administrators:", "administrators: &x", "12:17: anchors and aliases (& and *) are not read here"),
    (TOP, "administrators:", "x: *y\nadministrators:", "12:4: anchors and aliases (& and *) are not read here"),
    (TOP, None, "", "1:1: the file is empty"),
    (TOP, None, "!!python/object:os.system {}", "1:1: tags such as "),
    (TOP, None, "[" * 5000, "1:22: nested deeper than 20 levels"),
    (TOP, None, "a: 1\n---\nb: 2", "2:1: the file holds two documents"),
    (TOP, None, "a: \x00", "1:4: not YAML: special characters are not allowed (remove the control character)"),
    # files
    (
        "services/second.yaml",
        None,
        "service: admin\n",
        "service 'admin' is declared twice (the first is at services/adm",
    ),
    ("services/admin.yaml", "service: admin", "service: eastwest", "'eastwest' is the server's own service"),
    ("services/x.yml", None, "a: 1", "services/ holds .yaml files only"),
    ("services/team/x.yaml", None, "a: 1", "folders within folders are not read (move it to services/)"),
    ("service/x.yaml", None, "a: 1", "this folder is not read (did you mean 'services'?)"),
    # Cedar
    (COMMERCE, '@owner("group:commerce")', "", "1:1: the policy has no @owner (write @owner("),
    (COMMERCE, '@owner("group:commerce")', '@owner("me")', "2:1: 'me' is not an owner"),
    (COMMERCE, "callers-read", "callers read", "1:1: 'callers read-their-tenants-invoices' is not a policy id"),
    (COMMERCE, "@reason", '@id("b")\n@reason', "1:1: Cedar: duplicate annotation: @id (keep one of them)"),
    (COMMERCE, "};", "}", "12:1: Cedar does not expect '@' here (end the policy before it with ;)"),
    (
        COMMERCE,
        "principal in",
        "princpal in",
        "5:3: Cedar: found an invalid variable in the policy scope: princpal (did",
    ),
    (COMMERCE, "permit", "allow", "4:1: Cedar: invalid policy effect: allow (write permit or forbid)"),
    (COMMERCE, "when", "whn", "8:3: Cedar: invalid policy condition: whn (write when { ... } or unless { ... })"),
    (COMMERCE, "&&", "&", "9:25: Cedar does not expect '&' here (write &&)"),
    (COMMERCE, ".contains(", ".contain(", "9:46: Cedar: `contain` is not a valid method (did you mean 'contains'?)"),
    (COMMERCE, "== Service", "= Service", "7:12: Cedar: '=' is not a valid operator in Cedar (compare with ==)"),
    (COMMERCE, "permit (", "permit ((", "4:9: Cedar does not expect '(' here"),
    (COMMERCE, 'e")', "e)", "Cedar does not expect"),
    (COMMERCE, "principal in Domain", "principal in [Domain", "Cedar does not expect"),
    (COMMERCE, 'in Domain::"commerce"', "== ?principal", "5:16: policy templates are not read here"),
    (COMMERCE, "when {", "when { ((((((((((((((((((((((((", "8:29: the policy is too deep or too long from here on"),
    (COMMERCE, "when {", "when { " + "true && " * 5000, "the policy is too deep or too long from here on"),
    (
        COMMERCE,
        'Domain::"commerce"',
        'Domain::"comerce"',
        "5:16: policy 'callers-read-their-tenants-invoices' names the d",
    ),
    (COMMERCE, 'commerce",', 'x",', "names the domain 'x', which nobody declares (known: commerce, messaging, plat"),
    (
        COMMERCE,
        "invoices:list",
        "invoice:list",
        "6:14: policy 'callers-read-their-tenants-invoices' names the operation",
    ),
    (
        COMMERCE,
        "messaging/notification",
        "messaging/notify",
        "16:16: policy 'notification-reads-its-tenants-contacts' names",
    ),
    (COMMERCE, "principal has tenants &&", "", "(test `principal has tenants &&` before it)"),
    (
        COMMERCE,
        "context.tenant",
        "context.tennant",
        "9:62: policy 'callers-read-their-tenants-invoices': context has no",
    ),
    (COMMERCE, "context.tenant", "context.tennant", "context has no 'tennant' (did you mean 'tenant'?)"),
    (
        COMMERCE,
        "principal has tenants",
        "context has tennant",
        "9:15: policy 'callers-read-their-tenants-invoices': co",
    ),
    (COMMERCE, "context.tenant", "context.time", "(no answer depends on the time; known: approval, method, path,"),
    (
        COMMERCE,
        "contains(context.tenant)",
        "contains(context.approval.by)",
        "context.approval has no 'by' (known: appro",
    ),
    (COMMERCE, 'Workload::"', '"', '16:16: Cedar: expected an entity uid or matching template slot, found literal `"s'),
    (COMMERCE, 'Workload::"', '"', '(write Workload::"spiffe://saas.example/prod/messaging/notification")'),
    (COMMERCE, 'Domain::"', '"', '(write Domain::"commerce")'),
    (COMMERCE, 'resource == Service::"', 'resource == "', '(write Service::"billing")'),
    (COMMERCE, "principal has tenants &&", f'principal == "{REPORTING_ID}" &&', f'(write Workload::"{REPORTING_ID}")'),
    (COMMERCE, "principal has tenants &&", f'"{REPORTING_ID}" != principal &&', f'(write Workload::"{REPORTING_ID}")'),
    (COMMERCE, "principal has tenants &&", '"x" != resource.domain &&', "9:3: policy"),
    (COMMERCE, "principal has tenants &&", '"x" != resource.domain &&', '(write Domain::"x")'),
    (
        COMMERCE,
        "principal.tenants.",
        "principal.tenant.",
        "9:38: policy 'callers-read-their-tenants-invoices': attribute `ten",
    ),
    (
        COMMERCE,
        "notification-reads-its-tenants-contacts",
        "console-reads-totals",
        "policy id 'console-reads-totals' is",
    ),
    (
        "policies/x.cedar",
        None,
        '@id("x") @owner("a:b") @reason("r") permit (principal, action == Action::"open", resource);',
        "1:56: policy 'x' applies to no operation (write action in Action::\"open\")",
    ),
    (
        "policies/x.cedar",
        None,
        '@id("x")',
        "1:8: the policy does not end (end it with ;, and close every bracket and quote)",
    ),
]

UNCOMPILABLE = [
    (
        "contains(context.tenant)",
        "contains(context.path)",
        "9:62: policy 'callers-read-their-tenants-invoices': context.path",
    ),
    (
        "principal.tenants.contains(context.tenant)",
        'context.tenant like "a*"',
        "9:43: policy 'callers-read-their-tenants",
    ),
    ("principal.tenants.contains(context.tenant)", "context == context", "context as a whole cannot be compiled yet"),
]


@pytest.mark.parametrize(("file", "old", "new", "expected"), ERRORS, ids=[f"{e[0]}-{e[3][:40]}" for e in ERRORS])
def test_mistake_is_told_with_place_and_fix(edited, file, old, new, expected) -> None:
    with pytest.raises(EstateInvalid) as caught:
        load_estate(edited(file, old, new))
    errors = [str(p) for p in caught.value.problems if p.severity is Severity.ERROR]
    place = expected if not expected[0].isdigit() else f"{file}:{expected}"
    assert any(place in e for e in errors), "\n".join(errors)


@pytest.mark.parametrize(("old", "new", "expected"), UNCOMPILABLE)
def test_policies_that_no_table_can_hold_are_refused(edited, old, new, expected) -> None:
    estate = load_estate(edited(COMMERCE, old, new))
    with pytest.raises(EstateInvalid) as caught:
        compile_estate(estate)
    assert expected in str(caught.value.problems[0])


def test_all_mistakes_are_told_at_once(example) -> None:
    files = dict(example)
    files[BILLING] = files[BILLING].replace(b"8443", b"x").replace(b"owner:", b"ownr:")
    files[ALL] = files[ALL].replace(b"unix:user:console", b"console")
    files[COMMERCE] = files[COMMERCE].replace(b"permit", b"allow")
    with pytest.raises(EstateInvalid) as caught:
        load_estate(files)
    errors = [p for p in caught.value.problems if p.severity is Severity.ERROR]
    assert {p.where.file for p in errors} == {BILLING, ALL, COMMERCE}
    assert len(errors) == 7  # three in billing, one selector, three policies
    assert str(caught.value).startswith("policies/commerce.cedar:4:1: Cedar: invalid policy effect: allow, and 6 more")


def test_a_broken_file_brings_no_complaints_about_the_others(edited) -> None:
    with pytest.raises(EstateInvalid) as caught:
        load_estate(edited(ALL, "workloads:", "workloads: ["))
    assert {p.where.file for p in caught.value.problems} == {ALL}


def test_one_complaint_for_a_policy_that_misses_a_tenant_everywhere(edited) -> None:
    files = edited(COMMERCE, 'action in [Action::"billing:invoices:list", Action::"billing:invoices:read"]', "action")
    with pytest.raises(EstateInvalid) as caught:
        load_estate(files)
    assert len(caught.value.problems) == 1
    assert "test `context has tenant &&` before it" in caught.value.problems[0].fix


def test_no_estate_file(example) -> None:
    with pytest.raises(EstateInvalid) as caught:
        load_estate({f"estate/{k}": v for k, v in example.items()})
    assert caught.value.problems[0].fix == "give the directory that holds estate.yaml"
    with pytest.raises(EstateInvalid, match=r"there is no estate\.yaml"):
        load_estate({})


def test_bounds(example) -> None:
    with pytest.raises(EstateInvalid, match="larger than 8 MiB"):
        load_estate({**example, "services/big.yaml": b"#" * (8 << 20) + b"#"})
    with pytest.raises(EstateInvalid, match="more than 20000 files"):
        load_estate({f"services/{i}.yaml": b"" for i in range(20_001)})
    with pytest.raises(EstateInvalid, match="not UTF-8"):
        load_estate({**example, "services/x.yaml": b"service: \xff"})


WARNINGS = [
    (ALL, "unix:user:storefront", "k8s:ns:x", "no attestor of this version makes selectors of type 'k8s'"),
    (ADMIN, "8445", "8443", "services 'admin' and 'billing' both listen on 127.0.0.1:8443 in group:prod-nodes"),
    (
        BILLING,
        "domain: commerce",
        "domain: messaging",
        "service 'billing' is of domain messaging, its workload of comm",
    ),
    (REPORTING, "tenant: {path: tenant}", "", "has paths with {tenant} and does not say that this is the tenant"),
    (
        COMMERCE,
        "@owner",
        '@ower("x") @owner',
        "2:1: warning: nothing reads the annotation @ower (did you mean 'owner'?)",
    ),
    (COMMERCE, '@reason("t', '@tenant("x") @reason("t', "3:1: warning: nothing reads the annotation @tenant (did you"),
    (
        COMMERCE,
        "  principal has tenants && principal.tenants.contains(context.tenant)",
        "  principal has tennants",
        "9:3: warning: policy 'callers-read-their-tenants-invoices': principal never has 'tennants' (did you mean",
    ),
    (BILLING, "/{tenant}/contacts", "/x/contacts", "'billing:contacts:read' is not per tenant"),
    ("notes.txt", None, "x", "this file is not read"),
    *(
        (TOP, EVERYTHING, LIMITED.format(rights, limits) + more, expected)
        for rights, limits, more, expected in [
            ("approvals, workloads", "domains: [commerce]", "", "has approvals beside workloads over the same domains"),
            ("workloads, mint, approvals", "domains: [commerce]", "", "approvals beside workloads, mint over"),
            ("approvals", "domains: [commerce]", CI_ROW.format("tokens", "nodes: []"), "beside tokens over the same"),
            ("approvals", "nodes: []", CI_ROW.format("mint", "domains: [platform]"), "approvals beside mint over"),
        ]
    ),
]


@pytest.mark.parametrize(
    "rows",
    [
        LIMITED.format("approvals", "domains: [commerce]") + CI_ROW.format("workloads", "domains: [platform]"),
        LIMITED.format("approvals", "nodes: []").replace("platform/ci", "platform/approver")
        + CI_ROW.format("workloads", "nodes: []"),
        LIMITED.format("approvals, workloads", "domains: [commerce]") + CI_ROW.format("everything", "nodes: []"),
    ],
)
def test_approvers_without_identities_of_their_own_are_nothing_unusual(edited, rows) -> None:
    estate = load_estate(edited(TOP, EVERYTHING, rows))
    assert not [p for p in estate.notes if "approvals beside" in p.message]


@pytest.mark.parametrize(("file", "old", "new", "expected"), WARNINGS)
def test_likely_mistakes_are_warnings(edited, file, old, new, expected) -> None:
    files = edited(file, old, new)
    if "contacts" in new:
        files[COMMERCE] = files[COMMERCE].replace(
            b'Action::"billing:contacts:read"', b'Action::"billing:invoices:list"'
        )
    warnings = [p for p in load_estate(files).notes if p.severity is Severity.WARNING]
    assert any(expected in str(w) for w in warnings), [str(w) for w in warnings]


def test_two_templates_for_one_request_are_nothing_unusual(edited) -> None:
    notes = [p for p in load_estate(edited(BILLING, "/invoices/{invoice}", "/{other}")).notes if "match both" in str(p)]
    assert {note.severity for note in notes} == {Severity.NOTE}
    assert any("'billing:invoices:list' and 'billing:invoices:read'" in note.message for note in notes)


@pytest.mark.parametrize("parameter", ["tenant", "tenant_id", "tenantId"])
def test_a_parameter_that_must_be_the_tenant(edited, parameter) -> None:
    template = f'path: "/catalog/{{{parameter}}}"'
    files = edited("services/storefront.yaml", "path: /catalog", template)
    (warning,) = [p for p in load_estate(files).notes if p.severity is Severity.WARNING]
    assert str(warning.where) == "services/storefront.yaml:1:10"
    assert warning.fix == f"write tenant: {{path: {parameter}}}"
    other = edited("services/storefront.yaml", "path: /catalog", 'path: "/catalog/{tenancy}"')
    assert not [p for p in load_estate(other).notes if p.severity is Severity.WARNING]
    files["services/storefront.yaml"] += b"tenant: {header: x-tenant}\n"
    assert not [p for p in load_estate(files).notes if p.severity is Severity.WARNING], "it is said elsewhere"


def test_a_service_of_a_workload_that_is_not_declared_yet(edited) -> None:
    def fix(wrong: str) -> str:
        with pytest.raises(EstateInvalid) as caught:
            load_estate(edited(BILLING, "workload: spiffe://saas.example/prod/commerce/billing", f"workload: {wrong}"))
        (error,) = [p for p in caught.value.problems if "which nobody registered" in p.message]
        return error.fix

    assert fix("spiffe://saas.example/prod/commerce/invoices") == "declare it in workloads/"
    assert fix("spiffe://saas.example/prod/commerce/biling") == (
        "did you mean 'spiffe://saas.example/prod/commerce/billing'?"
    )
    assert fix("spiffe://saas.example/prod/comerce/billing").startswith("did you mean")
    assert fix("spiffe://saas.example/staging/commerce/billing") == "declare it in workloads/"


def test_sensitivities_are_not_listed_as_operations(edited) -> None:
    with pytest.raises(EstateInvalid) as caught:
        load_estate(edited(COMMERCE, 'Action::"billing:invoices:list"', 'Action::"zzz"'))
    _, listed = caught.value.problems[0].fix.split("known: ")
    assert "billing:invoices:list" in listed.split(", ")
    assert not set(Sensitivity) & set(listed.split(", "))
    with pytest.raises(EstateInvalid) as caught:
        load_estate(edited(COMMERCE, 'Action::"billing:invoices:list"', 'Action::"contrl"'))
    assert caught.value.problems[0].fix == "did you mean 'control'?"
