# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tables of the book and the migrations that make them, each applied once and in this order."""

from typing import Final

from sqlite_utils import Database, Migrations

from svirtd.errors import StartError

migrations = Migrations("svirtd")

# SQLite keeps a number for the application: that of the book in use is 0.
_COPY: Final = 1


@migrations(name="0001-registry")
def _registry(db: Database) -> None:
    # One row: the pool is its key, a cursor into the permutation, and the FIFO of returned ranks.
    db.table("pool").create(
        {
            "one": int,
            "private": str,
            "groups": str,
            "reserved": str,
            "size": int,
            "key": bytes,
            "cursor": int,
            "returned": int,
            "quarantined": int,
        },
        pk="one",
        not_null=(
            "private",
            "groups",
            "reserved",
            "size",
            "key",
            "cursor",
            "returned",
            "quarantined",
        ),
        strict=True,
    )
    # seq only ever grows, so that the lowest is the one returned longest ago.
    db.table("returned").create(
        {"seq": int, "rank": int}, pk="seq", not_null=("rank",), strict=True
    )
    db.table("returned").create_index(["rank"], unique=True)
    # An object that may still carry the categories of a rank whose VM is gone.
    db.table("quarantine").create(
        {
            "id": int,
            "rank": int,
            "vm_name": str,
            "dev": int,
            "ino": int,
            "path": str,
            "label": str,
            "reason": str,
            "since_us": int,
        },
        pk="id",
        not_null=("rank", "vm_name", "dev", "ino", "path", "label", "reason", "since_us"),
        strict=True,
    )
    db.table("quarantine").create_index(["rank"])
    # The rank is the key: it is what every other table needs, and each index saved is a page less
    # to sync with every commit.
    db.table("vm").create(
        {
            "rank": int,
            "id": str,
            "name": str,
            "owner_uid": int,
            "state": str,
            "reason": str,
            "goal": str,
            "uuid": str,
            "categories": str,
            "process_context": str,
            "image_context": str,
            "unit": str,
            "main_pid": int,
            "runtime_dir": str,
            "persistent": int,
            "lifetime": str,
            "caller": str,
            "created_us": int,
        },
        pk="rank",
        not_null=(
            "id",
            "name",
            "owner_uid",
            "state",
            "reason",
            "goal",
            "uuid",
            "categories",
            "process_context",
            "image_context",
            "unit",
            "main_pid",
            "runtime_dir",
            "persistent",
            "lifetime",
            "caller",
            "created_us",
        ),
        strict=True,
    )
    db.table("vm").create_index(["name"], unique=True)
    # Start-up looks at VMs that are more than a reservation; there may be many that are not.
    db.execute("CREATE INDEX vm_active ON vm(state) WHERE state <> 'reserved'")
    db.execute("CREATE INDEX vm_caller ON vm(caller) WHERE caller <> ''")
    # `number` keeps the order of the request. A table without rowid is one tree instead of two.
    db.execute(
        "CREATE TABLE hold(rank INTEGER NOT NULL REFERENCES vm(rank), number INTEGER NOT NULL,"
        " dev INTEGER NOT NULL, ino INTEGER NOT NULL, path TEXT NOT NULL, access TEXT NOT NULL,"
        " label TEXT NOT NULL, original TEXT, PRIMARY KEY (rank, number)) STRICT, WITHOUT ROWID"
    )
    db.execute("CREATE INDEX hold_object ON hold(dev, ino)")
    db.table("operation").create(
        {
            "id": int,
            "kind": str,
            "rank": int,
            "created": int,
            "caller_uid": int,
            "steps": str,
            "started_us": int,
        },
        pk="id",
        not_null=("kind", "rank", "created", "caller_uid", "steps", "started_us"),
        foreign_keys=[("rank", "vm", "rank")],
        strict=True,
    )


@migrations(name="0002-boot")
def _boot(db: Database) -> None:
    # Device numbers are of the boot that this names.
    db.table("boot").create(
        {"one": int, "boot_id": str}, pk="one", not_null=("boot_id",), strict=True
    )


@migrations(name="0003-unknown-original")
def _unknown_original(db: Database) -> None:
    # A hold that was found and not made: what its object carried before is not known.
    db.execute("ALTER TABLE hold ADD COLUMN original_known INTEGER NOT NULL DEFAULT 1")


