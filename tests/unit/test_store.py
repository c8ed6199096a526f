# SPDX-License-Identifier: LGPL-2.1-or-later
"""The book's file: transactions in groups, settings, the lock, the schema, the pool in it."""

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.book import ledger, pool, registry
from svirtd.book.pool import PoolText, Suspect
from svirtd.book.store import Database, Store
from svirtd.core.mcs import format_categories, parse_categories
from svirtd.core.model import (
    VM,
    Access,
    Hold,
    Identity,
    Lifetime,
    OperationKind,
    State,
    Step,
)
from svirtd.core.pool import RankTaken, Shape, make_shape
from svirtd.errors import BookDamaged, Failed, NoSuchVM, PoolExhausted, StartError

TEXT = PoolText("c0.c3", "", "", 2)
LIMIT = 16


def shape_of(text: PoolText) -> Shape:
    return make_shape(parse_categories(text.private), frozenset(), frozenset(), text.size)


SHAPE = shape_of(TEXT)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "book" / "book.sqlite")


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    store = Store.open(path)
    yield store
    store.close()


def note(number: int) -> str:
    return f"INSERT INTO returned(rank) VALUES ({number})"


def noted(db: Database) -> list[int]:
    return [rank for (rank,) in db.execute("SELECT rank FROM returned ORDER BY seq")]


def hold_up(store: Store) -> threading.Event:
    """Make the writer wait in a transaction of its own until the event is set."""
    go, there = threading.Event(), threading.Event()

    def wait(_db: Database) -> None:
        there.set()
        assert go.wait(10)

    store.write_behind(wait)
    assert there.wait(10)
    return go


def test_writers_that_wait_share_one_commit(store: Store) -> None:
    async def burst() -> int:
        go, before = hold_up(store), store.commits
        writes = [
            asyncio.ensure_future(store.write(lambda db, n=n: db.execute(note(n)) and n))  # type: ignore[misc]
            for n in range(50)
        ]
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*writes) == list(range(50))
        return store.commits - before

    assert asyncio.run(burst()) == 2  # the one that was waited for, and one for all the others
    assert asyncio.run(store.read(noted)) == list(range(50))


def test_without_group_commit_each_writer_has_its_own(path: str) -> None:
    store = Store.open(path, group_commit=False)

    async def burst() -> int:
        go, before = hold_up(store), store.commits
        writes = [
            asyncio.ensure_future(store.write(lambda db, n=n: db.execute(note(n)) and n))  # type: ignore[misc]
            for n in range(10)
        ]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*writes)
        return store.commits - before

    assert asyncio.run(burst()) == 11
    store.close()


def test_a_refusal_in_a_group_touches_no_neighbour(store: Store) -> None:
    def refused(db: Database) -> None:
        db.execute(note(100))
        raise NoSuchVM("not this one")

    def broken(db: Database) -> None:
        db.execute(note(101))
        db.execute(note(101))  # UNIQUE

    async def burst() -> list[object]:
        go, before = hold_up(store), store.commits
        writes = [
            asyncio.ensure_future(store.write(fn))
            for fn in (lambda db: db.execute(note(1)).rowcount, refused, broken,
                       lambda db: db.execute(note(2)).rowcount)
        ]  # fmt: skip
        await asyncio.sleep(0)
        go.set()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert store.commits - before == 2
        return list(results)

    first, second, third, fourth = asyncio.run(burst())
    assert (first, fourth) == (1, 1)
    assert isinstance(second, NoSuchVM)
    assert isinstance(third, sqlite3.IntegrityError)
    assert asyncio.run(store.read(noted)) == [1, 2]


def test_a_writer_that_gave_up_holds_up_nobody(store: Store) -> None:
    async def run() -> list[int]:
        go = hold_up(store)
        gone = asyncio.ensure_future(store.write(lambda db: db.execute(note(1))))
        await asyncio.sleep(0)
        gone.cancel()
        stays = asyncio.ensure_future(store.write(noted))
        await asyncio.sleep(0)
        go.set()
        return await stays

    assert asyncio.run(run()) == [1]


