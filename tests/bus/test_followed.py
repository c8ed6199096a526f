# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMs that libvirt labels: what its hook tells, and what svirtd makes of it.

Here the test is libvirt: it labels and gives back, and its processes stand for QEMU's.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.core.mcs import parse_categories
from svirtd.host.bus import BusError, Variant
from tests.bus.test_reboot import reboot
from tests.support import (
    VM,
    Client,
    Daemon,
    image,
    label,
    resources,
    set_label,
    unwrap,
    wait_for,
)

UUID = "6c3a6e6e-0000-4000-8000-000000000001"
OTHER = "6c3a6e6e-0000-4000-8000-000000000002"
ORIGINAL = "system_u:object_r:virt_image_t:s0"
PUBLIC = "system_u:object_r:virt_content_t:s0"


def options(uuid: str = UUID, **more: Variant) -> dict[str, Variant]:
    """Options of a check-in."""
    named = {key.replace("_", "-"): value for key, value in more.items()}
    return {
        "labelled-by": Variant("s", "libvirt"),
        "uuid": Variant("s", uuid),
        "persistent": Variant("b", True),
        **named,
    }


def check_in(client: Client, name: str, *disks: Path, uuid: str = UUID, **more: Variant) -> None:
    client.call("Acquire", "saa{sv}a{sv}", name, resources(*disks), options(uuid, **more))


def of_vm(client: Client, name: str, member: str, signature: str, *body: Any) -> None:
    (path,) = client.call("GetVM", "s", name)
    client.message(member, signature, *body, path=path, interface=VM)


def refused(client: Client, name: str, member: str, signature: str, *body: Any) -> BusError:
    with pytest.raises(BusError) as caught:
        of_vm(client, name, member, signature, *body)
    return caught.value


def end(client: Client, *names: str) -> None:
    for name in names:
        client.release(name)
        client.call("Forget", "sa{sv}", name, {})


@pytest.fixture
def qemu() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that stands for a domain's."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that makes a disk; its label is taken away at the end."""
    made: list[Path] = []

    def one(name: str) -> Path:
        made.append(image(tmp_path / f"{name}.img"))
        set_label(made[-1], ORIGINAL)
        return made[-1]

    yield one
    for path in made:
        os.removexattr(path, "security.selinux")


@pytest.fixture
def disk(make: Callable[[str], Path]) -> Path:
    return make("disk")


def test_a_life_from_check_in_to_release(
    daemon: Daemon, client: Client, disk: Path, qemu: "subprocess.Popen[bytes]"
) -> None:
    """The same set each time, nothing written by svirtd before libvirt, and all restored."""
    check_in(client, "web")
    reserved = client.properties("web")
    assert (reserved["State"], reserved["LabelledBy"]) == ("reserved", "libvirt")
    for _ in range(2):
        check_in(client, "web", disk)
        vm = client.properties("web")
        assert vm["Categories"] == reserved["Categories"]
        assert vm["State"] == "labelled"
        assert label(disk) == ORIGINAL
        (held,) = vm["Resources"]
        assert (held["context"], held["original"]) == (vm["ImageContext"], ORIGINAL)

        set_label(disk, held["context"])
        of_vm(client, "web", "Follow", "ua{sv}", qemu.pid, {})
        vm = client.properties("web")
        assert (vm["State"], vm["MainPID"], vm["Unit"]) == ("running", qemu.pid, "")
        assert client.call("GetVMByUUID", "s", UUID.upper()) == ["/org/svirt1/vm/web"]
        # As long as it runs, svirtd does not take its disks from it.
        error = client.error("Release", "sa{sv}", "web", {})
        assert error.name == "org.svirt1.Error.Failed"
        assert "virsh destroy" in error.text
        assert label(disk) == held["context"]

        of_vm(client, "web", "Ending", "a{sv}", {})
        assert client.properties("web")["State"] == "releasing"
        set_label(disk, ORIGINAL)
        client.release("web")
        assert label(disk) == ORIGINAL
        assert client.properties("web")["State"] == "reserved"
    client.call("Forget", "sa{sv}", "web", {})


