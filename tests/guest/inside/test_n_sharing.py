# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two VMs share a disk that a third cannot open: the kernel's word, for processes and for QEMU."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import BusError, Variant
from tests.guest.inside.audit import Audit
from tests.guest.inside.conftest import systemctl
from tests.guest.inside.test_b_isolation import DENIED
from tests.guest.inside.vms import Captive, Qemu, categories, disk, node, shared
from tests.support import XATTR, Client, label, unwrap, wait_for


@pytest.fixture
def team(client: Client) -> Iterator[int]:
    """A group of root's; its category. It is empty, and can be deleted, afterwards."""
    client.call("CreateGroup", "sa{sv}", "team", {})
    (row,) = [one for one in client.call("ListGroups")[0] if one[0] == "team"]
    shown = unwrap(
        client.call(
            "GetAll", "s", "org.svirt1.Group",
            path=row[2], interface="org.freedesktop.DBus.Properties",
        )[0]
    )  # fmt: skip
    yield int(shown["Category"].removeprefix("c"))
    for name in client.vms():
        client.release(name)
    client.call("DeleteGroup", "sa{sv}", "team", {})


def members(client: Client, path: Path, access: str = "group") -> list[Captive]:
    return [Captive(client, name, path, access=access, group="team") for name in "ab"]


def test_two_share_and_a_third_is_refused(client: Client, audit: Audit, team: int) -> None:
    path = disk("shared")
    before = os.getxattr(path, XATTR)
    a, b = members(client, path)
    c = Captive(client, "c", disk("c"))
    assert label(path) == f"system_u:object_r:svirt_image_t:s0:c{team}"
    for vm in (a, b):
        assert vm.label() == vm.context
        assert team in categories(vm.context)
        assert len(categories(vm.context)) == 3
    assert categories(a.context) & categories(b.context) == {team}
    assert team not in categories(c.context)

    write, read = f"write('{path}')", f"Path('{path}').read_bytes()[:5].decode()"
    path.write_bytes(b"empty" * 1000)
    assert a.do(read) == "empty"
    assert a.do(write) == 5
    assert b.do(read) == "taken"
    assert b.do(write) == 5
    for use, permissions in ((f"read('{path}')", "read open"), (write, "write open")):
        with audit.denied(permissions, c.context, str(label(path))):
            assert c.fails(use) in DENIED
    # Members are apart in all else.
    with audit.denied("sigkill", a.context, b.context, "process"):
        assert a.fails(f"os.kill({b.pid}, signal.SIGKILL)") in DENIED
    with pytest.raises(BusError, match="is held by VM 'a' with access 'group' of group 'team'"):
        client.acquire("d", path)
    with pytest.raises(BusError, match="the VM is not in group 'team'"):
        client.call("Acquire", "saa{sv}a{sv}", "d", shared("team", path), {})

    # The last to go gives the label back, whoever was first.
    a.end()
    assert label(path) == f"system_u:object_r:svirt_image_t:s0:c{team}"
    assert b.do(write) == 5
    b.end()
    assert os.getxattr(path, XATTR) == before
    c.end()


def test_two_read_and_nobody_writes(client: Client, audit: Audit, team: int) -> None:
    path = disk("shared")
    before = os.getxattr(path, XATTR)
    vms = members(client, path, "readonly")
    other = Captive(client, "other")
    for vm in vms:
        assert vm.do(f"read('{path}')") == 512
        # Not logged: the reference policy expects VMs to try.
        assert vm.fails(f"write('{path}')") in DENIED
    with audit.denied("read open", other.context, str(label(path))):
        assert other.fails(f"read('{path}')") in DENIED
    for vm in (*vms, other):
        vm.end()
    assert os.getxattr(path, XATTR) == before


def test_with_qemu(client: Client, audit: Audit, team: int) -> None:
    path = disk("shared")
    before = os.getxattr(path, XATTR)
    a, b = (Qemu(client, name, path, group="team") for name in "ab")
    c = Qemu(client, "c", disk("c"))
    for vm in (a, b):
        assert vm.writes() == vm.reads() == ""
    with audit.denied("read open", c.context, str(label(path))):
        answer = c.command("blockdev-add", **node(path, "stolen"))
    assert answer["error"]["desc"] == f"Could not open '{path}': Permission denied"
    b.end()
    assert a.writes() == a.reads() == ""
    a.end()
    assert os.getxattr(path, XATTR) == before
    c.end()


def test_the_matrix_knows(client: Client, team: int) -> None:
    path = disk("shared")
    vms = [*members(client, path), Captive(client, "c", disk("c"))]
    done = subprocess.run(["svirtctl", "--json", "matrix"], capture_output=True, check=True)
    cells: list[dict[str, Any]] = json.loads(done.stdout)["cells"]
    assert [one for one in cells if one["surplus"] or one["shortfall"]] == []
    allowed = {one["vm"]: one["allowed"] for one in cells if one["object"] == str(path)}
    assert {"read", "write"} <= set(allowed["a"]) & set(allowed["b"])
    assert allowed["c"] == []
    for vm in vms:
        vm.end()


def test_both_are_killed_with_the_daemon(client: Client, team: int) -> None:
    path = disk("shared")
    before = os.getxattr(path, XATTR)
    vms = members(client, path)
    systemctl("kill", "--signal=KILL", "svirtd.service", *(f"svirt-{vm.name}" for vm in vms))
    for vm in vms:
        vm.close()
    systemctl("restart", "svirtd.service")
    wait_for("both are released", lambda: client.vms() == {})
    assert os.getxattr(path, XATTR) == before


def test_a_wall_between_groups(
    client: Client, audit: Audit, team: int, configure: Callable[[str], None]
) -> None:
    """A VM of one bank never gets the category of the other: its process is never started."""
    configure('[wall.banks]\nclasses = [["team"], ["rivals"]]\n')
    systemctl("reload", "svirtd.service")
    client.call("CreateGroup", "sa{sv}", "rivals", {})
    theirs = disk("theirs")
    uuid = {"uuid": Variant("s", "0123abcd-0000-0000-0000-00000000abcd")}
    Captive(client, "a", disk("ours"), access="group", group="team", **uuid).end()
    with pytest.raises(BusError, match="wall 'banks' separates group 'rivals' from group 'team'"):
        Captive(client, "renamed", theirs, access="group", group="rivals", **uuid)
    assert client.vms() == {}
    cleared = client.call("ClearWall", "ssa{sv}", "banks", uuid["uuid"].value, {})
    assert cleared == [1]
    Captive(client, "renamed", theirs, access="group", group="rivals", **uuid).end()
    client.call("DeleteGroup", "sa{sv}", "rivals", {})
