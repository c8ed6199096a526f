# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walks below a folder and reports labels. Blocks; the engine runs it in its file threads."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from svirtd.core.model import Identity
from svirtd.errors import InvalidArgs
from svirtd.host import walk
from svirtd.host.kernel import Kernel, NoLabels
from svirtd.host.walk import Facts

# Or another kind of object by now: a link, say, which is not followed.
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Labelled:
    """A file or block device below the folder, and its label."""

    path: str
    identity: Identity
    label: str


@dataclass(frozen=True, slots=True)
class Unread:
    """A directory that could not be looked into, or an object whose label could not be read."""

    path: str
    why: str


def check_folder(path: str) -> None:
    """Raise InvalidArgs if `path` is not a directory that can be walked."""
    try:
        os.close(os.open(path, _DIRECTORY))
    except OSError as error:
        raise InvalidArgs(f"{path} cannot be scanned: {error.strerror}") from None


def labels_below(
    kernel: Kernel, root: str, advance: Callable[[float], None]
) -> Iterator[Labelled | Unread | None]:
    """Yield each labelled file and block device below a folder, and what could not be looked at;
    None after each directory, so that the caller may stop there.

    Follows no link and enters no other mount. What is gone when it is looked at is left out.
    `advance` is told which part of the folder was seen, 0 to 1: each directory counts
    as much as its neighbours, since how much is in it is only known afterwards.
    """
    device = os.stat(root).st_dev
    done = 0.0
    waiting = [(root, 1.0)]
    while waiting:
        folder, share = waiting.pop()
        below = []
        try:
            for entry, info in _entries(folder, device):
                if stat.S_ISDIR(info.mode):
                    below.append(entry)
                elif stat.S_ISREG(info.mode) or stat.S_ISBLK(info.mode):
                    found = _look(kernel, entry, info)
                    if found is not None:
                        yield found
        except OSError as error:
            if error.errno not in _GONE:
                yield Unread(folder, str(error.strerror))
        own = share / (len(below) + 1)
        waiting += [(entry, own) for entry in below]
        done += own
        advance(done)
        yield None


def _entries(folder: str, device: int) -> Iterator[tuple[str, Facts]]:
    """Yield what a directory has on this very file system. Raises OSError."""
    fd = os.open(folder, _DIRECTORY)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    # A user's FUSE file system may be mounted there: it is not asked.
                    info = walk.facts_at(fd, entry.name)
                except FileNotFoundError:
                    continue
                if info.identity.dev == device:
                    yield f"{folder}/{entry.name}", info
    finally:
        os.close(fd)


def _look(kernel: Kernel, path: str, info: Facts) -> Labelled | Unread | None:
    try:
        label = kernel.label_at(path)
    except NoLabels:
        return None  # and so without categories
    except OSError as error:
        return None if error.errno in _GONE else Unread(path, str(error.strerror))
    return Labelled(path, info.identity, label) if label else None
