# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is in a file, as one number: its SHA-256. Blocks, for as long as the file is large."""

import hashlib
import os
from collections.abc import Callable
from typing import Final

_CHUNK_BYTES: Final = 1 << 20


def sha256(fd: int, go_on: Callable[[], bool]) -> str | None:
    """Return the digest of all that an open file or block device has, in hexadecimal.

    None once `go_on` says no. Does not move the descriptor's place. Raises OSError.
    """
    found = hashlib.sha256()
    at = 0
    while go_on():
        chunk = os.pread(fd, _CHUNK_BYTES, at)
        if not chunk:
            return found.hexdigest()
        found.update(chunk)
        at += len(chunk)
    return None
