"""``spire.api.server.logger.v1.Logger``: the log level of the running server, on the admin socket."""

from __future__ import annotations

import logging

from eastwest.api.spire.api.server.logger.v1 import logger_pb2 as pb
from eastwest.api.spire.api.types import types_pb2
from eastwest.errors import InvalidInput
from eastwest.process.logs import Level
from eastwest.rpc.service import SMALL_MESSAGE, Call, Service, UnaryHandler
from eastwest.server.gate import Gate
from eastwest.server.journal import Journal

_SERVICE = pb.DESCRIPTOR.services_by_name["Logger"]
_LEVELS = {
    types_pb2.PANIC: logging.CRITICAL,
    types_pb2.FATAL: logging.CRITICAL,
    types_pb2.ERROR: logging.ERROR,
    types_pb2.WARN: logging.WARNING,
    types_pb2.INFO: logging.INFO,
    types_pb2.DEBUG: logging.DEBUG,
    types_pb2.TRACE: logging.DEBUG,
}
_NAMES = {
    logging.CRITICAL: types_pb2.FATAL,
    logging.ERROR: types_pb2.ERROR,
    logging.WARNING: types_pb2.WARN,
    logging.INFO: types_pb2.INFO,
    logging.DEBUG: types_pb2.DEBUG,
}


def logger_service(level: Level, journal: Journal, subject: str, gate: Gate) -> Service:
    """``level`` is the process's; changes are recorded about ``subject``, the server's SPIFFE ID."""

    def _state() -> types_pb2.Logger:
        return types_pb2.Logger(current_level=_NAMES[level.current], launch_level=_NAMES[level.launch])

    async def get(_request: pb.GetLoggerRequest, call: Call) -> types_pb2.Logger:
        await gate.admin(call)
        return _state()

    async def set_level(request: pb.SetLogLevelRequest, call: Call) -> types_pb2.Logger:
        actor = await gate.admin(call)
        wanted = _LEVELS.get(request.new_level)
        if wanted is None:
            raise InvalidInput(
                "no known log level is given", fix="one of panic, fatal, error, warn, info, debug, trace"
            )
        name = types_pb2.LogLevel.Name(request.new_level).lower()
        await journal.record("log_level.changed", actor=actor, subject=subject, level=name)
        level.current = wanted
        return _state()

    async def reset(_request: pb.ResetLogLevelRequest, call: Call) -> types_pb2.Logger:
        actor = await gate.admin(call)
        name = types_pb2.LogLevel.Name(_NAMES[level.launch]).lower()
        await journal.record("log_level.changed", actor=actor, subject=subject, level=name)
        level.reset()
        return _state()

    handlers: dict[str, UnaryHandler] = {"GetLogger": get, "SetLogLevel": set_level, "ResetLogLevel": reset}
    return Service(_SERVICE, handlers, guard=gate.enter, limit=SMALL_MESSAGE)
