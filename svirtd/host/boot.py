# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which boot of the machine this is, and what does not outlive one."""

import os
from pathlib import Path
from typing import Final

from svirtd.errors import StartError

_DEVICES: Final = "/dev"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return the kernel's name for this boot. Raises StartError."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError as error:
        raise StartError(
            f"{_BOOT_ID} cannot be read ({error.strerror}); svirtd must know whether the device "
            "numbers of its book are those of this boot: mount /proc"
        ) from error


def is_device_node(path: str) -> bool:
    """Say whether a path leads into devtmpfs, whose nodes the kernel makes anew at each boot.

    False where that cannot be known.
    """
    if not path.startswith(f"{_DEVICES}/"):
        return False
    try:
        return _type_of_devices() == "devtmpfs" and _is_on(path, os.stat(_DEVICES).st_dev)
    except OSError:
        return False


def _is_on(path: str, device: int) -> bool:
    """Say whether what there is of a path is on a device: another may be mounted on the way."""
    for folder in Path(path).parents:
        try:
            return os.stat(folder).st_dev == device
        except (FileNotFoundError, NotADirectoryError):
            continue
    return False


def _type_of_devices() -> str:
    found = ""
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        place, _, kind = line.partition(" - ")
        if place.split()[4] == _DEVICES:
            found = kind.split()[0]  # of the last one, which covers those before it
    return found
