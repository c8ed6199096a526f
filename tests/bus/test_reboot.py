# SPDX-License-Identifier: LGPL-2.1-or-later
"""After a reboot, in which file systems got other device numbers: what is found again, and what
must not be taken for it.

Real file systems are mounted anew so that their numbers change; that the machine has booted since
is written into the book.
"""

import os
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from svirtd.host.bus import Variant
from tests.mounts import mounted, unmount
from tests.support import Client, Daemon, image, label, set_label

PERSISTENT = Variant("b", True)
ORIGINAL = "system_u:object_r:virt_image_t:s0"


class Volume:
    """An ext4 file system on a loop device. Devices are changed by what is on them: one that was
    given up for a moment could be taken by another run on this machine."""

    def __init__(self, folder: Path, name: str) -> None:
        self.at = folder / name
        self.at.mkdir()
        self._spare = 0
        self.devices: list[str] = []
        self.device = self._attach()
        subprocess.run(["mkfs.ext4", "-q", "-F", self.device], check=True)

    def __enter__(self) -> "Volume":
        self.mount()
        return self

    def __exit__(self, *_error: object) -> None:
        self.unmount()
        for device in self.devices:
            subprocess.run(["losetup", "--detach", device], check=True)

    @property
    def number(self) -> int:
        return os.stat(self.at).st_dev

    def mount(self) -> None:
        subprocess.run(["mount", self.device, self.at], check=True)

    def unmount(self) -> None:
        if os.path.ismount(self.at):
            unmount(self.at)

    def move(self) -> None:
        """Mount the same file system under another device number."""
        self.unmount()
        old, self.device = self.device, self._attach()
        Path(self.device).write_bytes(Path(old).read_bytes())
        self.mount()

    def _attach(self) -> str:
        self._spare += 1
        file = image(self.at.parent / f"{self.at.name}{self._spare}.ext4", 4 << 20)
        shown = subprocess.run(
            ["losetup", "--find", "--show", file], capture_output=True, text=True, check=True
        )
        self.devices.append(shown.stdout.strip())
        return self.devices[-1]


def exchange(one: Volume, other: Volume) -> None:
    """Let each of two file systems be on the other's device; neither is mounted afterwards."""
    content = []
    for volume in (one, other):
        volume.unmount()
        content.append(Path(volume.device).read_bytes())
    one.device, other.device = other.device, one.device
    for volume, data in zip((one, other), content, strict=True):
        Path(volume.device).write_bytes(data)


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[tuple[Volume, Volume]]:
    """Two mounted file systems, whose first files have the same inode number."""
    with ExitStack() as undo:
        one, other = (undo.enter_context(Volume(tmp_path, name)) for name in "ab")
        yield one, other


def sql(daemon: Daemon, statement: str, *values: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(daemon.book)) as book, book:
        return book.execute(statement, values).fetchall()


@contextmanager
def reboot(daemon: Daemon) -> Iterator[None]:
    """What happens inside happens between two boots."""
    daemon.stop()
    assert sql(daemon, "UPDATE boot SET boot_id = 'an earlier one' RETURNING 1") == [(1,)]
    yield
    daemon.start()
    (boot,) = sql(daemon, "SELECT boot_id FROM boot")
    assert boot == (Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip(),)


def devices(daemon: Daemon, table: str = "hold") -> set[object]:
    return {dev for (dev,) in sql(daemon, f"SELECT dev FROM {table}")}


def test_a_device_with_another_number_is_found_again(
    own_daemon: Daemon, client: Client, volumes: tuple[Volume, Volume]
) -> None:
    volume, _ = volumes
    disk, plain = image(volume.at / "a.img"), image(volume.at / "b.img")
    set_label(disk, ORIGINAL)
    client.acquire("vm", disk, plain)
    before, old = client.properties("vm"), volume.number
    with reboot(own_daemon):
        volume.move()
    assert volume.number != old
    assert devices(own_daemon) == {volume.number}
    assert client.properties("vm") == before
    assert client.error("Acquire", "saa{sv}a{sv}", "thief", [{"path": Variant("s", str(disk))}],
                        {}).name == "org.svirt1.Error.ResourceBusy"  # fmt: skip
    client.release("vm")
    assert (label(disk), label(plain)) == (ORIGINAL, None)
    assert client.manager()["PairsQuarantined"] == 0


