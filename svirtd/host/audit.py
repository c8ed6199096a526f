# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's audit log: what svirtd, as an object manager of the policy, has denied.

The only user of libaudit's binding.
"""

import errno
import os
from typing import Any, Final

from svirtd.errors import StartError

# What audit's tools print and parse as it is; anything else is written as hexadecimal digits.
_PLAIN: Final = frozenset(map(chr, range(0x21, 0x7F))) - {'"'}


def field(name: str, value: str) -> str:
    """Return a field of a record, whatever a caller made the value of: it cannot forge another."""
    if all(char in _PLAIN for char in value):
        return f'{name}="{value}"'
    return f"{name}={value.encode('utf-8', 'backslashreplace').hex().upper()}"


class AuditLog:
    """Writes records of the kind that the policy's object managers write. Not thread-safe."""

    def __init__(self) -> None:
        """Raises StartError."""
        try:
            import audit  # noqa: PLC0415 -- needed on a kernel with SELinux only
        except ImportError as error:
            raise StartError(
                f"the audit log's binding is missing ({error}); install python3-audit with the "
                "system's package manager"
            ) from error
        self._audit: Any = audit
        # Early: the socket still works when no descriptor is left.
        self._fd: int = audit.audit_open()

    def close(self) -> None:
        """Let go of the log."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def user_avc(self, text: str, uid: int) -> None:
        """Write one record about a caller. Blocks while the log is full. Raises OSError."""
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
