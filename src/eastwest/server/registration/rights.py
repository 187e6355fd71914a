"""Which right each method asks of an administrator. What is not listed asks for everything."""

from __future__ import annotations

from eastwest.policy.estate import Right

OPEN_METHODS = frozenset(
    {
        "/spire.api.server.agent.v1.Agent/AttestAgent",
        "/spire.api.server.bundle.v1.Bundle/GetBundle",
    }
)
"""What is served on the agents' port to callers without a certificate."""

AGENT_METHODS = frozenset(
    {
        "/eastwest.control.v1.Control/ReportDecisions",
        "/eastwest.control.v1.Control/Subscribe",
        "/eastwest.control.v1.Control/UseToken",
        "/eastwest.log.v1.Log/Prove",
        "/eastwest.log.v1.Log/ProveCertificates",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/spire.api.server.agent.v1.Agent/PostStatus",
        "/spire.api.server.agent.v1.Agent/RenewAgent",
        "/spire.api.server.bundle.v1.Bundle/GetFederatedBundle",
        "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries",
        "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries",
        "/spire.api.server.svid.v1.SVID/BatchNewX509SVID",
        "/spire.api.server.svid.v1.SVID/NewJWTSVID",
    }
)
"""What an attested agent may call; all else on the agents' port is for administrators and downstream servers."""

DOWNSTREAM_METHODS = frozenset(
    {
        "/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority",
        "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA",
    }
)
"""What a workload may call that has its certificate under an entry with ``downstream``."""

FILE_RIGHTS = (Right.WORKLOADS, Right.SERVICES, Right.POLICIES, Right.PROFILES, Right.WAIVERS)
"""Any of these lets apply an estate; what it may change is judged by what differs."""

_SERVICES = {
    # Service → (the right for methods that only read, the right for the others).
    "eastwest.approvals.v1.Approvals": (Right.READ, Right.APPROVALS),
    "eastwest.authority.v1.Authority": (Right.READ, Right.CA),
    "eastwest.changes.v1.Changes": (Right.READ, Right.APPROVALS),
    "eastwest.containment.v1.Containment": (Right.READ, Right.CONTAINMENT),
    "eastwest.federation.v1.Federation": (Right.READ, Right.FEDERATION),
    "eastwest.impact.v1.Impact": (Right.READ, Right.READ),
    "eastwest.insight.v1.Insight": (Right.READ, Right.READ),
    "eastwest.log.v1.Log": (Right.READ, Right.READ),
    "eastwest.mtls.v1.Mtls": (Right.READ, Right.SERVICES),
    "eastwest.verification.v1.Verification": (Right.READ, Right.VERIFY),
    "eastwest.rollout.v1.Rollout": (Right.READ, Right.POLICIES),
    "grpc.health.v1.Health": (Right.READ, Right.READ),
    "spire.api.server.agent.v1.Agent": (Right.READ, Right.NODES),
    "spire.api.server.bundle.v1.Bundle": (Right.READ, Right.FEDERATION),
    "spire.api.server.debug.v1.Debug": (Right.READ, Right.EVERYTHING),
    "spire.api.server.entry.v1.Entry": (Right.READ, Right.WORKLOADS),
    "spire.api.server.localauthority.v1.LocalAuthority": (Right.READ, Right.CA),
    "spire.api.server.logger.v1.Logger": (Right.READ, Right.LOGS),
    "spire.api.server.svid.v1.SVID": (Right.MINT, Right.MINT),
    "spire.api.server.trustdomain.v1.TrustDomain": (Right.READ, Right.FEDERATION),
    "eastwest.admin.v1.Admin": (Right.READ, Right.EVERYTHING),
}
_METHODS: dict[str, tuple[Right, ...]] = {
    "/eastwest.changes.v1.Changes/RequestChange": FILE_RIGHTS,
    "/eastwest.changes.v1.Changes/WithdrawChange": (*FILE_RIGHTS, Right.APPROVALS),
    "/eastwest.admin.v1.Admin/ApplyEstate": FILE_RIGHTS,
    "/eastwest.admin.v1.Admin/CreateJoinToken": (Right.TOKENS,),
    "/eastwest.admin.v1.Admin/ExplainEntries": (Right.READ,),
    "/eastwest.admin.v1.Admin/ExportDecisions": (Right.READ,),
    "/eastwest.admin.v1.Admin/FlushLog": (Right.READ,),
    "/eastwest.admin.v1.Admin/PlanEstate": (Right.READ,),
    "/eastwest.admin.v1.Admin/PurgeNodes": (Right.NODES,),
    "/eastwest.admin.v1.Admin/WaitForEntries": (Right.READ,),
    "/eastwest.containment.v1.Containment/ResolveContainment": (Right.READ,),
    "/eastwest.containment.v1.Containment/WatchContainment": (Right.READ,),
    "/eastwest.admin.v1.Admin/WriteEntries": (Right.WORKLOADS,),
    "/spire.api.server.agent.v1.Agent/CreateJoinToken": (Right.TOKENS,),
    "/spire.api.server.bundle.v1.Bundle/AppendBundle": (Right.CA,),
}
_READING = ("Get", "List", "Count")


def rights_for(method: str) -> tuple[Right, ...]:
    """The rights of which an administrator needs one to call ``/service/Method``."""
    listed = _METHODS.get(method)
    if listed is not None:
        return listed
    service, _, name = method[1:].partition("/")
    reading, changing = _SERVICES.get(service, (Right.EVERYTHING, Right.EVERYTHING))
    return (reading if name.startswith(_READING) else changing,)
