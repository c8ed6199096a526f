# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connections to the book's file: settings, the lock beside it, and what SQLite's errors mean."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from typing import Final

from sqlite_utils import Database

from svirtd.errors import BookDamaged, Failed, StartError

__all__ = ["Database"]

_BUSY_TIMEOUT_S: Final = 5.0
# The file is there and is not what SQLite or svirtd wrote.
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# The file may be as it should: it, the disk or this process keeps SQLite from it now.
_NOT_NOW: Final = (
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_ABORT,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOLFS,
    sqlite3.SQLITE_AUTH,
)


def connect(path: str) -> Database:
    """Open or make the book's file for writing (blocking). Raises StartError, BookDamaged."""
    with opening(path), contextlib.ExitStack() as undo:
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


def connect_to_read(path: str) -> Database:
    """Open the book's file for one who only looks. Raises sqlite3.Error."""
    conn = sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    with contextlib.ExitStack() as undo:
        undo.callback(conn.close)
        db = Database(conn, execute_plugins=False)
        for setting in ("query_only=ON", "trusted_schema=OFF", "temp_store=MEMORY"):
            db.execute(f"PRAGMA {setting}")
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


def lock(path: str) -> int:
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
def opening(path: str) -> Iterator[None]:
    """Before the book is in use: turn errors into StartError, or BookDamaged."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise _damaged(path, error) from error
        raise StartError(f"the book {path} cannot be used: {error}") from error
    except (sqlite3.Error, OSError) as error:
        raise StartError(f"the book {path} cannot be used: {error}") from error


@contextlib.contextmanager
def reading_all(path: str) -> Iterator[None]:
    """As opening(), where nothing but what svirtd has written is read or changed.

    Then any error means damage that is not one of the disk or of this process: a table that is not
    there, a value that breaks a rule, text that is none.
    """
    try:
        with opening(path):
            try:
                yield
            except sqlite3.DatabaseError as error:
                if _code(error) not in _NOT_NOW:
                    raise _damaged(path, error) from error
                raise
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error


@contextlib.contextmanager
def serving(path: str) -> Iterator[None]:
    """While the book is in use: turn errors into Failed, or BookDamaged."""
    try:
        yield
    except sqlite3.Error as error:
        raise failure(path, error) from error
    except (StartError, OSError) as error:
        raise Failed(f"the book {path} cannot be used now: {error}") from error


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Say whether SQLite met a file that is not what was written."""
    # Text that is not UTF-8 is Python's own error, and has no code.
    return _code(error) in _DAMAGED or str(error).startswith("Could not decode")


def concerns_all(error: Exception) -> bool:
    """Say whether an error is the disk's or the book's, and not that of one transaction."""
    return isinstance(error, sqlite3.OperationalError) or (
        isinstance(error, sqlite3.DatabaseError) and is_damage(error)
    )


def failure(path: str, error: sqlite3.Error) -> Failed:
    """Return what a request is told when the book in use fails it."""
    if isinstance(error, sqlite3.DatabaseError) and is_damage(error):
        return _damaged(path, error)
    return Failed(
        f"the book {path} cannot be used ({error}); nothing was written: "
        "free space on its file system or mend the disk, then try again"
    )


def _damaged(path: str, error: Exception) -> BookDamaged:
    return BookDamaged(path, str(error))


def _code(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
