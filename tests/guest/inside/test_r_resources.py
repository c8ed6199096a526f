# SPDX-License-Identifier: LGPL-2.1-or-later
"""All kinds of resources, where the kernel decides: chains, devices, fifos, sockets, and mounts."""

import json
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from svirtd.host.bus import BusError, Variant
from tests.guest.inside.audit import Audit
from tests.guest.inside.test_b_isolation import DENIED
from tests.guest.inside.vms import (
    FOLDER,
    ORIGINAL,
    QEMU,
    Captive,
    Machine,
    Qemu,
    captive,
    disk,
)
from tests.support import Client, label, resources, set_label, unwrap, wait_for

CONTENT: Final = "system_u:object_r:virt_content_t:s0"
_ACQUIRE: Final = "saa{sv}a{sv}"
_PERSISTENT: Final = Variant("b", True)


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


# -- chains --------------------------------------------------------------------------------------


def overlay(name: str, base: Path) -> Path:
    path = FOLDER / f"{name}.qcow2"
    path.unlink(missing_ok=True)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)
    set_label(path, ORIGINAL)
    return path


class Layered(Qemu):
    """A QEMU whose disk lies over another file."""

    def __init__(self, client: Client, name: str, top: Path, **more: str) -> None:
        file = {"driver": "file", "filename": str(top), "locking": "off"}
        node = {"driver": "qcow2", "node-name": "d0", "file": file}
        argv = [QEMU, "-machine", "none", "-nodefaults", "-display", "none", "-m", "32"]
        argv += ["-qmp", "unix:{runtime}/qmp,server=on,wait=off", "-blockdev", json.dumps(node)]
        values = {"path": str(top), "format": "qcow2", **more}
        named = [{key: Variant("s", value) for key, value in values.items()}]
        client.call("Launch", "sasaa{sv}a{sv}", name, argv, named, {})
        Machine.__init__(self, client, name, "qmp")
        self.greet()


def test_two_vms_read_one_base_and_write_their_own(client: Client) -> None:
    base = disk("base")
    before = base.read_bytes()
    tops = [overlay(name, base) for name in "ab"]
    vms = [Layered(client, name, top) for name, top in zip("ab", tops, strict=True)]
    assert label(base) == CONTENT
    for vm, top in zip(vms, tops, strict=True):
        assert label(top) == vm.image_context
        assert vm.reads() == vm.writes() == ""
    vms[0].end()
    assert label(base) == CONTENT
    assert vms[1].reads() == ""
    vms[1].end()
    assert label(base) == ORIGINAL
    assert [label(top) for top in tops] == [ORIGINAL, ORIGINAL]
    assert base.read_bytes() == before


def test_a_base_of_ones_own(client: Client, audit: Audit) -> None:
    base = disk("base")
    vm = Layered(client, "a", overlay("a", base), backing="private")
    other = Captive(client, "b")
    assert vm.reads() == ""
    with audit.denied("read open", other.context, str(label(base))):
        assert other.fails(f"read('{base}')") in DENIED
    vm.end()
    other.end()


# -- nodes ---------------------------------------------------------------------------------------


@pytest.fixture
def tap() -> Iterator[Path]:
    """The node of a macvtap, as the kernel and udev make it."""
    run("ip", "link", "add", "dummy9", "type", "dummy")
    run("ip", "link", "add", "link", "dummy9", "name", "tap9", "type", "macvtap")
    number = Path("/sys/class/net/tap9/ifindex").read_text("ascii").strip()
    path = Path(f"/dev/tap{number}")
    wait_for("its label", lambda: path.exists() and ":tun_tap_device_t:" in str(label(path)))
    yield path
    run("ip", "link", "delete", "dummy9")


def opens(path: Path) -> str:
    return f"os.close(os.open('{path}', os.O_RDWR | os.O_NONBLOCK))"


