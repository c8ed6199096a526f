# SPDX-License-Identifier: LGPL-2.1-or-later
"""A damaged book is told from one that cannot be used now, and is moved aside, never away."""

import asyncio
import os
import re
import resource
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.book import aside, connection, registry
from svirtd.book.health import Check
from svirtd.book.store import Store
from svirtd.core.model import Identity
from svirtd.errors import BookDamaged, Failed, StartError
from tests import books
from tests.books import damage
from tests.books.damage import Hurt

# What a start meets before it uses the book.
AT_START: dict[str, tuple[Hurt, str]] = {
    "header": (damage.header, "file is not a database"),
    "empty": (damage.nothing_left, "is empty"),
    "truncated": (damage.half, "malformed"),
    "pages": (damage.pages, "malformed"),
    "a table's page": (damage.page_of("vm"), "malformed"),
    "an index's page": (damage.page_of("idx_vm_name"), "malformed"),
    "no table": (damage.statement("DROP TABLE quarantine"), "no such table"),
    "no column": (damage.statement("ALTER TABLE hold DROP COLUMN label"), "no such column"),
    "no pool": (damage.statement("DELETE FROM pool"), "pool has 0 rows"),
    "two pools": (
        damage.statement("INSERT INTO pool SELECT 2, private, groups, reserved, size, key, 0, 0,"
                         " 0, 0 FROM pool"),
        "pool has 2 rows",
    ),
    "cursor": (damage.statement("UPDATE pool SET cursor = cursor + 1"), "sets are in use"),
    "cursor below": (damage.statement("UPDATE pool SET cursor = 0"), "contradicts itself"),
    "cursor above": (
        damage.statement("UPDATE pool SET cursor = 294529, returned = 294520"),
        "issued 294530 of 294528 sets",
    ),
    "returned": (damage.statement("DELETE FROM returned WHERE seq = 2"), "2 sets are returned"),
    "quarantine": (
        damage.statement("UPDATE quarantine SET rank = 5 WHERE id = 2"),
        "1 sets are in quarantine, and there are 2",
    ),
    "no such rank": (
        damage.statement("UPDATE returned SET rank = 294528 WHERE seq = 2"),
        "returned has rank 294528",
    ),
    "a state": (damage.statement("UPDATE vm SET state = 'x' WHERE name = 'web'"), "not a valid"),
    "an access": (damage.statement("UPDATE hold SET access = 'x'"), "not a valid"),
    "a kind": (damage.statement("UPDATE operation SET kind = 'x'"), "not a valid"),
    "steps": (damage.statement("UPDATE operation SET steps = '[[1, 2'"), "damaged"),
    "other steps": (damage.statement("UPDATE operation SET steps = '[1]'"), "damaged"),
    "no VM": (damage.statement("UPDATE operation SET rank = 7"), "belongs to no"),
    "no text": (
        damage.statement("UPDATE vm SET unit = CAST(x'ff' AS TEXT) WHERE name = 'web'"),
        "decode",
    ),
}  # fmt: skip

