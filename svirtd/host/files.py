# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds again what the book names, and labels it, and what a caller named, by descriptor.

Nothing here labels by path: a name can be swapped between a look and an act, a descriptor cannot.
Everything blocks; the engine runs it in its file threads.
"""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from svirtd.core.devices import Found
from svirtd.core.model import Identity, Step
from svirtd.errors import LabelRefused
from svirtd.failpoints import Point, reach
from svirtd.host import walk
from svirtd.host.kernel import Kernel, NoLabels
from svirtd.host.walk import Links

# Opening must not block on a fifo, take a terminal, or outlive an exec.
_libc = ctypes.CDLL(None, use_errno=True)
_IN_MEMORY: Final = ("devtmpfs", "hugetlbfs", "tmpfs")
QUIET: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class Missing(Exception):
    """Nothing is at the path that the book names."""


class Replaced(Exception):
    """Another object is at the path that the book names."""


def find(path: str, identity: Identity) -> int:
    """Open what the book names, if it still is that object; the caller closes the descriptor.

    Raises Missing, Replaced, or OSError.
    """
    with holding(path, identity) as through:
        return os.open(through, os.O_RDONLY | QUIET)


def label_of(kernel: Kernel, path: str, identity: Identity) -> str | None:
    """Return the label of what the book names, if it still is that object.

    It is not opened for that: a label can be read that keeps the daemon from the object. Raises
    Missing, Replaced, NoLabels, or OSError.
    """
    with holding(path, identity) as through:
        return kernel.read_label(through)


@contextlib.contextmanager
def holding(path: str, identity: Identity) -> Iterator[str]:
    """Hold the object of the book, and name it by a path that leads to nothing else meanwhile.

    Raises Missing, Replaced, or OSError.
    """
    try:
        held = walk.hold(path, Links.BUT_THE_LAST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Missing from error
    try:
        info = os.fstat(held)
        if Identity(info.st_dev, info.st_ino) != identity:
            raise Replaced
        yield f"/proc/self/fd/{held}"
    finally:
        os.close(held)


@contextlib.contextmanager
def held(path: str) -> Iterator[str]:
    """Hold whatever is at a path now, without links, as holding() does. Raises Missing, OSError."""
    try:
        held = walk.hold(path, Links.NONE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Missing from error
    try:
        yield f"/proc/self/fd/{held}"
    finally:
        os.close(held)


def mode_of(path: str) -> int:
    """Return the mode of what is at a path of the book, a link itself included. Raises OSError."""
    held = walk.hold(path, Links.BUT_THE_LAST)
    try:
        return walk.facts(held).mode
    finally:
        os.close(held)


def found_at(kernel: Kernel, path: str) -> Found | None:
    """Return what is at a path of the book now, None if that cannot be known.

    The book's paths have no links. One that is followed would let whoever owns a folder on the way
    choose the file system that the path leads to.
    """
    try:
        held = walk.hold(path, Links.NONE)
    except OSError:
        return None
    try:
        info = os.fstat(held)
        label = kernel.read_label(f"/proc/self/fd/{held}")
    except (NoLabels, OSError):
        return None
    finally:
        os.close(held)
    return Found(Identity(info.st_dev, info.st_ino), label)


@contextlib.contextmanager
def handling(path: str, identity: Identity) -> Iterator[int | str]:
    """Have what the book names in hand, if it still is that object, for its label to be changed: a
    file or block device open, a node only held and named by what leads to nothing else.

    Raises Missing, Replaced, or OSError.
    """
    with holding(path, identity) as through:
        mode = os.stat(through).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            # It is not opened: that may have an effect, or wait for somebody at the other end.
            yield through
            return
        fd = os.open(through, os.O_RDONLY | QUIET)
        try:
            yield fd
        finally:
            os.close(fd)


def change_label(kernel: Kernel, fd: int | str, step: Step) -> bool:
    """Take one step if the object still carries what the step expects.

    `fd` is an open object, or what handling() has named.

    Returns False and changes nothing if it carries something else by now. Raises LabelRefused
    with the kernel's reason.
    """
    try:
        reach(Point.STEP_READ)
        if kernel.read_label(fd) != step.old:
            return False
        # What is right already is not written: the object may be one that nobody can write.
        if step.new != step.old:
            kernel.write_label(fd, step.new)
    except NoLabels as error:
        raise LabelRefused(f"{step.path}: its file system cannot keep a label") from error
    except OSError as error:
        raise LabelRefused(
            f"{step.path} cannot be labelled {step.new or '(none)'}: {why(error)}"
        ) from error
    return True


def sync(fd: int | str, path: str) -> None:
    """Bring a label change to the disk, so that a power cut cannot bring an old label back.

    `path` is the object's by the book. Raises OSError.
    """
    reach(Point.LABEL_SYNC)
    if isinstance(fd, str):
        _sync_around(fd, path)
    elif stat.S_ISREG(os.fstat(fd).st_mode):
        os.fsync(fd)


def _sync_around(through: str, path: str) -> None:
    """What is not open cannot be synced by itself; the file system that it lies on can."""
    device = os.stat(through).st_dev
    above = walk.hold(os.path.dirname(path))
    try:
        if os.fstat(above).st_dev != device or walk.mount_of(above).kind in _IN_MEMORY:
            return  # what nothing of outlives a power cut; or it has moved, and is another's
        folder = os.open(f"/proc/self/fd/{above}", os.O_RDONLY | QUIET)
        try:
            _syncfs(folder)
        finally:
            os.close(folder)
    finally:
        os.close(above)


def sync_tree(fd: int) -> None:
    """Bring every label that was changed in a tree to the disk, by its open root: one wait, where
    syncing each entry would be one for each. Raises OSError."""
    reach(Point.LABEL_SYNC)
    if walk.mount_of(fd).kind not in _IN_MEMORY:
        _syncfs(fd)


def _syncfs(fd: int) -> None:
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def why(error: OSError) -> str:
    """Return the kernel's reason, with what to do where that is not plain."""
    hints = {
        errno.EROFS: "its file system is mounted read-only; remount it read-write",
        errno.ELOOP: "a link in it leads through /proc or in a circle; name the file itself",
        errno.ENOENT: "no such file; check the path",
        errno.EACCES: "permission denied",
        errno.ENOSPC: "no space left on its file system",
        errno.EDQUOT: "disk quota exceeded on its file system",
        errno.EOPNOTSUPP: "its file system cannot keep a label",
        errno.EPERM: "operation not permitted; is it immutable (lsattr)?",
    }
    return hints.get(error.errno or 0, error.strerror or str(error))
