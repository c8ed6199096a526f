# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which unit has which VM's label, and what it is given at each start.

Called inside a transaction or a read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from svirtd.book.connection import Database

_ROW = (
    "SELECT e.rank, e.unit, v.name, e.resources, e.options, e.since_us"
    " FROM enrolment e JOIN vm v ON v.rank = e.rank"
)


@dataclass(frozen=True, slots=True)
class Enrolment:
    """`resources` and `options` are JSON, as they were asked for."""

    rank: int
    unit: str
    vm_name: str
    resources: str
    options: str
    since_us: int = 0


def by_unit(db: Database, unit: str) -> Enrolment | None:
    """Return what a unit is enrolled for."""
    row = db.execute(f"{_ROW} WHERE e.unit = ?", [unit]).fetchone()
    return None if row is None else _read(row)


def everything(db: Database) -> list[Enrolment]:
    """Return every enrolment, by unit."""
    return [_read(row) for row in db.execute(f"{_ROW} ORDER BY e.unit")]


def put(db: Database, one: Enrolment) -> None:
    """Write an enrolment, in the place of the VM's earlier one."""
    db.execute(
        "INSERT INTO enrolment(rank, unit, resources, options, since_us) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT(rank) DO UPDATE SET unit = excluded.unit, resources = excluded.resources,"
        " options = excluded.options, since_us = excluded.since_us",
        [one.rank, one.unit, one.resources, one.options, one.since_us],
    )


def remove(db: Database, rank: int) -> None:
    """Delete the enrolment of a VM."""
    db.execute("DELETE FROM enrolment WHERE rank = ?", [rank])


def _read(row: Sequence[Any]) -> Enrolment:
    return Enrolment(*row)
