# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wall clock can be set: the daemon writes it down, and never waits by it or decides by it."""

import ast
from pathlib import Path

from tests.support import REPO

# Each ends in a column that is shown to people.
_WRITTEN_DOWN = {"book/ledger.py", "book/pool.py", "engine/reentry.py"}
# The end of a lease is a date that a person gave: by what else should it be known to have come?
_MEANT = {"engine/calendar.py"}
_CLOCKS = {"time", "time_ns", "now", "utcnow", "today", "CLOCK_REALTIME"}
# A client shows when it heard of something.
_CLIENT = "ctl/"


def clocks_read(path: Path) -> list[str]:
    """The names by which a module reads the wall clock."""
    return [
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in _CLOCKS
        and isinstance(node.value, ast.Name)
        and node.value.id in ("time", "datetime", "date")
    ]


def test_the_wall_clock_is_only_written_down() -> None:
    package = REPO / "svirtd"
    found = {
        str(path.relative_to(package)): names
        for path in package.rglob("*.py")
        if (names := clocks_read(path)) and not path.is_relative_to(package / _CLIENT)
    }
    assert found == {name: ["time_ns"] for name in _WRITTEN_DOWN | _MEANT}