# What lies where a start does not look.
LATER: dict[str, tuple[Hurt, str]] = {
    "an index": (damage.bits_of("hold_object"), "hold_object"),
    "a hold of nobody": (
        damage.statement("UPDATE hold SET rank = 3 WHERE rank = (SELECT max(rank) FROM hold)"),
        "a row of hold .* belongs to no vm",
    ),
    "categories": (
        damage.statement("UPDATE vm SET categories = 'c1,c2' WHERE name = 'spare'"),
        "VM 'spare' has categories c1,c2",
    ),
    "free and used": (
        damage.statement("UPDATE returned SET rank = (SELECT max(rank) FROM vm) WHERE seq = 2"),
        "is free, and in vm",
    ),
    "a free category of a group": (
        damage.statement("INSERT INTO group_returned(category) VALUES (801)"),
        "category c801 is free, and a group's",
    ),
    "a group's category of elsewhere": (
        damage.statement("UPDATE vm_group SET category = 5 WHERE name = 'db'"),
        "group 'db' has c5, which is none of the groups' pool",
    ),
    "a hold of no group": (
        damage.statement("UPDATE hold SET grp = 'none'"),
        "something is held by group 'none', which does not exist",
    ),
    "a grant's end": (
        damage.statement("INSERT INTO vm_grant VALUES('db', 'x', 0, 1, 'x', 1, 0)"),
        "not a valid",
    ),
    "no such category": (
        damage.statement(
            "INSERT INTO quarantine SELECT 99, -2000, vm_name, dev, ino, path, label,"
            " reason, since_us, original, restorable, owner_uid FROM quarantine"
            " WHERE id = 1"
        ),
        "quarantine has category c1999, which does not exist",
    ),
    "a rank nobody drew": (
        damage.statement("UPDATE returned SET rank = 17 WHERE seq = 2"),
        "2 sets are issued ahead of the pool's order, the book says 1",
    ),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound book with rows in each table."""
    path = tmp_path / "book.sqlite"
    books.load(books.names()[-1], str(path)).close()
    return path


@pytest.fixture
def moved() -> list[tuple[str, str]]:
    return []


def reopen(path: Path, moved: list[tuple[str, str]]) -> Store:
    return Store.open(str(path), replaced=lambda where, why: moved.append((where, str(why))))


def names_of(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path.parent) if not name.endswith(".lock"))


def vms(store: Store) -> int:
    found = asyncio.run(store.read(lambda db: registry.all_vms(db, 100)))
    assert found is not None
    return len(found)


def test_a_sound_book_stays(path: Path, moved: list[tuple[str, str]]) -> None:
    store = reopen(path, moved)
    assert vms(store) == 7
    Check(str(path)).run()
    store.close()
    assert moved == []
    assert names_of(path) == ["book.sqlite"]


@pytest.mark.parametrize("name", AT_START)
def test_a_damaged_book_makes_way(path: Path, moved: list[tuple[str, str]], name: str) -> None:
    hurt, text = AT_START[name]
    hurt(path)
    with pytest.raises(BookDamaged, match=text):
        Store.open(str(path))
    before = path.read_bytes()
    store = reopen(path, moved)
    ((where, why),) = moved
    assert text in why
    assert where.startswith(f"{path}.damaged-20")
    assert Path(where).read_bytes() == before
    assert stat.S_IMODE(os.stat(where).st_mode) == 0o600
    assert vms(store) == 0
    store.close()
    # It makes way once: the new one is used.
    store = reopen(path, moved)
    assert len(moved) == 1
    store.close()


def test_the_log_goes_with_its_book(path: Path, moved: list[tuple[str, str]]) -> None:
    # As after a crash: what was committed last is in the log only.
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("UPDATE vm SET state = 'x'")
    log = Path(f"{path}-wal").read_bytes()
    parts = {part: Path(f"{path}{part}").read_bytes() for part in ("", "-wal", "-shm")}
    db.close()
    for part, data in parts.items():
        Path(f"{path}{part}").write_bytes(data)
    store = reopen(path, moved)
    ((where, _),) = moved
    store.close()
    assert names_of(path)[0] == "book.sqlite"
    with sqlite3.connect(where) as found:
        assert found.execute("SELECT DISTINCT state FROM vm").fetchall() == [("x",)]
    found.close()
    assert log


def test_a_log_without_a_book_means_nothing(path: Path, moved: list[tuple[str, str]]) -> None:
    """Where a move was cut off between the book and its log."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("UPDATE vm SET reason = 'in the log'")
    log = Path(f"{path}-wal").read_bytes()
    db.close()
    path.unlink()
    Path(f"{path}-wal").write_bytes(log)
    store = reopen(path, moved)
    assert vms(store) == 0
    store.close()
    assert moved == []


def test_nothing_is_overwritten(path: Path, moved: list[tuple[str, str]]) -> None:
    kept = {}
    for number in range(3):
        path.write_bytes(b"no book %d" % number * 100)
        reopen(path, moved).close()
        kept[moved[-1][0]] = path_bytes = Path(moved[-1][0]).read_bytes()
        assert path_bytes.startswith(b"no book %d" % number)
    assert len(kept) == 3
    assert all(Path(where).read_bytes() == data for where, data in kept.items())


# -- what may be sound and cannot be used now -------------------------------------------------


def stays(path: Path, text: str) -> None:
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(StartError, match=text):
        Store.open(str(path), replaced=lambda *_: pytest.fail("it was moved aside"))
    assert (path.read_bytes() if path.is_file() else b"") == before
    assert not [name for name in names_of(path) if "damaged" in name]


def test_a_newer_book_stays(path: Path) -> None:
    damage.statement(
        "INSERT INTO _sqlite_migrations(migration_set, name, applied_at)"
        " VALUES ('svirtd', '9999-later', '2030-01-01')"
    )(path)
    damage.statement("PRAGMA journal_mode=WAL")(path)
    stays(path, "newer svirtd .*9999-later")


def test_a_book_that_somebody_locks_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_BUSY_TIMEOUT_S", 0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    stays(path, "database is locked")
    holder.close()


def test_a_book_in_use_stays(path: Path) -> None:
    store = Store.open(str(path))
    stays(path, "in use by another svirtd")
    store.close()


def test_a_folder_in_its_place_stays(path: Path) -> None:
    path.unlink()
    path.mkdir()
    stays(path, "unable to open database file")


def test_without_descriptors_it_stays(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    taken = [os.open("/dev/null", os.O_RDONLY)]
    while taken[-1] <= highest:  # no number is free below the last
        taken.append(os.open("/dev/null", os.O_RDONLY))
    said = []
    try:
        # Enough for the lock, but not for the book, then for the book but not for its log, ….
        for spare in range(1, 10):
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1 + spare, hard))
            try:
                store = Store.open(str(path), replaced=lambda *_: pytest.fail("it was moved aside"))
            except StartError as error:
                said.append(str(error))
            else:
                store.close()
                break
        else:
            pytest.fail("nine descriptors are not enough for a book")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    assert said
    for text in said:
        assert re.search("Too many open files|unable to open database file", text), text
    assert not [name for name in names_of(path) if "damaged" in name]


