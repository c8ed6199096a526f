# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program of somebody else's: the whole story of one VM through GLib's D-Bus library.

Run by the system's Python, with the disk as its argument; prints what it saw as JSON.
"""

import importlib
import json
import os
import socket
import sys
import time
from typing import Any

NAME = "org.svirt1"
QEMU = ["/usr/bin/qemu-system-x86_64", "-machine", "none", "-nodefaults", "-nographic", "-S"]
QMP = ["-qmp", "unix:{runtime}/qmp,server=on,wait=off"]
DEADLINE_S = 20.0


def story(disk: str) -> dict[str, Any]:
    """Live through it; returns what was seen on the way."""
    gio: Any = importlib.import_module("gi.repository.Gio")
    glib: Any = importlib.import_module("gi.repository.GLib")
    context = glib.MainContext.default()
    events: list[list[Any]] = []

    def wait_for(what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while what not in [event[0] for event in events]:
            context.iteration(False)
            if time.monotonic() > end:
                raise SystemExit(f"not seen: {what}; seen: {events}")

    system, flags = gio.BusType.SYSTEM, gio.DBusProxyFlags.NONE
    objects = gio.DBusObjectManagerClient.new_for_bus_sync(
        system, gio.DBusObjectManagerClientFlags.NONE, NAME, "/org/svirt1", None, None, None
    )
    objects.connect(
        "object-added", lambda _, o: events.append(["object-added", o.get_object_path()])
    )
    objects.connect(
        "object-removed", lambda _, o: events.append(["object-removed", o.get_object_path()])
    )
    objects.connect(
        "interface-proxy-properties-changed",
        lambda _m, _o, _p, changed, _i: events.append(["changed", changed.unpack()]),
    )
    manager = gio.DBusProxy.new_for_bus_sync(
        system, flags, None, NAME, "/org/svirt1", "org.svirt1.Manager", None
    )
    manager.connect("g-signal", lambda _, _s, name, args: events.append([name, *args.unpack()]))

    def call(proxy: Any, member: str, signature: str, *arguments: Any) -> Any:
        packed = glib.Variant(f"({signature})", arguments)
        return proxy.call_sync(member, packed, 0, -1, None).unpack()

    resource = {"path": glib.Variant("s", disk), "access": glib.Variant("s", "exclusive")}
    options = {"properties": glib.Variant("a{sv}", {"TasksMax": glib.Variant("t", 64)})}
    path, unit = call(
        manager, "Launch", "sasaa{sv}a{sv}", "gio", [*QEMU, *QMP], [resource], options
    )
    wait_for("object-added")
    vm = objects.get_object(path).get_interface("org.svirt1.VM")
    # The signal went to everybody, with what all may know; the rest is asked for.
    asked = glib.Variant("(s)", ("org.svirt1.VM",))
    reply = vm.call_sync("org.freedesktop.DBus.Properties.GetAll", asked, 0, -1, None)
    (properties,) = reply.unpack()

    def greeting() -> Any:
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                packed = glib.Variant("(sa{sv})", ("qmp", {}))
                reply, fds = vm.call_with_unix_fd_list_sync(
                    "OpenChannel", packed, 0, -1, None, None
                )
                break
            except glib.Error:  # QEMU has not made its socket yet
                if time.monotonic() > end:
                    raise
        with (
            socket.socket(fileno=fds.get(reply.unpack()[0])) as channel,
            channel.makefile() as lines,
        ):
            return json.loads(lines.readline())

    seen = {
        "path": path,
        "unit": unit,
        "properties": properties,
        "label": os.getxattr(disk, "security.selinux").rstrip(b"\0").decode(),
        "greeting": greeting(),
        "list": call(manager, "ListVMs", ""),
        "by name": call(manager, "GetVM", "s", "gio"),
        "by pid": call(manager, "GetVMByPID", "u", properties["MainPID"]),
        "manager": sorted(manager.get_cached_property_names()),
        "in use": manager.get_cached_property("PairsTotal").unpack(),
    }
    vm.call_sync("Release", glib.Variant("(a{sv})", ({},)), 0, -1, None)
    wait_for("object-removed")
    wait_for("VMRemoved")
    seen["events"] = events
    seen["left"] = [o.get_object_path() for o in objects.get_objects()]
    return seen


if __name__ == "__main__":
    json.dump(story(sys.argv[1]), sys.stdout)
