# SPDX-License-Identifier: LGPL-2.1-or-later
"""What svirtctl shows: escaped, aligned, coloured where it may be, and JSON."""

import json
import re
from datetime import UTC
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svirtd.ctl import render
from svirtd.ctl.answers import Event, Row
from svirtd.ctl.render import NOT_ENFORCED, Screen

PLAIN = Screen()
COLOUR = Screen(columns=100, colour=True)
STYLE = re.compile(r"\x1b\[[0-9;]*m")
# A title change, a cursor move, a bidi override and isolate, a line of its own, C1, a separator.
HOSTILE = "a\x1b]0;owned\x07b\x1b[2Jc\u202ed\u2066e\nNAME ok\r\t\x9bf\x7f\u2028\u00adg"


def user(uid: int) -> str:
    return {0: "root"}.get(uid, str(uid))


def vm(**changes: object) -> dict[str, object]:
    values: dict[str, object] = {
        "Name": "web",
        "Id": "0123",
        "UUID": "",
        "Owner": 0,
        "State": "running",
        "StateReason": "",
        "Goal": "isolated",
        "Groups": [],
        "Unit": "svirt-web.service",
        "MainPID": 77,
        "ProcessContext": "system_u:system_r:svirt_t:s0:c1,c2",
        "ImageContext": "system_u:object_r:svirt_image_t:s0:c1,c2",
        "Categories": "c1,c2",
        "Resources": [],
        "RuntimeDirectory": "/run/svirtd/vm/0123",
        "Persistent": False,
        "CreatedAt": 1_700_000_000_000_000,
    }
    return values | changes


def test_groups_of_a_vm() -> None:
    resource = {"path": "/x", "access": "group", "group": "team", "context": "c", "original": "o"}
    groups = {"Groups": ["team"], "LastingGroups": ["old", "team"], "Resources": [resource]}
    text = render.vm_details(vm(**groups), user, PLAIN, UTC, enforced=True)
    assert "Groups      team\n" in text
    assert "Lasting     old, team\n" in text
    assert "group (team)  /x" in text


def test_shown_escapes_what_a_terminal_would_act_on() -> None:
    assert render.shown(HOSTILE) == (
        r"a\x1b]0;owned\x07b\x1b[2Jc\u202ed\u2066e\nNAME ok\r\t\x9bf\x7f\u2028\xadg"
    )
    assert render.shown("\U000e0041\udc80") == r"\U000e0041\udc80"
    assert render.shown("svirt-a\\x20b.service ä 漢") == "svirt-a\\x20b.service ä 漢"
    assert render.shown(17) == "17"


@given(st.text())
def test_shown_leaves_nothing_unprintable(text: str) -> None:
    out = render.shown(text)
    assert out.isprintable()
    assert len(out) >= len(text)
    assert (out == text) == text.isprintable()


