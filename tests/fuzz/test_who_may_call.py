"""Every method of the server, called by callers of every standing: who gets past the gate is written down here.

A method that is added and not listed fails: say who may call it.
"""

import pytest
from fuzz_world import METHODS

UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED = 16, 7, 12
OPEN = {"Agent/AttestAgent", "Bundle/GetBundle", "Health/Check"}
AGENTS = OPEN | {
    "Agent/PostStatus",
    "Agent/RenewAgent",
    "Bundle/GetFederatedBundle",
    "Control/ReportDecisions",
    "Control/Subscribe",
    "Entry/GetAuthorizedEntries",
    "Entry/SyncAuthorizedEntries",
    "SVID/BatchNewX509SVID",
    "SVID/NewJWTSVID",
}
READING = {
    "Admin/CountDecisions",
    "Admin/ExplainEntries",
    "Admin/ExportDecisions",
    "Admin/FlushLog",
    "Admin/GetEstate",
    "Admin/GetMeshStatus",
    "Admin/GetStatus",
    "Admin/ListDecisions",
    "Admin/ListEntries",
    "Admin/ListNodes",
    "Admin/PlanEstate",
    "Admin/WaitForEntries",
    "Agent/CountAgents",
    "Agent/GetAgent",
    "Agent/ListAgents",
    "Bundle/CountBundles",
    "Changes/GetChange",
    "Changes/GetJudgement",
    "Changes/ListChanges",
    "Bundle/GetFederatedBundle",
    "Bundle/ListFederatedBundles",
    "Entry/CountEntries",
    "Entry/GetEntry",
    "Entry/ListEntries",
    "Federation/ListTrustDomains",
    "Impact/Replay",
    "Insight/Explain",
    "Impact/Suggest",
    "Mtls/GetReports",
    "Rollout/GetRollback",
    "Rollout/GetStatus",
    "Rollout/ListVersions",
    "TrustDomain/GetFederationRelationship",
    "Verification/GetLastRun",
    "TrustDomain/ListFederationRelationships",
}
MAY = {
    "anonymous": OPEN,
    "agent": AGENTS,
    "workload": OPEN,
    "downstream": OPEN | {"Bundle/PublishJWTAuthority", "SVID/NewDownstreamX509CA"},
    "scoped": OPEN
    | READING
    | {
        "Admin/ApplyEstate",
        "Admin/WriteEntries",
        "Changes/RequestChange",
        "Changes/WithdrawChange",
        "Entry/BatchCreateEntry",
        "Entry/BatchDeleteEntry",
        "Entry/BatchUpdateEntry",
    },
    "federator": OPEN
    | READING
    | {
        "Bundle/BatchCreateFederatedBundle",
        "Bundle/BatchDeleteFederatedBundle",
        "Bundle/BatchSetFederatedBundle",
        "Bundle/BatchUpdateFederatedBundle",
        "TrustDomain/BatchCreateFederationRelationship",
        "TrustDomain/BatchDeleteFederationRelationship",
        "TrustDomain/BatchUpdateFederationRelationship",
        "TrustDomain/RefreshBundle",
    },
    "minter": OPEN | READING | {"SVID/MintX509SVID", "SVID/MintJWTSVID"},
}
CALLED = sorted(METHODS)


@pytest.mark.parametrize("name", MAY)
def test_who_gets_past_the_gate(world, name):
    passed = set()
    for path in CALLED:
        status, _ = world.run(world.callers[name].call(path, b""))
        if status not in {UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED}:
            passed.add("/".join(part.rpartition(".")[2] for part in path[1:].split("/")))
    # An empty request is refused by some of these for other reasons, never let through to the others.
    assert passed == MAY[name]
