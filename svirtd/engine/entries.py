# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each request writes into the book. One function is one transaction.

A conflict is decided here, inside the transaction that also writes the hold: two requests for one
object cannot both see it free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from svirtd.book import enrolments, groups, ledger, pool, registry, trees
from svirtd.book.enrolments import Enrolment
from svirtd.book.store import Database
from svirtd.core.goals import Goal
from svirtd.core.groups import Group
from svirtd.core.ids import holds_for
from svirtd.core.mcs import parse_categories, parse_context
from svirtd.core.model import (
    VM,
    Caller,
    Hold,
    Identity,
    Lifetime,
    Operation,
    OperationKind,
    Request,
    Seen,
    State,
    Step,
)
from svirtd.core.plan import Plan
from svirtd.core.pool import RankTaken
from svirtd.engine import walls
from svirtd.engine.calendar import now_us
from svirtd.engine.decide import OtherSets, decide
from svirtd.engine.doors import Doors
from svirtd.engine.events import Entry
from svirtd.errors import Drift, Failed, NoSuchVM, VMExists
from svirtd.host.runtime import Account


@dataclass(frozen=True, slots=True)
class Begun:
    """An acquisition that is in the book. `before` is None for a new VM; `operation` is None when
    there was nothing to label, and the entry is final."""

    before: Entry | None
    entry: Entry
    operation: Operation | None


@dataclass(frozen=True, slots=True)
class Launching:
    """What a launch adds to an acquisition."""

    unit: str
    runtime_directory: str


@dataclass(frozen=True, slots=True)
class Enrolling(Launching):
    """What the start of an administrator's unit adds: how it is enrolled, the context that the unit
    file gives its processes, and whom they run as."""

    enrolment: Enrolment
    context: str
    account: Account


def begin_acquire(
    db: Database,
    doors: Doors,
    caller: Caller,
    request: Request,
    seen: Sequence[Seen],
    launching: Launching | None,
    others: OtherSets,
    goal: Goal,
) -> Begun:
    """Enter VM, pair, holds and steps. `others` are the sets that the host's processes run under.

    Raises Drift, VMExists, LimitsExceeded, PoolExhausted, ResourceBusy, ResourceRefused,
    InvalidArgs.
    """
    known, vm, decided = decide(db, doors, caller, request, seen, others, goal, pool.draw_rank)
    decided.refuse()
    _refuse_other_unit(db, known, vm, launching)
    if decided.decisions or launching is not None or vm.groups:
        # Said before it is true, so that nobody has to wait for a second entry once it is: until
        # the reply the VM has not been announced, and a failure takes it out of the book. A unit
        # that ends in its first moment is found by this state, too.
        vm = replace(vm, state=State.LABELLED)
    if launching is not None:
        vm = replace(
            vm,
            unit=launching.unit,
            runtime_dir=f"{launching.runtime_directory}/{vm.id}",
        )
    if known is None:
        registry.add_vm(db, vm)
    else:
        registry.update_vm(db, vm)
    walls.record(db, doors.config.walls, vm)
    holds = holds_for(vm, decided.decisions)
    before = None if known is None else Entry(known, ())
    if not holds and launching is None:
        return Begun(before, Entry(vm, ()), None)
    registry.add_holds(db, vm, holds)
    operation = ledger.open_operation(
        db,
        # An enrolled unit waits for the labels before it starts; it is not ours to start or undo.
        OperationKind.LAUNCH if type(launching) is Launching else OperationKind.ACQUIRE,
        vm,
        decided.steps,
        created=known is None,
        caller_uid=caller.uid,
    )
    return Begun(before, Entry(vm, holds), operation)


def _refuse_other_unit(db: Database, known: VM | None, vm: VM, launching: Launching | None) -> None:
    """Raise what keeps an enrolled VM's label from all but its unit, and its unit from another."""
    if not isinstance(launching, Enrolling):
        _refuse_enrolled(known)
        return
    if known is None or enrolments.by_unit(db, launching.unit) != launching.enrolment:
        raise Failed(f"{launching.unit} has been enrolled anew meanwhile; start it again")
    if launching.context != vm.process_context:
        raise Drift(
            f"{launching.unit} would run as {launching.context or 'systemd says, with no label'}, "
            f"and VM {vm.name!r} is {vm.process_context}: its drop-in is not what it should be; "
            "write it again with svirtctl enrolled refresh, then start the unit"
        )


