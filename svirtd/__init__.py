# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtd: label isolation for virtual machines on Linux."""

__version__ = "0.1.0"
