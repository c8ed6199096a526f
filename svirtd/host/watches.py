# SPDX-License-Identifier: LGPL-2.1-or-later
"""Watches on held objects, by inotify: a new label, a rename or a deletion is told at once."""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Final

from svirtd.core.model import Identity
from svirtd.errors import StartError
from svirtd.host import files

# From linux/inotify.h. A change of a label counts as one of attributes, as does the loss of a name.
_ATTRIB: Final = 0x004
_DELETE_SELF: Final = 0x400
_MOVE_SELF: Final = 0x800
_UNMOUNT: Final = 0x2000
_OVERFLOW: Final = 0x4000
_IGNORED: Final = 0x8000
_EVENT: Final = struct.Struct("iIII")
_READ_BYTES: Final = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class WatchError(Exception):
    """An object cannot be watched; the text says why."""


class Watches:
    """One inotify instance. An object is watched once, however many hold it."""

    def __init__(self) -> None:
        """Raises StartError where the kernel gives none."""
        try:
            self.fd = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            raise StartError(
                f"held objects cannot be watched ({error.strerror}); raise "
                "fs.inotify.max_user_instances"
            ) from error
        self._objects: dict[int, Identity] = {}
        self._numbers: dict[Identity, int] = {}

    def close(self) -> None:
        """End every watch."""
        os.close(self.fd)

    def add(self, path: str, identity: Identity) -> None:
        """Watch the object of the book at `path`. Blocks. Raises files.Missing, files.Replaced,
        OSError, or WatchError where this host allows no more watches."""
        if identity in self._numbers:
            return
        mask = _ATTRIB | _DELETE_SELF | _MOVE_SELF
        with files.holding(path, identity) as through:
            try:
                number = _checked(_libc.inotify_add_watch(self.fd, through.encode(), mask))
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise WatchError(
                        "the host allows no more watches; raise fs.inotify.max_user_watches"
                    ) from error
                raise
        self._objects[number] = identity
        self._numbers[identity] = number

    def remove(self, identity: Identity) -> None:
        """End the watch of an object, if there is one."""
        number = self._numbers.pop(identity, None)
        if number is not None and self._objects.pop(number, None) is not None:
            # EINVAL: the kernel has ended it already, with the object.
            _libc.inotify_rm_watch(self.fd, number)

    def watched(self, identity: Identity) -> bool:
        """Say whether this object is watched."""
        return identity in self._numbers

    def read(self) -> tuple[frozenset[Identity], bool]:
        """Return what something happened to, and whether more happened than could be told."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return frozenset(), False
        changed, overflow = set(), False
        for number, mask in _events(data):
            if mask & _OVERFLOW:
                overflow = True
            identity = self._objects.get(number)
            if identity is None:
                continue
            changed.add(identity)
            if mask & (_IGNORED | _UNMOUNT):
                self._objects.pop(number, None)
                self._numbers.pop(identity, None)
        return frozenset(changed), overflow


def _events(data: bytes) -> Iterator[tuple[int, int]]:
    position = 0
    while position < len(data):
        number, mask, _, name_bytes = _EVENT.unpack_from(data, position)
        # One with a name is about an entry of a watched folder: a VM that uses its tree makes many.
        if not name_bytes:
            yield number, mask
        position += _EVENT.size + name_bytes


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
