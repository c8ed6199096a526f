# SPDX-License-Identifier: LGPL-2.1-or-later
"""The goals of this host, and whether the loaded policy keeps them."""

from dataclasses import replace

from svirtd.core import goals
from svirtd.core.goals import Goal, Goals, Network
from svirtd.core.mcs import parse_context
from svirtd.core.model import Access, Contexts, Request
from svirtd.engine.enforcement import Enforcement
from svirtd.errors import InvalidArgs, LabelRefused


def refuse_to_acquire(goal: Goal, request: Request) -> None:
    """Raise InvalidArgs for what takes a unit that svirtd starts.

    A VM that somebody else starts has no network where its type says so; into the namespace of a
    zone nothing but its start could put it, and its overlays are where only its start makes them.
    """
    if goal.network is Network.ZONE:
        raise InvalidArgs(
            f"goal {goal.name!r} puts a VM into the network of its zone, which only a launch can; "
            "launch it, or acquire with another goal"
        )
    if any(one.terms.takes for one in request.resources):
        raise InvalidArgs("'overlay' is for a launch: who starts the VM himself makes his overlays")


def as_used(goal: Goal, base: Contexts, request: Request) -> Request:
    """Return a request of a VM with this goal, in which what it will only read is said to be read.

    What a group writes is held with one access by all; a member whose domain writes none of it need
    not be let write the file to read it.
    """
    if goal.writes_images(base):
        return request
    return replace(
        request,
        resources=tuple(
            replace(one, terms=replace(one.terms, reads=True))
            if one.access is Access.GROUP
            else one
            for one in request.resources
        ),
    )


class SiteGoals:
    """The built-in goals and the site's. `known` is exchanged as a whole when they are reloaded."""

    def __init__(self, known: Goals, enforcement: Enforcement, base: Contexts) -> None:
        self.known = known
        self._enforcement = enforcement
        self._base = base

    def named(self, name: str) -> Goal:
        """Return the goal of this name. Raises InvalidArgs that lists the known ones."""
        return goals.named(self.known, name)

    def problem(self, goal: Goal) -> str:
        """Say why the loaded policy cannot keep this goal, empty if it can.

        A type is no more than a name: whether VMs under it are kept apart, whether it may do what
        the goal forbids, and whether it is there at all is asked of the kernel. So a goal can name
        no type that is not one of VMs.
        """
        return self._enforcement.problem(goal)

    def refuse_unkept(self, goal: Goal) -> None:
        """Raise LabelRefused if the loaded policy cannot keep this goal.

        Asked each time that a goal is used: another policy may have been loaded meanwhile. What is
        wrong with the base contexts is not a goal's: Enforcement.refuse_unprotected().
        """
        problem = self.problem(goal)
        if problem and self._enforcement.required:
            raise LabelRefused(
                f"goal {goal.name!r} cannot be kept by the loaded policy: {problem}. The types of "
                "the built-in goals are in svirtd's policy module: load it (semodule -i, see "
                f"svirtd(8)); this goal is from {goal.source}"
            )

    def of_process(self, context: str) -> Goal | None:
        """Return the goal of VMs whose processes run under a context's type, None if no goal's."""
        try:
            found = parse_context(context).type
        except ValueError:
            return None
        return goals.of_type(self.known, self._base, found)

    def image_types(self) -> frozenset[str]:
        """Return the types of what VMs write, whatever their goal."""
        return goals.image_types(self.known.values(), self._base)
