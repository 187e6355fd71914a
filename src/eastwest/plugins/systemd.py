"""Workload attestation by the systemd unit that a process belongs to, as the service manager says on D-Bus.

Selectors as SPIRE names them: ``systemd:id:nginx.service`` and
``systemd:fragment_path:/lib/systemd/system/nginx.service``. A process in no unit has none; a unit made at run time
has no fragment path.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import msgspec

from eastwest.attest.workload import AttestationFailed, Process, ProcessGone, WorkloadContext
from eastwest.clock import Clock
from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.spiffe.selector import MAX_SELECTOR_LENGTH, Selector

if TYPE_CHECKING:
    from dbus_fast import Message
    from dbus_fast.aio import MessageBus

DEFAULT_ADDRESS = "unix:path=/run/dbus/system_bus_socket"
PAUSE = 1.0
"""Seconds after a failure in which the bus is not asked again."""

_MANAGER = "org.freedesktop.systemd1"
_MANAGER_PATH = "/org/freedesktop/systemd1"
_ERRORS_OF_DBUS = "org.freedesktop.DBus.Error."
_NO_UNIT = {
    "org.freedesktop.systemd1.NoUnitForPID",
    "org.freedesktop.systemd1.NoSuchUnit",
    f"{_ERRORS_OF_DBUS}UnknownObject",  # the unit ended between two questions
}
_NO_SUCH_METHOD = f"{_ERRORS_OF_DBUS}UnknownMethod"
_NO_PROCESS = {"org.freedesktop.systemd1.NoSuchProcess", f"{_ERRORS_OF_DBUS}UnixProcessIdUnknown"}


class SystemdAttestor:
    """Asks the service manager which unit a process is in; by pidfd where it takes one, else by pid.

    One connection serves all callers. Each attestation ends within ``timeout`` seconds; when the bus does not answer
    it raises ``AttestationFailed``, and callers whose identities do not hang on a unit are served none the less.
    """

    name = "systemd"

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[workload_attestors.systemd]``: where the bus is, and how long (seconds) an answer may take."""

        address: str = DEFAULT_ADDRESS
        timeout: float = 2.0

    def __init__(self, options: Options, clock: Clock) -> None:
        self._address = options.address
        self._timeout = options.timeout
        self._clock = clock
        self._bus: MessageBus | None = None
        self._connecting = asyncio.Lock()
        self._quiet_until = 0.0
        self._takes_pidfd = True

    @classmethod
    def from_options(cls, options: Options, context: WorkloadContext) -> Self:
        """As the entry point makes it."""
        try:
            import dbus_fast.aio  # noqa: F401 - an optional dependency: told at the start, not at the first caller
        except ImportError:
            raise FailedPrecondition(
                "the systemd attestor needs the library dbus-fast", fix="install eastwest[systemd]"
            ) from None
        if not options.address.startswith("unix:"):
            raise InvalidInput("address is not that of a local bus", fix=f'write it like "{DEFAULT_ADDRESS}"')
        if not 0.05 <= options.timeout <= 30:
            raise InvalidInput(f"timeout is {options.timeout}", fix="choose 0.05 to 30 seconds")
        return cls(options, context.clock)

    async def attest(self, process: Process) -> frozenset[Selector]:
        if self._clock.monotonic() < self._quiet_until:
            raise AttestationFailed("systemd did not answer a moment ago")
        try:
            async with asyncio.timeout(self._timeout):
                bus = await self._connected()
                unit = await self._unit_of(bus, process)
                if unit is None:
                    return frozenset()
                facts = {"id": await self._property(bus, unit, "Id")}
                facts["fragment_path"] = await self._property(bus, unit, "FragmentPath")
        except _Refused as refused:
            if refused.name in _NO_UNIT:
                return frozenset()
            raise AttestationFailed(f"systemd refuses to say: {refused.name}") from None
        except (TimeoutError, OSError, EOFError) as error:
            self._drop()
            raise AttestationFailed(f"systemd does not answer: {str(error) or type(error).__name__}") from None
        return frozenset(
            Selector(self.name, f"{key}:{value}")
            for key, value in facts.items()
            if 0 < len(value) < MAX_SELECTOR_LENGTH - 32
        )

    async def _connected(self) -> MessageBus:
        from dbus_fast.aio import MessageBus
        from dbus_fast.errors import AuthError, DBusError, InvalidAddressError

        async with self._connecting:
            if self._bus is None or not self._bus.connected:
                try:
                    self._bus = await MessageBus(bus_address=self._address, negotiate_unix_fd=True).connect()
                except (AuthError, DBusError, InvalidAddressError) as error:
                    raise OSError(f"no connection with the bus: {error}") from None
                self._takes_pidfd = True
            return self._bus

    async def _unit_of(self, bus: MessageBus, process: Process) -> str | None:
        """The object path of the unit. A pid may come to mean another process; whoever asks us looks at that after."""
        if self._takes_pidfd:
            descriptor = _open_pidfd(process)
            try:
                return str((await self._ask(bus, "GetUnitByPIDFD", "h", [0], [descriptor]))[0])
            except _Refused as refused:
                if refused.name != _NO_SUCH_METHOD:  # systemd before 253
                    raise
                self._takes_pidfd = False
            finally:
                os.close(descriptor)
        try:
            return str((await self._ask(bus, "GetUnitByPID", "u", [process.pid]))[0])
        except _Refused as refused:
            if refused.name in _NO_PROCESS:
                raise ProcessGone(f"process {process.pid} ended while it was attested") from None
            raise

    async def _property(self, bus: MessageBus, unit: str, name: str) -> str:
        [value] = await self._ask(
            bus, "Get", "ss", [f"{_MANAGER}.Unit", name], path=unit, interface="org.freedesktop.DBus.Properties"
        )
        text = getattr(value, "value", None)
        if not isinstance(text, str):
            raise AttestationFailed(f"systemd gives no text for {name}")
        return text

    async def _ask(
        self,
        bus: MessageBus,
        member: str,
        signature: str,
        body: list[Any],
        descriptors: list[int] | None = None,
        *,
        path: str = _MANAGER_PATH,
        interface: str = f"{_MANAGER}.Manager",
    ) -> list[Any]:
        from dbus_fast import Message, MessageType

        question = Message(
            destination=_MANAGER,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
            unix_fds=descriptors or [],
        )
        reply: Message | None = await bus.call(question)
        if reply is None:
            raise EOFError
        if reply.message_type is not MessageType.METHOD_RETURN:
            raise _Refused(str(reply.error_name))
        if not reply.body:
            raise _Refused("an empty answer")
        return list(reply.body)

    def _drop(self) -> None:
        self._quiet_until = self._clock.monotonic() + PAUSE
        bus, self._bus = self._bus, None
        if bus is not None:
            with suppress(OSError):
                bus.disconnect()


class _Refused(Exception):
    """An error that the bus or the service manager answered with."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _open_pidfd(process: Process) -> int:
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        raise ProcessGone(f"process {process.pid} ended while it was attested") from None
    if not process.is_alive():
        # The pid might have been given away before it was opened; alive now, it was the process all along.
        os.close(descriptor)
        raise ProcessGone(f"process {process.pid} ended while it was attested")
    return descriptor
