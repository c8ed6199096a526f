# SPDX-License-Identifier: LGPL-2.1-or-later
"""Opens what a caller named, finds again what the book names, and labels both by descriptor.

Nothing here labels by path: a name can be swapped between a look and an act, a descriptor cannot.
Everything blocks; the engine runs it in its file threads.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from svirtd.core.devices import Found
from svirtd.core.model import Access, Identity, Kind, ResourceRequest, Seen, Step
from svirtd.core.names import shown
from svirtd.errors import InvalidArgs, LabelRefused, ResourceRefused
from svirtd.failpoints import Point, reach
from svirtd.host.kernel import Kernel, NoLabels
from svirtd.host.scarcity import refuse_scarcity

_SYS_OPENAT2: Final = 437
_AT_FDCWD: Final = -100
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
# Opening must not block on a fifo, take a terminal, or outlive an exec.
_QUIET: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

# Spelt otherwise than the kernel would: an empty or a "." part, or a slash at the end.
_ODD: Final = re.compile(r"//|/\.(?:/|$)|/$")
_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFLNK: Kind.LINK,
}
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _how(flags: int, resolve: int) -> Any:
    return ctypes.byref(_OpenHow(flags, 0, resolve))


_HOLD: Final = _how(os.O_PATH | os.O_CLOEXEC, _RESOLVE_NO_MAGICLINKS)
_PLAIN: Final = _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS
_PLAIN_RO: Final = _how(os.O_RDONLY | _QUIET, _PLAIN)
_PLAIN_RW: Final = _how(os.O_RDWR | _QUIET, _PLAIN)
_PLAIN_HOLD: Final = _how(os.O_PATH | os.O_CLOEXEC, _PLAIN)
_HOW_BYTES: Final = ctypes.sizeof(_OpenHow)


@dataclass(frozen=True, slots=True)
class Opened:
    """An object that a request named, open with the rights that its access takes."""

    seen: Seen
    fd: int


class Missing(Exception):
    """Nothing is at the path that the book names."""


class Replaced(Exception):
    """Another object is at the path that the book names."""


def open_all(kernel: Kernel, requests: Sequence[ResourceRequest]) -> list[Opened]:
    """Open every resource of a request; the caller closes them with close_all.

    Only for callers whose authority is the daemon's own (root). Raises ResourceRefused or
    InvalidArgs for the first that cannot be opened, and leaves none open then.
    """
    opened: list[Opened] = []
    try:
        for request in requests:
            opened.append(_open_one(kernel, request))
    except BaseException:
        close_all(opened)
        raise
    return opened


def close_all(opened: Sequence[Opened]) -> None:
    """Close what open_all opened."""
    for one in opened:
        os.close(one.fd)


def _open_one(kernel: Kernel, request: ResourceRequest) -> Opened:
    named = request.named
    if request.path is not None:
        fd, info, path = _open_path(kernel, request.path, request.access)
    else:
        fd, info, path = _open_passed(request)
    if not path.isprintable():
        # As for a named path, whose links may end anywhere: this is the path that the book keeps
        # and every message shows. Bytes that are not UTF-8 are not printable either.
        os.close(fd)
        raise ResourceRefused(
            f"{named} is the file {path[-64:]!a}, a path that cannot be shown; rename it"
        )
    try:
        label = kernel.read_label(fd) if _may_label(info.st_mode) else None
    except NoLabels:
        os.close(fd)
        raise ResourceRefused(
            f"{named}: its file system cannot keep a label; move the file to one with extended "
            "attributes (ext4, xfs, btrfs, tmpfs)"
        ) from None
    except OSError as error:
        os.close(fd)
        raise ResourceRefused(f"{named}: its label cannot be read ({error.strerror})") from error
    seen = Seen(
        named=named,
        access=request.access,
        path=path,
        identity=Identity(info.st_dev, info.st_ino),
        kind=_kind(info.st_mode),
        links=info.st_nlink,
        setid=bool(info.st_mode & (stat.S_ISUID | stat.S_ISGID)),
        label=label,
    )
    return Opened(seen, fd)


def _open_path(kernel: Kernel, path: str, access: Access) -> tuple[int, os.stat_result, str]:
    """Open a name with the rights of its access; returns the object's own path too."""
    try:
        # A path without links, spelt plainly, is the object's own, and opening it is safe: only
        # root can put a device there, and what is there now is looked at first.
        if not _ODD.search(path) and _may_label(os.lstat(path).st_mode):
            fd = _openat2(path, _PLAIN_RW if access is Access.EXCLUSIVE else _PLAIN_RO)
            return fd, os.fstat(fd), path
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise _not_opened(kernel, path, access, error) from error
    return _open_in_two_steps(kernel, path, access)


