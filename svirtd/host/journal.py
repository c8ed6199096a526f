# SPDX-License-Identifier: LGPL-2.1-or-later
"""Structured records: to the journal where there is one, else as lines on standard error.

The only user of systemd.journal.
"""

import contextlib
import enum
import os
import sys
import traceback
from typing import Final

from systemd import journal

_SOCKET: Final = "/run/systemd/journal/socket"


class MessageId(enum.Enum):
    """What happened, for `journalctl MESSAGE_ID=…`; documented in svirtd(8)."""

    STARTED = "23530828ee21471cb88b10cc6103a267"
    STOPPED = "29dca966cb624a96a00246779842186b"
    VM_ADDED = "066ce2fea7394135a2eadf45d946f3a0"
    VM_CHANGED = "c67ef9a8c6674c0a807e3cdd585cc8b4"
    VM_REMOVED = "4b2ce6bf2253460fa0e7bc08a1dab9dc"
    REFUSED = "217e877a64494731a393add6682ad853"
    DRIFT = "b581a86b913746e5865f273cda7ffa8e"
    RECOVERED = "6eb28363c23d4f2b97669074da7031e8"
    RELOADED = "7961de984c0549708d8353410c1cd8d3"
    INTERNAL = "0a6b9f5a237943f79f3fa8bee951367a"
    ENFORCEMENT = "9cbd6f47efde4750aa0b058dd040510d"
    BOOK_REPLACED = "c6dae6c9f9eb4c7f8a50d8f1c89ef9ef"
    BOOK_CHECKED = "51ff7a3670f1497599bcb00ff1c27b2e"
    WALL_CLEARED = "e646062647ba45abb566c3932fbc8fff"
    WARNING = "44cfde90fa574c7f82f25469b83f8d73"


class Priority(enum.IntEnum):
    """syslog's levels, those in use."""

    ALERT = 1
    CRITICAL = 2
    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6


class Journal:
    """Writes records. `fields` are journal fields such as SVIRT_VM; empty ones are left out."""

    def __init__(self) -> None:
        self.to_journal = os.path.exists(_SOCKET)

    def record(
        self,
        message_id: MessageId,
        message: str,
        *,
        priority: Priority = Priority.INFO,
        **fields: str | int,
    ) -> None:
        """Write one record."""
        named = {key: str(value) for key, value in fields.items() if value != ""}
        if self.to_journal:
            # What was to be recorded must not fail for its record: it goes to standard error then.
            with contextlib.suppress(OSError):
                # sendv: send() would look up the caller's line in the source for each record.
                journal.sendv(
                    f"MESSAGE={message}",
                    f"MESSAGE_ID={message_id.value}",
                    f"PRIORITY={int(priority)}",
                    "SYSLOG_IDENTIFIER=svirtd",
                    *(f"{key}={value}" for key, value in named.items()),
                )
                return
        # One record, one line: what a caller chose (a name, a path) must not forge another record.
        parts = [_one_line(message), *(f"{k}={_one_line(v)}" for k, v in named.items())]
        sys.stderr.write(f"<{int(priority)}>svirtd: {' '.join(parts)}\n")
        sys.stderr.flush()

    def exception(self, message: str, error: BaseException, **fields: str | int) -> None:
        """Write an unexpected error with its traceback."""
        trace = "".join(traceback.format_exception(error))
        self.record(
            MessageId.INTERNAL,
            f"{message}: {type(error).__name__}: {error}",
            priority=Priority.ERROR,
            SVIRT_TRACEBACK=trace,
            **fields,
        )


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
