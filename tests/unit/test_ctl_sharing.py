# SPDX-License-Identifier: LGPL-2.1-or-later
"""What svirtctl shows of groups and walls."""

from datetime import UTC
from typing import Any

from svirtd.ctl import group_commands, wall_commands
from svirtd.ctl.render import Screen

PLAIN = Screen()
HOSTILE = "a\x1b]0;owned\x07\u202e\n"


def user(uid: int) -> str:
    return {0: "root"}.get(uid, str(uid))


def wall(**changes: Any) -> dict[str, Any]:
    return {
        "name": "banks",
        "scope": "vm",
        "classes": [["a", "a-archive"], ["b"]],
        "configured": True,
        "entries": 0,
        "history": [],
        "cleared": [],
    } | changes


def test_no_walls() -> None:
    assert wall_commands.wall_list([], PLAIN) == "No walls.\n"
    assert wall_commands.wall_history([], PLAIN, UTC) == "Nothing was held behind a wall.\n"


def test_walls() -> None:
    gone = wall(name="gone", scope="", classes=[], configured=False, entries=3)
    assert wall_commands.wall_list([wall(), gone], PLAIN).splitlines() == [
        "WALL   SCOPE  SIDES                       HISTORY",
        "banks  vm     a, a-archive | b            0",
        "gone   -      (not in the configuration)  3",
    ]


def test_history() -> None:
    row = {"subject": "uid:1000", "group": "a", "vm": HOSTILE, "since": 1_700_000_000_000_000}
    cleared = {"subject": "uid:7", "uid": 0, "entries": 2, "at": 1_700_000_000_000_000}
    text = wall_commands.wall_history(
        [wall(entries=5, history=[row], cleared=[cleared])], PLAIN, UTC
    )
    name = r"a\x1b]0;owned\x07\u202e\n"
    assert text.splitlines() == [
        f"WALL   SUBJECT   GROUP  {'VM':<{len(name)}}  SINCE",
        f"banks  uid:1000  a      {name}  2023-11-14 22:13:20+00:00",
        "",
        "4 older ones are not shown.",
        "",
        "WALL   CLEARED OF  ENTRIES  BY    AT",
        "banks  uid:7       2        root  2023-11-14 22:13:20+00:00",
    ]


def test_groups() -> None:
    assert group_commands.group_list([], user, PLAIN) == "No groups.\n"
    assert group_commands.group_list([("team", 0), ("b", 7)], user, PLAIN).splitlines() == [
        "GROUP  OWNER",
        "team   root",
        "b      7",
    ]


def test_a_group_of_ones_own() -> None:
    found = {
        "Name": "team",
        "Owner": 0,
        "Category": "c801",
        "Writers": "all",
        "Namespace": "",
        "Members": ["a", "b"],
        "CreatedAt": 1_700_000_000_000_000,
        "Grants": [
            {"vm": "c", "owner": 7, "until": 1_700_000_000_000_000, "at-end": "stop", "since": 1},
            {"vm": "d", "owner": 0, "until": 0, "at-end": "report", "since": 1},
        ],
    }
    assert group_commands.group_details(found, user, PLAIN, UTC).splitlines() == [
        "Group     team",
        "Owner     root (0)",
        "Category  c801",
        "Writers   all",
        "Members   a, b",
        "Created   2023-11-14 22:13:20+00:00",
        "",
        "MAY BE IN IT  OWNER  UNTIL                      THEN",
        "c             7      2023-11-14 22:13:20+00:00  stop",
        "d             root   -                          -",
    ]
    found["Grants"] = []
    assert group_commands.group_details(found, user, PLAIN, UTC).endswith("Nothing is granted.\n")


def test_a_group_of_somebody_else() -> None:
    text = group_commands.group_details({"Name": "team", "Owner": 7}, user, PLAIN, UTC)
    assert text.splitlines()[:2] == ["Group  team", "Owner  7 (7)"]
    assert "owner" in text.splitlines()[-1]
