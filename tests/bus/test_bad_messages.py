# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages that fit no member, and bytes that are no message: svirtd answers or never sees them."""

import array
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.api import contract
from svirtd.host.bus import BusError, Message, MessageFlag, Variant
from tests.attack import (
    INVALID,
    OWN,
    STANDARD,
    RawConnection,
    assert_refused,
    method_call,
    nothing_changes,
    text_argument,
)
from tests.sandbox import Sandbox
from tests.support import GROUP, JOB, MANAGER, NAME, PROPERTIES, ROOT, VM, Client, Daemon, image

OBJECT = STANDARD + "UnknownObject"
INTERFACE = STANDARD + "UnknownInterface"
METHOD = STANDARD + "UnknownMethod"
PROPERTY = STANDARD + "UnknownProperty"
READ_ONLY = STANDARD + "PropertyReadOnly"
INTROSPECT = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"


@pytest.fixture
def vm(daemon: Daemon, client: Client, tmp_path: Path) -> Iterator[str]:
    """The object of a VM that exists."""
    yield client.acquire("vm", image(tmp_path / "a.img"))
    client.release("vm")


def members() -> list[tuple[str, str, str]]:
    return [
        (interface, member, signatures[0])
        for interface, parsed in contract.load().items()
        for member, signatures in parsed.methods.items()
    ]


def place(interface: str) -> str:
    return {VM: "/org/svirt1/vm/vm", GROUP: "/org/svirt1/group/g", JOB: "/org/svirt1/job/1"}.get(
        interface, ROOT
    )


WRONG: list[tuple[str, list[Any]]] = [
    ("", []),
    ("s", ["vm"]),
    ("sss", ["a", "b", "c"]),
    ("v", [Variant("u", 1)]),
    ("s" * 255, ["x"] * 255),
    ("aa{sv}", [[]]),
    ("(s)", [["vm"]]),
]


@pytest.mark.parametrize(("interface", "member", "signature"), members())
def test_a_wrong_signature_of_every_method(
    client: Client, vm: str, tmp_path: Path, interface: str, member: str, signature: str
) -> None:
    with nothing_changes(client, tmp_path):
        for wrong, body in WRONG:
            if wrong == signature:
                continue
            refused = client.error(member, wrong, *body, path=place(interface), interface=interface)
            assert_refused(refused, INVALID, f"{interface}.{member} takes {signature!r}")


PATHS = [
    "/org/svirt1/vm/nobody", "/org/svirt1/vm/_", "/org/svirt1/vm/vm_", "/org/svirt1/vm/_76m",
    "/org/svirt1/vm/vm/more", "/org/svirt1/vm/_zz", "/org/svirt1/vm/_ff", "/org/svirt1/vm/_2e_2e",
    "/org/svirt1/other", "/org/svirt2", "/org/freedesktop/DBus", "/" + "a" * 20_000,
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[-20:])
def test_unknown_objects(client: Client, vm: str, tmp_path: Path, path: str) -> None:
    with nothing_changes(client, tmp_path):
        for interface, member, signature, body in (
            (VM, "Release", "a{sv}", [{}]),
            (VM, "OpenChannel", "sa{sv}", ["qmp", {}]),
            (PROPERTIES, "GetAll", "s", [VM]),
            (PROPERTIES, "GetAll", "s", [""]),
            (PROPERTIES, "GetAll", "s", [PEER]),
            (PROPERTIES, "Get", "ss", [VM, "State"]),
            (PROPERTIES, "Set", "ssv", [VM, "State", Variant("s", "failed")]),
            (INTROSPECT, "Introspect", "", []),
        ):
            refused = client.error(member, signature, *body, path=path, interface=interface)
            assert_refused(refused, OBJECT, "")


