# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that others wrote: busctl and gdbus live through it all."""

import json
import select
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from svirtd.api import contract
from tests.bus.manual import examples
from tests.support import (
    DEADLINE_S,
    MANAGER,
    NAME,
    ROOT,
    VM,
    Client,
    Daemon,
    image,
    label,
    svirt_units,
    wait_for,
)

QEMU = ["/usr/bin/qemu-system-x86_64", "-machine", "none", "-nodefaults", "-nographic", "-S"]
ANNOTATION = "org.freedesktop.DBus.Property.EmitsChangedSignal"


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def busctl(verb: str, *arguments: str) -> Any:
    """Run busctl and return the data of its JSON."""
    return json.loads(run("busctl", "--json=short", verb, NAME, *arguments))["data"]


def gdbus(path: str, method: str, *arguments: str) -> str:
    where = ["--system", "--dest", NAME, "--object-path", path]
    return run("gdbus", "call", *where, "--method", method, *arguments).strip()


@contextmanager
def listening(argv: Sequence[str], ready: Callable[[IO[str]], object]) -> Iterator[IO[str]]:
    """Run a program that shows signals; `ready` returns when it does, given what it prints."""
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        # One that stays silent is ended, and with it whoever waits for its next line.
        deadline = threading.Timer(3 * DEADLINE_S, process.kill)
        deadline.start()
        try:
            ready(process.stdout)
            yield process.stdout
        finally:
            deadline.cancel()
            deadline.join()
            process.kill()


def shows_calls(lines: IO[str]) -> None:
    """Call until the monitor prints: not every busctl says when it has begun to listen."""

    def shown() -> bool:
        busctl("call", ROOT, MANAGER, "ListVMs")
        return bool(select.select([lines], [], [], 0.1)[0])

    wait_for("the monitor shows a call", shown)


def until(lines: IO[str], what: str) -> list[str]:
    found = []
    for line in lines:
        found.append(line)
        if what in line:
            break
    return found


