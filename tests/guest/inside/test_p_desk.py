# SPDX-License-Identifier: LGPL-2.1-or-later
"""What administrators make and use VMs with: virt-install, virsh, and virt-manager's window."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.guest.inside.audit import Audit
from tests.guest.inside.conftest import adopting_by_itself
from tests.guest.inside.desk import Desk
from tests.guest.inside.others import virsh
from tests.guest.inside.vms import categories, process_label
from tests.support import Client, label, set_label, wait_for

IMAGES: Final = Path("/var/lib/libvirt/images")
ORIGINAL: Final = "system_u:object_r:virt_image_t:s0"
SIZE: Final = 1 << 20
# No address, so that it starts without a name server of its own.
_NETWORK: Final = '<network><name>default</name><bridge name="virbr0"/></network>'
_GENERIC: Final = "Generic or unknown OS. Usage is not recommended. (generic)"
# A disk that comes and goes without the help of a system in the VM.
_INSTALL: Final = (
    *("virt-install", "--connect=qemu:///system", "--virt-type=qemu", "--import"),
    *("--memory=32", "--vcpus=1", "--osinfo=detect=off,require=off", "--noautoconsole"),
    *("--graphics=none", "--network=none", "--controller=type=usb,model=none"),
    *("--controller=type=scsi,model=virtio-scsi", "--memballoon=none", "--rng=none"),
)
_INSTALL_S: Final = 120.0
_ADOPT_S: Final = 60.0


def image(name: str) -> Path:
    """Make a disk image where libvirt has its own."""
    path = IMAGES / f"{name}.img"
    path.write_bytes(bytes(SIZE))
    set_label(path, ORIGINAL)
    return path


class Domain:
    """A VM that somebody else has started by libvirt."""

    def __init__(self, name: str, disk: Path) -> None:
        self.name = name
        self.disk = disk
        self.pid = int(Path(f"/run/libvirt/qemu/{name}.pid").read_text("utf-8"))
        self.context = process_label(self.pid)
        self.categories = categories(self.context)

    def assert_isolated(self) -> None:
        """Its process and its disk have two categories, the same ones, and so has nobody else."""
        assert self.context.startswith("system_u:system_r:svirt_t:s0:c")
        assert len(self.categories) == 2
        assert label(self.disk) == self.context.replace(
            "system_r:svirt_t", "object_r:svirt_image_t"
        )

    def assert_gone(self) -> None:
        """No process of it is left, and its disk carries what it carried before."""
        wait_for("its process is gone", lambda: not Path(f"/proc/{self.pid}").exists())
        assert label(self.disk) == ORIGINAL


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """virt-manager, connected to a libvirt that has a network to choose."""
    described = tmp_path_factory.mktemp("network") / "default.xml"
    described.write_text(_NETWORK, "utf-8")
    virsh("net-undefine", "default")
    virsh("net-define", str(described))
    virsh("net-start", "default")
    try:
        with Desk() as desk:
            yield desk
    finally:
        virsh("net-destroy", "default")


@pytest.fixture(scope="module")
def adopting() -> Iterator[None]:
    """Every domain is adopted when it is defined."""
    with adopting_by_itself(["*"]):
        yield


def adopted(client: Client, name: str) -> str:
    """Wait until a domain is adopted; returns the label that it has from its next start on."""
    wait_for(f"{name} is in the book", lambda: name in client.vms(), _ADOPT_S)
    given = str(client.properties(name)["ProcessContext"])
    wait_for(
        "its label is written", lambda: given in virsh("dumpxml", name, "--inactive"), _ADOPT_S
    )
    return given


def held(client: Client, name: str) -> set[str]:
    """Return the paths that the book has as a VM's."""
    return {str(one["path"]) for one in client.properties(name)["Resources"]}


def undefined(client: Client, name: str) -> None:
    """Take a domain away, and wait until svirtd has heard of it."""
    virsh("undefine", name)
    wait_for(f"{name} is not in the book", lambda: name not in client.vms(), _ADOPT_S)


def test_virt_install_virsh_and_the_list(
    client: Client, adopting: None, desk: Desk, audit: Audit
) -> None:
    disk, more, overlay = image("web"), image("more"), IMAGES / "web.snapshot"
    subprocess.run(
        [*_INSTALL, "--name=web", f"--disk={disk},format=raw,bus=scsi"],
        check=True,
        timeout=_INSTALL_S,
    )
    # It runs before it has a definition: under a set that libvirt has drawn, and the hook let pass.
    first = Domain("web", disk)
    first.assert_isolated()
    label_of_web = adopted(client, "web")
    assert first.categories != categories(label_of_web)
    virsh("destroy", "web")
    first.assert_gone()
    # Its QEMU has looked for who has started it.
    audit.leave_out(first.context)

    virsh("start", "web")
    domain = Domain("web", disk)
    domain.assert_isolated()
    shown = client.properties("web")
    assert (shown["State"], shown["MainPID"]) == ("running", domain.pid)
    assert (shown["ProcessContext"], shown["ImageContext"]) == (label_of_web, label(disk))
    assert domain.context == label_of_web
    desk.wait_for_domain("web", "Running")
    desk.picture("virt-manager")

    virsh("attach-disk", "web", str(more), "sdb", "--targetbus=scsi", "--live")
    assert label(more) == shown["ImageContext"]
    wait_for("it is in the book", lambda: str(more) in held(client, "web"), _ADOPT_S)
    virsh("detach-disk", "web", "sdb", "--live")
    wait_for("it is not in the book", lambda: str(more) not in held(client, "web"), _ADOPT_S)
    assert label(more) == ORIGINAL
    spec = f"--diskspec=sda,snapshot=external,file={overlay}"
    virsh("snapshot-create-as", "web", "s1", "--disk-only", "--no-metadata", spec)
    assert label(overlay) == shown["ImageContext"]
    virsh("blockcommit", "web", "sda", "--active", "--pivot", "--wait")
    wait_for("the overlay is given back", lambda: label(overlay) == ORIGINAL)

    virsh("destroy", "web")
    domain.assert_gone()
    assert client.properties("web")["State"] == "reserved"
    desk.wait_for_domain("web", "Shutoff")
    audit.leave_out(domain.context)
    undefined(client, "web")
    overlay.unlink()


def test_virt_managers_wizard(client: Client, adopting: None, desk: Desk, audit: Audit) -> None:
    disk = image("mail")
    desk.click("button", "New")
    desk.click("radio button", "Import existing disk image")
    desk.click("button", "Forward")
    desk.fill("import-entry", str(disk))
    desk.fill("oslist-entry", "generic")
    desk.click("table cell", _GENERIC)
    desk.click("button", "Forward")
    desk.turn("", 64)  # memory; the processors' has a name
    desk.click("button", "Forward")
    desk.find("button", "Finish")
    desk.fill("", "mail")
    desk.click("button", "Finish")
    desk.wait_for_domain("mail", "Running")
    domain = Domain("mail", disk)
    domain.assert_isolated()
    adopted(client, "mail")
    # It has opened a window with its screen.
    desk.find("menu", "Send Key")
    desk.picture("virt-manager-wizard")

    virsh("destroy", "mail")
    domain.assert_gone()
    audit.leave_out(domain.context)
    undefined(client, "mail")