@migrations(name="0004-ranks-ahead")
def _ranks_ahead(db: Database) -> None:
    # Ranks that were claimed and not drawn: issued although the cursor has not come to them.
    db.execute("ALTER TABLE pool ADD COLUMN ahead INTEGER NOT NULL DEFAULT 0")


@migrations(name="0005-quarantine-original")
def _quarantine_original(db: Database) -> None:
    # What an object in quarantine carried before, if that is known: 1 in restorable says so.
    db.execute("ALTER TABLE quarantine ADD COLUMN original TEXT")
    db.execute("ALTER TABLE quarantine ADD COLUMN restorable INTEGER NOT NULL DEFAULT 0")


@migrations(name="0006-owner")
def _owner(db: Database) -> None:
    # Quotas count what a user owns with each of his requests. Root has none, and pays for none.
    db.execute("CREATE INDEX vm_owner ON vm(owner_uid) WHERE owner_uid <> 0")


@migrations(name="0007-quarantine-owner")
def _quarantine_owner(db: Database) -> None:
    # Whose VM it was: a set that waits for a user's file is counted like a VM of his.
    db.execute("ALTER TABLE quarantine ADD COLUMN owner_uid INTEGER NOT NULL DEFAULT 0")
    db.execute("CREATE INDEX quarantine_owner ON quarantine(owner_uid) WHERE owner_uid <> 0")


@migrations(name="0008-sharing")
def _sharing(db: Database) -> None:
    # A group owns one category as long as it is in the book. With a namespace it is a zone.
    db.execute(
        "CREATE TABLE vm_group(name TEXT NOT NULL PRIMARY KEY, category INTEGER NOT NULL UNIQUE,"
        " owner_uid INTEGER NOT NULL, created_us INTEGER NOT NULL,"
        " writers TEXT NOT NULL DEFAULT 'all', namespace TEXT NOT NULL DEFAULT '') STRICT"
    )
    db.execute("CREATE INDEX vm_group_owner ON vm_group(owner_uid) WHERE owner_uid <> 0")
    # Categories that a group had once; the lowest seq is the one returned longest ago. Those in
    # quarantine stand in the table of that name, with the rank -1 - category.
    db.execute(
        "CREATE TABLE group_returned(seq INTEGER PRIMARY KEY,"
        " category INTEGER NOT NULL UNIQUE) STRICT"
    )
    # Groups that a VM will be in at each start. Those of its run now are in the VM's own row.
    db.execute(
        "CREATE TABLE member(rank INTEGER NOT NULL REFERENCES vm(rank),"
        " grp TEXT NOT NULL REFERENCES vm_group(name), PRIMARY KEY (rank, grp))"
        " STRICT, WITHOUT ROWID"
    )
    db.execute("CREATE INDEX member_group ON member(grp)")
    # Which VMs of whom may be members, and until when (0: without end).
    db.execute(
        "CREATE TABLE vm_grant(grp TEXT NOT NULL REFERENCES vm_group(name), vm_name TEXT NOT NULL,"
        " owner_uid INTEGER NOT NULL, until_us INTEGER NOT NULL, at_end TEXT NOT NULL,"
        " since_us INTEGER NOT NULL, told INTEGER NOT NULL DEFAULT 0,"
        " PRIMARY KEY (grp, vm_name)) STRICT, WITHOUT ROWID"
    )
    # Which side of a wall a subject (a VM's Id or UUID, an owner) has ever been on.
    db.execute(
        "CREATE TABLE wall_history(wall TEXT NOT NULL, subject TEXT NOT NULL, grp TEXT NOT NULL,"
        " vm_name TEXT NOT NULL, since_us INTEGER NOT NULL, PRIMARY KEY (subject, wall, grp))"
        " STRICT, WITHOUT ROWID"
    )
    # Who has had such history forgotten.
    db.execute(
        "CREATE TABLE wall_clear(id INTEGER PRIMARY KEY, wall TEXT NOT NULL, subject TEXT NOT NULL,"
        " uid INTEGER NOT NULL, cleared INTEGER NOT NULL, at_us INTEGER NOT NULL) STRICT"
    )
    # Blank-separated: the groups whose categories the VM's processes have in this run.
    db.execute("ALTER TABLE vm ADD COLUMN groups TEXT NOT NULL DEFAULT ''")
    # The group by whose category an object is labelled; what the request calls the object; its
    # digest when the VM got it; when the VM is to lose it (0: never), and how.
    db.execute("ALTER TABLE hold ADD COLUMN grp TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE hold ADD COLUMN name TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE hold ADD COLUMN digest TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE hold ADD COLUMN until_us INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE hold ADD COLUMN at_end TEXT NOT NULL DEFAULT 'report'")
    db.execute("CREATE INDEX hold_group ON hold(grp) WHERE grp <> ''")
    db.execute("CREATE INDEX hold_until ON hold(until_us) WHERE until_us <> 0")


