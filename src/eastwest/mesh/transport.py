"""TLS on both sides of a call: TLS 1.3 only, certificates and bundles by secret name, no session resumption.

A resumed session would outlive the certificate it began with, so nothing here resumes. Identity is not decided
here on the way in (the caller trees do that); on the way out the server must prove one exact SPIFFE ID under
the bundle of its own trust domain and no other. ``post_quantum``: the first of the lists below and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envoy.config.core.v3 import base_pb2, config_source_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2

from eastwest.mesh.matching import pack

_GROUPS = ("X25519MLKEM768", "X25519", "P-256")
"""Key exchange, best first: hybrid with everybody who can, so that what is recorded today stays secret."""
_SIGNATURES = (
    "mldsa65",
    "ecdsa_secp256r1_sha256",
    "ecdsa_secp384r1_sha384",
    "ed25519",
    "rsa_pss_rsae_sha256",
)
"""How a peer may prove its key: what profiles certify, and RSA for peers of other trust domains. Envoy's own defaults
know neither ML-DSA nor Ed25519."""
_HTTP = ("h2", "http/1.1")
"""Offered and taken, best first (ALPN)."""


def from_agent() -> Any:
    """Resources come over the config stream; a listener waits for them for ever rather than start without."""
    return config_source_pb2.ConfigSource(
        ads={}, resource_api_version=config_source_pb2.V3, initial_fetch_timeout={"seconds": 0}
    )


def downstream(spiffe_id: str, callers_secret: str, *, http: bool, post_quantum: bool = False) -> Any:
    """A listener's side: our certificate, and a client certificate from a trust domain we know."""
    context = tls_pb2.DownstreamTlsContext(
        common_tls_context=_common(spiffe_id, _HTTP if http else (), post_quantum=post_quantum),
        require_client_certificate={"value": True},
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
    )
    context.common_tls_context.validation_context_sds_secret_config.CopyFrom(_secret(callers_secret))
    return _socket(context)


def upstream(
    spiffe_id: str, server_id: str, server_bundle: str, *, sni: str, http: bool, post_quantum: bool = False
) -> Any:
    """A client's side: our certificate, and a server that is ``server_id`` under ``server_bundle``."""
    context = tls_pb2.UpstreamTlsContext(
        common_tls_context=_common(spiffe_id, _HTTP if http else (), post_quantum=post_quantum),
        sni=sni,
        max_session_keys={"value": 0},
    )
    combined = context.common_tls_context.combined_validation_context
    combined.validation_context_sds_secret_config.CopyFrom(_secret(server_bundle))
    combined.default_validation_context.match_typed_subject_alt_names.add(
        san_type=common_pb2.SubjectAltNameMatcher.URI, matcher={"exact": server_id}
    )
    return _socket(context)


def _common(spiffe_id: str, alpn: Sequence[str], *, post_quantum: bool) -> Any:
    return tls_pb2.CommonTlsContext(
        tls_params={
            "tls_minimum_protocol_version": common_pb2.TlsParameters.TLSv1_3,
            "tls_maximum_protocol_version": common_pb2.TlsParameters.TLSv1_3,
            "ecdh_curves": _GROUPS[:1] if post_quantum else _GROUPS,
            "signature_algorithms": _SIGNATURES[:1] if post_quantum else _SIGNATURES,
        },
        tls_certificate_sds_secret_configs=[_secret(spiffe_id)],
        alpn_protocols=alpn,
    )


def _secret(name: str) -> Any:
    return secret_pb2.SdsSecretConfig(name=name, sds_config=from_agent())


def _socket(context: Any) -> Any:
    return base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(context))
