# SPDX-License-Identifier: LGPL-2.1-or-later
"""A cgroup2 subtree of the sandbox's own, on hybrid (v1 and v2), pure v2 and systemd hosts."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox.errors import SandboxError

_WANTED = ("cpu", "memory", "pids", "io", "cpuset")
_REMOVE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Subtree:
    """A cgroup2 folder and the controllers that its children can use."""

    path: Path
    controllers: tuple[str, ...]

    def enter(self) -> None:
        """Move the calling process into the subtree."""
        (self.path / "cgroup.procs").write_text("0")

    def remove(self) -> None:
        """Kill what still runs in the subtree and remove its folders.

        Raises SandboxError when they cannot be removed before a deadline.
        """
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        kill = self.path / "cgroup.kill"
        if kill.exists():
            kill.write_text("1")
        # The kernel lets go of a killed process's cgroup a moment after it was reaped.
        while True:
            try:
                for folder, _, _ in os.walk(self.path, topdown=False):
                    Path(folder).rmdir()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise SandboxError(f"cannot remove cgroup {self.path}: {error}") from error
                time.sleep(0.01)
            else:
                return


def _cgroup2_mounts(mountinfo: str) -> Iterator[Path]:
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] == "cgroup2":
            yield Path(left.split()[4])


def create(name: str) -> Subtree:
    """Create the folder `name` below the root of the cgroup2 tree.

    Controllers come along as far as the machine lets them: one that a v1 hierarchy has bound is not
    there, and in a container whose root cgroup has processes they cannot be switched on.
    Raises SandboxError when there is no cgroup2 file system or it is not writable.
    """
    root = next(_cgroup2_mounts(Path("/proc/self/mountinfo").read_text()), None)
    if root is None:
        raise SandboxError(
            "no cgroup2 file system is mounted; mount one: "
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
        )
    path = root / name
    try:
        path.mkdir()
    except OSError as error:
        raise SandboxError(f"cannot create cgroup {path}: {error}") from error
    available = (root / "cgroup.controllers").read_text().split()
    for controller in _WANTED:
        if controller in available:
            _switch_on(root, controller)
    return Subtree(path, tuple((path / "cgroup.controllers").read_text().split()))


def _switch_on(parent: Path, controller: str) -> None:
    control = parent / "cgroup.subtree_control"
    if controller in control.read_text().split():
        return
    try:
        control.write_text(f"+{controller}")
    except OSError:
        # EBUSY or EPERM in a container: the caller reads what is really there afterwards.
        return
