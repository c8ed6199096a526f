# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ways in which a book's file can be hurt while nobody uses it."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

PAGE_BYTES = 4096
Hurt = Callable[[Path], object]


def statement(text: str) -> Hurt:
    """Change the book as svirtd never would."""

    def hurt(path: Path) -> None:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA foreign_keys=OFF")
        db.execute(text)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()

    return hurt


def header(path: Path) -> None:
    """Other bytes where SQLite says what the file is."""
    _write(path, 0, b"no book " * 64)


def nothing_left(path: Path) -> None:
    """A file of no length, as some file systems leave it after a power cut."""
    os.truncate(path, 0)


def half(path: Path) -> None:
    """The end of the file is missing."""
    os.truncate(path, path.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES)


def pages(path: Path) -> None:
    """Every page but the first has other bytes."""
    size = path.stat().st_size
    _write(path, PAGE_BYTES, os.urandom(size - PAGE_BYTES))


def page_of(name: str) -> Hurt:
    """Other bytes in the root page of one table or index."""

    def hurt(path: Path) -> None:
        _write(path, _root_of(path, name) * PAGE_BYTES, os.urandom(PAGE_BYTES))

    return hurt


def bits_of(name: str) -> Hurt:
    """Flipped bits in the content of a table or index, whose structure stays as it was."""

    def hurt(path: Path) -> None:
        # Cells are laid down from the page's end: the last bytes are a record's.
        place = (_root_of(path, name) + 1) * PAGE_BYTES - 3
        with open(path, "rb") as file:
            file.seek(place)
            (byte,) = file.read(1)
        _write(path, place, bytes([byte ^ 0x11]))

    return hurt


def _root_of(path: Path, name: str) -> int:
    db = sqlite3.connect(path)
    (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", [name]).fetchone()
    db.close()
    return int(page) - 1


def _write(path: Path, place: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(data)
