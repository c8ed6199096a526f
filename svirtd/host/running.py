# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of a process that runs: what it has open, and what is at the paths that it names.

Everything blocks; the engine runs it in its file threads.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from svirtd.core.model import Identity
from svirtd.host import walk
from svirtd.host.kernel import Kernel, NoLabels

_LABELLED: Final = (
    *(stat.S_ISREG, stat.S_ISBLK, stat.S_ISCHR, stat.S_ISFIFO, stat.S_ISSOCK),
    stat.S_ISDIR,
)


@dataclass(frozen=True, slots=True)
class Labelled:
    """An object with a label; `path` is its own, without links, `device` the number of the device
    that a node stands for."""

    path: str
    identity: Identity
    label: str
    device: int
    is_folder: bool = False


def open_files(pid: int) -> tuple[str, ...] | None:
    """Return the paths that a process has open; None if the kernel does not let us look.

    It lets a process look at those of its own user, and of others only with capabilities that
    svirtd does not have.
    """
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
        targets = [os.readlink(f"{folder}/{number}") for number in numbers]
    except FileNotFoundError:
        return ()  # it has ended, or has closed one meanwhile: its command names its files
    except OSError:
        return None
    return tuple(target for target in targets if target.startswith("/"))


def labelled(kernel: Kernel, paths: Iterable[str]) -> list[Labelled]:
    """Return the objects at these paths that may be a VM's, each once; the others are left out."""
    found: dict[Identity, Labelled] = {}
    for path in paths:
        one = _labelled(kernel, path)
        if one is not None:
            found.setdefault(one.identity, one)
    return list(found.values())


def _labelled(kernel: Kernel, path: str) -> Labelled | None:
    try:
        # Held, not opened: nothing happens to whatever is there.
        held = walk.hold(path)
    except OSError:
        return None  # no file is there: it was not a path
    through = f"/proc/self/fd/{held}"
    try:
        info = walk.facts(held)
        if not any(is_kind(info.mode) for is_kind in _LABELLED) or not info.links:
            return None
        label, own = kernel.read_label(through), os.readlink(through)
    except (OSError, NoLabels):
        return None
    finally:
        os.close(held)
    if label is None or not own.isprintable():
        return None
    return Labelled(own, info.identity, label, info.device, stat.S_ISDIR(info.mode))