def _refuse_enrolled(known: VM | None) -> None:
    if known is not None and known.enrolled:
        raise VMExists(
            f"VM {known.name!r} is enrolled for {known.enrolled}, which alone has its label; "
            "start that, or take another name"
        )


def dry_run(
    db: Database,
    doors: Doors,
    caller: Caller,
    request: Request,
    seen: Sequence[Seen],
    others: OtherSets,
    goal: Goal,
    *,
    by_unit: bool = False,
) -> tuple[VM, Plan]:
    """Return what begin_acquire would decide, `by_unit`: at the start of the VM's enrolled unit;
    write nothing. Raises what concerns no resource."""
    known, vm, plan = decide(db, doors, caller, request, seen, others, goal, pool.peek_rank)
    if not by_unit:
        _refuse_enrolled(known)
    return vm, plan


def groups_again(db: Database, categories: frozenset[int]) -> dict[int, str]:
    """Return the groups that own these categories, by category, for a VM that runs under them.

    One that the book has lost is root's from now on, under a name that says so: who else was in
    it, and whose it was, is not known.
    """
    found = {}
    for category in sorted(categories):
        group = groups.by_category(db, category)
        if group is None:
            name = f"lost-c{category}"
            while groups.by_name(db, name) is not None:
                name += "-again"
            group = Group(name, category, 0, now_us())
            groups.add(db, group)
        found[category] = group.name
    return found


class Conflict(Exception):
    """A VM that runs cannot be entered: the book says otherwise of its name or its set."""


def reenter(
    db: Database, doors: Doors, vm: VM, holds: Sequence[Hold]
) -> tuple[Entry, tuple[Hold, ...]]:
    """Enter a VM that runs already, and return what was not entered since another VM holds it.

    Raises Conflict.
    """
    known = registry.vm_by_name(db, vm.name)
    if known is not None:
        if known.state is not State.RESERVED or known.rank != vm.rank:
            raise Conflict("the book has another VM of this name")
        # A persistent one that an older book has as it was before it was launched.
        vm = replace(
            known,
            state=vm.state,
            process_context=vm.process_context,
            unit=vm.unit,
            main_pid=vm.main_pid,
            runtime_dir=vm.runtime_dir,
            groups=vm.groups,
        )
        registry.update_vm(db, vm)
    else:
        if registry.has_id(db, vm.id):
            raise Conflict(f"the book has another VM with the Id {vm.id}")
        try:
            pool.claim(db, doors.permutation, vm.rank)
        except RankTaken as error:
            raise Conflict(
                f"its set is another VM's in the book, or in quarantine ({error})"
            ) from error
        registry.add_vm(db, vm)
    walls.record(db, doors.config.walls, vm)
    free = tuple(
        replace(hold, vm_id=vm.id, owner_uid=vm.owner_uid)
        for hold in holds
        if all(
            hold.group and hold.group == one.group and hold.access is one.access
            for one in registry.holds_on(db, hold.identity)
        )
    )
    # Whatever they were called before is lost with the book.
    free = tuple(
        replace(hold, number=number, name=f"r{number + 1}") for number, hold in enumerate(free)
    )
    registry.add_holds(db, vm, free)
    entered = {hold.identity for hold in free}
    return Entry(vm, free), tuple(hold for hold in holds if hold.identity not in entered)


def finish_launch(db: Database, operation: Operation, entry: Entry) -> None:
    """Record that the unit runs and every label stands."""
    registry.update_vm(db, entry.vm)
    ledger.close_operation(db, operation)


def abandon_acquire(db: Database, operation: Operation, suspects: Sequence[pool.Suspect]) -> None:
    """Record that an acquisition was taken back. `suspects` are objects not proven clean."""
    pool.suspect(db, suspects)
    registry.remove_holds(db, operation.vm)
    forget_trees(db, operation)
    ledger.close_operation(db, operation)
    if operation.created:
        registry.remove_vm(db, operation.vm)
        pool.retire(db, operation.vm.rank)
    else:
        registry.update_vm(db, reserved(operation.vm))


