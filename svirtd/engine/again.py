# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon does of its own accord, until it is done: nobody would ask for it again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from svirtd.errors import Failed, LimitsExceeded, UnitFailed
from svirtd.host.journal import Journal, MessageId, Priority

_FIRST_S: Final = 1.0
_LAST_S: Final = 60.0
# Of the machine at this moment (a full disk, no descriptor, a service that does not answer), where
# all other errors say what will not change by itself.
_PASSING: Final = (Failed, UnitFailed, LimitsExceeded)


async def until_done(journal: Journal, what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work`, and again after a while each time that a passing trouble kept it from its end.

    `what` names it in the records. Every other error is raised.
    """
    pause_s = _FIRST_S
    while True:
        try:
            await work()
        except _PASSING as error:
            journal.record(
                MessageId.WARNING,
                f"{what}: {error}; tried again in {pause_s:.0f} s",
                priority=Priority.WARNING,
            )
        else:
            return
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_S)
