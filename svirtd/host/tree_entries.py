# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entries of a folder, opened below it and looked at by descriptor; a part of host/tree_worker.py,
which says why that is safe.

Files and directories are opened for reading; what is neither (a link, a socket, a fifo, a device)
is only held, since opening it may have an effect, and its label reached through its descriptor in
/proc.
"""

import ctypes
import errno
import json
import os
import stat
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, Final, Protocol, Self

from svirtd.host.kernel import XATTR

# Entries that are open at once: looked at, remembered, then labelled.
CHUNK: Final = 512
_SYS_OPENAT2: Final = 437
# Through no mount and no link. For a path also: nowhere but beneath where it begins; the name of an
# entry is a single one as the kernel has told it, never "..", and goes nowhere else (asking for it
# all the same costs a tenth of opening it).
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_OF_NAME: Final = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS
_OF_PATH: Final = _OF_NAME | _BENEATH
_QUIET: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | _QUIET
_HOLD: Final = os.O_PATH | _QUIET
_FOLDER: Final = _READ | os.O_DIRECTORY
# What opening for reading says of something that is not what its entry said, or is leased.
_ODD: Final = (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EWOULDBLOCK)

# PyDLL keeps the interpreter's lock, which is nobody else's here, and costs less.
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
# Where many are asked for at once, why one failed is asked by itself: keeping errno has its price.
_quick = ctypes.PyDLL(None)
_quick.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_HOW_BYTES: Final = ctypes.sizeof(_OpenHow)
_SIZES: Final = repeat(_HOW_BYTES)
_HOW_READ: Final = ctypes.byref(_OpenHow(_READ, 0, _OF_NAME))
_HOW_HOLD: Final = ctypes.byref(_OpenHow(_HOLD, 0, _OF_NAME))
_HOW_FOLDER: Final = ctypes.byref(_OpenHow(_FOLDER, 0, _OF_PATH))

# What statx tells, of so many at once: links, owner, mode; inode; device. See host/walk.py. Each
# view is of one field, of one entry after the other.
_WANTED: Final = 0x001 | 0x002 | 0x004 | 0x008 | 0x100
_STATX_FLAGS: Final = 0x1000 | 0x4000  # AT_EMPTY_PATH, AT_STATX_DONT_SYNC
_STATX_BYTES: Final = 256
_buffer: Final = ctypes.create_string_buffer(_STATX_BYTES * CHUNK)
_slots: Final = [ctypes.byref(_buffer, _STATX_BYTES * number) for number in range(CHUNK)]


def _field(kind: Any, at: int) -> "memoryview[int]":
    view: memoryview[int] = memoryview(_buffer).cast("B").cast(kind)
    return view[at // view.itemsize :: _STATX_BYTES // view.itemsize]


_links: Final = _field("I", 16)
_owners: Final = _field("I", 20)
_modes: Final = _field("H", 28)
_inodes: Final = _field("Q", 32)
_devices: Final = _field("Q", 136)  # major and minor, 32 bits each, as one


def _device(number: int) -> int:
    both = os.major(number).to_bytes(4, sys.byteorder) + os.minor(number).to_bytes(4, sys.byteorder)
    return int.from_bytes(both, sys.byteorder)


_PLAIN: Final = 0o170000 | stat.S_ISUID | stat.S_ISGID

Raw = bytes | None


class Named(Protocol):
    """An entry of a folder, as os.scandir() yields them."""

    @property
    def name(self) -> bytes: ...

    def is_file(self, *, follow_symlinks: bool) -> bool: ...

    def is_dir(self, *, follow_symlinks: bool) -> bool: ...


class Itself:
    """The root, as the first entry of itself."""

    name = b"."

    def is_file(self, *, follow_symlinks: bool) -> bool:
        del follow_symlinks
        return False

    def is_dir(self, *, follow_symlinks: bool) -> bool:
        return not follow_symlinks


def encode(label: str | None) -> Raw:
    """Return a label as the attribute has it."""
    return None if label is None else label.encode("utf-8", "surrogateescape") + b"\0"


def decode(raw: Raw) -> str | None:
    """Return a label of the attribute as text; what is not text is shown as such."""
    return None if raw is None else raw.removesuffix(b"\0").decode("utf-8", "backslashreplace")


def frame(header: dict[str, Any], blob: bytes = b"") -> bytes:
    """Return a message: lengths, a header in JSON, and bytes behind it."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "big") + len(blob).to_bytes(4, "big") + text + blob


