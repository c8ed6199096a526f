# SPDX-License-Identifier: LGPL-2.1-or-later
"""The model that the random histories are held against, by hand-made worlds."""

from dataclasses import replace

import pytest

from tests.crash.model import (
    BUSY,
    CONTENT,
    DRIFT,
    EXHAUSTED,
    EXISTS,
    FAILED,
    IMAGE,
    NO_LABEL,
    NO_VM,
    REFUSED,
    TWICE,
    File,
    Finding,
    Guest,
    Pair,
    Suspect,
    Want,
    categories,
    text,
)
from tests.crash.model_world import World

POOL = frozenset(range(4))
HOME = "unconfined_u:object_r:user_home_t:s0"
ONE, TWO = frozenset({0, 1}), frozenset({2, 3})


def world() -> World:
    world = World(POOL)
    world.make("a", 1, HOME)
    world.make("b", 2, None)
    return world


def take(world: World, name: str, pair: Pair, *wants: Want, persistent: bool = False) -> None:
    assert world.judge(name, wants) == set()
    world.grant(Guest(name, f"id-{name}", pair, "labelled", persistent), wants)


@pytest.mark.parametrize(
    ("label", "found"),
    [
        (None, set()),
        ("u:r:t:s0", set()),
        ("u:r:t:s0:c1", {1}),
        ("u:r:t:s0:c1,c3.c5", {1, 3, 4, 5}),
    ],
)
def test_categories(label: str | None, found: set[int]) -> None:
    assert categories(label) == found
    assert categories(f"u:r:t:s0:{text(frozenset({7, 2}))}") == {2, 7}


def test_a_label_is_given_and_given_back() -> None:
    there = world()
    take(there, "vm", ONE, Want("disks/a", "exclusive"), Want("disks/b", "readonly"))
    assert there.files["a"].label == f"{IMAGE}:c0,c1"
    assert there.files["b"].label == f"{CONTENT}:c0,c1"
    assert (there.vms["vm"].state, there.in_use()) == ("labelled", {ONE})
    assert there.release("vm") == set()
    assert [file.label for file in there.files.values()] == [HOME, None]
    assert (there.vms, there.findings, len(there.free())) == ({}, [], 6)
    assert there.release("vm") == {NO_VM}


def test_a_public_file_is_given_back_by_the_last() -> None:
    there = world()
    for name, pair in (("vm", ONE), ("other", TWO)):
        take(there, name, pair, Want("view/a", "public"))
    assert there.judge("third", [Want("disks/a", "readonly")]) == {BUSY}
    there.release("vm")
    assert there.files["a"].label == CONTENT
    there.release("other")
    assert there.files["a"].label == HOME


def test_what_is_refused() -> None:
    there = world()
    there.link("a", "c")
    assert there.judge("vm", [Want("disks/a", "public")]) == {REFUSED}
    assert there.judge("vm", [Want("disks/a", "public"), Want("view/c", "public")]) == {
        REFUSED,
        TWICE,
    }
    assert there.judge("vm", [Want("disks/nothing", "public")]) == {REFUSED}
    for label in ("system_u:object_r:etc_t:s0", f"{CONTENT}:c1,c2", f"{CONTENT}:c0.c1023"):
        there.relabel("b", label)
        assert there.judge("vm", [Want("disks/b", "public")]) == {REFUSED}
    there.relabel("b", f"{CONTENT}:c700,c701")
    assert there.judge("vm", [Want("disks/b", "public")]) == set()


def test_what_cannot_be_written() -> None:
    there = world()
    there.view_readonly = True
    assert there.judge("vm", [Want("view/a", "exclusive")]) == {REFUSED}
    assert there.judge("vm", [Want("view/a", "readonly")]) == {NO_LABEL}
    assert there.judge("vm", [Want("disks/a", "readonly")]) == set()
    there.files["a"].immutable = True
    assert there.judge("vm", [Want("disks/a", "readonly")]) == {NO_LABEL}
    there.relabel("a", CONTENT)
    assert there.judge("vm", [Want("disks/a", "public")]) == set()


def test_a_label_that_cannot_be_given_back() -> None:
    there = world()
    take(there, "vm", ONE, Want("disks/a", "exclusive"), Want("disks/b", "exclusive"))
    there.files["a"].immutable = True
    assert there.release("vm") == {DRIFT}
    assert (there.vms["vm"].state, there.files["b"].label) == ("failed", None)
    assert there.findings == [Finding("failed", "vm", "disks/a")]
    assert there.judge("vm", []) == {EXISTS}
    assert there.forget("vm") == {FAILED}
    there.restart()
    assert there.vms["vm"].state == "failed"
    there.files["a"].immutable = False
    there.restart()
    assert (there.vms, there.files["a"].label) == ({}, HOME)


