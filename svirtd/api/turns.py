# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose calls are under way, and whose turn it is: many of one user must not starve another."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from svirtd.config import Limits
from svirtd.errors import LimitsExceeded

_ROOT: Final = 0


class _User:
    def __init__(self, at_once: int) -> None:
        self.calls = 0
        self.turns = asyncio.Semaphore(at_once)


class Turns:
    """Counts calls by user, however many connections he has, and lets a few in at a time.

    Root is bounded by the limits on all callers and on one sender only: nothing is kept from it.
    """

    def __init__(self, limits: Callable[[], Limits]) -> None:
        self._limits = limits
        self._users: dict[int, _User] = {}

    @contextlib.asynccontextmanager
    async def turn(self, uid: int) -> AsyncIterator[None]:
        """Wait for this user's turn and have it for as long as the block runs.

        Raises LimitsExceeded if too many of his calls are under way already.
        """
        if uid == _ROOT:
            yield
            return
        limits = self._limits()
        user = self._users.get(uid)
        if user is None:
            user = self._users[uid] = _User(limits.calls_at_once_per_user)
        if user.calls >= limits.pending_calls_per_user:
            raise LimitsExceeded(
                f"uid {uid} has [limits] pending-calls-per-user = {limits.pending_calls_per_user} "
                "calls under way; wait for some to end"
            )
        user.calls += 1
        try:
            async with user.turns:
                yield
        finally:
            user.calls -= 1
            if not user.calls:
                del self._users[uid]
