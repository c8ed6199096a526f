# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a request makes of a VM: its set, its groups, its contexts, and the label of each resource.

Called inside the transaction that enters it, or, for a dry run, inside a read.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from svirtd.book import groups as group_rows
from svirtd.book import pool, registry, trees
from svirtd.book.connection import Database
from svirtd.core import foreign, goals, levels, zones
from svirtd.core.goals import Goal
from svirtd.core.groups import Group, moment, over, refuse_member, refuse_second_writer
from svirtd.core.mcs import format_categories, parse_categories, parse_context
from svirtd.core.model import (
    VM,
    Access,
    Caller,
    Contexts,
    Labeller,
    Lifetime,
    Request,
    Seen,
    State,
)
from svirtd.core.names import shown
from svirtd.core.plan import Plan, Sets, plan
from svirtd.core.pool import Permutation
from svirtd.core.rules import Asker
from svirtd.engine import walls
from svirtd.engine.calendar import now_us
from svirtd.engine.doors import Doors
from svirtd.engine.quotas import refuse_too_many
from svirtd.errors import Drift, InvalidArgs, NoSuchGroup, NotSupported, VMExists

OtherSets = frozenset[frozenset[int]]

# Foreign labels that a draw steps over before it gives up; each costs one lookup.
BLOCKED_LIMIT = 1024


class Draw(Protocol):
    """Takes the next rank, or looks which it would be."""

    def __call__(
        self,
        db: Database,
        permutation: Permutation,
        is_blocked: Callable[[int], bool],
        blocked_limit: int,
        /,
    ) -> int: ...


def decide(
    db: Database,
    doors: Doors,
    caller: Caller,
    request: Request,
    seen: Sequence[Seen],
    others: OtherSets,
    goal: Goal,
    draw: Draw,
) -> tuple[VM | None, VM, Plan]:
    """Return the VM that the book has, the VM that it becomes, and what each resource gets.

    `others` are the sets that the host's processes run under. Raises what concerns no resource:
    Drift, VMExists, LimitsExceeded, PoolExhausted, NoSuchGroup, AccessDenied, WallConflict,
    InvalidArgs.
    """
    known = _usable(db, request, caller)
    refuse_too_many(db, doors.config.limits, caller, len(seen), new=known is None)
    levels.refuse_outside(goal, levels.asked(request.level, doors.contexts.process))
    refuse_over(seen)
    writes = goal.writes_images(doors.contexts)
    members = _groups(db, doors, caller, request, known, others, goal, writes=writes)
    if members and doors.enforcement.levels:
        raise NotSupported(
            "groups: the loaded policy has levels (MLS), and under it a VM writes only what is at "
            "exactly its own level, categories included; with that of a group it could not write "
            "its own disk. Share with access 'public', at a level that each of the VMs dominates"
        )
    if known is None and request.categories:
        rank = _kept_rank(db, doors, request, others, draw)
    elif known is None:
        rank = draw(db, doors.permutation, _blocked(doors, others), BLOCKED_LIMIT)
    else:
        rank = _own_rank(doors, known, others)
    pair = doors.shape.categories_of(rank)
    sets = Sets(pair, {name: one.category for name, one in members.items()})
    contexts = goal.contexts(doors.contexts)
    vm = _vm(contexts, caller, request, known, rank, sets)
    walls.refuse(db, doors, vm)
    asker = Asker(caller.uid, request.overrides, request.labeller)
    devices = [one.device for one in seen if one.device]
    snapshot = registry.snapshot(db, [one.identity for one in seen], devices)
    if seen:
        snapshot = replace(snapshot, around=trees.around(db, seen))
    sets = _written(sets, request.labeller)
    decided = plan(vm.id, seen, snapshot, contexts, sets, goal, doors.rules, asker)
    if request.labeller is not Labeller.SVIRTD:
        # Whoever starts the VM sets them, after this; one file has one writer.
        decided = Plan(tuple(replace(one, step=None) for one in decided.decisions))
    if not doors.enforcement.levels and not _names_level(request):
        return known, vm, decided  # where there are no levels, nothing is at one
    process = parse_context(vm.process_context)
    return known, vm, levels.placed(decided, process, enforced=doors.enforcement.levels)


