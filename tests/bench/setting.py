# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every part of the measurement is given."""

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.peers import Caller

BLOCK_DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A client with echo running on its bus, a folder on a disk, and how much to measure."""

    caller: Caller
    folder: Path
    quick: bool
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def amount(self, full: int, quick: int) -> int:
        """Return how often to do something in this run."""
        return quick if self.quick else full

    def names(self, count: int) -> list[str]:
        """Return names for VMs that no VM has had."""
        return [f"bench-{next(self.numbers):08d}" for _ in range(count)]

    def say(self, text: str) -> None:
        """Tell the person who waits."""
        print(text, file=sys.stderr, flush=True)


async def one_by_one(calls: Sequence[Callable[[], Awaitable[None]]]) -> list[float]:
    """Make each call after the other; return the microseconds of each."""
    found = []
    async with asyncio.timeout(BLOCK_DEADLINE_S):
        for call in calls:
            start = time.perf_counter()
            await call()
            found.append((time.perf_counter() - start) * 1e6)
    return found


async def per_second(calls: Sequence[Callable[[], Awaitable[None]]], in_flight: int) -> float:
    """Make all calls, so many of them at any time; return how many ended in a second."""
    waiting = iter(calls)

    async def work() -> None:
        for call in waiting:
            await call()

    start = time.perf_counter()
    async with asyncio.timeout(BLOCK_DEADLINE_S):
        await asyncio.gather(*(work() for _ in range(in_flight)))
    return len(calls) / (time.perf_counter() - start)