@migrations(name="0009-others")
def _others(db: Database) -> None:
    # Who sets a VM's labels, if not svirtd; the administrator's unit that has its label.
    db.execute("ALTER TABLE vm ADD COLUMN labeller TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE vm ADD COLUMN enrolled TEXT NOT NULL DEFAULT ''")
    # What an enrolled unit gets at each start: resources and options as they were asked for, JSON.
    db.execute(
        "CREATE TABLE enrolment(rank INTEGER PRIMARY KEY REFERENCES vm(rank),"
        " unit TEXT NOT NULL UNIQUE, resources TEXT NOT NULL, options TEXT NOT NULL,"
        " since_us INTEGER NOT NULL) STRICT"
    )
    # The name of the resource under which an object lies; a directory with all that is in it; the
    # number of the device that a node stands for.
    db.execute("ALTER TABLE hold ADD COLUMN part_of TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE hold ADD COLUMN recursive INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE hold ADD COLUMN device INTEGER NOT NULL DEFAULT 0")
    db.execute("CREATE INDEX hold_device ON hold(device) WHERE device <> 0")
    # JSON: the numbers of the holds that an operation is about, empty if it is about all.
    db.execute("ALTER TABLE operation ADD COLUMN numbers TEXT NOT NULL DEFAULT ''")


@migrations(name="0010-trees")
def _trees(db: Database) -> None:
    # Of a tree: one row that says that its root is one, and one for each label that entries had
    # beside the root's own, with the inodes of these; the label is NULL where they had none.
    db.execute(
        "CREATE TABLE tree(dev INTEGER NOT NULL, ino INTEGER NOT NULL, label TEXT,"
        " inodes BLOB NOT NULL) STRICT"
    )
    db.execute("CREATE INDEX tree_root ON tree(dev, ino)")
    db.execute("CREATE INDEX hold_tree ON hold(dev) WHERE recursive <> 0")


def migrate(db: Database) -> None:
    """Bring the book to this version's schema.

    Raises StartError if a newer svirtd has written it: its rows may mean what we do not know.
    """
    _refuse_newer(db)
    if migrations.pending(db):
        migrations.apply(db)


def _refuse_newer(db: Database) -> None:
    known = {name for name, _ in _all()}
    newer = [m.name for m in migrations.applied(db) if m.name not in known]
    if newer:
        raise StartError(
            f"the book was written by a newer svirtd (it has {', '.join(newer)}); "
            "install that version again, or restore a backup of the book made by this one"
        )


def refuse_foreign(db: Database) -> None:
    """Raise ValueError for a database that svirtd has not written, StartError for a newer book."""
    if not migrations.applied(db):
        raise ValueError("it is a database, and not a book of svirtd")
    _refuse_newer(db)


def is_current(db: Database) -> bool:
    """Say whether the book has this version's schema."""
    return not migrations.pending(db)


def mark_as_copy(db: Database) -> None:
    """Say in the file that it is a copy, from which nothing has been drawn yet."""
    db.execute(f"PRAGMA user_version={_COPY}")


def unmark_copy(db: Database) -> bool:
    """Take that back; returns whether it was said."""
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found != _COPY:
        return False
    db.execute("PRAGMA user_version=0")
    return True


def _all() -> list[tuple[str, object]]:
    return [(m.name, m.fn) for m in migrations._migrations]
