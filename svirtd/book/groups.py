# SPDX-License-Identifier: LGPL-2.1-or-later
"""Groups, their categories, members and grants: rows to values and back. Inside a transaction."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from svirtd.book import registry
from svirtd.book.connection import Database
from svirtd.core.groups import AtEnd, Grant, Group, Writers
from svirtd.core.mcs import MAX_CATEGORY
from svirtd.core.model import VM, Hold
from svirtd.core.pool import category_of, draw_category, key_of

_GROUP = "SELECT name, category, owner_uid, created_us, writers, namespace FROM vm_group"
_GRANT = "SELECT grp, vm_name, owner_uid, until_us, at_end, since_us, told FROM vm_grant"


def _group(row: Sequence[Any]) -> Group:
    name, category, owner_uid, created_us, writers, namespace = row
    return Group(name, category, owner_uid, created_us, Writers(writers), namespace)


def _grant(row: Sequence[Any]) -> Grant:
    group, vm_name, owner_uid, until_us, at_end, since_us, told = row
    return Grant(group, vm_name, owner_uid, until_us, AtEnd(at_end), since_us, bool(told))


def by_name(db: Database, name: str) -> Group | None:
    """Return the group of this name."""
    row = db.execute(f"{_GROUP} WHERE name = ?", [name]).fetchone()
    return None if row is None else _group(row)


def by_category(db: Database, category: int) -> Group | None:
    """Return the group that owns this category."""
    row = db.execute(f"{_GROUP} WHERE category = ?", [category]).fetchone()
    return None if row is None else _group(row)


def everything(db: Database) -> list[Group]:
    """Return every group by name; there are never more than categories of the group pool."""
    return [_group(row) for row in db.execute(f"{_GROUP} ORDER BY name")]


def count(db: Database) -> int:
    """Return how many groups there are."""
    (found,) = db.execute("SELECT count(*) FROM vm_group").fetchone()
    return int(found)


def owned_by(db: Database, uid: int) -> int:
    """Return how many groups a user has. Not for root."""
    (found,) = db.execute(
        "SELECT count(*) FROM vm_group WHERE owner_uid = ? AND owner_uid <> 0", [uid]
    ).fetchone()
    return int(found)


def retired_of(db: Database, uid: int) -> int:
    """Return how many categories of a user's earlier groups are in quarantine. Not for root."""
    (found,) = db.execute(
        "SELECT count(DISTINCT rank) FROM quarantine WHERE owner_uid = ? AND owner_uid <> 0"
        " AND rank < 0 AND -1 - rank NOT IN (SELECT category FROM vm_group)",
        [uid],
    ).fetchone()
    return int(found)


def free_categories(
    db: Database, pool: frozenset[int], is_blocked: Callable[[int], bool]
) -> list[int]:
    """Return the categories of which any may be given to a new group; empty if there is none."""
    issued = {category for (category,) in db.execute("SELECT category FROM vm_group")}
    issued |= quarantined(db)
    returned = [c for (c,) in db.execute("SELECT category FROM group_returned ORDER BY seq")]
    return draw_category(pool, issued, returned, is_blocked)


def quarantined(db: Database) -> set[int]:
    """Return the group categories that an object may still carry, those of groups among them."""
    rows = db.execute("SELECT DISTINCT rank FROM quarantine WHERE rank < 0")
    return {category_of(key) for (key,) in rows}


def keep(db: Database, category: int) -> None:
    """Take a free category out of the queue: something that is in quarantine carries it."""
    db.execute("DELETE FROM group_returned WHERE category = ?", [category])


def add(db: Database, group: Group) -> None:
    """Insert a group whose name and category are free."""
    keep(db, group.category)
    db.execute(
        "INSERT INTO vm_group(name, category, owner_uid, created_us, writers, namespace)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [
            group.name,
            group.category,
            group.owner_uid,
            group.created_us,
            group.writers.value,
            group.namespace,
        ],
    )


def remove(db: Database, group: Group) -> None:
    """Delete a group without members and holds; its category goes to quarantine or comes free."""
    db.execute("DELETE FROM vm_grant WHERE grp = ?", [group.name])
    db.execute("DELETE FROM vm_group WHERE name = ?", [group.name])
    give_back(db, group.category)


def give_back(db: Database, category: int) -> None:
    """Let a category be handed out again, if no group has it and every suspect was seen clean."""
    owned = db.execute("SELECT 1 FROM vm_group WHERE category = ?", [category]).fetchone()
    suspected = db.execute("SELECT 1 FROM quarantine WHERE rank = ?", [key_of(category)]).fetchone()
    if owned is None and suspected is None:
        db.execute("INSERT OR IGNORE INTO group_returned(category) VALUES (?)", [category])


