# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM whose guest has broken out: does what it is told, in the VM's process and under its label.

Takes one expression a line on the socket that it is started with, evaluates it, and answers with
its value or its errno's name. Standard library only; the policy sees it as it sees QEMU.
"""

import ctypes
import errno
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

_PTRACE_ATTACH = 16


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
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(_PTRACE_ATTACH, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    return pid


def relabel(path: str, context: str) -> None:
    """Give a file another context."""
    os.setxattr(path, "security.selinux", context.encode() + b"\0")


def become(context: str) -> int:
    """Change the own context."""
    return Path("/proc/self/attr/current").write_text(context, "utf-8")


def connect(path: str) -> None:
    """Connect to a socket."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(path)


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
