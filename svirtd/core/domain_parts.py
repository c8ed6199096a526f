# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each kind of thing that a domain of libvirt's uses, and which label libvirt gives it. Pure.

The rules are those of libvirt's own SELinux driver, in the order in which it looks: what svirtd
enters in its book is what libvirt will set, or a domain would run with what the book does not say.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from svirtd.core.xml_text import Element

MODEL: Final = "selinux"
_SWTPM: Final = "/var/lib/libvirt/swtpm"
_NSS: Final = "/etc/pki/nssdb"


class Given(enum.StrEnum):
    """What libvirt labels something with."""

    IMAGE = "image"
    """The image type, with all categories of the domain."""
    CONTENT = "content"
    """The content type without categories: every VM may read it."""
    SHARED = "shared"
    """The image type without categories: every VM may write it."""
    OWN = "own"
    """The label that stands at it in the description."""
    NOTHING = "nothing"


class Sort(enum.StrEnum):
    """What something is, by the description."""

    FILE = "file"
    """A file or block device that svirtd holds for the VM."""
    NODE = "node"
    FOLDER = "folder"
    SOCKET = "socket"
    LOG = "log"
    """A file that a helper of libvirt's writes, unless the description gives it a label."""
    REMOTE = "remote"


@dataclass(frozen=True, slots=True)
class Used:
    """One thing that a domain uses. `path` is empty where the description does not tell it.

    `label` is of what has its own; `why` says why nothing is labelled.
    """

    what: str
    path: str
    gives: Given
    sort: Sort = Sort.FILE
    label: str = ""
    why: str = ""


def selinux(element: Element) -> Iterator[Element]:
    """Yield the seclabels of an element that are about SELinux; one without a model is."""
    return (one for one in element.all("seclabel") if one.get("model") in ("", MODEL))


def uses_of(root: Element, uuid: str) -> Iterator[Used]:
    """Yield what a domain uses, as libvirt would label it if its own seclabel lets it."""
    os = root.one("os")
    if os is not None:
        yield from _boot(os)
    for sysinfo in root.all("sysinfo"):
        if sysinfo.get("type") == "fwcfg":
            yield from _fw_cfg(sysinfo)
    devices = root.one("devices")
    if devices is not None:
        for one in devices.children:
            reader = _DEVICES.get(one.tag)
            if reader is not None:
                yield from reader(one)
            if one.tag == "tpm":
                yield from _tpm(one, uuid)
    if root.under("memoryBacking", "hugepages") or root.under("memoryBacking", "source"):
        yield Used("memory backing", "", Given.IMAGE, Sort.FOLDER)


def _boot(os: Element) -> Iterator[Used]:
    for what in ("kernel", "initrd", "dtb"):
        if os.said(what):
            yield Used(what, os.said(what), Given.CONTENT)
    for acpi in os.all("acpi"):
        for table in acpi.all("table"):
            yield Used("ACPI table", table.text.strip(), Given.CONTENT)
    if os.said("loader"):
        yield Used("loader", os.said("loader"), Given.NOTHING, why="firmware of the host")
    for nvram in os.all("nvram"):
        if nvram.one("source") is not None:
            yield from _chain("nvram", nvram)
        elif nvram.text.strip():
            yield Used("nvram", nvram.text.strip(), Given.IMAGE)
    for varstore in os.all("varstore"):
        if varstore.get("path"):
            yield Used("varstore", varstore.get("path"), Given.IMAGE)


def _fw_cfg(sysinfo: Element) -> Iterator[Used]:
    for entry in sysinfo.all("entry"):
        if entry.get("file"):
            yield Used(f"fw_cfg {entry.get('name')}", entry.get("file"), Given.CONTENT)


# -- disks --------------------------------------------------------------------------------------


def _disk(disk: Element) -> Iterator[Used]:
    target = disk.one("target")
    name = "" if target is None else target.get("dev")
    readonly = disk.one("readonly") is not None or disk.get("device") == "cdrom"
    shared = disk.one("shareable") is not None
    what = f"{disk.get('device') or 'disk'} {name}".rstrip()
    top = Given.SHARED if shared else Given.CONTENT if readonly else Given.IMAGE
    yield from _chain(what, disk, top)
    mirror = disk.one("mirror")
    if mirror is not None:
        yield from _chain(f"copy of {what}", mirror)