def test_busctl(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    before = label(disk)
    monitor = ["busctl", "--json=short", "monitor", NAME]
    with listening(monitor, shows_calls) as lines:
        resource = ["1", "2", "path", "s", str(disk), "access", "s", "exclusive"]
        path = busctl("call", ROOT, MANAGER, "Acquire", "saa{sv}a{sv}", "b 1", *resource, "0")[0]
        assert path == "/org/svirt1/vm/b_201"
        assert label(disk) == busctl("get-property", path, VM, "ImageContext")
        rows = busctl("call", ROOT, MANAGER, "ListVMs")[0]
        assert rows == [["b 1", "labelled", "", 0, path]]
        assert busctl("call", ROOT, MANAGER, "GetVM", "s", "b 1") == [path]
        owners = busctl("call", ROOT, MANAGER, "FindOwners", "s", str(disk))[0]
        assert owners[0]["vm"] == {"type": "s", "data": "b 1"}
        tree = run("busctl", "tree", "--list", NAME).split()
        folders = ["/org/svirt1/group", "/org/svirt1/job", "/org/svirt1/vm"]
        assert tree == ["/", "/org", ROOT, *folders, path]
        shown = {
            row[0]: row[1:]
            for row in table(run("busctl", "--no-legend", "introspect", NAME, path, VM))
        }
        assert shown[".Release"] == ["method", "a{sv}", "-", "-"]
        assert shown[".OpenChannel"] == ["method", "sa{sv}", "h", "-"]
        assert shown[".Name"] == ["property", "s", '"b 1"', "const"]
        assert shown[".State"] == ["property", "s", '"labelled"', "emits-change"]
        for each in tree:
            assert "org.freedesktop.DBus.Introspectable" in run("busctl", "introspect", NAME, each)
        busctl_void("call", path, VM, "Release", "a{sv}", "0")
        shown_lines = until(lines, '"VMRemoved"')
        heard = [json.loads(line) for line in shown_lines if line.startswith("{")]
    signals = [message["member"] for message in heard if message["type"] == "signal"]
    assert signals == [
        "InterfacesAdded",
        "VMAdded",
        "PropertiesChanged",
        "InterfacesRemoved",
        "VMRemoved",
    ]
    assert label(disk) == before
    assert busctl("call", ROOT, MANAGER, "ListVMs") == [[]]


def busctl_void(verb: str, *arguments: str) -> None:
    """A call without a result."""
    run("busctl", verb, NAME, *arguments)


def table(text: str) -> list[list[str]]:
    return [shlex.split(line, posix=False) for line in text.splitlines()]


def test_busctl_shows_every_member(daemon: Daemon, client: Client) -> None:
    client.acquire("vm")
    for path, interface in ((ROOT, MANAGER), ("/org/svirt1/vm/vm", VM)):
        shown = {
            row[0]
            for row in table(run("busctl", "--no-legend", "introspect", NAME, path, interface))
        }
        parsed = contract.load()[interface]
        assert shown == {
            f".{name}" for name in (*parsed.methods, *parsed.signals, *parsed.properties)
        }
    client.release("vm")


def test_gdbus(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    before = label(disk)
    monitor = ["gdbus", "monitor", "--system", "--dest", NAME]
    with listening(monitor, lambda lines: until(lines, "is owned by")) as lines:
        launched = gdbus(
            ROOT, f"{MANAGER}.Launch", "'g'", str(QEMU), f"[{{'path': <'{disk}'>}}]", "{}"
        )
        path = "/org/svirt1/vm/g"
        assert launched == f"(objectpath '{path}', 'svirt-g.service')"
        assert svirt_units() == ["svirt-g.service"]
        get = "org.freedesktop.DBus.Properties.Get"
        assert gdbus(path, get, VM, "State") == "(<'running'>,)"
        assert gdbus(path, get, VM, "ImageContext") == f"(<'{label(disk)}'>,)"
        rows = gdbus(ROOT, f"{MANAGER}.ListVMs")
        assert rows == f"([('g', 'running', 'svirt-g.service', uint32 0, objectpath '{path}')],)"
        where = ["--system", "--dest", NAME, "--object-path", "/"]
        tree = run("gdbus", "introspect", *where, "--recurse")
        for part in (
            "node /org/svirt1 {",
            f"node {path} {{",
            f"interface {MANAGER} {{",
            "h stream",
        ):
            assert part in tree, part
        where[-1] = path
        assert "readonly s State = 'running';" in run("gdbus", "introspect", *where)
        assert gdbus(path, f"{VM}.Release", "{}") == "()"
        heard = until(lines, ".VMRemoved")
    words = [line.split()[1].rpartition(".")[2] for line in heard if line.startswith("/org/svirt1")]
    assert words == [
        "InterfacesAdded",
        "VMAdded",
        "PropertiesChanged",
        "InterfacesRemoved",
        "VMRemoved",
    ]
    assert f"{ROOT}: {MANAGER}.VMAdded ('g', objectpath '{path}')\n" in heard
    assert label(disk) == before
    wait_for("the end of the unit", lambda: not svirt_units())


def test_introspection_of_every_object_is_the_contract(daemon: Daemon, client: Client) -> None:
    client.acquire("vm")
    client.call("CreateGroup", "sa{sv}", "team", {})
    paths = {
        "/": ["org"],
        "/org": ["svirt1"],
        ROOT: ["group", "job", "vm"],
        "/org/svirt1/group": ["team"],
        "/org/svirt1/group/team": [],
        "/org/svirt1/job": [],
        "/org/svirt1/vm": ["vm"],
        "/org/svirt1/vm/vm": [],
    }
    for path, children in paths.items():
        (text,) = client.call(
            "Introspect", path=path, interface="org.freedesktop.DBus.Introspectable"
        )
        for interface in contract.interfaces_of(path):
            assert contract.load()[interface].text in text
        assert text.count("<interface ") == len(contract.interfaces_of(path))
        root = ElementTree.fromstring(text)
        assert root.tag == "node"
        assert [node.get("name") for node in root.findall("node")] == children
    client.call("DeleteGroup", "sa{sv}", "team", {})
    client.release("vm")


def test_the_manual_pages_examples(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """What org.svirt1(5) says is what works, word for word but for the disk."""
    disk = image(tmp_path / "a.img")
    before = label(disk)
    by_busctl, by_gdbus = examples("EXAMPLES")
    for commands in (by_busctl, by_gdbus):
        said = run("/bin/sh", "-e", "-c", commands.replace("/srv/vm/web.raw", str(disk)))
        assert "/org/svirt1/vm/web" in said
    assert client.vms() == {"web": "labelled"}
    client.release("web")
    assert label(disk) == before
