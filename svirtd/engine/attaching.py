# SPDX-License-Identifier: LGPL-2.1-or-later
"""What attaching a resource to a VM that is up changes. Called inside the transaction of that.

The rules are those of a start. What differs: the VM's processes have the categories that they have,
and what the VM holds already gets another access in place.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from svirtd.book import groups as group_rows
from svirtd.book import registry, trees
from svirtd.book.store import Database
from svirtd.core import leases, levels
from svirtd.core.goals import Goal
from svirtd.core.groups import refuse_member
from svirtd.core.ids import holds_for
from svirtd.core.mcs import parse_context
from svirtd.core.model import (
    VM,
    Access,
    Caller,
    Hold,
    Identity,
    Labeller,
    OperationKind,
    Override,
    Request,
    Seen,
    Snapshot,
    Step,
)
from svirtd.core.plan import Decision, Sets, plan
from svirtd.core.rules import Asker
from svirtd.engine import attached
from svirtd.engine.attached import Changing, Guesses
from svirtd.engine.calendar import now_us
from svirtd.engine.decide import OtherSets, group_named, refuse_foreign_members, refuse_over
from svirtd.engine.doors import Doors
from svirtd.engine.entries import shared
from svirtd.engine.events import Entry
from svirtd.engine.quotas import refuse_more
from svirtd.errors import Failed, InvalidArgs, LimitsExceeded, ResourceBusy, ResourceRefused


@dataclass(frozen=True, slots=True)
class Replaced:
    """A hold in whose place another one comes.

    `leaving` is what the VM loses by that. Where that is nothing the hold stays, as the VM's own
    under the new one, and is only read from now on.
    """

    hold: Hold
    leaving: tuple[Hold, ...] = ()

    @property
    def keeps(self) -> bool:
        """Whether the hold stays."""
        return not self.leaving

    @property
    def changes(self) -> bool:
        """Whether its label has to change for that."""
        return self.keeps and self.hold.access.writes


@dataclass(frozen=True, slots=True)
class Attaching:
    """For whom something is attached, by which request, in place of what."""

    caller: Caller
    vm: VM
    request: Request
    goal: Goal
    replaced: Replaced | None


def begin(
    db: Database,
    doors: Doors,
    asked: Attaching,
    found: Sequence[Seen],
    others: OtherSets,
    guesses: Guesses,
) -> tuple[Changing, Hold]:
    """Enter what a VM gets, and what leaves it for that; returns the hold of what was asked for,
    too. `found` has what was asked for first, behind it what lies under that, and last what stays
    in another way, if something does. `others` are the sets that the host's processes run under.

    Raises Failed, LimitsExceeded, ResourceBusy, ResourceRefused, InvalidArgs, AccessDenied, Drift,
    NoSuchVM, NoSuchGroup.
    """
    before = attached.up(db, asked.vm)
    vm, replaced = before.vm, _still(before, asked.replaced)
    kept = replaced is not None and replaced.changes
    seen = found[:-1] if kept else found
    own = {hold.identity: hold for hold in before.holds}
    top = own.get(seen[0].identity)
    # What an image lies over and the VM has already it keeps as it has it.
    fresh = [one for one in seen if one.identity not in own]
    _refuse_too_many(db, doors, asked.caller, before, len(fresh))
    refuse_over(seen[:1])
    _refuse_ids(before, seen[0], top)
    sets = _sets(db, doors, asked, vm, seen, others)
    decisions = _planned(db, doors, asked, vm, fresh, sets)
    first = max((hold.number for hold in before.holds), default=-1) + 1
    gained: tuple[Hold, ...] = ()
    if top is not None and _differs(top, seen[0], replaced):
        decisions.insert(0, _changed(db, doors, asked, (top, seen[0]), sets))
    elif top is not None and top.part_of:
        # Asked for by itself, it is there for no other's sake any more.
        terms = seen[0].terms
        gained = (
            replace(top, part_of="", number=first, until_us=terms.until_us, at_end=terms.at_end),
        )
    if replaced is not None and kept:
        decisions.append(_changed(db, doors, asked, (replaced.hold, found[-1]), sets))
    names = {hold.name for hold in before.holds}
    gained += holds_for(vm, decisions, first + len(gained), names)
    got = next((one for one in gained if one.identity == seen[0].identity), top)
    if got is None:
        raise ValueError("what was asked for is neither held nor got")
    stay = {one.identity for one in seen}
    leaving = [one for one in _leaving(replaced) if one.identity not in stay]
    under = {one.identity for one in seen[1:]}
    # What lay under what leaves lies under what is got.
    tops = {one.name for one in leaving}
    if replaced is not None and replaced.keeps:
        under.add(replaced.hold.identity)
        tops.add(replaced.hold.part_of)
    gained = tuple(
        replace(one, part_of=got.name if one.identity in under else "") for one in gained
    )
    gained += _belonging(before, gained, got, under, tops)
    changed = [own[one.identity] for one in gained if one.identity in own]
    steps = [] if vm.labeller is Labeller.LIBVIRT else [d.step for d in decisions if d.step]
    steps += attached.steps_back(db, vm, leaving, guesses)
    gone = (*changed, *leaving)
    kind, uid = OperationKind.ATTACH, asked.caller.uid
    return attached.begin(db, kind, before, gained, gone, steps, uid), got


def _leaving(replaced: Replaced | None) -> tuple[Hold, ...]:
    return replaced.leaving if replaced is not None else ()


def _still(before: Entry, replaced: Replaced | None) -> Replaced | None:
    held = set(before.holds)
    if replaced is not None and not {replaced.hold, *replaced.leaving} <= held:
        raise Failed(f"{replaced.hold.path} was changed meanwhile; try again")
    return replaced


def _refuse_too_many(db: Database, doors: Doors, caller: Caller, before: Entry, more: int) -> None:
    limits = doors.config.limits
    if len(before.holds) + more > limits.resources:
        raise LimitsExceeded(
            f"VM {before.vm.name!r} holds {len(before.holds)} resources, and {more} more would "
            f"pass [limits] resources = {limits.resources}: detach some"
        )
    if caller.uid:
        refuse_more(db, limits, before.vm.owner_uid, more)


def _refuse_ids(before: Entry, seen: Seen, own: Hold | None) -> None:
    id_ = seen.terms.id
    if own is not None and id_ not in ("", own.name):
        raise InvalidArgs(f"{seen.named} is resource {own.name!r} of the VM already, not {id_!r}")
    if own is None and any(hold.name == id_ for hold in before.holds):
        raise InvalidArgs(
            f"VM {before.vm.name!r} has another resource with the id {id_!r}; give it its own"
        )


def _sets(
    db: Database,
    doors: Doors,
    asked: Attaching,
    vm: VM,
    seen: Sequence[Seen],
    others: OtherSets,
) -> Sets:
    """Return the categories that the VM's processes have: none can be added while they run."""
    goal_types = asked.goal.contexts(doors.contexts)
    process, image = parse_context(vm.process_context), parse_context(vm.image_context)
    if (process.type, image.type) != (goal_types.process.type, goal_types.image.type):
        raise Failed(
            f"goal {asked.goal.name!r} has other types than when VM {vm.name!r} was started; start "
            "it anew, then attach"
        )
    wanted = {one.terms.group for one in seen if one.terms.group}
    found = {}
    for name in wanted:
        group = group_named(db, name)
        if name not in vm.groups or group.category not in process.categories:
            raise ResourceRefused(
                f"VM {vm.name!r} is not in group {name!r} in this run, and a process keeps the "
                "categories that it was started with: have it in the group at its next start"
            )
        # What was granted may have ended since the VM was started.
        grant = group_rows.grant_of(db, name, vm.name)
        by_root = asked.caller.uid == 0
        refuse_member(group, vm.name, vm.owner_uid, by_root, grant, now_us())
        refuse_foreign_members(db, [group], others)
        found[name] = group.category
    pair = doors.shape.categories_of(vm.rank)
    # libvirt writes all of them on what the VM alone uses.
    return Sets(process.categories if vm.labeller is Labeller.LIBVIRT else pair, found)


