# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pool's row, the queue of returned ranks and the quarantine. Called inside a transaction."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from svirtd.book import groups, schema
from svirtd.book.connection import Database
from svirtd.core import pool as core
from svirtd.core.model import Counts, Identity
from svirtd.core.pool import Drawn, Permutation, PoolState, Shape, draw
from svirtd.errors import StartError

_KEY_BYTES = 32
_SUSPECT = (
    "SELECT id, rank, vm_name, dev, ino, path, label, reason, original, restorable FROM quarantine"
)


@dataclass(frozen=True, slots=True)
class PoolText:
    """The configuration that ranks depend on, as written."""

    private: str
    groups: str
    reserved: str
    size: int


@dataclass(frozen=True, slots=True)
class Suspect:
    """A quarantined object: it may still carry the categories of `rank`, a group's if below 0.

    `restorable`: what it carried before is known, `original`.
    """

    id: int
    rank: int
    vm_name: str
    identity: Identity
    path: str
    label: str
    reason: str
    original: str | None = None
    restorable: bool = False


def prepare(db: Database, text: PoolText, shape: Shape) -> Permutation:
    """Return this book's permutation; make its pool on first use, another order in a copy's.

    Raises StartError if the configuration has changed while ranks of the old one are in use:
    the same rank would mean other categories.
    """
    row = db.execute("SELECT private, groups, reserved, size, key FROM pool").fetchone()
    wanted = (text.private, text.groups, text.reserved, text.size)
    if row is not None and tuple(row[:4]) != wanted:
        _refuse_if_used(db, row, wanted)
        db.execute("DELETE FROM pool")
        db.execute("DELETE FROM returned")
        db.execute("DELETE FROM group_returned")
        row = None
    if schema.unmark_copy(db) and row is not None:
        rekey(db)
        row = db.execute("SELECT private, groups, reserved, size, key FROM pool").fetchone()
    if row is not None:
        return Permutation(row[4], shape.total)
    key = secrets.token_bytes(_KEY_BYTES)
    db.execute(
        "INSERT INTO pool(one, private, groups, reserved, size, key, cursor, returned, quarantined)"
        " VALUES (1, ?, ?, ?, ?, ?, 0, 0, 0)",
        [*wanted, key],
    )
    return Permutation(key, shape.total)


def _refuse_if_used(db: Database, row: tuple[object, ...], wanted: tuple[object, ...]) -> None:
    used = (
        db.execute("SELECT 1 FROM vm LIMIT 1").fetchone()
        or db.execute("SELECT 1 FROM quarantine LIMIT 1").fetchone()
        or db.execute("SELECT 1 FROM vm_group LIMIT 1").fetchone()
    )
    if used:
        names = ("private", "groups", "reserved", "private-size")
        changed = [
            f"{name} was {old!r} and is {new!r}"
            for name, old, new in zip(names, row, wanted, strict=False)
            if old != new
        ]
        raise StartError(
            "[labels] may not change while VMs or groups are in the book: "
            + "; ".join(changed)
            + ". Put the old values back, or forget every VM and delete every group first"
        )


def draw_rank(
    db: Database, permutation: Permutation, is_blocked: Callable[[int], bool], blocked_limit: int
) -> int:
    """Take the next rank out of the pool. Raises PoolExhausted."""
    drawn = _next(db, permutation, is_blocked, blocked_limit)
    rank = drawn.issued()
    if drawn.consumed_returned:
        db.execute(
            "DELETE FROM returned WHERE seq IN (SELECT seq FROM returned ORDER BY seq LIMIT ?)",
            [drawn.consumed_returned],
        )
    for blocked in drawn.put_back:
        db.execute("INSERT INTO returned(rank) VALUES (?)", [blocked])
    db.execute(
        "UPDATE pool SET cursor = ?, returned = returned + ?, ahead = ahead - ?",
        [drawn.cursor, len(drawn.put_back) - drawn.consumed_returned, drawn.passed],
    )
    return rank


def peek_rank(
    db: Database, permutation: Permutation, is_blocked: Callable[[int], bool], blocked_limit: int
) -> int:
    """Return the rank that draw_rank would take, and take nothing. Raises PoolExhausted."""
    return _next(db, permutation, is_blocked, blocked_limit).issued()


def _next(
    db: Database, permutation: Permutation, is_blocked: Callable[[int], bool], blocked_limit: int
) -> Drawn:
    return draw(
        permutation,
        _state(db),
        returned=(rank for (rank,) in db.execute("SELECT rank FROM returned ORDER BY seq")),
        is_issued=lambda rank: taken(db, rank) or _returned(db, rank),
        is_blocked=is_blocked,
        blocked_limit=blocked_limit,
    )


def claim(db: Database, permutation: Permutation, rank: int) -> None:
    """Take this very rank out of the pool, for a VM that runs under it already.

    Raises RankTaken if a VM of the book has it or it is in quarantine.
    """
    returned = _returned(db, rank)
    after = core.claim(permutation, _state(db), rank, returned=returned, taken=taken(db, rank))
    if returned:
        db.execute("DELETE FROM returned WHERE rank = ?", [rank])
    db.execute("UPDATE pool SET returned = ?, ahead = ?", [after.returned, after.ahead])


def rekey(db: Database) -> None:
    """Give the pool another order, in which every rank of a VM or in quarantine is claimed.

    For a copy of the book that takes the book's place. What has been drawn since it was made are
    exactly the next ranks of its own order: to draw on would hand out, one by one, the sets that
    files on this host may carry. In another order they come up as rarely as any others.
    """
    db.execute("DELETE FROM returned")
    db.execute(
        "UPDATE pool SET key = ?, cursor = 0, returned = 0,"
        " ahead = quarantined + (SELECT count(*) FROM vm)",
        [secrets.token_bytes(_KEY_BYTES)],
    )