def test_what_libvirt_forgets_svirtd_gives_back(
    daemon: Daemon, client: Client, disk: Path, qemu: "subprocess.Popen[bytes]"
) -> None:
    check_in(client, "web", disk)
    set_label(disk, client.properties("web")["ImageContext"])
    of_vm(client, "web", "Follow", "ua{sv}", qemu.pid, {})
    of_vm(client, "web", "Ending", "a{sv}", {})
    end(client, "web")
    assert label(disk) == ORIGINAL


def test_labels_are_looked_after_only_while_it_runs(
    daemon: Daemon, client: Client, disk: Path, qemu: "subprocess.Popen[bytes]"
) -> None:
    def findings() -> list[dict[str, Any]]:
        (found,) = client.call("Verify", "ba{sv}", False, {})
        return [dict(one) for one in unwrap(found)]

    check_in(client, "web", disk)
    assert findings() == []
    image_context = client.properties("web")["ImageContext"]
    set_label(disk, image_context)
    of_vm(client, "web", "Follow", "ua{sv}", qemu.pid, {})
    # Somebody's restorecon over the images.
    set_label(disk, ORIGINAL)
    wait_for("the label is back", lambda: label(disk) == image_context)
    of_vm(client, "web", "Ending", "a{sv}", {})
    set_label(disk, ORIGINAL)
    assert findings() == []
    assert label(disk) == ORIGINAL
    end(client, "web")


def test_nothing_runs_with_what_libvirt_did_not_label(
    daemon: Daemon, client: Client, disk: Path, qemu: "subprocess.Popen[bytes]"
) -> None:
    check_in(client, "web", disk)
    error = refused(client, "web", "Follow", "ua{sv}", qemu.pid, {})
    assert error.name == "org.svirt1.Error.LabelRefused"
    assert str(disk) in error.text
    assert ORIGINAL in error.text
    set_label(disk, client.properties("web")["ImageContext"])
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pid in (0, gone.pid):
        error = refused(client, "web", "Follow", "ua{sv}", pid, {})
        assert error.name == "org.svirt1.Error.LabelRefused"
    assert client.properties("web")["State"] == "labelled"
    of_vm(client, "web", "Follow", "ua{sv}", qemu.pid, {})
    of_vm(client, "web", "Follow", "ua{sv}", qemu.pid, {})
    error = refused(client, "web", "Follow", "ua{sv}", 1, {})
    assert f"process {qemu.pid}" in error.text
    of_vm(client, "web", "Ending", "a{sv}", {})
    end(client, "web")


def test_only_libvirts_vms_are_followed(
    daemon: Daemon, client: Client, disk: Path, qemu: "subprocess.Popen[bytes]"
) -> None:
    client.acquire("mine", disk)
    for member, body in (("Follow", (qemu.pid, {})), ("Ending", ({},))):
        signature = "ua{sv}" if len(body) == 2 else "a{sv}"
        error = refused(client, "mine", member, signature, *body)
        assert error.name == "org.svirt1.Error.Failed"
        assert "not libvirt's" in error.text
    assert client.properties("mine")["State"] == "labelled"
    client.release("mine")
    check_in(client, "web")
    assert "was not checked in" in refused(client, "web", "Follow", "ua{sv}", qemu.pid, {}).text
    of_vm(client, "web", "Ending", "a{sv}", {})  # nothing to end: the hook may say so
    assert client.properties("web")["State"] == "reserved"
    end(client, "web")


def test_conflicts_name_both(daemon: Daemon, client: Client, disk: Path) -> None:
    client.acquire("mine", disk)
    given = options()
    error = client.error("Acquire", "saa{sv}a{sv}", "web", resources(disk), given)
    assert error.name == "org.svirt1.Error.ResourceBusy"
    assert "'mine'" in error.text
    client.release("mine")
    check_in(client, "web", disk)
    error = client.error("Acquire", "saa{sv}a{sv}", "mine", resources(disk), {})
    assert error.name == "org.svirt1.Error.ResourceBusy"
    assert "'web'" in error.text
    end(client, "web")


