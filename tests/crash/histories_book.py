# SPDX-License-Identifier: LGPL-2.1-or-later
"""The book as a reader finds it from outside, and what must always be true of its rows."""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import closing, contextmanager
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

from tests.crash.model import GROUP_POOL, Pair, categories
from tests.support import wait_for


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as book:
        yield book


def dump(path: Path) -> dict[str, list[Any]]:
    """Every row of every table."""
    with _opened(path) as book:
        tables = book.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: book.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in tables}


def wait_settled(path: Path, failed: int) -> None:
    """Wait until the closing entries are written: what is open then belongs to failed VMs."""

    def open_operations() -> int:
        with _opened(path) as book:
            return int(book.execute("SELECT count(*) FROM operation").fetchone()[0])

    wait_for(f"{failed} open operations", lambda: open_operations() == failed)


def main_pid(path: Path, name: str) -> int:
    """The main process of a VM."""
    with _opened(path) as book:
        (pid,) = book.execute("SELECT main_pid FROM vm WHERE name = ?", [name]).fetchone()
    assert pid > 1
    return int(pid)


def _pair(pool: Pair, rank: int) -> Pair:
    """The pair of a rank, by the combinatorial number system of the design."""
    cats = sorted(pool)
    for low, high in combinations(range(len(cats)), 2):
        if comb(high, 2) + low == rank:
            return frozenset({cats[low], cats[high]})
    raise AssertionError(f"the pool has no rank {rank}")


def _carried(pool: Pair, key: int) -> Pair:
    """What a key of the quarantine means: below every rank are the categories of groups."""
    return frozenset({-1 - key}) if key < 0 else _pair(pool, key)


def suspects(path: Path, pool: Pair) -> list[tuple[tuple[int, ...], str, int]]:
    """The quarantine: pair, path and inode number of each object in it."""
    with _opened(path) as book:
        rows = book.execute("SELECT rank, path, ino FROM quarantine").fetchall()
    return sorted((tuple(sorted(_carried(pool, rank))), path, ino) for rank, path, ino in rows)


def check(
    path: Path,
    pool: Pair,
    labels: Mapping[str, tuple[int, str | None]],
    foreign: Set[int],
    roots: Mapping[str, int],
) -> None:
    """The invariants of the design, of the book and the labels alone.

    `foreign`: the files whose label a third party has set; `roots`: by what each name is held.
    """
    with _opened(path) as book:
        vms = book.execute("SELECT rank, name, categories, state FROM vm").fetchall()
        holds = book.execute("SELECT rank, dev, ino, access, label FROM hold").fetchall()
        shares = set(book.execute("SELECT dev, ino, access, grp, label FROM hold"))
        owned = dict(book.execute("SELECT name, category FROM vm_group"))
        grouped = {ino: owned[grp] for _, ino, _, grp, _ in shares if grp}
        keys = {key for (key,) in book.execute("SELECT rank FROM quarantine")}
        suspected = {key for key in keys if key >= 0}
        waiting_groups = {c for (c,) in book.execute("SELECT category FROM group_returned")}
        # Of libvirt's: what such a VM has alone carries the categories of its groups, too.
        libvirts = set(
            book.execute(
                "SELECT h.ino, h.label FROM hold h JOIN vm v ON v.rank = h.rank"
                " WHERE v.labeller = 'libvirt'"
            )
        )
        returned = [rank for (rank,) in book.execute("SELECT rank FROM returned")]
        cursor, waiting, quarantined = book.execute(
            "SELECT cursor, returned, quarantined FROM pool"
        ).fetchone()
    used = [_pair(pool, rank) for rank, *_ in vms]
    # 1, 3: the pairs of different VMs differ, and none contains another.
    assert len(set(used)) == len(used)
    assert [categories(f"u:r:t:s0:{text}") for _, _, text, _ in vms] == used
    # 4: what is in quarantine or in use is not in the queue of what is free.
    ranks = {rank for rank, *_ in vms}
    assert len(set(returned)) == len(returned) == waiting
    assert not set(returned) & (ranks | suspected)
    assert quarantined == len(suspected - ranks)
    assert cursor == len(vms) + waiting + quarantined
    # 5: an exclusive object has one holder.
    holders = Counter((dev, ino) for _, dev, ino, _, _ in holds)
    shared = {ino for _, dev, ino, access, _ in holds if holders[dev, ino] > 1}
    for number in shared:
        (one,) = {(access, grp) for _, ino, access, grp, _ in shares if ino == number}
        assert one[0] == "public" or one[1], one
    # 4, for groups: a category that may be given is no group's, and nothing may carry it.
    taken = set(owned.values()) | {-1 - key for key in keys if key < 0}
    assert len(set(owned.values())) == len(owned)
    assert not waiting_groups & taken
    assert not {rank for rank, *_ in holds} - ranks
    # 2: no file carries the categories of no VM, unless somebody else has put them there.
    held = {(rank, ino) for rank, _, ino, _, _ in holds}
    known = ranks | suspected
    for name, (ino, label) in labels.items():
        root = roots[name]
        for rank in range(comb(len(pool), 2)):
            if ino not in foreign and _pair(pool, rank) <= categories(label):
                assert rank in known, f"{name} carries {label}, the categories of no VM"
                assert (rank, root) in held or rank in suspected, f"{name} carries {label}, unheld"
        for category in categories(label) & GROUP_POOL:
            if ino not in foreign and (ino, label) not in libvirts:
                assert grouped.get(root) == category or -1 - category in keys, f"{name}: {label}"
