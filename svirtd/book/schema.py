# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tables of the book and the migrations that make them, each applied once and in this order."""

from sqlite_utils import Database, Migrations

from svirtd.errors import StartError

migrations = Migrations("svirtd")


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
    db.table("vm").create(
        {
            "id": str,
            "name": str,
            "owner_uid": int,
            "state": str,
            "reason": str,
            "goal": str,
            "uuid": str,
            "rank": int,
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
        pk="id",
        not_null=(
            "name",
            "owner_uid",
            "state",
            "reason",
            "goal",
            "uuid",
            "rank",
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
    db.table("vm").create_index(["rank"], unique=True)
    # Start-up looks at VMs that are more than a reservation; there may be many that are not.
    db.execute("CREATE INDEX vm_active ON vm(state) WHERE state <> 'reserved'")
    db.table("hold").create(
        {
            "vm_id": str,
            "dev": int,
            "ino": int,
            "path": str,
            "access": str,
            "label": str,
            "original": str,
        },
        pk=("vm_id", "dev", "ino"),
        not_null=("path", "access", "label"),
        foreign_keys=[("vm_id", "vm", "id")],
        strict=True,
    )
    db.table("hold").create_index(["dev", "ino"])
    db.table("operation").create(
        {
            "id": int,
            "kind": str,
            "vm_id": str,
            "created": int,
            "caller_uid": int,
            "steps": str,
            "started_us": int,
        },
        pk="id",
        not_null=("kind", "vm_id", "created", "caller_uid", "steps", "started_us"),
        foreign_keys=[("vm_id", "vm", "id")],
        strict=True,
    )
    db.table("operation").create_index(["vm_id"])


def migrate(db: Database) -> None:
    """Bring the book to this version's schema.

    Raises StartError if a newer svirtd has written it: its rows may mean what we do not know.
    """
    known = {name for name, _ in _all()}
    newer = [m.name for m in migrations.applied(db) if m.name not in known]
    if newer:
        raise StartError(
            f"the book was written by a newer svirtd (it has {', '.join(newer)}); "
            "install that version again, or restore a backup of the book made by this one"
        )
    if migrations.pending(db):
        migrations.apply(db)


def _all() -> list[tuple[str, object]]:
    return [(m.name, m.fn) for m in migrations._migrations]