def test_media_of_several_that_start_at_once(daemon: Daemon, client: Client, disk: Path) -> None:
    """Between the check-in of one and its labels another is checked in."""
    given = [resources(disk, access="public"), options()]
    client.call("Acquire", "saa{sv}a{sv}", "one", *given)
    given[1] = options(OTHER)
    client.call("Acquire", "saa{sv}a{sv}", "two", *given)
    set_label(disk, PUBLIC)
    of_vm(client, "one", "Ending", "a{sv}", {})
    end(client, "one")
    assert label(disk) == PUBLIC
    of_vm(client, "two", "Ending", "a{sv}", {})
    end(client, "two")
    # libvirt does not remember what such a file had.
    assert label(disk) == ORIGINAL


def test_a_copy_of_a_domain_does_not_get_its_set(
    daemon: Daemon, client: Client, disk: Path
) -> None:
    check_in(client, "web")
    given = options(OTHER)
    error = client.error("Acquire", "saa{sv}a{sv}", "web", resources(disk), given)
    assert error.name == "org.svirt1.Error.VMExists"
    assert UUID in error.text
    assert OTHER in error.text
    end(client, "web")


def test_the_disk_of_two_and_of_no_third(
    daemon: Daemon,
    client: Client,
    make: Callable[[str], Path],
    qemu: "subprocess.Popen[bytes]",
) -> None:
    """What a VM alone uses gets all of its process's categories, as libvirt labels it."""
    client.call("CreateGroup", "sa{sv}", "pair", {})
    own, both = make("own"), make("both")
    check_in(client, "web")
    of_vm(client, "web", "JoinGroup", "sa{sv}", "pair", {})
    (shared,) = resources(both, access="group")
    named = [*resources(own), shared | {"group": Variant("s", "pair")}]
    (steps,) = client.call("Plan", "saa{sv}a{sv}", "web", named, options())
    *planned, goal = unwrap(steps)
    client.call("Acquire", "saa{sv}a{sv}", "web", named, options())
    vm = client.properties("web")
    whole = vm["ProcessContext"].split(":", 4)[4]
    assert len(parse_categories(whole)) == 3
    assert goal["process"] == vm["ProcessContext"]
    assert [one["to"] for one in planned] == [one["context"] for one in vm["Resources"]]
    labels = [one["context"] for one in vm["Resources"]]
    group = parse_categories(whole) - parse_categories(vm["Categories"])
    assert labels[0] == vm["ImageContext"] == f"system_u:object_r:svirt_image_t:s0:{whole}"
    assert parse_categories(labels[1].split(":", 4)[4]) == group
    for path, text in zip((own, both), labels, strict=True):
        set_label(path, text)
    of_vm(client, "web", "Follow", "ua{sv}", qemu.pid, {})
    of_vm(client, "web", "Ending", "a{sv}", {})
    client.release("web")
    assert label(own) == label(both) == ORIGINAL
    vm = client.properties("web")
    assert vm["ImageContext"].endswith(f":{vm['Categories']}")
    client.call("Forget", "sa{sv}", "web", {})
    client.call("DeleteGroup", "sa{sv}", "pair", {})


