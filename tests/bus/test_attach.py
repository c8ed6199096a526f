# SPDX-License-Identifier: LGPL-2.1-or-later
"""Attach and Detach: all or nothing, by the rules of a start, and back at the end with the rest."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.core import overlays
from svirtd.host.bus import BusError, Variant
from tests import svirtctl
from tests.support import (
    PROPERTIES,
    ROOT,
    VM,
    Client,
    Daemon,
    image,
    label,
    resources,
    set_label,
    unwrap,
)

IDLE = ["/bin/sleep", "1000"]
PATH = f"{ROOT}/vm/vm"


def attach(
    client: Client, file: Path, *, path: str = PATH, access: str = "exclusive", **more: Any
) -> str:
    """Attach a file to a VM; what is not `options` belongs to the resource."""
    options = more.pop("options", {})
    resource = {"path": Variant("s", str(file))} | {k.replace("_", "-"): v for k, v in more.items()}
    if access:
        resource["access"] = Variant("s", access)
    (id_,) = client.call("Attach", "a{sv}a{sv}", resource, options, path=path, interface=VM)
    return str(id_)


def refused(client: Client, file: Path, **more: Any) -> BusError:
    try:
        id_ = attach(client, file, **more)
    except BusError as error:
        return error
    raise AssertionError(f"{file} was attached as {id_}")


def detach(client: Client, id_: str, *, path: str = PATH) -> None:
    client.call("Detach", "sa{sv}", id_, {}, path=path, interface=VM)


def not_detached(client: Client, id_: str, **more: Any) -> BusError:
    return client.error("Detach", "sa{sv}", id_, {}, path=PATH, interface=VM, **more)


def held(client: Client, name: str = "vm") -> dict[str, tuple[str, str]]:
    """Path and access of what a VM holds, by id."""
    found = client.properties(name)["Resources"]
    return {one["id"]: (os.path.basename(one["path"]), one["access"]) for one in found}


def categories(client: Client, name: str = "vm") -> str:
    return str(client.properties(name)["Categories"])


def own(client: Client, *, writes: bool = True) -> str:
    kind = "svirt_image_t" if writes else "virt_content_t"
    return f"system_u:object_r:{kind}:s0:{categories(client)}"


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    return [image(tmp_path / f"{name}.img") for name in "abcd"]


@pytest.fixture
def vm(daemon: Daemon, client: Client, disks: list[Path]) -> Iterator[str]:
    """A VM with the first disk, which is released at the end with whatever it has by then."""
    client.acquire("vm", disks[0])
    yield "vm"
    if "vm" in client.vms():
        client.release("vm")
    assert all(label(disk) is None for disk in disks)


@pytest.mark.parametrize("launched", [False, True])
def test_attached_detached_released(
    daemon: Daemon, client: Client, disks: list[Path], launched: bool
) -> None:
    if launched:
        client.launch("vm", IDLE, disks[0])
    else:
        client.acquire("vm", disks[0])
    state = client.vms()["vm"]
    client.listen()
    set_label(disks[1], "system_u:object_r:virt_image_t:s0")
    assert attach(client, disks[1]) == "r2"
    assert attach(client, disks[2], access="readonly", id=Variant("s", "seed")) == "seed"
    assert held(client) == {
        "r1": ("a.img", "exclusive"),
        "r2": ("b.img", "exclusive"),
        "seed": ("c.img", "readonly"),
    }
    assert client.vms() == {"vm": state}
    assert label(disks[1]) == own(client)
    assert label(disks[2]) == own(client, writes=False)
    detach(client, "r2")
    assert label(disks[1]) == "system_u:object_r:virt_image_t:s0"
    assert held(client) == {"r1": ("a.img", "exclusive"), "seed": ("c.img", "readonly")}
    told = [unwrap(body) for body in client.seen("PropertiesChanged")]
    assert [body for body in told if body[0] == VM] == [[VM, {}, ["Resources"]]] * 3
    attach(client, disks[3])
    client.release("vm")
    assert [label(disk) for disk in disks] == [
        None,
        "system_u:object_r:virt_image_t:s0",
        None,
        None,
    ]
    os.removexattr(disks[1], "security.selinux")


def test_everything_can_be_detached(client: Client, vm: str, disks: list[Path]) -> None:
    detach(client, "r1")
    assert held(client) == {}
    assert client.vms() == {"vm": "labelled"}
    assert label(disks[0]) is None
    assert attach(client, disks[0]) == "r1"


def test_ids(client: Client, vm: str, disks: list[Path]) -> None:
    assert attach(client, disks[1], id=Variant("s", "r3")) == "r3"
    assert attach(client, disks[2]) == "r4"
    assert attach(client, disks[3]) == "r5"
    detach(client, "r4")
    error = refused(client, disks[2], id=Variant("s", "r3"))
    assert error.name.endswith("InvalidArgs")
    assert "another resource with the id 'r3'" in error.text
    for id_ in ("r4", "", "r1 ", str(disks[0])):
        error = not_detached(client, id_)
        assert error.name.endswith("InvalidArgs"), id_
        assert "holds nothing with the id" in error.text
    assert attach(client, disks[2]) == "r6"
    assert sorted(held(client)) == ["r1", "r3", "r5", "r6"]


def test_ids_of_a_request(daemon: Daemon, client: Client, disks: list[Path]) -> None:
    wanted = resources(*disks)
    wanted[1]["id"], wanted[3]["id"] = Variant("s", "r1"), Variant("s", "r3")
    client.call("Acquire", "saa{sv}a{sv}", "vm", wanted, {})
    assert list(held(client)) == ["r2", "r1", "r4", "r3"]
    client.release("vm")


def test_what_is_refused_changes_nothing(client: Client, vm: str, disks: list[Path]) -> None:
    client.acquire("other", disks[3])
    before = held(client)
    error = refused(client, disks[0])
    assert error.name.endswith("ResourceBusy")
    assert "holds " in error.text
    error = refused(client, disks[3])
    assert error.name.endswith("ResourceBusy")
    assert "held by VM 'other'" in error.text
    set_label(disks[1], "system_u:object_r:etc_t:s0")
    assert refused(client, disks[1]).name.endswith("ResourceRefused")
    os.removexattr(disks[1], "security.selinux")
    assert refused(client, disks[1], overlay=Variant("s", "/x")).name.endswith("InvalidArgs")
    assert "'overlay' is for a launch" in refused(client, disks[1], overlay=Variant("s", "/x")).text
    for options in ({"keep": "readonly"}, {"keep": "x", "replaces": "r1"}, {"replaces": "r9"}):
        told = {key: Variant("s", value) for key, value in options.items()}
        assert refused(client, disks[1], options=told).name.endswith("InvalidArgs")
    same = {"replaces": Variant("s", "r1")}
    assert "cannot replace itself" in refused(client, disks[0], options=same).text
    assert refused(client, disks[1], access="group").name.endswith("InvalidArgs")
    assert refused(client, disks[1], path=f"{ROOT}/vm/none").name.endswith("UnknownObject")
    other = {"id": Variant("s", "0" * 16)}
    assert refused(client, disks[1], options=other).name.endswith("UnknownObject")
    assert held(client) == before
    assert label(disks[1]) is None
    client.release("other")


def test_a_vm_that_holds_nothing_labelled(
    daemon: Daemon, client: Client, disks: list[Path]
) -> None:
    client.acquire("vm", disks[0], persistent=Variant("b", True))
    client.release("vm")
    error = refused(client, disks[1])
    assert error.name.endswith("Failed")
    assert "VM 'vm' is reserved" in error.text
    client.call("Forget", "sa{sv}", "vm", {})


def test_limits(daemon: Daemon, client: Client, vm: str, disks: list[Path], tmp_path: Path) -> None:
    config = daemon.config.read_text()
    daemon.config.write_text(f"{config}[limits]\nresources = 2\n")
    os.kill(daemon.pid, signal.SIGHUP)
    try:
        attach(client, disks[1])

        def full() -> bool:
            error = refused(client, disks[2])
            return error.name.endswith("LimitsExceeded")

        assert full()
    finally:
        daemon.config.write_text(config)
        os.kill(daemon.pid, signal.SIGHUP)


def test_another_access_in_place(client: Client, vm: str, disks: list[Path]) -> None:
    set_label(disks[1], "system_u:object_r:virt_image_t:s0")
    attach(client, disks[1])
    assert attach(client, disks[1], access="readonly") == "r2"
    assert held(client)["r2"] == ("b.img", "readonly")
    assert label(disks[1]) == own(client, writes=False)
    assert attach(client, disks[1]) == "r2"
    assert label(disks[1]) == own(client)
    # What it carried before svirtd stays what it gets at the end.
    detach(client, "r2")
    assert label(disks[1]) == "system_u:object_r:virt_image_t:s0"
    os.removexattr(disks[1], "security.selinux")


def test_what_others_hold_too_does_not_change(client: Client, vm: str, disks: list[Path]) -> None:
    client.acquire("other", disks[1], access="public")
    attach(client, disks[1], access="public")
    error = refused(client, disks[1], access="readonly")
    assert "its label is one for all of them" in error.text
    detach(client, "r2")
    assert label(disks[1]) == "system_u:object_r:virt_content_t:s0"
    client.release("other")


def test_one_in_place_of_another(client: Client, vm: str, disks: list[Path]) -> None:
    """A mirror's end: both is done or nothing; the new one has the access of the old one."""
    replaces = {"replaces": Variant("s", "r1")}
    assert attach(client, disks[1], access="", options=replaces) == "r2"
    assert held(client) == {"r2": ("b.img", "exclusive")}
    assert (label(disks[0]), label(disks[1])) == (None, own(client))
    # The copy was attached before, as a machine needs it that runs on.
    attach(client, disks[2])
    replaces = {"replaces": Variant("s", "r2")}
    assert attach(client, disks[2], options=replaces) == "r3"
    assert held(client) == {"r3": ("c.img", "exclusive")}
    assert label(disks[1]) is None