def test_a_device_is_one_vms(client: Client, audit: Audit, tap: Path) -> None:
    before = label(tap)
    free = Captive(client, "b")
    free.do(opens(tap))  # the reference policy lets every VM, as long as nobody has labelled it
    vm = Captive(client, "a", tap)
    assert label(tap) == vm.image_context
    vm.do(opens(tap))
    with audit.denied("read write open", free.context, vm.image_context, "chr_file"):
        assert free.fails(opens(tap)) in DENIED
    twin = tap.with_name("svirt-twin")
    os.mknod(twin, 0o20600, os.stat(tap).st_rdev)
    set_label(twin, str(before))
    for other in (tap, twin):
        with pytest.raises(BusError, match=rf"VM 'a'.*{tap}"):
            client.acquire("c", other)
    twin.unlink()
    vm.end()
    free.end()
    assert label(tap) == before


def test_a_device_that_is_taken_out(client: Client, tap: Path) -> None:
    quarantined = client.manager()["PairsQuarantined"]
    vm = Captive(client, "a", tap)
    run("ip", "link", "delete", "tap9")
    wait_for("the node is gone", lambda: not tap.exists())
    vm.end()
    assert client.manager()["PairsQuarantined"] == quarantined


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/dev/net/tun", "the one node behind all"),
        ("/dev/kvm", "one for the whole host"),
        ("/dev/mem", "memory of the host"),
        ("/dev/null", ""),
        ("/dev/nvme0", ""),
    ],
)
def test_what_is_the_hosts(client: Client, path: str, why: str) -> None:
    made = not os.path.exists(path)
    if made:
        os.mknod(path, 0o20666, os.makedev(10, 232))
        run("restorecon", path)
    try:
        before = label(path)
        with pytest.raises(BusError) as refused:
            client.acquire("vm", path)
        assert refused.value.name == "org.svirt1.Error.ResourceRefused"
        assert why in refused.value.text
        assert label(path) == before
    finally:
        if made:
            os.unlink(path)


def test_fifos_and_sockets(client: Client, audit: Audit) -> None:
    fifo, place = FOLDER / "pipe", FOLDER / "sock"
    for path in (fifo, place):
        path.unlink(missing_ok=True)
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen()
        for path in (fifo, place):
            set_label(path, ORIGINAL)
        vm, other = Captive(client, "a", fifo, place), Captive(client, "b")
        assert label(fifo) == label(place) == vm.image_context
        vm.do(opens(fifo))
        with audit.denied("read write open", other.context, vm.image_context, "fifo_file"):
            assert other.fails(opens(fifo)) in DENIED
        with audit.denied("write", other.context, vm.image_context, "sock_file"):
            assert other.fails(f"connect('{place}')") in DENIED
        # The VM comes as far as to who listens: whom it may talk to is the policy's to say.
        with audit.denied("connectto", vm.context, "*", "unix_stream_socket"):
            assert vm.fails(f"connect('{place}')") in DENIED
        vm.end()
        other.end()
        assert label(fifo) == label(place) == ORIGINAL


# -- mounts --------------------------------------------------------------------------------------


def fat(path: Path) -> Path:
    """An image with an empty FAT file system, the smallest that the kernel takes."""
    boot = b"\xeb\x3c\x90svirtd  " + struct.pack(
        "<HBHBHHBHHHII", 512, 1, 1, 1, 16, 128, 0xF8, 1, 32, 2, 0, 0
    )
    boot += struct.pack("<BBBI", 0x80, 0, 0x29, 1) + b"SVIRTD     FAT12   "
    sectors = boot.ljust(510, b"\0") + b"\x55\xaa" + b"\xf8\xff\xff".ljust(512, b"\0")
    path.write_bytes(sectors.ljust(128 * 512, b"\0"))
    return path


@contextmanager
def mounted(*what: str | Path) -> Iterator[Path]:
    place = FOLDER / "mounted"
    place.mkdir(parents=True, exist_ok=True)
    run("mount", *what, place)
    try:
        yield place
    finally:
        run("umount", place)


def planned(client: Client, path: Path, access: str) -> dict[str, Any]:
    steps = unwrap(client.call("Plan", _ACQUIRE, "vm", resources(path, access=access), {})[0])
    return dict(steps[0])


def acquired(client: Client, path: Path, access: str) -> None:
    client.acquire("vm", path, access=access)