def test_the_set_that_comes_along_from_another_host(daemon: Daemon, client: Client) -> None:
    there = Variant("s", "c7,c300,c900")
    check_in(client, "moved", categories=there)
    assert client.properties("moved")["Categories"] == "c7,c300"
    # Whoever comes with it as well gets nothing; known again, a VM keeps its own.
    for number, call in enumerate(("Acquire", "Plan")):
        given = options(OTHER, categories=there)
        error = client.error(call, "saa{sv}a{sv}", f"b{number}", [], given)
        assert error.name == "org.svirt1.Error.Drift"
        assert "c7,c300" in error.text
    check_in(client, "moved", categories=Variant("s", "c1,c2"))
    assert client.properties("moved")["Categories"] == "c7,c300"
    end(client, "moved")
    (steps,) = client.call("Plan", "saa{sv}a{sv}", "p", [], options(categories=there))
    assert unwrap(steps)[0]["process"].endswith(":c7,c300")
    for text in ("c1", "c1,c2,c3", "c900", "x", "c5000,c5001"):
        given = options(categories=Variant("s", text))
        error = client.error("Acquire", "saa{sv}a{sv}", "b", [], given)
        assert error.name == "org.freedesktop.DBus.Error.InvalidArgs"
    assert client.vms() == {}


BAD = {
    "another labeller": {"labelled-by": Variant("s", "systemd")},
    "its own labeller": {"labelled-by": Variant("s", "")},
    "no uuid": {"labelled-by": Variant("s", "libvirt"), "uuid": Variant("s", "")},
    "ends with the caller": {"lifetime": Variant("s", "caller")},
}


@pytest.mark.parametrize("given", BAD.values(), ids=list(BAD))
def test_what_a_check_in_may_not_say(
    daemon: Daemon, client: Client, given: dict[str, Variant]
) -> None:
    error = client.error("Acquire", "saa{sv}a{sv}", "x", [], options() | given)
    assert error.name == "org.freedesktop.DBus.Error.InvalidArgs"
    for key in ("labelled-by", "categories"):
        one = {key: Variant("s", "libvirt" if key == "labelled-by" else "c1,c2")}
        error = client.error("Launch", "sasaa{sv}a{sv}", "x", ["/bin/true"], [], one)
        assert f"unknown key '{key}'" in error.text
    error = client.error("Acquire", "saa{sv}a{sv}", "x", [], one)
    assert error.name == "org.freedesktop.DBus.Error.InvalidArgs"
    assert client.vms() == {}


def test_the_daemon_is_killed_while_they_run(
    own_daemon: Daemon,
    client: Client,
    make: Callable[[str], Path],
    qemu: "subprocess.Popen[bytes]",
) -> None:
    """One runs on, one has ended meanwhile, one is about to start, one is about to be over."""
    names = ("runs", "ended", "starts", "ends")
    disks = {name: make(name) for name in names}
    other = subprocess.Popen(["sleep", "1000"])
    for number, name in enumerate(names):
        check_in(client, name, disks[name], uuid=UUID[:-1] + str(number))
        if name != "starts":
            set_label(disks[name], client.properties(name)["ImageContext"])
            pid = qemu.pid if name == "runs" else other.pid
            of_vm(client, name, "Follow", "ua{sv}", pid, {})
    of_vm(client, "ends", "Ending", "a{sv}", {})
    labels = {name: label(path) for name, path in disks.items()}
    own_daemon.kill()
    other.kill()
    other.wait()
    own_daemon.start()
    states = {name: client.properties(name)["State"] for name in names}
    assert states == {
        "runs": "running",
        "ended": "reserved",
        "starts": "labelled",
        "ends": "reserved",
    }
    assert label(disks["runs"]) == labels["runs"]
    assert label(disks["ended"]) == label(disks["starts"]) == label(disks["ends"]) == ORIGINAL
    # What was about to start goes on; what runs is found ended when it has.
    set_label(disks["starts"], client.properties("starts")["ImageContext"])
    of_vm(client, "starts", "Follow", "ua{sv}", qemu.pid, {})
    qemu.kill()
    qemu.wait()
    (found,) = client.call("Verify", "ba{sv}", True, {})
    ended = [one for one in unwrap(found) if one["kind"] == "ended"]
    assert {one["vm"] for one in ended} == {"runs", "starts"}
    assert all(one["repaired"] for one in ended)
    assert {label(path) for path in disks.values()} == {ORIGINAL}
    for name in names:
        client.call("Forget", "sa{sv}", name, {})


