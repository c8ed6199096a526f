# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a process has told the journal, without a program that is started for each look."""

import os
import socket
from typing import Final

from systemd.journal import LOG_ERR, Reader

from tests.support import DEADLINE_S

_SOCKET: Final = "/run/systemd/journal/io.systemd.journal"


def errors_of(pid: int) -> list[str]:
    """Return what a process has recorded so far as an error, or worse."""
    _synchronize()
    with Reader(path=os.environ["SVIRT_SANDBOX_JOURNAL"]) as reader:
        reader.log_level(LOG_ERR)
        reader.add_match(_PID=str(pid))
        return [str(entry["MESSAGE"]) for entry in reader]


def _synchronize() -> None:
    """As `journalctl --sync`: have journald write what was sent to it until now."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(DEADLINE_S)
        stream.connect(_SOCKET)
        stream.sendall(b'{"method": "io.systemd.Journal.Synchronize"}\0')
        answer = b""
        while not answer.endswith(b"\0"):
            more = stream.recv(4096)
            assert more, answer
            answer += more
    assert b"error" not in answer, answer