def test_durable_writes_are_synced_and_others_are_not(store: Store) -> None:
    def synchronous(db: Database) -> int:
        return int(db.execute("PRAGMA synchronous").fetchone()[0])

    async def run() -> list[int]:
        return [
            await store.write(synchronous, durable=durable)
            for durable in (True, False, False, True, False)
        ]

    assert asyncio.run(run()) == [2, 1, 1, 2, 1]


def test_one_durable_writer_makes_the_group_durable(store: Store) -> None:
    def synchronous(db: Database) -> int:
        return int(db.execute("PRAGMA synchronous").fetchone()[0])

    async def run() -> list[int]:
        go = hold_up(store)
        writes = [
            asyncio.ensure_future(store.write(synchronous, durable=durable))
            for durable in (False, True, False)
        ]
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*writes)

    assert asyncio.run(run()) == [2, 2, 2]


def test_readers_see_what_was_committed_and_write_nothing(store: Store) -> None:
    async def run() -> None:
        go = hold_up(store)
        write = asyncio.ensure_future(store.write(lambda db: db.execute(note(1))))
        await asyncio.sleep(0)
        assert await store.read(noted) == []  # answers while a commit is held up
        go.set()
        await write
        assert await store.read(noted) == [1]
        with pytest.raises(Failed, match="readonly"):
            await store.read(lambda db: db.execute(note(2)))

    asyncio.run(run())


def test_closing_finishes_what_is_queued(path: str) -> None:
    store = Store.open(path)

    async def run() -> None:
        go = hold_up(store)
        for number in range(5):
            store.write_behind(lambda db, n=number: db.execute(note(n)) and None)  # type: ignore[misc]
        go.set()
        await asyncio.to_thread(store.close)

    asyncio.run(run())
    with sqlite3.connect(path) as book:
        assert noted(Database(book)) == [0, 1, 2, 3, 4]
    book.close()


def test_settings_are_read_back(store: Store, path: str) -> None:
    def settings(db: Database) -> dict[str, object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "trusted_schema",
                 "wal_autocheckpoint")  # fmt: skip
        return {name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in names}

    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "trusted_schema": 0,
              "wal_autocheckpoint": 0}  # fmt: skip
    assert asyncio.run(store.write(settings)) == wanted
    assert asyncio.run(store.read(settings)) == wanted
    modes = {name: stat.S_IMODE(os.stat(name).st_mode) for name in (path, path + ".lock")}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert os.stat(path + "-wal").st_size >= 1 << 20  # grown once, at start


def test_every_table_is_strict_and_keys_are_kept(store: Store) -> None:
    def tables(db: Database) -> list[tuple[str, int]]:
        rows = db.execute("SELECT name, strict FROM pragma_table_list WHERE schema = 'main'")
        return [(name, strict) for name, strict in rows
                if not name.startswith(("sqlite_", "_sqlite_migrations"))]  # fmt: skip

    found = asyncio.run(store.read(tables))
    assert {name for name, _ in found} == {
        "pool",
        "tree",
        "returned",
        "quarantine",
        "vm",
        "group_returned",
        "member",
        "vm_grant",
        "vm_group",
        "wall_clear",
        "wall_history",
        "hold",
        "operation",
        "boot",
        "enrolment",
    }
    assert [name for name, strict in found if not strict] == []
    with pytest.raises(StartError, match="cannot store TEXT"):
        store.now(lambda db: db.execute("INSERT INTO returned(rank) VALUES ('many')"))
    nobody = vm(0)
    held = Hold(nobody.id, nobody.name, Identity(1, 2), "/a", Access.EXCLUSIVE, "new", None)
    with pytest.raises(StartError, match="FOREIGN KEY"):
        store.now(lambda db: registry.add_holds(db, nobody, [held]))


def test_the_lock_names_who_holds_it(store: Store, path: str) -> None:
    with pytest.raises(StartError, match=rf"in use by another svirtd, process {os.getpid()};"):
        Store.open(path)
    assert asyncio.run(store.read(noted)) == []  # the first one is not disturbed


