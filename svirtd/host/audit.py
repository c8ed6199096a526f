# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's audit log: what svirtd, as an object manager of the policy, has denied.

The only user of libaudit's binding.
"""

import errno
import os
import queue
import threading
from typing import Any, Final

from svirtd.errors import StartError
from svirtd.host.journal import Journal, MessageId, Priority

# What audit's tools print and parse as it is; anything else is written as hexadecimal digits.
_PLAIN: Final = frozenset(map(chr, range(0x21, 0x7F))) - {'"'}
# Records that wait while the kernel's own queue is full; what comes then is only in the journal.
_WAITING_MAX: Final = 1024
_CLOSE_S: Final = 5.0


def field(name: str, value: str) -> str:
    """Return a field of a record, whatever a caller made the value of: it cannot forge another."""
    if all(char in _PLAIN for char in value):
        return f'{name}="{value}"'
    return f"{name}={value.encode('utf-8', 'backslashreplace').hex().upper()}"


class AuditLog:
    """Writes records of the kind that the policy's object managers write.

    In a thread of its own: the kernel holds up whoever writes while its queue is full, and a caller
    that is denied things on purpose must not hold up the others.
    """

    def __init__(self, journal: Journal) -> None:
        """Raises StartError."""
        try:
            import audit  # noqa: PLC0415 -- needed on a kernel with SELinux only
        except ImportError as error:
            raise StartError(
                f"the audit log's binding is missing ({error}); install python3-audit with the "
                "system's package manager"
            ) from error
        self._audit: Any = audit
        self._journal = journal
        # Early: the socket still works when no descriptor is left.
        self._fd: int = audit.audit_open()
        self._losing = False
        self._waiting: queue.Queue[tuple[str, int] | None] = queue.Queue(_WAITING_MAX)
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise StartError(f"no thread for the audit log can be started ({error})") from error

    def user_avc(self, text: str, uid: int) -> None:
        """Have a record about a caller written. Does not block and does not fail."""
        try:
            self._waiting.put_nowait((text, uid))
        except queue.Full:
            self._lose("it takes no more")

    def close(self) -> None:
        """Write what waits, if the log takes it in time, and let go of it."""
        try:
            self._waiting.put(None, timeout=_CLOSE_S)
        except queue.Full:
            return
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive() and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _work(self) -> None:
        while (record := self._waiting.get()) is not None:
            try:
                self._write(*record)
                self._losing = False
            except OSError as error:
                self._lose(error.strerror or str(error))

    def _write(self, text: str, uid: int) -> None:
        if self._fd < 0:
            self._fd = self._audit.audit_open()
        if self._fd < 0:
            # Switched off when the kernel was booted (audit=0), or kept from the daemon.
            raise OSError(errno.EPROTONOSUPPORT, "the kernel's audit log cannot be reached")
        kind = self._audit.AUDIT_USER_AVC
        # The library adds the daemon's program ("exe") and the caller's uid ("sauid").
        done = self._audit.audit_log_user_avc_message(self._fd, kind, text, None, None, None, uid)
        if done < 0:
            raise OSError(-done, os.strerror(-done))

    def _lose(self, why: str) -> None:
        """Say once that what is denied is not told to the audit log, until it is again."""
        if not self._losing:
            self._losing = True
            self._journal.record(
                MessageId.WARNING,
                f"what the policy denies callers of svirtd is not in the audit log: {why}",
                priority=Priority.WARNING,
            )
