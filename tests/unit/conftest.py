# SPDX-License-Identifier: LGPL-2.1-or-later
"""Settings of the unit tier."""

from hypothesis import settings

# Nothing is asserted on elapsed time: on a busy machine any example may take long.
settings.register_profile("svirtd", deadline=None)
settings.load_profile("svirtd")
