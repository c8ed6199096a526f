# SPDX-License-Identifier: LGPL-2.1-or-later
"""Goals: what a VM is for, as rules about labels. `isolated` needs no policy of its own."""

from dataclasses import dataclass

from svirtd.core.mcs import Context
from svirtd.core.model import Access, Contexts
from svirtd.errors import InvalidArgs


@dataclass(frozen=True, slots=True)
class Goal:
    """A named bundle of rules. `accesses` are those that a resource of such a VM may have.

    `writes_images`: whether its domain may write the image type; a VM of one that may not only
    reads what the other members of a group write.
    """

    name: str
    accesses: frozenset[Access]
    writes_images: bool = True


ISOLATED = Goal("isolated", frozenset(Access))
_GOALS = {ISOLATED.name: ISOLATED}


def goal(name: str) -> Goal:
    """Return the goal of this name. Raises InvalidArgs that lists the known ones."""
    found = _GOALS.get(name)
    if found is None:
        raise InvalidArgs(f"goal {name!r} is not known; known goals: {', '.join(sorted(_GOALS))}")
    return found


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
            # Nothing else: one category of a member's own would keep the other members out.
            return contexts.image.with_categories(frozenset({group}))
        case Access.READONLY:
            # The content type is what the policy lets a VM read and not write.
            return contexts.content.with_categories(pair if group is None else frozenset({group}))
        case Access.PUBLIC:
            # No category: every VM's set contains the empty one.
            return contexts.content.with_categories(frozenset())
