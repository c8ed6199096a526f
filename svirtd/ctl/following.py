# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls that the daemon does as a job: how far it is, and its end on Ctrl-C."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

from svirtd.ctl.calls import MANAGER, NAME, PROPERTIES, Calls, failures
from svirtd.ctl.failures import Failure, bus_lost
from svirtd.ctl.values import plain
from svirtd.host.bus import Message

_JOB: Final = "org.svirt1.Job"
_PATIENCE_S: Final = 60.0
# Long enough for any tree and any disk. Whoever has seen enough cancels.
JOB_TIMEOUT_S: Final = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Moved:
    """How far a job is: 0 to 1, and what it has counted, 0 where it counts nothing."""

    progress: float
    done: int = 0
    rate: int = 0


Progress = Callable[[Moved], None]


class Following(Calls):
    """Follows the job that a call of one's own is."""

    @contextlib.asynccontextmanager
    async def _following(self, kind: str, progress: Progress | None) -> AsyncIterator[None]:
        """Tell `progress` of the job of this kind that what is inside becomes, and have the daemon
        stop that job if it is cancelled."""
        jobs: dict[str, dict[str, Any]] = {}
        ended: dict[str, asyncio.Event] = {}

        def begun(msg: Message) -> None:
            jobs[msg.body[1]] = {}
            ended[msg.body[1]] = asyncio.Event()

        def removed(msg: Message) -> None:
            if msg.body[1] in ended:
                ended[msg.body[1]].set()

        def moved(msg: Message) -> None:
            if msg.path in jobs:
                found = jobs[msg.path] | plain(msg.body[1])
                jobs[msg.path] = found
                if progress is not None and "Progress" in found:
                    rate = found.get("Rate", 0)
                    progress(Moved(found["Progress"], found.get("Done", 0), rate))

        with failures(bus_lost("it does not answer")):
            await self._bus.subscribe(NAME, MANAGER, "JobNew", begun)
            await self._bus.subscribe(NAME, MANAGER, "JobRemoved", removed)
            await self._bus.subscribe(NAME, PROPERTIES, "PropertiesChanged", moved, arg0=_JOB)
        try:
            yield
        except asyncio.CancelledError:
            for job in jobs:
                # It has ended by itself, or is another's; or takes its time to take all back.
                with contextlib.suppress(Failure, TimeoutError):
                    about = await self._get_all(job, _JOB)
                    if about["Kind"] == kind and about["Owner"] == os.getuid():
                        await self._call(job, _JOB, "Cancel", "a{sv}", [{}], "")
                        await asyncio.wait_for(ended[job].wait(), _PATIENCE_S)
            raise