@pytest.mark.parametrize(
    ("code", "lost"),
    [
        ("SQLITE_CORRUPT", True),
        ("SQLITE_CORRUPT_INDEX", True),
        ("SQLITE_NOTADB", True),
        ("SQLITE_IOERR", False),
        ("SQLITE_IOERR_READ", False),
        ("SQLITE_FULL", False),
        ("SQLITE_READONLY", False),
        ("SQLITE_CANTOPEN", False),
        ("SQLITE_BUSY", False),
        ("SQLITE_NOMEM", False),
        ("SQLITE_INTERRUPT", False),
    ],
)
def test_what_an_error_means(path: Path, code: str, *, lost: bool) -> None:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorcode = getattr(sqlite3, code, None) or {"SQLITE_CORRUPT_INDEX": 779}[code]
    for door in (connection.opening, connection.reading_all):
        with pytest.raises(BookDamaged if lost else StartError), door(str(path)):
            raise error
    assert isinstance(connection.failure(str(path), error), BookDamaged) is lost


# -- the whole check --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*AT_START, *LATER])
def test_a_whole_check_finds_it(path: Path, name: str) -> None:
    hurt, text = (AT_START | LATER)[name]
    hurt(path)
    if name == "empty":
        text = "no such table"
    with pytest.raises(BookDamaged, match="damaged" if "page" in name else text):
        Check(str(path)).run()


@pytest.mark.parametrize("name", LATER)
def test_it_can_be_opened_and_the_next_start_is_told(
    path: Path, moved: list[tuple[str, str]], name: str
) -> None:
    LATER[name][0](path)
    store = reopen(path, moved)
    with pytest.raises(BookDamaged) as found:
        Check(str(path)).run()
    store.note_damage(found.value)
    store.close()
    assert moved == []
    assert names_of(path) == ["book.sqlite", "book.sqlite.suspect"]
    store = reopen(path, moved)
    assert len(moved) == 1
    assert vms(store) == 0
    store.close()
    assert "book.sqlite.suspect" not in names_of(path)


def test_a_suspected_book_that_is_sound_is_used(path: Path, moved: list[tuple[str, str]]) -> None:
    aside.suspect(str(path), "a cosmic ray")
    store = reopen(path, moved)
    assert store.checked
    assert vms(store) == 7
    store.close()
    assert moved == []
    assert names_of(path) == ["book.sqlite"]
    store = reopen(path, moved)
    assert not store.checked
    store.close()


def test_damage_that_a_request_meets_is_noted(path: Path) -> None:
    damage.page_of("hold_object")(path)
    store = Store.open(str(path))

    async def look() -> BookDamaged:
        waiting = asyncio.ensure_future(store.damaged())
        with pytest.raises(BookDamaged):
            await store.read(lambda db: registry.snapshot(db, [Identity(1, 2)]))
        return await waiting

    assert "malformed" in str(asyncio.run(look()))
    assert isinstance(store.damage, Failed)
    store.close()
    assert aside.is_suspected(str(path))


def test_damage_that_a_writer_meets_is_noted(path: Path) -> None:
    damage.page_of("hold_object")(path)
    store = Store.open(str(path))

    async def write() -> None:
        with pytest.raises(BookDamaged):
            await store.write(lambda db: db.execute("UPDATE hold SET dev = dev + 1"))

    asyncio.run(write())
    assert store.damage is not None
    store.close()


@pytest.fixture
def held(path: Path) -> Iterator[sqlite3.Connection]:
    """A book that is large enough for a check to be stopped in."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN")
    db.execute("CREATE TABLE filler(a INTEGER PRIMARY KEY, b TEXT) STRICT")
    db.executemany("INSERT INTO filler(b) VALUES (?)", [("x" * 200,)] * 200_000)
    db.execute("COMMIT")
    yield db
    db.close()


def test_a_check_can_be_stopped(path: Path, held: sqlite3.Connection) -> None:
    check, ended = Check(str(path)), threading.Event()
    refusal: list[Failed] = []

    def run() -> None:
        try:
            check.run()
        except Failed as error:
            refusal.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not ended.wait(0.001):
        check.stop()
    thread.join()
    (error,) = refusal
    assert not isinstance(error, BookDamaged)
    assert "interrupted" in str(error)
