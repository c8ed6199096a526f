# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notices when a caller leaves the bus whose VMs live as long as it does."""

from collections.abc import Awaitable, Callable

from svirtd.host.bus import BUS, Connection, Message


class Departures:
    """Watches unique names. A name is stored with the bus's identity, since another bus (after a
    reboot, say) gives the same names to others."""

    def __init__(self, bus: Connection, bus_id: str) -> None:
        self._bus = bus
        self._bus_id = bus_id
        self._watched: dict[str, Callable[[], None]] = {}
        self.on_gone: Callable[[str], Awaitable[None]] | None = None
        self.spawn: Callable[..., None] | None = None

    def stored(self, unique_name: str) -> str:
        """Return what the book keeps of a caller."""
        return f"{self._bus_id}{unique_name}"

    async def watch(self, stored: str) -> bool:
        """Watch a caller until it leaves, whatever becomes of its VMs meanwhile: it may have more.

        Returns False if it has left already (or was on another bus).
        """
        unique_name = stored.removeprefix(self._bus_id)
        if not stored.startswith(self._bus_id) or not unique_name.startswith(":"):
            return False
        if stored not in self._watched:
            end = await self._bus.subscribe(
                BUS, BUS, "NameOwnerChanged", self._changed, arg0=unique_name
            )
            if stored in self._watched:  # by another request of the same caller meanwhile
                end()
            else:
                self._watched[stored] = end
        if await self._bus.has_owner(unique_name):
            return True
        self._forget(stored)
        return False

    def watched(self, stored: str) -> bool:
        """Say whether a caller that was watched is still on the bus."""
        return stored in self._watched

    def _forget(self, stored: str) -> None:
        end = self._watched.pop(stored, None)
        if end is not None:
            end()

    def _changed(self, msg: Message) -> None:
        name, _, new = msg.body
        stored = self.stored(name)
        if not new and stored in self._watched and self.on_gone and self.spawn:
            self._forget(stored)
            self.spawn(self.on_gone(stored))
