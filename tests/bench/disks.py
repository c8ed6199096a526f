# SPDX-License-Identifier: LGPL-2.1-or-later
"""Acquire with disk images."""

from functools import partial
from pathlib import Path
from statistics import median

from tests.bench.floors import LabelFloor
from tests.bench.peers import make_daemon, serving
from tests.bench.rows import Bar, Rounds, Row
from tests.bench.setting import Setting, one_by_one
from tests.support import image

COUNTS = (0, 1, 5, 20)
ROWS = (
    "floor.label",
    "floor.message.20",
    *(f"files.{count}" for count in COUNTS),
    "files.20.added",
    *(f"files.{count}.release" for count in COUNTS),
)


async def rows(setting: Setting) -> list[Row]:
    """Measure; each VM is released before the next one acquires the same files."""
    caller, times = setting.caller, setting.amount(40, 15)
    most = max(COUNTS)
    folder = setting.folder / "images"
    folder.mkdir()
    disks = [image(folder / f"disk-{n}") for n in range(most)]
    floor = LabelFloor(setting.folder / "label-floor", most)
    floor.run(2)
    label, message, added = Rounds(), Rounds(), Rounds()
    acquire = {count: Rounds() for count in COUNTS}
    release = {count: Rounds() for count in COUNTS}
    async with serving(caller, make_daemon(setting.folder / "files")):
        await _pairs(setting, 20, disks)
        for _ in range(setting.amount(7, 3)):
            label.add(floor.run(times))
            plain = await one_by_one([partial(caller.echo_acquire, "x")] * times)
            full = await one_by_one([partial(caller.echo_acquire, "x", disks)] * times)
            message.add([median(full) - median(plain)])
            for count in COUNTS:
                acquired, released = await _pairs(setting, times, disks[:count])
                acquire[count].add(acquired)
                release[count].add(released)
                if count == 0:
                    empty = median(acquired)
            added.add([median(acquired) - empty])
    found = [
        Row("floor.label", "one setxattr of a label by path", label.p50, "µs"),
        Row(
            "floor.message.20",
            "what 20 files in the message of an Acquire add to an echo",
            message.p50,
            "µs",
        ),
    ]
    for count in COUNTS:
        text = f"durable Acquire with {count} files, p50"
        found.append(Row(f"files.{count}", text, acquire[count].p50, "µs"))
    found.append(
        Row(
            "files.20.added",
            "files.20 less files.0; floor: 20 x floor.label; only the value has the message",
            added.p50,
            "µs",
            20 * label.p50,
            Bar(6.0),
        )
    )
    for count in COUNTS:
        text = f"Release with {count} files, p50"
        found.append(Row(f"files.{count}.release", text, release[count].p50, "µs"))
    return found


async def _pairs(
    setting: Setting, times: int, disks: list[Path]
) -> tuple[list[float], list[float]]:
    caller = setting.caller
    acquired, released = [], []
    for name in setting.names(times):
        acquired += await one_by_one([partial(caller.acquire, name, disks)])
        released += await one_by_one([partial(caller.release, name)])
    return acquired, released
