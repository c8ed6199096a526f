# SPDX-License-Identifier: LGPL-2.1-or-later
"""Groups between users: who may be in them, what others see of them, and how it ends."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import Variant
from tests.attack import DENIED, INVALID, LIMITS
from tests.groups import (
    ACQUIRE,
    LAUNCH,
    category_of,
    client_of,
    disk_of,
    group_path,
    in_groups,
    of_group,
    shared,
    users_make_groups,
    view,
)
from tests.sandbox import Sandbox
from tests.sandbox.accounts import ANN, BEN
from tests.support import (
    GROUP,
    PROPERTIES,
    ROOT,
    VM,
    Client,
    Daemon,
    label,
    unwrap,
    wait_for,
)

ERROR = "org.svirt1.Error."
NEXT_START = {"when": Variant("s", "next-start")}
PERSISTENT = Variant("b", True)
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"


@pytest.fixture(scope="module", autouse=True)
def allowed(sandbox: Sandbox) -> Iterator[None]:
    with users_make_groups():
        yield


@pytest.fixture
def ann(daemon: Daemon) -> Iterator[Client]:
    with client_of(ANN) as client:
        yield client


@pytest.fixture
def ben(daemon: Daemon) -> Iterator[Client]:
    with client_of(BEN) as client:
        yield client


@pytest.fixture
def place(sandbox: Sandbox) -> Iterator[Path]:
    """A folder that everybody may pass through."""
    folder = Path(tempfile.mkdtemp(dir=sandbox.state))
    folder.chmod(0o755)
    yield folder
    left = [str(path) for path in folder.iterdir() if label(path) is not None]
    shutil.rmtree(folder)
    assert not left


@pytest.fixture
def group(ann: Client) -> Iterator[int]:
    """Ann's group "g"; the category that it owns."""
    ann.call("CreateGroup", "sa{sv}", "g", {})
    yield category_of(ann)
    ann.call("DeleteGroup", "sa{sv}", "g", {})
    assert ann.call("ListGroups") == [[]]


def grant(client: Client, vm: str, **options: Variant) -> None:
    client.call("Grant", "sa{sv}", vm, options, **of_group())


def revoke(client: Client, vm: str, **options: Variant) -> None:
    client.call("Revoke", "sa{sv}", vm, options, **of_group())


def theirs(uid: int) -> dict[str, Variant]:
    return {"owner": Variant("u", uid)}


def member(name: str) -> dict[str, Any]:
    return {"path": f"{ROOT}/vm/{name}", "interface": VM}


def test_what_was_granted_shares_a_file_of_another_user(
    ann: Client, ben: Client, client: Client, group: int, place: Path
) -> None:
    """Ben's VM holds what is Ann's, and what he can open: she has given it to the group."""
    disk = disk_of(ANN, place, mode=0o666)
    for _ in range(2):
        refused = ben.error("Acquire", ACQUIRE, "bens", shared(disk), in_groups("g"))
        assert refused.name == DENIED
        assert "nothing in it was granted to VM 'bens' of uid 60002" in refused.text
        ben.acquire("bens", persistent=PERSISTENT)  # that the VM is there makes no difference
        ben.release("bens")
    grant(ann, "bens")
    assert view(ann)["Grants"][0]["owner"] == BEN.uid
    # A first hold would be a label on what is another's; only the owner gives a file to the group.
    refused = ben.error("Acquire", ACQUIRE, "bens", shared(disk), in_groups("g"))
    assert refused.name == ERROR + "ResourceRefused"
    assert f"belongs to uid {ANN.uid}" in refused.text
    assert label(disk) is None
    ann.call("Acquire", ACQUIRE, "anns", shared(disk), in_groups("g"))
    ben.call("Acquire", ACQUIRE, "bens", shared(disk), in_groups("g"))
    assert label(disk) == f"system_u:object_r:svirt_image_t:s0:c{group}"
    assert view(ben)["Members"] == ["anns", "bens"]
    ann.release("anns")
    assert label(disk) is not None
    ben.release("bens")
    assert label(disk) is None
    ben.call("Forget", "sa{sv}", "bens", {})
    # What was granted is there until it is taken back.
    revoke(ann, "bens")
    refused = ann.error("Revoke", "sa{sv}", "bens", {}, **of_group())
    assert refused.name == INVALID


