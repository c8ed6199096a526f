# SPDX-License-Identifier: LGPL-2.1-or-later
"""Books made without a daemon: a pool at any fill, and a book full of reserved VMs."""

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from svirtd.book import pool, registry
from svirtd.book.pool import PoolText
from svirtd.book.store import Database, Store
from svirtd.config import Config
from svirtd.core import goals
from svirtd.core.mcs import format_categories
from svirtd.core.model import VM, Access, Contexts, Lifetime, State
from svirtd.core.pool import Permutation, Shape
from svirtd.host.kernel import Kernel

_ROWS_PER_COMMIT = 20_000


@dataclass(frozen=True, slots=True)
class Book:
    """An open book with its pool."""

    store: Store
    shape: Shape
    permutation: Permutation


@contextlib.asynccontextmanager
async def opened(path: Path, config: Config) -> AsyncIterator[Book]:
    """Open or make the book that a daemon with this configuration would have at `path`."""
    store = Store.open(str(path))
    try:
        text = PoolText(config.private, config.groups, config.reserved, config.private_size)
        shape = config.shape
        permutation = await store.write(lambda db: pool.prepare(db, text, shape))
        yield Book(store, shape, permutation)
    finally:
        store.close()


def set_pool(db: Database, *, cursor: int, returned: int = 0) -> None:
    """Say how many ranks were issued; `returned` is how many of them are in the queue."""
    db.execute("UPDATE pool SET cursor = ?, returned = ?, quarantined = 0", [cursor, returned])


async def reserve(book: Book, count: int) -> None:
    """Fill an empty book with this many reserved VMs, named vm-000001 and so on."""
    contexts = Kernel().default_contexts()

    def add(db: Database, first: int, last: int) -> None:
        for index in range(first, last):
            registry.add_vm(db, _reserved(book, contexts, index))
        set_pool(db, cursor=last)

    for first in range(0, count, _ROWS_PER_COMMIT):
        last = min(first + _ROWS_PER_COMMIT, count)
        await book.store.write(partial(add, first=first, last=last))


def _reserved(book: Book, contexts: Contexts, index: int) -> VM:
    rank = book.permutation.at(index)
    pair = book.shape.categories_of(rank)
    return VM(
        id=secrets.token_hex(8),
        name=f"vm-{index + 1:06d}",
        owner_uid=0,
        state=State.RESERVED,
        reason="",
        goal="isolated",
        uuid="",
        rank=rank,
        categories=format_categories(pair),
        process_context=str(goals.process_context(contexts, pair)),
        image_context=str(goals.resource_context(contexts, Access.EXCLUSIVE, pair)),
        unit="",
        main_pid=0,
        runtime_dir="",
        persistent=True,
        lifetime=Lifetime.RELEASE,
        caller="",
        created_us=index,
    )
