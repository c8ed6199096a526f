# SPDX-License-Identifier: LGPL-2.1-or-later
"""Attach and Detach: all or nothing, by the rules of a start, and back at the end with the rest."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import BusError, Variant
from tests.support import (
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
    assert attach(client, disks[2]) == "r2"
    assert attach(client, disks[3]) == "r4"
    detach(client, "r2")
    error = refused(client, disks[2], id=Variant("s", "r3"))
    assert error.name.endswith("InvalidArgs")
    assert "another resource with the id 'r3'" in error.text
    for id_ in ("r2", "", "r1 ", str(disks[0])):
        error = not_detached(client, id_)
        assert error.name.endswith("InvalidArgs"), id_
        assert "holds nothing with the id" in error.text
    assert sorted(held(client)) == ["r1", "r3", "r4"]


def test_ids_of_a_request(daemon: Daemon, client: Client, disks: list[Path]) -> None:
    wanted = resources(*disks)
    wanted[1]["id"], wanted[3]["id"] = Variant("s", "r1"), Variant("s", "r3")
    client.call("Acquire", "saa{sv}a{sv}", "vm", wanted, {})
    assert list(held(client)) == ["r2", "r1", "r4", "r3"]
    client.release("vm")
