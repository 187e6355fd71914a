"""Node attestation by a certificate that the node was given beforehand, and possession of its key.

The wire, the agent's ID and the selectors are SPIRE's: ``x509pop:subject:cn:``, ``x509pop:ca:fingerprint:`` for each
authority of the chain, ``x509pop:serialnumber:``, and ``x509pop:san:KEY:VALUE`` for each URI ``x509pop://TD/KEY/VALUE``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal, Self, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID

from eastwest.attest.node import AGENT_PREFIX, Attested, Challenge, NodeContext
from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.errors import InvalidInput, PermissionDenied
from eastwest.pki.chain import InvalidSvid, build_path, verify_chain
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.plugins.x509pop_wire import (
    NONCE_BYTES,
    Answer,
    AttestationData,
    DevicePublicKey,
    check_answer,
    question_for,
)
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId, TrustDomain
from eastwest.spiffe.selector import MAX_SELECTOR_LENGTH, Selector

T = TypeVar("T")
MAX_CERTIFICATE = 64 * 1024
MIN_RSA_BITS = 2048
MAX_URI_NAMES = 64
_EXTERNAL_PATH = "/{{ .PluginName }}/{{ .Fingerprint }}"
_SPIFFE_PATH = "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}"


class X509PopAttestor:
    """Lets a node in for a certificate under the given authorities, as often as it proves to have the key."""

    name = "x509pop"

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[node_attestors.x509pop]``, named as SPIRE names them."""

        mode: Literal["external_pki", "spiffe"] = "external_pki"
        ca_bundle_path: str = ""
        ca_bundle_paths: list[str] = []
        svid_prefix: str = "/spire-exchange/"
        agent_path_template: str = ""
        max_intermediates: int = 4
        max_rsa_key_size: int = 8192
        verify_client_ip: bool = False

    def __init__(
        self,
        options: Options,
        roots: Iterable[x509.Certificate],
        trust_domain: TrustDomain,
        bundle: Callable[[], Bundle],
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._options = options
        self._roots = tuple(roots)
        self._trust_domain = trust_domain
        self._bundle = bundle
        self._clock = clock
        self._entropy = entropy
        default = _EXTERNAL_PATH if options.mode == "external_pki" else _SPIFFE_PATH
        self._path = PathTemplate(options.agent_path_template or default)

    @classmethod
    def from_options(cls, options: Options, context: NodeContext) -> Self:
        """As the entry point makes it; reads the authorities' files."""
        if options.ca_bundle_path and options.ca_bundle_paths:
            raise InvalidInput("ca_bundle_path and ca_bundle_paths are both set", fix="keep one of them")
        paths = [options.ca_bundle_path] if options.ca_bundle_path else options.ca_bundle_paths
        if options.mode == "spiffe" and paths:
            raise InvalidInput(
                "in mode spiffe the trust domain's own authorities count, and ca_bundle_path is set", fix="remove it"
            )
        if options.mode == "external_pki" and not paths:
            raise InvalidInput(
                "ca_bundle_path is missing", fix="name a PEM file with the authorities that nodes' certificates are of"
            )
        if not 1 <= options.max_intermediates <= 16:
            raise InvalidInput(f"max_intermediates is {options.max_intermediates}", fix="choose 1 to 16")
        if not MIN_RSA_BITS <= options.max_rsa_key_size <= 16384:
            raise InvalidInput(f"max_rsa_key_size is {options.max_rsa_key_size}", fix=f"choose {MIN_RSA_BITS} to 16384")
        if not options.svid_prefix.startswith("/"):
            raise InvalidInput("svid_prefix does not begin with a slash", fix='write it like "/spire-exchange/"')
        roots = [root for path in paths for root in read_authorities(path)]
        return cls(options, roots, context.trust_domain, context.bundle, context.clock, context.entropy)

    async def attest(self, payload: bytes, challenge: Challenge) -> Attested:
        chain = self._parse(payload)
        leaf, key = chain[0], self._check_key(chain)
        authorities = self._verify(chain)
        if self._options.verify_client_ip:
            _check_address(leaf, challenge.address)
        nonce = self._entropy.token_bytes(NONCE_BYTES)
        question = msgspec.json.encode(question_for(key, nonce))
        check_answer(key, nonce, _decode(await challenge(question), Answer, "the answer"))
        trimmed = self._exchanged_path(leaf) if self._options.mode == "spiffe" else ""
        names = self._san_selectors(leaf)
        path = self._path.render(_values(leaf, self._trust_domain, trimmed, names))
        try:
            self._trust_domain.id(path)
        except MalformedSpiffeId:
            raise PermissionDenied(
                "the certificate's names make no agent ID under this server's agent_path_template",
                fix="use names of a-z A-Z 0-9 . _ - in the certificate, or another agent_path_template",
            ) from None
        return Attested(path, frozenset(_selectors(leaf, authorities, names)), can_reattest=True)

    def _parse(self, payload: bytes) -> list[x509.Certificate]:
        ders = _decode(payload, AttestationData, "the payload").certificates
        most = 1 + self._options.max_intermediates
        if not 1 <= len(ders) <= most:
            raise InvalidInput(f"the payload has {len(ders)} certificates; 1 to {most} are accepted")
        if any(len(der) > MAX_CERTIFICATE for der in ders):
            raise InvalidInput(f"a certificate has more than {MAX_CERTIFICATE} bytes")
        try:
            return [x509.load_der_x509_certificate(der) for der in ders]
        except PARSE_ERRORS:
            raise InvalidInput("the payload has a certificate that cannot be read") from None

    def _check_key(self, chain: list[x509.Certificate]) -> DevicePublicKey:
        """The leaf's key. Sizes come before any arithmetic: a verification costs more the larger the key."""
        try:
            keys = [certificate.public_key() for certificate in chain]
            usage = chain[0].extensions.get_extension_for_class(x509.KeyUsage).value
        except x509.ExtensionNotFound:
            raise PermissionDenied("the node's certificate does not state its key usage") from None
        except PARSE_ERRORS:
            raise InvalidInput("the payload has a certificate that cannot be read") from None
        if not usage.digital_signature:
            raise PermissionDenied("the node's certificate is not for digital signatures")
        for key in keys:
            if isinstance(key, rsa.RSAPublicKey) and not (
                MIN_RSA_BITS <= key.key_size <= self._options.max_rsa_key_size
            ):
                raise InvalidInput(f"an RSA key has {key.key_size} bits")
        key = keys[0]
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
            raise InvalidInput("the node's key is neither RSA, ECDSA nor Ed25519")
        return key

    def _verify(self, chain: list[x509.Certificate]) -> list[x509.Certificate]:
        """The authorities above the leaf, root included."""
        now = self._clock.now()
        if self._options.mode == "spiffe":
            roots = [authority.der for authority in self._bundle().x509_authorities]
            ders = [certificate.public_bytes(Encoding.DER) for certificate in chain]
            try:
                verify_chain(ders, roots, now, self._trust_domain)
                return build_path(chain, roots)[1:]
            except InvalidSvid as error:
                raise PermissionDenied(f"the node's certificate is refused: {error.message}") from None
        return verify_device(chain, self._roots, now, self._options.max_intermediates)

    def _exchanged_path(self, leaf: x509.Certificate) -> str:
        [name] = _uris(leaf)  # verify_chain has seen that there is one
        prefix = self._options.svid_prefix.rstrip("/") + "/"
        path = SpiffeId.parse(name).path
        if not path.startswith(prefix) or path == prefix:
            raise PermissionDenied(f"the node's SPIFFE ID is not under {prefix}, which this server exchanges")
        return path.removeprefix(prefix)

    def _san_selectors(self, leaf: x509.Certificate) -> dict[str, str]:
        start = f"x509pop://{self._trust_domain.name}/"
        found = {}
        for uri in _uris(leaf)[:MAX_URI_NAMES]:
            if uri.startswith(start):
                key, slash, value = unquote(urlsplit(uri).path).strip("/").partition("/")
                if key and slash and value and len(key) + len(value) < MAX_SELECTOR_LENGTH - 20:
                    found[key] = value
        return found


class PathTemplate:
    """An agent's path with the names of a certificate in it: SPIRE's templates without functions and logic."""

    def __init__(self, text: str) -> None:
        rest = _FIELD.sub("", text)
        if "{{" in rest or "}}" in rest:
            raise InvalidInput(
                "agent_path_template has an expression that is not known here",
                fix=f"use {', '.join('{{ .' + name + ' }}' for name in _FIELDS)} or {{{{ .URISanSelectors.KEY }}}}",
            )
        for name in _FIELD.findall(text):
            if name not in _FIELDS and not name.startswith("URISanSelectors."):
                raise InvalidInput(
                    f"agent_path_template has {{{{ .{name} }}}}, which is not known here",
                    fix=f"known: {', '.join(_FIELDS)}, URISanSelectors.KEY",
                )
        if not _FIELD.search(text):
            raise InvalidInput(
                "agent_path_template is the same for all nodes", fix="use {{ .Fingerprint }} or another name in it"
            )
        self._text = text

    def render(self, values: Mapping[str, str]) -> str:
        """The path; raises ``PermissionDenied`` when the certificate lacks a name or has one that spans segments."""

        def value(match: re.Match[str]) -> str:
            name = match[1]
            found = values.get(name, "")
            if not found or ("/" in found and name != "SVIDPathTrimmed"):
                raise PermissionDenied(f"the node's certificate has no {name} that can be part of an agent's ID")
            return found

        return AGENT_PREFIX + _FIELD.sub(value, self._text).lstrip("/")


def verify_device(
    chain: list[x509.Certificate], roots: Iterable[x509.Certificate], now: datetime, max_intermediates: int
) -> list[x509.Certificate]:
    """The path from ``chain[0]`` to one of ``roots`` without the leaf; raises ``PermissionDenied``.

    RFC 5280 with name constraints, whatever the extended key usage, as SPIRE verifies. The leaf may not be an
    authority itself, whose holder could make any number of nodes.
    """
    permit_all, agnostic = verification.ExtensionPolicy.permit_all(), verification.Criticality.AGNOSTIC
    authorities = permit_all.require_present(x509.BasicConstraints, agnostic, _is_authority).may_be_present(
        x509.KeyUsage, agnostic, _may_sign
    )
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(list(roots)))
        .time(now)
        .max_chain_depth(max_intermediates)
        .extension_policies(ca_policy=authorities, ee_policy=permit_all)
        .build_client_verifier()
    )
    try:
        path = verifier.verify(chain[0], chain[1:]).chain
        extensions = chain[0].extensions
    except verification.VerificationError:
        # Its words can quote the certificates.
        raise PermissionDenied(
            "the node's certificate does not lead to a configured authority, or is not valid now",
            fix="look at ca_bundle_path on the server, at the intermediates the node sends, and at both clocks",
        ) from None
    except PARSE_ERRORS:
        raise InvalidInput("the node's certificate has malformed extensions") from None
    for extension in extensions:
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            raise PermissionDenied("the node's certificate is an authority's")
    return path[1:]


