# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose turn it is: users are bounded each for himself, and none waits for another's calls."""

import asyncio

import pytest

from svirtd.api.turns import Load, Turns
from svirtd.config import Limits
from svirtd.errors import LimitsExceeded

LIMITS = Limits(pending_calls_per_user=5, calls_at_once_per_user=2)


class Calls:
    """Calls that are in until they are let go."""

    def __init__(self) -> None:
        self.turns = Turns(lambda: LIMITS)
        self.inside: list[int] = []
        self.go = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def make(self, uid: int, count: int) -> None:
        self.tasks += [asyncio.create_task(self._call(uid)) for _ in range(count)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _call(self, uid: int) -> None:
        async with self.turns.turn(uid, Load(1, 100)):
            self.inside.append(uid)
            await self.go.wait()


def test_one_users_calls_wait_and_anothers_do_not() -> None:
    async def work() -> None:
        calls = Calls()
        await calls.make(1000, 5)
        assert calls.inside == [1000, 1000]
        with pytest.raises(LimitsExceeded, match=r"\[limits\] pending-calls-per-user = 5"):
            async with calls.turns.turn(1000, Load(1, 100)):
                pytest.fail("a sixth call")
        await calls.make(1001, 1)
        assert calls.inside == [1000, 1000, 1001]
        await calls.make(0, 20)
        assert calls.inside[3:] == [0] * 20
        calls.go.set()
        await asyncio.gather(*calls.tasks)
        assert calls.inside[23:] == [1000] * 3
        # And nothing is remembered of who has no call under way.
        assert calls.turns._users == {}

    asyncio.run(work())


def test_whoever_is_cancelled_gives_the_turn_back() -> None:
    async def work() -> None:
        calls = Calls()
        await calls.make(1000, 3)
        for task in calls.tasks[1:]:
            task.cancel()
        await asyncio.gather(*calls.tasks[1:], return_exceptions=True)
        await calls.make(1000, 1)
        assert len(calls.inside) == 3
        calls.go.set()
        await asyncio.gather(calls.tasks[0], calls.tasks[3])
        assert calls.turns._users == {}

    asyncio.run(work())


def test_who_fills_the_limit_on_all_keeps_nobody_out() -> None:
    limits = Limits(
        pending_calls=4,
        pending_calls_per_sender=3,
        pending_calls_per_user=100,
        calls_at_once_per_user=1,
    )

    async def work() -> None:
        turns = Turns(lambda: limits)
        assert turns.idle.is_set()
        for _ in range(3):
            turns.admit(":1.1", 1000, Load(1, 100))
        with pytest.raises(LimitsExceeded, match=r"\[limits\] pending-calls-per-sender = 3"):
            turns.admit(":1.1", 1000, Load(1, 100))
        turns.admit(":1.2", 1000, Load(1, 100))
        # First calls come through, also of connections that nobody knows whose they are.
        for sender, uid in ((":1.3", 1000), (":1.4", None)):
            turns.admit(sender, uid, Load(1, 100))
            with pytest.raises(LimitsExceeded, match=r"\[limits\] pending-calls = 4"):
                turns.admit(sender, uid, Load(1, 100))
        turns.admit(":1.5", 0, Load(1, 100))
        turns.admit(":1.5", 0, Load(1, 100))
        for sender in (*[":1.1"] * 3, ":1.2", ":1.3", ":1.4", ":1.5", ":1.5"):
            assert not turns.idle.is_set()
            turns.leave(sender, Load(1, 100))
        assert turns.idle.is_set()
        assert not turns._senders

    asyncio.run(work())


def test_large_calls_do_not_fill_the_memory() -> None:
    limits = Limits(pending_bytes=250_000, pending_bytes_per_user=100_000)

    async def work() -> None:
        turns = Turns(lambda: limits)
        turns.admit(":1.1", None, Load(1, 60_000))
        with pytest.raises(LimitsExceeded, match=r"pending-bytes-per-user = 100000"):
            turns.admit(":1.1", None, Load(1, 60_000))
        async with turns.turn(1000, Load(1, 60_000)):
            # His other connections count too, once it is known that they are his.
            with pytest.raises(LimitsExceeded, match=r"pending-bytes-per-user = 100000"):
                turns.admit(":1.2", 1000, Load(1, 60_000))
            with pytest.raises(LimitsExceeded, match=r"pending-bytes-per-user = 100000"):
                async with turns.turn(1000, Load(1, 60_000)):
                    pytest.fail("too large")
        for number in range(3):
            turns.admit(f":1.1{number}", None, Load(1, 60_000))
        with pytest.raises(LimitsExceeded, match=r"\[limits\] pending-bytes = 250000"):
            turns.admit(":1.3", 1001, Load(1, 60_000))
        turns.admit(":1.3", 1001, Load(1, 1_000))
        turns.admit(":1.4", 0, Load(1, 900_000))
        for sender, size in ((":1.1", 60_000), (":1.3", 1_000), (":1.4", 900_000)):
            turns.leave(sender, Load(1, size))
        for number in range(3):
            turns.leave(f":1.1{number}", Load(1, 60_000))
        assert turns.idle.is_set()
        assert turns._users == {}

    asyncio.run(work())


def test_descriptors_are_counted() -> None:
    limits = Limits(pending_fds_per_user=20)

    async def work() -> None:
        turns = Turns(lambda: limits)
        turns.admit(":1.1", None, Load(1, 100, 16))
        with pytest.raises(LimitsExceeded, match=r"pending-fds-per-user = 20 descriptors"):
            turns.admit(":1.1", None, Load(1, 100, 5))
        async with turns.turn(1000, Load(1, 100, 16)):
            with pytest.raises(LimitsExceeded, match=r"pending-fds-per-user = 20 descriptors"):
                turns.admit(":1.2", 1000, Load(1, 100, 5))
            turns.admit(":1.2", 1000, Load(1, 100, 4))
            turns.admit(":1.3", 0, Load(1, 100, 100))
        for sender, fds in ((":1.1", 16), (":1.2", 4), (":1.3", 100)):
            turns.leave(sender, Load(1, 100, fds))
        assert turns.idle.is_set()
        assert turns._all == Load()
        assert (turns._senders, turns._users) == ({}, {})

    asyncio.run(work())
