# SPDX-License-Identifier: LGPL-2.1-or-later
"""The matrix against a model of a policy that isolates, and against each way to break one."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svirtd.core import goals, nodes
from svirtd.core.matrix import Cell, algebra, resources_of, row, size
from svirtd.core.mcs import Context, format_categories
from svirtd.core.model import VM, Access, Hold, Identity, Lifetime, State
from svirtd.core.separation import Ask, Decision
from tests.unit.test_separation import CONTEXTS, policy

_IN_GROUPS: Final = (Access.GROUP, Access.READONLY)
PAIRS: Final = [frozenset(pair) for pair in combinations(range(12), 2)]
# Sets that share a category with each other, and one that shares none.
FEW: Final = [frozenset({0, 1}), frozenset({0, 2}), frozenset({3, 4})]


# Names to categories, none of which is in a pair.
GROUPS: Final = {"g": 100, "h": 101, "i": 102}


def vm(number: int, pair: frozenset[int], groups: Sequence[str] = (), goal: str = "isolated") -> VM:
    categories = frozenset(GROUPS[name] for name in groups)
    return VM(
        id=f"id{number}",
        name=f"vm{number}",
        owner_uid=0,
        state=State.RUNNING,
        reason="",
        goal=goal,
        uuid="",
        rank=number,
        categories=format_categories(pair),
        process_context=str(goals.process_context(CONTEXTS, pair, categories)),
        image_context=str(goals.resource_context(CONTEXTS, Access.EXCLUSIVE, pair)),
        unit="",
        main_pid=0,
        runtime_dir="",
        persistent=False,
        lifetime=Lifetime.RELEASE,
        caller="",
        created_us=number,
        groups=tuple(groups),
    )


def hold(owner: VM, pair: frozenset[int], access: Access, inode: int, group: str = "") -> Hold:
    label = str(goals.resource_context(CONTEXTS, access, pair, GROUPS.get(group)))
    path = f"/srv/{inode}.img"
    return Hold(owner.id, owner.name, Identity(1, inode), path, access, label, None, group=group)


def cells(vms: Sequence[VM], holds: Sequence[Hold], ask: Ask) -> list[Cell]:
    resources = resources_of(holds)
    return [one for each in vms for one in row(each, vms, resources, ask)]


def on_disks_too(ask: Ask) -> Ask:
    """The model knows files only; a policy has the same rules for block devices."""
    return lambda source, target, kind: ask(source, target, "file" if kind == "blk_file" else kind)


def three() -> tuple[list[VM], list[Hold]]:
    vms = [vm(number, pair) for number, pair in enumerate(FEW)]
    accesses = (Access.EXCLUSIVE, Access.READONLY, Access.PUBLIC)
    holds = [
        hold(one, pair, access, 10 * number + place)
        for number, (one, pair) in enumerate(zip(vms, FEW, strict=True))
        for place, access in enumerate(accesses)
    ]
    return vms, holds


@st.composite
def populations(draw: st.DrawFn) -> tuple[list[VM], list[Hold]]:
    pairs = draw(st.lists(st.sampled_from(PAIRS), min_size=1, max_size=8, unique=True))
    in_groups = st.lists(st.sampled_from(sorted(GROUPS)), unique=True)
    vms = [vm(number, pair, draw(in_groups)) for number, pair in enumerate(pairs)]
    private = (Access.EXCLUSIVE, Access.READONLY)
    holds = []
    for inode, access in enumerate(draw(st.lists(st.sampled_from(Access), max_size=12))):
        group = draw(st.sampled_from(sorted(GROUPS))) if access in _IN_GROUPS else ""
        if access is Access.READONLY and draw(st.booleans()):
            group = ""
        able = [n for n, one in enumerate(vms) if not group or group in one.groups]
        if not able:
            continue
        count = 1 if access in private and not group else draw(st.integers(1, len(able)))
        for number in draw(st.permutations(able))[:count]:
            holds.append(hold(vms[number], pairs[number], access, inode, group))
    return vms, holds


@settings(deadline=None)
@given(populations())
def test_what_is_labelled_by_the_rules_is_as_granted(found: tuple[list[VM], list[Hold]]) -> None:
    vms, holds = found
    for ask in (on_disks_too(policy()), algebra(CONTEXTS)):
        told = cells(vms, holds, ask)
        assert len(told) == size(len(vms), len(resources_of(holds)))
        assert [one for one in told if one.surplus or one.shortfall] == []
        assert all(one.allowed == one.granted for one in told)


def test_who_may_what() -> None:
    vms, holds = three()
    told = {(one.vm_name, one.what): one.allowed for one in cells(vms, holds, algebra(CONTEXTS))}
    assert told["vm0", "/srv/0.img"] == {"read", "write", "append"}
    assert told["vm0", "/srv/1.img"] == {"read"}
    assert told["vm1", "/srv/0.img"] == told["vm1", "/srv/1.img"] == frozenset()
    assert all(told[one.name, "/srv/2.img"] == {"read"} for one in vms)
    assert told["vm0", "vm1"] == frozenset()
    assert ("vm0", "vm0") not in told


def test_what_a_group_has_is_its_members_whoever_holds_it() -> None:
    vms = [vm(number, pair, groups) for (number, pair), groups in
           zip(enumerate(FEW), (["g"], ["g", "h"], ["h"]), strict=True)]  # fmt: skip
    holds = [
        hold(vms[0], FEW[0], Access.GROUP, 0, "g"),
        hold(vms[1], FEW[1], Access.READONLY, 1, "h"),
    ]
    told = cells(vms, holds, algebra(CONTEXTS))
    assert [one for one in told if one.surplus or one.shortfall] == []
    granted = {(one.vm_name, one.what): one.granted for one in told if one.granted}
    writer = {"read", "write", "append"}
    assert granted == {
        ("vm0", "/srv/0.img"): writer,
        ("vm1", "/srv/0.img"): writer,
        ("vm1", "/srv/1.img"): {"read"},
        ("vm2", "/srv/1.img"): {"read"},
    }
    # And which of them is whose, for whoever draws it.
    assert {(one.what, one.group) for one in told if not one.is_vm} == {
        ("/srv/0.img", "g"),
        ("/srv/1.img", "h"),
    }


def test_two_objects_under_one_path_are_two() -> None:
    vms, holds = three()
    told = cells(vms, [replace(one, path="/srv/same.img") for one in holds], algebra(CONTEXTS))
    of_one = [one for one in told if one.vm_name == "vm0" and not one.is_vm]
    assert len({one.identity for one in of_one}) == len(of_one) > 1
    assert {one.identity for one in told if one.is_vm} == {""}


def test_who_left_a_group_and_kept_its_category() -> None:
    """What the book has taken away and the process still has is a surplus."""
    vms = [vm(0, FEW[0], ["g"]), replace(vm(1, FEW[1], ["g"]), groups=())]
    told = cells(vms, [hold(vms[0], FEW[0], Access.GROUP, 0, "g")], algebra(CONTEXTS))
    assert [(one.vm_name, one.surplus) for one in told if one.surplus] == [
        ("vm1", frozenset({"read", "write", "append"}))
    ]


def test_a_domain_that_categories_do_not_bind() -> None:
    vms, holds = three()
    told = cells(vms, holds, on_disks_too(policy(constrained=False)))
    wrong = {(one.vm_name, one.what): one.surplus for one in told if one.surplus}
    assert wrong["vm1", "/srv/0.img"] == {"read", "write", "append"}
    assert wrong["vm1", "/srv/1.img"] == {"read"}
    assert wrong["vm1", "vm0"] == {"signal", "ptrace"}
    # Each VM, with two private resources and the process of each of the two others.
    assert len(wrong) == 3 * (4 + 2)


def test_a_permissive_domain_may_all() -> None:
    vms, holds = three()
    told = cells(vms, holds, on_disks_too(policy(permissive=True)))
    assert all(one.surplus for one in told)
    assert all("relabel" in one.surplus for one in told if not one.is_vm)
    assert all({"become", "connect"} <= one.surplus for one in told if one.is_vm)


@pytest.mark.parametrize(
    ("kind", "permission", "use"),
    [
        *(("file", one, one) for one in ("read", "write", "append", "execute")),
        *(("blk_file", one, one) for one in ("read", "write", "append", "execute")),
        *(("file", one, "relabel") for one in ("relabelfrom", "relabelto")),
        *(("process", one, "signal") for one in ("signal", "sigkill", "sigstop")),
        *(("process", one, "become") for one in ("transition", "dyntransition")),
        ("process", "ptrace", "ptrace"),
        ("unix_stream_socket", "connectto", "connect"),
    ],
)
def test_one_permission_too_many(kind: str, permission: str, use: str) -> None:
    vms, holds = three()
    sound = on_disks_too(policy())

    def ask(source: Context, target: Context, asked: str) -> Decision:
        found = sound(source, target, asked)
        theirs = not source.categories >= target.categories
        more = {permission} if theirs and asked == kind else set()
        return Decision(found.allowed | more, permissive=False)

    told = [one for one in cells(vms, holds, ask) if one.surplus or one.shortfall]
    assert told
    assert all(one.surplus == {use} and not one.shortfall for one in told)


@pytest.mark.parametrize("kind", ["file", "blk_file"])
def test_what_one_of_two_classes_keeps_back_is_a_shortfall(kind: str) -> None:
    vms, holds = three()
    sound = on_disks_too(policy())

    def ask(source: Context, target: Context, asked: str) -> Decision:
        found = sound(source, target, asked)
        less = {"write"} if asked == kind else set()
        return Decision(found.allowed - less, permissive=False)

    told = [one for one in cells(vms, holds, ask) if one.surplus or one.shortfall]
    assert [(one.vm_name, one.what) for one in told] == [
        ("vm0", "/srv/0.img"),
        ("vm1", "/srv/10.img"),
        ("vm2", "/srv/20.img"),
    ]
    assert all(one.shortfall == {"write"} and not one.surplus for one in told)


def test_a_device_is_asked_about_as_what_it_is() -> None:
    """A policy has rules of their own for character devices."""
    asked: list[str] = []

    def ask(_source: Context, _target: Context, kind: str) -> Decision:
        asked.append(kind)
        return Decision(frozenset({"read", "write", "append"}), permissive=False)

    one = vm(0, FEW[0])
    stick = nodes.number(189, 1, block=False)
    held = replace(hold(one, FEW[0], Access.EXCLUSIVE, 1), device=stick)
    (cell,) = cells([one], [held], ask)
    assert asked == ["chr_file"]
    assert cell.surplus == cell.shortfall == frozenset()