def test_two_devices_have_swapped_their_numbers(
    own_daemon: Daemon, client: Client, volumes: tuple[Volume, Volume]
) -> None:
    """Each file has the inode number of the other, and the other's old device number."""
    disks = [image(volume.at / "disk.img") for volume in volumes]
    for name, disk in zip("ab", disks, strict=True):
        client.acquire(name, disk)
    labels = [label(disk) for disk in disks]
    numbers = [(os.stat(disk).st_dev, os.stat(disk).st_ino) for disk in disks]
    assert numbers[0][1] == numbers[1][1]
    with reboot(own_daemon):
        exchange(*volumes)
        for volume in volumes:
            volume.mount()
    assert [(os.stat(d).st_dev, os.stat(d).st_ino) for d in disks] == numbers[::-1]
    for name, disk in zip("ab", disks, strict=True):
        (owners,) = client.call("FindOwners", "s", str(disk))
        assert [owner["vm"].value for owner in owners] == [name]
    client.release("a")
    assert [label(disk) for disk in disks] == [None, labels[1]]
    client.release("b")
    assert label(disks[1]) is None
    assert client.manager()["PairsQuarantined"] == 0


def test_what_was_cut_off_is_settled_under_the_new_number(
    own_daemon: Daemon, client: Client, volumes: tuple[Volume, Volume]
) -> None:
    """A release that a power cut ended: its steps are in the ledger by their old numbers."""
    disks = [image(volume.at / "disk.img") for volume in volumes]
    for name, disk in zip("ab", disks, strict=True):
        client.acquire(name, disk)
    with reboot(own_daemon):
        sql(own_daemon, "UPDATE vm SET state = 'releasing'")
        sql(
            own_daemon,
            "INSERT INTO operation(kind, rank, created, caller_uid, steps, started_us)"
            " SELECT 'release', rank, 0, 0,"
            " json_array(json_array(dev, ino, path, label, original)), 0 FROM hold",
        )
        os.removexattr(disks[0], "security.selinux")  # as far as it had come
        exchange(*volumes)
        for volume in volumes:
            volume.mount()
    assert client.vms() == {}
    assert [label(disk) for disk in disks] == [None, None]
    assert client.manager()["PairsQuarantined"] == 0


def test_a_quarantined_object_is_seen_clean_under_the_new_number(
    own_daemon: Daemon, client: Client, volumes: tuple[Volume, Volume]
) -> None:
    disk = image(volumes[0].at / "disk.img")
    image(volumes[1].at / "disk.img")  # clean, and under the other's old number in a moment
    client.acquire("vm", disk)
    held = label(disk)
    os.rename(disk, disk.with_name("moved"))
    client.release("vm")
    assert client.manager()["PairsQuarantined"] == 1
    os.rename(disk.with_name("moved"), disk)
    assert label(disk) == held
    with reboot(own_daemon):
        exchange(*volumes)
        for volume in volumes:
            volume.mount()
    # Found again, it has its original back, and keeps nothing out of the pool.
    assert label(disk) is None
    assert client.manager()["PairsQuarantined"] == 0


@pytest.mark.parametrize("theirs", [ORIGINAL, "system_u:object_r:svirt_image_t:s0:c1,c2"])
def test_another_file_system_is_not_taken_for_the_first(
    own_daemon: Daemon, client: Client, tmp_path: Path, theirs: str
) -> None:
    """A tmpfs counts its inodes from the start: path and inode number are the same as before."""
    with mounted(tmp_path / "fs", "-t", "tmpfs", "old") as folder, ExitStack() as undo:
        disk = image(folder / "disk.img")
        client.acquire("vm", disk)
        old = os.stat(disk)
        with reboot(own_daemon):
            # On top, so that it gets another number.
            undo.enter_context(mounted(folder, "-t", "tmpfs", "new"))
            set_label(image(disk), theirs)
        new = os.stat(disk)
        assert (new.st_ino, new.st_dev != old.st_dev) == (old.st_ino, True)
        client.release("vm")
        assert label(disk) == theirs
        assert devices(own_daemon, "quarantine") == {-1}
        assert client.manager()["PairsQuarantined"] == 1
    sql(own_daemon, "DELETE FROM quarantine")  # it has left with its file system


