# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one user tries with another's group: get in, get others out, get at what it shares."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import BusError, Variant
from tests.attack import DENIED
from tests.attacks.arena import DENIALS, Arena, tries
from tests.attacks.defences import against
from tests.attacks.stranger import Me, Stranger
from tests.groups import (
    ACQUIRE,
    LAUNCH,
    category_of,
    in_groups,
    of_group,
    shared,
    users_make_groups,
    view,
)
from tests.sandbox import Sandbox
from tests.sandbox.accounts import Account
from tests.support import GROUP, PROPERTIES, ROOT, VM, Client, label, resources, unwrap

ROUNDS = 60
PERSISTENT = {"persistent": Variant("b", True)}


@pytest.fixture(scope="module", autouse=True)
def allowed(sandbox: Sandbox) -> Iterator[None]:
    with users_make_groups():
        yield


@pytest.fixture
def disk(arena: Arena, ann: Account) -> Path:
    """A disk of Ann's that everybody could open, were there no other rule."""
    path = arena.disk(ann, "shared.img")
    path.chmod(0o666)
    path.parent.chmod(0o755)
    return path


@pytest.fixture
def owner(arena: Arena, ann: Account, disk: Path) -> Iterator[Stranger]:
    """Ann, with a group "g", a VM "anns" in it, and a disk that it shares; so it stays."""
    owner = arena.stranger(ann)
    owner.call("CreateGroup", "sa{sv}", "g", {})
    owner.call("Acquire", ACQUIRE, "anns", shared(disk), in_groups("g"))
    before = view(owner), owner.properties("anns"), label(disk)
    yield owner
    if not arena.without:
        assert (view(owner), owner.properties("anns"), label(disk)) == before
        owner.release("anns")
        owner.call("DeleteGroup", "sa{sv}", "g", {})
        assert label(disk) is None


def member(name: str) -> dict[str, Any]:
    return {"path": f"{ROOT}/vm/{name}", "interface": VM}


# -- into a group ----------------------------------------


@pytest.mark.parametrize("how", ["Acquire", "Launch", "Plan", "JoinGroup"])
@against("a group's owner says who is in it")
def test_into_a_group_that_was_not_granted(
    arena: Arena, owner: Stranger, disk: Path, ben: Account, how: str
) -> None:
    """Named in a request, or joined for later: the same rule. What it shares stays as it is."""
    stranger = arena.stranger(ben)
    match how:
        case "Launch":
            answer = tries(stranger, how, LAUNCH, "bens", arena.idle, shared(disk), in_groups("g"))
        case "JoinGroup":
            stranger.call("Acquire", ACQUIRE, "bens", [], PERSISTENT)
            answer = tries(stranger, how, "sa{sv}", "g", {}, **member("bens"))
        case _:
            answer = tries(stranger, how, ACQUIRE, "bens", shared(disk), in_groups("g"))
    arena.verdict(answer == "", how)
    if not arena.without:
        assert answer == DENIED
        assert view(owner)["Members"] == ["anns"]
        if how == "JoinGroup":
            stranger.release("bens")
            stranger.call("Forget", "sa{sv}", "bens", {})
        assert "bens" not in stranger.vms()


@against("a group's owner says who is in it")
def test_the_granted_name_is_taken_first(arena: Arena, ann: Account, ben: Account) -> None:
    """Root's VM "web" may be in the group; Ben is the first to have a VM of that name."""
    owner, stranger = arena.stranger(ann), arena.stranger(ben)
    owner.call("CreateGroup", "sa{sv}", "g", {})
    owner.call("Grant", "sa{sv}", "web", {"owner": Variant("u", 0)}, **of_group())
    answer = tries(stranger, "Acquire", ACQUIRE, "web", [], in_groups("g", **PERSISTENT))
    arena.verdict(answer == "", "Acquire under a granted name")
    if arena.without:
        return
    assert answer == DENIED
    stranger.call("Acquire", ACQUIRE, "web", [], PERSISTENT)
    assert tries(stranger, "JoinGroup", "sa{sv}", "g", {}, **member("web")) == DENIED
    stranger.release("web")
    stranger.call("Forget", "sa{sv}", "web", {})
    owner.call("DeleteGroup", "sa{sv}", "g", {})


