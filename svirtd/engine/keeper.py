# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sees that the book is sound: when it is opened, beside the service, and when it is closed.

A damaged book is not mended. One that is damaged when it is opened makes way for a new one, into
which recovery enters again what runs. One that proves damaged while it is in use ends the daemon,
since whatever it says next may be wrong: the service manager starts it again, and that start, told
by a word that this run leaves beside the book, looks at all of the book before it uses any. Either
it moves the book aside, or finds it sound and serves: it does not go round in circles.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from svirtd.book import copies
from svirtd.book.health import Check
from svirtd.book.pool import PoolText
from svirtd.book.store import Store
from svirtd.config import Config
from svirtd.errors import BookDamaged, SvirtError
from svirtd.host.journal import Journal, MessageId, Priority

# Between two tries to end a check.
_STOP_S: Final = 0.02


def open_book(config: Config, journal: Journal) -> Store:
    """Open the book, or a new one if it is damaged. Raises StartError."""

    def replaced(aside: str, why: BookDamaged) -> None:
        journal.record(
            MessageId.BOOK_REPLACED,
            f"{why}; it is {aside} now, and svirtd begins a new one from what runs: labels that "
            "files had before svirtd are not known any more, unless you restore a backup "
            "(svirtctl restore)",
            priority=Priority.ALERT,
            SVIRT_PATH=aside,
        )

    return Store.open(config.registry_path, group_commit=config.group_commit, replaced=replaced)


@contextlib.contextmanager
def book(config: Config, journal: Journal) -> Iterator[Store]:
    """Keep the book open for what is inside. Raises as open_book."""
    store = open_book(config, journal)
    try:
        yield store
    finally:
        close_book(store, journal)


def close_book(store: Store, journal: Journal) -> None:
    """Close the book, and say loudly if it was found damaged. Raises StartError."""
    if store.damage is not None:
        journal.record(
            MessageId.BOOK_CHECKED,
            f"{store.damage}; svirtd ends, and its next start looks at all of the book first",
            priority=Priority.CRITICAL,
        )
    store.close()


def check_copy(source: str) -> str:
    """Look at all of a copy of a book. Raises StartError with what is wrong with it."""
    copies.check(source)
    return f"{source} is a sound copy of a book"


def restore(config: Config, source: str, journal: Journal) -> str:
    """Put a copy in the book's place and return the name of the earlier book, empty if none.

    Raises StartError; the book is what it was then.
    """
    text = PoolText(config.private, config.groups, config.reserved, config.private_size)
    earlier = copies.restore(config.registry_path, source, text, config.shape)
    journal.record(
        MessageId.BOOK_REPLACED,
        f"the book {config.registry_path} was restored from {source}"
        + (f"; the earlier one is {earlier} now" if earlier else ""),
        priority=Priority.NOTICE,
        SVIRT_PATH=earlier or "",
    )
    return earlier or ""


async def watch(store: Store, path: str, journal: Journal) -> None:
    """Check the whole book beside the service, then wait. Ends by raising BookDamaged only."""
    check = asyncio.ensure_future(_check(store, path, journal))
    try:
        raise await store.damaged()
    finally:
        check.cancel()
        await asyncio.gather(check, return_exceptions=True)


async def _check(store: Store, path: str, journal: Journal) -> None:
    if store.checked:
        return
    try:
        await _in_thread(Check(path))
    except BookDamaged as error:
        store.note_damage(error)
    except SvirtError as error:
        journal.record(
            MessageId.BOOK_CHECKED,
            f"the book could not be checked: {error}",
            priority=Priority.WARNING,
        )
    else:
        journal.record(MessageId.BOOK_CHECKED, "the whole book was checked and is sound")


async def _in_thread(check: Check) -> None:
    with ThreadPoolExecutor(1, "book-check") as thread:
        running = asyncio.get_running_loop().run_in_executor(thread, check.run)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():
                check.stop()
                await asyncio.sleep(_STOP_S)
            raise
