# SPDX-License-Identifier: LGPL-2.1-or-later
"""Start-up time and memory, with an empty book and with one full of reserved VMs."""

from pathlib import Path

from svirtd.config import Config
from tests.bench.book import opened, reserve
from tests.bench.peers import make_daemon, serving
from tests.bench.rows import Bar, Rounds, Row
from tests.bench.setting import Setting

_PRIVATE, _GROUPS = "c0.c999", "c1000.c1023"
_SETTINGS = f'[labels]\nprivate = "{_PRIVATE}"\ngroups = "{_GROUPS}"\n'
_BAR = Bar(1.3)
_FIGURES = {
    "start": ("ms", "process spawn to bus name owned"),
    "memory.start.rss": ("KiB", "resident memory after the start"),
    "memory.start.pss": ("KiB", "as above, shared pages in proportion (Pss)"),
    "memory.used.rss": ("KiB", "resident memory after one Acquire and Release"),
    "memory.used.pss": ("KiB", "as above, shared pages in proportion (Pss)"),
}
ROWS = tuple(f"{name}.{book}" for name in _FIGURES for book in ("empty", "full"))


async def rows(setting: Setting) -> list[Row]:
    """Measure. Files are in the page cache, as after any start but a host's first."""
    reserved = setting.amount(400_000, 20_000)
    empty = make_daemon(setting.folder / "empty", _SETTINGS)
    full = make_daemon(setting.folder / "full", _SETTINGS)
    setting.say(f"start: filling a book with {reserved} reserved VMs")
    async with opened(full.book, Config(private=_PRIVATE, groups=_GROUPS)) as book:
        await reserve(book, reserved)
    found = {name: Rounds() for name in ROWS}
    setting.say("start: starting daemons")
    for turn in range(setting.amount(8, 4)):
        for daemon, which in ((empty, "empty"), (full, "full")):
            async with serving(setting.caller, daemon) as start_s:
                figures = {"start": start_s * 1000}
                figures["memory.start.rss"], figures["memory.start.pss"] = _memory_kib(daemon.pid)
                (name,) = setting.names(1)
                await setting.caller.acquire(name)
                await setting.caller.release(name)
                figures["memory.used.rss"], figures["memory.used.pss"] = _memory_kib(daemon.pid)
            if turn:  # the first start makes the book or reads it from the disk
                for figure, value in figures.items():
                    found[f"{figure}.{which}"].add([value])
    made = []
    for figure, (unit, meaning) in _FIGURES.items():
        floor = found[f"{figure}.empty"].p50
        made.append(Row(f"{figure}.empty", f"{meaning}, empty book", floor, unit))
        value = found[f"{figure}.full"].p50
        text = f"as above, {reserved} reserved VMs; floor: empty book"
        made.append(Row(f"{figure}.full", text, value, unit, floor, _BAR))
    return made


def _memory_kib(pid: int) -> tuple[float, float]:
    """Return Rss and Pss of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = {key: rest.split()[0] for key, _, rest in (line.partition(":") for line in lines)}
    return float(fields["Rss"]), float(fields["Pss"])
