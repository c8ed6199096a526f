#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs a virtual machine isolated from all others, by D-Bus alone: an example to copy from.

    isolated-vm.py NAME DISK

Starts a QEMU with this disk image under a label of its own, and shows what becomes of it until it
ends or Ctrl-C stops it; then the disk has its earlier label again. For any user: where somebody has
to agree first, polkit asks. "WRITING A CLIENT" in org.svirt1(5) has the reasons.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from gi.repository import Gio, GLib

NAME, ROOT, MANAGER, VM = "org.svirt1", "/org/svirt1", "org.svirt1.Manager", "org.svirt1.VM"
PROPERTIES = "org.freedesktop.DBus.Properties"
AGENT = "/usr/bin/pkttyagent"  # comes with polkit
# A dialog may wait for somebody who has to come and type a password: D-Bus's 25 s are too short.
TIMEOUT_MS = 5 * 60 * 1000
MONITOR_TRIES, MONITOR_PAUSE_S = 300, 0.1

# svirtd puts in the file of the resource whose id is "disk", and the VM's own folder for sockets.
QEMU = [
    *("/usr/bin/qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "64"),
    *("-drive", "file={resource.disk},format=raw,if=virtio"),
    *("-qmp", "unix:{runtime}/qmp,server=on,wait=off"),
]


class Tool:
    """One VM: what is asked for it, and what is heard of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = ""
        self.gone = True
        self.away = False
        self.until_gone = GLib.MainLoop()
        self.cancel = Gio.Cancellable()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # the main loop's, and not Python's
            GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, number, self.interrupted)
        self.bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
        # Keeps up with every object and what all may know of it, over a restart of svirtd as well;
        # to make it starts svirtd. What only the owner may know has to be asked for.
        self.objects = Gio.DBusObjectManagerClient.new_sync(
            self.bus, Gio.DBusObjectManagerClientFlags.NONE, NAME, ROOT, None, None, None
        )
        self.objects.connect("object-added", self.added)
        self.objects.connect("interface-proxy-properties-changed", self.changed)
        self.objects.connect("object-removed", self.removed)
        self.objects.connect("notify::name-owner", self.came_or_went)

    def call(
        self, path: str, interface: str, member: str, signature: str = "()", *values: Any
    ) -> tuple[Any, Any]:
        """Call a method; returns what it returns, and the descriptors in it. Raises GLib.Error.

        Signals are heard meanwhile, and Ctrl-C works. In a program with a window the main loop runs
        anyway: there the callback goes on with the answer, and nothing waits for it.
        """
        waits, answers = GLib.MainLoop(), []

        def answered(_bus: Any, result: Any) -> None:
            answers.append(result)
            waits.quit()

        self.bus.call_with_unix_fd_list(
            *(NAME, path, interface, member, GLib.Variant(signature, values), None),
            # Without this flag nobody is asked, and the answer is InteractiveAuthorizationRequired.
            *(Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION, TIMEOUT_MS),
            *(None, self.cancel, answered),
        )
        waits.run()
        results, descriptors = self.bus.call_with_unix_fd_list_finish(answers[0])
        return results.unpack(), descriptors

    def check(self, unprotected: bool) -> None:
        """See what this svirtd can do, and whether its labels keep anybody out."""
        (told,), _ = self.call(ROOT, PROPERTIES, "GetAll", "(s)", MANAGER)
        missing = {"launch", "channels", "caller-lifetime"} - set(told["Features"])
        if missing:
            sys.exit(f"svirtd {told['Version']} does not have: {', '.join(sorted(missing))}")
        print(f"svirtd {told['Version']}, SELinux is {told['SELinuxMode']}")
        if not told["Enforced"]:
            print("NOT ENFORCED: nothing keeps VMs apart on this host", file=sys.stderr)
            if not unprotected:
                sys.exit("Nothing was started; with --unprotected it would be.")

    def launch(self, disk: str) -> None:
        """Have the disk labelled and QEMU started under its label: both, or neither."""
        resource = {"id": GLib.Variant("s", "disk"), "path": GLib.Variant("s", disk)}
        options = {
            # Whatever becomes of this program: once it has left the bus, the VM is stopped.
            "lifetime": GLib.Variant("s", "caller"),
            "properties": GLib.Variant("a{sv}", {"TasksMax": GLib.Variant("t", 64)}),
        }
        values = (self.name, QEMU, [resource], options)
        (self.path, unit), _ = self.call(ROOT, MANAGER, "Launch", "(sasaa{sv}a{sv})", *values)
        (context,), _ = self.call(self.path, PROPERTIES, "Get", "(ss)", VM, "ProcessContext")
        print(f"{self.name}: runs in {unit} as {context}")

    def monitor(self, command: str) -> Any:
        """Ask QEMU's monitor.

        svirtd connects for us, at the VM's own level: the label that keeps others from the VM would
        cut off a socket of ours, too.
        """
        for left in reversed(range(MONITOR_TRIES)):
            try:
                (index,), descriptors = self.call(
                    self.path, VM, "OpenChannel", "(sa{sv})", "qmp", {}
                )
                break
            except GLib.Error as error:
                # QEMU makes the socket a moment after its start.
                if error_name(error) != "org.svirt1.Error.ResourceRefused" or not left:
                    raise
            time.sleep(MONITOR_PAUSE_S)
        with socket.socket(fileno=descriptors.get(index)) as stream, stream.makefile("rw") as lines:
            answers = (
                one for one in map(json.loads, iter(lines.readline, "")) if "event" not in one
            )
            next(answers)  # the greeting
            for asked in ("qmp_capabilities", command):
                print(json.dumps({"execute": asked}), file=lines, flush=True)
                answer = next(answers)
        return answer["return"]

    def wait(self) -> None:
        """Wait until the VM has ended, or for Ctrl-C."""
        if not (self.gone or self.cancel.is_cancelled()):
            self.until_gone.run()

    def stop(self) -> None:
        """Have QEMU ended and the disk's earlier label put back, unless that has happened."""
        self.cancel.reset()
        if not self.gone:
            self.call(self.path, VM, "Release", "(a{sv})", {})
            self.wait()

    def interrupted(self) -> bool:
        self.cancel.cancel()
        self.until_gone.quit()
        return True  # and the next time

    # --- what is heard, of every VM of the host

    def state_of_ours(self, one: Any) -> str:
        """The state of our VM, empty if this is another object."""
        vm = one.get_interface(VM)
        if vm is None or vm.get_cached_property("Name").unpack() != self.name:
            return ""
        return str(vm.get_cached_property("State").unpack())

    def added(self, _objects: Any, one: Any) -> None:
        if state := self.state_of_ours(one):
            self.gone = False
            print(f"{self.name}: {state}")

    def changed(self, _objects: Any, one: Any, _vm: Any, values: Any, _others: Any) -> None:
        # With values comes what all may know; the others have changed, too, and can be asked for.
        if "State" in values.unpack() and (state := self.state_of_ours(one)):
            print(f"{self.name}: {state}")

    def removed(self, objects: Any, one: Any) -> None:
        # Without svirtd on the bus there are no objects: that says nothing of the VM.
        if objects.get_name_owner() and self.state_of_ours(one):
            self.ended()

    def came_or_went(self, objects: Any, _property: Any) -> None:
        was_away, self.away = self.away, objects.get_name_owner() is None
        if self.away and not was_away:
            # Neither the VM nor its label needs svirtd, and the next call starts it again.
            print("svirtd is away; what runs goes on under its label")
        elif was_away and not self.away:
            print("svirtd is back")
            if self.path and not self.gone and objects.get_object(self.path) is None:
                self.ended()

    def ended(self) -> None:
        print(f"{self.name}: gone")
        self.gone = True
        self.until_gone.quit()


@contextlib.contextmanager
def asking_here() -> Iterator[None]:
    """Have polkit ask on this terminal. On a desktop an agent is there already."""
    if not (sys.stdin.isatty() and os.path.exists(AGENT)):
        yield
        return
    ready, theirs = os.pipe()
    agent = subprocess.Popen([AGENT, f"--notify-fd={theirs}"], pass_fds=[theirs])
    os.close(theirs)
    os.read(ready, 1)  # its end, once polkit knows the agent
    os.close(ready)
    try:
        yield
    finally:
        agent.terminate()
        agent.wait()


def error_name(error: GLib.Error) -> str:
    """The D-Bus name of an error: what a program goes by."""
    return str(Gio.DBusError.get_remote_error(error) or "")


def explained(error: GLib.Error) -> str:
    """What to tell the user: svirtd's text says what was found and what to do."""
    if error.matches(Gio.io_error_quark(), Gio.IOErrorEnum.CANCELLED):
        return "Given up; svirtd takes back what was begun."
    name = error_name(error)
    text = error.message.removeprefix(f"GDBus.Error:{name}: ")
    match name.rpartition(".")[2]:
        case "ResourceBusy":
            return f"The disk is taken. {text}"  # names the VM that has it
        case "VMExists":
            return f"Choose another name. {text}"
        case "AccessDenied":  # by polkit, by whoever was asked, or by SELinux's policy
            return f"Not allowed. {text}"
        case "InteractiveAuthorizationRequired":  # nobody was asked: see call()
            return f"An administrator has to allow this. {text}"
        case "NotEnforcing":
            return f"Nothing would keep the VM apart. {text}"
        case "UnknownObject":
            return "The VM has ended; the log of its unit says why."
        case "ServiceUnknown" | "NameHasNoOwner":
            return "There is no svirtd on this host."
        case _:
            return str(text)


def main() -> None:
    """Run the VM that the command line names."""
    parser = argparse.ArgumentParser(description="Runs a virtual machine isolated from all others.")
    parser.add_argument("name", help="of the VM, unique on this host")
    parser.add_argument("disk", type=os.path.abspath, help="raw image that it gets for itself")
    parser.add_argument("--unprotected", action="store_true", help="go on if nothing is enforced")
    given = parser.parse_args()
    try:
        tool = Tool(given.name)
        tool.check(given.unprotected)
        with asking_here():
            tool.launch(given.disk)
        try:
            print(f"{given.name}: QEMU says {tool.monitor('query-status')['status']}")
            print("Ctrl-C stops it")
            tool.wait()
        finally:
            tool.stop()
    except GLib.Error as error:
        sys.exit(explained(error))


if __name__ == "__main__":
    main()