@against("what a group shares is its members'")
def test_a_groups_file_without_being_in_the_group(
    arena: Arena, owner: Stranger, disk: Path, ben: Account
) -> None:
    """To name the group at the resource alone is not to be in it."""
    answer = tries(arena.stranger(ben), "Acquire", ACQUIRE, "bens", shared(disk), {})
    arena.verdict(answer == "", "a hold on what a group shares")
    assert arena.without or answer == "org.svirt1.Error.ResourceRefused"


def test_a_shared_file_is_nobody_elses(
    arena: Arena, owner: Stranger, disk: Path, ben: Account
) -> None:
    """By a group of his own, or by none: it is Ann's, and he learns nothing of who has it."""
    stranger = arena.stranger(ben)
    stranger.call("CreateGroup", "sa{sv}", "bg", {})
    for wanted in (shared(disk, "bg"), shared(disk, "bg", "readonly"), resources(disk)):
        refused = stranger.error("Acquire", ACQUIRE, "bens", wanted, in_groups("bg"))
        assert refused.name in {"org.svirt1.Error.ResourceRefused", "org.svirt1.Error.ResourceBusy"}
        assert "anns" not in refused.text
        assert "'g'" not in refused.text
    stranger.call("DeleteGroup", "sa{sv}", "bg", {})


@against("a file is its owner's")
def test_a_members_first_hold_on_anothers_file(
    arena: Arena, ann: Account, ben: Account, disk: Path
) -> None:
    """Ben's VM may be in the group; what is in it, each owner gives to it."""
    owner, stranger = arena.stranger(ann), arena.stranger(ben)
    owner.call("CreateGroup", "sa{sv}", "g", {})
    owner.call("Grant", "sa{sv}", "bens", {"owner": Variant("u", ben.uid)}, **of_group())
    answer = tries(stranger, "Acquire", ACQUIRE, "bens", shared(disk), in_groups("g"))
    arena.verdict(answer == "" and label(disk) is not None, "a label on another's file")
    if not arena.without:
        assert label(disk) is None
        owner.call("DeleteGroup", "sa{sv}", "g", {})


# -- what is its owner's to do ----------------------------------------


@pytest.mark.parametrize("what", ["Grant", "Revoke", "DeleteGroup", "LeaveGroup"])
@against("only the owner may")
def test_what_is_the_owners(arena: Arena, ann: Account, ben: Account, what: str) -> None:
    """Grant oneself, take back what was granted, delete the group, have another's VM leave it."""
    owner, stranger = arena.stranger(ann), arena.stranger(ben)
    owner.call("CreateGroup", "sa{sv}", "g", {})
    if what != "DeleteGroup":
        owner.call("Acquire", ACQUIRE, "anns", [], PERSISTENT)
        owner.release("anns")
        owner.call("Grant", "sa{sv}", "anns", {}, **of_group())
        owner.call("JoinGroup", "sa{sv}", "g", {}, **member("anns"))
    before = view(owner)
    match what:
        case "Grant":
            own = {"owner": Variant("u", ben.uid)}
            answer = tries(stranger, "Grant", "sa{sv}", "bens", own, **of_group())
        case "Revoke":
            answer = tries(stranger, "Revoke", "sa{sv}", "anns", {}, **of_group())
        case "LeaveGroup":
            answer = tries(stranger, "LeaveGroup", "sa{sv}", "g", {}, **member("anns"))
        case _:
            answer = tries(stranger, "DeleteGroup", "sa{sv}", "g", {})
    arena.verdict(answer == "", what)
    if arena.without:
        return
    assert answer in DENIALS
    assert view(owner) == before
    if what != "DeleteGroup":
        owner.call("Forget", "sa{sv}", "anns", {})
    owner.call("DeleteGroup", "sa{sv}", "g", {})


@against("others see that a group exists, and no more")
def test_who_is_in_it(arena: Arena, owner: Stranger, ben: Account) -> None:
    stranger = arena.stranger(ben)
    category = f"c{category_of(owner)}"
    (tree,) = stranger.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager")
    said = repr(view(stranger)) + repr(unwrap(tree)[f"{ROOT}/group/g"])
    arena.verdict("anns" in said or category in said, "properties of a group")
    if not arena.without:
        for name in ("Category", "Members", "Grants", "Writers", "Namespace"):
            where = {"path": f"{ROOT}/group/g", "interface": PROPERTIES}
            assert tries(stranger, "Get", "ss", GROUP, name, **where) == DENIED
        found = unwrap(stranger.call("FindOwners", "s", category)[0])
        assert found == [{"held": True}]


# -- categories ----------------------------------------


