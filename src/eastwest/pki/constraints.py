"""Name constraints: which names the certificates below a CA may carry (RFC 5280, 4.2.1.10 and 6.1.3 b, c).

Evaluated for URI, DNS, directory, mail and IP names. A constraint on any other kind of name refuses the path, critical
or not: what cannot be evaluated must not be taken for kept.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

from eastwest.spiffe.id import TrustDomain

MAX_COMPARISONS = 4096
"""Names times constraints along one path; more is an attempt to keep the verifier busy."""


def uri_host_constraint(trust_domain: TrustDomain) -> x509.NameConstraints | None:
    """Permits the URI names of one trust domain alone; None for a trust domain that is no domain name.

    Other kinds of names (DNS and so on) stay free. An IP address or an underscore cannot be a URI constraint.
    """
    labels = trust_domain.name.split(".")
    if "_" in trust_domain.name or labels[-1].isdigit() or not all(labels):
        return None
    return x509.NameConstraints([x509.UniformResourceIdentifier(trust_domain.name)], None)


def violation(path: Sequence[x509.Certificate]) -> str:
    """Why a path (leaf first, root last) breaks a constraint of one of its CAs; empty when it breaks none.

    A self-issued certificate in the middle of a path is exempt (RFC 5280, 6.1.3). Raises one of
    ``eastwest.pki.parsing.PARSE_ERRORS`` for extensions that cannot be read.
    """
    left = MAX_COMPARISONS
    for depth, issuer in enumerate(path[1:], start=1):
        constraints = _constraints(issuer)
        if constraints is None:
            continue
        permitted = list(constraints.permitted_subtrees or ())
        excluded = list(constraints.excluded_subtrees or ())
        if not all(isinstance(each, _KINDS) for each in (*permitted, *excluded)):
            return "a CA constrains a kind of name that is not understood"
        for position, subject in enumerate(path[:depth]):
            if position and subject.subject == subject.issuer:
                continue
            names = list(_names(subject))
            left -= len(names) * (len(permitted) + len(excluded))
            if left < 0:
                return "there are too many names and name constraints"
            for name in names:
                if _breaks(name, permitted, excluded):
                    return f"a name of certificate {position} lies outside what certificate {depth} may certify"
    return ""


def _constraints(certificate: x509.Certificate) -> x509.NameConstraints | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return None


def _names(certificate: x509.Certificate) -> Iterator[x509.GeneralName]:
    """Subject alternative names, the subject, and a subject's mail address where no alternative name has one."""
    alternatives: list[x509.GeneralName] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        alternatives = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    yield from alternatives
    if list(certificate.subject):
        yield x509.DirectoryName(certificate.subject)
    if not any(isinstance(name, x509.RFC822Name) for name in alternatives):
        for attribute in certificate.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS):
            yield x509.RFC822Name(str(attribute.value))


def _breaks(
    name: x509.GeneralName, permitted: Iterable[x509.GeneralName], excluded: Iterable[x509.GeneralName]
) -> bool:
    matches = _MATCHERS.get(type(name))
    if matches is None:
        return False  # no constraint is of this kind, or violation() has refused it
    ours = [each.value for each in permitted if type(each) is type(name)]
    theirs = [each.value for each in excluded if type(each) is type(name)]
    if not ours and not theirs:
        return False
    try:
        return (bool(ours) and not any(matches(name.value, each) for each in ours)) or any(
            matches(name.value, each) for each in theirs
        )
    except _Unmatchable:
        return True


class _Unmatchable(Exception):
    """A name of a constrained kind that cannot be compared, which breaks the constraint."""


def _uri_matches(uri: str, constraint: str) -> bool:
    try:
        host = urlsplit(uri).hostname or ""
    except ValueError:
        raise _Unmatchable from None
    if not host or _is_address(host):
        raise _Unmatchable  # RFC 5280: such a name must be refused where URIs are constrained
    return _host_matches(host, constraint)


def _host_matches(host: str, constraint: str) -> bool:
    """A leading dot stands for one or more labels; without it the host must be equal."""
    host, constraint = host.lower(), constraint.lower()
    if constraint.startswith("."):
        return host.endswith(constraint) and len(host) > len(constraint)
    return host == constraint


def _dns_matches(name: str, constraint: str) -> bool:
    """Zero or more labels may be added on the left; an empty constraint matches all."""
    name, constraint = name.lower(), constraint.lower()
    if not constraint or constraint.startswith("."):
        return not constraint or (name.endswith(constraint) and len(name) > len(constraint))
    return name == constraint or name.endswith("." + constraint)


def _mail_matches(address: str, constraint: str) -> bool:
    local, at, host = address.rpartition("@")
    if not at or not local:
        raise _Unmatchable
    if "@" in constraint:
        wanted, _, wanted_host = constraint.rpartition("@")
        return local == wanted and host.lower() == wanted_host.lower()
    return _host_matches(host, constraint)


def _directory_matches(name: x509.Name, constraint: x509.Name) -> bool:
    ours, wanted = [_rdn(each) for each in name.rdns], [_rdn(each) for each in constraint.rdns]
    return ours[: len(wanted)] == wanted


def _rdn(rdn: x509.RelativeDistinguishedName) -> frozenset[tuple[str, Any]]:
    # Compared without regard to case and runs of spaces (RFC 5280, 7.1), so that an exclusion is not got round by them.
    return frozenset(
        (each.oid.dotted_string, " ".join(each.value.casefold().split()) if isinstance(each.value, str) else each.value)
        for each in rdn
    )


def _address_matches(address: Any, constraint: Any) -> bool:
    return address.version == constraint.version and address in constraint


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


_MATCHERS: dict[type[x509.GeneralName], Callable[[Any, Any], bool]] = {
    x509.UniformResourceIdentifier: _uri_matches,
    x509.DNSName: _dns_matches,
    x509.RFC822Name: _mail_matches,
    x509.DirectoryName: _directory_matches,
    x509.IPAddress: _address_matches,
}
_KINDS = tuple(_MATCHERS)
