# SPDX-License-Identifier: LGPL-2.1-or-later
"""Refused calls in the log: each of them, unless one user has so many that they hide the rest."""

import time
from typing import Final

from svirtd.errors import SvirtError
from svirtd.host.journal import Journal, MessageId, Priority

_WINDOW_S: Final = 10.0
# The system's log takes some thousands of records from a service and drops what comes after,
# whatever it says: a stranger must not decide what is in there.
_EACH: Final = 20
_USERS_KEPT: Final = 256
_SHOWN: Final = 64


class Refusals:
    """Writes records of refused calls. Of one user's only the first in any ten seconds."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        # By uid: when the window began, and the refusals in it.
        self._windows: dict[int, tuple[float, int]] = {}

    def record(self, uid: int, member: str, vm_name: str, error: SvirtError) -> None:
        """Record that a call was refused, and why."""
        began_s, count = self._windows.get(uid, (time.monotonic(), 0))
        if time.monotonic() - began_s > _WINDOW_S:
            self._tell_rest(uid, count)
            began_s, count = time.monotonic(), 0
        if uid != 0:
            self._windows[uid] = began_s, count + 1
            self._forget_some()
        if count >= _EACH:
            return
        self._journal.record(
            MessageId.REFUSED,
            f"{member} refused: {error}",
            priority=Priority.NOTICE,
            SVIRT_VM=vm_name[:_SHOWN],
            SVIRT_OPERATION=member.lower(),
            SVIRT_CALLER_UID=uid,
            SVIRT_ERROR=error.name,
        )

    def _tell_rest(self, uid: int, count: int) -> None:
        if count > _EACH:
            self._journal.record(
                MessageId.REFUSED,
                f"{count - _EACH} more calls of uid {uid} were refused in ten seconds",
                priority=Priority.NOTICE,
                SVIRT_CALLER_UID=uid,
            )

    def _forget_some(self) -> None:
        while len(self._windows) > _USERS_KEPT:
            uid = next(iter(self._windows))
            self._tell_rest(uid, self._windows.pop(uid)[1])
