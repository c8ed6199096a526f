# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which boot of the machine this is."""

from pathlib import Path
from typing import Final

from svirtd.errors import StartError

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
