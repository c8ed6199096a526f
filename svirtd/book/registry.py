# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMs and holds: rows to values and back. Called inside a transaction or a read."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any

from svirtd.book.connection import Database
from svirtd.core.groups import AtEnd
from svirtd.core.model import (
    VM,
    Access,
    Hold,
    Identity,
    Labeller,
    Lifetime,
    Snapshot,
    State,
)

_VM = (
    "id, name, owner_uid, state, reason, goal, uuid, rank, categories, process_context,"
    " image_context, unit, main_pid, runtime_dir, persistent, lifetime, caller, created_us, groups,"
    " labeller, enrolled"
)
_VALUES = ", ".join("?" * len(_VM.split(",")))
_VM_READ = (
    f"{_VM}, (SELECT group_concat(grp, ' ') FROM (SELECT grp FROM member WHERE member.rank ="
    " vm.rank ORDER BY grp))"
)
# Below the number of values that one statement of any SQLite may have.
_OBJECTS_AT_ONCE = 256
_HOLD = (
    "SELECT v.id, v.name, h.dev, h.ino, h.path, h.access, h.label, h.original, h.original_known,"
    " v.owner_uid, h.grp, h.name, h.digest, h.until_us, h.at_end, h.number, h.part_of, h.recursive,"
    " h.device"
    " FROM hold h JOIN vm v ON v.rank = h.rank"
)


def _vm(row: Sequence[Any]) -> VM:
    return VM(
        id=row[0],
        name=row[1],
        owner_uid=row[2],
        state=State(row[3]),
        reason=row[4],
        goal=row[5],
        uuid=row[6],
        rank=row[7],
        categories=row[8],
        process_context=row[9],
        image_context=row[10],
        unit=row[11],
        main_pid=row[12],
        runtime_dir=row[13],
        persistent=bool(row[14]),
        lifetime=Lifetime(row[15]),
        caller=row[16],
        created_us=row[17],
        groups=tuple(row[18].split()),
        labeller=Labeller(row[19]),
        enrolled=row[20],
        lasting=tuple((row[21] or "").split()),
    )


def _hold(row: Sequence[Any]) -> Hold:
    vm_id, vm_name, dev, ino, path, access, label, original, known, owner = row[:10]
    group, name, digest, until_us, at_end, number, part_of, recursive, device = row[10:]
    return Hold(
        vm_id,
        vm_name,
        Identity(dev, ino),
        path,
        Access(access),
        label,
        original,
        bool(known),
        owner,
        group,
        name,
        digest,
        until_us,
        AtEnd(at_end),
        number,
        part_of,
        bool(recursive),
        device,
    )


def vm_by_name(db: Database, name: str) -> VM | None:
    """Return the VM of this name."""
    row = db.execute(f"SELECT {_VM_READ} FROM vm WHERE name = ?", [name]).fetchone()
    return None if row is None else _vm(row)


def current(db: Database, vm: VM) -> VM | None:
    """Return what this very VM is now; None if it has left the book, whoever has its name today."""
    now = vm_by_rank(db, vm.rank)
    return now if now is not None and now.id == vm.id else None


def vm_by_rank(db: Database, rank: int) -> VM | None:
    """Return the VM that has this private set."""
    row = db.execute(f"SELECT {_VM_READ} FROM vm WHERE rank = ?", [rank]).fetchone()
    return None if row is None else _vm(row)


def vms_by_ranks(db: Database, ranks: Sequence[int]) -> list[VM]:
    """Return the VMs that have these private sets."""
    found = [vm_by_rank(db, rank) for rank in ranks]
    return [vm for vm in found if vm is not None]


def owned_by(db: Database, uid: int) -> tuple[int, int]:
    """Return how many VMs a user has, and how many resources they hold. Not for root."""
    (vms,) = db.execute(
        "SELECT count(*) FROM vm WHERE owner_uid = ? AND owner_uid <> 0", [uid]
    ).fetchone()
    (holds,) = db.execute(
        "SELECT count(*) FROM vm v JOIN hold h ON h.rank = v.rank"
        " WHERE v.owner_uid = ? AND v.owner_uid <> 0",
        [uid],
    ).fetchone()
    return vms, holds


def has_id(db: Database, id_: str) -> bool:
    """Say whether a VM has this Id. Looks at every VM: not for the way of a request."""
    return db.execute("SELECT 1 FROM vm WHERE id = ?", [id_]).fetchone() is not None


def vm_by_pid(db: Database, pid: int) -> VM | None:
    """Return the running VM with this main process."""
    row = db.execute(
        f"SELECT {_VM_READ} FROM vm WHERE state <> 'reserved' AND main_pid = ?", [pid]
    ).fetchone()
    return None if row is None else _vm(row)


