# SPDX-License-Identifier: LGPL-2.1-or-later
"""What outlives the daemon, and what a new start settles."""

import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.host.bus import BusError, Variant
from tests.mounts import mounted, remount
from tests.support import (
    Client,
    Daemon,
    image,
    label,
    resources,
    set_label,
    svirt_units,
    wait_for,
)


def test_a_replaced_file_is_not_touched_and_its_pair_is_quarantined(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.listen()
    client.acquire("vm", disk)
    held = label(disk)
    os.rename(disk, tmp_path / "moved.img")
    set_label(image(disk), "system_u:object_r:etc_t:s0")
    client.release("vm")
    assert label(disk) == "system_u:object_r:etc_t:s0"
    assert label(tmp_path / "moved.img") == held
    assert (
        wait_for("the finding", lambda: client.seen("DriftFound"))[0][0]["kind"].value == "replaced"
    )
    assert client.manager()["PairsQuarantined"] == 1
    # Proven clean at the next start: the file is where it was, without the pair.
    os.rename(tmp_path / "moved.img", disk)
    os.removexattr(disk, "security.selinux")
    own_daemon.stop()
    own_daemon.start()
    assert client.manager()["PairsQuarantined"] == 0


def test_a_pair_that_left_quarantine_does_not_come_back_as_an_original(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """Held for reading, moved away, released: the file carries the pair and a type of the list."""
    disk, moved = image(tmp_path / "a.img"), tmp_path / "moved.img"
    client.acquire("vm", disk, access="readonly")
    held = label(disk)
    os.rename(disk, moved)
    client.release("vm")
    os.rename(moved, disk)
    assert client.manager()["PairsQuarantined"] == 1
    refused = client.error("Acquire", "saa{sv}a{sv}", "other", resources(disk), {})
    assert refused.name == "org.svirt1.Error.ResourceRefused"
    assert "of a VM, of today or of an earlier one" in refused.text
    own_daemon.stop()
    own_daemon.start()
    # Found again, it has the label that it had before the first VM.
    assert held is not None
    assert label(disk) is None
    assert client.manager()["PairsQuarantined"] == 0


def test_a_persistent_vm_keeps_its_pair(own_daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    client.acquire("vm", disk, persistent=Variant("b", True))
    first = client.properties("vm")
    client.release("vm")
    assert label(disk) is None
    assert client.vms() == {"vm": "reserved"}
    own_daemon.stop()
    own_daemon.start()
    client.acquire("vm", disk)
    again = client.properties("vm")
    assert (again["Categories"], again["Id"]) == (first["Categories"], first["Id"])
    refused = client.error("Forget", "sa{sv}", "vm", {})
    assert refused.name == "org.svirt1.Error.Failed"
    client.release("vm")
    client.call("Forget", "sa{sv}", "vm", {})
    assert client.vms() == {}


def test_a_running_vm_survives_the_daemon(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.launch("vm", ["/bin/sleep", "1000"], disk)
    before = client.properties("vm")
    own_daemon.kill()
    assert os.path.exists(f"/proc/{before['MainPID']}")
    own_daemon.start()
    assert client.properties("vm") == before
    os.kill(before["MainPID"], signal.SIGKILL)
    wait_for("the end is noticed", lambda: client.vms() == {})
    assert label(disk) is None


def test_a_launch_whose_command_is_not_executed_yet_is_undone(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """Whether it can be is not known, so that the VM is not one that runs, not for a moment."""
    disk, command = image(tmp_path / "a.img"), tmp_path / "command"
    shutil.copy("/bin/sleep", command)
    own_daemon.stop()
    own_daemon.failpoints = "start-queued=kill"
    own_daemon.start()
    told = signal.signal(signal.SIGIO, signal.SIG_IGN)
    with open(command, "rb+") as held:
        # Whoever executes it waits until this is given back.
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        try:
            with pytest.raises(BusError):
                client.launch("vm", [str(command), "1000"], disk)
            own_daemon.end(signal.SIGKILL)
            assert svirt_units() == ["svirt-vm.service"]
            assert label(disk) is not None
            own_daemon.failpoints = ""
            own_daemon.start()
            assert client.vms() == {}
            assert svirt_units() == []
            assert label(disk) is None
        finally:
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            signal.signal(signal.SIGIO, told)


def test_a_unit_that_ended_while_the_daemon_was_away(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.launch("vm", ["/bin/sleep", "1000"], disk)
    pid = client.properties("vm")["MainPID"]
    own_daemon.kill()
    os.kill(pid, signal.SIGKILL)
    wait_for("the unit's end", lambda: not svirt_units())
    assert label(disk) is not None
    own_daemon.start()
    assert client.vms() == {}
    assert label(disk) is None


def rank_of(book: sqlite3.Connection, name: str) -> int:
    (rank,) = book.execute("SELECT rank FROM vm WHERE name = ?", [name]).fetchone()
    return int(rank)


def test_a_launch_that_was_cut_off_is_undone(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """Killed between the labels and the start: the open entry of the ledger says what to undo."""
    disk, other = image(tmp_path / "a.img"), image(tmp_path / "b.img")
    client.acquire("vm", disk)
    vm = client.properties("vm")
    own_daemon.kill()
    with sqlite3.connect(own_daemon.book) as book:
        step = [os.stat(disk).st_dev, os.stat(disk).st_ino, str(disk), None, vm["ImageContext"]]
        late = [os.stat(other).st_dev, os.stat(other).st_ino, str(other), None, vm["ImageContext"]]
        book.execute(
            "INSERT INTO operation(kind, rank, created, caller_uid, steps, started_us)"
            " VALUES ('acquire', ?, 1, 0, ?, 0)",
            [rank_of(book, "vm"), json.dumps([step, late])],
        )
    book.close()
    own_daemon.start()
    assert client.vms() == {}
    assert (label(disk), label(other)) == (None, None)


@pytest.mark.parametrize("ours", [True, False])
def test_a_launch_that_was_cut_off_stops_its_own_unit_only(
    own_daemon: Daemon, client: Client, tmp_path: Path, ours: bool
) -> None:
    disk, gone = image(tmp_path / "a.img"), tmp_path / "gone"
    client.acquire("vm", disk)
    vm = client.properties("vm")
    own_daemon.kill()
    context = [f"--property=SELinuxContext={vm['ProcessContext']}"] if ours else []
    argv = ["systemd-run", "-q", "--collect", "--unit=svirt-vm", *context, "sleep", "1000"]
    subprocess.run(argv, check=True)
    with sqlite3.connect(own_daemon.book) as book:
        step = [os.stat(disk).st_dev, os.stat(disk).st_ino, str(disk), None, vm["ImageContext"]]
        never = [1, 1, str(gone), None, vm["ImageContext"]]
        book.execute("UPDATE vm SET unit = 'svirt-vm.service'")
        book.execute(
            "INSERT INTO operation(kind, rank, created, caller_uid, steps, started_us)"
            " VALUES ('launch', ?, 1, 0, ?, 0)",
            [rank_of(book, "vm"), json.dumps([step, never])],
        )
    book.close()
    own_daemon.start()
    assert client.vms() == {}
    assert label(disk) is None
    if ours:
        wait_for("its unit is gone", lambda: not svirt_units())
    else:
        assert svirt_units() == ["svirt-vm.service"]
        subprocess.run(["systemctl", "stop", "svirt-vm"], check=True)
    with sqlite3.connect(own_daemon.book) as book:  # the file that never was is a suspect for good
        book.execute("DELETE FROM quarantine")
    book.close()


def test_an_acquire_whose_every_label_stands_is_finished(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.acquire("vm", disk)
    vm = client.properties("vm")
    own_daemon.kill()
    with sqlite3.connect(own_daemon.book) as book:
        step = [os.stat(disk).st_dev, os.stat(disk).st_ino, str(disk), None, vm["ImageContext"]]
        book.execute(
            "INSERT INTO operation(kind, rank, created, caller_uid, steps, started_us)"
            " VALUES ('acquire', ?, 1, 0, ?, 0)",
            [rank_of(book, "vm"), json.dumps([step])],
        )
    book.close()
    own_daemon.start()
    assert client.vms() == {"vm": "labelled"}
    client.release("vm")
    assert label(disk) is None


def test_a_release_that_was_cut_off_is_finished(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disks = [image(tmp_path / f"{n}.img") for n in range(3)]
    client.acquire("vm", *disks)
    vm = client.properties("vm")
    own_daemon.kill()
    os.removexattr(disks[0], "security.selinux")  # as far as it had come
    steps = [
        [os.stat(d).st_dev, os.stat(d).st_ino, str(d), vm["ImageContext"], None] for d in disks
    ]
    with sqlite3.connect(own_daemon.book) as book:
        book.execute("UPDATE vm SET state = 'releasing'")
        book.execute(
            "INSERT INTO operation(kind, rank, created, caller_uid, steps, started_us)"
            " VALUES ('release', ?, 0, 0, ?, 0)",
            [rank_of(book, "vm"), json.dumps(steps)],
        )
    book.close()
    own_daemon.start()
    assert client.vms() == {}
    assert [label(d) for d in disks] == [None] * 3


def test_a_label_that_cannot_be_given_back_fails_the_vm_until_it_can(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    with mounted(tmp_path / "fs", "-t", "tmpfs", "tmpfs") as folder:
        disk = image(folder / "a.img")
        client.acquire("vm", disk)
        remount(folder, "ro")
        refused = client.error("Release", "sa{sv}", "vm", {})
        assert refused.name == "org.svirt1.Error.Drift"
        assert "read-only" in refused.text
        vm = client.properties("vm")
        assert vm["State"] == "failed"
        assert "read-only" in vm["StateReason"]
        assert client.manager()["PairsInUse"] == 1
        own_daemon.kill()
        own_daemon.start()
        assert client.vms() == {"vm": "failed"}
        remount(folder, "rw")
        client.release("vm")
        assert client.vms() == {}
        assert label(disk) is None


PUBLIC = "system_u:object_r:virt_content_t:s0"


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Path]:
    """A file system that a test remounts."""
    with mounted(tmp_path / "sealed", "-t", "tmpfs", "tmpfs") as folder:
        yield folder


def test_a_release_that_failed_gives_back_what_others_have_left_meanwhile(
    own_daemon: Daemon, client: Client, tmp_path: Path, sealed: Path
) -> None:
    disk, shared = image(sealed / "a.img"), image(tmp_path / "b.img")
    client.acquire("vm", disk, shared, access="public")
    client.acquire("other", shared, access="public")
    remount(sealed, "ro")
    assert client.error("Release", "sa{sv}", "vm", {}).name == "org.svirt1.Error.Drift"
    client.release("other")
    assert label(shared) == PUBLIC
    remount(sealed, "rw")
    own_daemon.kill()
    own_daemon.start()
    assert client.vms() == {}
    assert (label(disk), label(shared)) == (None, None)


def test_a_release_that_failed_leaves_what_others_use_meanwhile(
    own_daemon: Daemon, client: Client, sealed: Path
) -> None:
    shared = image(sealed / "a.img")
    client.acquire("vm", shared, access="public")
    remount(sealed, "ro")
    assert client.error("Release", "sa{sv}", "vm", {}).name == "org.svirt1.Error.Drift"
    client.acquire("other", shared, access="public")
    remount(sealed, "rw")
    own_daemon.kill()
    own_daemon.start()
    assert client.vms() == {"other": "labelled"}
    assert label(shared) == PUBLIC
    client.release("other")
    assert label(shared) is None


def test_a_file_that_its_vm_holds_again_is_not_taken_from_it(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """What was suspected at an earlier release carries the same label for the same VM."""
    disk, moved = image(tmp_path / "a.img"), tmp_path / "moved.img"
    client.acquire("vm", disk, persistent=Variant("b", True))
    held = label(disk)
    os.rename(disk, moved)
    client.release("vm")
    os.rename(moved, disk)
    set_label(disk, PUBLIC)
    client.acquire("vm", disk)
    own_daemon.kill()
    own_daemon.start()
    assert label(disk) == held
    client.call("Verify", "ba{sv}", True, {})
    assert label(disk) == held
    client.release("vm")
    assert label(disk) == PUBLIC
    client.call("Verify", "ba{sv}", False, {})
    client.call("Forget", "sa{sv}", "vm", {})
    assert client.manager()["PairsQuarantined"] == 0
    os.removexattr(disk, "security.selinux")


def test_a_caller_that_left_while_the_daemon_was_away(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    caller = Client()
    caller.acquire("vm", disk, lifetime=Variant("s", "caller"))
    client.acquire("mine", image(tmp_path / "b.img"), lifetime=Variant("s", "caller"))
    own_daemon.kill()
    caller.close()
    own_daemon.start()
    assert client.vms() == {"mine": "labelled"}
    assert label(disk) is None
    client.release("mine")


def test_a_second_daemon_is_refused_with_the_name_of_the_first(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    second = Daemon(tmp_path / "second")
    second.config.write_text(own_daemon.config.read_text())
    second.spawn()
    assert second.process is not None
    assert second.process.wait(20) == 3
    assert f"process {own_daemon.pid}" in second.output()
    assert client.vms() == {}
