# SPDX-License-Identifier: LGPL-2.1-or-later
"""File systems that are full or read-only for real, under the files and under the book."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack import OWN, assert_refused
from tests.crash.errors import Errors
from tests.fixtures import leftovers
from tests.mounts import mounted, remount
from tests.sandbox import Sandbox
from tests.support import Client, Daemon, image, label, resources, set_label
from tests.zygote import Zygote

BLOCK = 1024
FIRST = "system_u:object_r:virt_image_t:s0"
SECOND = "unconfined_u:object_r:user_home_t:s0"


@pytest.fixture
def small(sandbox: Sandbox, tmp_path: Path) -> Iterator[Path]:
    """An ext4 whose inodes have no room: every label takes a block, shared by those that equal."""
    disk = tmp_path / "ext4"
    image(disk, 2 << 20)
    options = ["-q", "-F", "-I", "128", "-b", str(BLOCK), "-N", "512", "-O", "^has_journal"]
    subprocess.run(["mkfs.ext4", *options, disk], check=True, stderr=subprocess.DEVNULL)
    with mounted(tmp_path / "small", "-o", "loop", str(disk)) as folder:
        yield folder


@pytest.fixture
def daemon(sandbox: Sandbox, zygote: Zygote, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that may be ended and started; nothing is left of its VMs at the end."""
    daemon = Daemon(tmp_path / "d", zygote=zygote)
    daemon.start()
    yield daemon
    problems = leftovers(daemon)
    assert daemon.stop() == 0
    assert not problems, problems


def fill(folder: Path, *, blocks_left: int = 0) -> Path:
    """Take all the space but for some blocks; return a folder with what takes it."""
    ballast = folder / "ballast"
    ballast.mkdir()
    kept = [ballast / f"kept{number}" for number in range(blocks_left)]
    for path in kept:
        path.write_bytes(b"x" * BLOCK)
    # A file needs blocks for its own map, too: what a large one leaves goes to a small one.
    for name in ("large", "small"):
        with contextlib.suppress(OSError), open(ballast / name, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * BLOCK)
    for path in kept:
        path.unlink()
    return ballast


def test_no_space_for_the_second_label(daemon: Daemon, client: Client, small: Path) -> None:
    first, second = image(small / "first.img", 4096), image(small / "second.img", 4096)
    asked = [*resources(first), *resources(second, access="readonly")]
    ballast = fill(small, blocks_left=1)
    refused = client.error("Acquire", "saa{sv}a{sv}", "vm", asked, {})
    assert_refused(refused, OWN + "LabelRefused", str(second), "no space left")
    assert (label(first), label(second)) == (None, None)
    assert client.vms() == {}
    shutil.rmtree(ballast)
    client.call("Acquire", "saa{sv}a{sv}", "vm", asked, {})
    assert None not in (label(first), label(second))
    fill(small)
    client.release("vm")
    assert (label(first), label(second)) == (None, None)


@pytest.mark.parametrize("how", ["release", "restart"])
def test_no_space_for_the_way_back(daemon: Daemon, client: Client, small: Path, how: str) -> None:
    """Two labels became one, which is one block: the two that they were have no room any more."""
    disks = [image(small / "first.img", 4096), image(small / "second.img", 4096)]
    set_label(disks[0], FIRST)
    set_label(disks[1], SECOND)
    client.acquire("vm", *disks, access="public")
    held = label(disks[0])
    assert held == label(disks[1])
    ballast = fill(small)
    refused = client.error("Release", "sa{sv}", "vm", {})
    assert_refused(refused, OWN + "Drift", str(disks[0]), "no space left", "release the VM")
    assert client.vms() == {"vm": "failed"}
    assert "no space left" in client.properties("vm")["StateReason"]
    assert label(disks[0]) == held
    daemon.kill()
    daemon.start()
    assert client.vms() == {"vm": "failed"}
    shutil.rmtree(ballast)
    if how == "release":
        client.release("vm")
    else:
        daemon.kill()
        daemon.start()
    assert client.vms() == {}
    assert [label(disk) for disk in disks] == [FIRST, SECOND]
    os.removexattr(disks[0], "security.selinux")
    os.removexattr(disks[1], "security.selinux")


