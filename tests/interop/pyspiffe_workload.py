"""A workload on the PyPI `spiffe` client: prints one JSON object with what the Workload API gave it.

It fetches an X.509-SVID, waits for one rotation of it, and fetches and validates a JWT-SVID. Run it as a program of
its own: the client's generated protocol code and ours cannot be loaded into one process.
"""

import json
import sys
import threading

from spiffe import JwtSource, WorkloadApiClient, X509Source

ROTATION_SECONDS = 60


def main() -> int:
    with X509Source(timeout_in_seconds=20) as source:
        updated = threading.Event()
        first = source.svid
        source.subscribe_for_updates(updated.set)
        while source.svid.leaf.serial_number == first.leaf.serial_number:
            if not updated.wait(ROTATION_SECONDS):
                print(f"no update within {ROTATION_SECONDS} s", file=sys.stderr)
                return 1
            updated.clear()
        second = source.svid
        bundle = source.get_bundle_for_trust_domain(first.spiffe_id.trust_domain)
    with JwtSource(timeout_in_seconds=20) as tokens, WorkloadApiClient() as client:
        token = tokens.fetch_svid({"billing"})
        validated = client.validate_jwt_svid(token.token, "billing")
    told = {
        "x509": str(first.spiffe_id),
        "serials": [str(svid.leaf.serial_number) for svid in (first, second)],
        "authorities": len(bundle.x509_authorities) if bundle else 0,
        "jwt": str(token.spiffe_id),
        "audience": sorted(token.audience),
        "validated": str(validated.spiffe_id),
    }
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
