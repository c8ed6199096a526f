# SPDX-License-Identifier: LGPL-2.1-or-later
"""Locks by key: one operation at a time on a VM's name and on an object."""

import asyncio
from collections import deque
from collections.abc import Hashable, Iterable
from types import TracebackType


class Locks:
    """Locks that exist while somebody holds or wants them; whoever waits is served in turn.

    Order, so that nobody waits in a circle: first a VM's name, then its objects, sorted.
    """

    def __init__(self) -> None:
        # A key that is here is held; its queue holds those who wait for it.
        self._held: dict[Hashable, deque[asyncio.Future[None]]] = {}

    def hold(self, key: Hashable) -> "_Hold":
        """Hold the lock of one key: `async with locks.hold(key):`."""
        return _Hold(self, [key])

    def hold_all(self, keys: Iterable[Hashable]) -> "_Hold":
        """Hold the locks of several keys, taken in sorted order."""
        return _Hold(self, sorted(set(keys)))  # type: ignore[type-var]  # keys of one sort only

    async def take(self, key: Hashable) -> None:
        """Wait for a lock and hold it."""
        waiting = self._held.get(key)
        if waiting is None:
            self._held[key] = deque()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            # It may have become ours in the very moment in which we gave up.
            if turn.done() and not turn.cancelled():
                self.give(key)
            raise

    def give(self, key: Hashable) -> None:
        """Give a lock to the next who waits, or to nobody."""
        waiting = self._held[key]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._held[key]


class _Hold:
    """Some locks of one owner, in the order in which they are taken."""

    def __init__(self, locks: Locks, keys: list[Hashable]) -> None:
        self._locks = locks
        self._keys = keys
        self._taken: list[Hashable] = []

    async def __aenter__(self) -> None:
        try:
            for key in self._keys:
                await self._locks.take(key)
                self._taken.append(key)
        except BaseException:
            self._give()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give()

    def _give(self) -> None:
        while self._taken:
            self._locks.give(self._taken.pop())
