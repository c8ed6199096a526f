# SPDX-License-Identifier: LGPL-2.1-or-later
"""Drawing a private set from a pool that is empty, almost full and full."""

import time
from functools import partial

from svirtd.book import pool
from svirtd.book.store import Database
from svirtd.config import Config
from svirtd.errors import PoolExhausted
from tests.bench.book import Book, opened, set_pool
from tests.bench.rows import Bar, Rounds, Row
from tests.bench.setting import Setting

ROWS = ("draw.0", "draw.50", "draw.99", "draw.99.99", "draw.100", "draw.returned")
# The default pool has 29 sets left at 99.99 %.
_BATCH = 25
_BLOCKED_LIMIT = 1024


def _not_blocked(_rank: int) -> bool:
    return False


async def rows(setting: Setting) -> list[Row]:
    """Measure draws through the book on a real file, in one transaction each batch."""
    config = Config()
    total = config.shape.total
    fills = {
        "draw.0": 0,
        "draw.50": total // 2,
        "draw.99": int(total * 0.99),
        "draw.99.99": int(total * 0.9999),
        "draw.100": total,
    }
    times = {name: Rounds() for name in ROWS}
    async with opened(setting.folder / "draw.sqlite", config) as book:
        for turn in range(setting.amount(300, 60)):
            for name, cursor in fills.items():
                work = partial(_draws, book=book, cursor=cursor)
                found = await book.store.write(work, durable=False)
                if turn:  # the first time round is the warm-up
                    times[name].add(found)
            found = await book.store.write(partial(_returned, book=book), durable=False)
            if turn:
                times["draw.returned"].add(found)
    floor = times["draw.0"].p50
    what = "of the pool given out; floor: draw.0"
    return [
        Row("draw.0", "drawing a pair from a pool nobody has drawn from", floor, "µs"),
        Row("draw.50", f"as above, 50 % {what}", times["draw.50"].p50, "µs", floor),
        Row("draw.99", f"as above, 99 % {what}", times["draw.99"].p50, "µs", floor),
        Row(
            "draw.99.99",
            f"as above, 99.99 % {what}",
            times["draw.99.99"].p50,
            "µs",
            floor,
            Bar(1.2),
        ),
        Row(
            "draw.100",
            "refusing to draw (PoolExhausted) from a full pool; floor: draw.0",
            times["draw.100"].p50,
            "µs",
            floor,
            Bar(1.2),
        ),
        Row(
            "draw.returned",
            "drawing a returned pair, every pair was in use once; floor: draw.0",
            times["draw.returned"].p50,
            "µs",
            floor,
        ),
    ]


def _draws(db: Database, book: Book, cursor: int) -> list[float]:
    set_pool(db, cursor=cursor)
    found = []
    for _ in range(_BATCH):
        start = time.perf_counter()
        full = False
        try:
            pool.draw_rank(db, book.permutation, _not_blocked, _BLOCKED_LIMIT)
        except PoolExhausted:
            full = True
        found.append((time.perf_counter() - start) * 1e6)
        if full is not (cursor == book.shape.total):
            raise RuntimeError(f"PoolExhausted with {cursor} of {book.shape.total} issued: {full}")
    return found


def _returned(db: Database, book: Book) -> list[float]:
    ranks = range(_BATCH * 2)
    db.conn.executemany("INSERT INTO returned(rank) VALUES (?)", [(rank,) for rank in ranks])
    set_pool(db, cursor=book.shape.total, returned=len(ranks))
    found = []
    for _ in range(_BATCH):
        start = time.perf_counter()
        pool.draw_rank(db, book.permutation, _not_blocked, _BLOCKED_LIMIT)
        found.append((time.perf_counter() - start) * 1e6)
    db.execute("DELETE FROM returned")
    return found