def suspect(db: Database, suspects: Sequence[Suspect]) -> None:
    """Remember objects that may still carry the categories of a key, and whose they were."""
    now_us = time.time_ns() // 1000
    for one in suspects:
        (owner_uid,) = db.execute(
            "SELECT coalesce((SELECT owner_uid FROM vm WHERE rank = ?1),"
            " (SELECT owner_uid FROM vm_group WHERE category = -1 - ?1),"
            " (SELECT max(owner_uid) FROM quarantine WHERE rank = ?1), 0)",
            [one.rank],
        ).fetchone()
        db.execute(
            "INSERT INTO quarantine(rank, vm_name, dev, ino, path, label, reason, original,"
            " restorable, since_us, owner_uid) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                one.rank,
                one.vm_name,
                one.identity.dev,
                one.identity.ino,
                one.path,
                one.label,
                one.reason,
                one.original,
                int(one.restorable),
                now_us,
                owner_uid,
            ],
        )


def retire(db: Database, rank: int) -> None:
    """Take a rank from its VM: to the end of the queue if proven clean, else to quarantine."""
    if _suspected(db, rank):
        db.execute("UPDATE pool SET quarantined = quarantined + 1")
    else:
        _give_back(db, rank)


def retired_of(db: Database, uid: int) -> int:
    """Return how many sets of a user's earlier VMs are in quarantine. Not for root."""
    (count,) = db.execute(
        "SELECT count(DISTINCT rank) FROM quarantine WHERE owner_uid = ? AND owner_uid <> 0"
        " AND rank >= 0 AND rank NOT IN (SELECT rank FROM vm)",
        [uid],
    ).fetchone()
    return int(count)


def suspects(db: Database, limit: int, after: int = 0) -> list[Suspect]:
    """Return the quarantined objects, oldest first: those behind the one with the id `after`."""
    rows = db.execute(f"{_SUSPECT} WHERE id > ? ORDER BY id LIMIT ?", [after, limit])
    return [_suspect(row) for row in rows]


def suspects_on(db: Database, identity: Identity) -> list[Suspect]:
    """Return what this object is suspected of, oldest first."""
    values = [identity.dev, identity.ino]
    where = "WHERE dev = ? AND ino = ? AND path NOT LIKE '/proc/%' ORDER BY id"
    return [_suspect(row) for row in db.execute(f"{_SUSPECT} {where}", values)]


def suspect_moved(db: Database, suspect: Suspect) -> None:
    """Remember where a quarantined object was seen."""
    db.execute("UPDATE quarantine SET path = ? WHERE id = ?", [suspect.path, suspect.id])


def seen_clean(db: Database, suspect: Suspect) -> None:
    """Forget a suspect; the last one of a rank without a VM lets the rank back into the pool.

    Somebody else may have seen that, too: then there is nothing to do.
    """
    sql = "DELETE FROM quarantine WHERE id = ? RETURNING id"
    if db.execute(sql, [suspect.id]).fetchone() is None:
        return
    if suspect.rank < 0:
        groups.give_back(db, core.category_of(suspect.rank))
        return
    owned = db.execute("SELECT 1 FROM vm WHERE rank = ?", [suspect.rank]).fetchone()
    if owned is None and not _suspected(db, suspect.rank):
        db.execute("UPDATE pool SET quarantined = quarantined - 1")
        _give_back(db, suspect.rank)


def quarantined_ranks(db: Database, ranks: Sequence[int]) -> list[tuple[int, str]]:
    """Return (rank, former VM) for those of `ranks` that are in quarantine."""
    found = []
    for rank in ranks:
        row = db.execute("SELECT vm_name FROM quarantine WHERE rank = ?", [rank]).fetchone()
        if row is not None:
            found.append((rank, row[0]))
    return found


def _suspect(row: Sequence[Any]) -> Suspect:
    id_, rank, vm_name, dev, ino, path, label, reason, original, restorable = row
    identity = Identity(dev, ino)
    return Suspect(id_, rank, vm_name, identity, path, label, reason, original, bool(restorable))


def in_use(db: Database) -> int:
    """Return how many ranks belong to a VM."""
    return _state(db).in_use


def counts(db: Database) -> Counts:
    """Return the live figures; the cost does not depend on how many VMs are reserved."""
    state = _state(db)
    (active,) = db.execute("SELECT count(*) FROM vm WHERE state <> 'reserved'").fetchone()
    return Counts(active, state.in_use, state.quarantined, groups.count(db))


def _state(db: Database) -> PoolState:
    return PoolState(
        *db.execute("SELECT cursor, returned, quarantined, ahead FROM pool").fetchone()
    )


def taken(db: Database, rank: int) -> bool:
    owned = db.execute("SELECT 1 FROM vm WHERE rank = ?", [rank]).fetchone()
    return owned is not None or _suspected(db, rank)


def _returned(db: Database, rank: int) -> bool:
    return db.execute("SELECT 1 FROM returned WHERE rank = ?", [rank]).fetchone() is not None


def _suspected(db: Database, rank: int) -> bool:
    return db.execute("SELECT 1 FROM quarantine WHERE rank = ?", [rank]).fetchone() is not None


def _give_back(db: Database, rank: int) -> None:
    db.execute("INSERT INTO returned(rank) VALUES (?)", [rank])
    db.execute("UPDATE pool SET returned = returned + 1")
