"""Outcome B: what is called when identity, strict mTLS and policy are in force, and what must come of it."""

from __future__ import annotations

from dataclasses import replace

from eastwest.cli.demo.calls import HANDSHAKE_REFUSED, Call
from eastwest.cli.demo.handlers import KEY_HEADER

_MTLS_REQUIRED = "MTLS_REQUIRED"
_NOT_PERMITTED = "OPERATION_NOT_PERMITTED"
_WRONG_TENANT = "TENANT_NOT_PERMITTED"

LEGACY = Call(
    name="legacy-job",
    story="reporting's old job calls billing without a sidecar (permissive)",
    caller="reporting",
    service="billing",
    path="/api/v2/tenants/acme/invoices",
    via="plaintext",
    status=200,
    ledger=_MTLS_REQUIRED,
)
LEGACY_AFTER = Call(
    name="legacy-job-strict",
    story="the same call on the same connection, after the switch to strict",
    caller="reporting",
    service="billing",
    path="/api/v2/tenants/acme/invoices",
    via="plaintext",
    status=403,
    code=_MTLS_REQUIRED,
)
LOAD = Call(
    name="load",
    story="the storefront goes on showing invoices all the while",
    caller="storefront",
    service="billing",
    path="/api/v2/tenants/acme/invoices",
    tenant="acme",
    status=200,
)

FIRST_AFTER_ROTATION = Call(
    name="first-call-after-rotation",
    story="after the rotation: a first call, on a new mTLS connection",
    caller="admin",
    service="billing",
    path="/healthz",
    status=200,
)


def work() -> list[Call]:
    """What the company lives on: it must go on working."""
    return [
        Call(
            name="storefront-lists-invoices",
            story="the storefront shows a tenant its invoices",
            caller="storefront",
            service="billing",
            path="/api/v2/tenants/globex/invoices",
            tenant="globex",
            status=200,
        ),
        Call(
            name="reporting-reads-invoice",
            story="reporting reads one invoice, by its sidecar now",
            caller="reporting",
            service="billing",
            path="/api/v2/tenants/acme/invoices/INV-1001",
            tenant="acme",
            status=200,
        ),
        Call(
            name="storefront-sends-message",
            story="the storefront has a message sent",
            caller="storefront",
            service="notification",
            method="POST",
            path="/messages",
            tenant="acme",
            status=200,
        ),
        Call(
            name="notification-own-interface",
            story="notification still does its own work: an invoice of its tenant",
            caller="notification",
            service="billing",
            path="/api/v2/tenants/acme/invoices",
            tenant="acme",
            status=200,
        ),
        Call(
            name="console-reads-totals",
            story="support sees what a tenant was billed",
            caller="console",
            service="reporting",
            path="/reports/globex",
            tenant="globex",
            status=200,
        ),
        Call(
            name="notification-checks-storefront",
            story="anyone identified may read what is open",
            caller="notification",
            service="storefront",
            path="/catalog",
            status=200,
        ),
    ]


def attack(key: str, *, own_uids: bool) -> list[Call]:
    """The same attack as in the weak outcome, and what else one would try; ``key`` is the stolen internal key."""
    stolen = {KEY_HEADER: key}
    calls = [
        Call(
            name="disable-user",
            story="disables a user, through its own sidecar",
            caller="notification",
            service="admin",
            method="POST",
            path="/admin/users/u-17/disable",
            status=403,
            code=_NOT_PERMITTED,
        ),
        Call(
            name="disable-user-with-stolen-key",
            story="the same, with the internal key it stole",
            caller="notification",
            service="admin",
            method="POST",
            path="/admin/users/u-17/disable",
            headers=stolen,
            status=403,
            code=_NOT_PERMITTED,
        ),
        Call(
            name="read-user",
            story="reads a person's data",
            caller="notification",
            service="admin",
            path="/admin/users/u-17",
            status=403,
            code=_NOT_PERMITTED,
        ),
        Call(
            name="other-tenants-invoices",
            story="reads the invoices of a tenant it does not serve",
            caller="notification",
            service="billing",
            path="/api/v2/tenants/globex/invoices",
            tenant="globex",
            status=403,
            code=_WRONG_TENANT,
        ),
        Call(
            name="unlisted-export",
            story="finds an export that nobody remembers",
            caller="notification",
            service="billing",
            path="/internal/export",
            status=403,
            code="UNLISTED_OPERATION",
        ),
        Call(
            name="straight-to-the-port",
            story="goes past its sidecar in plaintext, with the key",
            caller="notification",
            service="admin",
            method="POST",
            path="/admin/users/u-17/disable",
            via="plaintext",
            headers=stolen,
            status=403,
            code=_MTLS_REQUIRED,
        ),
        Call(
            name="tls-without-certificate",
            story="tries TLS, with no certificate to show",
            caller="notification",
            service="billing",
            path="/api/v2/tenants/globex/invoices",
            via="tls",
            headers=stolen,
            status=0,
            error=HANDSHAKE_REFUSED,
            code=_MTLS_REQUIRED,
        ),
    ]
    if own_uids:
        calls += [
            Call(
                name="into-the-application",
                story="goes for the admin application behind its sidecar",
                caller="notification",
                service="admin",
                method="POST",
                path="/admin/users/u-17/disable",
                via="app-socket",
                headers=stolen,
                status=0,
                error="Permission denied",
                ledger="-",
            ),
            Call(
                name="borrow-the-consoles-sidecar",
                story="wants to speak through the console's sidecar",
                caller="notification",
                service="admin",
                method="POST",
                path="/admin/users/u-17/disable",
                via="borrowed-sidecar",
                borrowed="console",
                status=0,
                error="Permission denied",
                ledger="-",
            ),
        ]
    return [replace(call, attack=True) for call in calls]


def probe() -> Call:
    """A stranger's handshake with billing: refused, but it shows which certificate the port presents."""
    return Call(
        name="certificate-after-rotation",
        story="looks at billing's certificate again, still without its own",
        caller="notification",
        service="billing",
        path="/api/v2/tenants/globex/invoices",
        via="tls",
        status=0,
        error=HANDSHAKE_REFUSED,
        code=_MTLS_REQUIRED,
        attack=True,
    )
