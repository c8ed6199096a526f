# SPDX-License-Identifier: LGPL-2.1-or-later
"""The book's file and its threads: one connection that writes, one that reads.

One plain function is one transaction. Writers that wait at the same time share one commit (group
commit); each runs in a savepoint of its own, so that one refusal does not touch its neighbours.
The reader has its own connection, so that it answers while a slow disk holds up a commit.
"""

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlite_utils import Database

from svirtd.book import schema
from svirtd.errors import Failed, StartError
from svirtd.failpoints import Point, reach

__all__ = ["Database", "Store"]

T = TypeVar("T")

# The log is grown once at start and then overwritten in place, for which it is checkpointed before
# it is full: a sync of a file that grows costs several times that of one that does not.
_WAL_GROW_BYTES: Final = 4 * 1024 * 1024
# An entry takes three or four pages of 4 KiB.
_CHECKPOINT_JOBS: Final = 240
_IDLE_S: Final = 2.0
_GROUP_MAX: Final = 256
_BUSY_TIMEOUT_S: Final = 5.0


@dataclass(slots=True)
class _Job:
    fn: Callable[[Database], Any]
    durable: bool
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Store:
    """The open book. Made by `open`, ended by `close`."""

    def __init__(self, path: str, *, group_commit: bool) -> None:
        self._path = path
        self._group_max = _GROUP_MAX if group_commit else 1
        self._commits = 0
        self._unchecked = 0
        with contextlib.ExitStack() as undo:
            self._lock_fd = _lock(path)
            undo.callback(os.close, self._lock_fd)
            self._writer = undo.enter_context(contextlib.closing(_connect(path)))
            with _translated(path):
                schema.migrate(self._writer)
                reach(Point.BOOK_MIGRATED)
                self._grow_log()
                reach(Point.LOG_GROWN)
            self._reader = undo.enter_context(contextlib.closing(_connect(path)))
            self._reader.execute("PRAGMA query_only=ON")
            undo.pop_all()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._durable_now = True
        self._read_pool = ThreadPoolExecutor(1, "book-reader")
        self._thread = threading.Thread(target=self._run, name="book-writer", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: str, *, group_commit: bool = True) -> "Store":
        """Open or make the book at `path` (blocking). One daemon at a time: a lock file says who.

        Raises StartError with the reason: held by another daemon, newer schema, not a database.
        """
        return cls(path, group_commit=group_commit)

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
        return await loop.run_in_executor(self._read_pool, self._guarded_read, fn)

    def now(self, fn: Callable[[Database], T]) -> T:
        """Run `fn` as one durable transaction from a plain thread (start-up, before any loop)."""
        with _translated(self._path):
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

    def close(self) -> None:
        """Finish what is queued and close the file."""
        self._jobs.put(None)
        self._thread.join()
        self._read_pool.shutdown()
        self._reader.close()
        self._writer.close()
        os.close(self._lock_fd)

    def _guarded_read(self, fn: Callable[[Database], T]) -> T:
        try:
            return fn(self._reader)
        except sqlite3.Error as error:
            raise _disk_error(self._path, error) from error

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
            for job in group:
                # Alone in its transaction, a job needs no savepoint to be taken back.
                self._run_one(job) if len(group) > 1 else self._run_alone(job)
            reach(Point.COMMIT_BEFORE)
            self._writer.execute("COMMIT")
            reach(Point.COMMIT_AFTER)
            self._commits += 1
        except Exception as error:  # noqa: BLE001 -- handed to those who asked; the thread lives on
            if self._writer.conn.in_transaction:
                # If this fails too, so does the next BEGIN, and nothing is written any more.
                with contextlib.suppress(sqlite3.Error):
                    self._writer.execute("ROLLBACK")
            failure = _disk_error(self._path, error) if isinstance(error, sqlite3.Error) else error
            for job in group:
                job.error = job.error or failure
        # One wake-up of the loop for the whole group; without a loop nobody waits any more.
        with contextlib.suppress(RuntimeError):
            group[0].future.get_loop().call_soon_threadsafe(_resolve, group)
        self._unchecked += len(group)
        if self._unchecked >= _CHECKPOINT_JOBS:
            self._checkpoint()

    def _run_one(self, job: _Job) -> None:
        execute = self._writer.conn.execute
        execute("SAVEPOINT job")
        try:
            job.result = job.fn(self._writer)
        except sqlite3.OperationalError:
            raise  # the disk, not the request: the whole group fails
        except Exception as error:  # noqa: BLE001 -- handed to the one who asked
            execute("ROLLBACK TO job")
            job.error = error
        execute("RELEASE job")

    def _run_alone(self, job: _Job) -> None:
        try:
            job.result = job.fn(self._writer)
        except sqlite3.OperationalError:
            raise
        except Exception as error:  # noqa: BLE001 -- as above
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
        if self._log_bytes() >= _WAL_GROW_BYTES:
            return
        self._writer.execute("CREATE TEMP TABLE IF NOT EXISTS unused(x)")
        self._begin()
        self._writer.execute("CREATE TABLE grow(x BLOB)")
        self._writer.execute("INSERT INTO grow VALUES (zeroblob(?))", [_WAL_GROW_BYTES])
        self._writer.execute("DROP TABLE grow")
        self._writer.execute("COMMIT")
        self._checkpoint()


def _resolve(group: list[_Job]) -> None:
    for job in group:
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


def _connect(path: str) -> Database:
    with _translated(path), contextlib.ExitStack() as undo:
        conn = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        undo.callback(conn.close)
        # No plugins: a root daemon runs no code that happens to be installed beside it.
        db = Database(conn, execute_plugins=False)
        os.chmod(path, 0o600)
        _set_up(path, db)
        undo.pop_all()
        return db


def _set_up(path: str, db: Database) -> None:
    wanted: dict[str, object] = {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "wal_autocheckpoint": 0,
        "journal_size_limit": -1,
        # What SQLite would put into a temporary file stays in memory: nothing of the book leaves
        # its folder, and the daemon's domain needs no other place to write.
        "temp_store": 2,
    }
    for name, value in wanted.items():
        db.execute(f"PRAGMA {name}={value}").fetchall()
        # A setting that did not take (an old library, a file system without shared memory)
        # would silently cost durability.
        (found,) = db.execute(f"PRAGMA {name}").fetchone()
        if found != value:
            raise StartError(f"{path}: SQLite keeps {name}={found}, svirtd needs {value}")


def _lock(path: str) -> int:
    """Take the lock beside the book, with our pid in it. Raises StartError naming the holder."""
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartError(
            f"the book's folder {folder} cannot be used: {error.strerror}; "
            "set [registry] path to a folder that only root can write"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StartError(
            f"the book {path} is in use by another svirtd, process {holder}; "
            "stop that one, or give this one a [registry] path of its own"
        ) from None
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(fd)
        raise StartError(f"{path}.lock cannot be written: {error.strerror}") from error
    return fd


@contextlib.contextmanager
def _translated(path: str) -> Any:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StartError(f"the book {path} cannot be opened: {error}") from error


def _disk_error(path: str, error: sqlite3.Error) -> Failed:
    return Failed(
        f"the book {path} cannot be used ({error}); nothing was changed: "
        "free space on its file system or mend the disk, then try again"
    )
