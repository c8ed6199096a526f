# SPDX-License-Identifier: LGPL-2.1-or-later
"""Takes away a folder whose content somebody hostile has made, and may still be changing."""

import errno
import os
import time
from typing import Final

from svirtd.host import walk

# A user can add as fast as we remove; whoever waits for this thread must not wait for that.
_REMOVE_S: Final = 20.0
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_Place = tuple[int, int]


def empty(folder: str) -> None:
    """Remove what is in a folder, of any depth. Raises OSError, with what is left left there.

    One folder is open at a time, and none is entered by a function's call of itself: neither
    descriptors nor Python's stack grow with a tree that was made deep on purpose. No link is
    followed, no other file system entered, and the way back is checked: a folder that was moved
    meanwhile has another one above it.
    """
    until_s = time.monotonic() + _REMOVE_S
    here = _enter(folder)
    try:
        device = os.fstat(here).st_dev
        way: list[tuple[str, _Place]] = []
        while True:
            below = _without_folders(here, until_s)
            if below:
                above = _place(here)
                try:
                    fd = _enter(below, here)
                except (FileNotFoundError, NotADirectoryError):
                    continue  # exchanged since it was looked at
                os.close(here)
                here = fd
                way.append((below, above))
                if os.fstat(here).st_dev != device:
                    raise OSError(errno.EXDEV, "another file system is mounted in it", below)
                continue
            if not way:
                return
            name, above = way.pop()
            fd = os.open("..", _FOLDER, dir_fd=here)
            os.close(here)
            here = fd
            if _place(here) != above:
                raise OSError(errno.EBUSY, "it is moved about while it is removed", name)
            os.rmdir(name, dir_fd=here)
    finally:
        os.close(here)


def _enter(folder: str, above: int | None = None) -> int:
    """Open a folder, after a look at what is mounted there: a user's FUSE server could keep us."""
    held = os.open(folder, _FOLDER | os.O_PATH, dir_fd=above)
    try:
        walk.refuse_to_enter(walk.facts(held))
        return os.open(f"/proc/self/fd/{held}", _FOLDER & ~os.O_NOFOLLOW)
    finally:
        os.close(held)


def _without_folders(here: int, until_s: float) -> str:
    """Remove the files and empty folders of a folder; returns one that is not empty, or ""."""
    with os.scandir(here) as entries:
        for entry in entries:
            if _remove(here, entry, until_s):
                return entry.name
    return ""


def _remove(here: int, entry: "os.DirEntry[str]", until_s: float) -> bool:
    """Remove an entry, whatever is under its name by now; returns whether that is a folder with
    something in it."""
    folder = entry.is_dir(follow_symlinks=False)
    while True:
        if time.monotonic() > until_s:
            raise OSError(errno.EBUSY, f"not removed within {_REMOVE_S:.0f} s")
        try:
            if folder:
                os.rmdir(entry.name, dir_fd=here)
            else:
                os.unlink(entry.name, dir_fd=here)
        except FileNotFoundError:
            return False
        except (IsADirectoryError, NotADirectoryError):
            folder = not folder  # exchanged since it was looked at
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                return True
            raise
        else:
            return False


def _place(fd: int) -> _Place:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino
