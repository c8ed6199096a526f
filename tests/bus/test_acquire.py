# SPDX-License-Identifier: LGPL-2.1-or-later
"""Acquire and Release: labels on real files, all or nothing, given back."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.host.bus import Variant
from tests.mounts import mounted, remount
from tests.support import Client, Daemon, image, label, resources, set_label, unwrap, wait_for

USER_HOME = "unconfined_u:object_r:user_home_t:s0"


def test_exclusive_is_labelled_and_given_back(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    set_label(disk, USER_HOME)
    before = os.getxattr(disk, "security.selinux")
    assert client.acquire("vm", disk) == "/org/svirt1/vm/vm"
    vm = client.properties("vm")
    assert (
        label(disk)
        == vm["ImageContext"]
        == f"system_u:object_r:svirt_image_t:s0:{vm['Categories']}"
    )
    assert vm["ProcessContext"] == f"system_u:system_r:svirt_t:s0:{vm['Categories']}"
    assert vm["State"] == "labelled"
    assert vm["Resources"] == [
        {
            "id": "r1",
            "path": str(disk),
            "access": "exclusive",
            "context": vm["ImageContext"],
            "original": USER_HOME,
        }
    ]
    client.release("vm")
    assert os.getxattr(disk, "security.selinux") == before
    assert client.vms() == {}
    os.removexattr(disk, "security.selinux")


def test_a_file_without_a_label_has_none_again(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.acquire("vm", disk)
    assert label(disk) is not None
    client.release("vm")
    assert label(disk) is None


def test_readonly_carries_content_type_and_the_private_pair(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.acquire("vm", disk, access="readonly")
    assert (
        label(disk)
        == f"system_u:object_r:virt_content_t:s0:{client.properties('vm')['Categories']}"
    )
    assert (
        client.error(
            "Acquire", "saa{sv}a{sv}", "other", resources(disk, access="readonly"), {}
        ).name
        == "org.svirt1.Error.ResourceBusy"
    )
    client.release("vm")


def test_public_is_counted_and_restored_when_the_last_holder_goes(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    set_label(disk, USER_HOME)
    public = "system_u:object_r:virt_content_t:s0"
    for name in ("one", "two", "three"):
        client.acquire(name, disk, access="public")
        assert label(disk) == public
    refused = client.error("Acquire", "saa{sv}a{sv}", "w", resources(disk), {})
    assert refused.name == "org.svirt1.Error.ResourceBusy"
    assert "'one'" in refused.text
    for name in ("two", "one"):
        client.release(name)
        assert label(disk) == public
    assert [o["vm"].value for o in client.call("FindOwners", "s", str(disk))[0]] == ["three"]
    client.release("three")
    assert label(disk) == USER_HOME
    os.removexattr(disk, "security.selinux")


def test_what_is_labelled_right_already_needs_no_write(
    daemon: Daemon, client: Client, tmp_path: Path, bind_mount: Path
) -> None:
    """An installation medium on a file system that is read-only."""
    disk = image(tmp_path / "source" / "a.iso")
    set_label(disk, "system_u:object_r:virt_content_t:s0")
    remount(bind_mount, "bind,ro")
    client.acquire("vm", bind_mount / "a.iso", access="public")
    (held,) = client.properties("vm")["Resources"]
    assert held["context"] == held["original"] == label(disk)
    client.release("vm")
    assert client.vms() == {}
    os.removexattr(disk, "security.selinux")
    refused = client.error(
        "Acquire", "saa{sv}a{sv}", "vm", resources(bind_mount / "a.iso", access="public"), {}
    )
    assert refused.name == "org.svirt1.Error.LabelRefused"
    assert "read-only" in refused.text


def test_all_or_nothing_over_many(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disks = [image(tmp_path / f"{n}.img") for n in range(20)]
    set_label(disks[19], "system_u:object_r:shadow_t:s0")
    refused = client.error("Acquire", "saa{sv}a{sv}", "vm", resources(*disks), {})
    assert refused.name == "org.svirt1.Error.ResourceRefused"
    assert "shadow_t" in refused.text
    assert str(disks[19]) in refused.text
    assert [label(d) for d in disks[:19]] == [None] * 19
    assert client.vms() == {}
    os.removexattr(disks[19], "security.selinux")
    client.acquire("vm", *disks)
    assert len({label(d) for d in disks}) == 1
    client.release("vm")
    assert [label(d) for d in disks] == [None] * 20


@pytest.fixture
def bind_mount(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "source").mkdir()
    with mounted(tmp_path / "mount", "--bind", tmp_path / "source") as folder:
        yield folder


def test_a_held_file_is_busy_under_every_name(
    daemon: Daemon, client: Client, tmp_path: Path, bind_mount: Path
) -> None:
    disk = image(tmp_path / "source" / "a.img")
    client.acquire("holder", disk)
    os.link(disk, tmp_path / "hard.img")
    os.symlink(disk, tmp_path / "soft.img")
    os.symlink(tmp_path / "source", tmp_path / "folder")
    names = [
        disk,
        tmp_path / "hard.img",
        tmp_path / "soft.img",
        tmp_path / "folder" / "a.img",
        bind_mount / "a.img",
    ]
    for name in names:
        refused = client.error("Acquire", "saa{sv}a{sv}", "thief", resources(name), {})
        assert refused.name == "org.svirt1.Error.ResourceBusy", name
        assert "'holder'" in refused.text
        owners = client.call("FindOwners", "s", str(name))[0]
        assert [o["vm"].value for o in owners] == ["holder"]
    os.unlink(tmp_path / "hard.img")
    client.release("holder")


def test_one_file_under_two_names_in_one_request(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    os.symlink(disk, tmp_path / "soft.img")
    refused = client.error(
        "Acquire", "saa{sv}a{sv}", "vm", resources(disk, tmp_path / "soft.img"), {}
    )
    assert refused.name == "org.freedesktop.DBus.Error.InvalidArgs"
    assert "same file" in refused.text
    assert label(disk) is None


def test_a_label_changed_by_others_is_left_alone_and_reported(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.listen()
    client.acquire("vm", disk)
    held = label(disk)
    set_label(disk, "system_u:object_r:etc_t:s0")
    wait_for("the watch tells of it", lambda: client.seen("DriftFound"))
    client.release("vm")
    assert label(disk) == "system_u:object_r:etc_t:s0"
    wait_for("the release does, too", lambda: len(client.seen("DriftFound")) == 2)
    for (body,) in client.seen("DriftFound"):
        finding = unwrap(body)
        assert finding["kind"] == "changed"
        assert finding["vm"] == "vm"
        assert finding["path"] == str(disk)
        assert finding["expected"] == held
        assert finding["found"] == "system_u:object_r:etc_t:s0"
    # etc_t carries no category: the pair is proven clean and not in quarantine.
    assert client.manager()["PairsQuarantined"] == 0
    os.removexattr(disk, "security.selinux")


def test_a_descriptor_instead_of_a_path(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    by_fd = [{"fd": Variant("h", 0)}]
    with open(disk, "r+b") as file:
        client.call("Acquire", "saa{sv}a{sv}", "vm", by_fd, {}, fds=[file.fileno()])
    assert label(disk) == client.properties("vm")["ImageContext"]
    client.release("vm")
    with open(disk, "rb") as file:
        refused = client.error("Acquire", "saa{sv}a{sv}", "vm", by_fd, {}, fds=[file.fileno()])
        assert refused.name == "org.svirt1.Error.ResourceRefused"
        assert "not open for reading and writing" in refused.text
        readonly = [{"fd": Variant("h", 0), "access": Variant("s", "readonly")}]
        client.call("Acquire", "saa{sv}a{sv}", "vm", readonly, {}, fds=[file.fileno()])
    client.release("vm")
    fd = os.open(disk, os.O_PATH)
    refused = client.error("Acquire", "saa{sv}a{sv}", "vm", by_fd, {}, fds=[fd])
    os.close(fd)
    assert "O_PATH" in refused.text
    assert label(disk) is None


def test_a_vm_with_the_lifetime_of_its_caller(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    caller = Client()
    caller.acquire("vm", disk, lifetime=Variant("s", "caller"))
    assert client.vms() == {"vm": "labelled"}
    caller.close()
    wait_for("the release", lambda: client.vms() == {})
    assert label(disk) is None


def test_plan_says_what_acquire_would_do_and_changes_nothing(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    good, held = image(tmp_path / "a.img"), image(tmp_path / "b.img")
    client.acquire("holder", held)
    *steps, goal = client.call("Plan", "saa{sv}a{sv}", "vm", resources(good, held), {})[0]
    assert [s["path"].value for s in steps] == [str(good), str(held)]
    assert "error" not in steps[0]
    assert steps[1]["error"].value == "org.svirt1.Error.ResourceBusy"
    assert unwrap(goal) | {"process": "", "image": ""} == {
        "goal": "isolated",
        "process": "",
        "image": "",
        "network": "host",
        "devices": "host",
        "written": "kept",
        "digest": False,
    }
    assert label(good) is None
    assert client.vms() == {"holder": "labelled"}
    client.acquire("vm", good)
    assert label(good) == steps[0]["to"].value == goal["image"].value
    assert client.properties("vm")["ProcessContext"] == goal["process"].value
    client.release("vm")
    client.release("holder")


def test_find_owners_by_categories_and_context(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    client.acquire("vm", image(tmp_path / "a.img"))
    vm = client.properties("vm")
    for what in (vm["Categories"], vm["ImageContext"], vm["ProcessContext"]):
        (owners,) = client.call("FindOwners", "s", what)
        assert [(o["vm"].value, o["object"].value) for o in owners] == [("vm", "/org/svirt1/vm/vm")]
    one = vm["Categories"].split(",")[0]
    assert client.call("FindOwners", "s", one) == [[]]
    client.release("vm")


def test_signals_tell_the_story(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    client.listen()
    client.acquire("vm", image(tmp_path / "a.img"))
    client.release("vm")
    wait_for("the removal", lambda: client.seen("VMRemoved"))
    assert [m.member for m in client.signals] == [
        "InterfacesAdded",
        "VMAdded",
        "PropertiesChanged",
        "InterfacesRemoved",
        "VMRemoved",
    ]
    assert client.seen("VMAdded") == [["vm", "/org/svirt1/vm/vm"]]
    (added,) = client.seen("InterfacesAdded")
    assert added[1]["org.svirt1.VM"]["State"].value == "labelled"
    (changed,) = client.seen("PropertiesChanged")
    assert {k: v.value for k, v in changed[1].items()} == {"State": "releasing"}