def test_a_snapshot_and_its_commit(client: Client, vm: str, disks: list[Path]) -> None:
    over = {"replaces": Variant("s", "r1"), "keep": Variant("s", "readonly")}
    assert attach(client, disks[1], access="", options=over) == "r2"
    assert held(client) == {"r2": ("b.img", "exclusive"), "r1": ("a.img", "readonly")}
    assert (label(disks[0]), label(disks[1])) == (own(client, writes=False), own(client))
    (below,) = [one for one in client.properties("vm")["Resources"] if one["id"] == "r1"]
    assert below["part-of"] == "r2"
    # Committed: the base is written again, and is its own.
    assert attach(client, disks[0]) == "r1"
    detach(client, "r2")
    assert held(client) == {"r1": ("a.img", "exclusive")}
    assert (label(disks[0]), label(disks[1])) == (own(client), None)


def below(client: Client) -> dict[str, str]:
    """For whose sake the VM has what it has for another's sake, by id."""
    found = client.properties("vm")["Resources"]
    return {one["id"]: one["part-of"] for one in found if "part-of" in one}


def test_a_snapshot_that_fails_leaves_no_trace(client: Client, vm: str, disks: list[Path]) -> None:
    """The disk is nobody's base then: it does not go with what gets the overlay's id later."""
    over = {"replaces": Variant("s", "r1"), "keep": Variant("s", "readonly")}
    with immutable(disks[0]):
        assert refused(client, disks[1], access="", options=over).name.endswith("LabelRefused")
    assert (held(client), below(client)) == ({"r1": ("a.img", "exclusive")}, {})
    assert attach(client, disks[1]) == "r2"
    detach(client, "r2")
    assert held(client) == {"r1": ("a.img", "exclusive")}
    assert label(disks[0]) == own(client)