def test_a_link_does_not_lead_the_daemon_to_another_file_system(
    own_daemon: Daemon, client: Client, volumes: tuple[Volume, Volume]
) -> None:
    """Whoever owns the folder has put a link in its place, to a file of the same inode number that
    carries what the disk carried before."""
    here, there = volumes
    (here.at / "mine").mkdir()
    (there.at / "mine").mkdir()
    disk, bait = image(here.at / "mine" / "disk.img"), image(there.at / "mine" / "disk.img")
    assert os.stat(disk).st_ino == os.stat(bait).st_ino
    client.acquire("vm", disk)
    held = label(disk)
    with reboot(own_daemon):
        os.rename(here.at / "mine", here.at / "aside")
        os.symlink(there.at / "mine", here.at / "mine")
    assert label(disk) is None  # through the link
    client.release("vm")
    # The bait carries no pair; had it been taken, the pair would be free now.
    assert client.manager()["PairsQuarantined"] == 1
    assert label(here.at / "aside" / "disk.img") == held
    os.remove(here.at / "mine")
    os.rename(here.at / "aside", here.at / "mine")
    own_daemon.stop()
    own_daemon.start()
    assert label(disk) is None
    assert client.manager()["PairsQuarantined"] == 0


def test_a_file_that_was_replaced_is_not_taken(
    own_daemon: Daemon, client: Client, volumes: tuple[Volume, Volume]
) -> None:
    """The device is found by another file of it; the new file has the label, not the inode."""
    volume = volumes[0]
    disk, other = image(volume.at / "a.img"), image(volume.at / "b.img")
    client.acquire("vm", disk, other)
    held = label(disk)
    assert held is not None
    with reboot(own_daemon):
        volume.move()
        os.rename(disk, volume.at / "moved")
        set_label(image(disk), held)
    assert devices(own_daemon) == {volume.number}
    client.release("vm")
    assert (label(disk), label(other)) == (held, None)
    assert client.manager()["PairsQuarantined"] == 1
    os.remove(disk)
    os.rename(volume.at / "moved", disk)
    os.removexattr(disk, "security.selinux")
    own_daemon.stop()
    own_daemon.start()
    assert client.manager()["PairsQuarantined"] == 0


def test_files_of_one_device_on_two_devices_are_refused(
    own_daemon: Daemon, client: Client, volumes: tuple[Volume, Volume]
) -> None:
    """One file says that nothing has changed, another stands on a file system mounted over it."""
    volume, over = volumes
    (volume.at / "sub").mkdir()
    stays, hidden = image(volume.at / "a.img"), image(volume.at / "sub" / "b.img")
    client.acquire("vm", stays, hidden)
    held = label(hidden)
    for name in range(os.stat(hidden).st_ino - os.stat(image(over.at / "0")).st_ino):
        image(over.at / f"more{name}")
    bait = next(p for p in over.at.iterdir() if p.stat().st_ino == os.stat(hidden).st_ino)
    os.rename(bait, over.at / "b.img")
    with ExitStack() as undo:
        with reboot(own_daemon):
            undo.enter_context(mounted(volume.at / "sub", "--bind", over.at))
        assert devices(own_daemon) == {volume.number}
        client.release("vm")
        assert (label(stays), label(hidden)) == (None, None)
        assert client.manager()["PairsQuarantined"] == 1
    assert label(hidden) == held
    os.removexattr(hidden, "security.selinux")
    own_daemon.stop()
    own_daemon.start()
    assert client.manager()["PairsQuarantined"] == 0


def test_a_device_that_is_mounted_late_is_no_other_ones(
    own_daemon: Daemon, client: Client, volumes: tuple[Volume, Volume]
) -> None:
    """The other one has its number, and a file of the same inode number."""
    here, late = volumes
    disks = [image(volume.at / "disk.img") for volume in volumes]
    for name, disk in zip(["here", "late"], disks, strict=True):
        client.acquire(name, disk)
    held = label(disks[1])
    with reboot(own_daemon):
        exchange(here, late)
        here.mount()
    assert devices(own_daemon) == {here.number, -1}
    client.release("here")
    assert label(disks[0]) is None
    assert client.vms() == {"late": "labelled"}
    late.mount()
    assert label(disks[1]) == held
    client.release("late")
    assert label(disks[1]) is None
    assert client.manager()["PairsQuarantined"] == 0


