# SPDX-License-Identifier: LGPL-2.1-or-later
"""Groups: what their members share, and nobody else has."""

import os
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from svirtd.core.mcs import parse_context
from svirtd.host.bus import Variant
from tests.groups import ACQUIRE, in_groups, shared, view
from tests.support import (
    GROUP,
    ROOT,
    VM,
    Client,
    Daemon,
    image,
    label,
    unwrap,
    wait_for,
)

ERROR = "org.svirt1.Error."
MEMBERS = ("one", "two", "three")


@pytest.fixture
def group(daemon: Daemon, client: Client) -> Iterator[int]:
    """A group named "g"; the category that it owns."""
    assert client.call("CreateGroup", "sa{sv}", "g", {}) == [f"{ROOT}/group/g"]
    category = view(client)["Category"]
    assert 768 <= int(category.removeprefix("c")) <= 1023
    yield int(category.removeprefix("c"))
    client.call("DeleteGroup", "sa{sv}", "g", {})
    assert client.call("ListGroups") == [[]]
    assert client.manager()["GroupCategoriesInUse"] == 0


@pytest.mark.parametrize("order", list(permutations(MEMBERS)))
def test_labelled_with_the_first_hold_and_restored_with_the_last(
    client: Client, group: int, tmp_path: Path, order: tuple[str, ...]
) -> None:
    disk = image(tmp_path / "a.img")
    os.setxattr(disk, "security.selinux", b"system_u:object_r:virt_image_t:s0\0")
    before = os.getxattr(disk, "security.selinux")
    for name in MEMBERS:
        client.call("Acquire", ACQUIRE, name, shared(disk), in_groups("g"))
        assert label(disk) == f"system_u:object_r:svirt_image_t:s0:c{group}"
        vm = client.properties(name)
        pair = parse_context(vm["ImageContext"]).categories
        assert parse_context(vm["ProcessContext"]).categories == pair | {group}
        assert vm["Groups"] == ["g"]
    assert view(client)["Members"] == sorted(MEMBERS)
    refused = client.error("Acquire", ACQUIRE, "fourth", shared(disk), {})
    assert "the VM is not in group 'g'" in refused.text
    for number, name in enumerate(order, start=1):
        client.release(name)
        there = os.getxattr(disk, "security.selinux")
        assert (there == before) == (number == len(order))
    os.removexattr(disk, "security.selinux")


def test_read_by_all_members(client: Client, group: int, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    for name in MEMBERS:
        client.call("Acquire", ACQUIRE, name, shared(disk, access="readonly"), in_groups("g"))
        assert label(disk) == f"system_u:object_r:virt_content_t:s0:c{group}"
    refused = client.error("Acquire", ACQUIRE, "fourth", shared(disk), in_groups("g"))
    assert refused.name == ERROR + "ResourceBusy"
    for name in MEMBERS:
        client.release(name)
    assert label(disk) is None


def test_a_vm_that_has_nothing_but_the_group(client: Client, group: int) -> None:
    """Somebody may run it under its label, with the group's category: it is in the group."""
    client.call("Acquire", ACQUIRE, "bare", [], in_groups("g") | {"persistent": Variant("b", True)})
    assert client.properties("bare")["State"] == "labelled"
    assert view(client)["Members"] == ["bare"]
    refused = client.error("DeleteGroup", "sa{sv}", "g", {})
    assert refused.name == ERROR + "ResourceBusy"
    refused = client.error("Acquire", ACQUIRE, "bare", [], {})
    assert refused.name == ERROR + "VMExists"
    client.release("bare")
    assert view(client)["Members"] == []
    assert client.properties("bare")["Groups"] == []
    client.call("Forget", "sa{sv}", "bare", {})


def test_a_persistent_vm_joins_and_leaves(client: Client, group: int, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    vm = f"{ROOT}/vm/kept"
    client.acquire("kept", persistent=Variant("b", True))
    member: dict[str, Any] = {"path": vm, "interface": VM}
    client.call("JoinGroup", "sa{sv}", "g", {}, **member)
    assert client.properties("kept")["LastingGroups"] == ["g"]
    assert client.error("DeleteGroup", "sa{sv}", "g", {}).name == ERROR + "ResourceBusy"
    client.call("Acquire", ACQUIRE, "kept", shared(disk), {})
    for member_name in ("LeaveGroup", "JoinGroup"):
        other = "g" if member_name == "LeaveGroup" else "other"
        if other == "other":
            client.call("CreateGroup", "sa{sv}", "other", {})
        refused = client.error(member_name, "sa{sv}", other, {}, **member)
        assert refused.name == ERROR + "Failed"
        assert "a process keeps the label that it was started with" in refused.text
    later = {"when": Variant("s", "next-start")}
    client.call("LeaveGroup", "sa{sv}", "g", later, **member)
    client.call("JoinGroup", "sa{sv}", "other", later, **member)
    now = client.properties("kept")
    assert (now["Groups"], now["LastingGroups"]) == (["g"], ["other"])
    client.release("kept")
    client.call("Acquire", ACQUIRE, "kept", [], {})
    now = client.properties("kept")
    assert now["Groups"] == ["other"]
    client.release("kept")
    client.call("Forget", "sa{sv}", "kept", {})
    client.call("DeleteGroup", "sa{sv}", "other", {})


def test_signals_tell_what_everybody_may_know(client: Client, daemon: Daemon) -> None:
    path = f"{ROOT}/group/s"
    client.listen()
    client.call("CreateGroup", "sa{sv}", "s", {})
    client.call("Grant", "sa{sv}", "vm", {}, path=path, interface=GROUP)
    client.call("Acquire", ACQUIRE, "vm", [], in_groups("s"))
    client.release("vm")
    client.call("DeleteGroup", "sa{sv}", "s", {})
    wait_for(
        "it is told", lambda: any(body[0] == path for body in client.seen("InterfacesRemoved"))
    )
    told = {"Name": "s", "Owner": 0}
    assert [unwrap(body) for body in client.seen("InterfacesAdded") if body[0] == path] == [
        [path, {GROUP: told}]
    ]
    changes = [
        list(m.body) for m in client.signals if m.member == "PropertiesChanged" and m.path == path
    ]
    assert changes == [[GROUP, {}, ["Grants"]], [GROUP, {}, ["Members"]], [GROUP, {}, ["Members"]]]


def test_who_only_reads_need_not_be_let_write(
    daemon: Daemon, client: Client, group: int, tmp_path: Path
) -> None:
    """A member whose domain writes none of it is opened the file for reading."""
    disk = image(tmp_path / "a.img")
    client.call("Acquire", ACQUIRE, "writer", shared(disk), in_groups("g"))
    with disk.open("rb") as reading:
        passed = {**shared(disk)[0], "fd": Variant("h", 0)}
        del passed["path"]
        fds = [reading.fileno()]
        for goal, refused in (("isolated", "not open for reading and writing"), ("view-only", "")):
            options = {**in_groups("g"), "goal": Variant("s", goal)}
            call = ("Acquire", ACQUIRE, "reader", [passed], options)
            if refused:
                assert refused in client.error(*call, fds=fds).text
            else:
                client.call(*call, fds=fds)
    assert label(disk) == f"system_u:object_r:svirt_image_t:s0:c{group}"
    client.release("writer")
    client.release("reader")
    assert label(disk) is None
