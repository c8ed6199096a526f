# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copies for callers: few at a time, and a reader that reads nothing holds nothing for ever."""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.book import copies
from svirtd.book.store import Store
from svirtd.core.model import Caller
from svirtd.engine.backups import Backups
from svirtd.errors import AccessDenied, BookDamaged, LimitsExceeded
from svirtd.host.journal import Journal
from svirtd.host.streams import send_file
from tests import books
from tests.authorities import root_only
from tests.books import damage
from tests.support import wait_for

ROOT = Caller(":1.1", 0)
LARGE_BYTES = 4 << 20


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A book that no socket takes at once."""
    path = str(tmp_path / "book.sqlite")
    db = books.load(books.names()[-1], path)
    db.execute("CREATE TABLE filler(a BLOB) STRICT")
    db.execute("INSERT INTO filler VALUES (randomblob(?))", [LARGE_BYTES])
    db.close()
    return path


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    store = Store.open(path)
    yield store
    store.close()


def read_all(stream: socket.socket) -> bytes:
    with stream:
        return b"".join(iter(lambda: stream.recv(1 << 16), b""))


def threads() -> int:
    return sum(thread.name.startswith("backup") for thread in threading.enumerate())


async def gone() -> None:
    """Wait until no thread of a backup is left."""
    await asyncio.to_thread(wait_for, "the threads are gone", lambda: not threads())
    await asyncio.sleep(0)


def test_a_copy_arrives_whole(path: str, store: Store, tmp_path: Path) -> None:
    async def work() -> bytes:
        backups = Backups(path, store, Journal(), root_only())
        stream = socket.socket(fileno=await backups.open(ROOT))
        data = await asyncio.to_thread(read_all, stream)
        await gone()
        return data

    before = len(os.listdir("/proc/self/fd"))
    copy = tmp_path / "copy"
    copy.write_bytes(asyncio.run(work()))
    assert copy.stat().st_size > LARGE_BYTES
    copies.check(str(copy))
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # of the reader of the book


def test_only_root_may(path: str, store: Store) -> None:
    with pytest.raises(AccessDenied, match="may not copy the book"):
        asyncio.run(Backups(path, store, Journal(), root_only()).open(Caller(":1.1", 1)))


def test_two_at_a_time(path: str, store: Store) -> None:
    async def work() -> None:
        backups = Backups(path, store, Journal(), root_only())
        streams = [socket.socket(fileno=await backups.open(ROOT)) for _ in range(2)]
        with pytest.raises(LimitsExceeded, match="2 backups are under way"):
            await backups.open(ROOT)
        for stream in streams:
            assert len(await asyncio.to_thread(read_all, stream)) > LARGE_BYTES
        await gone()
        os.close(await backups.open(ROOT))
        await gone()

    asyncio.run(work())


def test_who_reads_nothing_is_left(path: str, store: Store) -> None:
    async def work() -> None:
        backups = Backups(path, store, Journal(), root_only(), idle_s=1.0)
        streams = [await backups.open(ROOT) for _ in range(2)]
        await gone()
        # Both places are free again; what was sent ends early.
        third = socket.socket(fileno=await backups.open(ROOT))
        assert len(await asyncio.to_thread(read_all, third)) > LARGE_BYTES
        for fd in streams:
            assert len(await asyncio.to_thread(read_all, socket.socket(fileno=fd))) < LARGE_BYTES
        await gone()

    asyncio.run(work())


def test_the_end_of_the_daemon_ends_them(path: str, store: Store) -> None:
    async def work() -> None:
        backups = Backups(path, store, Journal(), root_only())
        fd = await backups.open(ROOT)
        backups.close()
        await gone()
        assert len(await asyncio.to_thread(read_all, socket.socket(fileno=fd))) < LARGE_BYTES

    asyncio.run(work())


def test_a_slow_reader_has_a_deadline_too(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(LARGE_BYTES))
    ours, theirs = socket.socketpair()
    with ours, theirs, open(file, "rb") as source, pytest.raises(TimeoutError):
        send_file(source.fileno(), ours, idle_s=20, deadline_s=0.05)


def test_a_book_that_gives_no_copy_is_damaged(path: str) -> None:
    Store.open(path).close()
    damage.statement("UPDATE vm SET categories = 'c1,c2' WHERE name = 'spare'")(Path(path))
    store = Store.open(path)

    async def work() -> None:
        with pytest.raises(BookDamaged):
            await Backups(path, store, Journal(), root_only()).open(ROOT)
        await gone()

    asyncio.run(work())
    assert store.damage is not None
    store.close()
