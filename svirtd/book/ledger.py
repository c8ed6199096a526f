# SPDX-License-Identifier: LGPL-2.1-or-later
"""The write-ahead record: opened durably before an operation's first label, closed after its last.

Called inside a transaction. An operation that is still open at start was cut off; its steps say
which label every object may carry.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

from svirtd.book import registry
from svirtd.book.connection import Database
from svirtd.core.model import VM, Identity, Operation, OperationKind, Step

_OPEN = "SELECT id, kind, rank, created, caller_uid, steps, numbers FROM operation"


def open_operation(
    db: Database,
    kind: OperationKind,
    vm: VM,
    steps: Sequence[Step],
    *,
    created: bool,
    caller_uid: int,
    numbers: Sequence[int] = (),
) -> Operation:
    """Record what is about to be done. `created`: the VM is new with this operation. `numbers` are
    of the holds that it is about, where it is not about all of the VM's."""
    text = json.dumps([_packed(step) for step in steps])
    row = db.execute(
        "INSERT INTO operation(kind, rank, created, caller_uid, steps, started_us, numbers)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
        [
            *(kind.value, vm.rank, int(created), caller_uid, text, time.time_ns() // 1000),
            json.dumps(numbers) if numbers else "",
        ],
    ).fetchone()
    return Operation(row[0], kind, vm, created, caller_uid, tuple(steps), tuple(numbers))


def close_operation(db: Database, operation: Operation) -> None:
    """Record that an operation is finished or undone."""
    db.execute("DELETE FROM operation WHERE id = ?", [operation.id])


def close_all(db: Database, vm: VM) -> None:
    """Drop what is open for a VM, because a later operation takes its steps over."""
    db.execute("DELETE FROM operation WHERE rank = ?", [vm.rank])


def unfinished(db: Database) -> list[Operation]:
    """Return the open operations, oldest first."""
    return [_operation(db, row) for row in db.execute(f"{_OPEN} ORDER BY id").fetchall()]


def if_open(db: Database, operation: Operation) -> Operation | None:
    """Return an operation as the book has it now; None if it was closed meanwhile."""
    row = db.execute(f"{_OPEN} WHERE id = ?", [operation.id]).fetchone()
    return None if row is None else _operation(db, row)


def is_open(db: Database, vm: VM) -> bool:
    """Say whether an operation on this VM has been opened and not closed."""
    found = db.execute("SELECT 1 FROM operation WHERE rank = ?", [vm.rank]).fetchone()
    return found is not None


def _operation(db: Database, row: Sequence[Any]) -> Operation:
    id_, kind, rank, created, caller_uid, steps, numbers = row
    vm = registry.vm_by_rank(db, rank)
    # The foreign key makes a missing VM impossible; a book that has one is corrupt.
    if vm is None:
        raise ValueError(f"operation {id_} belongs to no VM")
    return Operation(
        id_,
        OperationKind(kind),
        vm,
        bool(created),
        caller_uid,
        tuple(
            Step(Identity(dev, ino), path, old, new, bool(recursive))
            for dev, ino, path, old, new, *recursive in json.loads(steps)
        ),
        tuple(json.loads(numbers)) if numbers else (),
    )


def _packed(step: Step) -> tuple[int | str | None, ...]:
    packed = (step.identity.dev, step.identity.ino, step.path, step.old, step.new)
    return (*packed, 1) if step.recursive else packed
