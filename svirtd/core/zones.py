# SPDX-License-Identifier: LGPL-2.1-or-later
"""Zones: groups with a network of their own, which never meet. Pure.

A VM is in one zone at most, and has no other network then. What a group that is no zone shares
would lead from one network into the other if members of two zones had it, or one in a zone and one
in none: so all its members are of one zone.
"""

from collections.abc import Mapping, Sequence

from svirtd.core.goals import Goal, GroupRule, Network
from svirtd.core.groups import Group
from svirtd.errors import InvalidArgs, WallConflict


def refuse_by_goal(goal: Goal, vm_name: str, groups: Sequence[Group]) -> None:
    """Raise InvalidArgs unless a VM with this goal may be in these groups. Raises WallConflict."""
    names = {group.name for group in groups}
    zone = zone_of(vm_name, groups)
    if goal.groups is GroupRule.NONE and names:
        raise InvalidArgs(
            f"goal {goal.name!r} allows no groups, and VM {vm_name!r} would be in "
            f"{', '.join(sorted(names))}"
        )
    if goal.groups is GroupRule.REQUIRED and not names:
        raise InvalidArgs(
            f"goal {goal.name!r} takes a group, and VM {vm_name!r} is in none; name one among the "
            "groups of the request, or join the VM to it"
        )
    if isinstance(goal.groups, frozenset) and not names <= goal.groups:
        raise InvalidArgs(
            f"goal {goal.name!r} allows the groups {', '.join(sorted(goal.groups))}, and VM "
            f"{vm_name!r} would be in {', '.join(sorted(names - goal.groups))}"
        )
    if goal.network is Network.ZONE and zone is None:
        raise InvalidArgs(
            f"goal {goal.name!r} takes a group that is a zone, and VM {vm_name!r} would be in "
            "none; name one among the groups of the request, or join the VM to it"
        )
    if goal.network is Network.HOST and zone is not None:
        raise InvalidArgs(
            f"group {zone.name!r} is a zone: a VM in it has the network of the zone or none, and "
            f"goal {goal.name!r} gives it the host's; take goal network-zone or offline"
        )


def zone_of(vm_name: str, groups: Sequence[Group]) -> Group | None:
    """Return the zone among a VM's groups, None without one. Raises WallConflict for two."""
    zones = sorted((group for group in groups if group.namespace), key=lambda one: one.name)
    if len(zones) > 1:
        raise WallConflict(
            f"zones {zones[0].name!r} and {zones[1].name!r} would meet in VM {vm_name!r}; a VM is "
            "in one zone at most"
        )
    return zones[0] if zones else None


def refuse_meeting(
    vm_name: str, groups: Sequence[Group], members: Mapping[str, Mapping[str, frozenset[str]]]
) -> None:
    """Raise WallConflict if zones would meet in a VM with these groups, or in what they share.

    `members` are, by group, the other VMs that are in it or are to be, each with its zones.
    """
    zone = zone_of(vm_name, groups)
    mine = frozenset({zone.name} if zone is not None else ())
    for group in groups:
        if group.namespace:
            continue  # all its members are of this zone, and of no other
        for other, theirs in members.get(group.name, {}).items():
            if theirs != mine:
                raise WallConflict(
                    f"{_where(vm_name, mine)} and {_where(other, theirs)} would share group "
                    f"{group.name!r}, and networks would meet there; make a group for each zone"
                )


def _where(vm_name: str, zones: frozenset[str]) -> str:
    told = f"in zone {', '.join(sorted(zones))}" if zones else "in no zone"
    return f"VM {vm_name!r} ({told})"
