# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs of random messages, bounded by number or time, and what they came to.

SVIRTD_TEST_FUZZ=N takes that many messages for each run instead of the time that CI gives it;
SVIRTD_TEST_FUZZ_SEED=N takes other ones.
"""

import asyncio
import gc
import os
import time
from collections import Counter
from pathlib import Path
from typing import Final

from tests.attack import RawConnection
from tests.attacks.inprocess import SENDER, Journal, Service
from tests.attacks.messages import Maker
from tests.attacks.stranger import Me

_NUMBER: Final = "SVIRTD_TEST_FUZZ"
_SEED: Final = "SVIRTD_TEST_FUZZ_SEED"
_SECONDS: Final = 15.0
_BLOCK: Final = 64
_BUS_BLOCK: Final = 32
_SEED_DEFAULT: Final = 5
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

# Lines for the end of the run.
figures: Final[list[str]] = []


class Bounds:
    """When a run is over, and its seed."""

    def __init__(self) -> None:
        self.seed = int(os.environ.get(_SEED, _SEED_DEFAULT))
        self.number = int(os.environ.get(_NUMBER, "0"))
        self.seconds = _SECONDS
        self._began = time.monotonic()

    def over(self, sent: int) -> bool:
        """Say whether that is enough."""
        if self.number:
            return sent >= self.number
        return time.monotonic() - self._began >= self.seconds

    def tell(self, what: str, counts: Counter[str]) -> None:
        """Keep a line for the end of the run."""
        took_s = time.monotonic() - self._began
        parts = ", ".join(f"{number} {name}" for name, number in counts.items())
        figures.append(
            f"{what}: {counts['sent']} messages in {took_s:.0f} s, seed {self.seed}: {parts}"
        )


def rss(pid: int | str = "self") -> int:
    """Return the memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


async def into_the_parser(folder: Path, bounds: Bounds) -> tuple[Counter[str], Journal, list[int]]:
    """Feed messages to the daemon's reader and router in this process.

    Returns counts, what was unexpected, and the descriptors, tasks and objects that are there more
    than there were before.
    """
    maker, journal, counts = Maker(bounds.seed), Journal(), Counter[str]()
    service = Service(journal)
    await service.open(folder)
    await _warm(service, maker)
    before = _standing()
    serial = 0
    while not bounds.over(counts["sent"]):
        block, ends = list[bytes](), False
        while len(block) < _BLOCK and not ends:
            serial = serial % 0x7FFFFFFF + 1
            kind = ("right", "odd", "mutated", "unframed")[maker.pick(300, 300, 395, 5)]
            counts["sent"] += 1
            counts[kind] += 1
            raw = (maker.right() if kind == "right" else maker.odd()).encode(serial, SENDER)
            if kind == "mutated":
                raw = maker.framed(raw)
            elif kind == "unframed":
                raw, ends = maker.broken(raw), True
            block.append(raw)
        await service.feed(b"".join(block))
        if ends or service.lost:
            # Where a message ends is not known any more.
            counts["answered"] += service.answers
            counts["connections"] += 1
            await service.abandon()
            service = Service(journal)
            await service.open(folder)
    await service.settle()
    counts["answered"] += service.answers
    # It must have stayed a service.
    assert await service.answers_to(maker.ping().encode(7, SENDER))
    after = _standing()
    service.close()
    return counts, journal, [now - then for now, then in zip(after, before, strict=True)]


async def _warm(service: Service, maker: Maker) -> None:
    """Fill what is kept on purpose: signatures, callers."""
    for serial in range(1, 3000):
        await service.feed(maker.framed(maker.odd().encode(serial, SENDER)))
        if service.lost:
            break
    await service.settle()


def _standing() -> list[int]:
    gc.collect()
    return [len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), len(gc.get_objects())]


def through_the_bus(
    me: Me, address: str, seed: int, number: int, seconds: float, destination: str
) -> Counter[str]:
    """Send messages as the stranger that runs this; `number` of them, or as many as time allows."""
    del me
    maker, counts, began = Maker(seed), Counter[str](), time.monotonic()
    raw = RawConnection(address)
    serial = 10
    while counts["sent"] < number if number else time.monotonic() - began < seconds:
        block, answered, ends = list[bytes](), set[int](), False
        while len(block) < _BUS_BLOCK and not ends:
            serial += 1
            kind = ("right", "odd", "broken")[maker.pick(60, 39, 1)]
            counts["sent"] += 1
            counts[kind] += 1
            draft = maker.right() if kind == "right" else maker.odd()
            data = draft.encode(serial, destination=destination)
            if kind == "broken":
                # The bus ends who sends that, or it was a right message after all.
                data, ends = maker.broken(data), True
            elif draft.answered:
                answered.add(serial)
            block.append(data)
        raw.sock.sendall(b"".join(block))
        # All of them are under way at once; those before a broken one may be lost with it.
        if ends:
            raw.close()
            raw = RawConnection(address)
            counts["connections"] += 1
            continue
        counts["answered"] += len(answered)
        while answered:
            answered -= {raw.next_answered()}
    raw.close()
    return counts
