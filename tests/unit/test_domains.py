# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a domain of libvirt's uses, with which label: a case for every kind of thing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svirtd.core.domain_parts import Given, Sort
from svirtd.core.domains import Hold, described, holds, label_of, uncovered
from svirtd.core.mcs import parse_context
from svirtd.core.model import Access, Contexts

CONTEXTS = Contexts(
    parse_context("system_u:system_r:svirt_t:s0"),
    parse_context("system_u:object_r:svirt_image_t:s0"),
    parse_context("system_u:object_r:virt_content_t:s0"),
)
UUID = "6c3a6e6e-0000-4000-8000-000000000001"
IMAGE = "system_u:object_r:svirt_image_t:s0:c7,c300"
CONTENT = "system_u:object_r:virt_content_t:s0"
SHARED = "system_u:object_r:svirt_image_t:s0"
OWN = "system_u:object_r:svirt_image_t:s0:c900"
NONE = None
STATIC = (
    "<seclabel type='static' model='selinux' relabel='yes'>"
    "<label>system_u:system_r:svirt_t:s0:c7,c300</label></seclabel>"
)
LABEL = f"<seclabel model='selinux' relabel='yes'><label>{OWN}</label></seclabel>"
UNTOUCHED = "<seclabel model='selinux' relabel='no'/>"


def domain(devices: str = "", *, head: str = "", seclabel: str = STATIC) -> bytes:
    return (
        f"<domain type='kvm'><name>web</name><uuid>{UUID}</uuid>{head}"
        f"<devices>{devices}</devices>{seclabel}</domain>"
    ).encode()


def disk(source: str = "<source file='/d'/>", more: str = "", *, kind: str = "file") -> str:
    return f"<disk type='{kind}' device='disk'>{source}{more}<target dev='vda'/></disk>"


CHAIN = (
    "<backingStore type='file'><source file='/b1'/><backingStore type='block'>"
    "<source dev='/b2'/><backingStore/></backingStore></backingStore>"
)

