# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names, paths and texts that mean something else to whoever reads them next.

Units, object paths, journal fields, SQL, the terminal of an administrator who looks.
"""

import json
import os
import subprocess
import sys

import pytest

from svirtd.host.bus import BusError, Variant
from tests.attack import INVALID, REFUSED, assert_refused
from tests.attacks.arena import Arena
from tests.attacks.defences import against
from tests.attacks.stranger import Stranger
from tests.sandbox.accounts import Account
from tests.support import REPO, ROOT, label, resources, svirt_units, unwrap

ACQUIRE = "saa{sv}a{sv}"
LAUNCH = "sasaa{sv}a{sv}"

BAD_NAMES = [
    "", " ", "a ", " a", ".", "..", ".a", "-a", "../x", "a/b", "/etc", "\n", "a\n", "a\nb",
    "a\x1b[2Jb", "a\x07", "a\x7f", "\u202ea", "\u00e9", "a\u200b", "a'b", 'a"b', "a;b", "a`b",
    "a$b", "a%n", "a\\x2db", "a{b}", "a[red]b", "a*", "a?", "a|b", "a<b", "a&b", "a#b", "a,b",
    "a=b", "a(b)", "a~", "a" * 61, "\uff41", "\u0661",
]  # fmt: skip
# All that a name may be, at its worst: for systemd, the bus, machined, a shell, SQL, a terminal.
ODD_NAMES = ["a--b", "a@b.service", "a.service", "A:B", "0", "a b  c", "a+b", "a_41",
             "a..b", "x@", "1e9", "null", "a-", "z" * 60]  # fmt: skip


@pytest.fixture
def stranger(arena: Arena, ann: Account) -> Stranger:
    """Ann, who may launch."""
    return arena.stranger(ann)


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_names_that_are_refused(arena: Arena, stranger: Stranger, name: str) -> None:
    for member, signature, body in (
        ("Acquire", ACQUIRE, [name, [], {}]),
        ("Plan", ACQUIRE, [name, [], {}]),
        ("Launch", LAUNCH, [name, ["/bin/true"], [], {}]),
    ):
        assert_refused(stranger.error(member, signature, *body), INVALID, "name")
    assert arena.root.vms() == {}


def test_names_lead_to_units_of_their_own(arena: Arena, stranger: Stranger) -> None:
    """Each has its unit, object and row: no two share one, and none is anybody else's."""
    paths, units = set(), set()
    for name in ODD_NAMES:
        path, unit = stranger.launch(name, ["/bin/sleep", "1000"])
        assert path.startswith(f"{ROOT}/vm/")
        assert unit.startswith("svirt-")
        assert unit.endswith(".service")
        paths.add(path)
        units.add(unit)
        assert stranger.properties(name)["Name"] == name
    assert len(paths) == len(units) == len(ODD_NAMES)
    assert set(svirt_units()) == units
    assert set(arena.root.vms()) == set(ODD_NAMES)
    for name in ODD_NAMES:
        stranger.release(name)


PATHS = ["relative", "", "/a\nb", "/a\x1b[2Jb", "/\x7f", "/a/../b", "/..", "/a\u202eb",
         "/" + "a" * 5000, "/a\x07"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path)[:20])
def test_paths_that_are_refused(arena: Arena, stranger: Stranger, path: str) -> None:
    for member in ("Acquire", "Plan"):
        refused = stranger.error(member, ACQUIRE, "vm", resources(path), {})
        assert refused.name in {INVALID, REFUSED}
        assert_refused(refused, refused.name, "path")
    # Of the other members that take a path from everybody.
    assert stranger.do(_owners, path) in {"[]", INVALID}


def _owners(me: object, path: str) -> str:
    from tests.attacks.stranger import Me

    assert isinstance(me, Me)
    try:
        return str(me.client.call("FindOwners", "s", path)[0])
    except BusError as error:
        return error.name


ODD_FILES = ["[bold red]x[bold]", "[link=x]y[@click=z]", "a b", "a'; DROP TABLE vm; --", "%n%s",
             "$(reboot)", "`reboot`", "-rf", "a\\nMESSAGE=x", "é" * 40, "{runtime}"]  # fmt: skip


