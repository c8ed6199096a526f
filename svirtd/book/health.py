# SPDX-License-Identifier: LGPL-2.1-or-later
"""Is the book what svirtd wrote? A quick look at each start, a whole check beside the service."""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from svirtd.book import groups, ledger, pool, registry, walls
from svirtd.book.connection import Database, connect_to_read, opening, reading_all, serving
from svirtd.core.mcs import format_categories, parse_categories
from svirtd.core.pool import Permutation, PoolState, Shape, make_shape
from svirtd.errors import BookDamaged, Failed

# A damaged book has many faults; the first few tell enough.
_FAULTS_MAX: Final = 5
_MAGIC: Final = b"SQLite format 3\0"
_SUSPECTS_AT_ONCE: Final = 1000
# Python holds its lock while it counts: so many ranks, then a rest, and requests are not held up.
_RANKS_AT_ONCE: Final = 256
REST_S: Final = 0.002


def at_start(path: str, db: Database) -> None:
    """Look at what a start reads, and whether the pool adds up. Raises BookDamaged, StartError."""
    with reading_all(path):
        for vm in registry.active_vms(db):
            registry.holds_of(db, vm)
        registry.caller_vms(db)
        ledger.unfinished(db)
        pool.suspects(db, _SUSPECTS_AT_ONCE)
        faults = list(_pool_faults(db))
    _refuse(path, faults)


def whole(path: str, db: Database, rest: Callable[[], None] = lambda: None) -> None:
    """Look at every page and row. `rest` is called now and then. Raises BookDamaged, StartError."""
    with reading_all(path):
        _refuse(path, list(_structure_faults(db)))
        # One state of the book, whatever is written meanwhile.
        db.execute("BEGIN")
        try:
            _refuse(path, list(_pool_faults(db)))
            _refuse(path, list(_row_faults(db, rest)))
        finally:
            db.execute("ROLLBACK")


class Check:
    """One whole check on a connection of its own: run() in a thread, stop() from any other."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stopped = threading.Event()
        self._db: Database | None = None

    def run(self) -> None:
        """Check. Raises BookDamaged, or Failed if the book cannot be read or stop() was called."""
        try:
            with serving(self._path):
                self._db = connect_to_read(self._path)
                self._db.conn.set_progress_handler(self._stopped.is_set, 1000)
                whole(self._path, self._db, self._rest)
        finally:
            if self._db is not None:
                self._db.close()

    def stop(self) -> None:
        """Have run() end soon. To be called again while it has not: it may be between two steps."""
        self._stopped.set()
        if self._db is not None:
            try:
                self._db.conn.interrupt()
            except sqlite3.ProgrammingError:
                return  # closed: it has ended

    def _rest(self) -> None:
        if self._stopped.wait(REST_S):
            raise Failed("it was interrupted")


def refuse_other_file(path: str) -> None:
    """Raise BookDamaged if a file is there and is no database. Raises StartError if unreadable.

    SQLite takes an empty file for a new database, which would hide that there was a book; and it
    removes the log of a file that it finds to be none.
    """
    with opening(path):
        try:
            with open(path, "rb") as file:
                start = file.read(len(_MAGIC))
        except FileNotFoundError:
            return
        except IsADirectoryError:
            return  # SQLite has the words for that
    if not start:
        raise BookDamaged(path, "it is empty")
    if start != _MAGIC:
        raise BookDamaged(path, "file is not a database")


def _refuse(path: str, faults: Sequence[str]) -> None:
    if faults:
        raise BookDamaged(path, "; ".join(faults[:_FAULTS_MAX]))


def _structure_faults(db: Database) -> Iterator[str]:
    for (text,) in db.execute(f"PRAGMA integrity_check({_FAULTS_MAX})").fetchall():
        if text != "ok":
            yield " ".join(text.split())
    for table, rowid, parent, _ in db.execute("PRAGMA foreign_key_check").fetchmany(_FAULTS_MAX):
        yield f"a row of {table} ({rowid}) belongs to no {parent}"


def _pool_faults(db: Database) -> Iterator[str]:
    rows = db.execute(
        "SELECT private, groups, reserved, size, cursor, returned, quarantined, ahead FROM pool"
    ).fetchall()
    (vms,) = db.execute("SELECT count(*) FROM vm").fetchone()
    if not rows and not vms:
        return  # made and not used yet
    if len(rows) != 1:
        yield f"the pool has {len(rows)} rows"
        return
    shape, state = _shape(rows[0][:4]), PoolState(*rows[0][4:])
    (returned,) = db.execute("SELECT count(*) FROM returned").fetchone()
    (quarantined,) = db.execute(
        "SELECT count(DISTINCT rank) FROM quarantine"
        " WHERE rank >= 0 AND rank NOT IN (SELECT rank FROM vm)"
    ).fetchone()
    for what, said, found in (
        ("in use", state.in_use, vms),
        ("returned", state.returned, returned),
        ("in quarantine", state.quarantined, quarantined),
    ):
        if said != found:
            yield f"the pool says that {said} sets are {what}, and there are {found}"
    if state.issued > shape.total:
        yield f"the pool has issued {state.issued} of {shape.total} sets"
    for table in ("vm", "returned", "quarantine"):
        # From the ends of an index: a start must not read every row of a large book. Below 0 the
        # quarantine has the categories of groups, which are no ranks.
        ranks = "WHERE rank >= 0" if table == "quarantine" else ""
        lowest, highest = db.execute(
            f"SELECT (SELECT min(rank) FROM {table} {ranks}),"
            f" (SELECT max(rank) FROM {table} {ranks})"
        ).fetchone()
        for rank in (lowest, highest):
            if rank is not None and not 0 <= rank < shape.total:
                yield f"{table} has rank {rank}, which does not exist"


def _row_faults(db: Database, rest: Callable[[], None]) -> Iterator[str]:
    """Read every row as the service would, and find each issued rank where the order has it."""
    row = db.execute(
        "SELECT private, groups, reserved, size, key, cursor, ahead FROM pool"
    ).fetchone()
    if row is None:
        return
    shape = _shape(row[:4])
    permutation = Permutation(row[4], shape.total)
    for number, vm in enumerate(registry.every_vm(db)):
        wanted = format_categories(shape.categories_of(vm.rank))
        if vm.categories != wanted:
            yield f"VM {vm.name!r} has categories {vm.categories}, its rank says {wanted}"
        registry.holds_of(db, vm)
        if number % _RANKS_AT_ONCE == 0:
            rest()
    ledger.unfinished(db)
    pool.suspects(db, -1)
    yield from walls.faults(db)
    yield from groups.faults(db, parse_categories(str(row[1])))
    for table in ("vm", "quarantine"):
        for (rank,) in db.execute(
            f"SELECT rank FROM returned WHERE rank IN (SELECT rank FROM {table}) LIMIT 1"
        ):
            yield f"rank {rank} is free, and in {table}"
    ahead = 0
    for number, (rank,) in enumerate(
        db.execute(
            "SELECT rank FROM vm UNION SELECT rank FROM returned UNION SELECT rank FROM quarantine"
            " WHERE rank >= 0"
        )
    ):
        ahead += permutation.index_of(rank) >= row[5]
        if number % _RANKS_AT_ONCE == 0:
            rest()
    if ahead != row[6]:
        yield f"{ahead} sets are issued ahead of the pool's order, the book says {row[6]}"


def _shape(row: Sequence[object]) -> Shape:
    private, groups, reserved = (parse_categories(str(text)) for text in row[:3])
    return make_shape(private, groups - reserved, reserved, int(str(row[3])))
