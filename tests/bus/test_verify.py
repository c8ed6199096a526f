# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verify and the live watch: what differs is named, and mended where that is asked for and safe."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import BusError, Message, Variant
from tests import svirtctl
from tests.bus.faults import running
from tests.mounts import mounted, remount
from tests.sandbox import Sandbox
from tests.support import (
    DEADLINE_S,
    JOB,
    MANAGER,
    NAME,
    ROOT,
    XATTR,
    Client,
    Daemon,
    image,
    label,
    set_label,
    unwrap,
    wait_for,
)

PLAIN = "system_u:object_r:virt_image_t:s0"
HOST = "system_u:object_r:etc_t:s0"
FOREIGN = "system_u:object_r:svirt_image_t:s0:c1,c2"


def verify(client: Client, *folders: Path, repair: bool = False) -> list[dict[str, Any]]:
    options = {"scan": Variant("as", [str(one) for one in folders])} if folders else {}
    (findings,) = client.call("Verify", "ba{sv}", repair, options)
    return [dict(unwrap(one)) for one in findings]


def open_operations(daemon: Daemon) -> int:
    with sqlite3.connect(f"file:{daemon.book}?mode=ro", uri=True) as book:
        (count,) = book.execute("SELECT count(*) FROM operation").fetchone()
    book.close()
    return int(count)


def drifts(client: Client) -> list[dict[str, Any]]:
    return [dict(unwrap(body[0])) for body in client.seen("DriftFound")]


def test_everything_is_compared_from_time_to_time(
    sandbox: Sandbox, client: Client, tmp_path: Path
) -> None:
    """What no watch sees: nothing has happened to the object, its folder has another name."""
    folder, away = tmp_path / "folder", tmp_path / "away"
    folder.mkdir()
    with running(tmp_path / "d", extra="[drift]\ninterval = 10\n"):
        client.listen()
        client.acquire("vm", image(folder / "a.img"))
        # After the comparison at the start, and after the look that a watch begins with.
        assert verify(client) == []
        client.idle(0.5)
        folder.rename(away)
        (found,) = wait_for("it is told", lambda: drifts(client), 3 * DEADLINE_S)
        assert (found["kind"], found["path"]) == ("missing", str(folder / "a.img"))
        away.rename(folder)
        client.release("vm")


