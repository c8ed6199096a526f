# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a user tries against a wall: another name, another spelling, another way in, clearing it."""

import os
import signal
from collections.abc import Iterator
from typing import Any, Final

import pytest

from svirtd.host.bus import Variant
from tests.attack import INVALID, OWN
from tests.attacks.arena import DENIALS, Arena, tries
from tests.attacks.defences import against
from tests.attacks.stranger import Stranger
from tests.sandbox.accounts import ANN, Account
from tests.support import PROPERTIES, ROOT, VM, unwrap, wait_for

ACQUIRE: Final = "saa{sv}a{sv}"
LAUNCH: Final = "sasaa{sv}a{sv}"
CONFLICT: Final = OWN + "WallConflict"
UUID: Final = "0123abcd-0000-0000-0000-00000000abcd"
OTHER: Final = UUID.replace("abcd", "dcba")
WALLS: Final = """
[wall.banks]
classes = [["bank-a"], ["bank-b"]]
[wall.houses]
classes = [["red"], ["blue"]]
scope = "owner"
"""
GROUPS: Final = ("bank-a", "bank-b", "red", "blue")
VMS: Final = ("one", "two", "three", "four", "both", "uid:0", UUID)
GROUP: Final = "org.svirt1.Group"


def configure(arena: Arena, text: str, *expected: str) -> None:
    folder = arena.place / "svirtd.toml.d"
    folder.mkdir(exist_ok=True)
    (folder / "walls.toml").write_text(text)
    os.kill(arena.pid, signal.SIGHUP)
    wait_for(
        "the walls",
        lambda: [n for n, one in walls(arena).items() if one["configured"]] == [*expected],
    )


def walls(arena: Arena) -> dict[str, dict[str, Any]]:
    found = [dict(unwrap(one)) for one in arena.root.call("ListWalls")[0]]
    return {one["name"]: one for one in found}


def make_group(arena: Arena, name: str) -> None:
    """Make a group, which VMs of Ann's may be in by any of these names."""
    (path,) = arena.root.call("CreateGroup", "sa{sv}", name, {})
    for vm_name in VMS:
        whose = {"owner": Variant("u", ANN.uid)}
        arena.root.call("Grant", "sa{sv}", vm_name, whose, path=path, interface=GROUP)


@pytest.fixture
def user(arena: Arena, ann: Account) -> Iterator[Stranger]:
    """Ann, who may be in every group, behind walls of an administrator's."""
    configure(arena, WALLS, "banks", "houses")
    for name in GROUPS:
        make_group(arena, name)
    yield arena.stranger(ann)
    for name in arena.root.vms():
        arena.root.release(name)
        if name in arena.root.vms():
            arena.root.call("Forget", "sa{sv}", name, {})
    for name in GROUPS:
        arena.root.call("DeleteGroup", "sa{sv}", name, {})
    for wall in walls(arena).values():
        for subject in {one["subject"] for one in wall["history"]}:
            arena.root.call("ClearWall", "ssa{sv}", wall["name"], subject, {})
    configure(arena, "")


def options(*groups: str, uuid: str = "", persistent: bool = False) -> dict[str, Variant]:
    found = {"groups": Variant("as", list(groups)), "persistent": Variant("b", persistent)}
    return found | ({"uuid": Variant("s", uuid)} if uuid else {})


def held(user: Stranger, name: str, *groups: str, **how: Any) -> None:
    user.call("Acquire", ACQUIRE, name, [], options(*groups, **how))
    user.release(name)


def passes(arena: Arena, user: Stranger, name: str, *groups: str, **how: Any) -> str:
    """Try to get in; the refusal, "" where the wall was passed."""
    answer = tries(user, "Acquire", ACQUIRE, name, [], options(*groups, **how))
    assert answer in {"", CONFLICT, INVALID}
    return answer


@against("who has held one side of a wall never gets the other")
def test_another_name(arena: Arena, user: Stranger) -> None:
    held(user, "one", "bank-a", uuid=UUID)
    arena.verdict(passes(arena, user, "two", "bank-b", uuid=UUID) == "", "another name")


@against("who has held one side of a wall never gets the other")
def test_another_spelling(arena: Arena, user: Stranger) -> None:
    held(user, "one", "bank-a", uuid=UUID)
    arena.verdict(passes(arena, user, "two", "bank-b", uuid=UUID.upper()) == "", "capitals")
    for spelling in (UUID.replace("-", ""), f"{{{UUID}}}", f"{UUID} ", f"urn:uuid:{UUID}"):
        assert passes(arena, user, "two", "bank-b", uuid=spelling) == INVALID
    for spelling in ("Bank-B", "bank-b ", " bank-b", "bank\u2010b"):
        answer = tries(user, "Acquire", ACQUIRE, "one", [], options(spelling, uuid=UUID))
        assert answer in {INVALID, OWN + "NoSuchGroup"}, spelling


@against("who has held one side of a wall never gets the other")
def test_at_once(arena: Arena, user: Stranger) -> None:
    won = passes(arena, user, "both", "bank-a", "bank-b") == ""
    arena.verdict(won, "both sides in one request")


@against("who has held one side of a wall never gets the other")
def test_a_launch(arena: Arena, user: Stranger) -> None:
    held(user, "one", "bank-a", persistent=True)
    answer = tries(user, "Launch", LAUNCH, "one", arena.idle, [], options("bank-b"))
    arena.verdict(answer == "", "a launch")