def _planned(
    db: Database, doors: Doors, asked: Attaching, vm: VM, fresh: Sequence[Seen], sets: Sets
) -> list[Decision]:
    """Decide about what the VM does not have yet, as a start would."""
    for one in fresh:
        if one.terms.recursive:
            raise ResourceRefused(
                f"{one.named}: a tree is given to a VM when it starts; have it at its next start, "
                "or attach the files that it needs"
            )
    devices = [one.device for one in fresh if one.device]
    snapshot = registry.snapshot(db, [one.identity for one in fresh], devices)
    if fresh:
        snapshot = replace(snapshot, around=trees.around(db, fresh))
    asker = Asker(asked.caller.uid, asked.request.overrides, vm.labeller)
    return _decided(doors, asked, vm, fresh, snapshot, sets, asker)


def _changed(
    db: Database,
    doors: Doors,
    asked: Attaching,
    what: tuple[Hold, Seen],
    sets: Sets,
) -> Decision:
    """Decide about another access to what the VM has: as if it had its original label."""
    (own, seen), vm = what, asked.vm
    if shared(db, own.identity, vm):
        raise ResourceBusy(
            f"{seen.named} is held by other VMs, too, and its label is one for all of them: its "
            "access cannot change before they have released it"
        )
    if seen.label != own.label and vm.labeller is Labeller.SVIRTD:
        raise ResourceRefused(
            f"{seen.named} carries {seen.label or 'no label'} but VM {vm.name!r} holds it as "
            f"{own.label}; somebody changed it: restore that label or release the VM"
        )
    if own.recursive:
        raise ResourceRefused(
            f"{seen.named} is held as a tree, whose access cannot change in place"
        )
    # That of a part is that of what it was there for.
    lease = seen.terms if seen.terms.until_us or own.part_of else own
    terms = replace(seen.terms, id=own.name, until_us=lease.until_us, at_end=lease.at_end)
    before = replace(seen, label=own.original, terms=terms)
    # What the VM is to lose, nobody has asked to get: it is the VM's, whoever's the file is. What
    # lets in other VMs is a request as any other.
    loses = seen.access is Access.READONLY and not seen.terms.group
    everything = Asker(0, frozenset(Override), vm.labeller)
    own_rights = Asker(asked.caller.uid, asked.request.overrides, vm.labeller)
    asker = everything if loses else own_rights
    (decision,) = _decided(doors, asked, vm, [before], Snapshot(), sets, asker)
    target = decision.target
    if vm.labeller is Labeller.LIBVIRT and seen.label is not None:
        target = seen.label  # libvirt's to change, or to leave
    return replace(
        decision,
        target=target,
        original=own.original,
        original_known=own.original_known,
        # Where it was found just now: it may have another name than when the VM got it, and what
        # is to be taken back must be found again.
        step=Step(own.identity, seen.path, old=own.label, new=target),
    )


