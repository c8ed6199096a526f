# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shows VMs in machinectl, where systemd-machined is there. Nothing depends on it."""

from typing import Final

from svirtd.host.bus import BusError, Connection

_NAME: Final = "org.freedesktop.machine1"
_PATH: Final = "/org/freedesktop/machine1"
_MANAGER: Final = "org.freedesktop.machine1.Manager"
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
            await self._bus.call(
                _NAME,
                _PATH,
                _MANAGER,
                "RegisterMachine",
                "sayssus",
                [name, identity, "svirtd", "vm", leader, ""],
                timeout_s=_TIMEOUT_S,
            )
        except (BusError, TimeoutError) as error:
            return str(error) or "no answer"
        return ""