# Description → path of each thing with the label that libvirt gives it.
CASES: dict[str, tuple[bytes, dict[str, str | None]]] = {
    "a file": (domain(disk()), {"/d": IMAGE}),
    "a block device": (domain(disk("<source dev='/dev/x'/>", kind="block")), {"/dev/x": IMAGE}),
    "only read": (domain(disk(more="<readonly/>")), {"/d": CONTENT}),
    "a medium": (domain(disk().replace("device='disk'", "device='cdrom'")), {"/d": CONTENT}),
    "shareable": (domain(disk(more="<shareable/>")), {"/d": SHARED}),
    "shareable and read": (domain(disk(more="<readonly/><shareable/>")), {"/d": SHARED}),
    "a label of its own": (domain(disk(f"<source file='/d'>{LABEL}</source>")), {"/d": OWN}),
    "its own before all else": (
        domain(disk(f"<source file='/d'>{LABEL}</source>", "<readonly/><shareable/>")),
        {"/d": OWN},
    ),
    "untouched": (domain(disk(f"<source file='/d'>{UNTOUCHED}</source>")), {"/d": NONE}),
    "another model's": (
        domain(disk("<source file='/d'><seclabel model='dac' relabel='no'/></source>")),
        {"/d": IMAGE},
    ),
    "no model": (domain(disk("<source file='/d'><seclabel relabel='no'/></source>")), {"/d": NONE}),
    "a chain": (domain(disk(more=CHAIN)), {"/d": IMAGE, "/b1": CONTENT, "/b2": CONTENT}),
    "a chain under what is only read": (
        domain(disk(more=f"<readonly/>{CHAIN}")),
        {"/d": CONTENT, "/b1": CONTENT, "/b2": CONTENT},
    ),
    "a chain under a label": (
        domain(disk(f"<source file='/d'>{LABEL}</source>", CHAIN)),
        {"/d": OWN, "/b1": OWN, "/b2": OWN},
    ),
    "a chain untouched": (
        domain(disk(f"<source file='/d'>{UNTOUCHED}</source>", CHAIN)),
        {"/d": NONE, "/b1": NONE, "/b2": NONE},
    ),
    "a label within a chain": (
        domain(disk(more=CHAIN.replace("'/b1'/>", f"'/b1'>{UNTOUCHED}</source>"))),
        {"/d": IMAGE, "/b1": NONE, "/b2": CONTENT},
    ),
    "a data file": (
        domain(
            disk(
                "<source file='/d'><dataStore type='file'><format type='raw'/>"
                "<source file='/data'/></dataStore></source>"
            )
        ),
        {"/d": IMAGE, "/data": IMAGE},
    ),
    "where a copy goes": (
        domain(disk(more="<mirror type='file' job='copy'><source file='/m'/></mirror>")),
        {"/d": IMAGE, "/m": IMAGE},
    ),
    "an empty drive": (domain(disk("")), {}),
    "a drive with an empty source": (domain(disk("<source startupPolicy='optional'/>")), {}),
    "a folder": (domain(disk("<source dir='/f'/>", kind="dir")), {"/f": NONE}),
    "a network disk": (
        domain(disk("<source protocol='rbd' name='p/i'/>", kind="network")),
        {"": NONE},
    ),
    "a volume": (domain(disk("<source pool='p' volume='v'/>", kind="volume")), {"": NONE}),
    "NVMe": (
        domain(
            disk(
                "<source type='pci' namespace='1'><address domain='0x0000' bus='0x01' slot='0x00'"
                " function='0x0'/></source>",
                kind="nvme",
            )
        ),
        {"": IMAGE},
    ),
    "a vhost-user disk": (
        domain(disk("<source type='unix' path='/s'/>", kind="vhostuser")),
        {"/s": NONE},
    ),
    "a vDPA disk": (domain(disk("<source dev='/dev/v'/>", kind="vhostvdpa")), {"/dev/v": NONE}),
    "kernel and all": (
        domain(
            head="<os><kernel>/k</kernel><initrd>/i</initrd><dtb>/t</dtb><loader>/l</loader>"
            "<nvram template='/x'>/n</nvram><acpi><table type='slic'>/a</table></acpi></os>"
        ),
        {"/k": CONTENT, "/i": CONTENT, "/t": CONTENT, "/a": CONTENT, "/n": IMAGE, "/l": NONE},
    ),
    "nvram with a source": (
        domain(head="<os><nvram type='block'><source dev='/n'/></nvram></os>"),
        {"/n": IMAGE},
    ),
    "fw_cfg": (
        domain(head="<sysinfo type='fwcfg'><entry name='o' file='/e'/></sysinfo>"),
        {"/e": CONTENT},
    ),
    "USB": (
        domain(
            "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/>"
            "<address bus='1' device='3'/></source></hostdev>"
        ),
        {"/dev/bus/usb/001/003": IMAGE},
    ),
    "PCI": (
        domain(
            "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='0x06' slot='2'"
            " function='0x5'/></source></hostdev>"
        ),
        {"": IMAGE},
    ),
    "SCSI": (
        domain(
            "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/></source>"
            "<readonly/></hostdev>"
        ),
        {"": CONTENT},
    ),
    "SCSI, shareable": (
        domain(
            "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/></source>"
            "<shareable/></hostdev>"
        ),
        {"": SHARED},
    ),
    "iSCSI": (
        domain(
            "<hostdev mode='subsystem' type='scsi'><source protocol='iscsi' name='i'/></hostdev>"
        ),
        {"": NONE},
    ),
    "vhost-scsi": (
        domain("<hostdev mode='subsystem' type='scsi_host'><source protocol='vhost'/></hostdev>"),
        {"/dev/vhost-scsi": IMAGE},
    ),
    "a mediated device": (
        domain(
            "<hostdev mode='subsystem' type='mdev'><source><address uuid='u'/></source></hostdev>"
        ),
        {"": IMAGE},
    ),
    "a device of a container": (
        domain(
            "<hostdev mode='capabilities' type='misc'><source><char>/dev/c</char></source>"
            "</hostdev>"
        ),
        {"/dev/c": IMAGE},
    ),
    "input devices": (
        domain(
            "<input type='passthrough'><source evdev='/dev/input/e1'/></input>"
            "<input type='evdev'><source dev='/dev/input/e2'/></input><input type='mouse'/>"
        ),
        {"/dev/input/e1": IMAGE, "/dev/input/e2": IMAGE},
    ),
    "memory": (
        domain(
            "<memory model='nvdimm'><source><path>/m1</path></source></memory>"
            "<memory model='virtio-pmem'><source><path>/m2</path></source></memory>"
            "<memory model='dimm'/>"
        ),
        {"/m1": IMAGE, "/m2": IMAGE},
    ),
    "SGX": (
        domain("<memory model='sgx-epc'/>"),
        {"/dev/sgx_vepc": IMAGE, "/dev/sgx_provision": IMAGE},
    ),
    "a TPM of the host": (
        domain("<tpm><backend type='passthrough'><device path='/dev/tpm1'/></backend></tpm>"),
        {"/dev/tpm1": IMAGE},
    ),
    "an emulated TPM": (
        domain("<tpm><backend type='emulator' version='2.0'/></tpm>"),
        {f"/var/lib/libvirt/swtpm/{UUID}/tpm2": IMAGE},
    ),
    "an emulated TPM elsewhere": (
        domain("<tpm><backend type='emulator'><source type='dir' path='/t'/></backend></tpm>"),
        {"/t": IMAGE},
    ),
    "a TPM's socket": (
        domain("<tpm><backend type='external'><source type='unix' path='/t'/></backend></tpm>"),
        {"/t": IMAGE},
    ),
    "character devices": (
        domain(
            "<serial type='file'><source path='/c1'/></serial>"
            "<parallel type='dev'><source path='/c2'/></parallel>"
            "<console type='pipe'><source path='/c3'/></console>"
            "<channel type='unix'><source mode='connect' path='/c4'/></channel>"
            "<channel type='unix'><source mode='bind' path='/c5'/></channel>"
            f"<serial type='dev'><source path='/c6'>{LABEL}</source></serial>"
            f"<serial type='dev'><source path='/c7'>{UNTOUCHED}</source></serial>"
            "<serial type='pty'><source path='/dev/pts/1'/></serial>"
        ),
        {"/c1": IMAGE, "/c2": IMAGE, "/c3": IMAGE, "/c4": IMAGE, "/c6": OWN, "/c7": NONE},
    ),
    "smartcards": (
        domain(
            "<smartcard mode='host-certificates'><database>/db</database></smartcard>"
            "<smartcard mode='passthrough' type='dev'><source path='/c'/></smartcard>"
            "<smartcard mode='host'/>"
        ),
        {"/db": CONTENT, "/c": IMAGE},
    ),
    "a smartcard's own database": (
        domain("<smartcard mode='host-certificates'/>"),
        {"/etc/pki/nssdb": CONTENT},
    ),
    "shared folders": (
        domain("<filesystem type='mount'><source dir='/s'/><target dir='t'/></filesystem>"),
        {"/s": NONE},
    ),
    "interfaces": (
        domain(
            "<interface type='vhostuser'><source type='unix' path='/v'/></interface>"
            "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>"
            "<interface type='network'><source network='default'/></interface>"
        ),
        {"/v": NONE, "/dev/vhost-vdpa-0": NONE},
    ),
    "huge pages": (domain(head="<memoryBacking><hugepages/></memoryBacking>"), {"": IMAGE}),
    "a variable store": (domain(head="<os><varstore path='/v'/></os>"), {"/v": IMAGE}),
    "a crash store": (domain("<pstore><path>/p</path></pstore>"), {"/p": IMAGE}),
    "a domain that is not labelled": (
        domain(disk(), seclabel=STATIC.replace("relabel='yes'", "")),
        {"/d": NONE},
    ),
    "a domain without labels": (domain(disk(), seclabel="<seclabel type='none'/>"), {"/d": NONE}),
    "a label that libvirt draws": (domain(disk(), seclabel=""), {"/d": IMAGE}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_libvirts_label_for_each_path(case: tuple[bytes, dict[str, str | None]]) -> None:
    text, expected = case
    found = described(text)
    assert (found.name, found.uuid) == ("web", UUID)
    assert {used.path: label_of(used, CONTEXTS, IMAGE) for used in found.uses} == expected


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_each_thing_is_in_the_book_or_told(case: tuple[bytes, dict[str, str | None]]) -> None:
    found = described(case[0])
    entered = {hold.path: hold.access for hold in holds(found)}
    left = [used for used, why in uncovered(found) if why]
    assert len(left) + sum(used.path in entered for used in found.uses) == len(found.uses)
    wanted = {IMAGE: Access.EXCLUSIVE, CONTENT: Access.PUBLIC}
    for used in found.uses:
        if used.path in entered:
            assert used.sort is Sort.FILE
            assert entered[used.path] is wanted[str(label_of(used, CONTEXTS, IMAGE))]


def test_a_groups_disk_and_one_with_a_label_of_ones_own() -> None:
    mark = (
        "<metadata><x:vm xmlns:x='urn:org.svirt1:domain' name='web'>"
        "<x:disk path='/d' group='pair'/></x:vm></metadata>"
    )
    text = disk(f"<source file='/d'>{LABEL}</source>") + disk(f"<source file='/e'>{LABEL}</source>")
    found = described(domain(text, head=mark))
    assert found.mark is not None
    assert found.mark.name == "web"
    assert holds(found) == (Hold("/d", Access.GROUP, "pair"),)
    ((used, why),) = uncovered(found)
    assert (used.path, used.gives) == ("/e", Given.OWN)
    assert OWN in why


BAD = {
    "nothing": b"",
    "no XML": b"hello",
    "half": b"<domain><name>x</name>",
    "two": b"<domain><name>x</name></domain><domain/>",
    "another element": b"<network><name>x</name></network>",
    "no name": b"<domain><uuid/></domain>",
    "a zero": b"<domain>\0<name>x</name></domain>",
    "not UTF-8": b"<domain><name>\xff</name></domain>",
    "another encoding": "<?xml version='1.0' encoding='UTF-16'?><domain/>".encode("utf-16"),
    "a prefix of nobody's": b"<domain><x:name>x</x:name></domain>",
    "an entity of nobody's": b"<domain><name>&x;</name></domain>",
    "a document type": b"<!DOCTYPE domain><domain><name>x</name></domain>",
    "an entity": b"<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/shadow'>]><domain><name>&x;</name></domain>",
    "a bomb": b"<!DOCTYPE d [<!ENTITY a 'aaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]>"
    b"<domain><name>&b;</name></domain>",
    "deep": b"<domain><name>x</name>" + b"<a>" * 500 + b"</a>" * 500 + b"</domain>",
    "many": b"<domain><name>x</name>" + b"<a/>" * 200_000 + b"</domain>",
    "huge": b"<domain><name>x</name>" + b" " * (5 << 20) + b"</domain>",
}


@pytest.mark.parametrize("text", BAD.values(), ids=list(BAD))
def test_what_is_no_domain(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(it|the domain) "):
        described(text)


def _damaged(text: bytes) -> st.SearchStrategy[bytes]:
    places = st.integers(0, len(text))
    pieces = st.sampled_from(
        [b"", b"<", b">", b"/", b"'", b"&", b"\0", b"<!--", b"]]>", b"<source>"]
    )
    return st.builds(
        lambda start, end, new: text[: min(start, end)] + new + text[max(start, end) :],
        places,
        places,
        pieces,
    )


@given(st.sampled_from([text for text, _ in CASES.values()]).flatmap(_damaged))
def test_whatever_comes_is_a_domain_or_refused_as_one(text: bytes) -> None:
    try:
        found = described(text)
    except ValueError:
        return
    for used in found.uses:
        assert used.gives is not Given.OWN or used.label
        label_of(used, CONTEXTS, IMAGE)
    holds(found)
    uncovered(found)