def test_the_lock_goes_with_its_process(path: str) -> None:
    script = (
        "import os, sys; from svirtd.book.store import Store\n"
        "Store.open(sys.argv[1]); os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], check=False)
    assert done.returncode == 9
    store = Store.open(path)
    assert Path(path + ".lock").read_text() == f"{os.getpid()}\n"
    store.close()


def test_migrations_run_once_and_a_newer_book_is_refused(path: str) -> None:
    Store.open(path).close()
    before = _migrations(path)
    Store.open(path).close()
    assert _migrations(path) == before != []
    with sqlite3.connect(path) as book:
        book.execute(
            "INSERT INTO _sqlite_migrations(migration_set, name, applied_at)"
            " VALUES ('svirtd', '0999-later', '2099-01-01')"
        )
    book.close()
    with pytest.raises(StartError, match=r"newer svirtd \(it has 0999-later\)"):
        Store.open(path)
    # The lock was let go: it is the book that stands in the way, not a leftover of the attempt.
    with pytest.raises(StartError, match="newer svirtd"):
        Store.open(path)
    assert _open_files(path) == []


def _migrations(path: str) -> list[tuple[str, str]]:
    with sqlite3.connect(path) as book:
        rows = book.execute("SELECT name, applied_at FROM _sqlite_migrations").fetchall()
    book.close()
    return rows


def test_what_is_no_book_is_refused_and_left_alone(path: str) -> None:
    os.makedirs(os.path.dirname(path))
    Path(path).write_bytes(b"no book " * 1000)
    with pytest.raises(BookDamaged, match="file is not a database"):
        Store.open(path)
    assert Path(path).read_bytes() == b"no book " * 1000
    assert _open_files(path) == []


def _open_files(path: str) -> list[str]:
    """What this process has open of a book: the database, its log, its lock."""
    targets = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            targets.append(os.readlink(fd))
    return [target for target in targets if target.startswith(path)]


# -- the pool in the book ---------------------------------------------------------------------


def vm(rank: int, **changes: object) -> VM:
    categories = format_categories(SHAPE.categories_of(rank))
    values: dict[str, object] = {
        "id": f"{rank:016x}", "name": f"vm{rank}", "owner_uid": 0, "state": State.LABELLED,
        "reason": "", "goal": "isolated", "uuid": "", "rank": rank, "categories": categories,
        "process_context": f"u:r:p:s0:{categories}", "image_context": f"u:r:i:s0:{categories}",
        "unit": "", "main_pid": 0, "runtime_dir": "", "persistent": False,
        "lifetime": Lifetime.RELEASE, "caller": "", "created_us": 1,
    } | changes  # fmt: skip
    return VM(**values)  # type: ignore[arg-type]


def draw(store: Store) -> int:
    permutation = store.now(lambda db: pool.prepare(db, TEXT, SHAPE))
    return store.now(lambda db: pool.draw_rank(db, permutation, lambda _: False, LIMIT))


def test_the_pool_gives_each_set_once_and_returns_late(store: Store) -> None:
    ranks = [draw(store) for _ in range(SHAPE.total)]
    assert sorted(ranks) == list(range(SHAPE.total))
    with pytest.raises(PoolExhausted, match="of 6 category sets, 6 are in use"):
        draw(store)
    for rank in (ranks[3], ranks[0]):
        store.now(lambda db, rank=rank: pool.retire(db, rank))  # type: ignore[misc]
    permutation = store.now(lambda db: pool.prepare(db, TEXT, SHAPE))
    peeked = store.now(lambda db: pool.peek_rank(db, permutation, lambda _: False, LIMIT))
    assert peeked == ranks[3]
    assert [draw(store), draw(store)] == [ranks[3], ranks[0]]


def test_a_suspected_set_waits_until_every_object_is_clean(store: Store) -> None:
    rank = draw(store)
    found = [Suspect(0, rank, "vm", Identity(1, n), f"/{n}", "label", "why") for n in (1, 2)]
    store.now(lambda db: pool.suspect(db, found))
    store.now(lambda db: pool.retire(db, rank))
    counts = asyncio.run(store.read(pool.counts))
    assert (counts.pairs_in_use, counts.pairs_quarantined) == (0, 1)
    others = [draw(store) for _ in range(SHAPE.total - 1)]
    assert rank not in others
    with pytest.raises(PoolExhausted, match="1 in quarantine"):
        draw(store)
    for expected in (1, 0):
        (suspect, *_) = store.now(lambda db: pool.suspects(db, 10))
        store.now(lambda db, one=suspect: pool.seen_clean(db, one))  # type: ignore[misc]
        assert asyncio.run(store.read(pool.counts)).pairs_quarantined == expected
    assert draw(store) == rank


def test_suspects_page_by_page(store: Store) -> None:
    """Whoever looks at all of them is not kept at the first ones, which may stay for good."""
    made = [Suspect(0, 7, "vm", Identity(1, n), f"/{n}", "l", "why") for n in range(5)]
    store.now(lambda db: pool.suspect(db, made))
    seen: list[int] = []
    last = 0
    while some := store.now(lambda db, last=last: pool.suspects(db, 2, last)):  # type: ignore[misc]
        assert len(some) <= 2
        seen += [one.identity.ino for one in some]
        last = some[-1].id
    assert seen == list(range(5))


def test_the_pool_survives_a_new_start(path: str) -> None:
    store = Store.open(path)
    ranks = [draw(store) for _ in range(3)]
    for rank in ranks:
        store.now(lambda db, rank=rank: registry.add_vm(db, vm(rank)))  # type: ignore[misc]
    store.close()
    store = Store.open(path)
    ranks += [draw(store) for _ in range(3)]
    store.close()
    assert sorted(ranks) == list(range(6))


def test_a_rank_that_runs_already_is_claimed_and_never_drawn(store: Store) -> None:
    permutation = store.now(lambda db: pool.prepare(db, TEXT, SHAPE))
    gone = draw(store)
    store.now(lambda db: pool.retire(db, gone))
    ahead = permutation.at(4)
    for rank in (gone, ahead):
        store.now(lambda db, rank=rank: pool.claim(db, permutation, rank))  # type: ignore[misc]
        store.now(lambda db, rank=rank: registry.add_vm(db, vm(rank)))  # type: ignore[misc]
        with pytest.raises(RankTaken):
            store.now(lambda db, rank=rank: pool.claim(db, permutation, rank))  # type: ignore[misc]
    assert store.now(pool.in_use) == 2
    others = [draw(store) for _ in range(SHAPE.total - 2)]
    assert sorted([*others, gone, ahead]) == list(range(SHAPE.total))
    with pytest.raises(PoolExhausted):
        draw(store)


def test_a_rank_in_quarantine_is_not_claimed(store: Store) -> None:
    permutation = store.now(lambda db: pool.prepare(db, TEXT, SHAPE))
    rank = draw(store)
    found = Suspect(0, rank, "vm", Identity(1, 1), "/1", "label", "why")
    store.now(lambda db: pool.suspect(db, [found]))
    store.now(lambda db: pool.retire(db, rank))
    with pytest.raises(RankTaken):
        store.now(lambda db: pool.claim(db, permutation, rank))


def test_another_order_keeps_what_is_in_use(store: Store) -> None:
    permutation = store.now(lambda db: pool.prepare(db, TEXT, SHAPE))
    kept, suspected, back = draw(store), draw(store), draw(store)
    found = Suspect(0, suspected, "vm", Identity(1, 1), "/1", "label", "why")
    store.now(lambda db: registry.add_vm(db, vm(kept)))
    store.now(lambda db: pool.suspect(db, [found]))
    for rank in (suspected, back):
        store.now(lambda db, rank=rank: pool.retire(db, rank))  # type: ignore[misc]
    store.now(pool.rekey)
    assert store.now(lambda db: pool.prepare(db, TEXT, SHAPE)).key != permutation.key
    counts = asyncio.run(store.read(pool.counts))
    assert (counts.pairs_in_use, counts.pairs_quarantined) == (1, 1)
    others = [draw(store) for _ in range(SHAPE.total - 2)]
    assert sorted([*others, kept, suspected]) == list(range(SHAPE.total))
    with pytest.raises(PoolExhausted, match="1 in quarantine"):
        draw(store)


def test_another_shape_is_refused_while_it_matters(store: Store) -> None:
    rank = draw(store)
    other = PoolText("c0.c9", "", "", 2)
    store.now(lambda db: registry.add_vm(db, vm(rank)))
    with pytest.raises(StartError, match=r"private was 'c0\.c3' and is 'c0\.c9'"):
        store.now(lambda db: pool.prepare(db, other, shape_of(other)))
    assert store.now(lambda db: pool.prepare(db, TEXT, SHAPE)).total == 6
    store.now(lambda db: registry.remove_vm(db, vm(rank)))
    suspect = Suspect(0, rank, "vm", Identity(1, 1), "/a", "label", "why")
    store.now(lambda db: pool.suspect(db, [suspect]))
    store.now(lambda db: pool.retire(db, rank))
    with pytest.raises(StartError, match="may not change"):
        store.now(lambda db: pool.prepare(db, other, shape_of(other)))
    (found,) = store.now(lambda db: pool.suspects(db, 10))
    store.now(lambda db: pool.seen_clean(db, found))
    assert store.now(lambda db: pool.prepare(db, other, shape_of(other))).total == 45
    counts = asyncio.run(store.read(pool.counts))
    assert (counts.pairs_in_use, counts.pairs_quarantined) == (0, 0)


# -- VMs, holds and the ledger ----------------------------------------------------------------


def test_what_is_written_is_read_back(store: Store) -> None:
    rank = draw(store)
    one = vm(rank, unit="u.service", main_pid=7, caller=":1.2", lifetime=Lifetime.CALLER)
    holds = [
        Hold(one.id, one.name, Identity(1, 2**63 - 1), "/é", Access.EXCLUSIVE, "new", None),
        Hold(one.id, one.name, Identity(2**40, 3), "/b", Access.PUBLIC, "new", "old", number=1,
             part_of="r1", recursive=True, device=5),
        Hold(one.id, one.name, Identity(2, 3), "/a", Access.EXCLUSIVE, "new", None, False,
             number=7),
    ]  # fmt: skip
    steps = [Step(h.identity, h.path, h.original, h.label) for h in holds]

    def enter(db: Database) -> int:
        registry.add_vm(db, one)
        registry.add_holds(db, one, holds)
        return ledger.open_operation(
            db, OperationKind.ACQUIRE, one, steps, created=True, caller_uid=5, numbers=(1, 7)
        ).id

    number = store.now(enter)
    assert store.now(lambda db: registry.vm_by_name(db, one.name)) == one
    assert sorted(store.now(lambda db: registry.holds_of(db, one)), key=lambda h: h.path) == [
        holds[2], holds[1], holds[0],
    ]  # fmt: skip
    assert store.now(registry.caller_vms) == [one]
    (operation,) = store.now(ledger.unfinished)
    assert (operation.id, operation.vm, operation.created) == (number, one, True)
    assert (operation.kind, operation.caller_uid) == (OperationKind.ACQUIRE, 5)
    assert list(operation.steps) == steps
    assert operation.numbers == (1, 7)
    store.now(lambda db: ledger.close_operation(db, operation))
    assert store.now(ledger.unfinished) == []


def test_a_vm_with_holds_cannot_vanish(store: Store) -> None:
    one = vm(draw(store))
    held = Hold(one.id, one.name, Identity(1, 2), "/a", Access.EXCLUSIVE, "new", None)
    store.now(lambda db: registry.add_vm(db, one))
    store.now(lambda db: registry.add_holds(db, one, [held]))
    with pytest.raises(StartError, match="FOREIGN KEY"):
        store.now(lambda db: registry.remove_vm(db, one))
    same_name = vm((one.rank + 1) % SHAPE.total, name=one.name)
    for again in (vm(one.rank, id="other", name="other"), same_name):
        with pytest.raises(StartError, match="UNIQUE"):
            store.now(lambda db, again=again: registry.add_vm(db, again))  # type: ignore[misc]
    assert store.now(lambda db: registry.all_vms(db, 10)) == [one]
    assert store.now(lambda db: registry.all_vms(db, 0)) is None
