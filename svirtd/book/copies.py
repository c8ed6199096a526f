# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copies of the book: one is made while the book is in use, and put in its place while it is not.

A copy is marked as one. The host goes on while it lies there: the sets that the book draws after
the copy are exactly the next ones of the copy's own order, so a copy that is put in the book's
place, by whatever means, gets another order before the first draw (pool.prepare).
"""

import contextlib
import glob
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Final

from svirtd.book import aside, health, pool, schema
from svirtd.book.connection import (
    Database,
    connect,
    connect_to_read,
    lock,
    opening,
    reading_all,
    serving,
)
from svirtd.book.pool import PoolText
from svirtd.core.pool import Shape
from svirtd.errors import BookDamaged, Failed, StartError

_UNFINISHED: Final = ".copy-"
# How often SQLite asks whether to go on, in its own small steps.
_STEPS: Final = 1000


def make(path: str, stopped: Callable[[], bool]) -> int:
    """Copy the book that is in use, look at all of the copy, and return it open for reading.

    The copy has no name any more. `stopped` is asked now and then. Raises Failed, BookDamaged.
    """

    def rest() -> None:
        if stopped():
            raise Failed("the copy was interrupted")
        time.sleep(health.REST_S)

    copy = _new_name(path)
    with serving(path), contextlib.ExitStack() as undo:
        fd = os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, fd)
        with _removed_at_the_end(copy):
            with contextlib.closing(connect_to_read(path)) as db:
                db.conn.set_progress_handler(stopped, _STEPS)
                db.execute("PRAGMA query_only=OFF")
                # One state of the book, without its holes.
                db.execute("VACUUM INTO ?", [copy])
            with contextlib.closing(connect_to_read(copy)) as db:
                db.conn.set_progress_handler(stopped, _STEPS)
                db.execute("PRAGMA query_only=OFF")
                # Nothing is left beside it, whatever happens.
                db.execute("PRAGMA journal_mode=MEMORY").fetchall()
                schema.mark_as_copy(db)
                health.whole(copy, db, rest)
        undo.pop_all()
        return fd


def check(source: str) -> None:
    """Look at all of a copy. Raises StartError with what is wrong with it."""
    with _about(source), contextlib.closing(_reader(source)) as db, reading_all(source):
        schema.refuse_foreign(db)
        if not schema.is_current(db):
            return  # of an earlier version, by whose rules alone it could be looked at
        health.whole(source, db)


def restore(path: str, source: str, text: PoolText, shape: Shape) -> str | None:
    """Put a copy of `source` in the book's place; returns the name that the earlier book has now.

    Everything is prepared beside the book: it is the earlier one or the restored one, whenever the
    power goes. Raises StartError with the reason: the book is in use, `source` is no book, is
    damaged, of a newer version or of another pool.
    """
    lock_fd = lock(path)
    copy = _new_name(path)
    try:
        with _removed_at_the_end(copy):
            with _about(source):
                _fetch(source, copy)
                _prepare(copy, text, shape)
            with opening(path):
                earlier = _keep(path)
                os.rename(copy, path)
                aside.sync_folder(path)
                aside.clear(path)
            return earlier
    except BookDamaged as error:
        raise StartError(str(error)) from error
    finally:
        os.close(lock_fd)


def sweep(path: str) -> None:
    """Remove what a copy that was cut off has left. The caller has the book's lock."""
    for name in glob.glob(glob.escape(path + _UNFINISHED) + "*"):
        os.unlink(name)


def _new_name(path: str) -> str:
    return f"{path}{_UNFINISHED}{secrets.token_hex(8)}"


@contextlib.contextmanager
def _removed_at_the_end(copy: str) -> Iterator[None]:
    try:
        yield
    finally:
        for part in aside.PARTS:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copy + part)


@contextlib.contextmanager
def _about(source: str) -> Iterator[None]:
    """Errors are about the file that the person named, whatever SQLite had open for it."""
    try:
        with opening(source):
            yield
    except BookDamaged as error:
        raise StartError(f"{source} is not a sound copy of a book: {error.what}") from error


def _reader(source: str) -> Database:
    if not os.path.isfile(source):
        raise StartError(f"{source} is not a file")
    health.refuse_other_file(source)
    return connect_to_read(source)


def _fetch(source: str, copy: str) -> None:
    """Copy a file, and the log beside it: it may be a book that was moved aside."""
    if not os.path.isfile(source):
        raise StartError(f"{source} is not a file")
    for part in aside.PARTS[:2]:
        if part and not os.path.exists(source + part):
            continue
        with open(source + part, "rb") as old:
            fd = os.open(copy + part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as new:
                shutil.copyfileobj(old, new)
                new.flush()
                os.fsync(fd)


def _prepare(copy: str, text: PoolText, shape: Shape) -> None:
    health.refuse_other_file(copy)
    with contextlib.closing(connect(copy)) as db:
        with reading_all(copy):
            schema.refuse_foreign(db)
            schema.migrate(db)
        health.whole(copy, db)
        with opening(copy):
            schema.mark_as_copy(db)
            db.execute("BEGIN IMMEDIATE")
            pool.prepare(db, text, shape)
            db.execute("COMMIT")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _keep(path: str) -> str | None:
    """Give the earlier book another name, complete in one file if that can be."""
    if not any(os.path.lexists(path + part) for part in aside.PARTS):
        return None
    # Opened and closed, a sound book has no log any more: it can keep its name until the very
    # moment in which the other one takes it.
    with contextlib.suppress(StartError, BookDamaged):
        health.refuse_other_file(path)
        with contextlib.closing(connect(path)) as db, opening(path):
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    if os.path.lexists(path + "-wal"):
        return aside.move(path, "replaced")
    return aside.keep(path, "replaced")