def _decided(
    doors: Doors,
    asked: Attaching,
    vm: VM,
    seen: Sequence[Seen],
    snapshot: Snapshot,
    sets: Sets,
    asker: Asker,
) -> list[Decision]:
    contexts = asked.goal.contexts(doors.contexts)
    decided = plan(vm.id, seen, snapshot, contexts, sets, asked.goal, doors.rules, asker)
    if doors.enforcement.levels or any(one.terms.level for one in seen):
        process = parse_context(vm.process_context)
        decided = levels.placed(decided, process, enforced=doors.enforcement.levels)
    decided.refuse()
    return list(decided.decisions)


def _differs(own: Hold, seen: Seen, replaced: Replaced | None) -> bool:
    """Say whether a VM asks for another access to what it has. Raises ResourceBusy, InvalidArgs."""
    if replaced is not None and replaced.hold.number == own.number:
        raise InvalidArgs(f"{seen.named} cannot replace itself")
    if (seen.access, seen.terms.group) != (own.access, own.group):
        return True
    if replaced is None:
        raise ResourceBusy(
            f"the VM holds {seen.named} already, as {own.name!r} with access {own.access.value!r}"
        )
    return False


def _belonging(
    before: Entry,
    gained: Sequence[Hold],
    got: Hold,
    under: Collection[Identity],
    tops: Collection[str],
) -> tuple[Hold, ...]:
    """Return what stays as it is under what is got, with for whose sake the VM has it from now on.

    `tops` are the ids of those for whose sake it was there. As with another access, each is a row
    of its own until all is done: what is undone is again there for whose sake it was.
    """
    number = max((hold.number for hold in (*before.holds, *gained)), default=-1) + 1
    there = {one.identity for one in gained} | {got.identity}
    moved: list[Hold] = []
    for hold in before.holds:
        if hold.identity not in under or hold.identity in there or hold.part_of == got.name:
            continue
        if hold.part_of in tops:
            # What is there for no other's sake is leased by itself.
            part_of, (until_us, at_end) = got.name, leases.last(got if hold.part_of else hold)
        elif hold.part_of:
            # Two lie over it now: it ends with neither.
            part_of, (until_us, at_end) = "", leases.last(hold, got)
        else:
            continue
        moved.append(
            replace(
                hold,
                part_of=part_of,
                number=number + len(moved),
                until_us=until_us,
                at_end=at_end,
            )
        )
    return tuple(moved)