@pytest.mark.parametrize("screen", [PLAIN, Screen(columns=60), COLOUR])
def test_no_view_lets_control_characters_through(screen: Screen) -> None:
    held = dict.fromkeys(("path", "access", "context", "original"), HOSTILE)
    step = dict.fromkeys(("path", "access", "from", "to", "error", "reason"), HOSTILE)
    owner = dict.fromkeys(("vm", "state", "path", "access", "object"), HOSTILE)
    events = [
        Event(0.0, "VMAdded", HOSTILE, {"name": HOSTILE, "vm": HOSTILE}),
        Event(0.0, "DriftFound", "/", {"finding": {"path": HOSTILE, HOSTILE: HOSTILE}}),
        Event(0.0, "PropertiesChanged", HOSTILE, {"changed": {HOSTILE: [{"path": HOSTILE}]}}),
        Event(0.0, "InterfacesAdded", "/", {"object": HOSTILE, "interfaces": {HOSTILE: {}}}),
        Event(0.0, "VMRemoved", "/", {"unreadable": HOSTILE}),
    ]
    texts = [
        render.vm_list(
            [Row(HOSTILE, HOSTILE, HOSTILE, 0, HOSTILE)], lambda _: HOSTILE, screen, enforced=True
        ),
        render.vm_details(
            {key: HOSTILE for key in vm() if key not in ("Resources", "CreatedAt", "Groups")}
            | {"Resources": [held], "Groups": [HOSTILE]},
            lambda _: HOSTILE,
            screen,
            UTC,
            enforced=True,
        ),
        render.daemon_status(
            {"Version": HOSTILE, "SELinuxMode": HOSTILE, "PolicyName": HOSTILE}
            | {"Features": [HOSTILE], "Enforced": True},
            screen,
        ),
        render.owner_list([owner], screen),
        # Each by itself: the columns of a narrow terminal fold what is long.
        *(
            render.matrix([cell(**one)], screen, everything=True, enforced=True)
            for one in ({"vm": HOSTILE}, {"object": HOSTILE}, {"granted": [HOSTILE]})
        ),
        render.owner_list([{"vm": HOSTILE, "state": HOSTILE}], screen),
        render.plan_list([step], screen),
        *(render.event_line(event, screen, UTC) for event in events),
    ]
    for text in texts:
        bare = STYLE.sub("", text) if screen.colour else text
        assert all(line.isprintable() for line in bare.split("\n")), bare
        assert "owned" in bare.replace("\n", "")
    for event in events:
        assert render.event_line(event, PLAIN, UTC).count("\n") == 1


def cell(**values: Any) -> dict[str, Any]:
    uses: dict[str, Any] = {"granted": [], "allowed": [], "surplus": [], "shortfall": []}
    return {"vm": "v", "kind": "vm", "object": "o", **uses, "by": "policy"} | values


def test_matrix_names_what_differs() -> None:
    plain = cell(vm="one", kind="resource", object="/a.img")
    cells = [
        plain,
        plain | {"granted": ["read"], "allowed": ["read"]},
        plain | {"allowed": ["ptrace"], "surplus": ["ptrace"], "kind": "vm", "object": "two"},
        plain | {"granted": ["read"], "shortfall": ["read"]},
    ]
    assert render.matrix(cells, PLAIN, everything=False, enforced=True) == (
        "VM   OBJECT  GRANTED  ALLOWED  RESULT\n"
        "one  /a.img  read     read     as granted\n"
        "one  VM two  -        ptrace   SURPLUS\n"
        "one  /a.img  read     -        SHORTFALL\n"
        "\n"
        "4 questions, 1 with a surplus, 1 with a shortfall.\n"
    )
    every = render.matrix(cells, PLAIN, everything=True, enforced=True)
    assert "one  /a.img  -        -        as granted\n" in every
    algebra = render.matrix([plain | {"by": "algebra"}], PLAIN, everything=False, enforced=True)
    assert algebra.startswith("1 questions, 0 with")
    assert "NOT ASKED OF A POLICY" in algebra
    loose = render.matrix(cells, PLAIN, everything=False, enforced=False)
    assert loose.startswith(render.NOT_ENFORCED)


def test_json_is_one_document_of_ascii() -> None:
    text = render.document({"name": HOSTILE})
    assert text.isascii()
    assert all(line.isprintable() for line in text.split("\n"))
    assert json.loads(text) == {"name": HOSTILE}
    assert "\n" not in render.document({"a": [HOSTILE]}, indent=None)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("MainPID", "main_pid"),
        ("UUID", "uuid"),
        ("Id", "id"),
        ("SELinuxMode", "selinux_mode"),
        ("CreatedAt", "created_at"),
        ("StateReason", "state_reason"),
        ("PairsInUse", "pairs_in_use"),
        ("GroupCategoriesInUse", "group_categories_in_use"),
    ],
)
def test_keys_of_properties(name: str, key: str) -> None:
    assert render.keyed({name: 1}) == {key: 1}


