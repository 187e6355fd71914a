"""The catalogue of log kinds: everything that the server may append, and nothing else can be.

``server/journal.py:Journal`` refuses what is not here; ``issuance/record.py`` has its kinds here too. A new kind is one
item of ``_ALL`` and a row in docs/reference/log.md. Never let a field take a key, a token, or a hash of a live token.
"""

from __future__ import annotations

from eastwest.log.kind import Field, Kind, Type

DOMAIN = "The trust domain's SPIFFE ID."
WORKLOAD = "The SPIFFE ID that was issued."


def _text(meaning: str, *choices: str, optional: bool = False) -> Field:
    return Field(Type.TEXT, meaning, optional, choices)


def _hex(meaning: str, *, optional: bool = False) -> Field:
    return Field(Type.HEX, meaning, optional)


def _number(meaning: str, *, optional: bool = False) -> Field:
    return Field(Type.INTEGER, meaning, optional)


def _time(meaning: str, *, optional: bool = False) -> Field:
    return Field(Type.TIME, meaning, optional)


def _base64(meaning: str, *, optional: bool = False) -> Field:
    return Field(Type.BASE64, meaning, optional)


def _texts(meaning: str, *, optional: bool = False) -> Field:
    return Field(Type.TEXTS, meaning, optional)


def _flag(meaning: str, *, optional: bool = False) -> Field:
    return Field(Type.FLAG, meaning, optional)


