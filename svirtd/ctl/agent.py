# SPDX-License-Identifier: LGPL-2.1-or-later
"""polkit's own authentication agent on this terminal, for calls that somebody must allow."""

import contextlib
import os
import select
from collections.abc import Iterator
from typing import Final

from svirtd.ctl import programs

# Not looked up: whatever stands first in PATH must not get to read a password.
_AGENT: Final = "/usr/bin/pkttyagent"
_READY_S: Final = 5.0
_END_S: Final = 5.0


@contextlib.contextmanager
def on_terminal() -> Iterator[None]:
    """Let polkit ask on the terminal meanwhile; an agent of the desktop's goes first.

    Where there is no terminal, or no such agent, polkit is left to find one.
    """
    if not (os.isatty(0) and os.isatty(2)):
        yield
        return
    ready, theirs = os.pipe()
    # In a session only: outside of one there is no other agent, and polkit does not take one that
    # is to be the last resort.
    last = ["--fallback"] if "XDG_SESSION_ID" in os.environ else []
    try:
        agent = programs.begin([_AGENT, f"--notify-fd={theirs}", *last], passed_fd=theirs)
    except OSError:
        os.close(ready)
        os.close(theirs)
        yield
        return
    os.close(theirs)
    try:
        # It closes its end once polkit knows it, or when it ends.
        select.select([ready], [], [], _READY_S)
        yield
    finally:
        os.close(ready)
        programs.stop(agent, limit_s=_END_S)