def test_nothing_differs(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    client.acquire("vm", image(tmp_path / "a.img"), image(tmp_path / "b.img"))
    assert verify(client) == []
    assert verify(client, tmp_path, repair=True) == []
    client.release("vm")


def test_a_changed_label_is_told_and_put_back_when_asked(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.listen()
    client.acquire("vm", disk)
    ours = str(label(disk))
    set_label(disk, PLAIN)
    # Told at once, by the watch; not put back: nobody says that the VM runs.
    (told,) = wait_for("it is told", lambda: drifts(client))
    assert (told["kind"], told["path"], told["repaired"]) == ("changed", str(disk), False)
    (finding,) = verify(client)
    assert finding == {
        "kind": "changed",
        "vm": "vm",
        "path": str(disk),
        "expected": ours,
        "found": PLAIN,
        "reason": "somebody else changed its label",
        "repair": "puts the label back",
        "repaired": False,
    }
    assert label(disk) == PLAIN
    (finding,) = verify(client, repair=True)
    assert finding["repaired"]
    assert label(disk) == ours
    assert verify(client) == []
    client.release("vm")
    assert label(disk) is None


@pytest.mark.parametrize("theirs", [HOST, FOREIGN, f"{PLAIN}:c7", "nonsense"])
def test_a_label_that_means_something_is_left_alone(
    daemon: Daemon, client: Client, tmp_path: Path, theirs: str
) -> None:
    """A host's type, somebody's categories: to take either away could cut somebody else off."""
    disk = image(tmp_path / "a.img")
    client.launch("vm", ["/bin/sleep", "1000"], disk)
    set_label(disk, theirs)
    (finding,) = verify(client, repair=True)
    assert (finding["kind"], finding["repaired"]) == ("changed", False)
    assert finding["repair"].startswith("nothing: ")
    client.release("vm")
    assert label(disk) == theirs
    os.removexattr(disk, XATTR)
    # What could not be read as a context was kept in quarantine until now.
    assert verify(client) == []
    assert client.manager()["PairsQuarantined"] == 0


def test_missing_and_replaced(own_daemon: Daemon, client: Client, tmp_path: Path) -> None:
    gone, other = image(tmp_path / "a.img"), image(tmp_path / "b.img")
    client.acquire("vm", gone, other)
    os.rename(gone, tmp_path / "moved.img")
    os.rename(other, tmp_path / "old.img")
    image(other)
    found = verify(client, repair=True)
    assert [(one["kind"], one["path"]) for one in found] == [
        ("missing", str(gone)),
        ("replaced", str(other)),
    ]
    assert not any(one["repaired"] for one in found)
    assert label(other) is None
    os.rename(tmp_path / "moved.img", gone)
    os.rename(tmp_path / "old.img", other)
    assert verify(client) == []
    client.release("vm")
    assert (label(gone), label(other)) == (None, None)


def test_a_running_vms_label_is_back_before_a_person_notices(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disks = [image(tmp_path / f"{n}.img") for n in range(5)]
    client.listen()
    client.launch("vm", ["/bin/sleep", "1000"], *disks)
    ours = str(label(disks[0]))
    os.removexattr(disks[0], XATTR)
    for disk in disks[1:]:
        set_label(disk, PLAIN)
    wait_for("all are back", lambda: [label(d) for d in disks] == [ours] * 5)
    wait_for("all are told", lambda: len(drifts(client)) >= 5)
    assert {one["path"] for one in drifts(client)} == {str(d) for d in disks}
    assert all(one["repaired"] for one in drifts(client))
    assert verify(client) == []
    client.release("vm")
    assert {label(d) for d in disks} == {None}


def test_a_fight_over_a_label_has_an_end(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.listen()
    client.launch("vm", ["/bin/sleep", "1000"], disk)
    ours = str(label(disk))
    for _ in range(5):
        set_label(disk, PLAIN)
        wait_for("it is back", lambda: label(disk) == ours)
    set_label(disk, PLAIN)
    last = wait_for("svirtd gives up", lambda: [d for d in drifts(client) if not d["repaired"]])
    assert "5 times within 60 s" in last[0]["repair"]
    assert label(disk) == PLAIN
    # A person may still ask for it.
    assert verify(client, repair=True)[0]["repaired"]
    assert label(disk) == ours
    client.release("vm")


def test_without_repair_it_is_only_told(sandbox: Sandbox, client: Client, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "d", extra="[drift]\nrepair = false\n")
    daemon.start()
    try:
        disk = image(tmp_path / "a.img")
        client.listen()
        client.launch("vm", ["/bin/sleep", "1000"], disk)
        set_label(disk, PLAIN)
        (told,) = wait_for("it is told", lambda: drifts(client))
        assert not told["repaired"]
        assert label(disk) == PLAIN
        client.release("vm")
        os.removexattr(disk, XATTR)
    finally:
        daemon.stop()


def test_the_watch_follows_what_is_held(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """Before it is held and after its release a file is nobody's business."""
    disk, public = image(tmp_path / "a.img"), image(tmp_path / "p.img")
    client.listen()
    client.acquire("one", public, access="public")
    client.launch("two", ["/bin/sleep", "1000"], disk)
    client.acquire("three", public, access="public")
    client.release("one")
    # Held on by another VM.
    shared = str(label(public))
    set_label(public, PLAIN)
    wait_for("the other holder is told of", lambda: drifts(client))
    assert [(d["vm"], d["path"]) for d in drifts(client)] == [("three", str(public))]
    set_label(public, shared)
    client.release("three")
    client.release("two")
    set_label(disk, PLAIN)
    set_label(public, PLAIN)
    client.acquire("other", image(tmp_path / "b.img"))
    client.release("other")
    assert len(drifts(client)) == 1
    for path in (disk, public):
        os.removexattr(path, XATTR)


def test_a_label_that_was_lost_while_svirtd_was_away(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """The power went before the label was on the disk: what was promised holds again at start."""
    disk, other = image(tmp_path / "a.img"), image(tmp_path / "b.img")
    set_label(disk, PLAIN)
    client.acquire("vm", disk, other)
    ours = str(label(disk))
    # An acquisition whose labels do not stand and whose closing entry was lost would be undone.
    wait_for("the acquisition is closed", lambda: not open_operations(own_daemon))
    own_daemon.kill()
    set_label(disk, PLAIN)
    set_label(other, HOST)
    own_daemon.start()
    wait_for("the original is not the end of it", lambda: label(disk) == ours)
    assert label(other) == HOST
    client.release("vm")
    assert label(disk) == PLAIN
    os.removexattr(disk, XATTR)
    os.removexattr(other, XATTR)


def test_a_file_that_was_away_at_the_release_gets_its_original(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk, moved = image(tmp_path / "a.img"), tmp_path / "moved.img"
    set_label(disk, PLAIN)
    client.acquire("vm", disk)
    ours = str(label(disk))
    os.rename(disk, moved)
    client.release("vm")
    assert label(moved) == ours
    (finding,) = verify(client)
    assert (finding["kind"], finding["vm"]) == ("quarantine", "vm")
    assert client.manager()["PairsQuarantined"] == 1
    # Found by a scan under its new name: told, and given back when asked.
    (_, finding) = verify(client, tmp_path)
    assert (finding["kind"], finding["path"]) == ("stale", str(moved))
    assert finding["repair"] == f"gives it back its original label, {PLAIN}"
    assert label(moved) == ours
    verify(client, tmp_path, repair=True)
    assert label(moved) == PLAIN
    assert client.manager()["PairsQuarantined"] == 0
    assert verify(client, tmp_path) == []
    os.removexattr(moved, XATTR)


def test_a_scan_finds_files_of_no_vm_and_keeps_their_set_back(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    below = folder / "deep" / "er"
    below.mkdir(parents=True)
    orphan = image(below / "orphan.img")
    set_label(orphan, FOREIGN)
    held = image(folder / "held.img")
    client.acquire("vm", held)
    copy = folder / "copy.img"
    subprocess.run(["cp", "--preserve=all", held, copy], check=True)
    # None of these is one: no categories, a link, another mount, another type.
    set_label(image(folder / "plain.img"), PLAIN)
    set_label(image(tmp_path / "outside.img"), FOREIGN)
    (folder / "link.img").symlink_to(tmp_path / "outside.img")
    (folder / "link").symlink_to(tmp_path)
    set_label(image(folder / "container"), "system_u:object_r:container_file_t:s0:c1,c2")
    with mounted(folder / "mount", "-t", "tmpfs", "tmpfs") as mount:
        set_label(image(mount / "other.img"), FOREIGN)
        found = {one["path"]: one for one in verify(client, folder, repair=True)}
    assert set(found) == {str(orphan), str(copy)}
    assert {one["kind"] for one in found.values()} == {"orphan"}
    assert (found[str(orphan)]["vm"], found[str(copy)]["vm"]) == ("", "vm")
    assert (label(orphan), label(copy)) == (FOREIGN, label(held))
    assert client.manager()["PairsQuarantined"] == 1
    # Again: it is known now, and told as what keeps the set back.
    assert {one["kind"] for one in verify(client, folder)} == {"stale", "orphan"}
    assert client.manager()["PairsQuarantined"] == 1
    client.release("vm")
    # A person has settled it: the set is free again.
    set_label(orphan, PLAIN)
    assert verify(client) == []
    assert client.manager()["PairsQuarantined"] == 0
    for path in tmp_path.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.setxattr(path, XATTR, b"x")
            os.removexattr(path, XATTR)


def test_what_cannot_be_finished_is_named_and_finished_when_asked(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    with mounted(tmp_path / "fs", "-t", "tmpfs", "tmpfs") as folder:
        disk = image(folder / "a.img")
        client.acquire("vm", disk)
        remount(folder, "ro")
        with pytest.raises(BusError):
            client.release("vm")
        (finding,) = verify(client, repair=True)
        assert (finding["kind"], finding["vm"], finding["repaired"]) == ("unfinished", "vm", False)
        assert "read-only" in finding["reason"]
        remount(folder, "rw")
        assert [one["kind"] for one in verify(client)] == ["unfinished"]
        assert verify(client, repair=True) == []
        assert client.vms() == {}
        assert label(disk) is None


@pytest.fixture
def slow(sandbox: Sandbox, client: Client, tmp_path: Path) -> Iterator[Path]:
    """A folder whose scan takes long enough to be watched, and a daemon that is told to take it."""
    folder = tmp_path / "images"
    for number in range(60):
        (folder / str(number)).mkdir(parents=True)
        for name in "abcdefgh":
            set_label(image(folder / str(number) / name), FOREIGN)
    daemon = Daemon(tmp_path / "d", failpoints="label-read=sleep:0.005")
    daemon.start()
    yield folder
    assert daemon.stop() == 0
    shutil.rmtree(folder)


def test_a_scan_is_a_job(client: Client, slow: Path) -> None:
    client.listen()
    client.runner.run(client.connection.subscribe(NAME, MANAGER, "JobNew", client.signals.append))
    client.runner.run(
        client.connection.subscribe(NAME, MANAGER, "JobRemoved", client.signals.append)
    )
    findings = verify(client, slow)
    assert len(findings) == 480
    ((number, path),) = client.seen("JobNew")
    assert client.seen("JobRemoved") == [[number, path, "done"]]
    progress = [
        unwrap(body[1])["Progress"]
        for body in client.seen("PropertiesChanged")
        if body[0] == JOB and "Progress" in body[1]
    ]
    assert progress == sorted(progress)
    assert len(progress) >= 2
    assert 0 < progress[0] < progress[-1] <= 1
    gone = client.error("Cancel", "a{sv}", {}, path=path, interface=JOB)
    assert gone.name == "org.freedesktop.DBus.Error.UnknownObject"


def test_a_job_is_cancelled(client: Client, slow: Path) -> None:
    async def cancelled() -> BusError:
        begun: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        await client.connection.subscribe(NAME, MANAGER, "JobNew", begun.set_result)
        options = {"scan": Variant("as", [str(slow)])}
        call = asyncio.ensure_future(
            client.connection.call(
                NAME, ROOT, MANAGER, "Verify", "ba{sv}", [False, options], timeout_s=DEADLINE_S
            )
        )
        path = (await begun).body[1]
        await client.connection.call(NAME, path, JOB, "Cancel", "a{sv}", [{}], timeout_s=DEADLINE_S)
        with pytest.raises(BusError) as caught:
            await call
        return caught.value

    assert client.runner.run(cancelled()).name == "org.svirt1.Error.Cancelled"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scan": Variant("as", ["relative"])}, "not absolute"),
        ({"scan": Variant("as", ["/nowhere/at/all"])}, "cannot be scanned"),
        ({"scan": Variant("as", ["/etc/passwd"])}, "cannot be scanned"),
        ({"scan": Variant("s", "/srv")}, "expected 'as'"),
        ({"more": Variant("b", True)}, "unknown key"),
    ],
)
def test_what_verify_does_not_take(
    daemon: Daemon, client: Client, options: dict[str, Variant], text: str
) -> None:
    error = client.error("Verify", "ba{sv}", True, options)
    assert error.name == "org.freedesktop.DBus.Error.InvalidArgs"
    assert text in error.text


def test_svirtctl_verify(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return svirtctl.run("verify", *arguments)

    disk = image(tmp_path / "a.img")
    client.acquire("vm", disk)
    clean = run("--scan", str(tmp_path))
    assert (clean.returncode, clean.stdout, clean.stderr) == (0, "Nothing differs.\n", "")
    set_label(disk, PLAIN)
    found = run()
    assert found.returncode == 1
    for part in ("Changed", str(disk), "VM vm", PLAIN, "puts the label back"):
        assert part in found.stdout
    mended = run("--repair", "--json")
    assert mended.returncode == 0
    assert '"repaired": true' in mended.stdout
    assert run("--scan", "/nowhere").returncode == 1
    client.release("vm")
