# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose calls are under way, and whose turn it is: many of one user must not starve another."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from svirtd.config import Limits
from svirtd.errors import LimitsExceeded

_ROOT: Final = 0
# As large as calls are that name some files; those go before the limit on all callers' bytes.
_SMALL_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Load:
    """What calls that wait take of the daemon: of its memory, and of its descriptors."""

    calls: int = 0
    bytes: int = 0
    fds: int = 0

    def __add__(self, other: "Load") -> "Load":
        return Load(self.calls + other.calls, self.bytes + other.bytes, self.fds + other.fds)

    def __sub__(self, other: "Load") -> "Load":
        return Load(self.calls - other.calls, self.bytes - other.bytes, self.fds - other.fds)


_NOTHING: Final = Load()


class _User:
    def __init__(self, at_once: int) -> None:
        self.load = _NOTHING
        self.turns = asyncio.Semaphore(at_once)


class Turns:
    """Counts calls by user, however many connections he has, and lets a few in at a time.

    Root is bounded by the limits on all callers and on one sender only: nothing is kept from it.
    """

    def __init__(self, limits: Callable[[], Limits]) -> None:
        self._limits = limits
        self._all = _NOTHING
        self._senders: dict[str, Load] = {}
        self._users: dict[int, _User] = {}
        # Set while no call is under way.
        self.idle = asyncio.Event()
        self.idle.set()

    def admit(self, sender: str, uid: int | None, load: Load) -> None:
        """Count a call; `uid` is None while nobody knows whose it is.

        Raises LimitsExceeded, and counts nothing then. Else leave() is to follow.
        """
        limits = self._limits()
        his = self._senders.get(sender, _NOTHING)
        if his.calls >= limits.pending_calls_per_sender:
            raise LimitsExceeded(
                f"you have [limits] pending-calls-per-sender = {limits.pending_calls_per_sender} "
                "calls under way; wait for some to end"
            )
        if uid != _ROOT:
            if uid is not None:
                self._refuse_too_many(uid, load)
            # Of one connection as of one user, whose other ones are not known yet.
            self._refuse_too_large(his + load)
        self._refuse_for_all(his, uid, load)
        self._senders[sender] = his + load
        self._all += load
        self.idle.clear()

    def leave(self, sender: str, load: Load) -> None:
        """A call that was admitted has ended."""
        self._all -= load
        self._senders[sender] -= load
        if not self._senders[sender].calls:
            del self._senders[sender]
        if not self._senders:
            self.idle.set()

    def _refuse_too_many(self, uid: int, load: Load) -> None:
        limit, user = self._limits().pending_calls_per_user, self._users.get(uid)
        if user is None:
            return
        if user.load.calls >= limit:
            raise LimitsExceeded(
                f"uid {uid} has [limits] pending-calls-per-user = {limit} calls under way; wait "
                "for some to end"
            )
        self._refuse_too_large(user.load + load)

    def _refuse_too_large(self, would_be: Load) -> None:
        limits = self._limits()
        if would_be.bytes > limits.pending_bytes_per_user:
            raise _too_large("pending-bytes-per-user", limits.pending_bytes_per_user, "bytes")
        if would_be.fds > limits.pending_fds_per_user:
            raise _too_large("pending-fds-per-user", limits.pending_fds_per_user, "descriptors")

    def _refuse_for_all(self, his: Load, uid: int | None, load: Load) -> None:
        """Those who fill what is for all must not keep others out: root, and the first calls of a
        connection, since whose it is is known a moment later only."""
        limits = self._limits()
        if uid == _ROOT:
            return
        if his.calls >= limits.calls_at_once_per_user and self._all.calls >= limits.pending_calls:
            raise LimitsExceeded(
                f"[limits] pending-calls = {limits.pending_calls} calls are under way; try later"
            )
        if load.bytes > _SMALL_BYTES and self._all.bytes + load.bytes > limits.pending_bytes:
            raise _too_large("pending-bytes", limits.pending_bytes, "bytes")

    @contextlib.asynccontextmanager
    async def turn(self, uid: int, load: Load) -> AsyncIterator[None]:
        """Wait for this user's turn and have it for as long as the block runs.

        Raises LimitsExceeded if too many of his calls are under way already.
        """
        if uid == _ROOT:
            yield
            return
        self._refuse_too_many(uid, load)
        user = self._users.get(uid)
        if user is None:
            user = self._users[uid] = _User(self._limits().calls_at_once_per_user)
        user.load += load
        try:
            async with user.turns:
                yield
        finally:
            user.load -= load
            if not user.load.calls:
                del self._users[uid]


def _too_large(name: str, limit: int, of: str) -> LimitsExceeded:
    return LimitsExceeded(
        f"calls with more than [limits] {name} = {limit} {of} would be under way; send less at once"
    )