@against("what VMs or a group had is no original")
def test_a_category_that_comes_back_with_a_release(arena: Arena, ben: Account) -> None:
    """Moved away and back, the file carries the category as if it had been its own for ever."""
    stranger = arena.stranger(ben)
    disk = arena.disk(ben)
    moved = disk.with_name("moved")
    stranger.call("CreateGroup", "sa{sv}", "bg", {})
    stranger.call("Acquire", ACQUIRE, "bens", shared(disk, "bg", "readonly"), in_groups("bg"))
    carried = str(label(disk))
    os.rename(disk, moved)
    stranger.release("bens")
    os.rename(moved, disk)
    stranger.call("DeleteGroup", "sa{sv}", "bg", {})
    answer = tries(stranger, "Acquire", ACQUIRE, "bens", resources(disk), {})
    # Whatever it carries now, nobody is to have the category that it will carry again.
    arena.root.call("Verify", "ba{sv}", False, {})
    if not answer:
        stranger.release("bens")
    (findings,) = arena.root.call("Verify", "ba{sv}", False, {})
    won = label(disk) == carried and not findings
    arena.verdict(won, "the category is free, and the file carries it")
    if not arena.without:
        assert answer == "org.svirt1.Error.ResourceRefused"
        arena.root.call("Verify", "ba{sv}", True, {})
        assert label(disk) is None


@against("one user has a bounded part of the groups")
def test_categories_left_in_quarantine(arena: Arena, ann: Account, ben: Account) -> None:
    """There are few: in the end nobody could make a group any more."""
    stranger = arena.stranger(ben)
    arena.moved = True
    made, refused = stranger.do(_leave_categories, str(arena.home(ben)), 12)
    arena.verdict(made >= 12, f"{made} categories in quarantine for one user")
    if not arena.without:
        assert refused.startswith("org.freedesktop.DBus.Error.LimitsExceeded")
        assert "groups-per-user" in refused
        other = arena.stranger(ann)
        other.call("CreateGroup", "sa{sv}", "g", {})
        other.call("DeleteGroup", "sa{sv}", "g", {})


def _leave_categories(me: Me, folder: str, wanted: int) -> tuple[int, str]:
    """Make groups, have a file labelled for each, and move it away before the last release."""
    for number in range(wanted):
        path = f"{folder}/disk"
        with open(path, "wb") as disk:
            disk.truncate(4096)
        try:
            me.client.call("CreateGroup", "sa{sv}", "bg", {})
        except BusError as error:
            return number, f"{error.name}: {error.text}"
        me.client.call("Acquire", ACQUIRE, "vm", shared(Path(path), "bg"), in_groups("bg"))
        os.rename(path, f"{folder}/{number}")
        with open(path, "wb"):
            pass
        me.client.release("vm")
        me.client.call("DeleteGroup", "sa{sv}", "bg", {})
    return wanted, ""


# -- a name that never rests ----------------------------------------


def test_two_groups_of_one_name(arena: Arena, ann: Account, ben: Account) -> None:
    """Both make and delete groups of one name: what one grants never is in the other's."""
    strangers = [arena.stranger(ann), arena.stranger(ben)]
    for stranger, vm in zip(strangers, ("anns", "bens"), strict=True):
        stranger.start(_make_and_grant, vm, stranger.account.uid)
    mixed = 0
    while not all(one.ready() for one in strangers):
        try:
            seen = view(arena.root)
        except BusError:
            continue  # it is nobody's at the moment
        mixed += any(one["owner"] != seen["Owner"] for one in seen["Grants"])
    made = [one.result() for one in strangers]
    assert mixed == 0
    assert all(count > 0 for count in made), made
    assert unwrap(arena.root.call("ListGroups")[0]) == []


def _make_and_grant(me: Me, vm: str, uid: int) -> int:
    """Make a group, grant a VM, and delete it, with the grant under way; returns how often."""
    made = 0
    for _ in range(ROUNDS):
        if _tries(me.client, "CreateGroup", "sa{sv}", "g", {}):
            made += 1
            own = {"owner": Variant("u", uid)}
            _tries(me.client, "Grant", "sa{sv}", vm, own, **of_group())
            _tries(me.client, "DeleteGroup", "sa{sv}", "g", {})
        _tries(me.client, "Grant", "sa{sv}", vm, {"owner": Variant("u", uid)}, **of_group())
    return made


def _tries(client: Client, *call: Any, **where: Any) -> bool:
    return tries(client, *call, **where) == ""
