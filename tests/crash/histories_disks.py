# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of a history, on an ext4 of their own: inode numbers come back there at once.

Seen in two folders, `disks` and a second mount `view` of it, which can be made read-only.
"""

import array
import fcntl
import os
import subprocess
from pathlib import Path
from typing import Final

from svirtd.core import overlays
from tests.mounts import unmount
from tests.sandbox import kernel
from tests.support import XATTR, label, set_label

_MIB: Final = 1 << 20
_GETFLAGS: Final = 0x80086601
_SETFLAGS: Final = 0x40086602
_IMMUTABLE: Final = 0x10


class Disks:
    """The mounted file system. `close` takes it away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.view = folder / "view"
        self._disks = folder / "disks"
        backing = folder / "ext4"
        with open(backing, "wb") as file:
            file.truncate(8 * _MIB)
        subprocess.run(["mkfs.ext4", "-q", backing], check=True)
        for place in (self._disks, self.view):
            place.mkdir()
        subprocess.run(["mount", "-o", "loop", backing, self._disks], check=True)
        kernel.bind(str(self._disks), str(self.view))
        (self._disks / "lost+found").rmdir()

    def close(self) -> None:
        """Unmount; the loop device goes with its mount."""
        for place in (self.view, self._disks):
            unmount(place)

    def path(self, path: str) -> str:
        """The absolute path of "FOLDER/NAME"."""
        return str(self.folder / path)

    def name(self, name: str) -> Path:
        """A file by its name, where it can always be written."""
        return self._disks / name

    def make(self, name: str, text: str | None, *, folder: bool = False) -> int:
        """Make a file with this label, or a folder, and return its inode number."""
        path = self.name(name)
        if folder:
            path.mkdir()
        else:
            with open(path, "xb") as file:
                file.truncate(_MIB)
        if text is not None:
            set_label(path, text)
        return path.stat().st_ino

    def overlay(self, name: str, over: str) -> None:
        """Write an empty image that lies over "FOLDER/NAME" into a file."""
        with open(self.name(name), "r+b") as file:
            file.write(overlays.empty(self.path(over), _MIB).head)

    def relabel(self, name: str, text: str | None) -> None:
        """Label a file as a third party does."""
        path = self.name(name)
        if text is not None:
            set_label(path, text)
        elif label(path) is not None:
            os.removexattr(path, XATTR)

    def immutable(self, name: str, *, on: bool) -> None:
        """chattr +i or -i."""
        fd = os.open(self.name(name), os.O_RDONLY)
        try:
            flags = array.array("l", [0])
            fcntl.ioctl(fd, _GETFLAGS, flags)
            flags[0] = flags[0] | _IMMUTABLE if on else flags[0] & ~_IMMUTABLE
            fcntl.ioctl(fd, _SETFLAGS, flags)
        finally:
            os.close(fd)

    def read_only(self, *, on: bool) -> None:
        """Make the second mount read-only, or writable again."""
        flags = kernel.MS_REMOUNT | kernel.MS_BIND | (kernel.MS_RDONLY if on else 0)
        kernel.mount("none", str(self.view), flags=flags)

    def labels(self) -> dict[str, tuple[int, str | None]]:
        """Inode number and label of every name."""
        return {
            str(path.relative_to(self._disks)): (path.stat().st_ino, label(path))
            for path in self._disks.rglob("*")
        }

    def clear(self) -> None:
        """Remove every file, whatever keeps it."""
        self.read_only(on=False)
        # What is in a folder before it.
        for path in sorted(self._disks.rglob("*"), reverse=True):
            self.immutable(str(path.relative_to(self._disks)), on=False)
            path.rmdir() if path.is_dir() else path.unlink()
