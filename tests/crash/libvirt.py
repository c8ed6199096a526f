# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt does with a VM that svirtd only follows: it labels, runs, and gives back."""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tests.support import XATTR


class Disk(Protocol):
    """A file that a VM has."""

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def original(self) -> bytes | None:
        """What it carries when nobody has it."""


class Libvirt:
    """Has one domain at most. `query` asks the book: its labels are those that libvirt is told."""

    def __init__(self, query: Callable[[str], list[tuple[Any, ...]]]) -> None:
        self._query = query
        self._process: subprocess.Popen[bytes] | None = None
        self.has_labelled = False
        self.pid = 0
        # What was plugged in while the domain ran, with the label that it got.
        self.plugged: dict[Path, bytes] = {}

    def label(self, disks: Sequence[Disk], name: str) -> None:
        """Label what a VM of this name was checked in with."""
        told = dict(
            self._query(
                "SELECT h.path, h.label FROM hold h JOIN vm v ON v.rank = h.rank"
                f" WHERE v.name = '{name}'"
            )
        )
        for disk in disks:
            os.setxattr(disk.path, XATTR, told[str(disk.path)].encode() + b"\0")
        self.has_labelled = True

    def plug(self, disk: Disk, name: str) -> None:
        """Label what a VM that runs gets, before anybody is told of it."""
        ((text,),) = self._query(f"SELECT image_context FROM vm WHERE name = '{name}'")
        self.plugged[disk.path] = text.encode() + b"\0"
        os.setxattr(disk.path, XATTR, self.plugged[disk.path])

    def unplug(self, disk: Disk) -> None:
        """Have a file carry what it carried before it was plugged in, as far as that was known."""
        del self.plugged[disk.path]
        _put_back(disk)

    def give_back(self, disks: Sequence[Disk]) -> None:
        """Have every file carry what it carried before."""
        for disk in disks:
            _put_back(disk)
        self.has_labelled = False

    def process(self) -> int:
        """Start what stands for the domain's QEMU; returns its number."""
        self._process = subprocess.Popen(["/bin/sleep", "86398"])
        self.pid = self._process.pid
        return self.pid

    def end(self) -> None:
        """End the domain's process, if there is one; `pid` stays what it was."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def reset(self) -> None:
        """Be as at the beginning."""
        self.end()
        self.has_labelled = False
        self.plugged.clear()
        self.pid = 0


def _put_back(disk: Disk) -> None:
    if disk.original is None:
        os.removexattr(disk.path, XATTR)
    else:
        os.setxattr(disk.path, XATTR, disk.original)
