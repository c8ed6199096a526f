# SPDX-License-Identifier: LGPL-2.1-or-later
"""Groups: sets of VMs that share resources, and who may be in them. Pure."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from svirtd.errors import AccessDenied, ResourceBusy


class AtEnd(enum.StrEnum):
    """What happens to a running VM whose lease has ended: it is told of, it is released, or, of a
    resource alone, the VM runs on without it."""

    REPORT = "report"
    STOP = "stop"
    DETACH = "detach"


class Writers(enum.StrEnum):
    """Which members of a group may run in a domain that writes what the group shares."""

    ALL = "all"
    ONE = "one"


@dataclass(frozen=True, slots=True)
class Group:
    """A set of VMs that share resources. `namespace` is the network of a zone, empty for others."""

    name: str
    category: int
    owner_uid: int
    created_us: int
    writers: Writers = Writers.ALL
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """That VM `vm_name` of `owner_uid` may be in a group, until `until_us` (0: without end).

    `told`: that it has ended was reported.
    """

    group: str
    vm_name: str
    owner_uid: int
    until_us: int
    at_end: AtEnd
    since_us: int
    told: bool = False


@dataclass(frozen=True, slots=True)
class GroupView:
    """A group with its members, now or from a next start on (name, owner), and its grants."""

    group: Group
    members: tuple[tuple[str, int], ...] = ()
    grants: tuple[Grant, ...] = ()


def over(grant: Grant, now_us: int) -> bool:
    """Say whether a grant's end has come."""
    return 0 < grant.until_us <= now_us


def refuse_member(
    group: Group, vm_name: str, owner_uid: int, by_root: bool, grant: Grant | None, now_us: int
) -> None:
    """Raise AccessDenied unless a VM of `owner_uid` may be in a group.

    The one place that decides who shares what a group has. It is the group's owner who says with
    whom: VMs of his own may, and of others those that were granted it, by name and owner, so that
    no stranger gets in by taking a name first. A grant with an end binds his own VMs, too: else a
    lease would end for others only.
    """
    if grant is not None and grant.owner_uid == owner_uid:
        if not over(grant, now_us):
            return
        raise AccessDenied(
            f"what was granted to VM {vm_name!r} in group {group.name!r} ended at "
            f"{moment(grant.until_us)}; have it granted again (svirtctl group grant)"
        )
    if owner_uid != group.owner_uid and not by_root:
        raise AccessDenied(
            f"group {group.name!r} belongs to uid {group.owner_uid}, and nothing in it was granted "
            f"to VM {vm_name!r} of uid {owner_uid}; ask for it (svirtctl group grant "
            f"{group.name} {vm_name})"
        )


def refuse_second_writer(
    group: Group, vm_name: str, *, writes: bool, others: Sequence[tuple[str, bool]]
) -> None:
    """Raise ResourceBusy if a VM whose domain writes would be the second one in such a group.

    `others` are the members that have the group's category now, and whether their domains write.
    What a member may do is what its domain may: the kernel asks no book who holds what.
    """
    if group.writers is Writers.ALL or not writes:
        return
    for name, other_writes in others:
        if other_writes:
            raise ResourceBusy(
                f"group {group.name!r} has one writer, VM {name!r}; release it first, or start "
                f"{vm_name!r} with a goal whose domain only reads (view-only)"
            )


def moment(us: int) -> str:
    """Return microseconds since 1970 as a person reads them, in UTC."""
    return datetime.fromtimestamp(us / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
