# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks polkit for the Authority, and has an administrator asked where the caller allows it.

A dialog may stay open for minutes. It ends with its answer, at its deadline, when the caller leaves
the bus, and when the daemon stops; and one user has a few of them at a time, no more.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from svirtd.config import Config
from svirtd.core.model import Caller
from svirtd.errors import Failed, LimitsExceeded
from svirtd.host.bus import BUS, BusError, Connection, Message
from svirtd.host.polkit import Polkit, Verdict

# polkit's own rules are a matter of milliseconds; this is for a machine that is in trouble.
_ANSWER_S: Final = 25.0

Details = Callable[[], Awaitable[Mapping[str, str]]]


class Dialogs:
    """polkit's verdict on a caller. Whatever is none raises Failed: nothing may be done then."""

    def __init__(self, bus: Connection, config: Callable[[], Config]) -> None:
        self._bus = bus
        self._config = config
        self._polkit = Polkit(bus)
        self._open: Counter[int] = Counter()
        self._stopping = asyncio.Event()

    def end(self) -> None:
        """Take every dialog away, now and later: the daemon stops."""
        self._stopping.set()

    async def ask(self, caller: Caller, action: str, details: Details) -> Verdict:
        """Return what polkit says, without a dialog if it knows by itself.

        `details` are what rules and dialogs see. Raises LimitsExceeded where the caller's user has
        too many dialogs open.
        """
        told = await details()
        verdict = await self._polkit.check(
            caller.unique_name, action, told, interactive=False, timeout_s=_ANSWER_S
        )
        if verdict is not Verdict.CHALLENGE or not caller.interactive:
            return verdict
        # From here on somebody's attention is taken, and a call waits for as long as that lasts.
        limit = self._config().limits.dialogs_per_user
        if self._open[caller.uid] >= limit:
            raise LimitsExceeded(
                f"uid {caller.uid} has [limits] dialogs-per-user = {limit} dialogs open: answer or "
                "close them first"
            )
        self._open[caller.uid] += 1
        try:
            return await self._with_dialog(caller, action, told)
        finally:
            self._open[caller.uid] -= 1
            if not self._open[caller.uid]:
                del self._open[caller.uid]

    async def _with_dialog(
        self, caller: Caller, action: str, details: Mapping[str, str]
    ) -> Verdict:
        gone = asyncio.Event()

        def changed(msg: Message) -> None:
            if not msg.body[2]:
                gone.set()

        try:
            end = await self._bus.subscribe(
                BUS, BUS, "NameOwnerChanged", changed, arg0=caller.unique_name
            )
            try:
                if not await self._bus.has_owner(caller.unique_name):
                    raise Failed("the caller has left the bus")
                return await self._unless_over(gone, caller, action, details)
            finally:
                end()
        except (BusError, TimeoutError) as error:
            raise Failed(
                f"the bus does not let svirtd watch {caller.unique_name} ({error}); no dialog is "
                "opened"
            ) from error

    async def _unless_over(
        self, gone: asyncio.Event, caller: Caller, action: str, details: Mapping[str, str]
    ) -> Verdict:
        asking = asyncio.ensure_future(
            self._polkit.check(
                caller.unique_name,
                action,
                details,
                interactive=True,
                timeout_s=self._config().dialog_timeout_s,
            )
        )
        over = [asyncio.ensure_future(event.wait()) for event in (gone, self._stopping)]
        try:
            await asyncio.wait([asking, *over], return_when=asyncio.FIRST_COMPLETED)
            # An answer that came with the end of its caller is none.
            if gone.is_set():
                raise Failed("the caller has left the bus; the dialog was taken away")
            if self._stopping.is_set():
                raise Failed("svirtd is stopping; the dialog was taken away")
            return asking.result()
        finally:
            for task in (asking, *over):
                task.cancel()
            # Whatever it says now: it takes the dialog away, and nobody waits for its answer.
            await asyncio.gather(asking, *over, return_exceptions=True)