def _vm(
    contexts: Contexts,
    caller: Caller,
    request: Request,
    known: VM | None,
    rank: int,
    sets: Sets,
) -> VM:
    process = levels.at(
        goals.process_context(contexts, sets.pair, frozenset(sets.groups.values())),
        levels.asked(request.level, contexts.process),
    )
    written = _written(sets, request.labeller).pair
    own = goals.resource_context(contexts, Access.EXCLUSIVE, written)
    image = levels.beside(own, process)
    if known is None:
        return VM(
            id=secrets.token_hex(8),
            name=request.name,
            owner_uid=caller.uid,
            state=State.RESERVED,
            reason="",
            goal=request.goal,
            uuid=request.uuid,
            rank=rank,
            categories=format_categories(sets.pair),
            process_context=str(process),
            image_context=str(image),
            unit="",
            main_pid=0,
            runtime_dir="",
            persistent=request.persistent,
            lifetime=request.lifetime,
            caller=caller.unique_name if request.lifetime is Lifetime.CALLER else "",
            created_us=now_us(),
            groups=tuple(sets.groups),
            labeller=request.labeller,
        )
    return replace(
        known,
        goal=request.goal,
        uuid=request.uuid or known.uuid,
        process_context=str(process),
        image_context=str(image),
        lifetime=request.lifetime,
        caller=caller.unique_name if request.lifetime is Lifetime.CALLER else "",
        groups=tuple(sets.groups),
        labeller=request.labeller,
    )


def _written(sets: Sets, labeller: Labeller) -> Sets:
    """Return the sets as they are written on what a VM alone uses.

    libvirt gives such a disk all categories of the VM's process: with one of a group, too. No other
    member of the group has the pair in it.
    """
    if labeller is Labeller.SVIRTD:
        return sets
    return replace(sets, pair=sets.pair | frozenset(sets.groups.values()))


def _usable(db: Database, request: Request, caller: Caller) -> VM | None:
    name = request.name
    known = registry.vm_by_name(db, name)
    if known is not None and caller.uid not in (0, known.owner_uid):
        # Also one that holds nothing: its set, once known, must not become another user's.
        raise VMExists(f"a VM of another user is named {name!r}; take another name")
    if known is not None and not (known.persistent and known.state is State.RESERVED):
        raise VMExists(
            f"VM {name!r} exists and is {known.state.value}; release it first, or take another name"
        )
    if known is not None and request.labeller is Labeller.LIBVIRT and known.uuid != request.uuid:
        # A copy of a domain's description has the label of the first, and must not get its set.
        raise VMExists(
            f"VM {name!r} is the domain with UUID {known.uuid or '(none)'}, not {request.uuid}; "
            "if this one is a copy, give it a set of its own: svirtctl libvirt adopt"
        )
    return known


def _blocked(doors: Doors, others: OtherSets) -> Callable[[int], bool]:
    """Invariant 4: a set that overlaps one in use by somebody else is never handed out."""
    return lambda rank: foreign.overlaps(doors.shape.categories_of(rank), others)


def _own_rank(doors: Doors, known: VM, others: OtherSets) -> int:
    """Return the rank that a persistent VM keeps, if nobody else runs under its set meanwhile."""
    if foreign.overlaps(doors.shape.categories_of(known.rank), others):
        raise Drift(
            f"the categories of VM {known.name!r}, {known.categories}, are those of a process that "
            "svirtd did not start for it now: svirtctl verify names it; end that process, or "
            "forget the VM to have it get others"
        )
    return known.rank


def _kept_rank(db: Database, doors: Doors, request: Request, others: OtherSets, draw: Draw) -> int:
    """Return the rank that a VM brings along from another host, if it is nobody's here."""
    found = parse_categories(request.categories) - doors.config.group_categories
    try:
        rank = doors.shape.rank_of(found)
    except ValueError as error:
        raise InvalidArgs(
            f"options: categories {request.categories} have no set in them that svirtd gives here "
            f"([labels] private: {error}); leave them out to have the VM get another one"
        ) from None
    refusal = Drift(
        f"the categories {format_categories(found)}, which VM {request.name!r} has where it comes "
        "from, are somebody else's on this host (svirtctl owners, svirtctl foreign): adopt the "
        "domain anew, so that it gets others"
    )
    if foreign.overlaps(doors.shape.categories_of(rank), others) or pool.taken(db, rank):
        raise refusal
    if draw is pool.draw_rank:
        pool.claim(db, doors.permutation, rank)
    return rank


def _names_level(request: Request) -> bool:
    return bool(request.level) or any(one.terms.level for one in request.resources)


def refuse_over(seen: Sequence[Seen]) -> None:
    """Raise InvalidArgs for a lease that ends before it begins."""
    for one in seen:
        if 0 < one.terms.until_us <= now_us():
            raise InvalidArgs(
                f"{one.named}: 'until' is over already, {moment(one.terms.until_us)}; give a time "
                "to come"
            )


# -- groups -------------------------------------------------------------------------------------


def _groups(
    db: Database,
    doors: Doors,
    caller: Caller,
    request: Request,
    known: VM | None,
    others: OtherSets,
    goal: Goal,
    *,
    writes: bool,
) -> Mapping[str, Group]:
    """Return the groups that the VM is in for this run: its lasting ones, and the request's.

    Each is looked at again at each start: what was granted may have ended since it was joined.
    """
    owner_uid = caller.uid if known is None else known.owner_uid
    lasting = () if known is None else known.lasting
    found: dict[str, Group] = {}
    now = now_us()
    for name in sorted({*lasting, *request.groups}):
        group = group_named(db, name)
        grant = group_rows.grant_of(db, name, request.name)
        if name not in request.groups and grant is not None and over(grant, now):
            continue  # lost, and not asked for again
        refuse_member(group, request.name, owner_uid, caller.uid == 0, grant, now)
        found[name] = group
    for group in found.values():
        writers = [
            (vm.name, goals.writes_images(vm, doors.contexts))
            for vm in group_rows.members_now(db, group.name)
        ]
        refuse_second_writer(group, request.name, writes=writes, others=writers)
    zones.refuse_by_goal(goal, request.name, tuple(found.values()))
    if found:
        refuse_meeting(db, request.name, tuple(found.values()))
        refuse_foreign_members(db, list(found.values()), others)
    return found


def group_named(db: Database, name: str) -> Group:
    """Return the group of this name. Raises NoSuchGroup."""
    group = group_rows.by_name(db, name)
    if group is None:
        raise NoSuchGroup(f"no group is named {shown(name)}; see svirtctl group list")
    return group


def refuse_meeting(db: Database, vm_name: str, groups: Sequence[Group]) -> None:
    """Raise WallConflict if zones would meet in a VM of this name with these groups."""
    members = {
        group.name: {
            vm.name: _zones(db, vm)
            for vm in group_rows.members(db, group.name)
            if vm.name != vm_name
        }
        for group in groups
    }
    zones.refuse_meeting(vm_name, groups, members)


def _zones(db: Database, vm: VM) -> frozenset[str]:
    """Return the zones that a VM is in, and those that it is to be in at its next start."""
    names = {*vm.groups, *vm.lasting}
    found = (group_rows.by_name(db, name) for name in names)
    return frozenset(one.name for one in found if one is not None and one.namespace)


def refuse_foreign_members(db: Database, groups: Sequence[Group], others: OtherSets) -> None:
    """Raise Drift if a process that is none of svirtd's VMs carries the category of a group.

    One category is all that a group's resources ask for: such a process, a VM of libvirt's with a
    pair of its own, say, would be let in. That it gets such a pair cannot be kept from here.
    """
    for group in groups:
        members = group_rows.members_now(db, group.name)
        ours = {parse_context(vm.process_context).categories for vm in members}
        for one in others - ours:
            if group.category in one:
                raise Drift(
                    f"a process that svirtd did not start has category c{group.category} of group "
                    f"{group.name!r} (it runs under {format_categories(one)}), and could use what "
                    "the group shares: svirtctl verify names it; end it, or make another group"
                )