# -- members ------------------------------------------------------------------------------------


def join(db: Database, vm: VM, name: str) -> None:
    """Have a VM be in a group from its next start on; nothing changes if it will be already."""
    db.execute("INSERT OR IGNORE INTO member(rank, grp) VALUES (?, ?)", [vm.rank, name])


def leave(db: Database, vm: VM, name: str) -> None:
    """Have a VM not be in a group from its next start on; nothing changes if it will not be."""
    db.execute("DELETE FROM member WHERE rank = ? AND grp = ?", [vm.rank, name])


def lasting_members(db: Database, name: str) -> list[VM]:
    """Return the VMs that will be in a group at their next start."""
    ranks = [rank for (rank,) in db.execute("SELECT rank FROM member WHERE grp = ?", [name])]
    return registry.vms_by_ranks(db, ranks)


def members_now(db: Database, name: str) -> list[VM]:
    """Return the VMs whose processes have the group's category in this run."""
    return [vm for vm in registry.active_vms(db) if name in vm.groups]


def members(db: Database, name: str) -> list[VM]:
    """Return the VMs of a group, those of now and those of a next start, by name."""
    found = {vm.id: vm for vm in (*lasting_members(db, name), *members_now(db, name))}
    return sorted(found.values(), key=lambda vm: vm.name)


def holds_of(db: Database, name: str) -> list[Hold]:
    """Return what is labelled by a group's category."""
    return registry.holds_by_group(db, name)


# -- grants -------------------------------------------------------------------------------------


def grant(db: Database, one: Grant) -> None:
    """Enter a grant, in the place of an earlier one for the same VM."""
    db.execute(
        "INSERT OR REPLACE INTO vm_grant(grp, vm_name, owner_uid, until_us, at_end, since_us, told)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            one.group,
            one.vm_name,
            one.owner_uid,
            one.until_us,
            one.at_end.value,
            one.since_us,
            int(one.told),
        ],
    )


def grant_of(db: Database, name: str, vm_name: str) -> Grant | None:
    """Return what was granted to a VM of this name."""
    row = db.execute(f"{_GRANT} WHERE grp = ? AND vm_name = ?", [name, vm_name]).fetchone()
    return None if row is None else _grant(row)


def grants(db: Database, name: str) -> list[Grant]:
    """Return every grant of a group, by VM."""
    return [_grant(r) for r in db.execute(f"{_GRANT} WHERE grp = ? ORDER BY vm_name", [name])]


def ended_grants(db: Database, now_us: int) -> list[Grant]:
    """Return the grants whose end has come and that nothing was done about yet."""
    return [
        _grant(row)
        for row in db.execute(
            f"{_GRANT} WHERE until_us <> 0 AND until_us <= ? AND told = 0", [now_us]
        )
    ]


def next_end(db: Database, after_us: int) -> int | None:
    """Return when the next lease ends, of a grant or of a hold; None if none will."""
    (found,) = db.execute(
        "SELECT min(until_us) FROM (SELECT until_us FROM vm_grant WHERE until_us > ?1"
        " UNION ALL SELECT min(until_us) FROM hold WHERE until_us > ?1 AND until_us <> 0)",
        [after_us],
    ).fetchone()
    return None if found is None else int(found)


def tell_grant(db: Database, one: Grant) -> None:
    """Record that what is to be done at the end of this very grant was done."""
    db.execute(
        "UPDATE vm_grant SET told = 1 WHERE grp = ? AND vm_name = ? AND since_us = ?",
        [one.group, one.vm_name, one.since_us],
    )


def revoke(db: Database, name: str, vm_name: str) -> None:
    """Delete a grant."""
    db.execute("DELETE FROM vm_grant WHERE grp = ? AND vm_name = ?", [name, vm_name])


def faults(db: Database, pool: frozenset[int]) -> Iterator[str]:
    """Say what cannot be of groups and their categories, those in quarantine among them."""
    for group in everything(db):
        if group.category not in pool:
            yield f"group {group.name!r} has c{group.category}, which is none of the groups' pool"
        grants(db, group.name)
    for (category,) in db.execute(
        "SELECT category FROM group_returned WHERE category IN (SELECT category FROM vm_group)"
    ):
        yield f"category c{category} is free, and a group's"
    for category in quarantined(db) - frozenset(range(MAX_CATEGORY + 1)):
        yield f"quarantine has category c{category}, which does not exist"
    for (name,) in db.execute(
        "SELECT DISTINCT grp FROM hold WHERE grp <> '' AND grp NOT IN (SELECT name FROM vm_group)"
    ):
        yield f"something is held by group {name!r}, which does not exist"
