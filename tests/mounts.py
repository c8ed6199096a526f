# SPDX-License-Identifier: LGPL-2.1-or-later
"""File systems that a test mounts, and takes away while svirtd may be looking at them."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import wait_for


@contextmanager
def mounted(folder: Path, *arguments: str | Path) -> Iterator[Path]:
    """Mount on a folder, which is made if need be, while the block runs; `mount`'s arguments."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, folder], check=True)
    try:
        yield folder
    finally:
        unmount(folder)


def remount(folder: Path, how: str) -> None:
    """Remount with other options."""
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def unmount(place: Path) -> None:
    """Unmount as soon as nobody has anything open there. Fails where somebody keeps it.

    svirtd opens a file for the moment that it looks at it, and by itself does so at any time.
    """
    wait_for(f"{place} is not busy", lambda: _unmounted(place))


def _unmounted(place: Path) -> bool:
    done = subprocess.run(
        ["umount", place],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    )
    assert done.returncode == 0 or "target is busy" in done.stderr, done.stderr
    return done.returncode == 0
