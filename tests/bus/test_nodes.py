# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices, fifos and sockets: labelled through what is held, and never opened."""

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import Variant
from tests.attack import OWN, REFUSED
from tests.bus.test_verify import verify
from tests.groups import client_of
from tests.sandbox import Sandbox
from tests.sandbox.accounts import ANN, BEN, Account
from tests.support import Client, Daemon, label, resources, set_label

ACQUIRE = "saa{sv}a{sv}"
USB = "system_u:object_r:usb_device_t:s0"
TAP = "system_u:object_r:tun_tap_device_t:s0"
FILE = "system_u:object_r:virt_image_t:s0"
BUSY = OWN + "ResourceBusy"
# A number that no driver has: whoever opened the node would be told so.
MAJOR = 240


def node(path: Path, minor: int, text: str | None = USB, major: int = MAJOR) -> Path:
    """A character device that leads nowhere."""
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
    if text is not None:
        set_label(path, text)
    return path


def unlabel(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.removexattr(path, "security.selinux")


def listening(path: Path) -> socket.socket:
    """A socket that somebody listens on."""
    sock = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_PATH)
    sock.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    sock.listen()
    return sock


def error(client: Client, name: str, given: str, *paths: Path | str, **more: Any) -> str:
    found = client.error("Acquire", ACQUIRE, name, resources(*paths, **more), {})
    assert found.name == given, found
    return found.text