@pytest.mark.parametrize(
    ("path", "interface", "member", "name", "text"),
    [
        (ROOT, MANAGER, "Reboot", METHOD, "org.svirt1.Manager has no method Reboot"),
        (ROOT, MANAGER, "listVMs", METHOD, "has no method listVMs"),
        (ROOT, MANAGER, "Get", METHOD, "has no method Get"),
        (ROOT, MANAGER, "M" * 255, METHOD, "has no method M"),
        (ROOT, VM, "Release", INTERFACE, "has no interface org.svirt1.VM"),
        (ROOT, "org.svirt1.Group", "Grant", INTERFACE, "has no interface org.svirt1.Group"),
        (ROOT, "a." + "b" * 253, "X", INTERFACE, "has no interface a.b"),
        ("/", MANAGER, "ListVMs", INTERFACE, "has no interface"),
        ("/org", MANAGER, "ListVMs", INTERFACE, "has no interface"),
        ("/org/svirt1/vm", MANAGER, "ListVMs", INTERFACE, "has no interface"),
        ("/org/svirt1/vm", PROPERTIES, "GetAll", INTERFACE, "has no interface"),
        ("/org/svirt1/vm", OBJECT_MANAGER, "GetManagedObjects", INTERFACE, "has no interface"),
        ("/org/svirt1/vm/vm", MANAGER, "ListVMs", INTERFACE, "has no interface"),
        ("/org/svirt1/vm/vm", OBJECT_MANAGER, "GetManagedObjects", INTERFACE, "has no interface"),
        ("/org/svirt1/vm/vm", VM, "Kill", METHOD, "org.svirt1.VM has no method Kill"),
    ],
)  # fmt: skip
def test_unknown_members(
    client: Client, vm: str, tmp_path: Path, path: str, interface: str, member: str, name: str,
    text: str,
) -> None:  # fmt: skip
    with nothing_changes(client, tmp_path):
        assert_refused(client.error(member, "", path=path, interface=interface), name, text)


def test_properties(client: Client, vm: str, tmp_path: Path) -> None:
    def get(path: str, interface: str, name: str, member: str = "Get", *value: Any) -> BusError:
        signature = "ss" + "v" * len(value)
        return client.error(
            member, signature, interface, name, *value, path=path, interface=PROPERTIES
        )

    with nothing_changes(client, tmp_path):
        for path, interface in ((ROOT, MANAGER), (vm, VM)):
            assert_refused(get(path, interface, "Nothing"), PROPERTY, "has no property 'Nothing'")
            assert_refused(get(path, interface, ""), PROPERTY, "has no property ''")
            assert_refused(get(path, interface, "x\n" * 9999), PROPERTY, "has no property")
            assert_refused(get(path, PEER, "State"), PROPERTY, "has no property 'State'")
            assert_refused(get(path, "org.nowhere", "State"), INTERFACE, "has no interface")
            assert_refused(get(path, "\x1b" * 9999, "State"), INTERFACE, "has no interface")
            (every,) = client.call("GetAll", "s", interface, path=path, interface=PROPERTIES)
            assert set(every) == set(contract.load()[interface].properties)
            assert client.call("GetAll", "s", "", path=path, interface=PROPERTIES) == [every]
            assert client.call("GetAll", "s", PEER, path=path, interface=PROPERTIES) == [{}]
            for name, value in every.items():
                assert value.signature == contract.load()[interface].properties[name]
                one = client.call("Get", "ss", interface, name, path=path, interface=PROPERTIES)
                assert one == [value]
                refused = get(path, interface, name, "Set", value)
                assert_refused(refused, READ_ONLY, name, "is read-only")
                assert_refused(get(path, interface, name, "Set", Variant("ai", [1])), READ_ONLY)
            assert_refused(get(path, interface, "Nothing", "Set", Variant("s", "")), PROPERTY)
        assert_refused(get(vm, MANAGER, "Version"), INTERFACE, "has no interface")
        assert_refused(get(ROOT, VM, "State"), INTERFACE, "has no interface")


