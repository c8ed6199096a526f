# SPDX-License-Identifier: LGPL-2.1-or-later
"""Goes from a path to the object that it names, and into no file system that a user answers for.

A look-up in a FUSE file system waits for its server, which may be anybody's; whoever waits cannot
even be killed. So what the kernel has to ask for is walked to by hand, each mount looked at before
anything is asked of it. The kind of a mount is the kernel's word: nobody is asked for it.
"""

import ctypes
import enum
import errno
import os
import re
import select
import stat
import struct
import threading
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from svirtd.core import nodes
from svirtd.core.filesystems import Labels, Mount, may_hang, problem
from svirtd.core.model import Identity
from svirtd.host.scarcity import refuse_scarcity

_SYS_OPENAT2: Final = 437
_AT_FDCWD: Final = -100
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_CACHED: Final = 0x20
_AT_STATX_DONT_SYNC: Final = 0x4000
_AT_EMPTY_PATH: Final = 0x1000
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_STATX_WANTED: Final = 0x7FF | 0x1000  # what stat has, and the mount
_STATX_BYTES: Final = 256
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANYTHING: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# As many as the kernel follows.
_LINKS_MAX: Final = 40

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class Links(enum.Enum):
    """Which links of a path are followed."""

    ALL = enum.auto()
    BUT_THE_LAST = enum.auto()  # which is held itself then
    NONE = enum.auto()


def _cached(flags: int, resolve: int) -> Any:
    resolve |= _RESOLVE_NO_MAGICLINKS | _RESOLVE_CACHED
    return ctypes.byref(_OpenHow(os.O_PATH | os.O_CLOEXEC | flags, 0, resolve))


_CACHED: Final = {
    Links.ALL: _cached(0, 0),
    Links.BUT_THE_LAST: _cached(os.O_NOFOLLOW, 0),
    Links.NONE: _cached(0, _RESOLVE_NO_SYMLINKS),
}
_HOW_BYTES: Final = ctypes.sizeof(_OpenHow)


class NotEntered(OSError):
    """The path leads into a file system that is not entered."""

    def __init__(self, mount: Mount) -> None:
        super().__init__(errno.EXDEV, f"it lies {problem(mount)}")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the kernel knows of an object without asking the server of its file system.

    `device` is the number of the device that a node stands for, 0 for anything else.
    """

    mode: int
    links: int
    uid: int
    gid: int
    identity: Identity
    mount: int
    device: int


def facts(fd: int) -> Facts:
    """Return what is known of an open or held object. Never waits. Raises OSError."""
    return _facts(fd, b"", _AT_EMPTY_PATH)


def facts_at(folder: int, name: str) -> Facts:
    """Return what is known of an entry of an open folder, a link itself included; never asks what
    is mounted there. Raises OSError."""
    return _facts(folder, os.fsencode(name), _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT)


def _facts(fd: int, name: bytes, flags: int) -> Facts:
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(fd, name, flags | _AT_STATX_DONT_SYNC, _STATX_WANTED, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    links, uid, gid, mode = struct.unpack_from("=IIIH", buffer, 16)
    (ino,) = struct.unpack_from("=Q", buffer, 32)
    *of_node, major, minor, mount = struct.unpack_from("=IIIIQ", buffer, 128)
    device = 0
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        device = nodes.number(*of_node, block=stat.S_ISBLK(mode))
    return Facts(mode, links, uid, gid, Identity(os.makedev(major, minor), ino), mount, device)


class Mounts:
    """The mounts that this process sees, read again whenever they have changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._fd = -1
        self._found: dict[int, Mount] = {}

    def mount(self, number: int) -> Mount:
        """Return a mount; one of an unknown kind if it is none of this process's namespace.

        To be asked while an object on it is held: no other mount has its number then.
        """
        with self._lock:
            if self._pid != os.getpid():
                self._open()
            poll = select.poll()
            poll.register(self._fd, select.POLLPRI)
            # The kernel says once that something has changed, so before it is read.
            if poll.poll(0) or not self._found:
                self._read()
            return self._found.get(number, Mount())

    def _open(self) -> None:
        # Of this process alone: what others have been told of changes, it would not be told again.
        # One that was inherited is not closed, whose number may be somebody else's by now.
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._found = {}
        self._pid = os.getpid()

    def prepare(self) -> None:
        """Take what is needed, so that no later look can fail for want of a descriptor."""
        with self._lock:
            self._open()

    def _read(self) -> None:
        os.lseek(self._fd, 0, os.SEEK_SET)
        parts = []
        while part := os.read(self._fd, 65536):
            parts.append(part)
        found = {}
        for line in b"".join(parts).splitlines():
            before, _, after = line.partition(b" - ")
            number, _, _, _, point, *_ = before.split(b" ")
            kind, _, options = after.split(b" ", 2)
            found[int(number)] = Mount(kind.decode(), _unescaped(point), _labels(options))
        self._found = found


