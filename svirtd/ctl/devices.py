# SPDX-License-Identifier: LGPL-2.1-or-later
"""What people call a device, turned into the node that it has on this host, by what sysfs says.

A convenience of the terminal: svirtd itself takes nodes. Every refusal is a ValueError.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SYS: Final = Path("/sys")
_USB_PLACE: Final = re.compile(r"(\d{1,3})[:/](\d{1,3})", re.ASCII)
_USB_KIND: Final = re.compile(r"([0-9a-fA-F]{4}):([0-9a-fA-F]{4})")
_PCI: Final = re.compile(r"(?:([0-9a-fA-F]{4}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])")
_SCSI: Final = re.compile(r"\d+:\d+:\d+:\d+", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def usb(text: str, sys: Path = _SYS) -> str:
    """Return the node of a USB device: VENDOR:PRODUCT (four hexadecimal digits each, as lsusb shows
    them), or BUS:DEVICE."""
    kind, place = _USB_KIND.fullmatch(text), _USB_PLACE.fullmatch(text)
    if kind is None and place is None:
        raise ValueError(
            f"{text!r} is no USB device; expected VENDOR:PRODUCT such as 046d:c52b, or BUS:DEVICE "
            "such as 1:5 (see lsusb)"
        )
    found = []
    for one in _entries(sys / "bus/usb/devices"):
        bus, device = _number(one / "busnum"), _number(one / "devnum")
        if not bus or not device:
            continue  # an interface of a device, not one itself
        said = (_text(one / "idVendor"), _text(one / "idProduct"))
        by_kind = kind is not None and said == (kind[1].lower(), kind[2].lower())
        by_place = place is not None and (bus, device) == (int(place[1]), int(place[2]))
        if by_kind or by_place:
            found.append((bus, device))
    if not found:
        raise ValueError(f"no USB device {text} is plugged in; see lsusb")
    if len(found) > 1:
        places = ", ".join(f"{bus}:{device}" for bus, device in sorted(found))
        raise ValueError(f"there are {len(found)} USB devices {text}; name one: {places}")
    ((bus, device),) = found
    return f"/dev/bus/usb/{bus:03}/{device:03}"


def pci(text: str, sys: Path = _SYS) -> str:
    """Return the node of the VFIO group of a PCI device: [DOMAIN:]BUS:DEVICE.FUNCTION."""
    found = _PCI.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no PCI address; it is like 0000:3b:00.0 (see lspci -D)")
    domain, bus, device, function = found.groups()
    address = f"{domain or '0000'}:{bus}:{device}.{function}".lower()
    here = sys / "bus/pci/devices" / address
    if not here.exists():
        raise ValueError(f"there is no PCI device {address}; see lspci -D")
    driver = _leads_to(here / "driver")
    if not driver.startswith("vfio"):
        raise ValueError(
            f"PCI device {address} belongs to {driver or 'no driver'}; give it to vfio-pci first "
            f"(driverctl set-override {address} vfio-pci)"
        )
    return _group(here, f"PCI device {address}")


def mdev(text: str, sys: Path = _SYS) -> str:
    """Return the node of the VFIO group of a mediated device: its UUID."""
    if _UUID.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no UUID; see mdevctl list")
    here = sys / "bus/mdev/devices" / text.lower()
    if not here.exists():
        raise ValueError(f"there is no mediated device {text.lower()}; see mdevctl list")
    return _group(here, f"mediated device {text.lower()}")


def scsi(text: str, sys: Path = _SYS) -> str:
    """Return the generic node of a SCSI device: HOST:CHANNEL:TARGET:LUN."""
    if _SCSI.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no SCSI device; expected one such as 2:0:0:0 (lsscsi)")
    for one in _entries(sys / "bus/scsi/devices" / text / "scsi_generic"):
        return f"/dev/{one.name}"
    raise ValueError(f"there is no SCSI device {text} with a generic node; see lsscsi -g")


def _group(device: Path, named: str) -> str:
    group = _leads_to(device / "iommu_group")
    if not group.isdecimal():
        raise ValueError(f"{named} is in no IOMMU group; is the IOMMU on (intel_iommu=on)?")
    return f"/dev/vfio/{group}"


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except OSError:
        return  # a host without such devices


def _leads_to(link: Path) -> str:
    try:
        return os.path.basename(os.readlink(link))
    except OSError:
        return ""


def _text(file: Path) -> str:
    try:
        return file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(file: Path) -> int:
    text = _text(file)
    return int(text) if text.isdecimal() else 0
