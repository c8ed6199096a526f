# SPDX-License-Identifier: LGPL-2.1-or-later
"""Labels of running processes, from /proc. Blocks; the engine runs it in its file threads."""

import os

from svirtd.core.model import Process
from svirtd.host.kernel import Kernel
from svirtd.host.scarcity import refuse_scarcity


def labelled(kernel: Kernel) -> list[Process]:
    """Return every process with its context, lowest first; those that svirtd may not see are not
    in it. Empty without SELinux. Raises LimitsExceeded, OSError: then nobody knows.

    The policy lets svirtd see all domains that are kept apart by categories.
    """
    if not kernel.enabled():
        return []
    found = []
    for entry in _entries():
        if not entry.isdigit():
            continue
        try:
            found.append(Process(int(entry), kernel.process_label(int(entry))))
        except OSError as error:
            refuse_scarcity(error)
            continue  # it ended while we looked, or is none of those
    return sorted(found, key=lambda one: one.pid)


def under(kernel: Kernel, context: str) -> list[int]:
    """Return the processes that run under exactly this context, lowest first.

    Raises LimitsExceeded, OSError.
    """
    return [one.pid for one in labelled(kernel) if one.context == context]


def owner_and_name(pid: int) -> tuple[int, str] | None:
    """Return a process's uid and the name that it gives itself; None if it has ended, or if the
    policy does not let svirtd look."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            name = file.read().rstrip(b"\n").decode(errors="replace")
            return os.fstat(file.fileno()).st_uid, name
    except OSError as error:
        refuse_scarcity(error)
        return None


def _entries() -> list[str]:
    try:
        return os.listdir("/proc")
    except OSError as error:
        refuse_scarcity(error)
        raise
