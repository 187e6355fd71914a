"""Every metric of server and agent: names, kinds, labels and units, which dashboards and alerts may rely on.

Names are those that Prometheus shows, so a counter's ends in ``_total``. They are never renamed; labels have few values
that configuration bounds (services, sinks, classes), and never an identity or anything that a peer chose.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """One family. ``unit``: ``1`` for plain numbers and ratios, ``s`` for seconds, ``By`` for bytes (UCUM)."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    unit: str
    help: str
    when: str = ""  # what must be configured for it to be there; "" for always


SERVER = (
    Metric("eastwest_svids_issued_total", "counter", ("kind", "profile"), "1", "SVIDs that left the process."),
    Metric("eastwest_issuance_refused_total", "counter", ("code",), "1", "Requests of a batch that got no SVID."),
    Metric(
        "eastwest_issuances_total",
        "counter",
        ("door", "outcome"),
        "1",
        "Requests for SVIDs by door; outcome: issued, or the code of the refusal.",
    ),
    Metric("eastwest_issuance_seconds", "histogram", ("door",), "s", "Time of one issuance call, batch or single."),
    Metric(
        "eastwest_token_requests_total",
        "counter",
        ("outcome",),
        "1",
        "Requests for transaction tokens; outcome: issued, or the code of the refusal.",
    ),
    Metric("eastwest_log_size", "gauge", (), "1", "Entries in the published log."),
    Metric("eastwest_log_checkpoint_age_seconds", "gauge", (), "s", "Time since the last checkpoint was published."),
    Metric(
        "eastwest_log_witness_age_seconds",
        "gauge",
        (),
        "s",
        "Time since a quorum of witnesses last signed the log.",
        "witnesses",
    ),
    Metric(
        "eastwest_log_witness_requests_total",
        "counter",
        ("witness", "outcome"),
        "1",
        "Checkpoints sent to a witness; outcome: signed, refused, failed.",
        "witnesses",
    ),
    Metric("eastwest_agents_connected", "gauge", (), "1", "Open control streams."),
    Metric("eastwest_control_updates_total", "counter", (), "1", "Updates pushed to agents."),
    Metric(
        "eastwest_control_ack_seconds",
        "histogram",
        (),
        "s",
        "Time from pushing an update until the agent has applied it.",
    ),
    Metric(
        "eastwest_control_acks_outstanding",
        "gauge",
        (),
        "1",
        "Connected agents that have not applied the newest update pushed to them.",
    ),
    Metric("eastwest_verify_findings", "gauge", ("drift",), "1", "Drifts that the last verify run found."),
    Metric(
        "eastwest_verify_last_run_timestamp_seconds",
        "gauge",
        (),
        "s",
        "When the last verify run ended (Unix time); 0: none since the start.",
    ),
    Metric("eastwest_estate_activations_total", "counter", (), "1", "Estates put in force since the start."),
    Metric("eastwest_break_glass", "gauge", (), "1", "1 while a version is in force whose approvals were skipped."),
    Metric("eastwest_rollout_open", "gauge", (), "1", "1 while new rules go to enforcement points ring by ring."),
    Metric("eastwest_rollout_ring", "gauge", (), "1", "The ring that they have reached, from 0; -1 while none do."),
    Metric("eastwest_rollout_paused", "gauge", (), "1", "1 while the rollout is paused."),
    Metric(
        "eastwest_rollout_ended_total",
        "counter",
        ("state",),
        "1",
        "Rollouts that ended since the start; state: finished, braked, rolled-back, replaced.",
    ),
    Metric(
        "eastwest_certificate_expiry_timestamp_seconds",
        "gauge",
        ("certificate",),
        "s",
        "When the first certificate of a kind ends (Unix time): server, issuing, root.",
    ),
    Metric("eastwest_decisions_stored_total", "counter", (), "1", "Ledger rows stored."),
    Metric("eastwest_decisions_lost_total", "counter", (), "1", "Decisions that agents lost."),
    Metric("eastwest_ledger_unsealed_rows", "gauge", (), "1", "Ledger rows that are not in a sealed segment yet."),
    Metric("eastwest_calls_total", "counter", ("service", "verdict"), "1", "Calls decided, by the policy's word."),
    Metric(
        "eastwest_failures_total",
        "counter",
        ("service", "class", "enforced"),
        "1",
        "Calls that identity or policy made fail; enforced=false: only reported.",
    ),
    Metric("eastwest_slo_calls_total", "counter", ("slo",), "1", "Calls that an objective of the estate is about."),
    Metric(
        "eastwest_slo_failures_total",
        "counter",
        ("slo",),
        "1",
        "Of these, the ones that failed by the objective's classes.",
    ),
    Metric("eastwest_slo_objective_ratio", "gauge", ("slo",), "1", "The objective, as a part of 1."),
    Metric("eastwest_contained_identities", "gauge", (), "1", "Identities that are cut off."),
    Metric(
        "eastwest_containment_points_behind",
        "gauge",
        (),
        "1",
        "Enforcement points that do not refuse all contained identities yet, or are away; 0 while nobody is contained.",
    ),
    Metric(
        "eastwest_containment_connections_closed",
        "gauge",
        (),
        "1",
        "Connections of contained identities that connected agents have closed since they started.",
    ),
    Metric(
        "eastwest_federated_bundle_age_seconds",
        "gauge",
        ("trust_domain",),
        "s",
        "Time since the bundle endpoint last gave a good bundle.",
    ),
    Metric(
        "eastwest_federated_bundle_last_success_timestamp_seconds",
        "gauge",
        ("trust_domain",),
        "s",
        "When the bundle endpoint last gave a good bundle.",
    ),
    Metric("eastwest_export_rows_total", "counter", ("sink",), "1", "Ledger rows delivered to a sink.", "exports"),
    Metric(
        "eastwest_export_missed_rows_total",
        "counter",
        ("sink",),
        "1",
        "Ledger rows that a sink did not get: removed before, or refused by it.",
        "exports",
    ),
    Metric("eastwest_export_failing", "gauge", ("sink",), "1", "1 while a sink does not take rows.", "exports"),
)
"""Of the server's ``/metrics``."""

