# SPDX-License-Identifier: LGPL-2.1-or-later
"""Zones never meet: in no VM, and through nothing that a group shares; over any history."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svirtd.core.goals import BUILT_INS, ISOLATED, GroupRule
from svirtd.core.groups import Group
from svirtd.core.zones import refuse_by_goal, refuse_meeting, zone_of
from svirtd.errors import InvalidArgs, SvirtError, WallConflict

RED = Group("red", 1, 0, 0, namespace="/run/netns/red")
BLUE = Group("blue", 2, 0, 0, namespace="/run/netns/blue")
DATA = Group("data", 3, 0, 0)
MORE = Group("more", 4, 0, 0)
ZONE, OFFLINE = BUILT_INS["network-zone"], BUILT_INS["offline"]


def test_two_zones_do_not_meet_in_a_vm() -> None:
    assert zone_of("vm", [DATA, RED]) == RED
    assert zone_of("vm", [DATA]) is None
    with pytest.raises(WallConflict, match="zones 'blue' and 'red' would meet in VM 'vm'"):
        zone_of("vm", [RED, DATA, BLUE])


def test_they_do_not_meet_in_what_a_group_shares() -> None:
    refuse_meeting("a", [RED, DATA], {"data": {"b": frozenset({"red"})}})
    refuse_meeting("a", [DATA], {"data": {"b": frozenset()}})
    with pytest.raises(
        WallConflict,
        match=r"VM 'a' \(in zone red\) and VM 'b' \(in zone blue\) would share group 'data'",
    ):
        refuse_meeting("a", [RED, DATA], {"data": {"b": frozenset({"blue"})}})
    for groups, theirs in (([RED, DATA], frozenset[str]()), ([DATA], frozenset({"red"}))):
        with pytest.raises(WallConflict, match="in no zone"):
            refuse_meeting("a", groups, {"data": {"b": theirs}})


def test_members_of_the_zone_itself_are_of_one_zone_anyway() -> None:
    refuse_meeting("a", [RED], {"red": {"b": frozenset({"red"})}})


@pytest.mark.parametrize(
    ("goal", "groups", "told"),
    [
        (BUILT_INS["forensic"], [DATA], "allows no groups, and VM 'vm' would be in data"),
        (replace(ISOLATED, groups=GroupRule.REQUIRED), [], "takes a group, and VM 'vm' is in none"),
        (replace(ISOLATED, groups=frozenset({"more"})), [DATA, MORE], "would be in data"),
        (ZONE, [], "takes a group, and VM 'vm' is in none"),
        (ZONE, [DATA], "takes a group that is a zone"),
        (ISOLATED, [RED], "group 'red' is a zone: a VM in it has the network of the zone or none"),
    ],
)
def test_what_a_goal_says_of_groups(goal, groups, told) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidArgs) as refused:
        refuse_by_goal(goal, "vm", groups)
    assert told in str(refused.value)


def test_what_a_goal_allows() -> None:
    refuse_by_goal(ISOLATED, "vm", [DATA, MORE])
    refuse_by_goal(replace(ISOLATED, groups=frozenset({"data"})), "vm", [DATA])
    refuse_by_goal(replace(ISOLATED, groups=frozenset({"data"})), "vm", [])
    refuse_by_goal(ZONE, "vm", [RED, DATA])
    refuse_by_goal(OFFLINE, "vm", [RED])
    with pytest.raises(WallConflict):
        refuse_by_goal(ZONE, "vm", [RED, BLUE])


_GROUPS = {one.name: one for one in (RED, BLUE, DATA, MORE)}
_EVENTS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.one_of(st.none(), st.sets(st.sampled_from(sorted(_GROUPS)), max_size=3)),
    ),
    max_size=30,
)


@given(_EVENTS)
def test_over_any_history_of_starts_and_ends(
    events: list[tuple[str, set[str] | None]],
) -> None:
    """Whatever starts and ends, two VMs that share something have the same network."""
    running: dict[str, frozenset[str]] = {}
    for name, wanted in events:
        running.pop(name, None)
        if wanted is None:
            continue
        groups = [_GROUPS[one] for one in sorted(wanted)]
        zone = any(one.namespace for one in groups)
        try:
            refuse_by_goal(ZONE if zone else ISOLATED, name, groups)
            refuse_meeting(name, groups, _members(running))
        except SvirtError:
            continue
        running[name] = frozenset(wanted)
        for one in running.values():
            assert len(_zones(one)) <= 1
            for other in running.values():
                if one & other:
                    assert _zones(one) == _zones(other)


def _zones(names: frozenset[str]) -> frozenset[str]:
    return names & {"red", "blue"}


def _members(running: Mapping[str, frozenset[str]]) -> dict[str, dict[str, frozenset[str]]]:
    return {
        group: {vm: _zones(names) for vm, names in running.items() if group in names}
        for group in _GROUPS
    }