@pytest.mark.parametrize("name", ODD_FILES)
def test_what_an_administrator_sees_of_a_path(
    arena: Arena, stranger: Stranger, ann: Account, name: str
) -> None:
    """The tool shows it as it is: no mark-up of its own library, and no escape, is acted upon."""
    disk = arena.disk(ann, name)
    stranger.acquire("vm", disk)
    assert label(disk) is not None
    text = on_a_terminal("show", "vm")
    assert name in text.replace("\r\n", "")
    assert stranger.call("FindOwners", "s", str(disk))[0]
    stranger.release("vm")
    assert label(disk) is None


def on_a_terminal(*arguments: str) -> str:
    """What svirtctl writes for an administrator at a terminal of 200 columns."""
    reader, writer = os.openpty()
    env = os.environ | {"COLUMNS": "200", "TERM": "xterm-256color"}
    with subprocess.Popen(
        [sys.executable, "-m", "svirtd.ctl", *arguments], stdout=writer, stderr=writer, cwd=REPO,
        env=env, stdin=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        os.close(writer)
        parts = []
        while True:
            try:
                parts.append(os.read(reader, 65536))
            except OSError:  # the other end is closed
                break
            if not parts[-1]:
                break
        os.close(reader)
        assert process.wait() == 0, b"".join(parts)
    return b"".join(parts).decode()


@against("texts reach a terminal without control characters")
def test_escapes_on_an_administrators_terminal(
    arena: Arena, stranger: Stranger, ann: Account
) -> None:
    """Wherever a stranger's text comes to be shown: here by a unit's description, and a refusal."""
    # The daemon takes none in; the tool must hold by itself, whatever a daemon sends.
    from svirtd.ctl import render
    from svirtd.ctl.answers import Row

    hostile = "x\x1b]0;pwned\x07\x1b[2J\u202e"
    weak = bool(arena.without)
    shown = render.shown
    try:
        if weak:
            render.__dict__["shown"] = str
        properties = {"Name": hostile, "State": hostile, "StateReason": hostile,
                      "Resources": [{"path": hostile, "access": hostile}]}  # fmt: skip
        screen = render.Screen(columns=200, colour=True)
        text = render.vm_details(properties, str, screen, None, enforced=True)
        rows = [Row(hostile, hostile, hostile, 0, ROOT)]
        text += render.vm_list(rows, str, screen, enforced=True)
    finally:
        render.shown = shown
    arena.verdict(
        "\x1b]0;" in text or "\x1b[2J" in text or "\u202e" in text or "\x07" in text, text
    )


def test_descriptions(arena: Arena, stranger: Stranger) -> None:
    """What systemctl shows of a unit is printable."""
    for text in ("x\nUser=root", "x\x1b[2J", "\u202ex", "x" * 300, "x\x85y"):
        options = {"properties": Variant("a{sv}", {"Description": Variant("s", text)})}
        refused = stranger.error("Launch", LAUNCH, "vm", ["/bin/true"], [], options)
        assert_refused(refused, INVALID, "Description")


def test_arguments_of_a_command(arena: Arena, stranger: Stranger, ann: Account) -> None:
    """systemd gets them one by one: nothing in them is a specifier, a variable or a new setting."""
    folder = arena.home(ann)
    script = folder / "say"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$0.said"\nexec sleep 1000\n')
    os.chown(script, ann.uid, ann.gid)
    script.chmod(0o700)
    odd = ["%n", "%%", "$HOME", "${PATH}", "\n[Service]\nUser=root", ";", "|", "-", "+", "@x", "!x",
           "a b", "'", '"', "\\", "\x1b[2J", "é"]  # fmt: skip
    stranger.launch("vm", [str(script), *odd])
    said = folder / "say.said"
    from tests.support import wait_for

    text = "\n".join(odd) + "\n"
    wait_for("the arguments", lambda: said.exists() and said.read_text().count("\n") >= len(odd))
    found = said.read_text()
    # systemd has variables of its own filled in, from the VM's environment: the VM's own matter.
    for one in odd:
        if not one.startswith("$"):
            assert one in found, (one, found)
    assert len(found) <= len(text) + 400
    stranger.release("vm")


FORGED = "SVIRT_FORGED"


def test_the_journal_cannot_be_forged(arena: Arena, stranger: Stranger) -> None:
    """No text of a caller's becomes a field or a record of its own."""
    texts: list[str] = []
    inject = (
        f"x\n{FORGED}=1\nPRIORITY=0\n\nMESSAGE=the kernel has crashed\nSYSLOG_IDENTIFIER=kernel"
    )
    for member, signature, body in (
        ("Acquire", ACQUIRE, [inject, [], {}]),
        ("Acquire", ACQUIRE, ["vm", resources(f"/{inject}"), {}]),
        ("Acquire", ACQUIRE, ["vm", [], {inject: Variant("s", inject)}]),
        ("Acquire", ACQUIRE, ["vm", [], {"goal": Variant("s", inject)}]),
        ("Launch", LAUNCH, ["vm", [f"/{inject}"], [], {}]),
        ("Release", "sa{sv}", [inject, {}]),
        ("GetVM", "s", [inject]),
        ("FindOwners", "s", [inject]),
    ):
        try:
            stranger.call(member, signature, *body)
        except BusError as error:
            texts.append(error.text)
    assert all(text.isprintable() for text in texts)
    subprocess.run(["journalctl", "--sync"], check=True)
    argv = ["journalctl", "-q", "--no-pager", "-o", "json", f"_PID={arena.pid}"]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in out.splitlines()]
    assert records
    for record in records:
        assert FORGED not in record
        assert record["SYSLOG_IDENTIFIER"] == "svirtd"
        assert record["PRIORITY"] != "0"
        assert not str(record["MESSAGE"]).startswith("the kernel")