def _labels(options: bytes) -> Labels:
    """Say where labels come from by a mount's options, as the kernel shows them.

    Without SELinux it says nothing of that, and calls none of them `seclabel`.
    """
    said = options.split(b",")
    if any(one.startswith(b"context=") for one in said):
        return Labels.FIXED
    return Labels.KEPT if b"seclabel" in said else Labels.NONE


def _unescaped(point: bytes) -> str:
    """Return where something is mounted, for messages."""
    text = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8) & 0xFF]), point)
    return text.decode("utf-8", "replace")


_mounts = Mounts()


def prepare() -> None:
    """Begin anew in a process that was forked or has closed its descriptors. Raises OSError."""
    _mounts.prepare()


def mount_of(fd: int) -> Mount:
    """Return the mount that an open or held object lies on. Never waits."""
    return mount_by(facts(fd))


def mount_by(what: Facts) -> Mount:
    """Return the mount of an object of which this is known, and which is held."""
    return _mounts.mount(what.mount)


def hold(path: str, links: Links = Links.ALL) -> int:
    """Return an O_PATH descriptor of what a path leads to; the caller closes it.

    A link of /proc is never followed: it leads to what is this very process's. Nothing that is held
    has been opened, which may have an effect on a device or fifo. Raises OSError, NotEntered for a
    file system that is not entered.
    """
    if not path.startswith("/") or "\0" in path:
        _refuse(errno.ENOENT)
    try:
        # What the kernel remembers is asked of nobody.
        fd = _hold_cached(path, links)
    except BlockingIOError:
        return walk(path, links)
    try:
        refuse_to_enter(facts(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def refuse_to_enter(what: Facts) -> None:
    """Raise NotEntered for an object of a file system that may keep whoever asks waiting."""
    mount = _mounts.mount(what.mount)
    if may_hang(mount.kind):
        raise NotEntered(mount)


def _hold_cached(path: str, links: Links) -> int:
    how = _CACHED[links]
    fd: int = _syscall(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), how, _HOW_BYTES)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def walk(path: str, links: Links = Links.ALL) -> int:
    """As hold(), one name after the other, looking at each mount before anything is asked of it."""
    waiting = path.split("/")[::-1]
    followed = 0
    here = os.open("/", _DIRECTORY)
    try:
        what = facts(here)
        while waiting:
            refuse_to_enter(what)
            name = waiting.pop()
            if name in ("", "."):
                if not stat.S_ISDIR(what.mode):
                    _refuse(errno.ENOTDIR)
                continue
            last = not waiting
            there = _step(here, name, last=last)
            try:
                found = facts(there)
                refuse_to_enter(found)
                if stat.S_ISLNK(found.mode) and not (last and links is Links.BUT_THE_LAST):
                    followed += 1
                    if links is Links.NONE or followed > _LINKS_MAX:
                        _refuse(errno.ELOOP)
                    target = _target(there, what, found)
                    waiting += target.split("/")[::-1]
                    os.close(there)
                    there = os.open("/", _DIRECTORY) if target.startswith("/") else os.dup(here)
                    found = facts(there)
            except BaseException:
                os.close(there)
                raise
            os.close(here)
            here, what = there, found
        refuse_to_enter(what)
    except BaseException:
        os.close(here)
        raise
    return here


def identity_at(path: str) -> Identity | None:
    """Return what a path leads to; None if that cannot be known. Raises LimitsExceeded."""
    try:
        held = hold(path)
    except OSError as error:
        refuse_scarcity(error)
        return None
    try:
        return facts(held).identity
    finally:
        os.close(held)


def _step(here: int, name: str, *, last: bool) -> int:
    if not last:
        try:
            # Asked for as a directory, so that what is mounted on demand is mounted.
            return os.open(name, _DIRECTORY, dir_fd=here)
        except NotADirectoryError:
            pass  # a link, or no way at all: the next step tells
    return os.open(name, _ANYTHING, dir_fd=here)


def _target(link: int, folder: Facts, found: Facts) -> str:
    if _mounts.mount(found.mount).kind == "proc":
        _refuse(errno.ELOOP)
    shared = folder.mode & (stat.S_ISVTX | stat.S_IWOTH) == stat.S_ISVTX | stat.S_IWOTH
    if shared and found.uid not in (os.geteuid(), folder.uid):
        _refuse(errno.EACCES)  # as the kernel does, where fs.protected_symlinks is set
    target = os.readlink("", dir_fd=link)
    if not target:
        _refuse(errno.ENOENT)
    return target


def _refuse(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))