def test_a_base_that_is_asked_for_is_there_for_itself(
    client: Client, vm: str, disks: list[Path]
) -> None:
    """An overlay is given up, and its base is only read on."""
    over = {"replaces": Variant("s", "r1"), "keep": Variant("s", "readonly")}
    attach(client, disks[1], access="", options=over)
    assert below(client) == {"r1": "r2"}
    instead = {"replaces": Variant("s", "r2")}
    assert attach(client, disks[0], access="readonly", options=instead) == "r1"
    assert (held(client), below(client)) == ({"r1": ("a.img", "readonly")}, {})
    # Another one of that id has nothing to do with it.
    attach(client, disks[2], id=Variant("s", "r2"))
    detach(client, "r2")
    assert held(client) == {"r1": ("a.img", "readonly")}


def test_an_access_changed_under_another_name_is_taken_back(
    client: Client, vm: str, disks: list[Path]
) -> None:
    attach(client, disks[1])
    moved = disks[1].with_name("moved.img")
    os.rename(disks[1], moved)
    instead = {"replaces": Variant("s", "r1")}
    with immutable(disks[0]):
        error = refused(client, moved, access="readonly", options=instead)
    assert error.name.endswith("Drift")
    assert held(client) == {"r1": ("a.img", "exclusive"), "r2": ("b.img", "exclusive")}
    assert label(moved) == own(client)
    os.rename(moved, disks[1])


