"""Which selectors attestors can produce, so that one which none ever could is refused when it is written.

A misspelt selector is no error to any attestor: it just never matches. ``SelectorSchemas.check`` finds such texts.
The types of SPIRE's own attestors and ours are known here, spelled as SPIRE spells them; plug-ins add theirs
(``SelectorSchemas.with_types``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from eastwest.errors import InvalidInput
from eastwest.spiffe.selector import Selector

MAX_LISTED = 16


class ImpossibleSelector(InvalidInput):
    """No attestor could ever produce this selector."""


@dataclass(frozen=True, slots=True)
class Form:
    """The form that the text after a key has, and the sentence that asks for it."""

    pattern: re.Pattern[str]
    fix: str


@dataclass(frozen=True, slots=True)
class SelectorSchema:
    """The selectors of one type: the form of each key's value. ``None`` for ``keys``: any value may come."""

    type: str
    keys: Mapping[str, Form] | None

    def check(self, selector: Selector) -> None:
        """Raise ``ImpossibleSelector`` when no attestor of this type could give ``selector``."""
        if self.keys is None:
            return
        shown = str(selector)[:120]
        # The longest key first: pod-image-count must not be read as pod-image.
        found = [key for key in self.keys if selector.value == key or selector.value.startswith(f"{key}:")]
        if not found:
            raise ImpossibleSelector(f"{shown!r} is not a {self.type} selector", fix=self._near(selector.value))
        key = max(found, key=len)
        value = selector.value[len(key) + 1 :]
        form = self.keys[key]
        if not value:
            raise ImpossibleSelector(f"{shown!r} has no value", fix=f"write {self.type}:{key}:VALUE")
        if not form.pattern.fullmatch(value):
            raise ImpossibleSelector(f"{shown!r} can never match", fix=form.fix)

    def _near(self, value: str) -> str:
        assert self.keys is not None
        first = value.partition(":")[0]
        heads = {key.partition(":")[0] for key in self.keys}
        near = difflib.get_close_matches(value if first in heads else first, list(self.keys), n=1, cutoff=0.5)
        if near:
            return f"did you mean {self.type}:{near[0]}:VALUE?"
        known = sorted(self.keys)
        more = ", ..." if len(known) > MAX_LISTED else ""
        return f"{self.type} knows {', '.join(known[:MAX_LISTED])}{more}"


class SelectorSchemas:
    """What is known of selectors, by type."""

    def __init__(self, schemas: Iterable[SelectorSchema]) -> None:
        self._schemas = {schema.type: schema for schema in schemas}

    @property
    def types(self) -> tuple[str, ...]:
        """The known types, sorted."""
        return tuple(sorted(self._schemas))

    def with_types(self, names: Iterable[str]) -> SelectorSchemas:
        """These, and further types of which nothing is known but that some attestor gives them."""
        added = [SelectorSchema(name, None) for name in names if name not in self._schemas]
        return SelectorSchemas([*self._schemas.values(), *added])

    def check(self, selector: Selector) -> None:
        """Raise ``ImpossibleSelector``, with a suggestion, when no known attestor could give ``selector``."""
        schema = self._schemas.get(selector.type)
        if schema is not None:
            schema.check(selector)
            return
        near = difflib.get_close_matches(selector.type, self._schemas, n=1, cutoff=0.6)
        raise ImpossibleSelector(
            f"{str(selector)[:120]!r}: no attestor gives selectors of type {selector.type[:40]!r}",
            fix=(f"did you mean {near[0]}:...? " if near else "")
            + "a plug-in's own type is declared by selector_types in server.toml",
        )


