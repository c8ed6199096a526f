# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wall clock, which can be set: read here for what people mean by it, an end given as a date.

Nothing waits by it for longer than a few seconds, and nothing else is decided by it.
"""

import time


def now_us() -> int:
    """Return microseconds since 1970."""
    return time.time_ns() // 1000
