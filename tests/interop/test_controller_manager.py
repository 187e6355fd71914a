"""spire-controller-manager's own client package against our server."""

import json

from interop_harness import TRUST_DOMAIN, Authority, run

ENTRIES = 450
"""More than two of its pages of 200 and nine of its batches of 50."""


def test_it_reconciles(authority: Authority) -> None:
    command = [authority.peers.controller_client, authority.socket, TRUST_DOMAIN, str(ENTRIES)]
    told = json.loads(run(command))
    assert told == {
        "unsupported": [],
        "created": ENTRIES,
        "similar": 1,
        "listed": ENTRIES,
        "same": True,
        "updated": ENTRIES,
        "deleted": ENTRIES,
        "left": 0,
        "federation": ["other.test"],
        "roots": 1,
        "webhook_id": f"spiffe://{TRUST_DOMAIN}/spire-controller-manager-webhook",
        "webhook_dns": ["spire-controller-manager-webhook-service.spire-server.svc"],
    }
