# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices and namespaces of the host's, made without tools that not every guest has."""

import contextlib
import fcntl
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# <linux/sockios.h> and <linux/if_tun.h>
_SET_FLAGS, _SET_ADDRESS = 0x8914, 0x8916
_SET_TAP, _SET_PERSISTENT, _SET_OWNER = 0x400454CA, 0x400454CB, 0x400454CC
_UP: Final = 1
_TAP_WITHOUT_HEADER: Final = 0x1002
_DUMMY: Final = b"dummy0"


@contextlib.contextmanager
def card(address: str) -> Iterator[None]:
    """A network card of the host's with this address, which leads nowhere."""
    # One that was loaded for somebody's own device has made none by itself.
    subprocess.run(["modprobe", "--remove", "dummy"], check=True)
    subprocess.run(["modprobe", "dummy", "numdummies=1"], check=True)
    try:
        there = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SET_ADDRESS, struct.pack("16s16s8x", _DUMMY, there))
            fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH22x", _DUMMY, _UP))
        yield
    finally:
        subprocess.run(["modprobe", "--remove", "dummy"], check=True)


@contextlib.contextmanager
def volume(backing: Path) -> Iterator[Path]:
    """The node of a block device that keeps its bytes in a file."""
    subprocess.run(["modprobe", "loop"], check=True)
    command = ["losetup", "--find", "--show", str(backing)]
    # udev gives a new node its label, and must be done with that.
    subprocess.run(["udevadm", "settle"], check=True)
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    node = Path(shown.strip())
    try:
        subprocess.run(["udevadm", "settle"], check=True)
        yield node
    finally:
        subprocess.run(["losetup", "--detach", str(node)], check=True)


@contextlib.contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace, by its path."""
    path = Path("/run/netns") / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    subprocess.run(["unshare", f"--net={path}", "true"], check=True)
    try:
        yield str(path)
    finally:
        subprocess.run(["umount", path], check=True)
        path.unlink()


@contextlib.contextmanager
def tap(name: str, uid: int) -> Iterator[None]:
    """A tap device that belongs to a user."""

    def persistent(persists: int) -> None:
        with open("/dev/net/tun", "r+b", buffering=0) as file:
            fcntl.ioctl(file, _SET_TAP, struct.pack("16sH22x", name.encode(), _TAP_WITHOUT_HEADER))
            fcntl.ioctl(file, _SET_OWNER, uid)
            fcntl.ioctl(file, _SET_PERSISTENT, persists)

    persistent(1)
    try:
        yield
    finally:
        persistent(0)
