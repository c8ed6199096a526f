# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the bus tier."""

from tests.fixtures import (
    client,
    daemon,
    interruptible,
    nothing_left,
    own_daemon,
    sandbox,
    shared_daemon,
)

__all__ = [
    "client",
    "daemon",
    "interruptible",
    "nothing_left",
    "own_daemon",
    "sandbox",
    "shared_daemon",
]