def begin_release(
    db: Database, known: VM, caller_uid: int, guesses: Mapping[Identity, str | None]
) -> tuple[Entry, Entry, Operation] | None:
    """Open a release: (before, after, operation). None if the VM holds nothing and runs nothing.

    `guesses` has the labels that objects get whose original is not known; one without keeps its.
    """
    vm = registry.current(db, known)
    if vm is None:
        raise NoSuchVM("the VM has left the book meanwhile")
    holds = tuple(registry.holds_of(db, vm))
    if vm.state is State.RESERVED and not holds:
        if vm.persistent:
            registry.update_vm(db, reserved(vm))
        return None
    steps = []
    for hold in holds:
        if shared(db, hold.identity, vm):
            continue
        if not hold.original_known and hold.identity not in guesses:
            continue
        back = hold.original if hold.original_known else guesses[hold.identity]
        steps.append(Step(hold.identity, hold.path, hold.label, back, hold.recursive))
    releasing = replace(vm, state=State.RELEASING, reason="")
    registry.update_vm(db, releasing)
    # An operation that failed half-way is taken over: its labels are among the holds.
    ledger.close_all(db, vm)
    operation = ledger.open_operation(
        db, OperationKind.RELEASE, releasing, steps, created=False, caller_uid=caller_uid
    )
    return Entry(vm, holds), Entry(releasing, holds), operation


def own_steps(db: Database, operation: Operation) -> tuple[Step, ...]:
    """Return the steps of an open operation that concern no other VM.

    One that stayed open may have got company meanwhile: another VM uses a public object on.
    """
    return tuple(step for step in operation.steps if not shared(db, step.identity, operation.vm))


def steps_back(db: Database, operation: Operation) -> tuple[Step, ...]:
    """Return the steps of an open release as they are now: company may have come or gone."""
    steps = own_steps(db, operation)
    there = {step.identity for step in operation.steps}
    more = tuple(
        Step(hold.identity, hold.path, hold.label, hold.original, hold.recursive)
        for hold in registry.holds_of(db, operation.vm)
        if hold.identity not in there
        and hold.original_known
        and not shared(db, hold.identity, operation.vm)
    )
    return steps + more


def ending(db: Database, vm: VM, holds: Sequence[Hold]) -> tuple[Hold, ...]:
    """Return those of a VM's holds that are the last on their objects."""
    return tuple(hold for hold in holds if not shared(db, hold.identity, vm))


def shared(db: Database, identity: Identity, vm: VM) -> bool:
    """Say whether another VM holds an object, too."""
    return any(other.vm_id != vm.id for other in registry.holds_on(db, identity))


def finish_release(
    db: Database, operation: Operation, suspects: Sequence[pool.Suspect]
) -> VM | None:
    """Record that the labels came back; returns the VM if it stays in the book (persistent).

    `suspects` are objects not proven clean: they keep the pair out of the pool.
    """
    vm = operation.vm
    registry.remove_holds(db, vm)
    ledger.close_operation(db, operation)
    pool.suspect(db, suspects)
    forget_trees(db, operation)
    if vm.persistent:
        kept = reserved(vm)
        registry.update_vm(db, kept)
        return kept
    registry.remove_vm(db, vm)
    pool.retire(db, vm.rank)
    return None


def forget_trees(db: Database, operation: Operation) -> None:
    """Forget what entries of trees carried that nobody holds any more."""
    if any(step.recursive for step in operation.steps):
        trees.tidy(db)


def remove_reserved(db: Database, known: VM) -> VM:
    """Take a VM that holds nothing out of the book. Raises Failed if it does hold something."""
    vm = registry.current(db, known)
    if vm is None:
        raise NoSuchVM("the VM has left the book meanwhile")
    if vm.state is not State.RESERVED:
        raise Failed(f"VM {vm.name!r} is {vm.state.value}; release it before it is forgotten")
    if vm.enrolled:
        raise Failed(
            f"VM {vm.name!r} is enrolled for {vm.enrolled}; svirtctl unenroll takes both away"
        )
    registry.remove_vm(db, vm)
    pool.retire(db, vm.rank)
    return vm


def set_failed(db: Database, vm: VM, reason: str) -> VM:
    """Record that an operation could not be finished; it stays open for a later try."""
    failed = replace(vm, state=State.FAILED, reason=reason)
    registry.update_vm(db, failed)
    return failed


def reserved(vm: VM) -> VM:
    """Return a VM as it is when it holds nothing and no process of it runs."""
    # Its groups' categories may be another group's by the time that somebody reads the context.
    own, image = parse_context(vm.process_context), parse_context(vm.image_context)
    if vm.groups:
        own = own.with_categories(parse_categories(vm.categories))
        image = image.with_categories(parse_categories(vm.categories))
    return replace(
        vm,
        process_context=str(own),
        image_context=str(image),
        state=State.RESERVED,
        reason="",
        unit="",
        main_pid=0,
        runtime_dir="",
        lifetime=Lifetime.RELEASE,
        caller="",
        groups=(),
    )