OBJECTS = [
    "/org/svirt1/vm/_2e_2e_2fx", "/org/svirt1/vm/a_2fb", "/org/svirt1/vm/a_0a",
    "/org/svirt1/vm/_1b_5b2J", "/org/svirt1/vm/a_", "/org/svirt1/vm/_61", "/org/svirt1/vm/_e9",
    "/org/svirt1/job/_2d1", "/org/svirt1/job/0", "/org/svirt1/job/1_2f2",
]  # fmt: skip


@pytest.mark.parametrize("path", OBJECTS)
def test_object_paths(arena: Arena, stranger: Stranger, path: str) -> None:
    stranger.acquire("a")
    interface = "org.svirt1.VM" if "/vm/" in path else "org.svirt1.Job"
    member = "Release" if "/vm/" in path else "Cancel"
    refused = stranger.error(member, "a{sv}", {}, path=path, interface=interface)
    assert refused.name == "org.freedesktop.DBus.Error.UnknownObject"
    assert refused.text.isprintable()
    refused = stranger.error("GetAll", "s", interface, path=path,
                             interface="org.freedesktop.DBus.Properties")  # fmt: skip
    assert refused.name == "org.freedesktop.DBus.Error.UnknownObject"
    assert unwrap(stranger.call("ListVMs"))[0][0][0] == "a"
    stranger.release("a")


def test_uuids_and_machines(arena: Arena, stranger: Stranger, ann: Account, ben: Account) -> None:
    """A UUID that another user's VM has already, and names that machined would take for one."""
    uuid = {"uuid": Variant("s", "6ba7b810-9dad-11d1-80b4-00c04fd430c8")}
    stranger.launch("web.a", ["/bin/sleep", "1000"], **uuid)
    other = arena.stranger(ben)
    try:
        other.launch("web+a", ["/bin/sleep", "1000"], **uuid)
    except BusError as error:
        text = error.text
    else:
        text = "two"
        assert stranger.properties("web.a")["MainPID"] != other.properties("web+a")["MainPID"]
        other.release("web+a")
    assert text.isprintable()
    assert stranger.properties("web.a")["State"] == "running"
    stranger.release("web.a")