def test_unknown_vms(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    with nothing_changes(client, tmp_path):
        for member, signature, body in (
            ("Release", "sa{sv}", ["nobody", {}]),
            ("Forget", "sa{sv}", ["nobody", {}]),
            ("GetVM", "s", ["nobody"]),
        ):
            refused = client.error(member, signature, *body)
            assert_refused(refused, OWN + "NoSuchVM", "no VM is named 'nobody'")


def test_processes_that_are_no_vms(client: Client, vm: str, tmp_path: Path) -> None:
    with nothing_changes(client, tmp_path):
        for pid in (0, 1, os.getpid(), 2**22 + 1, 2**31, 2**32 - 1):
            refused = client.error("GetVMByPID", "u", pid)
            assert_refused(refused, OWN + "NoSuchVM", f"process {pid}")


def test_without_an_interface_the_member_decides(client: Client, sandbox: Sandbox, vm: str) -> None:
    raw = RawConnection(sandbox.bus_address)
    try:
        raw.sock.sendall(method_call(2, NAME, ROOT, "", "ListVMs"))
        kind, answer = raw.reply(2)
        assert kind == 2
        assert b"/org/svirt1/vm/vm" in answer
        raw.sock.sendall(method_call(3, NAME, ROOT, "", "Nonsense"))
        kind, answer = raw.reply(3)
        assert kind == 3
        assert METHOD.encode() in answer
        raw.sock.sendall(method_call(4, NAME, vm, "", "GetAll", "s", text_argument(VM.encode())))
        kind, answer = raw.reply(4)
        assert kind == 2
        assert b"ImageContext" in answer
    finally:
        raw.close()


def test_messages_that_want_no_reply_get_none(
    client: Client, sandbox: Sandbox, vm: str, tmp_path: Path
) -> None:
    raw = RawConnection(sandbox.bus_address)
    with nothing_changes(client, tmp_path):
        try:
            nobody = text_argument(b"nobody")
            raw.sock.sendall(
                method_call(2, NAME, ROOT, MANAGER, "ListVMs", flags=1)
                + method_call(3, NAME, ROOT, MANAGER, "Nonsense", flags=1)
                + method_call(4, NAME, ROOT, MANAGER, "GetVM", "s", nobody, flags=1)
                + method_call(5, NAME, ROOT, MANAGER, "GetVM", flags=1)
                + method_call(6, NAME, "/nowhere", MANAGER, "GetVM", flags=1)
            )
            client.vms()  # asked and answered after those
            raw.sock.sendall(method_call(7, NAME, ROOT, MANAGER, "ListVMs"))
            assert raw.answered_until(7) == [7]
        finally:
            raw.close()


def test_no_reply_is_done_all_the_same(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    client.acquire("vm", image(tmp_path / "a.img"))
    client.connection.send(
        Message(destination=NAME, path=ROOT, interface=MANAGER, member="Release",
                signature="sa{sv}", body=["vm", {}], flags=MessageFlag.NO_REPLY_EXPECTED)
    )  # fmt: skip
    client.error("Release", "sa{sv}", "vm", {})  # waits for the lock of the name
    assert client.vms() == {}


NAME_BODY = text_argument(b"vm")
BROKEN: dict[str, bytes] = {
    "NUL in a string": method_call(2, NAME, ROOT, MANAGER, "GetVM", "s", text_argument(b"v\0m")),
    "not UTF-8": method_call(2, NAME, ROOT, MANAGER, "GetVM", "s", text_argument(b"v\xffm")),
    "surrogate": method_call(2, NAME, ROOT, MANAGER, "GetVM", "s", text_argument(b"\xed\xa0\x80")),
    "no NUL at the end": method_call(2, NAME, ROOT, MANAGER, "GetVM", "s", NAME_BODY[:-1] + b"x"),
    "short body": method_call(2, NAME, ROOT, MANAGER, "GetVM", "ss", NAME_BODY),
    "long body": method_call(2, NAME, ROOT, MANAGER, "GetVM", "s", NAME_BODY * 2),
    "bad signature": method_call(2, NAME, ROOT, MANAGER, "GetVM", "a{", NAME_BODY),
    "bad path": method_call(2, NAME, "/org//svirt1", MANAGER, "GetVM", "s", NAME_BODY),
    "bad member": method_call(2, NAME, ROOT, MANAGER, "Get VM", "s", NAME_BODY),
    "bad interface": method_call(2, NAME, ROOT, "svirt", "GetVM", "s", NAME_BODY),
    "no member": method_call(2, NAME, ROOT, MANAGER, "", "s", NAME_BODY),
    "serial 0": method_call(0, NAME, ROOT, MANAGER, "GetVM", "s", NAME_BODY),
    "type 0": method_call(2, NAME, ROOT, MANAGER, "GetVM", "s", NAME_BODY, kind=0),
    "array too long": method_call(2, NAME, ROOT, MANAGER, "Acquire", "aas", b"\xff\xff\xff\xff"),
    "fds that did not come": method_call(
        2, NAME, ROOT, MANAGER, "ListVMs", extra=b"\x09\x01u\0\x05\0\0\0"
    ),
    "garbage": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_messages_end_their_sender_only(
    client: Client, sandbox: Sandbox, vm: str, tmp_path: Path, what: str
) -> None:
    raw = RawConnection(sandbox.bus_address)
    with nothing_changes(client, tmp_path):
        try:
            raw.sock.sendall(BROKEN[what])
            assert raw.ended()
        finally:
            raw.close()


def test_odd_messages_that_are_right(client: Client, sandbox: Sandbox, vm: str) -> None:
    raw = RawConnection(sandbox.bus_address)
    try:
        # Big-endian, and flags that nobody knows.
        raw.sock.sendall(
            method_call(2, NAME, ROOT, MANAGER, "GetVM", "s", text_argument(b"vm", ">"), order=">")
            + method_call(3, NAME, ROOT, MANAGER, "GetVM", "s", NAME_BODY, flags=0xF8)
        )
        for serial in (2, 3):
            kind, answer = raw.reply(serial)
            assert kind == 2, answer
            assert b"/org/svirt1/vm/vm" in answer
    finally:
        raw.close()


def test_messages_that_are_ignored_hold_up_nobody(
    client: Client, sandbox: Sandbox, vm: str, tmp_path: Path
) -> None:
    raw = RawConnection(sandbox.bus_address)
    disk = image(tmp_path / "b.img")
    try:
        with open(disk, "r+b") as file, nothing_changes(client, tmp_path):
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))]
            # A type that is not known yet; a signal and replies to nothing, one with a descriptor.
            raw.sock.sendall(
                method_call(2, NAME, ROOT, MANAGER, "GetVM", "s", NAME_BODY, kind=9)
                + method_call(3, NAME, ROOT, MANAGER, "VMRemoved", "s", NAME_BODY, kind=4)
            )
            unix_fds = b"\x09\x01u\0\x01\0\0\0"
            raw.sock.sendmsg(
                [method_call(4, NAME, ROOT, MANAGER, "VMAdded", kind=4, extra=unix_fds)], rights
            )
            raw.sock.sendall(method_call(5, NAME, ROOT, MANAGER, "GetVM", "s", NAME_BODY))
            assert raw.reply(5)[0] == 2
    finally:
        raw.close()


