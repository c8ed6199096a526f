# SPDX-License-Identifier: LGPL-2.1-or-later
"""Network namespaces by their files, as `ip netns add` makes them below /run/netns. Blocks."""

import fcntl
import os
import stat
from typing import Final

from svirtd.errors import Failed
from svirtd.host import walk
from svirtd.host.files import why

_GET_TYPE: Final = 0xB703
_NETWORK: Final = 0x40000000
_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH


def check(path: str) -> None:
    """Raise Failed unless a network namespace is at `path`, and only root could exchange it.

    systemd opens the path again: whoever could put another file there would choose the network.
    """
    folder = os.path.dirname(path)
    while True:
        _refuse_others(path, folder)
        if folder == "/":
            break
        folder = os.path.dirname(folder)
    try:
        held = walk.hold(path, walk.Links.NONE)
        try:
            fd = os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        finally:
            os.close(held)
        try:
            kind = fcntl.ioctl(fd, _GET_TYPE)
        finally:
            os.close(fd)
    except OSError as error:
        raise Failed(
            f"the zone's network namespace {path} cannot be used: {why(error)}; it must be a file "
            "of a namespace, as ip netns add makes it, reached without links"
        ) from error
    if kind != _NETWORK:
        raise Failed(f"{path} is a namespace, but not one of networks; see ip-netns(8)")


def _refuse_others(path: str, folder: str) -> None:
    try:
        info = os.stat(folder, follow_symlinks=False)
    except OSError as error:
        raise Failed(
            f"the zone's network namespace {path} cannot be used: {folder}: {why(error)}"
        ) from error
    if info.st_uid or info.st_mode & _WRITABLE:
        raise Failed(
            f"the zone's network namespace {path} cannot be used: others than root may write "
            f"{folder}, and could put another file there"
        )