_ISSUANCE = {
    "trust_domain": _text("The trust domain, without scheme."),
    "authority": _text("Which server of the trust domain issued."),
    "authority_build": _text("That server's build."),
    "door": _text("The protocol by which the request came in, such as workload-api."),
    "request": _hex("Which call it was: the entries of one batch share it.", optional=True),
    "caller_kind": _text(
        "What the actor is to the server.", "agent", "administrator", "server", "device", "self", optional=True
    ),
    "profile": _text("The certificate profile that applied."),
    "node": _text("The agent that asked; empty where none stands between."),
    "entry_id": _text("The registration entry under which it was issued; empty where there is none."),
    "entry_revision": _number("That entry's revision."),
    "environment": _text("The environment whose CA issued; empty for the default CA."),
    "policy_version": _text("The version of the estate in force; empty before the first.", optional=True),
    "previous_serial": _hex(
        "The serial of the certificate that this one replaces, where the server knew it of itself.", optional=True
    ),
    "evidence": Field(Type.OBJECT, "Why it was admitted: selectors, and how the node had been attested."),
}
_CERTIFICATE = {
    "certificate": _base64("The certificate itself, in DER."),
    "certificate_sha256": _hex("The hash of the certificate's DER."),
    "serial": _hex("The serial number."),
    "spki_sha256": _hex("The hash of the certified public key (SubjectPublicKeyInfo)."),
    "issuer_key_id": _hex("The identifier of the key that signed it."),
    "not_before": _time("From when it is valid."),
    "not_after": _time("Until when it is valid."),
}
_AUTHORITY = {
    "authority": _text("Which kind of authority.", "x509", "issuing", "jwt"),
    "authority_id": _text("The authority's identifier: that of its key."),
    "not_after": _time("When it ends."),
    "certificate": _base64("A CA's certificate, in DER.", optional=True),
    "public_key": _base64("A JWT authority's public key, in DER.", optional=True),
    "source": _text("Who holds a root's key.", "own", "offline", "upstream", "external", optional=True),
    "hierarchy": _text("Which line of roots.", "classical", "post-quantum", optional=True),
    "environment": _text("The environment that an issuing CA is for; empty for the default.", optional=True),
    "sequence": _number("The trust bundle's sequence number from then on.", optional=True),
}
_FORCED = {
    "forced": _flag("Whether it was done although not all had confirmed."),
    "unconfirmed": _text("Who had not confirmed, where it was forced.", optional=True),
}
_ENTRY = {"entry": _text("The registration entry's id."), "revision": _number("Its revision, once it took effect.")}
_ENTRY_FACTS = _ENTRY | {
    "parent": _text("Under which node or group.", optional=True),
    "selectors": _texts("What a process must show.", optional=True),
    "managed_by": _text("Which tool keeps it, if one does.", optional=True),
    "admin": _flag("Present where it gives the rights of an administrator.", optional=True),
    "downstream": _flag("Present where it gives the right to a CA of its own.", optional=True),
}
_APPROVAL = {
    "approval": _text("The approval's id."),
    "operation": _text("What is to be approved."),
    "tenant": _text("For which tenant; empty for none."),
    "reason": _text("The reason given at this step."),
    "ends": _number("When it ends, in Unix seconds."),
}
_CHANGE = {
    "change": _text("The change's id."),
    "version": _text("The version that it would put in force."),
    "previous": _text("The version that it was compared with."),
    "reason": _text("The reason given at this step."),
    "state": _text("Where it stands after this step.", "pending", "approved", "refused", "withdrawn"),
    "ends": _number("When it ends, in Unix seconds."),
    "owners": _texts("Whose words it needs."),
    "evidence": _hex("The hash of the impact report at the time of the request.", optional=True),
}
_CONTAINMENT = {
    "containment": _text("The containment's id."),
    "spiffe_ids": _texts("All the identities."),
    "selector": _text("By which they were found, as it was given."),
    "reason": _text("The reason given at this step."),
    "generation": _number("Which list of contained identities enforcement points have from then on."),
    "evidence": _hex("The SHA-256 of the file of evidence: the snapshot of before it began, or of the past."),
}
_COUNTED = {
    "count": _number("How many times, from first to last."),
    "first": _time("The first time."),
    "last": _time("The last time."),
}
_ROLLOUT = {
    "version": _text("The version whose rules are rolled out."),
    "previous": _text("The version before, which points that are not reached keep."),
    "ring": _text("The ring that was reached last."),
}
_SEGMENT = {
    "segment": _text("The segment's path below the ledger's directory."),
    "sha256": _hex("The hash of the file."),
    "bytes": _number("The size of the file."),
    "rows": _number("Rows in it."),
    "first_row": _number("The number of its first row."),
    "last_row": _number("The number of its last row."),
    "decisions": _number("Calls that the rows stand for."),
    "lost": _number("Calls known to be lost, by its rows."),
    "first_time": _text("The time of its first row."),
    "last_time": _text("The time of its last row."),
    "previous": _hex("The hash of the segment before; empty for the first."),
}

