# SPDX-License-Identifier: LGPL-2.1-or-later
"""The boot that the book was last used under, and the device numbers of all its objects.

Called inside a transaction or a read.
"""

import json
from collections.abc import Mapping
from typing import Any

from svirtd.book.connection import Database
from svirtd.core.devices import Known
from svirtd.core.model import Identity


def last_boot(db: Database) -> str:
    """Return the boot id that was remembered last, empty if there is none."""
    row = db.execute("SELECT boot_id FROM boot").fetchone()
    return "" if row is None else str(row[0])


def remember(db: Database, boot_id: str) -> None:
    """Record that every object of the book was looked at in this boot."""
    db.execute("INSERT OR REPLACE INTO boot(one, boot_id) VALUES (1, ?)", [boot_id])


def any_parked(db: Database) -> bool:
    """Say whether there are objects whose device was not found again."""
    # What an open step names, some VM holds.
    row = db.execute(
        "SELECT EXISTS(SELECT 1 FROM hold WHERE dev < 0)"
        " OR EXISTS(SELECT 1 FROM quarantine WHERE dev < 0)"
    ).fetchone()
    return bool(row[0])


def objects(db: Database) -> list[Known]:
    """Return every object of the book: what is held, what open steps name, what is suspected.

    One that several rows name is there several times.
    """
    found = [
        Known(Identity(dev, ino), path, frozenset({label, original} if known else {label}))
        for dev, ino, path, label, original, known in db.execute(
            "SELECT dev, ino, path, label, original, original_known FROM hold"
        )
    ]
    for (steps,) in db.execute("SELECT steps FROM operation"):
        found += [
            Known(Identity(dev, ino), path, frozenset({old, new}))
            for dev, ino, path, old, new, *_ in json.loads(steps)
        ]
    found += [
        Known(Identity(dev, ino), path, frozenset({label}))
        for dev, ino, path, label in db.execute("SELECT dev, ino, path, label FROM quarantine")
        # A process, which no reboot survives, is on no device.
        if dev
    ]
    return found


def renumber(db: Database, moves: Mapping[int, int]) -> None:
    """Give devices their new numbers, all at once: two may have swapped theirs."""
    if not moves:
        return
    cases = "CASE dev " + "WHEN ? THEN ? " * len(moves) + "ELSE dev END"
    pairs = [number for move in moves.items() for number in move]
    db.execute(f"UPDATE hold SET dev = {cases}", pairs)
    db.execute(f"UPDATE quarantine SET dev = {cases}", pairs)
    db.execute(f"UPDATE tree SET dev = {cases}", pairs)
    for id_, steps in db.execute("SELECT id, steps FROM operation").fetchall():
        moved: list[list[Any]] = [[moves.get(dev, dev), *rest] for dev, *rest in json.loads(steps)]
        db.execute("UPDATE operation SET steps = ? WHERE id = ?", [json.dumps(moved), id_])