def test_what_lies_under_an_image_goes_with_it(client: Client, vm: str, disks: list[Path]) -> None:
    lying_over(disks[2], disks[1])
    image_: dict[str, Any] = {"format": Variant("s", "qcow2"), "backing": Variant("s", "private")}
    assert attach(client, disks[2], **image_) == "r2"
    assert held(client)["r3"] == ("b.img", "readonly")
    # A second one over the same base: it goes with neither.
    lying_over(disks[3], disks[1])
    assert attach(client, disks[3], **image_) == "r4"
    detach(client, "r2")
    assert sorted(held(client)) == ["r1", "r3", "r4"]
    detach(client, "r4")
    assert label(disks[1]) == own(client, writes=False)
    detach(client, "r3")
    assert label(disks[1]) is None


def lying_over(path: Path, base: Path) -> None:
    overlay = overlays.empty(str(base), 1 << 20)
    path.write_bytes(overlay.head.ljust(overlay.length, b"\0"))


def test_a_label_that_cannot_be_given_back(client: Client, vm: str, disks: list[Path]) -> None:
    """The VM has all of it as before, and runs on; once it can be, the same call does it."""
    attach(client, disks[1])
    label_, before = label(disks[1]), held(client)
    with immutable(disks[1]):
        error = not_detached(client, "r2")
        assert error.name.endswith("Drift")
        assert "nothing has changed" in error.text
        replaces = {"replaces": Variant("s", "r2")}
        assert refused(client, disks[2], options=replaces).name.endswith("Drift")
    assert (label(disks[1]), label(disks[2]), held(client)) == (label_, None, before)
    assert client.vms() == {"vm": "labelled"}
    detach(client, "r2")
    assert label(disks[1]) is None


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    subprocess.run(["chattr", "+i", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def test_what_somebody_else_has_changed(client: Client, vm: str, disks: list[Path]) -> None:
    """It leaves the VM as it is; what may carry the VM's set keeps that out of the pool later."""
    client.listen()
    attach(client, disks[1])
    attach(client, disks[2])
    mine = label(disks[2])
    set_label(disks[1], "system_u:object_r:etc_t:s0")
    os.rename(disks[2], disks[2].with_name("moved.img"))
    detach(client, "r2")
    detach(client, "r3")
    assert label(disks[1]) == "system_u:object_r:etc_t:s0"
    kinds = {unwrap(body[0])["kind"] for body in client.seen("DriftFound")}
    assert {"changed", "missing"} <= kinds
    assert list(held(client)) == ["r1"]
    os.removexattr(disks[1], "security.selinux")
    client.release("vm")
    assert client.manager()["PairsQuarantined"] == 1
    os.rename(disks[2].with_name("moved.img"), disks[2])
    assert label(disks[2]) == mine
    client.call("Verify", "ba{sv}", True, {})
    assert client.manager()["PairsQuarantined"] == 0
    assert label(disks[2]) is None


def test_groups(client: Client, vm: str, disks: list[Path]) -> None:
    """The process has the category, or the VM does not get what takes it."""
    client.call("CreateGroup", "sa{sv}", "g", {})
    shared: dict[str, Any] = {"access": "group", "group": Variant("s", "g")}
    error = refused(client, disks[1], **shared)
    assert "is not in group 'g' in this run" in error.text
    client.call("Acquire", "saa{sv}a{sv}", "in", [], {"groups": Variant("as", ["g"])})
    path = f"{ROOT}/vm/in"
    assert attach(client, disks[1], path=path, **shared) == "r1"
    category = client.call(
        "Get", "ss", "org.svirt1.Group", "Category", path=f"{ROOT}/group/g", interface=PROPERTIES
    )[0].value
    assert label(disks[1]) == f"system_u:object_r:svirt_image_t:s0:{category}"
    detach(client, "r1", path=path)
    assert label(disks[1]) is None
    client.release("in")
    client.call("DeleteGroup", "sa{sv}", "g", {})


def test_goals(daemon: Daemon, client: Client, disks: list[Path]) -> None:
    """What a goal says of resources it says of later ones: accesses, and the digest of evidence."""
    goal = {"goal": Variant("s", "forensic")}
    client.call("Acquire", "saa{sv}a{sv}", "vm", resources(disks[0], access="readonly"), goal)
    assert refused(client, disks[1], access="public").name.endswith("ResourceRefused")
    attach(client, disks[1], access="")
    (evidence,) = [one for one in client.properties("vm")["Resources"] if one["id"] == "r2"]
    assert evidence["access"] == "readonly"
    assert evidence["digest"].startswith("sha256:")
    client.listen()
    with open(disks[1], "r+b") as file:
        file.write(b"x")
    detach(client, "r2")
    found = [unwrap(body[0]) for body in client.seen("DriftFound")]
    assert [one["kind"] for one in found] == ["altered"]
    client.release("vm")


def test_a_restart_keeps_what_was_attached(
    own_daemon: Daemon, client: Client, disks: list[Path]
) -> None:
    client.acquire("vm", disks[0])
    attach(client, disks[1])
    own_daemon.kill()
    own_daemon.start()
    assert held(client) == {"r1": ("a.img", "exclusive"), "r2": ("b.img", "exclusive")}
    assert label(disks[1]) == own(client)
    detach(client, "r2")
    own_daemon.kill()
    own_daemon.start()
    assert list(held(client)) == ["r1"]
    client.release("vm")
    assert [label(disk) for disk in disks] == [None] * 4


def test_svirtctl(client: Client, daemon: Daemon, vm: str, disks: list[Path]) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        done = svirtctl.run(*arguments)
        return done.returncode, done.stdout + done.stderr

    a, b = str(disks[0]), str(disks[1])
    assert "holds it as data" in run("attach", "vm", f"{b}:exclusive,id=data")[1]
    assert run("detach", "vm", b)[0] == 0
    assert list(held(client)) == ["r1"]
    assert run("attach", "vm", b, "--replaces", a, "--keep")[0] == 0
    assert held(client)["r1"] == ("a.img", "readonly")
    assert run("attach", "vm", f"{a}:exclusive")[0] == 0
    code, text = run("--json", "detach", "vm", "r2")
    assert (code, json.loads(text)) == (0, {"name": "vm", "id": "r2"})
    assert "--keep goes with --replaces" in run("attach", "vm", b, "--keep")[1]
    code, text = run("detach", "vm", b)
    assert code == 1
    assert f"holds nothing at {b}" in text