AGENT = (
    Metric("eastwest_agent_connected", "gauge", (), "1", "1 while the server's subscription is up."),
    Metric("eastwest_agent_updates_total", "counter", (), "1", "Updates applied."),
    Metric("eastwest_agent_state_number", "gauge", (), "1", "Number of the state held."),
    Metric("eastwest_agent_entries", "gauge", (), "1", "Entries held."),
    Metric("eastwest_agent_x509_svids", "gauge", (), "1", "X.509-SVIDs held."),
    Metric("eastwest_agent_x509_rotations_total", "counter", (), "1", "X.509-SVIDs replaced by newer ones."),
    Metric("eastwest_agent_x509_failures_total", "counter", (), "1", "Attempts to sign one entry that failed."),
    Metric(
        "eastwest_agent_x509_svid_seconds",
        "gauge",
        (),
        "s",
        "Seconds that the X.509-SVID which ends first still lives; the agent's own where it holds no other.",
    ),
    Metric("eastwest_agent_own_svid_seconds", "gauge", (), "s", "Seconds that the agent's certificate still lives."),
    Metric("eastwest_agent_sidecars", "gauge", (), "1", "Envoys with an open config stream."),
    Metric("eastwest_agent_log_entries_total", "counter", (), "1", "Access log entries received from sidecars."),
    Metric(
        "eastwest_agent_plaintext_connections_total",
        "counter",
        (),
        "1",
        "Plaintext connections about which sidecars asked who is there.",
    ),
    Metric(
        "eastwest_agent_plaintext_named_total",
        "counter",
        (),
        "1",
        "Plaintext connections whose process on this node was found.",
    ),
    Metric("eastwest_agent_decisions_total", "counter", (), "1", "Decisions told to the server, lost ones included."),
    Metric(
        "eastwest_agent_decisions_lost_total",
        "counter",
        (),
        "1",
        "Decisions known to be lost, each told to the server.",
    ),
    Metric("eastwest_agent_spool_bytes", "gauge", (), "By", "Bytes of decisions that wait for the server."),
    Metric("eastwest_agent_spool_limit_bytes", "gauge", (), "By", "Bytes that may wait."),
    Metric("eastwest_agent_spool_decisions", "gauge", (), "1", "Decisions that wait for the server."),
    Metric("eastwest_agent_spool_failing", "gauge", (), "1", "1 while the spool's disk cannot be used."),
)
"""Of an agent's ``/metrics``, where it has a ``health_port``."""

BY_NAME = {metric.name: metric for metric in (*SERVER, *AGENT)}
