# SPDX-License-Identifier: LGPL-2.1-or-later
"""Goals: what a VM is for, as rules about its labels, its unit and what it writes. Pure.

A goal says under which type the VM's processes run. That is worth what the loaded policy makes of
the type: the kernel is asked about it whenever the goal is used (engine/goals.py), and a goal that
it cannot keep is refused.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from svirtd.core.mcs import Context, parse_context
from svirtd.core.model import VM, Access, Contexts
from svirtd.core.names import shown
from svirtd.errors import InvalidArgs

BUILT_IN: Final = "built-in"


class GroupRule(enum.StrEnum):
    """Which groups a VM may be in."""

    ANY = "any"
    NONE = "none"
    REQUIRED = "required"


class Network(enum.StrEnum):
    """Which network a VM has: the host's, none, or that of its zone."""

    HOST = "host"
    NONE = "none"
    ZONE = "zone"


class Written(enum.StrEnum):
    """What becomes of what a VM writes to a disk that it only reads.

    `kept`: it cannot write it, and that is all. `overlay`: it writes beside it, to an overlay.
    """

    KEPT = "kept"
    OVERLAY = "overlay"


@dataclass(frozen=True, slots=True)
class Goal:
    """A named bundle of rules.

    `accesses` are those that a resource of such a VM may have. A type that is empty is that of the
    base contexts. `groups` is a rule, or the names of the groups that a VM may be in. `devices` are
    the only device nodes that a VM may open, None: whatever the host lets it. `levels` are the
    lowest and the highest sensitivity that a VM may ask for, None: whatever the policy knows.
    `source` is the file that it comes from.
    """

    name: str
    accesses: frozenset[Access]
    description: str = ""
    default_access: Access = Access.EXCLUSIVE
    process_type: str = ""
    image_type: str = ""
    groups: GroupRule | frozenset[str] = GroupRule.ANY
    network: Network = Network.HOST
    devices: tuple[str, ...] | None = None
    levels: tuple[int, int] | None = None
    written: Written = Written.KEPT
    digest: bool = False
    source: str = BUILT_IN

    def contexts(self, base: Contexts) -> Contexts:
        """Return the base contexts of a VM with this goal."""
        if not self.process_type and not self.image_type:
            return base  # as most VMs are; making them anew costs more than the rest of a goal
        return replace(
            base,
            process=base.process.with_type(self.process_type or base.process.type),
            image=base.image.with_type(self.image_type or base.image.type),
            shared=base.image if self.image_type else None,
        )

    def writes_images(self, base: Contexts) -> bool:
        """Whether a VM writes what a group shares: it has no other type of what it writes.

        One that has only reads what the other members of a group write.
        """
        return self.image_type in ("", base.image.type)


Goals = Mapping[str, Goal]

_SCRATCH: Final = "svirtd_scratch_t"
ISOLATED: Final = Goal(
    "isolated",
    frozenset(Access),
    "A VM for itself: what it holds is its own, and no VM reaches another.",
)
_ALL: Final = (
    ISOLATED,
    replace(
        ISOLATED,
        name="offline",
        description="As isolated, and without any network: control sockets are all that it has.",
        process_type="svirtd_offline_t",
        network=Network.NONE,
    ),
    Goal(
        "forensic",
        frozenset({Access.READONLY, Access.EXCLUSIVE}),
        "Evidence is read by this VM alone and written by nobody; its digest is taken before and "
        "compared after. Writes go to an overlay. No network.",
        default_access=Access.READONLY,
        process_type="svirtd_view_t",
        image_type=_SCRATCH,
        groups=GroupRule.NONE,
        network=Network.NONE,
        devices=("/dev/kvm",),
        written=Written.OVERLAY,
        digest=True,
    ),
    Goal(
        "view-only",
        # What the others of a group write it reads.
        frozenset({Access.READONLY, Access.PUBLIC, Access.GROUP}),
        "Documents are read and nothing is kept: writes go to an overlay that ends with the VM. "
        "No network.",
        default_access=Access.READONLY,
        process_type="svirtd_view_t",
        image_type=_SCRATCH,
        network=Network.NONE,
        devices=("/dev/kvm",),
        written=Written.OVERLAY,
    ),
    replace(
        ISOLATED,
        name="network-zone",
        description="As isolated, with the network of its zone and no other: exactly one of its "
        "groups is a zone.",
        process_type="svirtd_zone_t",
        groups=GroupRule.REQUIRED,
        network=Network.ZONE,
    ),
)
BUILT_INS: Final[Goals] = {one.name: one for one in _ALL}


def named(known: Goals, name: str) -> Goal:
    """Return the goal of this name. Raises InvalidArgs that lists the known ones."""
    found = known.get(name)
    if found is None:
        raise InvalidArgs(
            f"goal {shown(name)} is not known; known goals: {', '.join(sorted(known))}; "
            "svirtctl goals explains them"
        )
    return found


def of_type(known: Goals, base: Contexts, process_type: str) -> Goal | None:
    """Return the goal of VMs whose processes have this type, None if no goal has it.

    Several may have it: then the first of them, built-in ones before others.
    """
    return next(
        (one for one in known.values() if one.contexts(base).process.type == process_type), None
    )


def image_types(known: Iterable[Goal], base: Contexts) -> frozenset[str]:
    """Return the types of what VMs with these goals write."""
    return frozenset({base.image.type, *(one.contexts(base).image.type for one in known)})


def writes_images(vm: VM, base: Contexts) -> bool:
    """Say whether a VM writes what a group shares: by its contexts, whatever its goal means now."""
    return parse_context(vm.image_context).type == base.image.type


def process_context(
    contexts: Contexts, pair: frozenset[int], groups: frozenset[int] = frozenset()
) -> Context:
    """Return the context that the VM's processes run under; `groups` are its groups' categories."""
    return contexts.process.with_categories(pair | groups)


def resource_context(
    contexts: Contexts, access: Access, pair: frozenset[int], group: int | None = None
) -> Context:
    """Return the context that a resource held with `access` carries (design: the label algebra).

    `group` is the category of the group that shares it. ValueError where access needs one.
    """
    match access:
        case Access.EXCLUSIVE:
            return contexts.image.with_categories(pair)
        case Access.GROUP:
            if group is None:
                raise ValueError("access 'group' without a group")
            # Nothing else: one category of a member's own would keep the other members out. And one
            # type, whatever each of them writes besides.
            return (contexts.shared or contexts.image).with_categories(frozenset({group}))
        case Access.READONLY:
            # The content type is what the policy lets a VM read and not write.
            return contexts.content.with_categories(pair if group is None else frozenset({group}))
        case Access.PUBLIC:
            # No category: every VM's set contains the empty one.
            return contexts.content.with_categories(frozenset())
