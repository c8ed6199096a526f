# SPDX-License-Identifier: LGPL-2.1-or-later
"""Callers other than root: denied at every member, by the daemon or by the bus, none the wiser."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.api import contract
from tests.attack import DENIED, nothing_changes
from tests.support import JOB, MANAGER, NAME, PROPERTIES, ROOT, VM, Client, Daemon, image

NOBODY = 65534
PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
EXISTING = "/org/svirt1/vm/secret"
MISSING = "/org/svirt1/vm/nobody"

# Arguments for every member, as GVariant text: for a VM that exists, where one is named.
ARGUMENTS = {
    (MANAGER, "Launch"): ["'x'", "['/bin/true']", "@aa{sv} []", "@a{sv} {}"],
    (MANAGER, "Acquire"): ["'x'", "[{'path': <'{disk}'>}]", "@a{sv} {}"],
    (MANAGER, "Release"): ["'{name}'", "@a{sv} {}"],
    (MANAGER, "Forget"): ["'{name}'", "@a{sv} {}"],
    (MANAGER, "Plan"): ["'x'", "[{'path': <'{disk}'>}]", "@a{sv} {}"],
    (MANAGER, "GetVM"): ["'{name}'"],
    (MANAGER, "GetVMByPID"): ["uint32 1"],
    (MANAGER, "ListVMs"): [],
    (MANAGER, "FindOwners"): ["'{disk}'"],
    (MANAGER, "Backup"): ["@a{sv} {}"],
    (MANAGER, "Verify"): ["true", "@a{sv} {}"],
    (VM, "Release"): ["@a{sv} {}"],
    (VM, "OpenChannel"): ["'qmp'", "@a{sv} {}"],
    (JOB, "Cancel"): ["@a{sv} {}"],
    (PROPERTIES, "Get"): ["'{interface}'", "'Name'"],
    (PROPERTIES, "GetAll"): ["'{interface}'"],
    (PROPERTIES, "Set"): ["'{interface}'", "'Name'", "<'x'>"],
    (OBJECT_MANAGER, "GetManagedObjects"): [],
}


@pytest.fixture
def disk(daemon: Daemon, client: Client, tmp_path: Path) -> Iterator[Path]:
    """The disk of a VM named "secret"."""
    path = image(tmp_path / "a.img")
    client.acquire("secret", path)
    yield path
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


@pytest.mark.parametrize(("interface", "member"), ARGUMENTS)
def test_denied(client: Client, disk: Path, tmp_path: Path, interface: str, member: str) -> None:
    def said(path: str, name: str, file: str) -> str:
        of = VM if path.startswith("/org/svirt1/vm/") else MANAGER
        texts = [
            text.replace("{name}", name).replace("{disk}", file).replace("{interface}", of)
            for text in ARGUMENTS[interface, member]
        ]
        return call(path, interface, member, *texts)

    places = {
        VM: [EXISTING, MISSING],
        JOB: ["/org/svirt1/job/1"],
        PROPERTIES: [ROOT, EXISTING, MISSING],
    }.get(interface, [ROOT])
    with nothing_changes(client, tmp_path):
        answers = {said(path, name, file) for path in places
                   for name, file in (("secret", str(disk)), ("nobody", "/nowhere"))}  # fmt: skip
    if member == "Set":
        # Not on the bus's list: in its own words, which name the sender's process.
        assert all(DENIED in answer and "Rejected send message" in answer for answer in answers)
        return
    # One answer to all: what exists and what does not cannot be told apart.
    (answer,) = answers
    assert f"GDBus.Error:{DENIED}: uid {NOBODY} may not " in answer
    assert "run the command as root" in answer


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
        assert f"{DENIED}: uid {NOBODY} may not" in as_nobody("/usr/bin/python3", "-c", script)


def test_what_is_open_to_all_tells_nothing(disk: Path) -> None:
    for path in (ROOT, "/", "/org", "/org/svirt1/vm"):
        assert call(path, PEER, "Ping") == "()\n"
        tree = call(path, INTROSPECTABLE, "Introspect")
        assert "<node>" in tree
        assert "secret" not in tree
    for path in (EXISTING, MISSING):
        assert DENIED in call(path, INTROSPECTABLE, "Introspect")


def test_nobody_else_may_own_the_name(daemon: Daemon) -> None:
    where = ["--system", "--dest", "org.freedesktop.DBus", "--object-path", "/org/freedesktop/DBus"]
    method = ["--method", "org.freedesktop.DBus.RequestName", NAME, "uint32 3"]
    assert DENIED in as_nobody("gdbus", "call", *where, *method)


def test_signals_reach_root_only(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """They carry the names, files and labels that a stranger may not read either."""
    script = (
        "from gi.repository import Gio, GLib\n"
        "bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)\n"
        "flags = Gio.DBusSignalFlags.NONE\n"
        "heard = lambda *a: print('heard', a[4], flush=True)\n"
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
        client.acquire("vm", image(tmp_path / "a.img"))
        client.release("vm")
        other = Client()
        other.close()
        # The bus tells everybody of a new connection, and passes signals on in order.
        heard = []
        for line in stranger.stdout:
            heard.append(line.split()[1])
            if heard[-1] == "NameOwnerChanged":
                break
        stranger.kill()
    assert heard == ["NameOwnerChanged"]