def _open_in_two_steps(
    kernel: Kernel, path: str, access: Access
) -> tuple[int, os.stat_result, str]:
    """Hold the object, look at it, then open that very object.

    The first step has no side effect on a device or fifo that a link may lead to; the second goes
    through the descriptor of the first, so that what was looked at is what is opened. Links
    through /proc are never followed: they lead to what is the daemon's own.
    """
    try:
        held = _openat2(path, _HOLD)
    except OSError as error:
        raise _not_opened(kernel, path, access, error) from error
    through = f"/proc/self/fd/{held}"
    try:
        info = os.fstat(held)
        if not _may_label(info.st_mode):
            # Kept as it is, for the plan to refuse with its kind; never opened for real.
            return os.dup(held), info, os.readlink(through)
        flags = os.O_RDWR if access is Access.EXCLUSIVE else os.O_RDONLY
        return os.open(through, flags | _QUIET), info, os.readlink(through)
    except OSError as error:
        raise _not_opened(kernel, path, access, error) from error
    finally:
        os.close(held)


def _not_opened(kernel: Kernel, path: str, access: Access, error: OSError) -> ResourceRefused:
    """Return the refusal of an object. Raises LimitsExceeded if it is not the object's fault."""
    refuse_scarcity(error)
    wanted = "reading and writing" if access is Access.EXCLUSIVE else "reading"
    why = _why(error)
    if error.errno == errno.EACCES and kernel.enabled():
        # The daemon is root: it was the policy, which has the last word on types.
        with contextlib.suppress(OSError, NoLabels):
            why += (
                f"; it carries {shown(str(kernel.read_label(path)))}, and the policy lets svirtd "
                "use files of the types in [labels] relabel-from only: see svirtd(8)"
            )
    return ResourceRefused(f"{path} cannot be opened for {wanted}: {why}")


def _open_passed(request: ResourceRequest) -> tuple[int, os.stat_result, str]:
    """Take a descriptor that the caller passed; its open mode proves the right."""
    if request.fd is None:
        raise InvalidArgs("a resource needs a path or an fd")
    mode = fcntl.fcntl(request.fd, fcntl.F_GETFL)
    if mode & os.O_PATH:
        raise ResourceRefused(
            "the passed descriptor was opened with O_PATH, which proves nothing: open the file "
            "for reading, or for reading and writing where access is 'exclusive'"
        )
    how = mode & os.O_ACCMODE
    wanted = (os.O_RDWR,) if request.access is Access.EXCLUSIVE else (os.O_RDONLY, os.O_RDWR)
    if how not in wanted:
        need = "reading and writing" if request.access is Access.EXCLUSIVE else "reading"
        raise ResourceRefused(
            f"the passed descriptor is not open for {need}, which access "
            f"{request.access.value!r} takes: open the file so, or ask for another access"
        )
    info = os.fstat(request.fd)
    path = os.readlink(f"/proc/self/fd/{request.fd}")
    if _may_label(info.st_mode) and info.st_nlink > 0:
        try:
            os.close(find(path, Identity(info.st_dev, info.st_ino)))
        except (Missing, Replaced, OSError) as error:
            if isinstance(error, OSError):
                refuse_scarcity(error)
            # The label could be set, but after a restart nobody could give it back.
            raise ResourceRefused(
                f"the passed descriptor's file is not found at {path[:256]!a} from here; "
                "pass a file of this host's own mount namespace"
            ) from None
    try:
        return os.dup(request.fd), info, path
    except OSError as error:
        refuse_scarcity(error)
        raise


def find(path: str, identity: Identity) -> int:
    """Open what the book names, if it still is that object; the caller closes the descriptor.

    Raises Missing, Replaced, or OSError.
    """
    with holding(path, identity) as through:
        return os.open(through, os.O_RDONLY | _QUIET)


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
        held = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Missing from error
    try:
        info = os.fstat(held)
        if Identity(info.st_dev, info.st_ino) != identity:
            raise Replaced
        yield f"/proc/self/fd/{held}"
    finally:
        os.close(held)


def found_at(kernel: Kernel, path: str) -> Found | None:
    """Return what is at a path of the book now, None if that cannot be known.

    The book's paths have no links. One that is followed would let whoever owns a folder on the way
    choose the file system that the path leads to.
    """
    try:
        held = _openat2(path, _PLAIN_HOLD)
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


def identity_of(path: str) -> Identity | None:
    """Return what a path leads to, None if nowhere."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return Identity(info.st_dev, info.st_ino)


def change_label(kernel: Kernel, fd: int, step: Step) -> bool:
    """Take one step if the object still carries what the step expects.

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
            f"{step.path} cannot be labelled {step.new or '(none)'}: {_why(error)}"
        ) from error
    return True


def sync(fd: int) -> None:
    """Bring a label change to the disk, so that a power cut cannot bring an old label back."""
    reach(Point.LABEL_SYNC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.fsync(fd)


def _openat2(path: str, how: Any) -> int:
    fd: int = _syscall(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), how, _HOW_BYTES)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def _may_label(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _kind(mode: int) -> Kind:
    return _KINDS.get(stat.S_IFMT(mode), Kind.OTHER)


def _why(error: OSError) -> str:
    """The kernel's reason, with what to do where that is not plain."""
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
