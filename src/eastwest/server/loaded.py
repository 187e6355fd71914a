"""What the log is told of the settings that a server starts with: enough to see a change, and never a secret."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from eastwest import __version__
from eastwest.server.config import ServerConfig
from eastwest.server.journal import Event

HIDDEN = "(set)"
_SECRET_NAMES = re.compile(r"pass|secret|token|key|credential|dsn|auth|header|user|cookie|pin", re.IGNORECASE)
_PLAIN = frozenset({"key_store", "ca_key"})
"""Settings that are called like secrets and are none: names of a kind."""
_USERINFO = re.compile(r"(?<=//)[^/@\s]*@")


def config_loaded(config: ServerConfig, text: bytes) -> Event:
    """The event for a start with ``config``, read from the file's ``text`` with flags laid over it."""
    server = f"{config.trust_domain.uri}/spire/server"
    settings = {name: _shown(name, value) for name, value in _fields(config.file) if value is not None}
    facts = {"sha256": hashlib.sha256(text).hexdigest(), "settings": settings, "build": __version__}
    return Event("config.loaded", server, server, facts)


def _shown(name: str, value: Any) -> str | dict[str, str]:
    """A setting for everybody to read. Of plug-ins' own tables only the names: what is in them is not ours to judge."""
    if isinstance(value, msgspec.Struct):
        return {inner: str(_shown(inner, one)) for inner, one in _fields(value) if one is not None}
    if isinstance(value, dict):
        return ", ".join(sorted(map(str, value)))
    if isinstance(value, str):
        if value and name not in _PLAIN and _SECRET_NAMES.search(name):
            return HIDDEN
        return _USERINFO.sub("", value)
    if isinstance(value, list | tuple):
        return ", ".join(str(_shown(name, one)) for one in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fields(struct: msgspec.Struct) -> list[tuple[str, Any]]:
    return [(name, getattr(struct, name)) for name in struct.__struct_fields__]
