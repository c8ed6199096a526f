# SPDX-License-Identifier: LGPL-2.1-or-later
"""Goals: what a VM is for, as rules about labels. `isolated` needs no policy of its own."""

from dataclasses import dataclass

from svirtd.core.mcs import Context
from svirtd.core.model import Access, Contexts
from svirtd.errors import InvalidArgs


@dataclass(frozen=True, slots=True)
class Goal:
    """A named bundle of rules. `accesses` are those that a resource of such a VM may have."""

    name: str
    accesses: frozenset[Access]


ISOLATED = Goal("isolated", frozenset(Access))
_GOALS = {ISOLATED.name: ISOLATED}


def goal(name: str) -> Goal:
    """Return the goal of this name. Raises InvalidArgs that lists the known ones."""
    found = _GOALS.get(name)
    if found is None:
        raise InvalidArgs(f"goal {name!r} is not known; known goals: {', '.join(sorted(_GOALS))}")
    return found


def process_context(contexts: Contexts, pair: frozenset[int]) -> Context:
    """Return the context that the VM's processes run under."""
    return contexts.process.with_categories(pair)


def resource_context(contexts: Contexts, access: Access, pair: frozenset[int]) -> Context:
    """Return the context that a resource held with `access` carries (design: the label algebra)."""
    match access:
        case Access.EXCLUSIVE:
            return contexts.image.with_categories(pair)
        case Access.READONLY:
            # The content type is what the policy lets a VM read and not write.
            return contexts.content.with_categories(pair)
        case Access.PUBLIC:
            # No category: every VM's set contains the empty one.
            return contexts.content.with_categories(frozenset())
