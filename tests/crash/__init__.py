# SPDX-License-Identifier: LGPL-2.1-or-later
"""The crash tier: the daemon ended at any moment, and what the next start makes of it."""