_ANY = Form(re.compile(r".+", re.DOTALL), "write a value")
_NUMBER = Form(re.compile(r"0|[1-9][0-9]{0,9}"), "write a number without sign or leading zero")
_PATH = Form(re.compile(r"/.+", re.DOTALL), "write an absolute path")
_SHA256 = Form(re.compile(r"[0-9a-f]{64}"), "write 64 hexadecimal digits, lower case")
_SHA1 = Form(re.compile(r"[0-9a-f]{40}"), "write 40 hexadecimal digits, lower case")
_HEX = Form(re.compile(r"([0-9a-f]{2})+"), "write an even number of hexadecimal digits, lower case")
_DNS_LABEL = Form(re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"), "write a Kubernetes name: a-z, 0-9 and -")
_DNS_NAME = Form(re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"), "write a Kubernetes name: a-z, 0-9, - and .")
_UUID = Form(re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "write a UID such as 1c8d9d2e-...")
_PAIR = Form(re.compile(r"[^:]+:.*", re.DOTALL), "write NAME:VALUE")
_VERIFIED = Form(re.compile(r"verified"), "write verified")
_DIGEST = Form(re.compile(r"sha256:[0-9a-f]{64}"), "write sha256: and 64 hexadecimal digits")
_SPIFFE = Form(re.compile(r"//[a-z0-9._-]+/.+"), "write a whole SPIFFE ID")


def _user(sentence: str) -> Form:
    return Form(_NUMBER.pattern, sentence)


_SIGSTORE = {
    "image-signature": _VERIFIED,
    "image-attestations": _VERIFIED,
    **dict.fromkeys(
        (
            "image-signature-value",
            "image-signature-subject",
            "image-signature-issuer",
            "image-signature-log-id",
            "image-signature-log-index",
            "image-signature-integrated-time",
            "image-signature-signed-entry-timestamp",
        ),
        _ANY,
    ),
}
_TYPES: dict[str, Mapping[str, Form] | None] = {
    "unix": {
        "uid": _user("write a number, or use unix:user:NAME"),
        "user": _ANY,
        "gid": _user("write a number, or use unix:group:NAME"),
        "group": _ANY,
        "supplementary_gid": _user("write a number, or use unix:supplementary_group:NAME"),
        "supplementary_group": _ANY,
        "path": _PATH,
        "sha256": _SHA256,
    },
    "systemd": {"id": _ANY, "fragment_path": _PATH},
    "docker": {"label": _PAIR, "env": _ANY, "image_id": _ANY, "image_config_digest": _DIGEST, **_SIGSTORE},
    "k8s": {
        "ns": _DNS_LABEL,
        "sa": _DNS_NAME,
        "ns-label": _PAIR,
        "container-image": _ANY,
        "container-name": _DNS_LABEL,
        "node-name": _DNS_NAME,
        "pod-label": _PAIR,
        "pod-owner": _PAIR,
        "pod-owner-uid": _PAIR,
        "pod-uid": _UUID,
        "pod-name": _DNS_NAME,
        "pod-image": _ANY,
        "pod-image-count": _NUMBER,
        "pod-init-image": _ANY,
        "pod-init-image-count": _NUMBER,
        **_SIGSTORE,
    },
    "windows": dict.fromkeys(("user_sid", "user_name", "group_sid", "group_name", "path"), _ANY) | {"sha256": _SHA256},
    "slurm": None,
    "spiffe_id": {"spiffe": _SPIFFE},
    "join_token": {"group": _DNS_LABEL},
    "x509pop": {
        "subject:cn": _ANY,
        "ca:fingerprint": _SHA1,
        "serialnumber": _HEX,
        "san": _PAIR,
    },
    "http_challenge": {"hostname": _DNS_NAME},
    "sshpop": None,
    "tpm_devid": dict.fromkeys(
        ("subject:cn", "issuer:cn", "certificate:fingerprint", "ca:fingerprint"),
        _ANY,
    ),
    "tpm": None,
    "k8s_psat": {
        **dict.fromkeys(("cluster", "agent_pod_name", "agent_node_name", "agent_node_ip"), _ANY),
        "agent_ns": _DNS_LABEL,
        "agent_sa": _DNS_NAME,
        "agent_pod_uid": _UUID,
        "agent_node_uid": _ANY,
        "agent_node_label": _PAIR,
        "agent_pod_label": _PAIR,
    },
    "k8s_sat": dict.fromkeys(("cluster", "agent_ns", "agent_sa"), _ANY),
    "aws_iid": dict.fromkeys(
        ("account:id", "az", "region", "image:id", "instance:id", "iamrole", "sg:id", "sg:name", "tag"), _ANY
    ),
    "azure_msi": dict.fromkeys(
        (
            "subscription-id",
            "vm-name",
            "network-security-group",
            "virtual-network",
            "virtual-network-subnet",
            "tenant-id",
            "principal-id",
            "vmss-name",
        ),
        _ANY,
    ),
    "azure_imds": None,
    "gcp_iit": dict.fromkeys(
        ("project-id", "zone", "instance-name", "tag", "sa", "metadata", "label"),
        _ANY,
    ),
}

WELL_KNOWN = SelectorSchemas(SelectorSchema(name, keys) for name, keys in _TYPES.items())
"""The selectors of SPIRE's attestors and ours."""
