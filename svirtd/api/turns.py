# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose calls are under way, and whose turn it is: many of one user must not starve another."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Final

from svirtd.config import Limits
from svirtd.errors import LimitsExceeded

_ROOT: Final = 0
# As large as calls are that name some files; those go before the limit on all callers' bytes.
_SMALL_BYTES: Final = 16 * 1024


class _User:
    def __init__(self, at_once: int) -> None:
        self.calls = 0
        self.bytes = 0
        self.turns = asyncio.Semaphore(at_once)


class Turns:
    """Counts calls by user, however many connections he has, and lets a few in at a time.

    Root is bounded by the limits on all callers and on one sender only: nothing is kept from it.
    """

    def __init__(self, limits: Callable[[], Limits]) -> None:
        self._limits = limits
        self._senders: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._users: dict[int, _User] = {}
        # Set while no call is under way.
        self.idle = asyncio.Event()
        self.idle.set()

    def admit(self, sender: str, uid: int | None, size: int) -> None:
        """Count a call of `size` bytes; `uid` is None while nobody knows whose it is.

        Raises LimitsExceeded, and counts nothing then. Else leave() is to follow.
        """
        limits = self._limits()
        if self._senders[sender] >= limits.pending_calls_per_sender:
            raise LimitsExceeded(
                f"you have [limits] pending-calls-per-sender = {limits.pending_calls_per_sender} "
                "calls under way; wait for some to end"
            )
        if uid is not None:
            self._refuse_too_many(uid, size)
        self._refuse_too_large(sender, uid, size)
        # Those who fill what is for all must not keep others out: root, and the first calls of a
        # connection, since whose it is is known a moment later only.
        passes = uid == _ROOT or self._senders[sender] < limits.calls_at_once_per_user
        if self._senders.total() >= limits.pending_calls and not passes:
            raise LimitsExceeded(
                f"[limits] pending-calls = {limits.pending_calls} calls are under way; try later"
            )
        self._senders[sender] += 1
        self._bytes[sender] += size
        self.idle.clear()

    def leave(self, sender: str, size: int) -> None:
        """A call that was admitted has ended."""
        self._senders[sender] -= 1
        self._bytes[sender] -= size
        if not self._senders[sender]:
            del self._senders[sender], self._bytes[sender]
        if not self._senders:
            self.idle.set()

    def _refuse_too_many(self, uid: int, size: int) -> None:
        limits, user = self._limits(), self._users.get(uid)
        if user is None:
            return
        if user.calls >= limits.pending_calls_per_user:
            raise LimitsExceeded(
                f"uid {uid} has [limits] pending-calls-per-user = {limits.pending_calls_per_user} "
                "calls under way; wait for some to end"
            )
        if user.bytes + size > limits.pending_bytes_per_user:
            raise _too_large("pending-bytes-per-user", limits.pending_bytes_per_user)

    def _refuse_too_large(self, sender: str, uid: int | None, size: int) -> None:
        """Calls wait in memory: a few large ones of many connections must not fill it."""
        limits = self._limits()
        if uid == _ROOT:
            return
        if self._bytes[sender] + size > limits.pending_bytes_per_user:
            raise _too_large("pending-bytes-per-user", limits.pending_bytes_per_user)
        if size > _SMALL_BYTES and self._bytes.total() + size > limits.pending_bytes:
            raise _too_large("pending-bytes", limits.pending_bytes)

    @contextlib.asynccontextmanager
    async def turn(self, uid: int, size: int) -> AsyncIterator[None]:
        """Wait for this user's turn and have it for as long as the block runs.

        Raises LimitsExceeded if too many of his calls are under way already.
        """
        if uid == _ROOT:
            yield
            return
        self._refuse_too_many(uid, size)
        user = self._users.get(uid)
        if user is None:
            user = self._users[uid] = _User(self._limits().calls_at_once_per_user)
        user.calls += 1
        user.bytes += size
        try:
            async with user.turns:
                yield
        finally:
            user.calls -= 1
            user.bytes -= size
            if not user.calls:
                del self._users[uid]


def _too_large(name: str, limit: int) -> LimitsExceeded:
    return LimitsExceeded(
        f"calls of more than [limits] {name} = {limit} bytes would be under way; send less at once"
    )