def test_what_others_do_is_left_alone_and_keeps_the_pair() -> None:
    there = world()
    there.make("c", 3, None)
    take(there, "vm", ONE, *(Want(f"disks/{name}", "exclusive") for name in "abc"))
    there.relabel("a", HOME.replace("home", "tmp"))
    there.remove("b")
    there.rename("c", "d")
    there.make("c", 4, HOME)
    assert there.release("vm") == set()
    assert there.findings == [
        Finding("changed", "vm", "disks/a"),
        Finding("missing", "vm", "disks/b"),
        Finding("replaced", "vm", "disks/c"),
    ]
    label = f"{IMAGE}:c0,c1"
    assert there.suspects == [
        Suspect((0, 1), "disks/b", 2, label, None),
        Suspect((0, 1), "disks/c", 3, label, None),
    ]
    assert (there.quarantined(), ONE in there.free()) == ({ONE}, False)
    # Its number at its place again, without the pair: the old one is gone for good.
    there.make("b", 2, None)
    there.restart()
    assert there.quarantined() == {ONE}
    there.rename("d", "c")
    there.restart()
    assert there.quarantined() == set()
    assert there.files["c"].label is None


def test_a_label_that_a_power_cut_took_is_put_back_at_the_next_start() -> None:
    there = world()
    take(there, "vm", ONE, Want("disks/a", "exclusive"), Want("disks/b", "exclusive"))
    there.relabel("a", HOME)
    there.relabel("b", HOME)
    there.restart()
    assert [file.label for file in there.files.values()] == [f"{IMAGE}:c0,c1", HOME]


def test_a_held_file_is_not_cleaned() -> None:
    """A persistent VM has its file again, with the label that it was suspected to carry."""
    there = world()
    take(there, "vm", ONE, Want("disks/a", "exclusive"), persistent=True)
    there.rename("a", "c")
    there.release("vm")
    there.rename("c", "a")
    there.relabel("a", None)
    take(there, "vm", ONE, Want("disks/a", "exclusive"))
    there.restart()
    assert there.files["a"].label == f"{IMAGE}:c0,c1"
    assert len(there.suspects) == 1
    there.release("vm")
    there.restart()
    assert there.at("view/a") == File(1, None, {"a"})
    assert there.suspects == []


def test_a_persistent_vm_keeps_pair_and_id() -> None:
    there = world()
    take(there, "vm", ONE, Want("disks/a", "exclusive"), persistent=True)
    there.release("vm")
    assert there.vms["vm"].state == "reserved"
    with pytest.raises(AssertionError):
        there.grant(Guest("vm", "id-vm", TWO, "labelled", persistent=False), [])
    take(there, "vm", ONE)
    assert there.vms["vm"].persistent
    assert there.forget("vm") == set()
    assert there.vms == {}


def test_a_full_pool() -> None:
    there = world()
    for number, pair in enumerate(sorted(there.pairs(), key=sorted)):
        take(there, f"vm{number}", pair)
    assert there.judge("more", []) == {EXHAUSTED}
    with pytest.raises(AssertionError):
        there.grant(Guest("more", "id", ONE, "reserved", persistent=False), [])


def test_callers_and_units_end_what_is_theirs() -> None:
    there = world()
    for name, caller, unit, pair in (("vm", 1, False, ONE), ("other", None, True, TWO)):
        there.grant(Guest(name, name, pair, "", False, caller, unit), [])
    assert there.vms["other"].state == "running"
    there.caller_left(2)
    assert len(there.vms) == 2
    there.restart(gone=[1])
    assert list(there.vms) == ["other"]
    there.restart(ended=["other"])
    assert there.vms == {}


def test_each_entry_of_a_tree_gets_back_what_it_had() -> None:
    there = world()
    for number, (name, label) in enumerate({"t": HOME, "t/in": None, "t/other": HOME}.items()):
        there.make(name, 10 + number, label)
    tree = Want("disks/t", "exclusive", tree=True)
    take(there, "vm", ONE, tree)
    entries = [there.files[name] for name in ("t", "t/in", "t/other")]
    assert {file.label for file in entries} == {f"{IMAGE}:c0,c1"}
    # What is as it was is taken for lost in a power cut, what somebody else set is not.
    there.relabel("t/in", None)
    there.relabel("t/other", CONTENT)
    there.restart()
    assert [file.label for file in entries] == [f"{IMAGE}:c0,c1"] * 2 + [CONTENT]
    assert there.release("vm") == set()
    assert [file.label for file in entries] == [HOME, None, CONTENT]
    assert there.findings == [Finding("changed", "vm", "disks/t")]
    assert there.suspects == []
    there.files["t/in"].immutable = True
    assert there.judge("vm", [tree]) == {NO_LABEL, REFUSED}
    there.relabel("t/other", f"{IMAGE}:c2,c3")
    assert there.judge("vm", [replace(tree, access="public")]) == {REFUSED}


