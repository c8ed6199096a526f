# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM whose guest has broken out: does what it is told, in the VM's process and under its label.

Takes one expression a line on the socket that it is started with, evaluates it, and answers with
its value or its errno's name. Standard library only; the policy sees it as it sees QEMU.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path  # noqa: F401 -- for what it is told to do
from typing import Any

_PTRACE_ATTACH = 16
_SO = ctypes.CDLL(None, use_errno=True)


def read(path: str) -> int:
    """Read the first bytes of a file; returns how many."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return len(os.read(fd, 512))
    finally:
        os.close(fd)


def write(path: str) -> int:
    """Write to the beginning of a file."""
    fd = os.open(path, os.O_WRONLY)
    try:
        return os.write(fd, b"taken")
    finally:
        os.close(fd)


def work(path: str, seconds: float) -> dict[str, float]:
    """Write and read a file through one descriptor, without a pause, for this long.

    Returns how often that worked, how often it was denied in a row (a cut), the longest cut in
    milliseconds, and how often it worked after the last one.
    """
    done = cuts = after = 0
    longest_s = since = 0.0
    fd = os.open(path, os.O_RDWR)
    try:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            try:
                os.pwrite(fd, b"work", 0)
                os.pread(fd, 4, 0)
            except PermissionError:
                if not since:
                    since, after = now, 0
                    cuts += 1
                continue
            if since:
                longest_s, since = max(longest_s, now - since), 0.0
            done += 1
            after += 1
    finally:
        os.close(fd)
    return {"done": done, "cuts": cuts, "longest_ms": round(longest_s * 1000, 1), "after": after}


def attach(pid: int) -> int:
    """Become the tracer of a process."""
    call("ptrace", _PTRACE_ATTACH, pid, None, None)
    return pid


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library that says -1 for an error."""
    done: int = getattr(_SO, name)(*arguments)
    if done < 0:
        raise OSError(ctypes.get_errno(), name)
    return done


def relabel(path: str, context: str) -> None:
    """Give a file another context."""
    os.setxattr(path, "security.selinux", context.encode() + b"\0")


def become(context: str) -> int:
    """Change the own context, in one attempt: a buffered file would try again when it is closed."""
    fd = os.open("/proc/self/attr/current", os.O_WRONLY)
    try:
        return os.write(fd, context.encode())
    finally:
        os.close(fd)


def connect(path: str) -> None:
    """Connect to a socket."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(path)


def opened(family: int, kind: int, protocol: int = 0) -> None:
    """Make a socket."""
    socket.socket(family, kind, protocol).close()


def tcp(host: str, port: int) -> None:
    """Connect to a port."""
    socket.create_connection((host, port), timeout=10).close()


def udp(host: str, port: int) -> int:
    """Send a datagram to a port; returns how much went."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        return sender.sendto(b"out", (host, port))


def add_address() -> bytes:
    """Ask the kernel to give the loopback interface another address."""
    # A message with its header: RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK; 127.9.9.9/8 on device 1.
    body = struct.pack("=BBBBI", socket.AF_INET, 8, 0, 0, 1)
    body += struct.pack("=HH", 8, 2) + bytes([127, 9, 9, 9])
    header = struct.pack("=IHHII", 16 + len(body), 20, 5, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.send(header + body)
        (code,) = struct.unpack_from("=i", kernel.recv(4096), 16)
        if code:
            raise OSError(-code, "RTM_NEWADDR")
    return body


def tap(name: str) -> None:
    """Take a tap device, as QEMU does."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    try:
        # What is asked for is TUNSETIFF, with IFF_TAP and IFF_NO_PI.
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))
    finally:
        os.close(fd)


def append(path: str) -> int:
    """Write to the end of a file."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        return os.write(fd, b"more")
    finally:
        os.close(fd)


def reopen(path: str) -> int:
    """Write through a second opening of a descriptor that may only read."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return write(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def map_shared(path: str) -> None:
    """Write to a mapping of a file that was opened to be read."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(fd, 512, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
            memory[:5] = b"taken"
    finally:
        os.close(fd)


def enter(path: str) -> None:
    """Go into a namespace."""
    fd = os.open(path, os.O_RDONLY)
    try:
        call("setns", fd, 0)
    finally:
        os.close(fd)


def run(path: str) -> None:
    """Run another program."""
    os.posix_spawn(path, [path], {})


_offers: list[socket.socket] = []


def offer(path: str) -> None:
    """Listen for somebody who hands out a descriptor."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    _offers.append(server)


def taken() -> int:
    """Return how many descriptors the last offer brought."""
    with _offers.pop() as server:
        stream, _ = server.accept()
        with stream:
            return len(socket.recv_fds(stream, 16, 4)[1])


def _answer(expression: str) -> dict[str, Any]:
    try:
        # What is evaluated is the test's own.
        return {"value": eval(expression, {**globals(), "os": os, "signal": signal})}
    except OSError as error:
        return {"error": errno.errorcode.get(error.errno or 0, str(error))}


def main() -> None:
    """Serve one client after the other, for ever."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[1])
    server.listen()
    while True:
        stream, _ = server.accept()
        with stream, stream.makefile("rw") as lines:
            for line in lines:
                lines.write(json.dumps(_answer(line)) + "\n")
                lines.flush()


if __name__ == "__main__":
    main()