def test_a_file_system_that_is_read_only(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    other = image(tmp_path / "other.img")
    with mounted(tmp_path / "fs", "-t", "tmpfs", "tmpfs") as folder:
        disk = image(folder / "a.img")
        remount(folder, "ro")
        asked = [*resources(other), *resources(disk, access="readonly")]
        refused = client.error("Acquire", "saa{sv}a{sv}", "vm", asked, {})
        assert_refused(refused, OWN + "LabelRefused", str(disk), "remount it read-write")
        assert (label(other), label(disk)) == (None, None)
        assert client.vms() == {}
        remount(folder, "rw")
        client.call("Acquire", "saa{sv}a{sv}", "vm", asked, {})
        held = label(disk)
        remount(folder, "ro")
        refused = client.error("Release", "sa{sv}", "vm", {})
        assert_refused(refused, OWN + "Drift", str(disk), "remount it read-write")
        assert (label(other), label(disk)) == (None, held)
        daemon.kill()
        daemon.start()
        assert client.vms() == {"vm": "failed"}
        assert label(disk) == held
        remount(folder, "rw")
        daemon.kill()
        daemon.start()
        assert client.vms() == {}
        assert label(disk) is None


def test_a_file_that_may_not_be_changed(errors: Errors, tmp_path: Path) -> None:
    """The flag of chattr: even root is refused."""
    client = errors.world.client
    errors.start()
    disks = [image(tmp_path / f"{number}.img") for number in range(3)]
    subprocess.run(["chattr", "+i", disks[2]], check=True)
    try:
        refused = client.error(
            "Acquire", "saa{sv}a{sv}", "vm", resources(*disks, access="readonly"), {}
        )
    finally:
        subprocess.run(["chattr", "-i", disks[2]], check=True)
    assert_refused(refused, OWN + "LabelRefused", str(disks[2]), "immutable")
    assert [label(disk) for disk in disks] == [None] * 3
    client.acquire("vm", *disks)
    subprocess.run(["chattr", "+i", disks[0]], check=True)
    try:
        refused = client.error("Release", "sa{sv}", "vm", {})
    finally:
        subprocess.run(["chattr", "-i", disks[0]], check=True)
    assert_refused(refused, OWN + "Drift", str(disks[0]), "immutable")
    assert [label(disk) for disk in disks[1:]] == [None] * 2
    client.release("vm")
    assert label(disks[0]) is None


def test_a_book_that_cannot_be_written_at_start(
    sandbox: Sandbox, zygote: Zygote, client: Client, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path / "d", zygote=zygote)
    daemon.start()
    disk = image(tmp_path / "a.img")
    client.acquire("vm", disk)
    held = label(disk)
    daemon.kill()
    book = daemon.book.parent
    with mounted(book, "--bind", book):
        remount(book, "bind,ro")
        assert start_fails(daemon) == 3
        assert "ead-only file system" in daemon.output()
    assert label(disk) == held
    daemon.start()
    assert client.vms() == {"vm": "labelled"}
    client.release("vm")
    assert daemon.stop() == 0


def test_a_book_that_may_not_be_changed(
    sandbox: Sandbox, zygote: Zygote, client: Client, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path / "d", zygote=zygote)
    daemon.start()
    daemon.stop()
    subprocess.run(["chattr", "+i", daemon.book], check=True)
    try:
        assert start_fails(daemon) == 3
        assert str(daemon.book) in daemon.output()
    finally:
        subprocess.run(["chattr", "-i", daemon.book], check=True)
    daemon.start()
    assert client.vms() == {}
    assert daemon.stop() == 0


def start_fails(daemon: Daemon) -> int:
    """Start a daemon that cannot serve; return its exit code."""
    daemon.spawn()
    assert daemon.process is not None
    code = daemon.process.wait(20)
    daemon.process = None
    return code