@pytest.mark.parametrize("watched", [False, True])
def test_what_is_plugged_in_while_it_runs(
    daemon: Daemon,
    client: Client,
    make: Callable[[str], Path],
    qemu: "subprocess.Popen[bytes]",
    watched: bool,
) -> None:
    """libvirt has labelled it by then, and gives it back before svirtd hears of that."""
    own, more, taken = make("own"), make("more"), make("taken")
    check_in(client, "web", own)
    image_context = client.properties("web")["ImageContext"]
    set_label(own, image_context)
    of_vm(client, "web", "Follow", "ua{sv}", qemu.pid, {})
    (path,) = client.call("GetVM", "s", "web")

    def attach(disk: Path) -> str:
        (named,) = resources(disk)
        reply = client.message("Attach", "a{sv}a{sv}", named, {}, path=path, interface=VM)
        return str(reply.body[0])

    set_label(more, image_context)
    id_ = attach(more)
    (held,) = [one for one in client.properties("web")["Resources"] if one["id"] == id_]
    assert (held["path"], held["context"]) == (str(more), image_context)
    assert "original" not in held
    client.acquire("mine", taken)
    with pytest.raises(BusError, match="'mine'"):
        attach(taken)
    client.release("mine")
    # Plugged out, and looked after no more: whether the watch puts its label back before or not.
    set_label(more, ORIGINAL)
    if watched:
        wait_for("the watch has seen it", lambda: label(more) == image_context)
    of_vm(client, "web", "Detach", "sa{sv}", id_, {})
    assert label(more) == ORIGINAL
    assert [one["path"] for one in client.properties("web")["Resources"]] == [str(own)]
    of_vm(client, "web", "Ending", "a{sv}", {})
    set_label(own, ORIGINAL)
    end(client, "web")


def test_after_a_reboot_nothing_of_libvirts_runs(
    own_daemon: Daemon, client: Client, make: Callable[[str], Path], qemu: "subprocess.Popen[bytes]"
) -> None:
    """Not even what has the number of the process of then, and libvirt's own memory is void."""
    disks = []
    for number, name in enumerate(("runs", "starts")):
        disk = make(name)
        disks.append(disk)
        check_in(client, name, disk, uuid=UUID[:-1] + str(number))
        set_label(disk, client.properties(name)["ImageContext"])
    of_vm(client, "runs", "Follow", "ua{sv}", qemu.pid, {})
    pairs = {name: client.properties(name)["Categories"] for name in ("runs", "starts")}
    with reboot(own_daemon):
        pass
    for name, pair in pairs.items():
        vm = client.properties(name)
        assert (vm["State"], vm["Categories"], vm["Resources"]) == ("reserved", pair, [])
        client.call("Forget", "sa{sv}", name, {})
    assert {label(path) for path in disks} == {ORIGINAL}
    assert client.manager()["PairsQuarantined"] == 0


@pytest.mark.parametrize("point", ["begin-before", "begin-after", "close-before", "reply-before"])
def test_the_daemon_is_killed_during_a_check_in(
    own_daemon: Daemon, client: Client, make: Callable[[str], Path], point: str
) -> None:
    """The hook was not answered, so that libvirt does not start the domain; nothing is labelled."""
    disk = make("disk")
    check_in(client, "web")
    pair = client.properties("web")["Categories"]
    own_daemon.stop()
    own_daemon.failpoints = f"{point}=kill"
    own_daemon.start()
    with pytest.raises(BusError):
        check_in(client, "web", disk)
    assert label(disk) == ORIGINAL
    own_daemon.end(signal.SIGKILL)
    own_daemon.failpoints = ""
    own_daemon.start()
    assert label(disk) == ORIGINAL
    vm = client.properties("web")
    assert vm["Categories"] == pair
    assert vm["State"] in ("reserved", "labelled")
    # The next start of the domain goes over it.
    if vm["State"] == "labelled":
        client.release("web")
    check_in(client, "web", disk)
    assert client.properties("web")["State"] == "labelled"
    end(client, "web")
    assert label(disk) == ORIGINAL
