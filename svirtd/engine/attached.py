# SPDX-License-Identifier: LGPL-2.1-or-later
"""What attaching and detaching write into the book. One function is one transaction.

A hold whose access changes is two rows until the change is done: the one that the VM gets, and the
one that leaves it. So what was cut off can be taken back, or finished, from the book alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from svirtd.book import ledger, pool, registry
from svirtd.book.store import Database
from svirtd.core.model import VM, Hold, Identity, Operation, OperationKind, State, Step
from svirtd.core.names import shown
from svirtd.engine import entries
from svirtd.engine.entries import shared
from svirtd.engine.events import Entry
from svirtd.errors import Failed, InvalidArgs, NoSuchVM

Guesses = Mapping[Identity, str | None]
_UP = (State.LABELLED, State.RUNNING)


@dataclass(frozen=True, slots=True)
class Changing:
    """A change of what a VM holds that is in the book and not done: the VM before and after."""

    before: Entry
    after: Entry
    operation: Operation


def hold_named(vm: VM, holds: Sequence[Hold], id_: str) -> Hold:
    """Return the hold of this id. Raises InvalidArgs."""
    for hold in holds:
        if hold.name == id_:
            return hold
    raise InvalidArgs(
        f"VM {vm.name!r} holds nothing with the id {shown(id_)}; see svirtctl show {vm.name}"
    )


def with_parts(holds: Sequence[Hold], top: Hold) -> tuple[Hold, ...]:
    """Return a hold and those that are there for its sake alone: what an image lies over."""
    found = [top]
    for one in found:
        found += [hold for hold in holds if hold.part_of == one.name != "" and hold not in found]
    return tuple(found)


def up(db: Database, known: VM) -> Entry:
    """Return a VM whose holds may change. Raises NoSuchVM, Failed."""
    vm = registry.current(db, known)
    if vm is None:
        raise NoSuchVM("the VM has left the book meanwhile")
    if vm.state not in _UP:
        raise Failed(
            f"VM {vm.name!r} is {vm.state.value}; only one that is labelled or running gets and "
            "loses single resources"
        )
    if ledger.is_open(db, vm):
        raise Failed(
            f"an earlier operation on VM {vm.name!r} is not finished; have it finished (svirtctl "
            "verify --repair), or release the VM"
        )
    return Entry(vm, tuple(registry.holds_of(db, vm)))


def begin(
    db: Database,
    kind: OperationKind,
    before: Entry,
    gained: Sequence[Hold],
    gone: Sequence[Hold],
    steps: Sequence[Step],
    caller_uid: int,
) -> Changing:
    """Enter what a VM gets, and say what is to leave it."""
    vm = before.vm
    registry.add_holds(db, vm, gained)
    operation = ledger.open_operation(
        db,
        kind,
        vm,
        steps,
        created=False,
        caller_uid=caller_uid,
        numbers=[*(one.number for one in gained), *(-1 - one.number for one in gone)],
    )
    left = {one.number for one in gone}
    stay = tuple(one for one in before.holds if one.number not in left)
    return Changing(before, Entry(vm, (*stay, *gained)), operation)


def begin_detach(
    db: Database, known: VM, numbers: Collection[int], caller_uid: int, guesses: Guesses
) -> Changing:
    """Open the way back of these holds. `guesses` is as for a release. Raises Failed, NoSuchVM."""
    before = up(db, known)
    gone = [hold for hold in before.holds if hold.number in numbers]
    steps = steps_back(db, before.vm, gone, guesses)
    return begin(db, OperationKind.DETACH, before, (), gone, steps, caller_uid)


def steps_back(db: Database, vm: VM, gone: Sequence[Hold], guesses: Guesses) -> list[Step]:
    """Return how objects get their earlier labels, which no other VM holds."""
    return [
        Step(
            hold.identity,
            hold.path,
            old=hold.label,
            new=hold.original if hold.original_known else guesses[hold.identity],
            recursive=hold.recursive,
        )
        for hold in gone
        if not shared(db, hold.identity, vm) and (hold.original_known or hold.identity in guesses)
    ]


def finish(db: Database, operation: Operation, suspects: Sequence[pool.Suspect]) -> Entry:
    """Record that every label is as it should be: what leaves the VM has left it."""
    vm = _same(db, operation)
    registry.remove_some(db, vm, operation.left)
    ledger.close_operation(db, operation)
    pool.suspect(db, suspects)
    entries.forget_trees(db, operation)
    return Entry(vm, tuple(registry.holds_of(db, vm)))


def abandon(
    db: Database,
    operation: Operation,
    stuck: Collection[Identity],
    suspects: Sequence[pool.Suspect],
) -> Entry:
    """Record that every label is as it was before: the VM has not got what it was to get.

    It keeps what is `stuck`, still labelled for it: it is the VM's until it is detached.
    """
    vm = _same(db, operation)
    holds = registry.holds_of(db, vm)
    kept = {h.identity for h in holds if h.number in operation.gained and h.identity in stuck}
    registry.remove_some(
        db,
        vm,
        {
            hold.number
            for hold in holds
            if (hold.number in operation.gained and hold.identity not in kept)
            or (hold.number in operation.left and hold.identity in kept)
        },
    )
    ledger.close_operation(db, operation)
    pool.suspect(db, suspects)
    return Entry(vm, tuple(registry.holds_of(db, vm)))


def _same(db: Database, operation: Operation) -> VM:
    vm = registry.current(db, operation.vm)
    # It holds something, and an operation of its is open: it cannot have left.
    if vm is None:
        raise ValueError(f"operation {operation.id} is of a VM that is not in the book")
    return vm
