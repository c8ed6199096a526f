# SPDX-License-Identifier: LGPL-2.1-or-later
"""A book of every earlier schema, with data in it, becomes one of today's and loses nothing."""

from pathlib import Path
from typing import Any

import pytest

from svirtd.book import ledger, pool, registry, schema
from svirtd.book.store import Database, Store
from svirtd.core.model import Access, Hold
from tests import books

# The one besides is the library's own.
_OURS = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> '_sqlite_migrations'"
Rows = dict[str, list[dict[str, Any]]]


def content(db: Database) -> Rows:
    tables = [name for (name,) in db.execute(_OURS)]
    found: Rows = {}
    for table in tables:
        cursor = db.execute(f"SELECT * FROM {table} ORDER BY 1, 2")
        names = [column[0] for column in cursor.description]
        found[table] = [dict(zip(names, row, strict=True)) for row in cursor]
    return found


def shape(db: Database) -> dict[str, object]:
    tables = [name for (name,) in db.execute(_OURS)]
    columns = {
        table: sorted(row[1:] for row in db.execute(f"PRAGMA table_xinfo({table})"))
        for table in tables
    }
    keys = {
        table: sorted(row[2:] for row in db.execute(f"PRAGMA foreign_key_list({table})"))
        for table in tables
    }
    indexes = sorted(
        db.execute("SELECT tbl_name, name FROM sqlite_schema WHERE type = 'index' AND sql <> ''")
    )
    strict = {row[1]: row[5] for row in db.execute("PRAGMA table_list") if row[1] in tables}
    return {"columns": columns, "keys": keys, "indexes": indexes, "strict": strict}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "book.sqlite")


def test_a_book_of_every_schema_is_kept() -> None:
    kept = {file.stem for file in books.FOLDER.glob("*.sql")}
    assert kept == set(books.names()), "make the missing one with: python -m tests.books NAME"


@pytest.mark.parametrize("name", books.names())
def test_every_table_of_a_kept_book_has_rows(name: str) -> None:
    db = books.load(name)
    assert [m.name for m in schema.migrations.applied(db)][-1] == name
    empty = [table for table, rows in content(db).items() if not rows]
    assert not empty
    db.close()


@pytest.mark.parametrize("name", books.names())
def test_nothing_is_lost(path: str, name: str, tmp_path: Path) -> None:
    db = books.load(name, path)
    before = content(db)
    db.close()
    store = Store.open(path)
    try:
        after = store.now(content)
        for table, rows in before.items():
            kept = [
                {column: new[column] for column in old}
                for old, new in zip(rows, after[table], strict=True)
            ]
            assert kept == rows
        fresh = Store.open(str(tmp_path / "fresh.sqlite"))
        try:
            assert store.now(shape) == fresh.now(shape)
        finally:
            fresh.close()
        assert all(store.now(shape)["strict"].values())  # type: ignore[attr-defined]
        assert store.now(lambda db: list(db.execute("PRAGMA foreign_key_check"))) == []
        assert store.now(lambda db: list(db.execute("PRAGMA integrity_check"))) == [("ok",)]
    finally:
        store.close()


@pytest.mark.parametrize("name", books.names())
def test_what_was_open_is_understood(path: str, name: str) -> None:
    books.load(name, path).close()
    store = Store.open(path)
    try:
        operations = store.now(ledger.unfinished)
        assert [(o.id, o.vm.name) for o in operations] == [(3, "stuck"), (4, "new")]
        assert operations[1].created
        assert operations[1].steps[0].path == "/srv/new.img"
        assert [one.rank for one in store.now(lambda db: pool.suspects(db, 9))] == [211361] * 2
        web = store.now(lambda db: registry.vm_by_name(db, "web"))
        assert web is not None
        assert store.now(lambda db: registry.holds_of(db, web))[1] == Hold(
            web.id,
            "web",
            store.now(lambda db: registry.holds_of(db, web))[1].identity,
            "/srv/tools.iso",
            Access.PUBLIC,
            "system_u:object_r:virt_content_t:s0",
            "system_u:object_r:virt_image_t:s0",
            number=1,
        )
        known = {hold.path: hold.original_known for hold in _all_holds(store)}
        assert known["/srv/web.img"]
        earlier = books.names()[: books.names().index("0003-unknown-original")]
        assert known["/dev/sdb"] is (name in earlier)
    finally:
        store.close()


def _all_holds(store: Store) -> list[Hold]:
    vms = store.now(lambda db: registry.all_vms(db, 100))
    assert vms is not None
    return [h for vm in vms for h in store.now(lambda db, vm=vm: registry.holds_of(db, vm))]  # type: ignore[misc]
