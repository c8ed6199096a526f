# SPDX-License-Identifier: LGPL-2.1-or-later
"""How svirtctl tells which sets of categories others use."""

from typing import Any

from svirtd.ctl.foreign_commands import table
from svirtd.ctl.render import Screen

PLAIN = Screen()
CONTAINER: dict[str, Any] = {
    "context": "system_u:system_r:container_t:s0:c3,c800",
    "categories": "c3,c800",
    "pid": 4711,
    "processes": 3,
    "owner": 0,
    "name": "nginx",
    "unit": "libpod-1.scope",
    "groups": [],
}


def test_nobody() -> None:
    assert table([], PLAIN) == "Nobody else uses a set of categories.\n"


def test_a_line_each() -> None:
    other = CONTAINER | {"name": "a\x1b[31m", "unit": "", "pid": 1}
    lines = [line.split() for line in table([CONTAINER, other], PLAIN).splitlines()]
    assert lines[0][:3] == ["CATEGORIES", "NAME", "PID"]
    assert lines[1] == [
        "c3,c800", "nginx", "4711", "3", "root", "libpod-1.scope", CONTAINER["context"],
    ]  # fmt: skip
    assert "\x1b" not in table([other], PLAIN)
    assert lines[2][5] == "-"


def test_whose_group_it_could_use() -> None:
    told = table([CONTAINER | {"groups": ["g", "h"]}], PLAIN)
    assert "nginx (4711) has the category of g, h, and could use what it shares" in told
