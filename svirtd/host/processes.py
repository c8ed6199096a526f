# SPDX-License-Identifier: LGPL-2.1-or-later
"""Labels of running processes, from /proc. Blocks; the engine runs it in its file threads."""

import os
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Facts:
    """Whose a process is, what it calls itself, and the unit it is in (empty if none)."""

    uid: int
    name: str
    unit: str


def facts(pid: int) -> Facts | None:
    """Look at a process; None if it has ended, or if the policy does not let svirtd look."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            uid = os.fstat(file.fileno()).st_uid
            name = file.read().rstrip(b"\n").decode(errors="replace")
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            return Facts(uid, name, unit_of(file.read()))
    except OSError as error:
        refuse_scarcity(error)
        return None


def unit_of(cgroups: str) -> str:
    """Return the innermost unit that a /proc/PID/cgroup names, empty if none.

    Not asked of systemd: its answer about other units is not svirtd's to have.
    """
    for line in cgroups.splitlines():
        if line.startswith("0::"):
            for part in reversed(line.split("/")):
                if part.endswith((".service", ".scope")):
                    return part
    return ""


def _entries() -> list[str]:
    try:
        return os.listdir("/proc")
    except OSError as error:
        refuse_scarcity(error)
        raise