def read_authorities(path: str) -> list[x509.Certificate]:
    """The certificates of a PEM file; raises ``InvalidInput`` that names it."""
    try:
        return x509.load_pem_x509_certificates(Path(path).read_bytes())
    except OSError as error:
        raise InvalidInput(f"the authorities cannot be read: {error.strerror}", where=path) from None
    except PARSE_ERRORS:
        raise InvalidInput("the file holds no PEM certificates, or a damaged one", where=path) from None


def _is_authority(
    _policy: verification.Policy, _certificate: x509.Certificate, constraints: x509.BasicConstraints
) -> None:
    if not constraints.ca:
        raise ValueError("not a CA")


def _may_sign(_policy: verification.Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("not for signing certificates")


def _check_address(leaf: x509.Certificate, address: str) -> None:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = {str(found) for found in names.get_values_for_type(x509.IPAddress)}
    except x509.ExtensionNotFound:
        addresses = set()
    if not address or address not in addresses:
        raise PermissionDenied("the node calls from an address that its certificate does not name")


def _selectors(
    leaf: x509.Certificate, authorities: Iterable[x509.Certificate], names: Mapping[str, str]
) -> Iterable[Selector]:
    common_name = _common_name(leaf)
    if common_name:
        yield Selector("x509pop", f"subject:cn:{common_name}")
    for authority in authorities:
        yield Selector("x509pop", f"ca:fingerprint:{_fingerprint(authority)}")
    yield Selector("x509pop", f"serialnumber:{_serial(leaf)}")
    for key, value in names.items():
        yield Selector("x509pop", f"san:{key}:{value}")


def _values(
    leaf: x509.Certificate, trust_domain: TrustDomain, trimmed: str, names: Mapping[str, str]
) -> dict[str, str]:
    return {
        "PluginName": "x509pop",
        "TrustDomain": trust_domain.name,
        "Fingerprint": _fingerprint(leaf),
        "SerialNumberHex": _serial(leaf),
        "Subject.CommonName": _common_name(leaf),
        "SVIDPathTrimmed": trimmed,
    } | {f"URISanSelectors.{key}": value for key, value in names.items()}


def _common_name(leaf: x509.Certificate) -> str:
    found = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    # Of several Go takes the last.
    return str(found[-1].value)[: MAX_SELECTOR_LENGTH // 2] if found else ""


def _serial(leaf: x509.Certificate) -> str:
    text = f"{leaf.serial_number:x}"
    return text if len(text) % 2 == 0 else f"0{text}"


def _fingerprint(certificate: x509.Certificate) -> str:
    # SPIRE names nodes and authorities by SHA-1; nothing is proved by it.
    return hashlib.sha1(certificate.public_bytes(Encoding.DER), usedforsecurity=False).hexdigest()


def _uris(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return list(names.get_values_for_type(x509.UniformResourceIdentifier))


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidInput(f"{what} is not of SPIRE's form for x509pop") from None


_FIELDS = ("PluginName", "Fingerprint", "SerialNumberHex", "Subject.CommonName", "SVIDPathTrimmed", "TrustDomain")
_FIELD = re.compile(r"\{\{\s*\.([A-Za-z][A-Za-z0-9._-]*)\s*\}\}")