def _chain(what: str, element: Element, top: Given = Given.IMAGE) -> Iterator[Used]:
    """Yield a storage source and what lies under it, to the end that the description tells."""
    parent = _override(element.one("source"))
    given, at = top, element
    while True:
        source = at.one("source")
        own = _override(source) or parent
        yield from _storage(what, at.get("type") or "file", source, given, own)
        data = None if source is None else source.one("dataStore")
        if data is not None:
            kept = _override(data.one("source")) or parent
            type_ = data.get("type") or "file"
            yield from _storage(f"data file of {what}", type_, data.one("source"), given, kept)
        below = at.one("backingStore")
        if below is None or below.one("source") is None:
            return
        if given is top and at is element:
            what = f"backing file of {what}"
        given, at = Given.CONTENT, below


def _override(source: Element | None) -> Element | None:
    """Return the seclabel of a source that says otherwise than the domain's."""
    found = None if source is None else next(selinux(source), None)
    says = found is not None and (found.get("relabel") == "no" or bool(found.said("label")))
    return found if says else None


def _storage(
    what: str, type_: str, source: Element | None, given: Given, own: Element | None
) -> Iterator[Used]:
    """Yield one source: by its own seclabel, else as what it is."""
    if source is None:
        return  # a drive without a medium
    attribute = {"file": "file", "block": "dev"}.get(type_)
    if attribute is None:
        yield _elsewhere(what, type_, source)
        return
    path = source.get(attribute)
    if path:
        yield _by_override(what, path, given, Sort.FILE, own)


def _by_override(what: str, path: str, given: Given, sort: Sort, own: Element | None) -> Used:
    if own is None:
        return Used(what, path, given, sort)
    if own.get("relabel") == "no":
        return Used(what, path, Given.NOTHING, sort, why="its seclabel has relabel='no'")
    return Used(what, path, Given.OWN, sort, label=own.said("label"))


def _elsewhere(what: str, type_: str, source: Element) -> Used:
    match type_:
        case "dir":
            why = "libvirt labels no folder"
            return Used(what, source.get("dir"), Given.NOTHING, Sort.FOLDER, why=why)
        case "nvme":
            return Used(f"{what} ({_pci(source)})", "", Given.IMAGE, Sort.NODE)
        case "vhostuser":
            why = "libvirt labels no vhost-user socket"
            return Used(what, source.get("path"), Given.NOTHING, Sort.SOCKET, why=why)
        case "vhostvdpa":
            why = "libvirt labels no vDPA device"
            return Used(what, source.get("dev"), Given.NOTHING, Sort.NODE, why=why)
        case "volume":
            named = f"{what} ({source.get('pool')}/{source.get('volume')})"
            why = "a volume of a pool, whose path the description does not tell: name its file"
            return Used(named, "", Given.NOTHING, why=why)
        case _:
            named = f"{what} ({source.get('protocol') or type_} {source.get('name')})"
            why = "it is not on this host: nothing to label"
            return Used(named.replace(" )", ")"), "", Given.NOTHING, Sort.REMOTE, why=why)


# -- other devices ------------------------------------------------------------------------------


def _pci(source: Element) -> str:
    address = source.one("address")
    if address is None:
        return "PCI"
    numbers = [address.get(key) for key in ("domain", "bus", "slot", "function")]
    try:
        domain, bus, slot, function = (int(one or "0", 0) for one in numbers)
    except ValueError:
        return "PCI"
    return f"PCI {domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def _hostdev(device: Element) -> Iterator[Used]:
    source = device.one("source")
    if source is None:
        return
    if device.get("mode") == "capabilities":
        for tag in ("block", "char"):
            if source.said(tag):
                yield Used(f"host device {tag}", source.said(tag), Given.IMAGE, Sort.NODE)
        return
    type_ = device.get("type")
    given, path, named = Given.IMAGE, "", f"{type_} device"
    match type_:
        case "usb":
            path = _usb(source)
        case "pci":
            named = f"device {_pci(source)}"
        case "scsi" if source.get("protocol") == "iscsi":
            why = "it is not on this host: nothing to label"
            yield Used(f"iSCSI {source.get('name')}", "", Given.NOTHING, Sort.REMOTE, why=why)
            return
        case "scsi":
            if device.one("shareable") is not None:
                given = Given.SHARED
            elif device.one("readonly") is not None:
                given = Given.CONTENT
        case "scsi_host":
            path = "/dev/vhost-scsi"
        case "mdev":
            address = source.one("address")
            named = f"mediated device {'' if address is None else address.get('uuid')}".rstrip()
    yield Used(named, path, given, Sort.NODE)


