# SPDX-License-Identifier: LGPL-2.1-or-later
"""The boot and the device numbers in the book."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.book import boots
from svirtd.book.store import Database, Store
from svirtd.core.devices import Known
from svirtd.core.model import Identity

QUARANTINE = "INSERT INTO quarantine(id, rank, vm_name, dev, ino, path, label, reason, since_us)"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "book.sqlite"
    Store.open(str(path)).close()
    db = Database(path)
    for rank, dev in ((1, 5), (2, 6)):
        values = [rank, f"id{rank}", f"vm{rank}", *[0, "labelled"], *[""] * 4, *[""] * 3]
        db.execute(
            "INSERT INTO vm(rank, id, name, owner_uid, state, reason, goal, uuid, categories,"
            " process_context, image_context, unit, main_pid, runtime_dir, persistent, lifetime,"
            f" caller, created_us) VALUES ({', '.join('?' * 18)})",
            [*values, 0, "", 0, "release", "", 0],
        )
        db.execute(
            "INSERT INTO hold(rank, number, dev, ino, path, access, label, original)"
            " VALUES (?, 0, ?, 12, ?, 'exclusive', ?, 'before')",
            [rank, dev, f"/{dev}/disk", f"label{rank}"],
        )
        db.execute(
            "INSERT INTO operation VALUES (?, 'acquire', ?, 0, 0, ?, 0, '')",
            [rank, rank, json.dumps([[dev, 13, f"/{dev}/step", None, f"label{rank}"]])],
        )
        db.execute(
            f"{QUARANTINE} VALUES (?, ?, 'gone', ?, 14, ?, ?, 'moved', 0)",
            [rank, rank, dev, f"/{dev}/suspect", f"label{rank}"],
        )
    db.execute(f"{QUARANTINE} VALUES (9, 3, 'gone', 0, 77, '/proc/77', 'p', 'runs', 0)")
    yield db
    db.close()


def test_every_object_with_every_label_that_it_may_carry(db: Database) -> None:
    expected = []
    for number, dev in ((1, 5), (2, 6)):
        name = f"label{number}"
        expected += [
            Known(Identity(dev, 12), f"/{dev}/disk", frozenset({name, "before"})),
            Known(Identity(dev, 13), f"/{dev}/step", frozenset({name, None})),
            Known(Identity(dev, 14), f"/{dev}/suspect", frozenset({name})),
        ]
    assert sorted(boots.objects(db), key=lambda one: one.identity) == expected
    db.execute("UPDATE hold SET original = NULL, original_known = 0")
    found = [one.labels for one in boots.objects(db) if one.identity.ino == 12]
    assert found == [frozenset({"label1"}), frozenset({"label2"})]


def test_numbers_are_exchanged_at_once_and_everywhere(db: Database) -> None:
    for dev in (5, 6):
        db.execute("INSERT INTO tree VALUES (?, 12, ?, x'')", [dev, f"in {dev}"])
    boots.renumber(db, {5: 6, 6: 5, 0: 9})
    trees = dict(db.execute("SELECT dev, label FROM tree").fetchall())
    assert trees == {6: "in 5", 5: "in 6"}
    paths = {one.path: one.identity for one in boots.objects(db) if one.identity.dev < 9}
    assert paths == {
        "/5/disk": Identity(6, 12),
        "/5/step": Identity(6, 13),
        "/5/suspect": Identity(6, 14),
        "/6/disk": Identity(5, 12),
        "/6/step": Identity(5, 13),
        "/6/suspect": Identity(5, 14),
    }
    boots.renumber(db, {})
    boots.renumber(db, {5: -1})
    assert {one.identity.dev for one in boots.objects(db)} == {6, -1, 9}


def test_the_boot_is_remembered(db: Database) -> None:
    assert boots.last_boot(db) == ""
    for name in ("first", "second"):
        boots.remember(db, name)
        assert boots.last_boot(db) == name


def test_what_was_not_found_is_looked_for(db: Database) -> None:
    assert not boots.any_parked(db)
    db.execute("UPDATE quarantine SET dev = -1 WHERE id = 1")
    assert boots.any_parked(db)
    db.execute("UPDATE quarantine SET dev = 1 WHERE id = 1")
    boots.renumber(db, {5: -1})
    assert boots.any_parked(db)