def test_whom_root_joins_stays_in(ann: Client, ben: Client, client: Client, group: int) -> None:
    """Root needs no grant; the VM's owner starts it later, and is asked for one."""
    ben.acquire("bens", persistent=PERSISTENT)
    assert ben.error("JoinGroup", "sa{sv}", "g", {}, **member("bens")).name == DENIED
    client.call("JoinGroup", "sa{sv}", "g", {}, **member("bens"))
    assert [(one["vm"], one["owner"]) for one in view(ann)["Grants"]] == [("bens", BEN.uid)]
    ben.acquire("bens")
    assert ben.properties("bens")["Groups"] == ["g"]
    ben.release("bens")
    # Whose the group is can take it back.
    revoke(ann, "bens")
    assert ben.properties("bens")["LastingGroups"] == []
    ben.call("Forget", "sa{sv}", "bens", {})


def test_a_file_that_a_member_cannot_open_is_not_its_to_hold(
    ann: Client, ben: Client, group: int, place: Path
) -> None:
    disk = disk_of(ANN, place)
    grant(ann, "bens", **theirs(BEN.uid))
    ann.call("Acquire", ACQUIRE, "anns", shared(disk), in_groups("g"))
    refused = ben.error("Acquire", ACQUIRE, "bens", shared(disk), in_groups("g"))
    assert refused.name == ERROR + "ResourceRefused"
    assert "permission denied" in refused.text
    # In the group as such, it is.
    ben.call("Acquire", ACQUIRE, "bens", [], in_groups("g"))
    ben.release("bens")
    ann.release("anns")
    revoke(ann, "bens")


def test_a_name_that_somebody_else_takes_first(ann: Client, ben: Client, group: int) -> None:
    """A grant is for a name and an owner."""
    grant(ann, "later")  # hers, by default
    refused = ben.error("Acquire", ACQUIRE, "later", [], in_groups("g"))
    assert refused.name == DENIED
    grant(ann, "later", **theirs(BEN.uid))
    assert [(one["vm"], one["owner"]) for one in view(ann)["Grants"]] == [("later", BEN.uid)]
    ann.call("Acquire", ACQUIRE, "later", [], in_groups("g"))  # hers anyway
    ann.release("later")
    ben.acquire("later", persistent=PERSISTENT)
    refused = ann.error("Grant", "sa{sv}", "later", theirs(ANN.uid), **of_group())
    assert refused.name == INVALID
    assert f"belongs to uid {BEN.uid}" in refused.text
    ben.call("JoinGroup", "sa{sv}", "g", {}, **member("later"))
    ben.call("Forget", "sa{sv}", "later", {})
    assert view(ann)["Members"] == []
    revoke(ann, "later")


def test_a_running_members_grant_is_taken_back(
    ann: Client, ben: Client, group: int, place: Path
) -> None:
    disk = disk_of(BEN, place)
    ben.acquire("bens", persistent=PERSISTENT)
    grant(ann, "bens")
    ben.call("JoinGroup", "sa{sv}", "g", {}, **member("bens"))
    ben.call("Launch", LAUNCH, "bens", ["/bin/sleep", "1000"], shared(disk), {})
    refused = ann.error("Revoke", "sa{sv}", "bens", {}, **of_group())
    assert refused.name == ERROR + "Failed"
    assert "keeps the label that it was started with" in refused.text
    assert view(ann)["Grants"] != []
    revoke(ann, "bens", **NEXT_START)
    assert (view(ann)["Grants"], view(ann)["Members"]) == ([], ["bens"])
    now = ben.properties("bens")
    assert (now["State"], now["Groups"], now["LastingGroups"]) == ("running", ["g"], [])
    assert label(disk) == f"system_u:object_r:svirt_image_t:s0:c{group}"
    ben.release("bens")
    assert view(ann)["Members"] == []
    assert label(disk) is None
    ben.acquire("bens")
    assert ben.properties("bens")["Groups"] == []
    ben.release("bens")
    refused = ben.error("JoinGroup", "sa{sv}", "g", {}, **member("bens"))
    assert refused.name == DENIED
    ben.call("Forget", "sa{sv}", "bens", {})