def test_a_mount_says_the_label(client: Client) -> None:
    FOLDER.mkdir(exist_ok=True)
    image = fat(FOLDER / "fat.img")
    with mounted("-o", "loop", image) as place:
        path = place / "a.img"
        path.write_bytes(b"disk" * 128)
        before = label(path)
        for access in ("exclusive", "public"):
            for ask in (planned, acquired):
                with pytest.raises(BusError) as refused:
                    ask(client, path, access)
                assert f"file system of kind vfat, mounted at {place}" in refused.value.text
                assert "cannot keep a label" in refused.value.text
                assert "context=" in refused.value.text
        assert label(path) == before
    with mounted("-o", f"loop,context={CONTENT}", image) as place:
        path = place / "a.img"
        assert "mounted with it (context=)" in planned(client, path, "public")["stays"]
        with pytest.raises(BusError, match="and can carry nothing else"):
            client.acquire("vm", path)
        vm = Captive(client, "a", path, access="public")
        assert label(path) == CONTENT
        assert vm.do(f"read('{path}')") == 512
        vm.end()
        assert label(path) == CONTENT


def test_a_mount_with_the_vms_own_label(client: Client, audit: Audit) -> None:
    client.acquire("own", persistent=_PERSISTENT)
    shown = client.properties("own")
    client.release("own")
    option = f'context="{shown["ImageContext"]}"'
    quarantined = client.manager()["PairsQuarantined"]
    with mounted("-t", "tmpfs", "-o", option, "none") as place:
        path = place / "a.img"
        path.write_bytes(b"disk" * 128)
        other = Captive(client, "b")
        vm = Captive(client, "own", path, persistent=_PERSISTENT)
        assert vm.do(f"write('{path}')") == 5
        with audit.denied("search", other.context, shown["ImageContext"], "dir"):
            assert other.fails(f"write('{path}')") in DENIED
        with pytest.raises(BusError, match="is held by VM 'own'"):
            client.acquire("third", path)
        vm.end()
        other.end()
        with pytest.raises(BusError, match="and can carry nothing else"):
            client.acquire("third", path)
        assert label(path) == shown["ImageContext"]
        # As long as it is mounted so, nobody else gets this set.
        client.call("Forget", "sa{sv}", "own", {})
        client.call("Verify", "ba{sv}", True, {})
        assert client.manager()["PairsQuarantined"] == quarantined + 1
        assert label(path) == shown["ImageContext"]
    client.call("Verify", "ba{sv}", True, {})
    wait_for("the set is free", lambda: client.manager()["PairsQuarantined"] == quarantined)


class Broken(Captive):
    """One that was launched already."""

    def __init__(self, client: Client, name: str, socket_name: str) -> None:
        Machine.__init__(self, client, name, socket_name)


# -- memory --------------------------------------------------------------------------------------


def test_a_folder_for_memory(client: Client, audit: Audit) -> None:
    """Files on hugetlbfs, made by the VM in its own folder, as QEMU makes its guest's memory."""
    pages = Path("/proc/sys/vm/nr_hugepages")
    pages.write_text("4", "ascii")
    page = 2 << 20
    with mounted("-t", "hugetlbfs", "none") as place:
        folder = place / "a"
        folder.mkdir()
        before = label(folder)
        tree = resources(folder)[0] | {"recursive": Variant("b", True)}
        client.call("Launch", "sasaa{sv}a{sv}", "a", captive(), [tree], {})
        vm, other = Broken(client, "a", "control"), Captive(client, "b")
        assert label(folder) == vm.image_context
        file = f"os.open('{folder}/memory', os.O_RDWR | os.O_CREAT, 0o600)"
        memory = f"(lambda fd: (os.ftruncate(fd, {page}), mmap.mmap(fd, {page}), os.close(fd))[0])"
        assert vm.do(f"{memory}({file})") is None
        with audit.denied("search", other.context, vm.image_context, "dir"):
            assert other.fails(f"read('{folder}/memory')") in DENIED
        assert vm.do(f"os.unlink('{folder}/memory')") is None
        vm.end()
        other.end()
        assert label(folder) == before
        folder.rmdir()
    pages.write_text("0", "ascii")
