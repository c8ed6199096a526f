# SPDX-License-Identifier: LGPL-2.1-or-later
"""Moving a book out of the way, and the word that one run of the daemon leaves for the next.

The lock beside the book is held by whoever calls this.
"""

import contextlib
import os
import time
from typing import Final

from svirtd.errors import StartError

# The log holds what is not yet in the book, and is worth nothing without it.
PARTS: Final = ("", "-wal", "-shm")


def move(path: str, why: str) -> str:
    """Give the book and its log another name and return it; `why` is part of the name.

    Nothing is overwritten. Each part has its new name before it loses the old one, and the book
    loses it first: a log that is left alone means nothing to SQLite, a book without its log would
    be one from another day. Raises StartError.
    """
    try:
        aside, parts = _link_all(path, why)
        sync_folder(path)
        for part in parts:
            os.unlink(path + part)
        sync_folder(path)
        clear(path)
    except OSError as error:
        raise StartError(f"the book {path} cannot be moved aside: {error}") from error
    return aside


def keep(path: str, why: str) -> str:
    """As move(), but the book has its name on; it has no log. Raises OSError."""
    aside, _ = _link_all(path, why)
    sync_folder(path)
    return aside


def _link_all(path: str, why: str) -> tuple[str, list[str]]:
    wanted = f"{path}.{why}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    aside, number = wanted, 0
    while any(os.path.lexists(aside + part) for part in PARTS):
        number += 1
        aside = f"{wanted}-{number}"
    parts = [part for part in PARTS if os.path.lexists(path + part)]
    for part in parts:
        os.link(path + part, aside + part)
        os.chmod(aside + part, 0o600)
    return aside, parts


def suspect(path: str, reason: str) -> None:
    """Have the next start look at all of the book before it uses any. Raises StartError.

    The book itself cannot be trusted to keep that. Without the word the next start would trust a
    book that can be opened, find the damage again, and so on for ever.
    """
    try:
        with open(_mark(path), "w", encoding="utf-8", opener=_private) as file:
            file.write(reason + "\n")
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path)
    except OSError as error:
        raise StartError(
            f"{_mark(path)} cannot be written ({error.strerror}); the next start would use the "
            f"damaged book: move {path} and the files beside it away by hand"
        ) from error


def is_suspected(path: str) -> bool:
    """Say whether an earlier run found damage in the book."""
    return os.path.lexists(_mark(path))


def clear(path: str) -> None:
    """Take back what suspect() said. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_mark(path))
        sync_folder(path)


def sync_folder(path: str) -> None:
    """Bring the names beside the book to the disk. Raises OSError."""
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _mark(path: str) -> str:
    return path + ".suspect"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
