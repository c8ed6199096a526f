# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel calls that Python 3.11's `os` module lacks. Each raises OSError on failure."""

import ctypes
import os
import signal

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Move the calling process (for CLONE_NEWPID: its future children) into new namespaces."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare(0x{flags:x})")


def setns(fd: int, kind: int) -> None:
    """Join the namespace of type `kind` (one CLONE_NEW* flag) that `fd` refers to."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), f"setns(0x{kind:x})")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). An empty `fstype` or `options` is passed as NULL."""
    _check(
        _libc.mount(
            source.encode(),
            target.encode(),
            fstype.encode() or None,
            ctypes.c_ulong(flags),
            options.encode() or None,
        ),
        f"mount {fstype or 'bind'} on {target}",
    )


def bind(source: str, target: str) -> None:
    """Make `source` (file or folder) visible at the existing path `target`."""
    mount(source, target, flags=MS_BIND)


def detach(target: str) -> None:
    """Unmount `target` and everything below it, as seen from this mount namespace."""
    _check(_libc.umount2(target.encode(), ctypes.c_int(_MNT_DETACH)), f"umount {target}")


def die_with_parent() -> None:
    """Have the kernel kill the calling process with SIGKILL when its parent ends."""
    zero = ctypes.c_ulong(0)
    kill = ctypes.c_ulong(signal.SIGKILL)
    _check(_libc.prctl(ctypes.c_int(_PR_SET_PDEATHSIG), kill, zero, zero, zero), "prctl")