def vm_by_uuid(db: Database, uuid: str) -> VM | None:
    """Return the VM that was given this UUID; libvirt's before others, then the oldest.

    Looks at every VM: not for the way of a request.
    """
    row = db.execute(
        f"SELECT {_VM_READ} FROM vm WHERE uuid = ? ORDER BY labeller DESC, created_us LIMIT 1",
        [uuid],
    ).fetchone()
    return None if row is None else _vm(row)


def vm_by_unit(db: Database, unit: str) -> VM | None:
    """Return the VM that runs as this unit."""
    row = db.execute(
        f"SELECT {_VM_READ} FROM vm WHERE state <> 'reserved' AND unit = ?", [unit]
    ).fetchone()
    return None if row is None else _vm(row)


def active_vms(db: Database) -> list[VM]:
    """Return the VMs that are more than a reservation."""
    return [_vm(r) for r in db.execute(f"SELECT {_VM_READ} FROM vm WHERE state <> 'reserved'")]


def caller_vms(db: Database) -> list[VM]:
    """Return the VMs that end with their caller, those that hold nothing among them."""
    return [_vm(r) for r in db.execute(f"SELECT {_VM_READ} FROM vm WHERE caller <> ''")]


def all_vms(db: Database, limit: int) -> list[VM] | None:
    """Return every VM by name; None if there are more than `limit`."""
    rows = db.execute(f"SELECT {_VM_READ} FROM vm ORDER BY name LIMIT ?", [limit + 1]).fetchall()
    return None if len(rows) > limit else [_vm(r) for r in rows]


def every_vm(db: Database) -> Iterator[VM]:
    """Yield every VM, however many there are."""
    return (_vm(row) for row in db.execute(f"SELECT {_VM_READ} FROM vm"))


def add_vm(db: Database, vm: VM) -> None:
    """Insert a VM whose name and rank are free."""
    db.execute(
        f"INSERT INTO vm({_VM}) VALUES ({_VALUES})",
        [
            vm.id,
            vm.name,
            vm.owner_uid,
            vm.state.value,
            vm.reason,
            vm.goal,
            vm.uuid,
            vm.rank,
            vm.categories,
            vm.process_context,
            vm.image_context,
            vm.unit,
            vm.main_pid,
            vm.runtime_dir,
            int(vm.persistent),
            vm.lifetime.value,
            vm.caller,
            vm.created_us,
            " ".join(vm.groups),
            vm.labeller.value,
            vm.enrolled,
        ],
    )


def update_vm(db: Database, vm: VM) -> None:
    """Write what may change in a VM's life."""
    db.execute(
        "UPDATE vm SET state = ?, reason = ?, goal = ?, uuid = ?, process_context = ?,"
        " image_context = ?, unit = ?, main_pid = ?, runtime_dir = ?, persistent = ?,"
        " lifetime = ?, caller = ?, groups = ?, labeller = ?, enrolled = ? WHERE id = ?",
        [
            vm.state.value,
            vm.reason,
            vm.goal,
            vm.uuid,
            vm.process_context,
            vm.image_context,
            vm.unit,
            vm.main_pid,
            vm.runtime_dir,
            int(vm.persistent),
            vm.lifetime.value,
            vm.caller,
            " ".join(vm.groups),
            vm.labeller.value,
            vm.enrolled,
            vm.id,
        ],
    )


def remove_vm(db: Database, vm: VM) -> None:
    """Delete a VM that has no holds and no open operation, and its lasting memberships."""
    db.execute("DELETE FROM member WHERE rank = ?", [vm.rank])
    db.execute("DELETE FROM vm WHERE rank = ?", [vm.rank])


def add_holds(db: Database, vm: VM, holds: Sequence[Hold]) -> None:
    """Insert holds of a VM, whose numbers are free."""
    db.conn.executemany(
        "INSERT INTO hold(rank, number, dev, ino, path, access, label, original, original_known,"
        " grp, name, digest, until_us, at_end, part_of, recursive, device)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                vm.rank,
                h.number,
                h.identity.dev,
                h.identity.ino,
                h.path,
                h.access.value,
                h.label,
                h.original,
                int(h.original_known),
                h.group,
                h.name,
                h.digest,
                h.until_us,
                h.at_end.value,
                h.part_of,
                int(h.recursive),
                h.device,
            )
            for h in holds
        ],
    )
    _begin_trees(db, holds)


def _begin_trees(db: Database, holds: Sequence[Hold]) -> None:
    """Say which objects are trees: what their entries carried is kept beside, see book/trees.py."""
    for hold in holds:
        if hold.recursive:
            db.execute(
                "INSERT INTO tree(dev, ino, label, inodes) SELECT ?, ?, NULL, x'' WHERE NOT EXISTS("
                "SELECT 1 FROM tree WHERE dev = ? AND ino = ?)",
                [hold.identity.dev, hold.identity.ino] * 2,
            )


