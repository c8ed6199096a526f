# SPDX-License-Identifier: LGPL-2.1-or-later
"""What has been held behind walls: rows to values and back. Called in a transaction or a read.

A row is only ever taken out by clear(): what happens to a VM leaves its past as it is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from svirtd.book import registry
from svirtd.book.connection import Database
from svirtd.core.model import VM
from svirtd.core.walls import Held, as_subject

_HELD = "wall, subject, grp, vm_name, since_us"


@dataclass(frozen=True, slots=True)
class Cleared:
    """That `uid` has had so many rows of a subject forgotten."""

    wall: str
    subject: str
    uid: int
    count: int
    at_us: int


def history_of(db: Database, subjects: Sequence[str]) -> list[Held]:
    """Return what any of these has ever held, behind whatever wall."""
    places = ", ".join("?" * len(subjects))
    rows = db.execute(
        f"SELECT {_HELD} FROM wall_history WHERE subject IN ({places})", list(subjects)
    )
    return [Held(*row) for row in rows]


def remember(db: Database, rows: Iterable[Held]) -> None:
    """Enter rows that the history lacks; the moment of one that it has stays the first."""
    db.conn.executemany(
        f"INSERT INTO wall_history({_HELD}) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(one.wall, one.subject, one.group, one.vm_name, one.since_us) for one in rows],
    )


def newest(db: Database, wall: str, limit: int) -> list[Held]:
    """Return what was recorded last behind a wall."""
    rows = db.execute(
        f"SELECT {_HELD} FROM wall_history WHERE wall = ?"
        " ORDER BY since_us DESC, subject, grp LIMIT ?",
        [wall, limit],
    )
    return [Held(*row) for row in rows]


def counts(db: Database) -> dict[str, int]:
    """Return how many rows there are, by wall."""
    return dict(db.execute("SELECT wall, count(*) FROM wall_history GROUP BY wall").fetchall())


def clear(db: Database, wall: str, subjects: Iterable[str], uid: int, now_us: int) -> int:
    """Forget what these have held behind a wall, and record who had it forgotten."""
    total = 0
    for subject in subjects:
        count = db.execute(
            "DELETE FROM wall_history WHERE wall = ? AND subject = ?", [wall, subject]
        ).rowcount
        if count:
            db.execute(
                "INSERT INTO wall_clear(wall, subject, uid, cleared, at_us) VALUES (?, ?, ?, ?, ?)",
                [wall, subject, uid, count, now_us],
            )
        total += count
    return total


def cleared(db: Database, wall: str, limit: int) -> list[Cleared]:
    """Return what was forgotten last behind a wall."""
    rows = db.execute(
        "SELECT wall, subject, uid, cleared, at_us FROM wall_clear WHERE wall = ?"
        " ORDER BY id DESC LIMIT ?",
        [wall, limit],
    )
    return [Cleared(*row) for row in rows]


def subjects_named(db: Database, vm_name: str) -> list[str]:
    """Return under which Ids and UUIDs VMs of this name are in the history."""
    rows = db.execute(
        "SELECT DISTINCT subject FROM wall_history WHERE vm_name = ?"
        " AND subject NOT LIKE 'uid:%' ORDER BY subject LIMIT 8",
        [vm_name],
    )
    return [subject for (subject,) in rows]


def vms_of(db: Database, subject: str) -> list[VM]:
    """Return the VMs that have this Id or UUID. Looks at every VM: not for the way of a request."""
    names = db.execute("SELECT name FROM vm WHERE id = ?1 OR uuid = ?1", [subject]).fetchall()
    return _named(db, names)


def vms_in_groups(db: Database) -> list[VM]:
    """Return the VMs that are in groups in this run, in whatever state. Looks at every VM."""
    return _named(db, db.execute("SELECT name FROM vm WHERE groups <> ''").fetchall())


def _named(db: Database, names: Iterable[tuple[str]]) -> list[VM]:
    found = [registry.vm_by_name(db, name) for (name,) in names]
    return [vm for vm in found if vm is not None]


def faults(db: Database) -> Iterator[str]:
    """Yield what no svirtd can have written."""
    for table, moment in (("wall_history", "since_us"), ("wall_clear", "at_us")):
        for subject, time_us in db.execute(f"SELECT subject, {moment} FROM {table}"):
            if as_subject(subject) != subject or time_us <= 0:
                yield f"{table} has the subject {subject!r} at {time_us}"