def test_a_group_with_members_or_holds_is_not_deleted(
    ann: Client, ben: Client, group: int, place: Path
) -> None:
    disk = disk_of(ANN, place)
    ann.call("Acquire", ACQUIRE, "anns", shared(disk), in_groups("g"))
    refused = ann.error("DeleteGroup", "sa{sv}", "g", {})
    assert refused.name == ERROR + "ResourceBusy"
    assert "'anns'" in refused.text
    ann.release("anns")
    ann.acquire("anns", persistent=PERSISTENT)
    ann.release("anns")
    ann.call("JoinGroup", "sa{sv}", "g", {}, **member("anns"))
    assert ann.error("DeleteGroup", "sa{sv}", "g", {}).name == ERROR + "ResourceBusy"
    ann.call("LeaveGroup", "sa{sv}", "g", {}, **member("anns"))
    refused = ann.error("LeaveGroup", "sa{sv}", "g", {}, **member("anns"))
    assert refused.name == INVALID
    ann.call("Forget", "sa{sv}", "anns", {})
    refused = ann.error("JoinGroup", "sa{sv}", "none", {}, **member("anns"))
    assert refused.name.endswith(("NoSuchVM", "UnknownObject"))


def test_a_user_has_a_bounded_number_of_groups(ann: Client, ben: Client, client: Client) -> None:
    names = [f"g{number}" for number in range(8)]
    for name in names:
        ann.call("CreateGroup", "sa{sv}", name, {})
    refused = ann.error("CreateGroup", "sa{sv}", "more", {})
    assert refused.name == LIMITS
    assert "groups-per-user" in refused.text
    for one in (ben, client):  # nobody else's, and not root's
        one.call("CreateGroup", "sa{sv}", f"of{id(one)}", {})
        one.call("DeleteGroup", "sa{sv}", f"of{id(one)}", {})
    refused = ben.error("CreateGroup", "sa{sv}", "g0", {})
    assert refused.name == ERROR + "GroupExists"
    for name in names:
        ann.call("DeleteGroup", "sa{sv}", name, {})
    assert client.call("ListGroups") == [[]]


def test_what_is_seen_by_whom(
    ann: Client, ben: Client, client: Client, group: int, place: Path
) -> None:
    public = {"Name": "g", "Owner": ANN.uid}
    assert view(ben) == public
    assert view(client) == view(ann)
    assert set(view(ann)) == {
        *public, "Category", "Members", "Grants", "Writers", "Namespace", "CreatedAt"
    }  # fmt: skip
    tree = unwrap(ben.call("GetManagedObjects", interface=OBJECT_MANAGER)[0])
    assert tree[group_path()] == {GROUP: public}
    assert unwrap(ben.call("ListGroups")[0]) == [["g", ANN.uid, group_path()]]
    grant(ann, "bens", **theirs(BEN.uid))
    # A grant alone shows nothing: he has yet to be in it.
    assert view(ben) == public
    ben.call("Acquire", ACQUIRE, "bens", [], in_groups("g"))
    assert view(ben) == view(ann)
    assert view(ben)["Members"] == ["bens"]
    tree = unwrap(ben.call("GetManagedObjects", interface=OBJECT_MANAGER)[0])
    assert tree[group_path()] == {GROUP: view(ann)}
    (found,) = ben.call(
        "Get", "ss", GROUP, "Category", path=group_path(), interface=PROPERTIES
    )  # fmt: skip
    assert unwrap(found) == f"c{group}"
    ben.release("bens")
    refused = ben.error("Get", "ss", GROUP, "Category", path=group_path(), interface=PROPERTIES)
    assert refused.name == DENIED
    revoke(ann, "bens")


