# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks of a QEMU that runs: one more, one less, snapshots and block jobs, with its monitor.

The kernel is what is asked: before Attach it denies QEMU the file, after Detach it denies it what
it has open.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.host.bus import Variant
from tests.guest.inside import devices
from tests.guest.inside.audit import Audit
from tests.guest.inside.conftest import systemctl
from tests.guest.inside.vms import ORIGINAL, SIZE, Captive, Qemu, disk, node
from tests.support import ROOT, VM, Client, label, set_label, wait_for

PATH = f"{ROOT}/vm/vm"
DENIED = "Permission denied"


def attach(client: Client, file: Path, access: str = "exclusive", **options: str) -> str:
    resource = {"path": Variant("s", str(file)), "access": Variant("s", access)}
    told = {key: Variant("s", value) for key, value in options.items()}
    (id_,) = client.call("Attach", "a{sv}a{sv}", resource, told, path=PATH, interface=VM)
    return str(id_)


def detach(client: Client, id_: str) -> None:
    client.call("Detach", "sa{sv}", id_, {}, path=PATH, interface=VM)


@pytest.fixture
def vm(client: Client) -> Iterator[Qemu]:
    """A QEMU with one disk and a controller for more."""
    vm = Qemu(client, "vm", disk("a"), machine="pc")
    vm.does("device_add", driver="virtio-scsi-pci", id="scsi")
    yield vm
    vm.end()


def overlay(name: str) -> Path:
    """An empty file for an overlay; QEMU makes it one through its own descriptor."""
    path = disk(name)
    path.write_bytes(b"")
    return path


def over(vm: Qemu, path: Path, top: str, backing: str) -> None:
    """Have QEMU make an overlay at `path`, and put it over a node."""
    file = {"driver": "file", "filename": str(path), "locking": "off", "node-name": f"{top}-file"}
    vm.does("blockdev-add", **file)
    options = {"driver": "qcow2", "file": f"{top}-file", "size": SIZE}
    vm.job("blockdev-create", "make", options=options)
    vm.does(
        "blockdev-add",
        **{"driver": "qcow2", "node-name": top, "file": f"{top}-file", "backing": None},
    )
    vm.does("blockdev-snapshot", node=backing, overlay=top)


def test_a_disk_is_plugged_and_unplugged(client: Client, audit: Audit, vm: Qemu) -> None:
    more = disk("b")
    with audit.denied("read open", vm.context, ORIGINAL):
        answer = vm.command("blockdev-add", **node(more, "data"))
    assert answer["error"]["desc"] == f"Could not open '{more}': {DENIED}"
    id_ = attach(client, more)
    assert label(more) == vm.image_context
    vm.does("blockdev-add", **node(more, "data"))
    # The device would keep our own writes out.
    device = {"driver": "scsi-hd", "id": "disk", "bus": "scsi.0", "drive": "data", "share-rw": True}
    vm.does("device_add", **device)
    assert vm.reads("data") == vm.writes("data") == ""
    vm.does("device_del", id="disk")
    # It has the file open still, and could use it but for the kernel.
    detach(client, id_)
    assert label(more) == ORIGINAL
    with audit.denied("read", vm.context, ORIGINAL):
        assert vm.reads("data").endswith(DENIED)
    with audit.denied("write", vm.context, ORIGINAL):
        assert vm.writes("data").endswith(DENIED)
    # With the label it has the same descriptor back.
    assert attach(client, more) == id_
    assert vm.reads("data") == vm.writes("data") == ""
    # The device goes in its own time.
    left = {"node-name": "data"}
    wait_for("the node is free", lambda: "return" in vm.command("blockdev-del", **left))
    detach(client, id_)
    assert vm.reads("d0") == ""


def test_a_snapshot_and_its_commit(client: Client, audit: Audit, vm: Qemu) -> None:
    """The file that it starts to write is its own, the one that it has left is only read."""
    (base,) = [Path(one["path"]) for one in client.properties("vm")["Resources"]]
    new = overlay("c")
    top = attach(client, new)
    over(vm, new, "top", "d0")
    assert vm.writes("top") == ""
    assert attach(client, new, replaces="r1", keep="readonly") == top
    content = vm.image_context.replace("svirt_image_t", "virt_content_t")
    assert (label(base), label(new)) == (content, vm.image_context)
    assert vm.reads("top") == vm.writes("top") == ""
    assert vm.reads("d0") == ""
    # Back into the first one: it is written again, and then the other is handed back.
    attach(client, base)
    assert label(base) == vm.image_context
    vm.job("block-commit", "commit", device="top", pivots=True)
    detach(client, top)
    assert label(new) == ORIGINAL
    assert vm.reads("d0") == vm.writes("d0") == ""
    assert [one["id"] for one in client.properties("vm")["Resources"]] == ["r1"]


def test_a_mirror(client: Client, vm: Qemu) -> None:
    """A copy takes the place of the disk: two steps around the job."""
    (old,) = [Path(one["path"]) for one in client.properties("vm")["Resources"]]
    new = disk("d")
    set_label(new, "system_u:object_r:virt_image_t:s0")
    copy = attach(client, new)
    vm.does("blockdev-add", **node(new, "copy"))
    vm.job("blockdev-mirror", "mirror", device="d0", target="copy", sync="full", pivots=True)
    assert attach(client, new, replaces="r1") == copy
    assert (label(old), label(new)) == (ORIGINAL, vm.image_context)
    assert [one["id"] for one in client.properties("vm")["Resources"]] == [copy]


def test_what_carries_a_label_of_vms_is_refused(client: Client, vm: Qemu) -> None:
    """As at a start, and the VM runs on."""
    odd = disk("e", "system_u:object_r:svirt_image_t:s0:c1,c2")
    error = client.error(
        "Attach",
        "a{sv}a{sv}",
        {"path": Variant("s", str(odd))},
        {},
        path=PATH,
        interface=VM,
    )
    assert error.name == "org.svirt1.Error.ResourceRefused"
    assert vm.reads("d0") == ""
    set_label(odd, ORIGINAL)


def test_a_device_is_let_into_the_unit(client: Client) -> None:
    """Of a VM whose goal names the only devices that it may open: the attached one, while it is."""
    with devices.volume(disk("backing")) as volume:
        set_label(volume, ORIGINAL)
        vm = Captive(client, "vm", goal=Variant("s", "view-only"))
        number = os.stat(volume).st_rdev
        listed = f"/dev/block/{os.major(number)}:{os.minor(number)} r"
        id_ = attach(client, volume, "readonly")
        assert listed in systemctl("show", "-P", "DeviceAllow", "svirt-vm.service")
        assert vm.do(f"read('{volume}')") == 512
        detach(client, id_)
        assert listed not in systemctl("show", "-P", "DeviceAllow", "svirt-vm.service")
        assert "/dev/kvm" in systemctl("show", "-P", "DeviceAllow", "svirt-vm.service")
        assert vm.fails(f"read('{volume}')") in ("EACCES", "EPERM")
        vm.end()
        assert label(volume) == ORIGINAL
