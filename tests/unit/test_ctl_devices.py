# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices by the names that people have for them, on a host whose sysfs is made up."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from svirtd.ctl import devices

_UUID = "83c32df7-d52e-4ec1-9668-1f3c7e4df107"


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    sticks = ((1, 5, "046d", "c52b"), (1, 6, "0951", "1666"), (2, 7, "0951", "1666"))
    for bus, device, vendor, product in sticks:
        here = tmp_path / f"bus/usb/devices/{bus}-{device}"
        here.mkdir(parents=True)
        for name, text in (
            ("busnum", bus),
            ("devnum", device),
            ("idVendor", vendor),
            ("idProduct", product),
        ):
            (here / name).write_text(f"{text}\n")
    (tmp_path / "bus/usb/devices/1-5:1.0").mkdir()
    for address, driver, group in (
        ("0000:3b:00.0", "vfio-pci", "17"),
        ("0000:3b:00.1", "nvidia", "17"),
        ("0000:3b:00.2", "", "17"),
        ("0001:00:1f.7", "vfio-pci", ""),
    ):
        here = tmp_path / "bus/pci/devices" / address
        here.mkdir(parents=True)
        if driver:
            os.symlink(f"../../drivers/{driver}", here / "driver")
        if group:
            os.symlink(f"../../../kernel/iommu_groups/{group}", here / "iommu_group")
    mediated = tmp_path / "bus/mdev/devices" / _UUID
    mediated.mkdir(parents=True)
    os.symlink("../../../kernel/iommu_groups/21", mediated / "iommu_group")
    (tmp_path / "bus/scsi/devices/2:0:0:0/scsi_generic/sg3").mkdir(parents=True)
    (tmp_path / "bus/scsi/devices/3:0:0:0").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("find", "text", "node"),
    [
        (devices.usb, "046d:c52b", "/dev/bus/usb/001/005"),
        (devices.usb, "046D:C52B", "/dev/bus/usb/001/005"),
        (devices.usb, "1:6", "/dev/bus/usb/001/006"),
        (devices.usb, "002/007", "/dev/bus/usb/002/007"),
        (devices.pci, "0000:3b:00.0", "/dev/vfio/17"),
        (devices.pci, "3B:00.0", "/dev/vfio/17"),
        (devices.mdev, _UUID.upper(), "/dev/vfio/21"),
        (devices.scsi, "2:0:0:0", "/dev/sg3"),
    ],
)
def test_nodes(sys: Path, find: Callable[[str, Path], str], text: str, node: str) -> None:
    assert find(text, sys) == node


@pytest.mark.parametrize(
    ("find", "text", "why"),
    [
        (devices.usb, "0951:1666", "there are 2 USB devices 0951:1666; name one: 1:6, 2:7"),
        (devices.usb, "dead:beef", "plugged in"),
        (devices.usb, "1:99", "plugged in"),
        (devices.usb, "0:0", "plugged in"),
        (devices.usb, "keyboard", "expected VENDOR:PRODUCT"),
        (devices.usb, "1:2:3", "expected VENDOR:PRODUCT"),
        (devices.pci, "0000:3b:00.1", "belongs to nvidia; give it to vfio-pci first"),
        (devices.pci, "0000:3b:00.2", "belongs to no driver"),
        (devices.pci, "0001:00:1f.7", "in no IOMMU group"),
        (devices.pci, "0000:00:00.0", "there is no PCI device"),
        (devices.pci, "../../etc", "is no PCI address"),
        (devices.mdev, "x", "is no UUID"),
        (devices.mdev, _UUID.replace("8", "9"), "there is no mediated device"),
        (devices.scsi, "3:0:0:0", "with a generic node"),
        (devices.scsi, "9:0:0:0", "with a generic node"),
        (devices.scsi, "../x", "is no SCSI device"),
    ],
)
def test_what_is_not_there(
    sys: Path, find: Callable[[str, Path], str], text: str, why: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        find(text, sys)


def test_a_host_without_any(tmp_path: Path) -> None:
    for find, text in ((devices.usb, "1:1"), (devices.scsi, "0:0:0:0"), (devices.pci, "00:00.0")):
        with pytest.raises(ValueError, match="no"):
            find(text, tmp_path)
