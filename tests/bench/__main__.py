# SPDX-License-Identifier: LGPL-2.1-or-later
"""`./bench`: measure, print, and with --check say whether every bar holds."""

import argparse
import asyncio
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import calls, disks, draws, fairness, starts, trees
from tests.bench.peers import Caller, echoing
from tests.bench.rows import Row
from tests.bench.setting import Setting
from tests.sandbox import inside
from tests.support import REPO

Part = Callable[[Setting], Awaitable[list[Row]]]

PARTS: dict[str, tuple[Part, Sequence[str]]] = {
    "sequential calls": (calls.sequential, calls.SEQUENTIAL_ROWS),
    "parallel calls": (calls.parallel, calls.PARALLEL_ROWS),
    "files": (disks.rows, disks.ROWS),
    "trees": (trees.rows, trees.ROWS),
    "draws": (draws.rows, draws.ROWS),
    "fairness": (fairness.rows, fairness.ROWS),
    "starts and memory": (starts.rows, starts.ROWS),
}


def main() -> int:
    """Parse the command line, measure and print."""
    names = [name for _, rows in PARTS.values() for name in rows]
    parser = argparse.ArgumentParser(prog="./bench", epilog=f"rows: {', '.join(names)}")
    parser.add_argument("--json", action="store_true", help="rows for programs")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and VMs; rougher")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar does not hold")
    parser.add_argument(
        "--only",
        metavar="ROW",
        action="append",
        help="this row, or those whose names start with it and a dot; may be given again",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=REPO / "build",
        help="where books and disk images go: a file system that keeps labels, on a disk "
        "(default: %(default)s)",
    )
    options = parser.parse_args()
    wanted = [n for n in names if options.only is None or any(map(_selector(n), options.only))]
    if not wanted:
        parser.error(f"--only {' '.join(options.only)} is no row; rows: {', '.join(names)}")
    inside()
    options.folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        file_system = subprocess.run(
            ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", folder],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        rows = asyncio.run(_measure(Path(folder), wanted, quick=options.quick))
    if options.json:
        about = {
            "python": platform.python_version(),
            "kernel": platform.release(),
            "cores": len(os.sched_getaffinity(0)),
            "file_system": file_system,
            "quick": options.quick,
        }
        print(json.dumps(about | {"rows": [row.as_json() for row in rows]}, indent=2))
    else:
        _print(rows, f"{file_system}, {len(os.sched_getaffinity(0))} cores")
    return 1 if options.check and any(row.holds is False for row in rows) else 0


def _selector(name: str) -> Callable[[str], bool]:
    return lambda only: name == only or name.startswith(f"{only}.")


async def _measure(folder: Path, wanted: Sequence[str], *, quick: bool) -> list[Row]:
    found = []
    # A collection in the client would be counted as the service's time.
    gc.freeze()
    caller = await Caller.open()
    try:
        async with echoing(caller):
            setting = Setting(caller, folder, quick)
            for title, (part, names) in PARTS.items():
                if not set(names) & set(wanted):
                    continue
                setting.say(f"measuring: {title}")
                start = time.monotonic()
                rows = await part(setting)
                if {row.name for row in rows} != set(names):
                    raise RuntimeError(f"{title}: rows {[row.name for row in rows]} for {names}")
                found += [row for row in rows if row.name in wanted]
                setting.say(f"measured: {title}, {time.monotonic() - start:.0f} s")
    finally:
        await caller.close()
    return found


def _print(rows: Sequence[Row], about: str) -> None:
    table = Table(title=f"svirtd against its floors ({about})", title_justify="left")
    for header in ("row", "value", "floor", "ratio", "bar", "holds", "meaning"):
        right = header in ("value", "floor", "ratio", "bar")
        table.add_column(header, justify="right" if right else "left", no_wrap=header != "meaning")
    for row in rows:
        table.add_row(
            row.name,
            f"{_number(row.value)} {row.unit}",
            "" if row.floor is None else f"{_number(row.floor)} {row.unit}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.bar is None else str(row.bar),
            {True: "[green]yes", False: "[bold red]NO", None: ""}[row.holds],
            row.meaning,
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    failed = [row.name for row in rows if row.holds is False]
    console.print(f"bars that do not hold: {', '.join(failed)}" if failed else "every bar holds")


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
