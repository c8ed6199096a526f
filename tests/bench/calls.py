# SPDX-License-Identifier: LGPL-2.1-or-later
"""Durable Acquire without resources: one after the other, and many at once."""

from functools import partial

from tests.bench.floors import SyncFloor
from tests.bench.peers import make_daemon, serving
from tests.bench.rows import Bar, Rounds, Row
from tests.bench.setting import Setting, one_by_one, per_second

SEQUENTIAL_ROWS = (
    "floor.echo.p50",
    "floor.echo.p99",
    "floor.sync.p50",
    "floor.sync.p99",
    "ping.p50",
    "acquire.p50",
    "acquire.p99",
    "release.p50",
    "release.p99",
)
PARALLEL_ROWS = (
    "floor.echo.rate",
    "ping.rate",
    "acquire.rate.single",
    "acquire.rate",
    "acquire.rate.grouped",
    "release.rate",
)
IN_FLIGHT = 64


async def sequential(setting: Setting) -> list[Row]:
    """Measure calls that each wait for the one before."""
    caller, times = setting.caller, setting.amount(400, 100)
    sync, echo, ping, acquire, release = (Rounds() for _ in range(5))
    disk = SyncFloor(setting.folder)
    try:
        async with serving(caller, make_daemon(setting.folder / "sequential")):
            warm = setting.names(50)
            await one_by_one([partial(caller.acquire, name) for name in warm])
            await one_by_one([partial(caller.release, name) for name in warm])
            for _ in range(setting.amount(9, 3)):
                names = setting.names(times)
                sync.add(disk.run(times))
                echo.add(await one_by_one([partial(caller.echo, name) for name in names]))
                ping.add(await one_by_one([partial(caller.ping, name) for name in names]))
                acquire.add(await one_by_one([partial(caller.acquire, name) for name in names]))
                release.add(await one_by_one([partial(caller.release, name) for name in names]))
    finally:
        disk.close()
    calls = "one call after the other"
    return [
        Row("floor.echo.p50", "a dbus-next service returns a string", echo.p50, "µs"),
        Row("floor.echo.p99", "as above, slowest 1 %", echo.p99, "µs"),
        Row("floor.sync.p50", "4 KiB pwrite + fdatasync, the book's disk", sync.p50, "µs"),
        Row("floor.sync.p99", "as above, slowest 1 %", sync.p99, "µs"),
        Row(
            "ping.p50",
            "svirtd answers and does nothing else; floor: echo",
            ping.p50,
            "µs",
            echo.p50,
        ),
        Row(
            "acquire.p50",
            f"durable Acquire, no resources, {calls}; floor: echo + sync",
            acquire.p50,
            "µs",
            echo.p50 + sync.p50,
            Bar(2.0),
        ),
        Row(
            "acquire.p99",
            "as above, slowest 1 %; floor: echo + sync of the slowest 1 %",
            acquire.p99,
            "µs",
            echo.p99 + sync.p99,
            Bar(3.0),
        ),
        Row(
            "release.p50",
            f"Release of such a VM, {calls}; floor: echo + sync",
            release.p50,
            "µs",
            echo.p50 + sync.p50,
        ),
        Row(
            "release.p99",
            "as above, slowest 1 %",
            release.p99,
            "µs",
            echo.p99 + sync.p99,
        ),
    ]


async def parallel(setting: Setting) -> list[Row]:
    """Measure calls of which many are under way at any time."""
    caller, times = setting.caller, setting.amount(2048, 512)
    echo, ping, grouped, single, release = (Rounds() for _ in range(5))
    group_daemon = make_daemon(setting.folder / "grouped")
    single_daemon = make_daemon(setting.folder / "single", "[registry]\ngroup-commit = false\n")
    for _ in range(setting.amount(5, 3)):
        # One name on the bus, so one daemon at a time.
        async with serving(caller, group_daemon):
            warm, names = setting.names(IN_FLIGHT * 2), setting.names(times)
            await per_second([partial(caller.acquire, name) for name in warm], IN_FLIGHT)
            echo.add([await per_second([partial(caller.echo, n) for n in names * 2], IN_FLIGHT)])
            ping.add([await per_second([partial(caller.ping, n) for n in names * 2], IN_FLIGHT)])
            grouped.add([await per_second([partial(caller.acquire, n) for n in names], IN_FLIGHT)])
            release.add([await per_second([partial(caller.release, n) for n in names], IN_FLIGHT)])
            await per_second([partial(caller.release, name) for name in warm], IN_FLIGHT)
        async with serving(caller, single_daemon):
            warm, names = setting.names(IN_FLIGHT * 2), setting.names(times // 2)
            await per_second([partial(caller.acquire, name) for name in warm], IN_FLIGHT)
            single.add([await per_second([partial(caller.acquire, n) for n in names], IN_FLIGHT)])
    flight = f"{IN_FLIGHT} in flight"
    return [
        Row("floor.echo.rate", f"echo, {flight}", echo.p50, "1/s"),
        Row(
            "ping.rate",
            f"svirtd answers and does nothing else, {flight}; floor: echo",
            ping.p50,
            "1/s",
            echo.p50,
        ),
        Row("acquire.rate.single", "as acquire.rate, group-commit = false", single.p50, "1/s"),
        Row(
            "acquire.rate",
            f"durable Acquire, no resources, {flight}; floor: echo",
            grouped.p50,
            "1/s",
            echo.p50,
            Bar(0.4, at_most=False),
        ),
        Row(
            "acquire.rate.grouped",
            "the same figure; floor: one commit per call",
            grouped.p50,
            "1/s",
            single.p50,
            Bar(3.0, at_most=False),
        ),
        Row("release.rate", f"Release, {flight}; floor: echo", release.p50, "1/s", echo.p50),
    ]