def test_descriptors_stay_with_their_message(
    client: Client, sandbox: Sandbox, vm: str, tmp_path: Path
) -> None:
    """Calls in both byte orders, with and without descriptors, one right behind the other."""
    raw = RawConnection(sandbox.bus_address)
    disk = image(tmp_path / "b.img")
    by_fd = _one_resource_by_fd(b"odd")
    ours = b"\x09\x01u\0" + struct.pack("<I", 1)
    theirs = b"\x09\x01u\0" + struct.pack(">I", 2)
    name = text_argument(b"vm", ">")
    try:
        with open(disk, "rb") as file, open("/dev/null") as null, nothing_changes(client, tmp_path):
            for serial in range(10, 70, 3):
                swapped = method_call(serial, NAME, ROOT, MANAGER, "GetVM", "s", name, order=">")
                with_two = method_call(
                    serial + 1, NAME, ROOT, MANAGER, "ListVMs", order=">", extra=theirs
                )
                acquire = method_call(
                    serial + 2, NAME, ROOT, MANAGER, "Plan", "saa{sv}a{sv}", by_fd, extra=ours
                )
                raw.sock.sendall(swapped)
                _send_fds(raw.sock, with_two, [null.fileno()] * 2)
                _send_fds(raw.sock, acquire, [file.fileno()])
            for serial in range(10, 70, 3):
                assert raw.reply(serial)[0] == 2
                assert raw.reply(serial + 1)[0] == 2
                # It was this descriptor that came with it: of a file, and for reading only.
                kind, answer = raw.reply(serial + 2)
                assert kind == 3
                assert b"the passed descriptor is not open for reading and writing" in answer
    finally:
        raw.close()


def _one_resource_by_fd(name: bytes) -> bytes:
    """The body (name, [{"fd": handle 0}], {}) of Acquire, little-endian."""
    body = text_argument(name)
    body += b"\0" * (-len(body) % 4)
    entry = text_argument(b"fd") + b"\x01h\0"
    entry += b"\0" * (-len(entry) % 4) + struct.pack("<I", 0)
    # Length of the outer array, of the dictionary in it, and the dictionary at 8 bytes.
    start = len(body)
    pad = b"\0" * (-(start + 8) % 8)
    body += struct.pack("<II", 4 + len(pad) + len(entry), len(entry)) + pad + entry
    body += b"\0" * (-len(body) % 4)
    body += struct.pack("<I", 0)
    return body + b"\0" * (-len(body) % 8)


def _send_fds(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    assert sock.sendmsg([data], rights) == len(data)


def test_an_unknown_header_field_is_ignored(client: Client, sandbox: Sandbox, vm: str) -> None:
    """As the specification asks: later versions of D-Bus may add fields."""
    raw = RawConnection(sandbox.bus_address)
    try:
        raw.sock.sendall(
            method_call(2, NAME, ROOT, MANAGER, "GetVM", "s", NAME_BODY, extra=b"\x20\x01y\0\x01")
            + method_call(3, NAME, ROOT, MANAGER, "GetVM", "s", NAME_BODY)
        )
        for serial in (2, 3):
            assert raw.reply(serial)[0] == 2
    finally:
        raw.close()


def test_deeply_nested_values(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    deep: Variant = Variant("s", "x")
    for _ in range(30):
        deep = Variant("v", deep)
    with nothing_changes(client, tmp_path):
        refused = client.error("Acquire", "saa{sv}a{sv}", "vm", [], {"goal": deep})
        assert_refused(refused, INVALID, "has type 'v'")
