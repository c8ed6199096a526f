# SPDX-License-Identifier: LGPL-2.1-or-later
"""The book's file and its threads: one connection that writes, one that reads.

One plain function is one transaction. Writers that wait at the same time share one commit (group
commit); each runs in a savepoint of its own, so that one refusal does not touch its neighbours.
The reader has its own connection, so that it answers while a slow disk holds up a commit.
"""

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from svirtd.book import aside, copies, health, schema
from svirtd.book.connection import (
    Database,
    concerns_all,
    connect,
    failure,
    lock,
    opening,
    reading_all,
)
from svirtd.errors import BookDamaged
from svirtd.failpoints import Point, reach

__all__ = ["Database", "Store"]

T = TypeVar("T")
# Told where a damaged book is now, and what is wrong with it.
Replaced = Callable[[str, BookDamaged], None]

# The log is grown once at start and then overwritten in place, for which it is checkpointed before
# it is full: a sync of a file that grows costs several times that of one that does not.
_WAL_GROW_BYTES: Final = 4 * 1024 * 1024
# An entry takes three or four pages of 4 KiB.
_CHECKPOINT_JOBS: Final = 240
_IDLE_S: Final = 2.0
_GROUP_MAX: Final = 256


@dataclass(slots=True)
class _Job:
    fn: Callable[[Database], Any]
    durable: bool
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Store:
    """The open book. Made by `open`, ended by `close`."""

    def __init__(self, path: str, *, group_commit: bool, replaced: Replaced | None) -> None:
        self._path = path
        self._damage: BookDamaged | None = None
        self._is_damaged = asyncio.Event()
        # Whether all of the book was looked at when it was opened.
        self.checked = False
        self._group_max = _GROUP_MAX if group_commit else 1
        self._commits = 0
        self._unchecked = 0
        with contextlib.ExitStack() as undo:
            self._lock_fd = lock(path)
            undo.callback(os.close, self._lock_fd)
            with opening(path):
                copies.sweep(path)
            self._writer = undo.enter_context(contextlib.closing(self._open(replaced)))
            with opening(path):
                self._grow_log()
                reach(Point.LOG_GROWN)
            self._reader = undo.enter_context(contextlib.closing(connect(path)))
            self._reader.execute("PRAGMA query_only=ON")
            undo.pop_all()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._durable_now = True
        self._read_pool = ThreadPoolExecutor(1, "book-reader")
        self._thread = threading.Thread(target=self._run, name="book-writer", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls, path: str, *, group_commit: bool = True, replaced: Replaced | None = None
    ) -> "Store":
        """Open or make the book at `path` (blocking). One daemon at a time: a lock file says who.

        A damaged book is moved aside and a new one made, of which `replaced` is told; without that
        it raises BookDamaged. Raises StartError with the reason for a book that may be sound and
        cannot be used: held by another daemon, of a newer schema, kept back by the disk.
        """
        return cls(path, group_commit=group_commit, replaced=replaced)

    def _open(self, replaced: Replaced | None) -> Database:
        try:
            return self._open_sound(replaced)
        except BookDamaged:
            if replaced is None:
                raise
        # It has been moved aside.
        return self._open_sound(None)

    def _open_sound(self, replaced: Replaced | None) -> Database:
        path = self._path
        with contextlib.ExitStack() as opened:
            try:
                health.refuse_other_file(path)
                db = opened.enter_context(contextlib.closing(connect(path)))
                self._look(db)
            except BookDamaged as error:
                # While it is open: with the last connection SQLite would remove the log.
                if replaced is not None:
                    replaced(aside.move(path, "damaged"), error)
                raise
            opened.pop_all()
            return db

    def _look(self, db: Database) -> None:
        path = self._path
        with reading_all(path):
            schema.migrate(db)
        reach(Point.BOOK_MIGRATED)
        health.at_start(path, db)
        if aside.is_suspected(path):
            health.whole(path, db)
            self.checked = True
            with opening(path):
                aside.clear(path)

    @property
    def commits(self) -> int:
        """How many transactions have been committed; group commit makes it less than the writes."""
        return self._commits

    async def write(self, fn: Callable[[Database], T], *, durable: bool = True) -> T:
        """Run `fn` as one transaction and return its result once it is committed.

        `durable`: survives a power cut. Otherwise it survives the end of this process only; later
        durable commits carry it along. What `fn` raises is raised here and changes nothing.
        Raises Failed if the disk refuses (full, read-only, broken).
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(fn, durable, future))
        return await future

    def write_behind(self, fn: Callable[[Database], None]) -> asyncio.Future[None]:
        """Queue `fn` as a transaction behind what is queued already, and do not wait for it.

        For what a crash may lose: recovery must come to the same without it. The future tells a
        refusal of the disk (Failed).
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(fn, False, future))
        return future

    async def read(self, fn: Callable[[Database], T]) -> T:
        """Run `fn` on what was committed last and return its result."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._read_pool, self._guarded_read, fn)
        except BookDamaged as error:
            self.note_damage(error)
            raise

    def now(self, fn: Callable[[Database], T]) -> T:
        """Run `fn` as one durable transaction from a plain thread (start-up, before any loop)."""
        with opening(self._path):
            self._begin()
            try:
                result = fn(self._writer)
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            reach(Point.COMMIT_BEFORE)
            self._writer.execute("COMMIT")
            reach(Point.COMMIT_AFTER)
            return result

    def note_damage(self, error: BookDamaged) -> None:
        """Remember that the book was found damaged: the next start looks at all of it first."""
        self._damage = self._damage or error
        self._is_damaged.set()

    @property
    def damage(self) -> BookDamaged | None:
        """What was found wrong with the book, if anything was."""
        return self._damage

    async def damaged(self) -> BookDamaged:
        """Wait until the book is found damaged, by whomever."""
        while self._damage is None:
            await self._is_damaged.wait()
        return self._damage

    def close(self) -> None:
        """Finish what is queued and close the file.

        Raises StartError if the book was found damaged and no word of it can be left.
        """
        self._jobs.put(None)
        self._thread.join()
        self._read_pool.shutdown()
        self._reader.close()
        self._writer.close()
        try:
            if self._damage is not None:
                aside.suspect(self._path, str(self._damage))
        finally:
            os.close(self._lock_fd)

    def _guarded_read(self, fn: Callable[[Database], T]) -> T:
        try:
            return fn(self._reader)
        except sqlite3.Error as error:
            raise failure(self._path, error) from error

    # -- the writer thread ------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                if self._unchecked:
                    self._checkpoint()
                continue
            if job is None:
                return
            group, ending = [job], False
            while len(group) < self._group_max:
                try:
                    more = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ending = True
                    break
                group.append(more)
            self._run_group(group)
            if ending:
                return

    def _run_group(self, group: list[_Job]) -> None:
        try:
            self._set_durability(durable=any(job.durable for job in group))
            self._begin()
            before = self._writer.conn.total_changes
            for job in group:
                # Alone in its transaction, a job needs no savepoint to be taken back.
                self._run_one(job) if len(group) > 1 else self._run_alone(job)
            # What only looks, behind what is queued, comes and goes with the watch.
            writes = self._writer.conn.total_changes != before
            if writes:
                reach(Point.COMMIT_BEFORE)
            self._writer.execute("COMMIT")
            if writes:
                reach(Point.COMMIT_AFTER)
            self._commits += 1
        except Exception as error:  # noqa: BLE001 -- handed to those who asked; the thread lives on
            if self._writer.conn.in_transaction:
                # If this fails too, so does the next BEGIN, and nothing is written any more.
                with contextlib.suppress(sqlite3.Error):
                    self._writer.execute("ROLLBACK")
            why = failure(self._path, error) if isinstance(error, sqlite3.Error) else error
            for job in group:
                job.error = job.error or why
        # One wake-up of the loop for the whole group; without a loop nobody waits any more.
        with contextlib.suppress(RuntimeError):
            group[0].future.get_loop().call_soon_threadsafe(self._resolve, group)
        self._unchecked += len(group)
        if self._unchecked >= _CHECKPOINT_JOBS:
            self._checkpoint()

    def _run_one(self, job: _Job) -> None:
        execute = self._writer.conn.execute
        execute("SAVEPOINT job")
        try:
            job.result = job.fn(self._writer)
        except Exception as error:
            if concerns_all(error):
                raise
            execute("ROLLBACK TO job")
            job.error = error
        execute("RELEASE job")

    def _run_alone(self, job: _Job) -> None:
        try:
            job.result = job.fn(self._writer)
        except Exception as error:
            if concerns_all(error):
                raise
            self._writer.execute("ROLLBACK")
            self._begin()
            job.error = error

    def _begin(self) -> None:
        reach(Point.BOOK_WRITE)
        self._writer.execute("BEGIN IMMEDIATE")

    def _set_durability(self, *, durable: bool) -> None:
        if durable is not self._durable_now:
            # FULL syncs the log at each commit; NORMAL leaves that to the next one that does.
            self._writer.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable_now = durable

    def _checkpoint(self) -> None:
        # PASSIVE never truncates and never waits for a reader.
        self._unchecked = 0
        # What stops a checkpoint loses nothing, and stops the next entry too, which says so.
        with contextlib.suppress(sqlite3.Error):
            self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _log_bytes(self) -> int:
        try:
            return os.stat(self._path + "-wal").st_size
        except OSError:
            return 0

    def _grow_log(self) -> None:
        size = self._log_bytes()
        if size >= _WAL_GROW_BYTES:
            return
        # Behind SQLite's back, and as it leaves a log that it begins anew: what follows its last
        # entry is none. A transaction of this size would take ten times as long, and would stay in
        # the book as free pages.
        fd = os.open(self._path + "-wal", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            while size < _WAL_GROW_BYTES:
                size += os.pwrite(fd, bytes(_WAL_GROW_BYTES - size), size)
            os.fsync(fd)
        finally:
            os.close(fd)
        self._checkpoint()

    def _resolve(self, group: list[_Job]) -> None:
        for job in group:
            if isinstance(job.error, BookDamaged):
                self.note_damage(job.error)
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)
