# SPDX-License-Identifier: LGPL-2.1-or-later
"""The best that this machine's disk can do for what svirtd needs of it. Blocking."""

import os
import time
from pathlib import Path

from tests.support import image, set_label

_PAGE = 4096
_PAGES = 256
_LABELS = tuple(f"system_u:object_r:svirt_image_t:s0:c{n},c{n + 1}" for n in (100, 200))


class SyncFloor:
    """One page written and brought to the disk, in a file that is there in full already.

    That is the least that a durable commit can be.
    """

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder / "sync-floor", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(self._fd, os.urandom(_PAGE * _PAGES), 0)
        os.fsync(self._fd)
        self._at = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def run(self, times: int) -> list[float]:
        """Return the microseconds of each of these writes."""
        page, found = os.urandom(_PAGE), []
        for _ in range(times):
            start = time.perf_counter()
            os.pwrite(self._fd, page, self._at * _PAGE)
            os.fdatasync(self._fd)
            found.append((time.perf_counter() - start) * 1e6)
            self._at = (self._at + 1) % _PAGES
        return found


class LabelFloor:
    """One label written by path, from one to another and back."""

    def __init__(self, folder: Path, files: int) -> None:
        folder.mkdir()
        self._files = [str(image(folder / f"label-floor-{n}")) for n in range(files)]
        self._turn = 0

    def run(self, times: int) -> list[float]:
        """Label every file so many times; return the microseconds of each label."""
        found = []
        for _ in range(times):
            text = _LABELS[self._turn % len(_LABELS)]
            self._turn += 1
            for path in self._files:
                start = time.perf_counter()
                set_label(path, text)
                found.append((time.perf_counter() - start) * 1e6)
        return found
