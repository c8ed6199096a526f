# SPDX-License-Identifier: LGPL-2.1-or-later
"""The book is damaged or lost, and what runs runs on: it is in the book again after the start."""

import json
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import Variant
from svirtd.host.journal import MessageId
from tests.books import damage
from tests.mounts import mounted, remount
from tests.sandbox import Sandbox
from tests.support import DEADLINE_S, Client, Daemon, image, label, set_label, svirt_units, wait_for

CANNOT_RUN = 3
GO_ON_NOT = 1
# Its first argument is open, the others are only named.
OPENS = ["/bin/sh", "-c", 'exec 9<>"$1"; exec sleep 1000', "sh"]
NAMES = ["/bin/sh", "-c", "exec sleep 1000", "sh"]
HURT: dict[str, Callable[[Path], None]] = {
    "header": damage.header,
    "empty": damage.nothing_left,
    "truncated": damage.half,
    "pages": damage.pages,
    "gone": Path.unlink,
}
SAME = ("Id", "Owner", "State", "Unit", "MainPID", "ProcessContext", "ImageContext", "Categories")


class Running:
    """A VM with a disk that it has open, some that its command names, and one that all may read."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.open = image(folder / "open.img")
        self.named = image(folder / "na,med.img")
        self.readonly = image(folder / "read.img")
        self.public = image(folder / "public.img")
        spelt = str(self.named).replace(",", ",,")
        argv = [*OPENS, str(self.open), f"file={spelt},if=virtio", f"a:{self.readonly}:ro"]
        held: list[dict[str, Variant]] = [
            {"path": Variant("s", str(path)), "access": Variant("s", access)}
            for path, access in (
                (self.open, "exclusive"),
                (self.named, "exclusive"),
                (self.readonly, "readonly"),
                (self.public, "public"),
            )
        ]
        client.call("Launch", "sasaa{sv}a{sv}", "web 1", argv, held, {})
        self.before = client.properties("web 1")
        pid = self.before["MainPID"]
        wait_for("it has its disk open", lambda: os.path.exists(f"/proc/{pid}/fd/9"))
        self.labels = self.now()

    def now(self) -> dict[str, str | None]:
        return {p.name: label(p) for p in (self.open, self.named, self.readonly, self.public)}

    def is_there_again(self, client: Client) -> None:
        """It runs on, its labels stand, and the book has it with all that carries its set."""
        after = client.properties("web 1")
        assert {key: after[key] for key in SAME} == {key: self.before[key] for key in SAME}
        assert after["RuntimeDirectory"] == self.before["RuntimeDirectory"]
        assert self.now() == self.labels
        assert {one["path"]: one["access"] for one in after["Resources"]} == {
            str(self.open): "exclusive",
            str(self.named): "exclusive",
            str(self.readonly): "readonly",
        }
        assert not any("original" in one for one in after["Resources"])
        assert client.manager()["PairsInUse"] == 1

    def ends(self, client: Client) -> None:
        """It is released as any other; what carries no set is nobody's."""
        folder = self.before["RuntimeDirectory"]
        client.release("web 1")
        assert not os.path.exists(f"/proc/{self.before['MainPID']}")
        assert not os.path.exists(folder)
        assert self.now() == {**dict.fromkeys(self.labels), "public.img": self.labels["public.img"]}
        os.removexattr(self.public, "security.selinux")
        assert client.manager()["PairsInUse"] == client.manager()["PairsQuarantined"] == 0


