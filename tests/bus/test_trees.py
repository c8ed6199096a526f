# SPDX-License-Identifier: LGPL-2.1-or-later
"""Directory trees: labelled whole or not at all, given back entry by entry, by workers."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import BusError, Variant
from tests.mounts import mounted
from tests.support import (
    JOB,
    PROPERTIES,
    REPO,
    VM,
    Client,
    Daemon,
    image,
    label,
    set_label,
    unwrap,
    wait_for,
)

IMAGE = "system_u:object_r:virt_image_t:s0"
HOME = "unconfined_u:object_r:user_home_t:s0"
REFUSED = "org.svirt1.Error.ResourceRefused"
BUSY = "org.svirt1.Error.ResourceBusy"


def raw(path: Path) -> bytes | None:
    try:
        return os.getxattr(path, "security.selinux", follow_symlinks=False)
    except OSError:
        return None


def entries(root: Path) -> list[Path]:
    """The root and all that is in it."""
    return [root, *sorted(root.rglob("*"))]


def put_label(path: Path, text: bytes | None) -> None:
    if text is None:
        os.removexattr(path, "security.selinux")
    else:
        os.setxattr(path, "security.selinux", text)


def labels(root: Path) -> dict[Path, bytes | None]:
    return {one: raw(one) for one in entries(root)}


def make_tree(root: Path, folders: int = 4, files: int = 25) -> Path:
    """Make a tree of files with three labels and without one, a link, a fifo and a socket."""
    root.mkdir()
    for number in range(folders):
        folder = root / f"d{number}" / "in"
        folder.mkdir(parents=True)
        for one in range(files):
            image(folder / f"{one:03}.img", 16)
    (root / "link").symlink_to("/etc/shadow")
    (root / "folder-link").symlink_to("/etc")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "socket"))
    for number, path in enumerate(entries(root)):
        text = IMAGE if number % 3 or path == root else HOME
        if number % 7 or path == root:
            os.setxattr(path, "security.selinux", text.encode() + b"\0", follow_symlinks=False)
    (root / "äö\udcff").write_text("")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    yield make_tree(tmp_path / "tree")
    shutil.rmtree(tmp_path / "tree")


def resource(path: Path, access: str = "exclusive", **more: Any) -> dict[str, Variant]:
    return {
        "path": Variant("s", str(path)),
        "access": Variant("s", access),
        "recursive": Variant("b", True),
        **more,
    }


def acquire(client: Client, name: str, *some: dict[str, Variant], **options: Variant) -> None:
    client.call("Acquire", "saa{sv}a{sv}", name, list(some), options)


def refusal(client: Client, *some: dict[str, Variant], **options: Variant) -> BusError:
    return client.error("Acquire", "saa{sv}a{sv}", "vm", list(some), options)


def test_all_entries_are_labelled_and_get_what_they_had(
    daemon: Daemon, client: Client, tree: Path
) -> None:
    before = labels(tree)
    shadow = raw(Path("/etc/shadow"))
    acquire(client, "vm", resource(tree))
    vm = client.properties("vm")
    assert set(labels(tree).values()) == {vm["ImageContext"].encode() + b"\0"}
    assert raw(Path("/etc/shadow")) == shadow
    (held,) = vm["Resources"]
    assert held["recursive"] is True
    assert held["original"] == IMAGE
    # What comes while the VM has the tree gets what the root had.
    new = image(tree / "d0" / "new", 1)
    set_label(new, vm["ImageContext"])
    (tree / "d1" / "in" / "000.img").unlink()
    client.release("vm")
    after = labels(tree)
    assert after.pop(new) == IMAGE.encode() + b"\0"
    del before[tree / "d1" / "in" / "000.img"]
    assert after == before
    assert client.vms() == {}


def _link_out(tree: Path) -> None:
    outside = image(tree.parent / "outside.img", 1)
    os.link(outside, tree / "d0" / "other-name")


def _setuid(tree: Path) -> None:
    (tree / "d3" / "in" / "001.img").chmod(0o4755)


def _device(tree: Path) -> None:
    os.mknod(tree / "d1" / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))


def _type(tree: Path) -> None:
    set_label(tree / "d2" / "in" / "007.img", "system_u:object_r:shadow_t:s0")


def _carried(tree: Path) -> None:
    set_label(tree / "d2" / "in" / "008.img", "system_u:object_r:svirt_image_t:s0:c3,c4")


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (_link_out, "d0/other-name has 2 hard links"),
        (_setuid, "d3/in/001.img is a setuid"),
        (_device, "d1/null is a device node"),
        (_type, "d2/in/007.img has type shadow_t"),
        (_carried, "d2/in/008.img has type svirt_image_t"),
    ],
)
def test_one_entry_that_is_refused_has_all_taken_back(
    daemon: Daemon, client: Client, tree: Path, prepare: Callable[[Path], None], text: str
) -> None:
    prepare(tree)
    before = labels(tree)
    refused = refusal(client, resource(tree))
    assert refused.name == REFUSED
    assert text in refused.text
    (step, _) = client.call("Plan", "saa{sv}a{sv}", "vm", [resource(tree)], {})[0]
    assert step["error"].value == REFUSED
    assert text in step["reason"].value
    assert labels(tree) == before
    assert client.vms() == {}


def test_mounts_in_a_tree_are_not_entered(
    daemon: Daemon, client: Client, tree: Path, tmp_path: Path
) -> None:
    inside, outside = tree / "d0" / "mounted", tmp_path / "elsewhere"
    outside.mkdir()
    image(outside / "file", 1)
    with mounted(inside, "--bind", outside):
        acquire(client, "vm", resource(tree))
        assert raw(outside) is raw(outside / "file") is None
        assert raw(tree / "d0" / "in") is not None
        client.release("vm")
    assert raw(outside / "file") is None


def test_what_is_in_a_held_tree_is_held(daemon: Daemon, client: Client, tree: Path) -> None:
    acquire(client, "one", resource(tree, "public"))
    for asked in (
        resource(tree),
        resource(tree / "d0", "public"),
        {"path": Variant("s", str(tree / "d0" / "in" / "001.img"))},
    ):
        refused = refusal(client, asked)
        assert refused.name == BUSY
        assert "'one'" in refused.text
    # It is shared as a file is, and goes back with the last.
    acquire(client, "two", resource(tree, "public"))
    client.release("one")
    assert set(labels(tree).values()) == {b"system_u:object_r:virt_content_t:s0\0"}
    client.release("two")
    assert raw(tree) == IMAGE.encode() + b"\0"
    # The other way round: by its path, and where it is known by another one by its inode.
    file = tree / "d0" / "in" / "002.img"
    set_label(file, IMAGE)
    client.acquire("one", file, access="public")
    assert refusal(client, resource(tree)).name == BUSY
    client.release("one")


def test_a_directory_takes_recursive_and_a_file_does_not(
    daemon: Daemon, client: Client, tree: Path
) -> None:
    refused = refusal(client, {"path": Variant("s", str(tree))})
    assert refused.name == REFUSED
    assert "recursive" in refused.text
    refused = refusal(client, resource(tree / "d0" / "in" / "001.img"))
    assert "is a regular file" in refused.text
    inside = {"path": Variant("s", str(tree / "d0" / "in" / "001.img"))}
    refused = refusal(client, resource(tree), inside)
    assert "is in the tree" in refused.text


def hold_what_is_remembered(daemon: Daemon, action: str) -> None:
    """Have the daemon do something in the thread that writes the book, while the next tree's job
    has begun and its entries are remembered: calls are answered meanwhile."""
    armed = daemon.folder / "armed"
    daemon.stop()
    daemon.failpoints = f"from:{armed}"
    daemon.start()
    # The first commit is the request's own.
    armed.with_suffix(".new").write_text(f"commit-before@2={action}", "utf-8")
    armed.with_suffix(".new").rename(armed)


def test_cancel_takes_everything_back(own_daemon: Daemon, client: Client, tree: Path) -> None:
    gate = own_daemon.folder / "gate"
    gate.touch()
    hold_what_is_remembered(own_daemon, f"hold:{gate}")
    before = labels(tree)
    jobs: list[str] = []

    def cancel() -> None:
        other = Client()
        try:
            path = wait_for("the job", lambda: _jobs(other))[0]
            about = unwrap(other.call("GetAll", "s", JOB, path=path, interface=PROPERTIES)[0])
            assert (about["Kind"], about["Owner"]) == ("tree", 0)
            other.call("Cancel", "a{sv}", {}, path=path, interface=JOB)
            jobs.append(path)
        finally:
            gate.unlink()
            other.close()

    thread = threading.Thread(target=cancel)
    thread.start()
    refused = refusal(client, resource(tree))
    thread.join()
    assert jobs
    assert refused.name == "org.svirt1.Error.Cancelled"
    assert labels(tree) == before
    assert client.vms() == {}


def _jobs(client: Client) -> list[str]:
    (found,) = client.call("GetManagedObjects", "", interface="org.freedesktop.DBus.ObjectManager")
    return [path for path in found if "/job/" in path]


@pytest.mark.parametrize("times", [1, 3])
def test_killed_in_the_middle_it_is_taken_back(
    own_daemon: Daemon, client: Client, tree: Path, times: int
) -> None:
    own_daemon.stop()
    before = labels(tree)
    own_daemon.failpoints = f"tree-remembered@{times}=kill"
    own_daemon.start()
    refused = refusal(client, resource(tree))
    assert "NoReply" in refused.name
    own_daemon.kill()
    # Killed once more while it gives back.
    own_daemon.failpoints = "undo-after=kill"
    own_daemon.spawn()
    assert own_daemon.process is not None
    own_daemon.process.wait(20)
    own_daemon.kill()
    own_daemon.failpoints = ""
    own_daemon.start()
    assert labels(tree) == before
    assert client.vms() == {}


def test_a_release_that_is_cut_off_goes_on(own_daemon: Daemon, client: Client, tree: Path) -> None:
    before = labels(tree)
    acquire(client, "vm", resource(tree))
    own_daemon.stop()
    own_daemon.failpoints = "undo-before=kill"
    own_daemon.start()
    assert "NoReply" in client.error("Release", "sa{sv}", "vm", {}).name
    own_daemon.kill()
    own_daemon.failpoints = ""
    own_daemon.start()
    assert labels(tree) == before
    assert client.vms() == {}


def test_what_others_changed_is_told_as_one_and_mended_on_demand(
    daemon: Daemon, client: Client, tree: Path
) -> None:
    acquire(client, "vm", resource(tree))
    label_ = client.properties("vm")["ImageContext"]
    changed = [one for one in entries(tree / "d1") if one.is_file()]
    for one in changed:
        set_label(one, HOME)
    scan = {"scan": Variant("as", [str(tree.parent)])}
    # What carries the VM's set in its tree is no orphan.
    (finding,) = unwrap(client.call("Verify", "ba{sv}", False, scan)[0])
    assert (finding["kind"], finding["path"]) == ("changed", str(tree))
    assert f"{HOME}: {len(changed)} (" in finding["reason"]
    (finding,) = unwrap(client.call("Verify", "ba{sv}", True, {})[0])
    assert finding["repaired"]
    assert {label(one) for one in changed} == {label_}
    for one in changed:
        set_label(one, HOME)
    client.listen()
    client.release("vm")
    found = [unwrap(body[0]) for body in client.seen("DriftFound")]
    assert [one["path"] for one in found] == [str(tree)]
    assert {label(one) for one in changed} == {HOME}


def test_what_the_disk_has_lost_of_a_tree_is_set_at_the_next_start(
    own_daemon: Daemon, client: Client, tree: Path
) -> None:
    """Whatever an entry had before, and that alone: what somebody else has set stays."""
    own_daemon.stop()
    with open(own_daemon.config, "a", encoding="utf-8") as config:
        config.write("[drift]\nrepair = false\n")
    own_daemon.start()
    before = labels(tree)
    files = [one for one in before if one.is_file() and not one.is_symlink()]
    lost = {had: next(one for one in files if before[one] == had) for had in {*before.values()}}
    assert len(lost) == 3
    plain = [one for one in files if before[one] == IMAGE.encode() + b"\0"]
    other = next(one for one in plain if one not in lost.values())
    acquire(client, "vm", resource(tree))
    ours = client.properties("vm")["ImageContext"]
    own_daemon.kill()
    for had, path in lost.items():
        put_label(path, had)
    set_label(other, HOME)
    own_daemon.start()
    # The comparison of a start is over before the second one that is asked for.
    client.call("Verify", "ba{sv}", False, {})
    (found,) = unwrap(client.call("Verify", "ba{sv}", False, {})[0])
    assert f"{HOME}: 1 (" in found["reason"]
    assert {label(path) for path in lost.values()} == {ours}
    assert label(other) == HOME
    client.release("vm")
    assert labels(tree) == before | {other: HOME.encode() + b"\0"}


def test_nobody_gets_the_set_while_something_in_the_tree_carries_it(
    daemon: Daemon, client: Client, tree: Path
) -> None:
    acquire(client, "vm", resource(tree))
    carried = client.properties("vm")["Categories"]
    file = tree / "d0" / "in" / "004.img"
    set_label(file, f"system_u:object_r:other_t:s0:{carried}")
    client.release("vm")
    assert client.manager()["PairsQuarantined"] == 1
    set_label(file, IMAGE)
    client.call("Verify", "ba{sv}", False, {})
    assert client.manager()["PairsQuarantined"] == 0


def test_the_tree_of_a_vm_that_runs_is_in_a_new_book(
    own_daemon: Daemon, client: Client, tree: Path
) -> None:
    argv = ["/bin/sh", "-c", "exec sleep 1000", str(tree)]
    client.call("Launch", "sasaa{sv}a{sv}", "vm", argv, [resource(tree)], {})
    before = client.properties("vm")
    own_daemon.kill()
    shutil.rmtree(own_daemon.book.parent)
    own_daemon.start()
    after = client.properties("vm")
    assert after["Categories"] == before["Categories"]
    (held,) = after["Resources"]
    assert (held["path"], held["recursive"], held["access"]) == (str(tree), True, "exclusive")
    assert "original" not in held
    client.release("vm")
    # Without SELinux an object has no label of its own.
    assert set(labels(tree).values()) == {None}


def test_a_vm_that_is_up_gets_no_tree(daemon: Daemon, client: Client, tree: Path) -> None:
    client.call("Launch", "sasaa{sv}a{sv}", "vm", ["/bin/sleep", "1000"], [], {})
    (path,) = client.call("GetVM", "s", "vm")
    refused = client.error("Attach", "a{sv}a{sv}", resource(tree), {}, path=path, interface=VM)
    assert refused.name == REFUSED
    assert "next start" in refused.text
    client.release("vm")


def test_control_c_in_svirtctl_takes_everything_back(
    own_daemon: Daemon, client: Client, tree: Path
) -> None:
    # Until svirtctl has asked for the end: it does that at once, and nobody is told.
    hold_what_is_remembered(own_daemon, "sleep:4")
    before = labels(tree)
    argv = [sys.executable, "-m", "svirtd.ctl", "acquire", "vm", "--tree", str(tree)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, cwd=REPO) as process:
        wait_for("the job", lambda: _jobs(client))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        # It waits until all is back.
        assert process.returncode == 130
    assert labels(tree) == before
    assert client.vms() == {}
