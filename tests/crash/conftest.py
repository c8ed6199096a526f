# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the crash tier."""

from tests.fixtures import client, nothing_left, sandbox, zygote

__all__ = ["client", "nothing_left", "sandbox", "zygote"]