def test_a_device_is_labelled_and_given_back(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    stick = node(tmp_path / "stick", 1)
    with pytest.raises(OSError, match="No such device"):
        os.open(stick, os.O_RDONLY)
    client.acquire("vm", stick)
    vm = client.properties("vm")
    assert label(stick) == vm["ImageContext"]
    (held,) = vm["Resources"]
    assert (held["path"], held["original"]) == (str(stick), USB)
    client.release("vm")
    assert label(stick) == USB
    unlabel(stick)


def test_two_vms_on_one_device_are_told_of_each_other(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """By the very node, by a link to it, and by another node of the same device."""
    group = node(tmp_path / "7", 7)
    twin = node(tmp_path / "twin", 7)
    os.symlink(group, tmp_path / "link")
    client.acquire("first", group)
    for other in (group, tmp_path / "link", twin):
        said = error(client, "second", BUSY, other)
        assert "VM 'first'" in said
        assert str(group) in said
    assert label(twin) == USB
    client.release("first")
    both = client.error("Acquire", ACQUIRE, "vm", resources(group, twin), {})
    assert "are the same device" in both.text
    # A block device of that number is another one.
    os.mknod(tmp_path / "block", stat.S_IFBLK | 0o600, os.makedev(MAJOR, 7))
    client.acquire("first", group)
    client.release("first")
    unlabel(group, twin)


def test_two_nodes_of_one_disk(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    done = subprocess.run(
        ["losetup", "--find", "--show", disk], capture_output=True, text=True, check=True
    )
    loop = Path(done.stdout.strip())
    try:
        twin = tmp_path / "twin"
        os.mknod(twin, stat.S_IFBLK | 0o600, os.stat(loop).st_rdev)
        before = label(loop)
        client.acquire("first", loop)
        said = error(client, "second", BUSY, twin, access="public")
        assert f"is the same device as one that is held by VM 'first' (as {loop})" in said
        client.release("first")
        assert label(loop) == before
        client.acquire("second", twin)
        client.release("second")
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_what_the_host_has_once(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    shown = {
        "tun": (10, 200, "/dev/net/tun, the one node"),
        "vfio": (10, 196, "/dev/vfio/NUMBER"),
        "kvm": (10, 232, "one for the whole host"),
        "mem": (1, 1, "memory of the host"),
        "console": (5, 1, "a terminal of the host"),
    }
    for name, (major, minor, text) in shown.items():
        path = node(tmp_path / name, minor, TAP, major)
        assert text in error(client, "vm", REFUSED, path)
        assert label(path) == TAP
        unlabel(path)
    if os.path.exists("/dev/net/tun"):
        with open("/dev/net/tun", "r+b", buffering=0) as tun:
            by_fd = [{"fd": Variant("h", 0)}]
            refused = client.error("Acquire", ACQUIRE, "vm", by_fd, {}, fds=[tun.fileno()])
            assert "leave this node out of the request" in refused.text
    odd = node(tmp_path / "odd", 3, FILE)
    assert "relabel-devices-from" in error(client, "vm", REFUSED, odd)
    for access in ("readonly", "public"):
        assert "ask for access 'exclusive'" in error(client, "vm", REFUSED, odd, access=access)
    offline = {"goal": Variant("s", "offline")}
    stick = node(tmp_path / "stick", 4)
    found = client.error("Acquire", ACQUIRE, "vm", resources(stick), offline)
    assert "keeps the VM from the host's network" in found.text
    unlabel(odd, stick)


def test_a_device_that_came_by_descriptor(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """As a macvtap does: it is labelled at its node. A loop device stands for it, which has an
    effect to open, and is there."""
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    set_label(fifo, FILE)
    fd = os.open(fifo, os.O_RDWR)
    client.call("Acquire", ACQUIRE, "vm", [{"fd": Variant("h", 0)}], {}, fds=[fd])
    assert label(fifo) == client.properties("vm")["ImageContext"]
    os.close(fd)
    client.release("vm")
    assert label(fifo) == FILE
    unlabel(fifo)


def test_fifos_and_sockets_over_restarts(own_daemon: Daemon, tmp_path: Path) -> None:
    """Given back without anybody at the other end, also by a daemon that is started later."""
    daemon, client = own_daemon, Client()
    try:
        fifo, sock = tmp_path / "pipe", tmp_path / "sock"
        os.mkfifo(fifo)
        set_label(fifo, FILE)
        with listening(sock):
            set_label(sock, FILE)
            client.acquire("vm", fifo, sock)
            daemon.kill()
            daemon.start()
            assert label(fifo) == label(sock) == client.properties("vm")["ImageContext"]
            findings = client.call("Verify", "ba{sv}", False, {})
            assert client.vms() == {"vm": "labelled"}, findings
            client.release("vm")
            assert label(fifo) == label(sock) == FILE
        unlabel(fifo, sock)
    finally:
        client.close()


@pytest.fixture
def unplugged(sandbox: Sandbox) -> Iterator[Path]:
    """A node as the kernel makes one, in its own file system."""
    path = Path(f"/dev/svirt-test-{os.getpid()}")
    node(path, 5)
    yield path
    path.unlink(missing_ok=True)


def test_a_stick_is_taken_out_and_another_one_put_in(
    daemon: Daemon, client: Client, unplugged: Path
) -> None:
    """What is there now was not given to the VM; and the first one's label went with its node."""
    client.acquire("vm", unplugged)
    node(unplugged.with_name("svirt-test-new"), 5)
    os.rename(unplugged.with_name("svirt-test-new"), unplugged)

    (finding,) = verify(client, repair=True)
    assert (finding["kind"], finding["path"]) == ("replaced", str(unplugged))
    assert label(unplugged) == USB
    # It is the device's number by which another VM may not have it meanwhile.
    assert "VM 'vm'" in error(client, "other", BUSY, unplugged)
    client.release("vm")
    assert label(unplugged) == USB
    assert client.manager()["PairsQuarantined"] == 0
    client.acquire("vm", unplugged)
    unplugged.unlink()
    client.release("vm")
    assert client.manager()["PairsQuarantined"] == 0


# -- as users ------------------------------------------------------------------------------------


@pytest.fixture
def place(sandbox: Sandbox) -> Iterator[Path]:
    """A folder that everybody may pass through."""
    folder = Path(tempfile.mkdtemp(dir=sandbox.state))
    folder.chmod(0o755)
    yield folder
    left = [str(path) for path in folder.iterdir() if label(path) is not None]
    shutil.rmtree(folder)
    assert not left


def of_user(account: Account, path: Path, mode: int = 0o600) -> Path:
    os.chown(path, account.uid, account.gid)
    path.chmod(mode)
    return path


def test_a_users_own_fifo_and_nobody_elses(daemon: Daemon, client: Client, place: Path) -> None:
    for name in ("mine", "closed", "open"):
        os.mkfifo(place / name)
    mine = of_user(ANN, place / "mine")
    closed = of_user(BEN, place / "closed")
    open_ = of_user(BEN, place / "open", 0o666)
    stick = of_user(BEN, node(place / "stick", 6), 0o666)
    with client_of(ANN) as ann:
        ann.acquire("vm", mine)
        assert label(mine) == ann.properties("vm")["ImageContext"]
        ann.release("vm")
        assert label(mine) is None
        assert f"permission denied for uid {ANN.uid}" in error(ann, "vm", REFUSED, closed)
        assert f"belongs to uid {BEN.uid}" in error(ann, "vm", REFUSED, open_)
        assert f"belongs to uid {BEN.uid}" in error(ann, "vm", REFUSED, stick)
        os.chown(stick, 0, 0)
        assert "belongs to uid 0" in error(ann, "vm", REFUSED, stick)
    assert client.vms() == {}
    unlabel(stick)