def test_list_is_aligned_and_plain_when_piped() -> None:
    rows = [
        Row("a-much-longer-name", "reserved", "", 1000, "/x"),
        Row("web", "running", "svirt-web.service", 0, "/y"),
    ]
    assert render.vm_list(rows, user, PLAIN, enforced=True) == (
        "NAME                STATE     UNIT               OWNER\n"
        "a-much-longer-name  reserved  -                  1000\n"
        "web                 running   svirt-web.service  root\n"
    )
    assert render.vm_list([], user, PLAIN, enforced=True) == "No VMs.\n"


def test_colour_changes_nothing_but_the_style() -> None:
    rows = [Row(state, state, "u", 0, "/") for state in ("running", "failed", "reserved")]
    plain = render.vm_list(rows, user, PLAIN, enforced=False)
    coloured = render.vm_list(rows, user, COLOUR, enforced=False)
    assert "\x1b[32mrunning" in coloured
    assert "\x1b[1;31mfailed" in coloured
    bare = STYLE.sub("", coloured)
    assert [line.rstrip() for line in bare.splitlines()] == plain.splitlines()


def test_long_values_are_whole_when_piped_and_folded_on_a_terminal() -> None:
    path = "/images/" + "x" * 300
    owner = {"vm": "web", "state": "running", "access": "exclusive", "path": path}
    assert path in render.owner_list([owner], PLAIN)
    folded = render.owner_list([owner], Screen(columns=80)).splitlines()
    assert all(len(line) <= 80 for line in folded)
    column = folded[0].index("PATH")
    assert "".join(line[column:] for line in folded[1:]) == path


def test_not_enforced_is_said_first() -> None:
    for text in (
        render.vm_list([], user, PLAIN, enforced=False),
        render.vm_details(vm(), user, PLAIN, UTC, enforced=False),
        render.daemon_status({"Enforced": False}, PLAIN),
    ):
        assert text.splitlines()[0] == NOT_ENFORCED
        assert text.startswith("NOT ENFORCED")
    for text in (
        render.vm_list([], user, PLAIN, enforced=True),
        render.vm_details(vm(), user, PLAIN, UTC, enforced=True),
        render.daemon_status({"Enforced": True}, PLAIN),
    ):
        assert "NOT ENFORCED" not in text


def test_show_says_which_original_is_unknown() -> None:
    held = {"path": "/a.img", "access": "exclusive", "context": "u:r:t:s0:c1"}
    text = render.vm_details(vm(Resources=[held]), user, PLAIN, UTC, enforced=True)
    assert text.splitlines()[-1].split() == ["-", "exclusive", "/a.img", "u:r:t:s0:c1", "unknown"]


def test_show_what_a_stranger_sees() -> None:
    seen = {"Name": "web", "State": "running", "Owner": 0}
    text = render.vm_details(seen, user, PLAIN, UTC, enforced=True)
    assert text == (
        "Name   web\nState  running\nOwner  root (0)\n"
        "\nThe rest is for its owner and root to see.\n"
    )
    assert render.owner_list([{"held": True}], PLAIN) == "A VM of another user holds it.\n"
    mine = {"vm": "web", "state": "running", "access": "public", "path": "/a"}
    assert "(of another user)" in render.owner_list([mine, {"held": True}], PLAIN)


def test_show() -> None:
    held = {"path": "/a b.img", "access": "exclusive", "context": "u:r:t:s0:c1", "original": ""}
    held["id"] = "r1"
    text = render.vm_details(
        vm(Resources=[held], UUID="12", StateReason="why"), user, PLAIN, UTC, enforced=True
    )
    assert text == (
        "Name        web\n"
        "State       running\n"
        "Reason      why\n"
        "Owner       root (0)\n"
        "Goal        isolated\n"
        "Unit        svirt-web.service\n"
        "Main PID    77\n"
        "Process     system_u:system_r:svirt_t:s0:c1,c2\n"
        "Image       system_u:object_r:svirt_image_t:s0:c1,c2\n"
        "Categories  c1,c2\n"
        "Runtime     /run/svirtd/vm/0123\n"
        "Persistent  no\n"
        "Created     2023-11-14 22:13:20+00:00\n"
        "Id          0123\n"
        "UUID        12\n"
        "\n"
        "ID  ACCESS     PATH      CONTEXT      ORIGINAL\n"
        "r1  exclusive  /a b.img  u:r:t:s0:c1\n"
    )
    bare = render.vm_details(vm(), user, PLAIN, UTC, enforced=True)
    assert bare.endswith("\n\nHolds nothing.\n")


