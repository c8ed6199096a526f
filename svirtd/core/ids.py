# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a VM holds by a plan, and what that is called: as the request says, else r1, r2 … Pure."""

from collections.abc import Collection, Sequence
from itertools import count

from svirtd.core.model import VM, Hold, Seen
from svirtd.core.plan import Decision


def named(
    seen: Sequence[Seen], first: int = 0, taken: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Return for each resource its id, and the id of the one under which it lies.

    `taken` are the ids that the VM's other resources have, and `first` is above their numbers: the
    id of what was just detached is not the next one's. Made ones give way to those that are given,
    wherever they stand in the request.
    """
    used = {one.terms.id for one in seen} | set(taken)
    made = (f"r{number}" for number in count(first + 1))
    ids = [one.terms.id or next(id_ for id_ in made if id_ not in used) for one in seen]
    # A part names what it lies under by the id that was given for it, or else by its path.
    by_path = {one.path: id_ for one, id_ in zip(seen, ids, strict=True)}
    return [
        (id_, by_path.get(one.terms.part_of, one.terms.part_of))
        for one, id_ in zip(seen, ids, strict=True)
    ]


def holds_for(
    vm: VM, decisions: Sequence[Decision], first: int = 0, taken: Collection[str] = ()
) -> tuple[Hold, ...]:
    """Return what a VM holds by these decisions, numbered from `first` on.

    `taken` are the ids that its other holds have.
    """
    names = named([d.seen for d in decisions], first, taken)
    return tuple(
        Hold(
            vm.id,
            vm.name,
            d.seen.identity,
            d.seen.path,
            d.seen.access,
            d.target,
            d.original,
            d.original_known,
            owner_uid=vm.owner_uid,
            group=d.seen.terms.group,
            name=name,
            until_us=d.seen.terms.until_us,
            at_end=d.seen.terms.at_end,
            number=number,
            part_of=part_of,
            recursive=d.seen.terms.recursive,
            device=d.seen.device,
        )
        for number, (d, (name, part_of)) in enumerate(zip(decisions, names, strict=True), first)
    )
