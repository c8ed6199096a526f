# SPDX-License-Identifier: LGPL-2.1-or-later
"""Locks by key: one operation at a time on a VM's name and on an object."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable, Iterable


class Locks:
    """Locks that exist while somebody holds or wants them.

    Order, so that nobody waits in a circle: first a VM's name, then its objects, sorted.
    """

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        """Hold the lock of one key."""
        lock, users = self._locks.get(key, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)

    @contextlib.asynccontextmanager
    async def hold_all(self, keys: Iterable[Hashable]) -> AsyncIterator[None]:
        """Hold the locks of several keys, taken in sorted order."""
        async with contextlib.AsyncExitStack() as stack:
            for key in sorted(set(keys)):  # type: ignore[type-var]  # keys of one sort only
                await stack.enter_async_context(self.hold(key))
            yield
