# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk that loses at a power cut what it was not told to keep.

A file on the host outlives a QEMU that is killed, whatever the guest has flushed: too kind. This
one serves the file by NBD and keeps every write in memory until the guest flushes. At a cut any
part of what is in memory may reach the file, in any order, as with a real disk that has a cache.
"""

import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

BLOCK: Final = 4096

_OPTION_MAGIC: Final = b"IHAVEOPT"
_FIXED_NO_ZEROES: Final = 3
_INFO, _GO = 6, 7
_REPLY_MAGIC: Final = 0x3E889045565A9
_ACK, _EXPORT, _UNSUPPORTED = 1, 3, 0x80000001
# Has flags, takes flushes and writes that go through.
_FLAGS: Final = 1 | 4 | 8
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_THROUGH: Final = 1
_REQUEST: Final = struct.Struct(">IHHQQI")
_REQUEST_MAGIC: Final = 0x25609513
_INVALID: Final = 22


class Disk:
    """A file with a volatile cache over it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size
        self._cache: dict[int, bytearray] = {}

    def close(self) -> None:
        """Close the file; what is in the cache is lost."""
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """Return what was written last."""
        data = bytearray(os.pread(self._fd, length, offset))
        for block in self._blocks(offset, length):
            cached = self._cache.get(block)
            if cached is not None:
                start = block * BLOCK - offset
                first = max(start, 0)
                data[first : start + BLOCK] = cached[first - start : length - start]
        return bytes(data)

    def write(self, offset: int, data: bytes, *, through: bool) -> None:
        """Write to the cache, and `through` to the file."""
        for block in self._blocks(offset, len(data)):
            start = block * BLOCK - offset
            first, last = max(start, 0), min(start + BLOCK, len(data))
            cached = self._cache.get(block)
            if cached is None:
                cached = self._cache[block] = bytearray(os.pread(self._fd, BLOCK, block * BLOCK))
            cached[first - start : last - start] = data[first:last]
            if through:
                self._keep(block)

    def flush(self) -> None:
        """Bring the cache to the file."""
        for block in sorted(self._cache):
            self._keep(block)

    def cut(self, survives: Callable[[], bool]) -> tuple[int, int]:
        """Lose the cache but for the blocks that `survives`; returns how many did, and did not."""
        kept = [block for block in self._cache if survives()]
        for block in kept:
            self._keep(block)
        lost = len(self._cache)
        self._cache.clear()
        return len(kept), lost

    def _keep(self, block: int) -> None:
        os.pwrite(self._fd, self._cache.pop(block), block * BLOCK)

    @staticmethod
    def _blocks(offset: int, length: int) -> range:
        return range(offset // BLOCK, -(-(offset + length) // BLOCK))


class Server:
    """Serves a disk to the one at the other end of a socket, until that one is gone."""

    def __init__(self, disk: Disk, connection: socket.socket) -> None:
        self._disk = disk
        self._stream = connection.makefile("rb")
        self._connection = connection
        self._thread = threading.Thread(target=self._serve, name="disk")
        self._error: Exception | None = None
        self._thread.start()

    def end(self) -> None:
        """Wait until the other end is gone. Raises what ended the server otherwise."""
        self._thread.join()
        self._stream.close()
        self._connection.close()
        if self._error is not None:
            raise self._error

    def _serve(self) -> None:
        try:
            self._negotiate()
            while self._answer():
                pass
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass  # killed: that is what this is for
        except Exception as error:  # noqa: BLE001 -- raised by end()
            self._error = error
            self._connection.shutdown(socket.SHUT_RDWR)

    def _negotiate(self) -> None:
        self._send(b"NBDMAGIC", _OPTION_MAGIC, struct.pack(">H", _FIXED_NO_ZEROES))
        self._take(4)
        while True:
            magic, option, length = struct.unpack(">8sII", self._take(16))
            if magic != _OPTION_MAGIC:
                raise ValueError(f"not an option: {magic!r}")
            self._take(length)
            if option not in (_INFO, _GO):
                self._reply(option, _UNSUPPORTED, b"")
                continue
            self._reply(option, _EXPORT, struct.pack(">HQH", 0, self._disk.size, _FLAGS))
            self._reply(option, _ACK, b"")
            if option == _GO:
                return

    def _reply(self, option: int, kind: int, data: bytes) -> None:
        self._send(struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(data)), data)

    def _answer(self) -> bool:
        magic, flags, kind, cookie, offset, length = _REQUEST.unpack(self._take(_REQUEST.size))
        if magic != _REQUEST_MAGIC:
            raise ValueError(f"not a request: {magic:#x}")
        error, data = 0, b""
        if kind == _READ:
            data = self._disk.read(offset, length)
        elif kind == _WRITE:
            self._disk.write(offset, self._take(length), through=bool(flags & _THROUGH))
        elif kind == _FLUSH:
            self._disk.flush()
        elif kind == _DISCONNECT:
            return False
        else:
            error = _INVALID
        self._send(struct.pack(">IIQ", 0x67446698, error, cookie), data)
        return True

    def _take(self, length: int) -> bytes:
        data = self._stream.read(length)
        if len(data) < length:
            raise EOFError
        return data

    def _send(self, *parts: bytes) -> None:
        self._connection.sendall(b"".join(parts))
