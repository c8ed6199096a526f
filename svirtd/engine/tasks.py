# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs beside the daemon's main line: each ends alone, and none outlives it."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

from svirtd.errors import SvirtError
from svirtd.host.bus import BusLost
from svirtd.host.journal import Journal, MessageId, Priority


class Tasks:
    """`async with` it: at the end of the block whatever is under way is cut off and awaited."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False

    async def __aenter__(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._unhandled)
        await self._group.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        await self._group.__aexit__(kind, error, trace)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have `work` done beside everything else; what it raises is recorded."""
        if self._ending:
            work.close()
            return
        task = self._group.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end(self) -> None:
        """Cut off what is under way; from now on nothing is begun, or the end would wait for it."""
        self._ending = True
        for task in self._tasks:
            task.cancel()

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """A task that fails is recorded and ends alone: one VM's trouble is not the service's."""
        try:
            await work
        except BusLost:
            pass  # the daemon ends with the reason
        except SvirtError as error:
            self._journal.record(MessageId.WARNING, str(error), priority=Priority.WARNING)
        except Exception as error:  # noqa: BLE001 -- recorded with its traceback
            self._journal.exception("a background task failed", error)

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, BusLost):  # as above
            self._journal.exception(context["message"], error or RuntimeError("no exception"))
