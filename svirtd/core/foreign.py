# SPDX-License-Identifier: LGPL-2.1-or-later
"""Category sets in use on the host that svirtd did not give: libvirt's, a container's. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from svirtd.core.mcs import parse_context
from svirtd.core.model import Process


def sets(processes: Iterable[Process], private: frozenset[int]) -> frozenset[frozenset[int]]:
    """Return the category sets that these processes run under.

    One with every category of the private pool is not a VM that could meet another, it oversees
    them all (an administrator's shell, say): no set could be drawn that it does not contain.
    """
    found = {categories_of(one) for one in processes}
    return frozenset(one for one in found if one and not private <= one)


@dataclass(frozen=True, slots=True)
class ForeignSet:
    """A set of categories that somebody else's processes run under, by their context."""

    context: str
    categories: frozenset[int]
    pids: tuple[int, ...]


def by_context(
    processes: Iterable[Process], ours: Collection[str], private: frozenset[int]
) -> list[ForeignSet]:
    """Return the sets in use that are no VM's of svirtd, those of the lowest process first.

    `ours` are the contexts of its VMs. Left out is whoever has no category, and whoever has all of
    the private pool, as sets() does.
    """
    found: dict[str, list[int]] = {}
    for process in processes:
        categories = categories_of(process)
        if categories and not private <= categories and process.context not in ours:
            found.setdefault(process.context, []).append(process.pid)
    return [
        ForeignSet(context, parse_context(context).categories, tuple(pids))
        for context, pids in found.items()
    ]


def categories_of(process: Process) -> frozenset[int]:
    """Return a process's categories, those of its clearance; none for what is not a context."""
    try:
        return parse_context(process.context).categories
    except ValueError:
        return frozenset()


def overlaps(pair: frozenset[int], others: frozenset[frozenset[int]]) -> bool:
    """Say whether a private set and one of these give one of the two access to what is the other's.

    That takes all categories of an object, so that sets which share a category and differ in
    another keep each other out.
    """
    return any(pair <= one or one <= pair for one in others)