@contextmanager
def node(volume: Volume) -> Iterator[Path]:
    """Another node of a device, as the kernel makes one, that no other run knows."""
    path = Path(f"/dev/svirt-test-{os.getpid()}")
    os.mknod(path, stat.S_IFBLK | 0o600, os.stat(volume.device).st_rdev)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def test_a_device_node_does_not_outlive_a_boot(
    own_daemon: Daemon, client: Client, volumes: tuple[Volume, Volume]
) -> None:
    """A VM's volume, launched and acquired: its node was made anew, with a label of its own."""
    volumes[0].unmount()
    with node(volumes[0]) as path:
        client.acquire("gone", path)
        path.unlink()
        client.release("gone")
    disk = image(volumes[1].at / "disk.img")
    client.acquire("file", disk)
    os.rename(disk, disk.with_name("moved"))
    client.release("file")
    own_daemon.stop()
    own_daemon.start()
    assert client.manager()["PairsQuarantined"] == 2
    with reboot(own_daemon):
        pass
    assert client.manager()["PairsQuarantined"] == 1
    assert [p for (p,) in sql(own_daemon, "SELECT path FROM quarantine")] == [str(disk)]
    os.rename(disk.with_name("moved"), disk)
    own_daemon.stop()
    own_daemon.start()
    assert client.manager()["PairsQuarantined"] == 0
    assert label(disk) is None


def test_a_device_after_a_boot_is_not_taken_for_the_one_before(
    own_daemon: Daemon, client: Client
) -> None:
    """Even if its node has the same inode, number and label: another stick may be in that port."""
    path, usb = Path(f"/dev/svirt-test-{os.getpid()}"), "system_u:object_r:usb_device_t:s0"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(240, 9))
    set_label(path, usb)
    try:
        client.acquire("vm", path)
        held = label(path)
        with reboot(own_daemon):
            set_label(path, usb)
        client.call("Verify", "ba{sv}", True, {})
        assert label(path) == usb != held
        assert client.vms() == {"vm": "labelled"}
        client.release("vm")
        assert label(path) == usb
        assert client.manager()["PairsQuarantined"] == 0
    finally:
        path.unlink()


def test_a_book_that_knows_no_boot_forgets_no_node(
    own_daemon: Daemon, client: Client, volumes: tuple[Volume, Volume]
) -> None:
    """It may be of this one."""
    volumes[0].unmount()
    with node(volumes[0]) as path:
        client.acquire("vm", path)
        held = label(path)
        os.rename(path, path.with_name("svirt-test-aside"))
        client.release("vm")
        own_daemon.stop()
        sql(own_daemon, "DELETE FROM boot")
        own_daemon.start()
        assert client.manager()["PairsQuarantined"] == 1
        os.rename(path.with_name("svirt-test-aside"), path)
        assert label(path) == held
        own_daemon.stop()
        own_daemon.start()
        assert client.manager()["PairsQuarantined"] == 0


def test_what_was_promised_before_a_power_cut_is_kept(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """The replies were sent; that the operations are closed, and the labels, never reached the
    disk."""
    disk, other = image(tmp_path / "a.img"), image(tmp_path / "b.img")
    client.acquire("held", disk, persistent=PERSISTENT)
    client.launch("ran", ["/bin/sleep", "1000"], other, persistent=PERSISTENT)
    before = {name: client.properties(name) for name in ("held", "ran")}
    own_daemon.kill()
    subprocess.run(["systemctl", "stop", "svirt-ran.service"], check=True)
    own_daemon.start()
    client.release("ran")
    held = label(disk)
    with reboot(own_daemon):
        for kind, name in (("acquire", "held"), ("launch", "ran")):
            sql(
                own_daemon,
                "INSERT INTO operation(kind, rank, created, caller_uid, steps, started_us)"
                " SELECT ?, rank, 1, 0, '[]', 0 FROM vm WHERE name = ?",
                kind,
                name,
            )
        sql(own_daemon, "UPDATE vm SET state = 'labelled', unit = 'svirt-ran.service'"
                        " WHERE name = 'ran'")  # fmt: skip
        sql(
            own_daemon,
            "UPDATE operation SET steps = (SELECT json_array(json_array(dev, ino, path, original,"
            " label)) FROM hold WHERE hold.rank = operation.rank) WHERE kind = 'acquire'",
        )
        os.removexattr(disk, "security.selinux")
    assert client.vms() == {"held": "labelled", "ran": "reserved"}
    for name in ("held", "ran"):
        for what in ("Id", "Categories"):
            assert client.properties(name)[what] == before[name][what]
    assert label(disk) == held
    client.release("held")
    for name in ("held", "ran"):
        client.call("Forget", "sa{sv}", name, {})
    assert label(disk) is None
