# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the entries of held trees carried before: all that was not what the tree's root carried.

Most of a tree has one label, so that little is kept: a row for each label of a few hundred entries,
eight bytes for each of these. Called inside a transaction or a read.
"""

from array import array
from collections.abc import Mapping, Sequence

from svirtd.book import registry
from svirtd.book.connection import Database
from svirtd.core.model import Access, Hold, Identity, Seen


def is_tree(db: Database, identity: Identity) -> bool:
    """Say whether an object is the root of a tree that is held, or that was and is not clean."""
    found = db.execute(
        "SELECT 1 FROM tree WHERE dev = ? AND ino = ? LIMIT 1", [identity.dev, identity.ino]
    ).fetchone()
    return found is not None


def remember(db: Database, root: Identity, others: Sequence[tuple[str | None, bytes]]) -> None:
    """Keep what entries of a tree carried: label, and their inodes as packed 64-bit numbers."""
    db.conn.executemany(
        "INSERT INTO tree(dev, ino, label, inodes) VALUES (?, ?, ?, ?)",
        [(root.dev, root.ino, label, inodes) for label, inodes in others],
    )


def remembered(db: Database, root: Identity) -> "Mapping[str | None, array[int]]":
    """Return the inodes of what carried something else than the root, by what that was."""
    found: dict[str | None, array[int]] = {}
    for label, inodes in db.execute(
        "SELECT label, inodes FROM tree WHERE dev = ? AND ino = ? AND inodes <> x''",
        [root.dev, root.ino],
    ):
        found.setdefault(label, array("Q")).frombytes(inodes)
    return found


def tidy(db: Database) -> None:
    """Forget trees that nobody holds and nothing is suspected of."""
    db.execute(
        "DELETE FROM tree WHERE NOT EXISTS(SELECT 1 FROM hold WHERE hold.dev = tree.dev AND"
        " hold.ino = tree.ino) AND NOT EXISTS(SELECT 1 FROM quarantine WHERE quarantine.dev ="
        " tree.dev AND quarantine.ino = tree.ino)"
    )


def public_inodes(db: Database, device: int) -> frozenset[int]:
    """Return what VMs hold on a file system without having categories on it."""
    return frozenset(
        inode
        for (inode,) in db.execute(
            "SELECT ino FROM hold WHERE dev = ? AND access = ?", [device, Access.PUBLIC.value]
        )
    )


def around(db: Database, seen: Sequence[Seen]) -> Mapping[Identity, Hold]:
    """Return, of these objects, what is held of the tree that one is in, or of what is in one."""
    devices = [seen_.identity.dev for seen_ in seen]
    marks = ", ".join("?" * len(devices))
    none = not db.execute(
        f"SELECT EXISTS(SELECT 1 FROM hold WHERE recursive <> 0 AND dev IN ({marks}))", devices
    ).fetchone()[0]
    found = {}
    for one in seen:
        holds = [] if none else holds_above(db, one.identity, one.path)
        if not holds and one.terms.recursive:
            holds = _below(db, one)
        if holds:
            found[one.identity] = holds[0]
    return found


def holds_above(db: Database, identity: Identity, path: str) -> list[Hold]:
    """Return a hold on a tree that the object at `path` is in, none if there is none."""
    return registry.holds_where(
        db,
        "h.recursive <> 0 AND h.dev = ? AND h.ino <> ?"
        " AND substr(?, 1, length(h.path) + 1) = h.path || '/' LIMIT 1",
        # A held tree's own path can always be written down; what is in it may be called anything.
        [identity.dev, identity.ino, path.encode("utf-8", "replace").decode()],
    )


def _below(db: Database, seen: Seen) -> list[Hold]:
    # In the order of text, what is below a folder lies between "PATH/" and "PATH0".
    return registry.holds_where(
        db,
        "h.dev = ? AND h.path > ? || '/' AND h.path < ? || '0' LIMIT 1",
        [seen.identity.dev, seen.path, seen.path],
    )