_ALL = (
    Kind(
        "log.opened",
        "Once, first.",
        DOMAIN,
        {"origin": _text("The log's name."), "vkey": _text("Its verifier key."), "build": _text("The server's build.")},
    ),
    Kind(
        "log.key_added",
        "A further key signs the log's checkpoints from now on; the subject is the log's name.",
        "The log's name.",
        {"vkey": _text("Its verifier key."), "algorithm": _text("The signature algorithm.", "ml-dsa-44")},
    ),
    Kind(
        "log.pruned",
        "Old entries were removed from the log's files by the stated retention; the tree stays provable.",
        DOMAIN,
        {
            "from": _number("Entries below this index were gone before."),
            "before": _number("Entries below this index may be gone: the log's minimum index."),
            "root": _hex("The root of the tree of that size; the hashes under it stay."),
            "keep_days": _number("The retention that was in force; none where an administrator pruned.", optional=True),
            "reason": _text("Why, in words."),
        },
    ),
    Kind(
        "log.split_view",
        "A witness has seen another history under this log's key, or says so; signing stopped.",
        DOMAIN,
        {
            "size": _number("The size of our last checkpoint."),
            "ours": _hex("Its root."),
            "claim": _text("What was found.", optional=True),
            "theirs": _hex("The other root, where it was shown.", optional=True),
            "witness": _text("Who showed it.", optional=True),
        },
    ),
    Kind(
        "witness.quorum_lost",
        "Too few witnesses have signed a checkpoint for longer than the policy lets pass.",
        DOMAIN,
        {
            "size": _number("The size that a quorum last signed."),
            "since": _time("Since when.", optional=True),
            "missing": _texts("Witnesses that do not sign.", optional=True),
        },
    ),
    Kind(
        "witness.quorum_regained",
        "A quorum of witnesses signs again.",
        DOMAIN,
        {"size": _number("The size that a quorum has signed."), "since": _time("Since when.", optional=True)},
    ),
    Kind("ca.prepared", "An authority was made, and but for an issuing CA goes into the bundle.", DOMAIN, _AUTHORITY),
    Kind(
        "ca.activated",
        "It signs from now on.",
        DOMAIN,
        _AUTHORITY
        | {name: Field(one.type, one.meaning, optional=True) for name, one in _FORCED.items()}
        | {"by_schedule_at_last": _flag("Whether the calendar would wait no longer.", optional=True)},
    ),
    Kind("ca.tainted", "Nothing that stems from it should be held any more.", DOMAIN, _AUTHORITY),
    Kind("ca.revoked", "It leaves the bundle, and its keys are destroyed.", DOMAIN, _AUTHORITY | _FORCED),
    Kind("ca.discarded", "It was never used, and is gone.", DOMAIN, _AUTHORITY),
    Kind("ca.expired", "It ended, and is gone.", DOMAIN, _AUTHORITY),
    Kind("ca.trusted", "It is trusted, though nothing below it is issued here.", DOMAIN, _AUTHORITY),
    Kind(
        "ca.requested",
        "A request for an issuing CA below a root that is kept elsewhere.",
        DOMAIN,
        {"environment": _text("For which environment."), "authority_id": _text("The key's identifier.")},
    ),
    Kind(
        "ca.cross_signed",
        "Our root signed another one's key, or another signed ours.",
        DOMAIN,
        _AUTHORITY
        | {
            "direction": _text("Who signed.", "ours", "theirs"),
            "crossed": _text("The subject of the root whose key ours signed.", optional=True),
            "issuer": _text("The subject of the root that signed ours.", optional=True),
            "constrained": _flag("Whether it is limited to names.", optional=True),
        },
    ),
    Kind(
        "bundle.changed",
        "The trust bundle changed.",
        DOMAIN,
        {
            "sequence": _number("The bundle's sequence number."),
            "x509_authorities": _texts("Identifiers of its roots."),
            "jwt_authorities": _texts("Identifiers of its JWT keys."),
            "tainted": _texts("Identifiers of those that are tainted."),
        },
    ),
    Kind(
        "certificate.revoked",
        "A long-lived certificate was revoked.",
        "The SPIFFE ID that it was issued to.",
        {
            "serial": _hex("Its serial number."),
            "issuer_key_id": _hex("The key that signed it."),
            "reason": _text("Why (RFC 5280, 5.3.1)."),
            "profile": _text("Its profile."),
            "not_after": _time("Until when it would have been valid."),
        },
    ),
    Kind(
        "crl.published",
        "A CRL was signed.",
        "The CRL's address.",
        {
            "issuer_key_id": _hex("The key that signed it."),
            "shard": _text("Which CRL of that CA."),
            "number": _number("Its number (RFC 5280, 5.2.3)."),
            "revoked": _number("Certificates on it."),
            "next_update": _time("When the next is due."),
        },
    ),
    Kind(
        "policy.activated",
        "An estate was applied.",
        DOMAIN,
        {
            "version": _text("The version from now on."),
            "previous": _text("The version before; empty for the first."),
            "files": Field(Type.TEXT_MAP, "The estate's files: name to SHA-256."),
            "modes": Field(Type.TEXT_MAP, "Each service's mode of mTLS."),
            "author": _text("Who wrote the version.", optional=True),
            "approvers": _texts("Who approved of it.", optional=True),
            "evidence": _hex("The hash of the impact report that was looked at.", optional=True),
            "change": _text("The change that was approved.", optional=True),
            "break_glass": _text("Why approvals were skipped, where they were.", optional=True),
            "break_glass_until": _time("Until when it holds, where approvals were skipped.", optional=True),
            "approvals_missing": _flag("Present where it asked for approvals that nobody could give.", optional=True),
            "cause": _text("Why an earlier version came back, such as rollback or brake.", optional=True),
        },
    ),
    Kind(
        "rollout.started",
        "New rules began to go to enforcement points ring by ring.",
        DOMAIN,
        _ROLLOUT
        | {
            "rings": _texts("All rings, in order."),
            "breaks": _number("How many caller, service and operation are meant to be refused from now on."),
        },
    ),
    Kind("rollout.advanced", "New rules went to the next ring.", DOMAIN, _ROLLOUT),
    Kind(
        "rollout.paused",
        "A rollout was stopped, or goes on; its brake watches all the time.",
        DOMAIN,
        _ROLLOUT | {"paused": _text("Whether it stands.", "yes", "no")},
    ),
    Kind("rollout.finished", "New rules are in force everywhere, and nothing goes back by itself.", DOMAIN, _ROLLOUT),
    Kind(
        "rollout.braked",
        "A denial that nobody meant, and the rules before would not have made, brought these back everywhere.",
        DOMAIN,
        _ROLLOUT
        | {
            "service": _text("What was called."),
            "operation": _text("The operation; empty where none matched."),
            "caller": _text("Who was denied; empty where nothing was proven."),
            "peer": _text("The best name of a peer that proved nothing.", optional=True),
            "code": _text("The code of the denial."),
            "policy": _text("The policy that denied; empty for none."),
            "agent": _text("The agent that reported it."),
            "reference": _text("The denied call's reference; empty where it was only counted."),
        },
    ),
    Kind(
        "rollout.rolled_back",
        "Somebody brought the rules before back, or put others in force, while a rollout was under way.",
        DOMAIN,
        _ROLLOUT | {"to": _text("The version in force from then on.")},
    ),
    Kind(
        "mtls.overridden",
        "Somebody turned a service strict although the record says that callers would break, or is not enough.",
        "The service's name.",
        {
            "reason": _text("Why, in their words."),
            "previous": _text("The estate's version that was in force."),
            "against": _texts("What spoke against it."),
            "callers": _texts("Callers on record that strict mode refuses, by their best names; at most 100."),
            "breaks": _number("How many these are in all."),
        },
    ),
    Kind(
        "mode.changed",
        "An estate changed how strictly a service's port demands mTLS, or added or removed the service.",
        "The service's name.",
        {
            "version": _text("The estate's version that says so."),
            "mode": _text("The mode from now on; empty where the service is gone."),
            "previous": _text("The mode before; empty for a new service."),
        },
    ),
    Kind(
        "federation.changed",
        "Trust in a foreign trust domain began, changed or ended, or its bundle did.",
        "The foreign trust domain.",
        {
            "change": _text(
                "What changed.",
                "relationship_created",
                "relationship_updated",
                "relationship_deleted",
                "bundle_changed",
                "bundle_deleted",
            ),
            "endpoint_url": _text("Where its bundle is fetched.", optional=True),
            "profile": _text("How the endpoint proves itself.", optional=True),
            "endpoint_spiffe_id": _text("Whom the endpoint must be.", optional=True),
            "origin": _text("Who keeps the relationship.", optional=True),
            "sequence": _number("The bundle's sequence number.", optional=True),
            "x509_authorities": _texts("Its roots, as SHA-256 of their DER.", optional=True),
            "jwt_key_ids": _texts("Its JWT keys.", optional=True),
        },
    ),
    Kind(
        "join_token.created",
        "A join token was made; the token itself is nowhere in the log.",
        "The identity that the node will have besides its own, or empty.",
        {
            "group": _text("The node group it is for.", optional=True),
            "ttl": _number("How long it is good, in seconds."),
        },
    ),
    Kind(
        "token_key.published",
        "A key of transaction tokens was told to agents.",
        DOMAIN,
        {
            "key_id": _text("The key's identifier."),
            "public_key": _hex("The public key, in DER."),
            "signs_from": _number("From when it signs, in Unix seconds."),
        },
    ),
    Kind("token_key.dropped", "It was destroyed.", DOMAIN, {"key_id": _text("The key's identifier.")}),
    Kind(
        "token.minted",
        "A transaction token was made; neither the token nor its id is in the log.",
        "The workload that it was made for.",
        {
            "operation": _text("The operation that it is for."),
            "service": _text("That operation's service."),
            "tenant": _text("For which tenant; empty for none."),
            "transaction": _text("Which transaction."),
            "origin": _text("The workload that began it."),
            "hop": _number("How many workloads so far."),
            "certificate_sha256": _text("The certificate that the token is bound to."),
            "approval": _text("The approval that it rests on; empty for none."),
            "approver": _text("Who gave that; empty for none."),
            "key_id": _text("The key that signed."),
            "not_after": _time("Until when it is good."),
        },
    ),
    *(
        Kind(f"approval.{step}", f"An approval was {step}.", "The workload that is to act.", _APPROVAL)
        for step in ("requested", "granted", "refused", "withdrawn")
    ),
    *(
        Kind(f"change.{step}", f"A change of the estate was {step}.", DOMAIN, _CHANGE)
        for step in ("requested", "approved", "refused", "withdrawn")
    ),
    Kind(
        "containment.started",
        "Identities were cut off: nothing is issued to them, and every enforcement point refuses them.",
        "The first of the identities.",
        _CONTAINMENT,
    ),
    Kind(
        "containment.evidence",
        "What they did before they were cut off was looked up and kept; nothing changed by it.",
        "The first of the identities.",
        _CONTAINMENT,
    ),
    Kind("containment.ended", "They were let in again.", "The first of the identities.", _CONTAINMENT),
    Kind(
        "node.attested",
        "A node joined, or attested again in place of renewing.",
        "The node's SPIFFE ID.",
        {
            "attestation": _text("By which attestor."),
            "selectors": _texts("What it was found to be."),
            "serial": Field(Type.DECIMAL, "The serial of its certificate, in decimal."),
        },
    ),
    Kind(
        "node.attestation_refused",
        "Attempts to join that were refused, of one minute, one attestor and one reason.",
        "The attestor that was asked for; empty for one that is not configured.",
        _COUNTED
        | {
            "code": _text("The error's code."),
            "reason": _text("The refusal's kind."),
            "addresses": _texts("Where they came from: the first few addresses."),
        },
    ),
    Kind("node.banned", "A node was shut out.", "The node's SPIFFE ID."),
    Kind("node.evicted", "A node was forgotten by an administrator.", "The node's SPIFFE ID."),
    Kind(
        "node.purged",
        "A node that had ended was forgotten.",
        "The node's SPIFFE ID.",
        {"not_after": Field(Type.DECIMAL, "When it ended, in Unix seconds.")},
    ),
    *(
        Kind(f"entry.{what}", f"A registration was {what} through the API.", "The SPIFFE ID it gives.", _ENTRY_FACTS)
        for what in ("created", "changed", "deleted")
    ),
    Kind(
        "log_level.changed",
        "The running server's own log level was set or reset.",
        "The server.",
        {"level": _text("The level from now on.")},
    ),
    Kind(
        "config.loaded",
        "The server started, with these settings.",
        "The server.",
        {
            "sha256": _hex("The hash of server.toml."),
            "settings": Field(Type.OBJECT, "Effective settings as texts; of plug-ins only which are configured."),
            "build": _text("The server's build."),
        },
    ),
    Kind(
        "admin.login",
        "An administrator used rights here: calls counted, one entry in 15 minutes for each.",
        "The first method called.",
        _COUNTED | {"door": _text("How.", "socket", "port")},
    ),
    Kind(
        "admin.refused",
        "Somebody without the right tried to act as an administrator: counted, one entry in 15 minutes for each.",
        "The first method called.",
        _COUNTED | {"door": _text("How.", "socket", "port")},
    ),
    Kind(
        "x509_svid.issued",
        "A certificate was issued.",
        WORKLOAD,
        _ISSUANCE
        | _CERTIFICATE
        | {
            "dns_names": _texts("The DNS names in it."),
        },
    ),
    Kind(
        "jwt_svid.issued",
        "A token was issued; the token itself is nowhere in the log.",
        WORKLOAD,
        _ISSUANCE
        | {
            "header": Field(Type.OBJECT, "The token's header."),
            "claims": Field(Type.OBJECT, "The token's claims."),
            "signature_sha256": _hex("The hash of its signature: enough to recognise it, not to use it."),
            "issuer_key_id": _text("The key that signed it."),
            "not_after": _time("Until when it is valid."),
        },
    ),
    Kind(
        "downstream_ca.issued",
        "A CA certificate was issued to a server below this one.",
        "That server's SPIFFE ID.",
        _ISSUANCE
        | _CERTIFICATE
        | {
            "key_id": _hex("The new CA's key."),
            "path_length": _number("How many CAs may stand below it."),
        },
    ),
    Kind(
        "issuance.denied",
        "Requests for identities that were refused, of one minute, one caller and one reason.",
        "The SPIFFE ID that was asked for, where the server knows it; else empty.",
        _COUNTED
        | {
            "code": _text("The error's code."),
            "reason": _text("The refusal's kind."),
            "door": _text("The protocol by which the requests came in."),
            "caller_kind": _text("What the actor is to the server."),
            "entry_id": _text("The entry that was asked for, where it exists; else empty."),
            "policy_version": _text("The version of the estate in force; empty before the first."),
        },
    ),
    Kind(
        "evidence.collected",
        "Evidence about a principal was collected into an archive.",
        "The principal.",
        {"manifest_sha256": _hex("The hash of the archive's manifest, which has the hashes of all its files.")},
    ),
    Kind(
        "verify.finished",
        "Canaries asked enforcement points what they must allow and refuse, and this came of it.",
        DOMAIN,
        {
            "run": _hex("The run; the log's issuances to canaries name it as evidence."),
            "version": _text("The estate's version in force at its end."),
            "points": _number("Addresses of services that were to be asked."),
            "reached": _number("Those of them that answered."),
            "sidecars": _number("Sidecars that agents told of."),
            "checks": _number("What was tried."),
            "findings": _number("Drifts that were found."),
            "drifts": Field(Type.TEXT_MAP, "How many of each name."),
            "findings_sha256": _hex("The hash of what was found where: equal as long as the same is wrong."),
        },
    ),
    Kind("decision.segment.sealed", "A segment of the decision ledger was sealed.", "The segment.", _SEGMENT),
    Kind(
        "decision.segment.pruned",
        "A sealed segment was removed by the stated retention.",
        "The segment.",
        {
            "segment": _text("The segment's path below the ledger's directory."),
            "sha256": _hex("The hash that it was sealed with."),
            "rows": _number("Rows in it."),
            "decisions": _number("Calls that the rows stood for."),
            "last_time": _text("The time of its last row."),
            "reason": _text("The setting by which it went.", "keep_days"),
        },
    ),
)

KINDS = {kind.name: kind for kind in _ALL}
"""Every kind by its name."""
