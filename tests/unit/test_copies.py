# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copies of the book: whole, looked at, marked as copies, and put in place or not at all."""

import asyncio
import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from svirtd.book import aside, copies, health, pool, registry
from svirtd.book.pool import PoolText
from svirtd.book.store import Store
from svirtd.config import Config
from svirtd.core.model import VM
from svirtd.core.pool import Permutation
from svirtd.errors import BookDamaged, Failed, StartError
from tests import books
from tests.books import damage

CONFIG = Config()
SHAPE = CONFIG.shape
TEXT = PoolText(CONFIG.private, CONFIG.groups, CONFIG.reserved, CONFIG.private_size)
DRAWS = 200


def go_on() -> bool:
    return False


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A book with rows in each table."""
    folder = tmp_path / "book"
    folder.mkdir()
    path = str(folder / "book.sqlite")
    books.load(books.names()[-1], path).close()
    return path


def copy_of(path: str, to: Path) -> Path:
    fd = copies.make(path, go_on)
    with open(fd, "rb") as file:
        to.write_bytes(file.read())
    return to


def draw(store: Store, permutation: Permutation) -> int:
    return store.now(lambda db: pool.draw_rank(db, permutation, lambda _: False, 16))


def prepared(store: Store) -> Permutation:
    return store.now(lambda db: pool.prepare(db, TEXT, SHAPE))


def drawn(path: str, count: int) -> list[int]:
    """Draw as the daemon does, and give it all back: the book stays sound."""
    store = Store.open(path)
    try:
        permutation = prepared(store)
        ranks = [draw(store, permutation) for _ in range(count)]
        for rank in ranks:
            store.now(lambda db, rank=rank: pool.retire(db, rank))  # type: ignore[misc]
        return ranks
    finally:
        store.close()


def vms(path: str) -> list[VM]:
    store = Store.open(path)
    try:
        found = store.now(lambda db: registry.all_vms(db, 100))
        assert found is not None
        return found
    finally:
        store.close()


def others(path: str) -> list[str]:
    folder, name = os.path.split(path)
    known = {name, f"{name}.lock"}
    return sorted(one for one in os.listdir(folder) if one not in known)


def test_a_copy_is_made_while_the_book_is_written(path: str, tmp_path: Path) -> None:
    store = Store.open(path)
    permutation = prepared(store)
    before = store.now(lambda db: registry.all_vms(db, 100))
    copy = copy_of(path, tmp_path / "copy")
    rank = draw(store, permutation)
    store.now(lambda db: pool.retire(db, rank))
    store.close()
    copies.check(str(copy))
    db = sqlite3.connect(copy)
    assert db.execute("SELECT count(*) FROM vm").fetchone() == (len(before or ()),)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    db.close()
    assert others(path) == []


def test_it_has_no_name_and_is_for_root_alone(path: str) -> None:
    Store.open(path).close()
    fd = copies.make(path, go_on)
    info = os.fstat(fd)
    assert (info.st_nlink, stat.S_IMODE(info.st_mode)) == (0, 0o600)
    os.close(fd)
    assert others(path) == []


def test_a_copy_that_is_stopped_leaves_nothing(path: str) -> None:
    Store.open(path).close()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(Failed, match="interrupted"):
        copies.make(path, lambda: True)
    assert others(path) == []
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_damaged_book_gives_no_copy(path: str) -> None:
    Store.open(path).close()
    damage.statement("UPDATE pool SET cursor = cursor + 1")(Path(path))
    with pytest.raises(BookDamaged, match="sets are in use"):
        copies.make(path, go_on)
    assert others(path) == []


def test_what_a_crash_left_of_a_copy_is_swept(path: str) -> None:
    for part in aside.PARTS:
        Path(f"{path}.copy-0123{part}").write_text("half a copy")
    Store.open(path).close()
    assert others(path) == []


# -- the check of a copy ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hurt", "text"),
    [
        (damage.header, "is not a sound copy of a book: file is not a database"),
        (damage.nothing_left, "is not a sound copy of a book: it is empty"),
        (damage.half, "is not a sound copy of a book"),
        (damage.pages, "is not a sound copy of a book"),
        (damage.bits_of("hold_object"), "is not a sound copy of a book"),
        (damage.statement("UPDATE pool SET cursor = 0"), "contradicts itself"),
        (
            damage.statement(
                "INSERT INTO _sqlite_migrations(migration_set, name, applied_at)"
                " VALUES ('svirtd', '9999-later', '2030-01-01')"
            ),
            "written by a newer svirtd",
        ),
        (damage.statement("DROP TABLE _sqlite_migrations"), "not a book of svirtd"),
        (os.unlink, "is not a file"),
        (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
    ],
)
def test_what_is_no_sound_copy(path: str, tmp_path: Path, hurt: damage.Hurt, text: str) -> None:
    copy = copy_of(path, tmp_path / "copy")
    hurt(copy)
    with pytest.raises(StartError, match=text):
        copies.check(str(copy))
    Store.open(path).close()
    before = Path(path).read_bytes()
    with pytest.raises(StartError, match=text) as refused:
        copies.restore(path, str(copy), TEXT, SHAPE)
    assert str(copy) in str(refused.value) or "newer" in text
    assert Path(path).read_bytes() == before
    assert others(path) == []


# -- restoring --------------------------------------------------------------------------------


def test_a_restored_book_has_what_the_copy_had(path: str, tmp_path: Path) -> None:
    before = vms(path)
    copy = copy_of(path, tmp_path / "copy")
    store = Store.open(path)
    gone = before[0]
    store.now(lambda db: db.execute("UPDATE vm SET reason = 'later'"))
    store.close()
    earlier = copies.restore(path, str(copy), TEXT, SHAPE)
    assert earlier is not None
    assert earlier.startswith(f"{path}.replaced-20")
    assert vms(path) == before
    assert gone in before
    # Today's is kept, whole in one file.
    assert others(path) == [os.path.basename(earlier)]
    assert {vm.reason for vm in vms(earlier)} == {"later"}
    assert stat.S_IMODE(os.stat(path).st_mode) == stat.S_IMODE(os.stat(earlier).st_mode) == 0o600
    # The copy is as it was, to be used again.
    copies.check(str(copy))


@pytest.mark.parametrize("name", books.names())
def test_a_copy_of_an_earlier_version_is_restored(path: str, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    books.load(name, str(copy)).close()
    copies.check(str(copy))
    copies.restore(path, str(copy), TEXT, SHAPE)
    assert {"web", "spare", "stuck"} <= {vm.name for vm in vms(path)}
    health.Check(path).run()


def test_what_was_drawn_since_is_not_drawn_again(path: str, tmp_path: Path) -> None:
    copy = copy_of(path, tmp_path / "copy")
    since = drawn(path, DRAWS)
    # A copy that is drawn on as it is gives out the very same sets, one after the other.
    raw = sqlite3.connect(path)
    key, total = raw.execute("SELECT key FROM pool").fetchone()[0], SHAPE.total
    raw.close()
    (cursor,) = sqlite3.connect(copy).execute("SELECT cursor FROM pool").fetchone()
    order = Permutation(key, total)
    taken = {vm.rank for vm in vms(path)}
    following = [order.at(cursor + n) for n in range(DRAWS + len(taken))]
    assert [rank for rank in following if rank not in taken][:DRAWS] == since
    copies.restore(path, str(copy), TEXT, SHAPE)
    again = drawn(path, DRAWS)
    # By chance a few of 294,528 may be the same.
    assert len(set(again) & set(since)) < DRAWS / 10
    assert not set(again) & {vm.rank for vm in vms(path)}
    health.Check(path).run()


def test_a_copy_that_somebody_puts_there_by_hand_gets_another_order(
    path: str, tmp_path: Path
) -> None:
    copy = copy_of(path, tmp_path / "copy")
    since = drawn(path, DRAWS)
    shutil.copyfile(copy, path)
    again = drawn(path, DRAWS)
    assert len(set(again) & set(since)) < DRAWS / 10
    # Once: from then on it is the book, whose order stays.
    store = Store.open(path)
    assert prepared(store).key == prepared(store).key
    store.close()
    health.Check(path).run()


def test_it_is_not_restored_under_a_daemon(path: str, tmp_path: Path) -> None:
    copy = copy_of(path, tmp_path / "copy")
    store = Store.open(path)
    with pytest.raises(StartError, match=f"in use by another svirtd, process {os.getpid()}"):
        copies.restore(path, str(copy), TEXT, SHAPE)
    store.close()
    assert others(path) == []


def test_it_is_not_restored_into_another_pool(path: str, tmp_path: Path) -> None:
    copy = copy_of(path, tmp_path / "copy")
    other = PoolText("c0.c99", TEXT.groups, "", 2)
    with pytest.raises(StartError, match=r"private was 'c0\.c767' and is 'c0\.c99'"):
        copies.restore(path, str(copy), other, Config(private="c0.c99").shape)
    assert others(path) == []


def test_it_is_restored_where_there_is_no_book(path: str, tmp_path: Path) -> None:
    before = vms(path)
    copy = copy_of(path, tmp_path / "copy")
    os.unlink(path)
    assert copies.restore(path, str(copy), TEXT, SHAPE) is None
    assert vms(path) == before


def test_it_is_restored_over_a_damaged_book_with_its_log(path: str, tmp_path: Path) -> None:
    copy = copy_of(path, tmp_path / "copy")
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("UPDATE vm SET reason = 'in the log'")
    log = Path(f"{path}-wal").read_bytes()
    db.close()
    damage.header(Path(path))
    Path(f"{path}-wal").write_bytes(log)
    aside.suspect(path, "damaged")
    earlier = copies.restore(path, str(copy), TEXT, SHAPE)
    assert earlier is not None
    assert not any(vm.reason == "in the log" for vm in vms(path))
    assert others(path) == [os.path.basename(earlier), f"{os.path.basename(earlier)}-wal"]


def test_a_book_that_was_moved_aside_is_restored_with_its_log(path: str, tmp_path: Path) -> None:
    away = tmp_path / "away"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("UPDATE vm SET reason = 'in the log'")
    for part in ("", "-wal"):
        shutil.copyfile(f"{path}{part}", f"{away}{part}")
    db.close()
    copies.restore(path, str(away), TEXT, SHAPE)
    assert {vm.reason for vm in vms(path)} == {"in the log"}


def test_counts_are_those_of_the_copy(path: str, tmp_path: Path) -> None:
    def counts() -> tuple[int, int]:
        store = Store.open(path)
        prepared(store)
        found = asyncio.run(store.read(pool.counts))
        store.close()
        return found.pairs_in_use, found.pairs_quarantined

    before = counts()
    copies.restore(path, str(copy_of(path, tmp_path / "copy")), TEXT, SHAPE)
    assert counts() == before == (7, 1)
