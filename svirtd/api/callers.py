# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who a sender is: asked of the bus once, known until it leaves."""

from collections import OrderedDict
from typing import Final

from svirtd.core.model import Caller
from svirtd.errors import Failed
from svirtd.host.bus import BUS, BusError, Connection, Message

_KEPT: Final = 1024


class Callers:
    """The credentials of connections, by unique name. The bus never gives a unique name twice."""

    def __init__(self, bus: Connection) -> None:
        self._bus = bus
        self._known: OrderedDict[str, Caller] = OrderedDict()

    async def open(self) -> None:
        """Learn from now on who leaves. Raises BusError, BusLost, TimeoutError."""
        await self._bus.subscribe(BUS, BUS, "NameOwnerChanged", self._changed)

    def uid(self, unique_name: str) -> int | None:
        """Return whose connection this is, None while that has not been asked."""
        known = self._known.get(unique_name)
        return None if known is None else known.uid

    async def of(self, unique_name: str) -> Caller:
        """Return who a sender is. Raises Failed if the bus does not say."""
        known = self._known.get(unique_name)
        if known is not None:
            return known
        try:
            caller = await self._bus.credentials(unique_name)
        except (BusError, TimeoutError, KeyError) as error:
            # Not sure who it is: nobody is served.
            raise Failed(f"the bus does not say who {unique_name} is ({error})") from error
        self._known[unique_name] = caller
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return caller

    def _changed(self, msg: Message) -> None:
        name, _, new = msg.body
        if not new:
            self._known.pop(name, None)
