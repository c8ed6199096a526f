# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file, written into a socket for whoever reads its other end. Blocks: takes its own thread."""

import os
import socket
import time
from typing import Final

_CHUNK_BYTES: Final = 256 * 1024


def send_file(fd: int, stream: socket.socket, *, idle_s: float, deadline_s: float) -> None:
    """Send all of a file from its begin and end the stream.

    Raises OSError; TimeoutError if the reader takes nothing for `idle_s`, or has not taken all
    within `deadline_s`. Whoever shuts the stream down ends it, too.
    """
    end_s, offset = time.monotonic() + deadline_s, 0
    while chunk := os.pread(fd, _CHUNK_BYTES, offset):
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"not all was read within {deadline_s:.0f} s")
        stream.settimeout(min(idle_s, left_s))
        # Not sendall(), whose time is that of the whole chunk.
        offset += stream.send(chunk)
    stream.shutdown(socket.SHUT_WR)
