# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shows VMs in machinectl, where systemd-machined is there.

No VM fails for its sake; a release waits, with a deadline, until it has let go of the unit.
"""

from collections.abc import Sequence
from typing import Any, Final

from svirtd.host.bus import BusError, Connection, Message

_NAME: Final = "org.freedesktop.machine1"
_PATH: Final = "/org/freedesktop/machine1"
_MANAGER: Final = "org.freedesktop.machine1.Manager"
_MACHINE: Final = "org.freedesktop.machine1.Machine"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
# Errors that mean: it knows no such machine.
_UNKNOWN: Final = (
    "org.freedesktop.machine1.NoSuchMachine",
    "org.freedesktop.DBus.Error.UnknownObject",
)
_TIMEOUT_S: Final = 10.0


class Machined:
    """The registry of machines on this bus."""

    def __init__(self, bus: Connection) -> None:
        self._bus = bus

    async def available(self) -> bool:
        """Say whether machined runs or can be started by the bus."""
        if await self._bus.has_owner(_NAME):
            return True
        (names,) = await self._bus.call_bus("ListActivatableNames")
        return _NAME in names

    async def register(self, name: str, identity: bytes, leader: int) -> str:
        """Register a VM by its main process; returns "" or why machined did not take it.

        `identity` has 16 bytes.
        """
        try:
            await self._call(
                "RegisterMachine", "sayssus", [name, identity, "svirtd", "vm", leader, ""]
            )
        except (BusError, TimeoutError) as error:
            return str(error) or "no answer"
        return ""

    async def forget(self, name: str, unit: str) -> str:
        """Have machined know no machine of this name in this unit; returns "" or why it may.

        It stops the unit of a machine that has ended, when it comes to that: whoever runs in it by
        then. With its answer it has done so, or will not.
        """
        try:
            reply = await self._call("GetMachine", "s", [name])
            path = str(reply.body[0])
            reply = await self._call("Get", "ss", [_MACHINE, "Unit"], path, _PROPERTIES)
            if reply.body[0].value == unit:
                await self._call("UnregisterMachine", "s", [name])
        except BusError as error:
            return "" if error.name in _UNKNOWN else str(error)
        except TimeoutError as error:
            return str(error) or "no answer"
        return ""

    async def _call(
        self,
        member: str,
        signature: str,
        body: Sequence[Any],
        path: str = _PATH,
        interface: str = _MANAGER,
    ) -> Message:
        return await self._bus.call(
            _NAME, path, interface, member, signature, body, timeout_s=_TIMEOUT_S
        )