def test_status() -> None:
    manager = {
        "Version": "1",
        "SELinuxMode": "enforcing",
        "Enforced": True,
        "PolicyName": "default",
        "PairsTotal": 294528,
        "PairsInUse": 3,
        "PairsQuarantined": 1,
        "GroupCategoriesTotal": 256,
        "GroupCategoriesInUse": 0,
        "Features": ["launch", "channels"],
    }
    assert render.daemon_status(manager, PLAIN) == (
        "Version   1\n"
        "SELinux   enforcing\n"
        "Enforced  yes\n"
        "Policy    default\n"
        "Pairs     3 in use, 1 in quarantine, of 294528\n"
        "Groups    0 in use, of 256\n"
        "Features  launch, channels\n"
    )


def test_plan_says_why_a_disk_would_be_refused() -> None:
    steps = [
        {"path": "/a", "access": "exclusive", "from": "", "to": "u:r:t:s0:c1"},
        {"path": "/b", "access": "public", "from": "u:r:o:s0", "to": "u:r:t:s0"}
        | {"error": "org.svirt1.Error.ResourceBusy", "reason": "web holds /b"},
    ]
    assert render.plan_list(steps, PLAIN) == (
        "ACCESS     PATH  FROM      TO\n"
        "exclusive  /a    -         u:r:t:s0:c1\n"
        "public     /b    u:r:o:s0  refused\n"
        "\n"
        "Refused: web holds /b\n"
    )
    assert render.plan_list([], PLAIN) == "Nothing would be labelled.\n"


def test_owners() -> None:
    assert render.owner_list([], PLAIN) == "No VM holds it.\n"
    by_set = [{"vm": "web", "object": "/o", "state": "running"}]
    assert render.owner_list(by_set, PLAIN) == "VM   STATE\nweb  running\n"


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Event(0.5, "VMAdded", "/", {"name": "web", "vm": "/v"}), "VMAdded           web"),
        (
            Event(0.5, "DriftFound", "/", {"finding": {"kind": "changed", "found": ""}}),
            "DriftFound        kind=changed",
        ),
        (
            Event(0.5, "PropertiesChanged", "/v", {"changed": {"Unit": "", "MainPID": 0}}),
            'PropertiesChanged /v Unit="" MainPID=0',
        ),
        (
            Event(0.5, "InterfacesAdded", "/", {"object": "/v", "interfaces": {"i": {"a": 1}}}),
            "InterfacesAdded   /v i",
        ),
        (
            Event(0.5, "InterfacesRemoved", "/", {"object": "/v", "interfaces": ["i", "j"]}),
            "InterfacesRemoved /v i, j",
        ),
        (Event(0.5, "Stopped", "/", {"service": "org.svirt1"}), "Stopped           org.svirt1"),
        (Event(0.5, "VMAdded", "/", {"unreadable": "u"}), "VMAdded           {'unreadable': 'u'}"),
    ],
)
def test_event_lines(event: Event, said: str) -> None:
    assert render.event_line(event, PLAIN, UTC) == f"1970-01-01 00:00:00.500 {said}\n"


def test_event_as_json() -> None:
    event = Event(0.5, "PropertiesChanged", "/v", {"changed": {"MainPID": 1}, "invalidated": []})
    assert render.event_values(event, UTC) == {
        "time": "1970-01-01T00:00:00.500000+00:00",
        "event": "PropertiesChanged",
        "path": "/v",
        "changed": {"main_pid": 1},
        "invalidated": [],
    }
    added = Event(0.0, "InterfacesAdded", "/", {"object": "/v", "interfaces": {"i": {"Id": "x"}}})
    assert render.event_values(added, UTC)["interfaces"] == {"i": {"id": "x"}}