def set_digests(db: Database, vm: VM, holds: Sequence[Hold]) -> None:
    """Write what was in each object when the VM got it."""
    db.conn.executemany(
        "UPDATE hold SET digest = ? WHERE rank = ? AND dev = ? AND ino = ?",
        [(one.digest, vm.rank, one.identity.dev, one.identity.ino) for one in holds],
    )


def learn_original(db: Database, identity: Identity, label: str | None) -> None:
    """Enter what an object carried before svirtd, where that was not known."""
    db.execute(
        "UPDATE hold SET original = ?, original_known = 1"
        " WHERE dev = ? AND ino = ? AND original_known = 0",
        [label, identity.dev, identity.ino],
    )


def remove_holds(db: Database, vm: VM) -> None:
    """Delete every hold of a VM."""
    db.execute("DELETE FROM hold WHERE rank = ?", [vm.rank])


def remove_some(db: Database, vm: VM, numbers: Iterable[int]) -> None:
    """Delete holds of a VM by their numbers."""
    db.conn.executemany(
        "DELETE FROM hold WHERE rank = ? AND number = ?", [(vm.rank, one) for one in numbers]
    )


def name_holds(db: Database) -> None:
    """Give each hold that has no id one: an earlier version gave none by itself."""
    for rank, number in db.execute("SELECT rank, number FROM hold WHERE name = ''").fetchall():
        taken = {one for (one,) in db.execute("SELECT name FROM hold WHERE rank = ?", [rank])}
        name = next(one for one in (f"r{n}" for n in count(1)) if one not in taken)
        db.execute("UPDATE hold SET name = ? WHERE rank = ? AND number = ?", [name, rank, number])


def any_nameless(db: Database) -> bool:
    """Say whether there are holds without an id."""
    return db.execute("SELECT 1 FROM hold WHERE name = '' LIMIT 1").fetchone() is not None


def holds_of(db: Database, vm: VM) -> list[Hold]:
    """Return what a VM holds, in the order in which it was asked for."""
    return [_hold(r) for r in db.execute(f"{_HOLD} WHERE h.rank = ? ORDER BY h.number", [vm.rank])]


def holds_by_group(db: Database, name: str) -> list[Hold]:
    """Return what is labelled by a group's category."""
    return holds_where(db, "h.grp = ?", [name])


def ended_holds(db: Database, now_us: int) -> list[Hold]:
    """Return the holds whose end has come."""
    return holds_where(db, "h.until_us <> 0 AND h.until_us <= ?", [now_us])


def holders_of(db: Database, identity: Identity) -> list[tuple[VM, Hold]]:
    """Return who holds an object, with how."""
    return _with_vms(db, holds_on(db, identity))


def holders_at(db: Database, path: str) -> list[tuple[VM, Hold]]:
    """Return who holds an object that was found at this path, with how."""
    return _with_vms(db, [_hold(r) for r in db.execute(f"{_HOLD} WHERE h.path = ?", [path])])


def holds_on(db: Database, identity: Identity) -> list[Hold]:
    """Return the holds on an object."""
    return [
        _hold(r)
        for r in db.execute(
            f"{_HOLD} WHERE h.dev = ? AND h.ino = ? ORDER BY v.created_us",
            [identity.dev, identity.ino],
        )
    ]


def holds_where(db: Database, condition: str, values: Sequence[Any]) -> list[Hold]:
    """Return the holds (h) of VMs (v) that meet a condition of the book's own."""
    return [_hold(row) for row in db.execute(f"{_HOLD} WHERE {condition}", values)]


def _with_vms(db: Database, holds: Sequence[Hold]) -> list[tuple[VM, Hold]]:
    found = [(vm_by_name(db, hold.vm_name), hold) for hold in holds]
    return [(vm, hold) for vm, hold in found if vm is not None]


def snapshot(db: Database, identities: Sequence[Identity], devices: Sequence[int] = ()) -> Snapshot:
    """Return what the book says about these objects, and about the devices of these numbers."""
    held: dict[Identity, list[Hold]] = {}
    for start in range(0, len(identities), _OBJECTS_AT_ONCE):
        some = identities[start : start + _OBJECTS_AT_ONCE]
        pairs = ", ".join(["(?, ?)"] * len(some))
        values = [number for one in some for number in (one.dev, one.ino)]
        for row in db.execute(
            f"{_HOLD} WHERE (h.dev, h.ino) IN (VALUES {pairs}) ORDER BY v.created_us", values
        ):
            hold = _hold(row)
            held.setdefault(hold.identity, []).append(hold)
    by_device = {
        device: [
            _hold(row)
            for row in db.execute(f"{_HOLD} WHERE h.device <> 0 AND h.device = ?", [device])
        ]
        for device in devices
    }
    return Snapshot(held, by_device)
