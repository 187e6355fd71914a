"""The log entries of issuance: enough to find, prove and judge every credential, and nothing that is one.

Kinds: ``x509_svid.issued`` and ``downstream_ca.issued`` carry the certificate itself; ``jwt_svid.issued`` carries
header, claims and the hash of the signature, never the token.
"""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime
from hashlib import sha256
from typing import Any

from eastwest.issuance.downstream import DownstreamCa
from eastwest.issuance.request import DownstreamRequest, Instance, JwtRequest, Request, X509Request
from eastwest.log.entry import Entry, encode
from eastwest.pki.jwt import MintedJwt

X509_ISSUED = "x509_svid.issued"
JWT_ISSUED = "jwt_svid.issued"
DOWNSTREAM_CA_ISSUED = "downstream_ca.issued"


class Recording:
    """Encodes the entries of one call, whose time, trust domain, authority and policy are the same throughout."""

    __slots__ = ("_common",)

    def __init__(
        self, time: str, trust_domain: str, instance: Instance, request_id: str = "", policy_version: str = ""
    ) -> None:
        """``request_id`` tells which entries one call made; ``policy_version`` is that of the estate in force."""
        self._common = {
            "time": time,
            "trust_domain": trust_domain,
            "authority": instance.name,
            "authority_build": instance.build,
            "policy_version": policy_version,
        }
        if request_id:
            self._common["request"] = request_id

    def x509(
        self,
        request: X509Request,
        *,
        certificate: bytes,
        serial: int,
        spki: bytes,
        issuer_key_id: str,
        not_before: str,
        not_after: str,
    ) -> bytes:
        """The entry of one certificate. ``serial`` is written in hex, as it does not fit a JSON number."""
        body = self._body(request)
        body["certificate"] = b64encode(certificate).decode("ascii")
        body["certificate_sha256"] = sha256(certificate).hexdigest()
        body["serial"] = f"{serial:x}"
        body["spki_sha256"] = sha256(spki).hexdigest()
        body["issuer_key_id"] = issuer_key_id
        body["not_before"] = not_before
        body["not_after"] = not_after
        body["dns_names"] = request.dns_names
        if request.previous_serial:
            body["previous_serial"] = f"{request.previous_serial:x}"
        return encode(Entry(X509_ISSUED, body))

    def jwt(self, request: JwtRequest, minted: MintedJwt, expires_at: datetime) -> bytes:
        """The entry of one token, without the token."""
        body = self._body(request)
        body["header"] = minted.header
        body["claims"] = minted.claims
        body["signature_sha256"] = minted.signature_sha256
        body["issuer_key_id"] = minted.header["kid"]
        body["not_after"] = expires_at
        return encode(Entry(JWT_ISSUED, body))

    def ca(self, request: DownstreamRequest, issued: DownstreamCa, issuer_key_id: str) -> bytes:
        """The entry of one CA certificate."""
        body = self._body(request)
        body["certificate"] = b64encode(issued.certificate).decode("ascii")
        body["certificate_sha256"] = sha256(issued.certificate).hexdigest()
        body["serial"] = f"{issued.serial:x}"
        body["spki_sha256"] = sha256(issued.spki).hexdigest()
        body["key_id"] = issued.key_id
        body["issuer_key_id"] = issuer_key_id
        body["not_before"] = issued.not_before
        body["not_after"] = issued.not_after
        body["path_length"] = issued.path_length
        return encode(Entry(DOWNSTREAM_CA_ISSUED, body))

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = self._common.copy()
        body["actor"] = request.caller
        body["subject"] = str(request.spiffe_id)
        body["door"] = str(request.door)
        body["profile"] = request.profile
        body["node"] = request.node
        body["entry_id"] = request.entry_id
        body["entry_revision"] = request.entry_revision
        body["environment"] = request.environment
        body["evidence"] = request.evidence
        if request.caller_kind:
            body["caller_kind"] = request.caller_kind
        return body
