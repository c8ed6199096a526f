# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the bus tier."""

import pytest

from tests.fixtures import (
    client,
    daemon,
    forked_daemons,
    forked_svirtctl,
    interruptible,
    nothing_left,
    own_daemon,
    sandbox,
    shared_daemon,
    zygote,
)

__all__ = [
    "client",
    "daemon",
    "forked_daemons",
    "forked_svirtctl",
    "interruptible",
    "nothing_left",
    "own_daemon",
    "sandbox",
    "shared_daemon",
    "zygote",
]


@pytest.fixture(scope="session", autouse=True)
def forked(forked_daemons: None, forked_svirtctl: None) -> None:
    """The tests here are about running programs; test_start.py and others execute them."""
