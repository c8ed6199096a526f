# SPDX-License-Identifier: LGPL-2.1-or-later
"""Acquire and release of a directory tree, against a loop in C, and against setfiles."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from dbus_next import Variant

from tests.bench.peers import make_daemon, serving
from tests.bench.rows import Bar, Rounds, Row
from tests.bench.setting import Setting
from tests.support import MANAGER, NAME, ROOT, set_label

_ORIGINAL = "system_u:object_r:virt_image_t:s0"
_OTHER = "system_u:object_r:user_home_t:s0"
_IN_FOLDER = 100
_MORE_KIB = 40 * 1024
ROWS = ("tree.one", "tree.two", "tree.two.release", "tree.setfiles", "tree.mixed", "tree.memory")
# The least that it can be: a path after the other, its label set, and nothing looked at.
_LOOP = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <time.h>
int main(int argc, char **argv) {
    char line[4096], **paths = NULL;
    size_t n = 0, room = 0;
    struct timespec a, b;
    while (argc > 1 && fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (n == room)
            paths = realloc(paths, (room = 2 * room + 64) * sizeof *paths);
        paths[n++] = strdup(line);
    }
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (size_t i = 0; i < n; i++)
        if (lsetxattr(paths[i], "security.selinux", argv[1], strlen(argv[1]) + 1, 0)) return 1;
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%f\n", b.tv_sec - a.tv_sec + (b.tv_nsec - a.tv_nsec) / 1e9);
    return 0;
}
"""


class _Tree:
    """A tree, with what sets all its labels at the speed of C."""

    def __init__(self, folder: Path, files: int) -> None:
        self.root = folder / "tree"
        self.root.mkdir()
        paths = [self.root]
        for number in range(files // _IN_FOLDER):
            inner = self.root / f"d{number // 32:03}" / f"e{number % 32:02}"
            inner.mkdir(parents=True)
            paths += [inner] if number % 32 else [inner.parent, inner]
            for one in range(_IN_FOLDER):
                path = inner / f"file-{one:03}.dat"
                path.touch()
                paths.append(path)
        self.paths = paths
        self._names = "\n".join(map(str, paths))
        source = folder / "loop.c"
        source.write_text(_LOOP)
        self._loop = folder / "loop"
        subprocess.run(["gcc", "-O2", "-o", self._loop, source], check=True)
        self._spec = folder / "file_contexts"

    def loop(self, label: str) -> float:
        """Set every label; returns the seconds of the loop alone."""
        argv = [str(self._loop), label]
        done = subprocess.run(argv, input=self._names, capture_output=True, text=True, check=True)
        return float(done.stdout)

    def setfiles(self, label: str) -> float:
        """Have setfiles set every label, with two threads; returns the seconds that it took."""
        self._spec.write_text(f"/.*\t{label}\n")
        start = time.perf_counter()
        argv = ["setfiles", "-F", "-T", "2", str(self._spec), str(self.root)]
        subprocess.run(argv, check=True, capture_output=True)
        return time.perf_counter() - start


async def rows(setting: Setting) -> list[Row]:
    """Measure. Everything is in the caches of the machine, as for the loop."""
    files = setting.amount(100_000, 20_000)
    tree = await asyncio.to_thread(_Tree, setting.folder, files)
    loop, one, two, back, setfiles, mixed = (Rounds() for _ in range(6))
    daemon = make_daemon(setting.folder / "trees")
    async with serving(setting.caller, daemon):
        for turn in range(setting.amount(7, 5)):
            floors = [await asyncio.to_thread(tree.loop, text) for text in (_OTHER, _ORIGINAL)]
            with _on_one_core(daemon.pid):
                alone = await _pair(setting, tree)
            both = await _pair(setting, tree)
            if turn:  # the first gives everything its labels
                loop.add(floors[1:])
                one.add([alone[0]])
                two.add([both[0]])
                back.add([both[1]])
                setfiles.add([await asyncio.to_thread(tree.setfiles, _OTHER)])
        for path in tree.paths[1::3]:
            set_label(path, _OTHER)
        memory = await _memory(setting, tree, daemon.pid)
        mixed.add([(await _pair(setting, tree))[0]])
    await asyncio.to_thread(shutil.rmtree, tree.root)
    per = 1e6 / len(tree.paths)
    return [
        Row(
            "tree.one",
            f"Acquire of a tree of {files} files on one core, per entry; floor: lsetxattr in C",
            one.p50 * per,
            "µs",
            loop.p50 * per,
            Bar(2.5),
        ),
        Row("tree.two", "as above, on two cores", two.p50 * per, "µs", loop.p50 * per, Bar(1.3)),
        Row(
            "tree.two.release", "Release of it, on two cores", back.p50 * per, "µs", loop.p50 * per
        ),
        Row(
            "tree.setfiles",
            "tree.two, over setfiles -F -T 2 on the same tree",
            two.p50 * per,
            "µs",
            setfiles.p50 * per,
            Bar(0.5),
        ),
        Row(
            "tree.mixed",
            "as tree.two, where a third has other labels than the root",
            mixed.p50 * per,
            "µs",
            loop.p50 * per,
        ),
        Row(
            "tree.memory",
            "memory (Pss) of all processes, more than before, with a third as above; over 40 MiB",
            memory,
            "KiB",
            _MORE_KIB,
            Bar(1.0),
        ),
    ]


@contextlib.contextmanager
def _on_one_core(pid: int) -> Iterator[None]:
    """Have the daemon, and the workers that it starts meanwhile, on one core."""
    cores = os.sched_getaffinity(0)
    family = _family(pid)
    for one in family:
        os.sched_setaffinity(one, {min(cores)})
    try:
        yield
    finally:
        for one in family:
            os.sched_setaffinity(one, cores)


async def _pair(setting: Setting, tree: _Tree) -> tuple[float, float]:
    """Acquire the tree and release it; returns the seconds of both."""
    (name,) = setting.names(1)
    resource = {"path": Variant("s", str(tree.root)), "recursive": Variant("b", True)}
    call = partial(setting.caller.call, NAME, ROOT, MANAGER)
    start = time.perf_counter()
    await call("Acquire", "saa{sv}a{sv}", [name, [resource], {}])
    held = time.perf_counter()
    await call("Release", "sa{sv}", [name, {}])
    return held - start, time.perf_counter() - held


async def _memory(setting: Setting, tree: _Tree, pid: int) -> float:
    """Return the most that all processes had more than before, in KiB."""
    before = _pss_kib(pid)
    most = before
    work = asyncio.ensure_future(_pair(setting, tree))
    while not work.done():
        most = max(most, await asyncio.to_thread(_pss_kib, pid))
        await asyncio.sleep(0.005)
    work.result()
    return most - before


def _family(pid: int) -> list[int]:
    """Return a process with all below it."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(OSError):
            tasks: Sequence[Path] = list(Path(f"/proc/{one}/task").iterdir())
            found.append(one)
            for task in tasks:
                waiting += map(int, (task / "children").read_text().split())
    return found


def _pss_kib(pid: int) -> float:
    total = 0.0
    for one in _family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += float(line.split()[1])
    return total
