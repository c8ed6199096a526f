# SPDX-License-Identifier: LGPL-2.1-or-later
"""A FUSE file system whose server takes every request and answers none, as any user could make."""

import ctypes
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_INIT: Final = 26
_HEADER: Final = "=IIQQIIII"
_MNT_DETACH: Final = 2
_REQUEST_BYTES: Final = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Silent:
    """Such a file system, mounted at `path`."""

    path: Path
    log: int

    def asked(self) -> bool:
        """Whether anything was asked of the server, mounting apart."""
        os.set_blocking(self.log, False)
        try:
            return bool(os.read(self.log, 4096))
        except BlockingIOError:
            return False


@contextmanager
def silent(path: Path, options: str = "allow_other") -> Iterator[Silent]:
    """Mount it over a folder; whoever waits for it is let go at the end."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    reader, writer = os.pipe()
    data = f"fd={device},rootmode=40000,user_id=0,group_id=0,{options}"
    if _libc.mount(b"silent", os.fsencode(path), b"fuse", 0, data.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    pid = os.fork()
    if pid == 0:
        try:
            _serve(device, writer)
        finally:
            os._exit(0)
    os.close(device)
    os.close(writer)
    try:
        yield Silent(path, reader)
    finally:
        # The last descriptor of the device is the server's: with it the connection ends.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        _libc.umount2(os.fsencode(path), _MNT_DETACH)
        os.close(reader)


def _serve(device: int, log: int) -> None:
    while True:
        request = os.read(device, _REQUEST_BYTES)
        _, opcode, unique, *_ = struct.unpack_from(_HEADER, request)
        if opcode == _INIT:
            body = struct.pack("=IIIIHHIIHHI", 7, 31, 0, 0, 12, 9, 4096, 1, 0, 0, 0).ljust(
                64, b"\0"
            )
            os.write(device, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)
        else:
            os.write(log, bytes([opcode]))
