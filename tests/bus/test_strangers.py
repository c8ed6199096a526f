# SPDX-License-Identifier: LGPL-2.1-or-later
"""Callers that may do nothing: denied where something changes, and shown what all may know."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.api import contract
from tests.attack import DENIED, nothing_changes
from tests.support import (
    GROUP,
    JOB,
    MANAGER,
    NAME,
    PROPERTIES,
    ROOT,
    VM,
    Client,
    Daemon,
    image,
    set_label,
    wait_for,
)

NOBODY = 65534
# An administrator could allow it, had the call allowed that one is asked.
NEEDS_DIALOG = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
EXISTING = "/org/svirt1/vm/secret"
THEIRS = "/org/svirt1/group/theirs"
MISSING = "/org/svirt1/vm/nobody"

# Arguments for every member, as GVariant text: for a VM that exists, where one is named.
ARGUMENTS = {
    (MANAGER, "Launch"): ["'x'", "['/bin/true']", "@aa{sv} []", "@a{sv} {}"],
    (MANAGER, "Acquire"): ["'x'", "[{'path': <'{disk}'>}]", "@a{sv} {}"],
    (MANAGER, "Release"): ["'{name}'", "@a{sv} {}"],
    (MANAGER, "Forget"): ["'{name}'", "@a{sv} {}"],
    (MANAGER, "Plan"): ["'x'", "[{'path': <'{disk}'>}]", "@a{sv} {}"],
    (MANAGER, "ListGoals"): [],
    (MANAGER, "GetVM"): ["'{name}'"],
    (MANAGER, "GetVMByPID"): ["uint32 1"],
    (MANAGER, "GetVMByUUID"): ["'6c3a6e6e-0000-4000-8000-000000000001'"],
    (MANAGER, "ListVMs"): [],
    (MANAGER, "FindOwners"): ["'{disk}'"],
    (MANAGER, "Backup"): ["@a{sv} {}"],
    (MANAGER, "Verify"): ["true", "@a{sv} {}"],
    (MANAGER, "Matrix"): ["@a{sv} {}"],
    (MANAGER, "ListForeign"): [],
    (MANAGER, "ListWalls"): [],
    (MANAGER, "ClearWall"): ["'banks'", "'{name}'", "@a{sv} {}"],
    (MANAGER, "Enroll"): ["'x.service'", "'x'", "[{'path': <'{disk}'>}]", "@a{sv} {}"],
    (MANAGER, "Unenroll"): ["'x.service'", "@a{sv} {}"],
    (MANAGER, "ListEnrolled"): [],
    (MANAGER, "StartEnrolled"): ["'x.service'", "@a{sv} {}"],
    (MANAGER, "EndEnrolled"): ["'x.service'", "@a{sv} {}"],
    (MANAGER, "CreateGroup"): ["'g'", "@a{sv} {}"],
    (MANAGER, "DeleteGroup"): ["'theirs'", "@a{sv} {}"],
    (MANAGER, "ListGroups"): [],
    (VM, "JoinGroup"): ["'theirs'", "@a{sv} {}"],
    (VM, "LeaveGroup"): ["'theirs'", "@a{sv} {}"],
    (GROUP, "Grant"): ["'{name}'", "@a{sv} {}"],
    (GROUP, "Revoke"): ["'{name}'", "@a{sv} {}"],
    (VM, "Release"): ["@a{sv} {}"],
    (VM, "OpenChannel"): ["'qmp'", "@a{sv} {}"],
    (VM, "Follow"): ["uint32 1", "@a{sv} {}"],
    (VM, "Ending"): ["@a{sv} {}"],
    (VM, "Attach"): ["{'path': <'{disk}'>}", "@a{sv} {}"],
    (VM, "Detach"): ["'r1'", "@a{sv} {}"],
    (JOB, "Cancel"): ["@a{sv} {}"],
    (PROPERTIES, "Get"): ["'{interface}'", "'Name'"],
    (PROPERTIES, "GetAll"): ["'{interface}'"],
    (PROPERTIES, "Set"): ["'{interface}'", "'Name'", "<'x'>"],
    (OBJECT_MANAGER, "GetManagedObjects"): [],
}


@pytest.fixture
def disk(daemon: Daemon, client: Client, tmp_path: Path) -> Iterator[Path]:
    """The disk of a VM named "secret", beside which there is a group named "theirs"."""
    path = image(tmp_path / "a.img")
    client.acquire("secret", path)
    client.call("CreateGroup", "sa{sv}", "theirs", {})
    yield path
    client.call("DeleteGroup", "sa{sv}", "theirs", {})
    client.release("secret")


def as_nobody(*argv: str) -> str:
    """Run a command as an ordinary user; what it said on either stream."""
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    done = subprocess.run([*drop, *argv], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def call(path: str, interface: str, member: str, *arguments: str) -> str:
    where = ["--system", "--dest", NAME, "--object-path", path]
    return as_nobody("gdbus", "call", *where, "--method", f"{interface}.{member}", *arguments)


def test_every_member_has_arguments_here() -> None:
    known = {
        (interface, member) for interface, c in contract.load().items() for member in c.methods
    }
    open_to_all = {(PEER, "Ping"), (PEER, "GetMachineId"), (INTROSPECTABLE, "Introspect")}
    assert known == set(ARGUMENTS) | open_to_all


# What tells anybody that a VM exists, in which state and whose it is.
READS = {
    (MANAGER, "GetVM"): f"(objectpath '{EXISTING}',)",
    (MANAGER, "GetVMByPID"): "org.svirt1.Error.NoSuchVM",
    (MANAGER, "GetVMByUUID"): "org.svirt1.Error.NoSuchVM",
    (MANAGER, "ListVMs"): f"([('secret', 'labelled', '', uint32 0, objectpath '{EXISTING}')],)",
    (MANAGER, "FindOwners"): "(@aa{sv} [],)",
    (MANAGER, "ListGoals"): "([{'name': <'isolated'>, ",
    (MANAGER, "ListEnrolled"): "(@aa{sv} [],)",
    (MANAGER, "ListGroups"): f"([('theirs', uint32 0, objectpath '{THEIRS}')],)",
    (PROPERTIES, "Get"): "(<'secret'>,)",
    (PROPERTIES, "GetAll"): "({'Name': <'secret'>, 'Owner': <uint32 0>, 'State': <'labelled'>},)",
    (OBJECT_MANAGER, "GetManagedObjects"): f"({{objectpath '{EXISTING}': {{'{VM}': "
    "{'Name': <'secret'>, 'Owner': <uint32 0>, 'State': <'labelled'>}}, "
    f"'{THEIRS}': {{'{GROUP}': {{'Name': <'theirs'>, 'Owner': <uint32 0>}}}}}},)",
}


def said(interface: str, member: str, path: str, name: str, file: str) -> str:
    of = VM if path.startswith("/org/svirt1/vm/") else MANAGER
    texts = [
        text.replace("{name}", name).replace("{disk}", file).replace("{interface}", of)
        for text in ARGUMENTS[interface, member]
    ]
    return call(path, interface, member, *texts)


@pytest.mark.parametrize(("interface", "member"), set(ARGUMENTS) - set(READS))
def test_denied(client: Client, disk: Path, tmp_path: Path, interface: str, member: str) -> None:
    paths = {VM: EXISTING, GROUP: THEIRS, JOB: "/org/svirt1/job/1", PROPERTIES: EXISTING}
    path = paths.get(interface, ROOT)
    with nothing_changes(client, tmp_path):
        answer = said(interface, member, path, "secret", str(disk))
    match interface, member:
        case _, "Set":
            # Not on the bus's list: in its own words, which name the sender's process.
            assert DENIED in answer
            assert "Rejected send message" in answer
        case _, "StartEnrolled" | "EndEnrolled":
            # systemd's to call, as root; no administrator could allow it to anybody else.
            assert f"{DENIED}: uid {NOBODY} may not tell svirtd of a unit's start or end" in answer
        case _, "Cancel":
            assert "org.freedesktop.DBus.Error.UnknownObject: there is no job 1" in answer
        case _:
            assert f"GDBus.Error:{NEEDS_DIALOG}: uid {NOBODY} may not " in answer
            assert str(disk) not in answer


@pytest.mark.parametrize(("interface", "member"), READS)
def test_seen_by_all(client: Client, disk: Path, interface: str, member: str) -> None:
    path = EXISTING if interface == PROPERTIES else ROOT
    answer = said(interface, member, path, "secret", str(disk))
    assert READS[interface, member] in answer
    assert "disk" not in answer
    assert str(disk) not in answer


def test_the_rest_is_the_owners(client: Client, disk: Path) -> None:
    whole = client.properties("secret")
    hidden = set(whole) - {"Name", "Owner", "State"}
    assert {"Id", "Resources", "Categories", "ProcessContext", "RuntimeDirectory"} < hidden
    for name in hidden:
        answer = call(EXISTING, PROPERTIES, "Get", f"'{VM}'", f"'{name}'")
        assert f"{DENIED}: uid {NOBODY} may not see {name} of another user's VM" in answer
    for what in (whole["Categories"], whole["ProcessContext"]):
        assert call(ROOT, MANAGER, "FindOwners", f"'{what}'") == "([{'held': <true>}],)\n"


def test_a_descriptor_does_not_help(client: Client, disk: Path, tmp_path: Path) -> None:
    os.chmod(disk, 0o666)
    os.chmod(tmp_path, 0o755)
    script = (
        "import sys; from gi.repository import Gio, GLib; import os\n"
        "bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)\n"
        "fds = Gio.UnixFDList.new_from_array([os.memfd_create('x')])\n"
        "args = GLib.Variant('(saa{sv}a{sv})', ('x', [{'fd': GLib.Variant('h', 0)}], {}))\n"
        "try: bus.call_with_unix_fd_list_sync('org.svirt1', '/org/svirt1', 'org.svirt1.Manager',\n"
        "    'Acquire', args, None, 0, -1, fds)\n"
        "except GLib.Error as error: print(error.message)\n"
    )
    with nothing_changes(client, tmp_path):
        answer = as_nobody("/usr/bin/python3", "-c", script)
        assert f"{NEEDS_DIALOG}: uid {NOBODY} may not" in answer


def test_introspection_is_open_to_all(disk: Path) -> None:
    machine = Path("/etc/machine-id").read_text().strip()
    for path in (ROOT, "/", "/org", "/org/svirt1/vm", EXISTING):
        assert call(path, PEER, "Ping") == "()\n"
        assert call(path, PEER, "GetMachineId") == f"('{machine}',)\n"
        tree = call(path, INTROSPECTABLE, "Introspect")
        assert "<node>" in tree
        assert str(disk) not in tree
    assert "UnknownObject" in call(MISSING, INTROSPECTABLE, "Introspect")


def test_nobody_else_may_own_the_name(daemon: Daemon) -> None:
    where = ["--system", "--dest", "org.freedesktop.DBus", "--object-path", "/org/freedesktop/DBus"]
    method = ["--method", "org.freedesktop.DBus.RequestName", NAME, "uint32 3"]
    assert DENIED in as_nobody("gdbus", "call", *where, *method)


def test_signals_tell_what_all_may_know(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    script = (
        "from gi.repository import Gio, GLib\n"
        "bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)\n"
        "flags = Gio.DBusSignalFlags.NONE\n"
        "heard = lambda *a: print('heard', a[4], a[5], flush=True)\n"
        "bus.signal_subscribe(None, None, None, None, None, flags, heard)\n"
        "dbus = 'org.freedesktop.DBus'\n"
        "bus.call_sync(dbus, '/', dbus, 'GetId', None, None, 0, -1)\n"
        "print('ready', flush=True)\n"
        "GLib.MainLoop().run()\n"
    )
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    with subprocess.Popen(
        [*drop, "/usr/bin/python3", "-c", script], stdout=subprocess.PIPE, text=True
    ) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "ready\n"
        path = image(tmp_path / "a.img")
        client.acquire("vm", path)
        set_label(path, "u:r:changed_t:s0:c1")
        client.listen()
        client.release("vm")
        wait_for("the drift is told", lambda: client.seen("DriftFound"))
        path.unlink()
        other = Client()
        other.close()
        # The bus tells everybody of a new connection, and passes signals on in order.
        heard = {}
        for line in stranger.stdout:
            _, member, body = line.split(" ", 2)
            if member == "NameOwnerChanged":
                break
            if member == "NameAcquired":
                continue  # the bus's word to the stranger alone, where he was slow to connect
            heard[member] = body
        stranger.kill()
    assert list(heard) == [
        "InterfacesAdded",
        "VMAdded",
        "PropertiesChanged",
        "InterfacesRemoved",
        "VMRemoved",
    ]
    public = "{'Name': <'vm'>, 'Owner': <uint32 0>, 'State': <'labelled'>}"
    assert public in heard["InterfacesAdded"]
    assert heard["PropertiesChanged"].count("<") == 1
    assert str(tmp_path) not in str(heard)
