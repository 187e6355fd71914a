"""What each decision code means and what mends it, in a sentence each; docs/reference/codes.md says more."""

from __future__ import annotations

from collections.abc import Mapping

from eastwest.policy.enforcement import DecisionCode as Code

MEANING: Mapping[Code, tuple[str, str]] = {
    Code.ALLOWED: ("a policy permits it", ""),
    Code.MTLS_REQUIRED: (
        "the peer proved nothing: plaintext, or TLS without a certificate",
        "call through the sidecar or the SDK",
    ),
    Code.CERTIFICATE_REFUSED: (
        "a certificate came and did not verify; the cause says how",
        "renew the caller's identity; check clocks, trust domain and bundle",
    ),
    Code.SERVER_REFUSED: (
        "the caller's side refused the certificate that the service showed",
        "see the cause: the service's identity or clock, or one side's trust bundle",
    ),
    Code.UNKNOWN_CALLER: (
        "it proved who it is, and nobody has registered that identity",
        "register the workload in the estate and apply",
    ),
    Code.UNLISTED_OPERATION: (
        "the service has no operation for this method and path, or they could be read two ways",
        "add the operation to the service, or call what exists",
    ),
    Code.OPERATION_NOT_PERMITTED: (
        "no policy permits this caller this operation",
        "a permit policy, if it should be so",
    ),
    Code.FORBIDDEN_BY_POLICY: ("a forbid policy says no", "narrow that policy, if it should not"),
    Code.TENANT_MISSING: (
        "the operation needs a tenant, and the request names none, or two",
        "name it where the operation looks for it",
    ),
    Code.TENANT_NOT_PERMITTED: (
        "the caller may do this, but not for that tenant",
        "the caller's tenants, or the policy",
    ),
    Code.STEP_UP_REQUIRED: (
        "it would be allowed with a transaction token for this call",
        "ask the token endpoint for one, and send it as txn-token",
    ),
    Code.APPROVAL_REQUIRED: (
        "it would be allowed with a token that somebody has approved",
        "ask for an approval, then for a token",
    ),
    Code.POLICY_ERROR: ("a policy failed while it was evaluated", "mend that policy"),
    Code.UNCLASSIFIED_OPERATION: ("nobody has said how sensitive the operation is", "say its sensitivity"),
    Code.TOKEN_INVALID: (
        "what came as txn-token was not signed here, lives too long, cannot be read, or came twice",
        "ask for a new one; send one",
    ),
    Code.TOKEN_EXPIRED: ("the token's time is over", "ask for a new one"),
    Code.TOKEN_WRONG_ACTION: ("the token was made for another operation", "ask for one for this operation"),
    Code.TOKEN_WRONG_RESOURCE: ("the token was made for another service", "ask for one for this service"),
    Code.TOKEN_WRONG_CALLER: (
        "the token was made for another workload",
        "exchange it at the token endpoint: tokens are not passed on",
    ),
    Code.TOKEN_WRONG_KEY: (
        "the token was made for another certificate of the caller, such as the one before a renewal",
        "ask for a new one",
    ),
    Code.TOKEN_WRONG_TENANT: ("the token was made for another tenant, or for none", "ask for one for this tenant"),
    Code.TOKEN_USED: ("the token counts once and was used, or its approval was withdrawn", "ask for a new one"),
    Code.CHECK_UNAVAILABLE: (
        "whether the token was used cannot be found out now",
        "try again; see whether the agent reaches its server",
    ),
    Code.RECORD_UNAVAILABLE: (
        "the service wants every call recorded, and its agent cannot record now",
        "/healthz of that node's agent says why",
    ),
    Code.CALLER_CONTAINED: (
        "the caller is contained: it is refused everywhere, whatever policies say",
        "eastwest containment list says since when and why; eastwest release ends it",
    ),
    Code.TOKEN_CONTAINED: (
        "the token comes from somebody who is contained: its origin, or who approved it",
        "eastwest containment list",
    ),
    Code.IDENTITY_CONTAINED: (
        "the identity is contained: it gets no certificate and no token",
        "eastwest containment list; eastwest release ends it",
    ),
}
"""By code: what it means, and what mends it ("" where nothing needs to)."""
