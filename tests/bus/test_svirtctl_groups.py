# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtctl's group commands against the real daemon, from the making of a group to its end."""

import json
import os
import re
from pathlib import Path
from typing import Any

from svirtd.ctl.failures import Exit
from tests import svirtctl
from tests.sandbox.accounts import ANN
from tests.support import Client, Daemon, image, label


def ctl(*arguments: str, code: int = Exit.OK) -> str:
    """Run it; what it printed, on standard error where it had to fail."""
    done = svirtctl.run(*arguments, env=os.environ | {"TZ": "UTC"})
    assert done.returncode == code, (arguments, done)
    return done.stderr if code else done.stdout


def told(*arguments: str) -> Any:
    return json.loads(ctl("--json", *arguments))


def test_the_life_of_a_group(daemon: Daemon, client: Client) -> None:
    assert ctl("group", "list") == "No groups.\n"
    assert ctl("group", "create", "team", "--one-writer") == "group team is made\n"
    assert "a group is named 'team'" in ctl("group", "create", "team", code=Exit.BUSY)
    assert "is not a group name" in ctl("group", "create", "a b", code=Exit.REFUSED)
    assert told("group", "list") == {"groups": [{"name": "team", "owner": 0}]}
    assert told("group", "show", "team")["writers"] == "one"

    said = ctl("group", "grant", "team", "web", "--owner", "ann", "--until", "2999-01-31", "--stop")
    assert said == "web may be in group team until 2999-01-31 00:00:00+00:00\n"
    assert ctl("group", "grant", "team", "db", "--owner", str(ANN.uid)).endswith("team\n")
    first, second = told("group", "show", "team")["grants"]
    assert (second["vm"], second["owner"], second["until"]) == ("web", ANN.uid, 32474736000000000)
    assert second["at-end"] == "stop"
    assert (first["vm"], first["until"]) == ("db", 0)
    text = ctl("group", "show", "team")
    assert re.search(r"^web +ann +2999-01-31 00:00:00\+00:00 +stop$", text, re.M)
    assert "in the future" in ctl(
        "group", "grant", "team", "web", "--until", "2001-01-01", code=Exit.USAGE
    )
    ctl("group", "revoke", "team", "web")
    ctl("group", "revoke", "team", "db")
    assert "nothing in group 'team' was granted" in ctl(
        "group", "revoke", "team", "db", code=Exit.REFUSED
    )
    assert ctl("group", "delete", "team") == "group team is deleted\n"
    for command in (["show", "team"], ["delete", "team"], ["grant", "team", "web"]):
        assert "no group is named 'team'" in ctl("group", *command, code=Exit.NOT_FOUND)


def test_joining_and_leaving(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    ctl("group", "create", "team")
    disk = image(tmp_path / "a.img")
    ctl("acquire", "web", "--persistent", "--disk", str(disk))
    said = ctl("group", "join", "team", "web", code=Exit.REFUSED)
    assert "a process keeps the label that it was started with" in said
    ctl("group", "join", "team", "web", "--at-next-start")
    assert (told("show", "web")["groups"], told("show", "web")["lasting_groups"]) == ([], ["team"])
    ctl("release", "web")
    ctl("acquire", "web", "--disk", f"{disk}:group=team")
    shown = told("show", "web")
    assert shown["groups"] == shown["lasting_groups"] == ["team"]
    assert shown["resources"][0]["group"] == "team"
    assert "group (team)" in ctl("show", "web")
    assert "has members ('web')" in ctl("group", "delete", "team", code=Exit.BUSY)
    ctl("group", "leave", "team", "web", code=Exit.REFUSED)
    ctl("group", "leave", "team", "web", "--at-next-start")
    ctl("release", "web")
    ctl("forget", "web")
    assert "no VM is named 'web'" in ctl("group", "join", "team", "web", code=Exit.NOT_FOUND)
    ctl("group", "delete", "team")


def test_sharing(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    ctl("group", "create", "team")
    disk = image(tmp_path / "shared.img")
    shared = ("--disk", f"{disk}:group=team")
    (step,) = told("plan", "a", "--group", "team", *shared)["steps"]
    assert step["to"].endswith(told("group", "show", "team")["category"])
    for name in ("a", "b"):
        ctl("acquire", name, "--group", "team", *shared)
    assert label(disk) == step["to"]
    assert told("group", "show", "team")["members"] == ["a", "b"]
    said = ctl("acquire", "c", "--disk", str(disk), code=Exit.BUSY)
    assert "is held by VM 'a' with access 'group' of group 'team'" in said
    assert "is not in group 'team'" in ctl("acquire", "c", *shared, code=Exit.REFUSED)
    for name in ("a", "b"):
        assert label(disk) == step["to"]
        ctl("release", name)
    assert label(disk) is None
    ctl("group", "delete", "team")
