"""What an Envoy really holds, by its own word, beside what it was given.

Its admin socket (mode 0600, named in the file that it was started with) tells the whole config; private keys it
leaves out. Both sides are brought to one form before they are compared, because an Envoy writes defaults and numbers
in ways of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from envoy.admin.v3 import config_dump_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf import json_format

from eastwest.errors import NotFound, Unavailable
from eastwest.mesh import names
from eastwest.mesh.bootstrap import RUNTIME
from eastwest.mesh.snapshot import Snapshot
from eastwest.policy.canary import OWN_FILE, Examination

MAX_DUMP = 32 * 1024 * 1024
"""Bytes of a config that are read; a larger one is not compared."""
SECONDS = 5.0
MAX_NAMED = 20
PROC = Path("/proc")
_ADMIN = "envoy.sock"
"""The admin socket's name beside the way out, where nothing else is said (``eastwest.agent.sidecar_process``)."""
_TYPES: dict[str, Any] = {
    names.LISTENER: listener_pb2.Listener,
    names.ROUTES: route_pb2.RouteConfiguration,
    names.CLUSTER: cluster_pb2.Cluster,
    names.EXTENSION: extension_pb2.TypedExtensionConfig,
    names.SECRET: secret_pb2.Secret,
}
_PATHS = {
    # Of each part of the dump: the list, and the way to the resource in one of its items.
    names.LISTENER: (("dynamic_listeners", ("active_state", "listener")), ("static_listeners", ("listener",))),
    names.ROUTES: (
        ("dynamic_route_configs", ("route_config",)),
        ("static_route_configs", ("route_config",)),
    ),
    names.CLUSTER: (("dynamic_active_clusters", ("cluster",)),),
    names.EXTENSION: (("ecds_filters", ("ecds_filter",)),),
    names.SECRET: (("dynamic_active_secrets", ("secret",)),),
}
Held = dict[tuple[str, str], dict[str, Any]]


async def held_config(pid: int, egress: str, proc: Path = PROC) -> bytes:
    """The config dump of the Envoy ``pid`` whose way out is ``egress``.

    Raises ``Unavailable`` with the reason, ``NotFound`` where an Envoy of this machine's files has no admin socket:
    those that ``eastwest sidecar run`` starts have one.
    """
    path = await asyncio.to_thread(_admin_socket, pid, egress, proc)
    try:
        async with asyncio.timeout(SECONDS):
            reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
            try:
                writer.write(b"GET /config_dump HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")
                answer = await _whole(reader)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError) as error:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError) and _has_our_files(pid, proc):
            raise NotFound(f"admin socket {path}") from None
        raise Unavailable(f"the admin socket {path} does not answer: {str(error) or 'it is silent'}") from None
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise Unavailable(f"the admin socket {path} tells no config")
    return _joined(body) if b"transfer-encoding: chunked" in head.lower() else body


def compare(dump: bytes, given: Snapshot) -> Examination:
    """What differs, in names of resources. Raises ``Unavailable`` where ``dump`` is none."""
    try:
        held = _held(json.loads(dump))
    except (ValueError, AttributeError, TypeError, json_format.ParseError) as error:
        raise Unavailable(f"the config dump cannot be read: {str(error)[:200]}") from None
    meant = _given(given)
    differs = [name for (kind, name), message in meant.items() if held.get((kind, name), message) != message]
    # Secrets are asked for when something needs them.
    missing = [key[1] for key in meant if key not in held and key[0] != names.SECRET]
    foreign = [name for kind, name in held if (kind, name) not in meant and kind not in {names.SECRET, names.CLUSTER}]
    return Examination(differs=_some(differs), missing=_some(missing), foreign=_some(foreign))


def _some(found: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(found))[:MAX_NAMED]


async def _whole(reader: asyncio.StreamReader) -> bytes:
    parts, size = [], 0
    while part := await reader.read(1 << 20):
        parts.append(part)
        size += len(part)
        if size > MAX_DUMP:
            raise Unavailable(f"the config is larger than {MAX_DUMP >> 20} MiB and is not compared")
    return b"".join(parts)


def _joined(body: bytes) -> bytes:
    """A body without the marks of its chunks (RFC 9112, section 7.1)."""
    parts = []
    at = 0
    while (end := body.find(b"\r\n", at)) > 0 and (size := int(body[at:end].split(b";")[0], 16)):
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts)


def _admin_socket(pid: int, egress: str, proc: Path) -> str:
    words: list[str] = []
    with suppress(OSError):
        raw = (proc / str(pid) / "cmdline").read_bytes()[:65_536]
        words = raw.decode(errors="replace").split("\0")
    for option in ("-c", "--config-path"):
        if option in words[:-1]:
            file = Path(words[words.index(option) + 1])
            here = file if file.is_absolute() else proc / str(pid) / "cwd" / file
            with suppress(OSError, ValueError, KeyError, TypeError):
                return str(json.loads(here.read_bytes())["admin"]["address"]["pipe"]["path"])
    if egress:
        return str(Path(egress).with_name(_ADMIN))
    raise Unavailable("where the Envoy's admin socket is cannot be found out")


def _has_our_files(pid: int, proc: Path) -> bool:
    """Whether the process is there and sees the files that this one sees: one in a container has others."""
    with suppress(OSError):
        return (proc / str(pid) / "ns" / "mnt").samefile(proc / "self" / "ns" / "mnt")
    return False


def _held(dump: Mapping[str, Any]) -> Held:
    found: Held = {}
    for config in dump.get("configs", ()):
        for kind, message in _resources(config):
            name = message.get("name", "")
            if kind == names.EXTENSION or name:
                found[kind, name] = message
        boot = config.get("bootstrap", {}).get("static_resources", {}) if "bootstrap" in config else {}
        for listener in boot.get("listeners", ()):
            name = str(listener.get("name") or _address(listener))
            found[names.LISTENER, f"{name} {OWN_FILE}"] = {}
        for layer in config.get("bootstrap", {}).get("layered_runtime", {}).get("layers", ()):
            if layer.get("static_layer") != RUNTIME:
                found[names.LISTENER, f"runtime layer {layer.get('name', '?')} {OWN_FILE}"] = {}
    return found


def _resources(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, places in _PATHS.items():
        for key, way in places:
            for item in config.get(key, ()):
                inner: Any = item
                for step in way:
                    inner = inner.get(step, {})
                if inner:
                    yield kind, _normal(kind, {k: v for k, v in inner.items() if k != "@type"})


def _normal(kind: str, said: dict[str, Any]) -> dict[str, Any]:
    """What an Envoy says of a resource, in the form in which ``_given`` says it."""
    if kind == names.SECRET and "tls_certificate" in said:
        return {"name": said.get("name", "")}  # its key is not told, and it changes by itself
    message = json_format.ParseDict(said, _TYPES[kind](), ignore_unknown_fields=True)
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _given(snapshot: Snapshot) -> Held:
    found: Held = {}
    for kind, make in _TYPES.items():
        for name, resource in snapshot.of_type(kind).items():
            message = make.FromString(resource.body)
            if kind == names.SECRET and message.HasField("tls_certificate"):
                found[kind, name] = {"name": name}
            else:
                found[kind, name] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found


def _address(listener: Mapping[str, Any]) -> str:
    address = listener.get("address", {}).get("socket_address", {})
    return f"{address.get('address', '?')}:{address.get('port_value', '?')}"


_DUMP = config_dump_pb2.ConfigDump
"""Imported so that its messages are known where a dump is parsed."""