def _usb(source: Element) -> str:
    address = source.one("address")
    if address is None:
        return ""
    try:
        bus, device = int(address.get("bus"), 0), int(address.get("device"), 0)
    except ValueError:
        return ""
    return f"/dev/bus/usb/{bus:03d}/{device:03d}"


def _input(device: Element) -> Iterator[Used]:
    source = device.one("source")
    path = "" if source is None else source.get("evdev") or source.get("dev")
    if device.get("type") in ("passthrough", "evdev") and path:
        yield Used("input device", path, Given.IMAGE, Sort.NODE)


def _memory(device: Element) -> Iterator[Used]:
    if device.get("model") in ("nvdimm", "virtio-pmem"):
        path = device.under("source", "path")
        if path is not None:
            yield Used(f"{device.get('model')} memory", path.text.strip(), Given.IMAGE)
    elif device.get("model") == "sgx-epc":
        for node in ("/dev/sgx_vepc", "/dev/sgx_provision"):
            yield Used("SGX memory", node, Given.IMAGE, Sort.NODE)


def _tpm(device: Element, uuid: str) -> Iterator[Used]:
    backend = device.one("backend")
    if backend is None:
        return
    source = backend.one("source")
    match backend.get("type"):
        case "passthrough":
            node = backend.one("device")
            path = "/dev/tpm0" if node is None else node.get("path") or "/dev/tpm0"
            yield Used("TPM", path, Given.IMAGE, Sort.NODE)
        case "emulator":
            default = "tpm1.2" if backend.get("version") == "1.2" else "tpm2"
            path = f"{_SWTPM}/{uuid}/{default}" if source is None else source.get("path")
            yield Used("TPM state", path, Given.IMAGE, Sort.FOLDER)
        case "external" if source is not None and source.get("path"):
            yield Used("TPM", source.get("path"), Given.IMAGE, Sort.SOCKET)


def _chardev(device: Element) -> Iterator[Used]:
    source = device.one("source")
    if source is None or not source.get("path"):
        return
    sorts = {"dev": Sort.NODE, "file": Sort.LOG, "pipe": Sort.SOCKET, "unix": Sort.SOCKET}
    sort = sorts.get(device.get("type"))
    # A socket that QEMU itself makes has its label from the start.
    if sort is None or (device.get("type") == "unix" and source.get("mode") != "connect"):
        return
    yield _by_override(device.tag, source.get("path"), Given.IMAGE, sort, _override(source))


def _smartcard(device: Element) -> Iterator[Used]:
    if device.get("mode") == "host-certificates":
        path = device.said("database") or _NSS
        yield Used("smartcard database", path, Given.CONTENT, Sort.FOLDER)
    elif device.get("mode") == "passthrough":
        yield from _chardev(device)


def _filesystem(device: Element) -> Iterator[Used]:
    source, target = device.one("source"), device.one("target")
    path = "" if source is None else source.get("dir") or source.get("file")
    what = f"file system {'' if target is None else target.get('dir')}".rstrip()
    yield Used(what, path, Given.NOTHING, Sort.FOLDER, why="libvirt labels no shared folder")


def _interface(device: Element) -> Iterator[Used]:
    source = device.one("source")
    if source is None:
        return
    if device.get("type") == "vhostuser":
        why = "libvirt labels no vhost-user socket"
        yield Used("interface", source.get("path"), Given.NOTHING, Sort.SOCKET, why=why)
    elif device.get("type") == "vdpa":
        why = "libvirt labels no vDPA device"
        yield Used("interface", source.get("dev"), Given.NOTHING, Sort.NODE, why=why)


def _pstore(device: Element) -> Iterator[Used]:
    if device.said("path"):
        yield Used("pstore", device.said("path"), Given.IMAGE)


_DEVICES: Final = {
    "disk": _disk,
    "hostdev": _hostdev,
    "input": _input,
    "memory": _memory,
    "serial": _chardev,
    "parallel": _chardev,
    "channel": _chardev,
    "console": _chardev,
    "smartcard": _smartcard,
    "filesystem": _filesystem,
    "interface": _interface,
    "pstore": _pstore,
}