def test_owners_of_a_category(
    ann: Client, ben: Client, client: Client, group: int, place: Path
) -> None:
    """What its members hold by it, and which they are; others learn that somebody is."""
    disk = disk_of(ANN, place, mode=0o666)
    assert client.call("FindOwners", "s", f"c{group}") == [[]]
    ann.call("Acquire", ACQUIRE, "anns", shared(disk), in_groups("g"))
    ann.call("Acquire", ACQUIRE, "other", [], in_groups("g"))
    for what in (f"c{group}", str(label(disk))):
        found = unwrap(ann.call("FindOwners", "s", what)[0])
        assert [(one["vm"], one.get("path"), one.get("access")) for one in found] == [
            ("anns", str(disk), "group"),
            ("other", None, None),
        ]
        assert unwrap(ben.call("FindOwners", "s", what)[0]) == [{"held": True}] * 2
    # The VM's own set says whose a process is.
    context = ann.properties("anns")["ProcessContext"]
    assert [one["vm"].value for one in ann.call("FindOwners", "s", context)[0]] == ["anns"]
    ann.release("anns")
    ann.release("other")


def test_signals(ann: Client, client: Client, place: Path) -> None:
    """What everybody may know is told; of the rest, that it has changed."""
    client.listen()
    for name in ("InterfacesAdded", "InterfacesRemoved"):
        assert client.seen(name) == []
    ann.call("CreateGroup", "sa{sv}", "g", {})
    wait_for("the group is told of", lambda: client.seen("InterfacesAdded"))
    ((path, interfaces),) = client.seen("InterfacesAdded")
    assert (path, unwrap(interfaces)) == (group_path(), {GROUP: {"Name": "g", "Owner": ANN.uid}})

    def changes() -> list[list[str]]:
        return [
            body[2] for body in client.seen("PropertiesChanged") if body[:2] == [GROUP, {}]
        ]  # fmt: skip

    grant(ann, "later")
    wait_for("the grant", lambda: changes() == [["Grants"]])
    ann.call("Acquire", ACQUIRE, "anns", [], in_groups("g", persistent=PERSISTENT))
    wait_for("the member", lambda: changes() == [["Grants"], ["Members"]])
    ann.release("anns")
    wait_for("its end", lambda: changes()[2:] == [["Members"]])
    ann.call("JoinGroup", "sa{sv}", "g", {}, **member("anns"))
    wait_for("it joins", lambda: changes()[3:] == [["Members"]])
    ann.call("JoinGroup", "sa{sv}", "g", {}, **member("anns"))  # nothing changes
    ann.call("LeaveGroup", "sa{sv}", "g", {}, **member("anns"))
    wait_for("it leaves", lambda: changes()[4:] == [["Members"]])
    revoke(ann, "later")
    wait_for("what was granted is not any more", lambda: changes()[5:] == [["Grants"]])
    ann.call("Forget", "sa{sv}", "anns", {})
    ann.call("DeleteGroup", "sa{sv}", "g", {})
    wait_for("its end", lambda: [group_path(), [GROUP]] in client.seen("InterfacesRemoved"))
    refused = client.error("GetAll", "s", GROUP, path=group_path(), interface=PROPERTIES)
    assert refused.name.endswith("UnknownObject")


def test_a_plan_tells_what_a_group_would_do(
    ann: Client, ben: Client, group: int, place: Path
) -> None:
    disk = disk_of(ANN, place)
    (steps,) = ann.call("Plan", ACQUIRE, "anns", shared(disk), in_groups("g"))
    step = unwrap(steps[0])
    assert step["to"] == f"system_u:object_r:svirt_image_t:s0:c{group}"
    assert "error" not in step
    assert label(disk) is None
    assert view(ann)["Members"] == []
    (steps,) = ann.call("Plan", ACQUIRE, "anns", shared(disk), {})
    assert unwrap(steps[0])["error"] == ERROR + "ResourceRefused"
    assert ben.error("Plan", ACQUIRE, "bens", [], in_groups("g")).name == DENIED
    refused = ann.error("Plan", ACQUIRE, "anns", shared(disk, "none"), in_groups("none"))
    assert refused.name == ERROR + "NoSuchGroup"