class Records:
    """What the journal has got since the test began."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._argv = ["journalctl", f"--directory={sandbox.journal}", "--output=json", "-q"]
        self._since = f"--since=@{time.time():.3f}"

    def of(self, message_id: MessageId, *texts: str) -> list[dict[str, Any]]:
        """The records of this kind whose message has all these texts in it."""
        argv = [*self._argv, self._since, f"MESSAGE_ID={message_id.value}"]
        out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        found: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
        return [one for one in found if all(text in one["MESSAGE"] for text in texts)]

    def wait(self, message_id: MessageId, *texts: str) -> dict[str, Any]:
        """The last record of this kind and with these texts, once there is one."""
        return wait_for(f"{message_id}: {texts}", lambda: self.of(message_id, *texts))[-1]


@pytest.fixture
def records(sandbox: Sandbox) -> Records:
    return Records(sandbox)


def aside(daemon: Daemon) -> list[Path]:
    """The earlier books, without the logs that went with them."""
    found = daemon.book.parent.glob("book.sqlite.*-20*")
    return sorted(path for path in found if not path.name.endswith(("-wal", "-shm")))


def ended(daemon: Daemon) -> int:
    """Wait for the end of a daemon that ends by itself."""
    assert daemon.process is not None
    code = daemon.process.wait(DEADLINE_S)
    daemon.process = None
    return code


@pytest.mark.parametrize("how", ["stopped", "killed"])
@pytest.mark.parametrize("hurt", HURT)
def test_what_runs_is_in_the_book_again(
    own_daemon: Daemon, client: Client, records: Records, tmp_path: Path, hurt: str, how: str
) -> None:
    vm = Running(client, tmp_path)
    if how == "stopped":
        assert own_daemon.stop() == 0
    else:
        own_daemon.kill()
    if how == "killed" and hurt in ("truncated", "pages"):
        # All of the book would be in its log still, which makes up for any page.
        Path(f"{own_daemon.book}-wal").unlink()
    HURT[hurt](own_daemon.book)
    own_daemon.start()
    vm.is_there_again(client)
    kept = aside(own_daemon)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in kept)
    if hurt == "gone":
        assert kept == []
        assert records.of(MessageId.BOOK_REPLACED) == []
    else:
        loud = records.wait(MessageId.BOOK_REPLACED, str(own_daemon.book))
        assert loud["PRIORITY"] == "1"
        assert loud["SVIRT_PATH"] == str(kept[0])
        assert len(records.of(MessageId.BOOK_REPLACED)) == 1
    records.wait(MessageId.RECOVERED, r"web 1: svirt-web\x201.service runs and was not in the book")
    # Not once more: the new book is the book.
    assert own_daemon.stop() == 0
    own_daemon.start()
    vm.is_there_again(client)
    assert aside(own_daemon) == kept
    # A new VM does not get a set that is in use.
    client.acquire("other")
    assert client.properties("other")["Categories"] != vm.before["Categories"]
    client.release("other")
    vm.ends(client)


def test_what_the_check_finds_ends_the_daemon_once(
    own_daemon: Daemon, client: Client, records: Records, tmp_path: Path
) -> None:
    vm = Running(client, tmp_path)
    assert own_daemon.stop() == 0
    damage.bits_of("hold_object")(own_daemon.book)
    own_daemon.spawn()
    assert ended(own_daemon) == GO_ON_NOT
    loud = records.wait(MessageId.BOOK_CHECKED, f"the book {own_daemon.book} is damaged")
    assert loud["PRIORITY"] == "2"
    assert aside(own_daemon) == []
    assert vm.now() == vm.labels
    # As the service manager does it.
    own_daemon.start()
    assert len(aside(own_daemon)) == 1
    vm.is_there_again(client)
    records.wait(MessageId.BOOK_CHECKED, "checked and is sound")
    vm.ends(client)


def test_a_sound_book_is_checked_beside_the_service(
    own_daemon: Daemon, client: Client, sandbox: Sandbox
) -> None:
    own_daemon.stop()
    records = Records(sandbox)
    own_daemon.start()
    client.acquire("vm")
    records.wait(MessageId.BOOK_CHECKED, "the whole book was checked and is sound")
    client.release("vm")


def run_unit(name: str, context: str, *argv: str, **settings: str) -> str:
    unit = f"svirt-{name}.service"
    settings = {"SELinuxContext": context, **settings}
    wanted = [f"--property={key}={value}" for key, value in settings.items() if value]
    subprocess.run(["systemd-run", "--quiet", f"--unit={unit}", *wanted, *argv], check=True)
    return unit


def stop_unit(unit: str) -> None:
    subprocess.run(["systemctl", "stop", unit], check=True)


def test_a_unit_that_says_little_is_entered_too(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.acquire("vm", disk)
    vm = client.properties("vm")
    client.release("vm")
    own_daemon.stop()
    own_daemon.book.unlink()
    set_label(disk, vm["ImageContext"])
    unit = run_unit("vm", vm["ProcessContext"], *NAMES, str(disk), User="nobody")
    own_daemon.start()
    found = client.properties("vm")
    assert (found["Unit"], found["Owner"], found["RuntimeDirectory"]) == (unit, 65534, "")
    assert [one["path"] for one in found["Resources"]] == [str(disk)]
    stop_unit(unit)
    wait_for("its end is noticed", lambda: client.vms() == {})
    assert label(disk) is None


@pytest.mark.parametrize("what", ["no set", "half a set", "another type", "no VM's name"])
def test_other_units_are_left_alone(
    own_daemon: Daemon, client: Client, records: Records, what: str
) -> None:
    own_daemon.stop()
    context = {
        "no set": "system_u:system_r:svirt_t:s0",
        "half a set": "system_u:system_r:svirt_t:s0:c5",
        "another type": "system_u:system_r:container_t:s0:c5,c6",
        "no VM's name": "system_u:system_r:svirt_t:s0:c5,c6",
    }[what]
    unit = run_unit("a-b" if what == "no VM's name" else "x", context, "/bin/sleep", "1000")
    own_daemon.start()
    assert client.vms() == {}
    assert unit in svirt_units()
    records.wait(MessageId.WARNING, f"{unit} runs and belongs to no VM of the book")
    stop_unit(unit)


@pytest.mark.parametrize("taken", ["its set", "its name"])
def test_a_unit_that_the_book_contradicts_is_left_alone(
    own_daemon: Daemon, client: Client, records: Records, tmp_path: Path, taken: str
) -> None:
    disk = image(tmp_path / "a.img")
    client.acquire("vm", disk)
    vm = client.properties("vm")
    own_daemon.stop()
    context = vm["ProcessContext"] if taken == "its set" else other_set(vm["ProcessContext"])
    name = "other" if taken == "its set" else "vm"
    unit = run_unit(name, context, "/bin/sleep", "1000")
    own_daemon.start()
    assert client.vms() == {"vm": "labelled"}
    assert client.properties("vm") == vm
    assert unit in svirt_units()
    told = records.wait(MessageId.DRIFT, f"{unit} (conflict)")
    assert (told["SVIRT_PATH"], told["SVIRT_FOUND"]) == (unit, context)
    client.release("vm")
    assert unit in svirt_units()
    stop_unit(unit)


def other_set(context: str) -> str:
    base, _, categories = context.rpartition(":")
    return f"{base}:c1,c2" if categories != "c1,c2" else f"{base}:c1,c3"


def test_a_unit_under_a_set_in_quarantine_is_left_alone(
    own_daemon: Daemon, client: Client, records: Records, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.acquire("vm", disk)
    vm = client.properties("vm")
    os.rename(disk, tmp_path / "away.img")
    client.release("vm")
    assert client.manager()["PairsQuarantined"] == 1
    own_daemon.stop()
    unit = run_unit("vm", vm["ProcessContext"], "/bin/sleep", "1000")
    own_daemon.start()
    assert client.vms() == {}
    assert client.manager()["PairsQuarantined"] == 1
    records.wait(MessageId.DRIFT, f"{unit} (conflict)")
    assert unit in svirt_units()
    stop_unit(unit)
    os.rename(tmp_path / "away.img", disk)
    os.removexattr(disk, "security.selinux")
    own_daemon.stop()
    own_daemon.start()
    assert client.manager()["PairsQuarantined"] == 0


# -- what may be sound and cannot be used now -------------------------------------------------


@pytest.fixture
def small(sandbox: Sandbox, tmp_path: Path) -> Iterator[Path]:
    """A file system of the book's own."""
    folder = tmp_path / "small"
    with mounted(folder, "-t", "tmpfs", "-o", "size=16m", "small"):
        yield folder


def contents(folder: Path) -> dict[str, Any]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("why", ["read-only", "full"])
def test_a_book_that_the_disk_keeps_back_stays(
    client: Client, small: Path, tmp_path: Path, why: str
) -> None:
    daemon = Daemon(small / "d")
    daemon.log = tmp_path / "log"
    daemon.start()
    client.acquire("vm")
    assert daemon.stop() == 0
    # Nothing of the book lies in its log, and the log has to grow again.
    before = contents(daemon.book.parent)
    if why == "read-only":
        remount(small, "ro")
    else:
        with open(small / "ballast", "wb", buffering=0) as file:
            while os.statvfs(small).f_bavail:
                file.write(b"x" * 4096)
    daemon.spawn()
    assert ended(daemon) == CANNOT_RUN
    assert aside(daemon) == []
    if why == "read-only":
        assert contents(daemon.book.parent) == before
        remount(small, "rw")
    else:
        assert (daemon.book.read_bytes()) == before["book.sqlite"]
        (small / "ballast").unlink()
    daemon.start()
    assert client.vms() == {"vm": "reserved"}
    client.release("vm")
    assert daemon.stop() == 0
