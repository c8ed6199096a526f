# SPDX-License-Identifier: LGPL-2.1-or-later
"""Locks by key: exclusion, turns, cancellation, nothing kept."""

import asyncio
import random

import pytest

from svirtd.engine.locks import Locks


def test_one_at_a_time_and_in_turn() -> None:
    async def test() -> None:
        locks, story = Locks(), []

        async def work(name: str) -> None:
            async with locks.hold("key"):
                story.append(f"{name} in")
                await asyncio.sleep(0)
                story.append(f"{name} out")

        await asyncio.gather(*(work(name) for name in "abc"))
        assert story == ["a in", "a out", "b in", "b out", "c in", "c out"]
        assert not locks._held

    asyncio.run(test())


def test_other_keys_are_not_in_the_way() -> None:
    async def test() -> None:
        locks = Locks()
        async with locks.hold("a"), locks.hold_all(["b", "c"]):
            assert set(locks._held) == {"a", "b", "c"}
        assert not locks._held

    asyncio.run(test())


def test_no_circle_and_no_overlap_over_random_sets() -> None:
    async def test() -> None:
        locks, inside, dice = Locks(), set[int](), random.Random(7)

        async def work() -> None:
            for _ in range(50):
                keys = dice.sample(range(8), dice.randint(1, 5))
                async with locks.hold_all([*keys, keys[0]]):
                    assert inside.isdisjoint(keys)
                    inside.update(keys)
                    await asyncio.sleep(0)
                    inside.difference_update(keys)

        async with asyncio.timeout(20):
            await asyncio.gather(*(work() for _ in range(10)))
        assert not locks._held

    asyncio.run(test())


@pytest.mark.parametrize("late", [False, True])
def test_who_gives_up_takes_nobodys_turn(late: bool) -> None:
    async def test() -> None:
        locks = Locks()

        async def work() -> None:
            async with locks.hold_all(["a", "b"]):
                await asyncio.sleep(0)

        await locks.take("b")
        quitter, patient = asyncio.ensure_future(work()), asyncio.ensure_future(work())
        await asyncio.sleep(0)
        if late:
            locks.give("b")  # it is the quitter's turn in the moment in which it is cancelled
        quitter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await quitter
        if not late:
            locks.give("b")
        async with asyncio.timeout(20):
            await patient
        assert not locks._held

    asyncio.run(test())