def open_folder(root: int, path: bytes) -> int:
    """Open a folder below an open root, beneath it and through no link and no mount. Raises
    OSError."""
    fd: int = _syscall(_SYS_OPENAT2, root, path or b".", _HOW_FOLDER, _HOW_BYTES)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


class Chunk:
    """Entries of one folder, open as long as the block runs: what is in a place of each list is of
    one of them. `throughs` are the ways to their labels."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.throughs: list[int | str] = []
        self.raws: list[Raw] = []
        self.inodes: list[int] = []
        self.names: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def each(self) -> Iterator[tuple[int | str, Raw, int, bytes]]:
        """Yield the way to each one's label, the label, the inode and the name."""
        return zip(self.throughs, self.raws, self.inodes, self.names, strict=True)

    def open_plain(
        self, above: int, names: Sequence[bytes], device: int, owner: int | None
    ) -> bool:
        """Open files that are all what most are: on this device, of their owner (None: anybody),
        with one name, not setuid. False if one is not, and then none of them is open.

        It is open_one() step by step for all of them, which takes a third less.
        """
        wanted = (repeat(_SYS_OPENAT2), repeat(above), names, repeat(_HOW_READ), _SIZES)
        fds: list[int] = list(map(_quick.syscall, *wanted))
        self.fds += fds if min(fds, default=0) >= 0 else [fd for fd in fds if fd >= 0]
        asked = (fds, repeat(b""), repeat(_STATX_FLAGS), repeat(_WANTED), _slots)
        if len(self.fds) < len(names) or any(map(_quick.statx, *asked)):
            return self._drop()
        count = len(names)
        plain = (
            _links[:count].tolist() == [1] * count
            and (owner is None or _owners[:count].tolist() == [owner] * count)
            and {mode & _PLAIN for mode in set(_modes[:count].tolist())} <= {stat.S_IFREG}
            and _devices[:count].tolist() == [_device(device)] * count
        )
        if not plain:
            return self._drop()
        try:
            self.raws += list(map(os.getxattr, fds, repeat(XATTR)))
        except OSError:
            return self._drop()
        self.throughs += fds
        self.inodes += _inodes[:count].tolist()
        self.names += names
        return True

    def open_one(self, above: int, name: bytes, *, read: bool) -> tuple[int | str, os.stat_result]:
        """Open an entry, for reading or only to hold it; returns the way to its label, and what it
        is. It is not among the others before add(). Raises OSError."""
        fd: int = -1
        if read:
            fd = _syscall(_SYS_OPENAT2, above, name, _HOW_READ, _HOW_BYTES)
            read = fd >= 0 or ctypes.get_errno() not in _ODD
        if not read:
            fd = _syscall(_SYS_OPENAT2, above, name, _HOW_HOLD, _HOW_BYTES)
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.fds.append(fd)
        return fd if read else f"/proc/self/fd/{fd}", os.fstat(fd)

    def add(self, name: bytes, through: int | str, inode: int) -> None:
        """Take an open entry in, with its label. Raises OSError."""
        try:
            raw: Raw = os.getxattr(through, XATTR)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            raw = None
        self.throughs.append(through)
        self.raws.append(raw)
        self.inodes.append(inode)
        self.names.append(name)

    def _drop(self) -> bool:
        fds = self.fds
        if fds and fds[-1] - fds[0] == len(fds) - 1 and fds == sorted(fds):
            os.closerange(fds[0], fds[-1] + 1)  # one call for all of them
        else:
            for fd in fds:
                os.close(fd)
        self.fds = []
        return False


class Others:
    """Inodes by the label that they had; few labels, many inodes: eight bytes for each."""

    def __init__(self) -> None:
        self._by: list[tuple[Raw, array[int]]] = []

    def add(self, label: Raw, blob: bytes) -> None:
        """Take in packed inodes."""
        inodes = array("Q", blob)
        if any(inodes[n] > inodes[n + 1] for n in range(len(inodes) - 1)):
            inodes = array("Q", sorted(inodes))
        self._by.append((label, inodes))

    def of(self, inode: int, common: Raw) -> Raw:
        """Return what an inode had: `common` if nothing else is known."""
        for label, inodes in self._by:
            at = bisect_left(inodes, inode)
            if at < len(inodes) and inodes[at] == inode:
                return label
        return common
