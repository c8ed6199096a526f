# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one user's calls take while another floods the service."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial

from tests.bench.peers import Caller, make_daemon, serving
from tests.bench.rows import Bar, Rounds, Row
from tests.bench.setting import Setting, one_by_one
from tests.sandbox.accounts import ANN, BEN
from tests.support import REPO

ROWS = (
    "user.acquire.p50",
    "user.acquire.p99",
    "flood.calls.p50",
    "flood.calls.p99",
    "flood.silent.bus.p50",
    "flood.silent.ping.p50",
)
_ROUNDS = 5


async def rows(setting: Setting) -> list[Row]:
    """Measure Acquire and Release of a user who is alone, and beside a flood."""
    idle, calls, bus, ping = Rounds(), Rounds(), Rounds(), Rounds()
    times = setting.amount(300, 60)
    async with serving(setting.caller, make_daemon(setting.folder / "fairness")):
        user = await Caller.open_as(BEN)
        try:
            await _one_round(setting, user, 30)  # the warm-up
            for _ in range(setting.amount(_ROUNDS, 2)):
                idle.add(await _one_round(setting, user, times))
                async with _flood("calls"):
                    calls.add(await _one_round(setting, user, times))
                async with _flood("silent"):
                    bus.add(await one_by_one([user.ask_bus] * times))
                    ping.add(await one_by_one([partial(user.ping, "")] * times))
        finally:
            await user.close()
    flood = "4 connections with 64 calls under way each"
    return [
        Row(
            "user.acquire.p50",
            "Acquire or Release of an ordinary user, no resources, polkit asked",
            idle.p50,
            "µs",
        ),
        Row("user.acquire.p99", "as above, slowest 1 %", idle.p99, "µs"),
        Row(
            "flood.calls.p50",
            f"the same while another user floods ({flood}); floor: user.acquire.p50",
            calls.p50,
            "µs",
            idle.p50,
        ),
        Row(
            "flood.calls.p99",
            "as above, slowest 1 %; floor: user.acquire.p99",
            calls.p99,
            "µs",
            idle.p99,
            Bar(5.0),
        ),
        Row(
            "flood.silent.bus.p50",
            "the bus answers, beside as many calls to svirtd that want no answer as it takes",
            bus.p50,
            "µs",
        ),
        Row(
            "flood.silent.ping.p50",
            "svirtd answers beside the same; floor: flood.silent.bus.p50",
            ping.p50,
            "µs",
            bus.p50,
            Bar(5.0),
        ),
    ]


async def _one_round(setting: Setting, user: Caller, times: int) -> list[float]:
    found = []
    for name in setting.names(times):
        found += await one_by_one([partial(user.acquire, name), partial(user.release, name)])
    return found


@contextlib.asynccontextmanager
async def _flood(kind: str) -> AsyncIterator[None]:
    """Have another user call all the time."""
    who = [str(number) for number in (ANN.uid, ANN.gid, *ANN.groups)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.flood", kind, *who, cwd=REPO, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        if await process.stdout.readline() != b"ready\n":
            raise RuntimeError("the flood did not begin")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
