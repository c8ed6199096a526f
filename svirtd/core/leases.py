# SPDX-License-Identifier: LGPL-2.1-or-later
"""When what a VM holds is over, where that follows from several things. Pure."""

import math

from svirtd.core.groups import AtEnd
from svirtd.core.model import Hold, Terms


def last(*of: Terms | Hold) -> tuple[int, AtEnd]:
    """Return the lease that ends last: until when, as `until_us` is, and what happens then."""
    found = max(of, key=lambda one: one.until_us or math.inf)
    return found.until_us, found.at_end