@against("who has held one side of a wall never gets the other")
def test_joining_first(arena: Arena, user: Stranger) -> None:
    """By a lasting membership, and with its other half for one run."""
    user.call("Acquire", ACQUIRE, "one", [], options(persistent=True))
    user.release("one")
    path = f"{ROOT}/vm/one"
    user.call("JoinGroup", "sa{sv}", "bank-a", {}, path=path, interface=VM)
    if passes(arena, user, "one", "bank-b") == "":
        arena.verdict(True, "a membership and a request")
        user.release("one")
    else:
        arena.verdict(False, "a membership and a request")
    answer = tries(user, "JoinGroup", "sa{sv}", "bank-b", {}, path=path, interface=VM)
    arena.verdict(answer == "", "two memberships")


@against("who has held one side of a wall never gets the other")
def test_a_change_of_identity(arena: Arena, user: Stranger) -> None:
    """The VM takes another UUID, is forgotten, and comes again under that."""
    held(user, "one", "bank-a", uuid=UUID, persistent=True)
    held(user, "one", uuid=OTHER)
    user.call("Forget", "sa{sv}", "one", {})
    arena.verdict(passes(arena, user, "two", "bank-b", uuid=OTHER) == "", "a change of UUID")


@against("who has held one side of a wall never gets the other")
def test_a_new_group_of_the_name(arena: Arena, user: Stranger) -> None:
    held(user, "one", "bank-a", uuid=UUID)
    for name in ("bank-a", "bank-b"):
        arena.root.call("DeleteGroup", "sa{sv}", name, {})
        make_group(arena, name)
    arena.verdict(passes(arena, user, "one", "bank-b", uuid=UUID) == "", "groups made anew")


@against("who has held one side of a wall never gets the other")
def test_another_vm_of_the_same_owner(arena: Arena, user: Stranger) -> None:
    held(user, "one", "red")
    arena.verdict(passes(arena, user, "two", "blue") == "", "another VM")
    # Where the wall looks at VMs, two of one user may be on two sides.
    held(user, "three", "bank-a")
    assert passes(arena, user, "four", "bank-b") == ""


def test_asking_leaves_no_mark_and_tells_the_same(arena: Arena, user: Stranger) -> None:
    """Plan says what would be refused; it neither lets in nor keeps a rival out."""
    user.call("Plan", ACQUIRE, "one", [], options("bank-b", uuid=UUID))
    held(user, "one", "bank-a", uuid=UUID)
    assert tries(user, "Plan", ACQUIRE, "one", [], options("bank-b", uuid=UUID)) == CONFLICT
    assert {one["group"] for one in walls(arena)["banks"]["history"]} == {"bank-a"}


def test_a_refused_start_marks_nobody(arena: Arena, user: Stranger, ann: Account) -> None:
    """What never got a label held nothing: a disk that is refused spoils no UUID."""
    theirs = {"path": Variant("s", str(arena.victim(ann)))}
    answer = tries(user, "Acquire", ACQUIRE, "one", [theirs], options("bank-a", uuid=UUID))
    assert answer != ""
    assert walls(arena)["banks"]["entries"] == 0
    held(user, "one", "bank-b", uuid=UUID)


def test_the_mark_of_another_users_vm(arena: Arena, user: Stranger, ben: Account) -> None:
    """Ben, who is in no group of hers, cannot put her VM on a side by its UUID."""
    stranger = arena.stranger(ben)
    answer = tries(stranger, "Acquire", ACQUIRE, "bens", [], options("bank-a", uuid=UUID))
    assert answer in DENIALS
    held(user, "one", "bank-b", uuid=UUID)


@pytest.mark.parametrize("subject", [UUID, "one", "uid:60001"])
@against("only the owner may")
def test_clearing(arena: Arena, user: Stranger, subject: str) -> None:
    held(user, "one", "bank-a", "red", uuid=UUID, persistent=True)
    won = False
    for wall in ("banks", "houses"):
        answer = tries(user, "ClearWall", "ssa{sv}", wall, subject, {})
        assert answer in {"", OWN + "Failed", *DENIALS}
        won = won or answer == ""
    arena.verdict(won, "ClearWall")
    if not arena.without:
        assert tries(user, "ListWalls") in DENIALS
        assert passes(arena, user, "one", "bank-b") == CONFLICT


def test_whether_there_is_a_wall_is_not_told(arena: Arena, user: Stranger) -> None:
    """A refusal to clear says the same of walls and VMs that are there and that are not."""
    held(user, "one", "bank-a", uuid=UUID)
    said = {
        user.error("ClearWall", "ssa{sv}", wall, subject, {}).text
        for wall in ("banks", "none")
        for subject in (UUID, OTHER, "uid:0", "nobody's")
    }
    assert len(said) == 1


def test_a_name_that_looks_like_a_subject(arena: Arena, user: Stranger) -> None:
    """An administrator who clears uid:0 clears root, whatever users have called their VMs."""
    held(user, "one", "bank-a", uuid=UUID)
    held(user, "uid:0", "bank-a", persistent=True)
    held(user, UUID, "bank-a", persistent=True)
    mine = unwrap(user.call("GetAll", "s", VM, path=f"{ROOT}/vm/uid_3a0", interface=PROPERTIES)[0])[
        "Id"
    ]
    assert arena.root.error("ClearWall", "ssa{sv}", "banks", "uid:0", {}).name == OWN + "Failed"
    assert arena.root.call("ClearWall", "ssa{sv}", "banks", UUID, {}) == [1]
    assert mine in {one["subject"] for one in walls(arena)["banks"]["history"]}
    assert passes(arena, user, "uid:0", "bank-b") == CONFLICT
