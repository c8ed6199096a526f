# SPDX-License-Identifier: LGPL-2.1-or-later
"""Labels of running processes, from /proc. Blocks; the engine runs it in its file threads."""

import os

from svirtd.host.kernel import Kernel


def under(kernel: Kernel, context: str) -> list[int]:
    """Return the processes that run under exactly this context, lowest first."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if kernel.process_label(int(entry)) == context:
                found.append(int(entry))
        except OSError:
            continue  # it ended while we looked
    return sorted(found)
