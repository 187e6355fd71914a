"""Plug-ins by entry point: found by name, their options checked, and only then made.

A plug-in is a class that an installed distribution names in one of the groups below. It is made by its class method
``from_options(options, context)``. ``options`` is an instance of its attribute ``Options``, a msgspec struct filled
from the configuration's table of that name, or None where it has no ``Options``; ``context`` is what the port's module
says (``NodeContext``, ``ProverContext``, ``WorkloadContext``, ``KeyStoreContext``, ``UpstreamContext``,
``SinkContext``).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import msgspec

from eastwest.errors import Error, FailedPrecondition, InvalidInput

KEY_STORES = "eastwest.key_stores"
LEDGER_SINKS = "eastwest.ledger_sinks"
NODE_ATTESTORS = "eastwest.node_attestors"
NODE_PROVERS = "eastwest.node_provers"
UPSTREAM_AUTHORITIES = "eastwest.upstream_authorities"
WORKLOAD_ATTESTORS = "eastwest.workload_attestors"
_EXTRAS = {"aws_kms": "aws", "nats": "export", "otlp": "export", "pkcs11": "pkcs11", "systemd": "systemd"}


def installed(group: str) -> tuple[str, ...]:
    """The names that installed distributions offer in ``group``, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def load_plugin(group: str, name: str, table: Mapping[str, Any], context: object, where: str) -> Any:
    """Make the plug-in ``name`` of ``group`` with the options in ``table``.

    ``where`` names the table in its file, such as ``server.toml: node_attestors.x509pop``. Raises ``InvalidInput`` for
    a wrong option, and ``FailedPrecondition`` for a plug-in that is not there or does not start.
    """
    point = _find(group, name, where)
    try:
        plugin = point.load()
        make: Callable[[Any, object], Any] = plugin.from_options
    except Exception as error:  # a stranger's module may fail in any way
        raise FailedPrecondition(
            f"the plug-in {name!r} of {_origin(point)} cannot be loaded: {type(error).__name__}: {error}",
            where=where,
            fix=_installation(point, error),
        ) from error
    options = check_options(getattr(plugin, "Options", None), table, where)
    try:
        return make(options, context)
    except Error as error:
        raise type(error)(error.message, fix=error.fix, where=error.where or where) from None


def check_options(kind: type[msgspec.Struct] | None, table: Mapping[str, Any], where: str) -> Any:
    """``table`` as the struct ``kind``; raises ``InvalidInput`` that names the option and what would do."""
    known = tuple(kind.__struct_fields__) if kind is not None else ()
    for key in table:
        if key not in known:
            raise InvalidInput(f"there is no option {key!r}", where=where, fix=_suggestion(key, known))
    if kind is None:
        return None
    for field in msgspec.structs.fields(kind):
        if field.required and field.encode_name not in table:
            raise InvalidInput(f"the option {field.encode_name!r} is missing", where=where)
    try:
        return msgspec.convert(dict(table), kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        option = path.rstrip("`")
        raise InvalidInput(message, where=f"{where}.{option}" if option else where) from None


def _find(group: str, name: str, where: str) -> EntryPoint:
    found = {point.value: point for point in entry_points(group=group, name=name)}
    if not found:
        raise FailedPrecondition(
            f"no plug-in {name[:80]!r} is installed", where=where, fix=_suggestion(name, installed(group))
        )
    if len(found) > 1:
        origins = ", ".join(sorted(_origin(point) for point in found.values()))
        raise FailedPrecondition(
            f"several distributions offer a plug-in {name!r}: {origins}", where=where, fix="uninstall all but one"
        )
    return next(iter(found.values()))


def _installation(point: EntryPoint, error: Exception) -> str:
    """What makes a plug-in loadable; ours name the extra that brings what they stand on."""
    if isinstance(error, ImportError) and _origin(point) == "eastwest" and point.name in _EXTRAS:
        return f'pip install "eastwest[{_EXTRAS[point.name]}]"'
    return "install it with what it depends on"


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _suggestion(word: str, known: Iterable[str]) -> str:
    known = tuple(known)
    if not known:
        return "remove it: none is known here"
    near = difflib.get_close_matches(word, known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(known)}"