def test_what_an_image_lies_over_is_there_for_its_sake() -> None:
    there = world()
    there.make("top", 3, None)
    top = Want("disks/top", "exclusive", chain=True)
    assert there.judge("vm", [top]) == {REFUSED}
    there.files["top"].over = "disks/a"
    take(there, "vm", ONE, top, Want("disks/b", "readonly"))
    held = [(hold.id, hold.path, hold.access, hold.part_of) for hold in there.vms["vm"].holds]
    assert held[0] == ("r1", "disks/top", "exclusive", "")
    assert held[2] == ("r3", "disks/a", "public", "r1")
    assert there.detach("vm", "r1") == set()
    assert [hold.id for hold in there.vms["vm"].holds] == ["r2"]
    assert (there.files["top"].label, there.files["a"].label) == (None, HOME)
    # Named outright, it is held as it was named.
    there.release("vm")
    take(there, "vm", ONE, top, Want("disks/a", "exclusive"))
    assert [hold.part_of for hold in there.vms["vm"].holds] == ["", ""]


@pytest.mark.parametrize("at_end", ["report", "detach", "stop"])
@pytest.mark.parametrize("runs", [False, True])
def test_what_is_leased_is_lost(runs: bool, at_end: str) -> None:
    there = world()
    kept, leased = Want("disks/a", "exclusive"), Want("disks/b", "exclusive", until=7)
    take(there, "vm", ONE, kept, replace(leased, at_end=at_end))
    there.vms["vm"] = replace(there.vms["vm"], state="running" if runs else "labelled")
    there.end_leases("vm")
    if runs and at_end == "report":
        assert there.findings == [Finding("expired", "vm", "disks/b")]
        assert there.files["b"].label == f"{IMAGE}:c0,c1"
    else:
        assert (there.findings, there.files["b"].label) == ([], None)
    if runs and at_end == "stop":
        assert there.vms == {}
    else:
        assert there.files["a"].label == f"{IMAGE}:c0,c1"


def test_what_several_images_lie_over_ends_with_the_last() -> None:
    there = world()
    there.make("c", 3, HOME)
    there.files["a"].over = there.files["c"].over = "disks/b"
    one, two = (Want(f"disks/{name}", "exclusive", chain=True) for name in "ac")
    (_, _, (below, part_of)) = there.with_chains([replace(one, until=7, at_end="stop"), two])
    assert (below.until, part_of) == (0, "")
    (_, (below, part_of)) = there.with_chains([replace(one, until=7, at_end="stop")])
    assert (below.until, below.at_end, part_of) == (7, "stop", "r1")


def test_a_life_with_libvirt() -> None:
    there = world()
    wants = [Want("disks/a", "exclusive")]
    assert there.judge_check_in("vm", wants) == set()
    there.grant(Guest("vm", "id", ONE, "", persistent=True, libvirt=True), wants)
    assert (there.vms["vm"].state, there.files["a"].label) == ("labelled", HOME)
    there.alive.add(7)
    assert there.follow("vm", 7) == {NO_LABEL}
    assert there.libvirt_sets("vm", back=False) == {"disks/a": f"{IMAGE}:c0,c1"}
    assert there.follow("vm", 8) == {NO_LABEL}
    assert there.follow("vm", 7) == set()
    assert there.follow("vm", 8) == {FAILED}
    assert there.release("vm") == {FAILED}
    there.restart()
    assert there.vms["vm"].state == "running"
    assert there.ending("vm") == set()
    assert there.vms["vm"].state == "releasing"
    there.alive.clear()
    there.restart()
    assert (there.vms["vm"].state, there.files["a"].label) == ("reserved", HOME)
    assert there.vms["vm"].libvirt


def test_a_unit_has_the_label_that_its_file_says() -> None:
    there = world()
    wants = [Want("disks/a", "exclusive")]
    assert not there.start_unit(frozenset())
    there.enroll(Guest("vm", "id", ONE, "reserved", persistent=True), wants)
    assert there.judge("vm", wants) == {EXISTS}
    assert there.forget("vm") == {FAILED}
    assert not there.start_unit(None)
    assert there.start_unit(frozenset())
    assert (there.vms["vm"].state, there.files["a"].label) == ("running", f"{IMAGE}:c0,c1")
    assert there.unenroll(keep=False) == {FAILED}
    there.restart(ended=["vm"])
    assert there.unenroll(keep=True) == set()
    assert there.vms["vm"].state == "reserved"
    assert there.forget("vm") == set()
    assert there.unenroll(keep=False) == {NO_VM}
