# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chinese walls at work: a group's label is refused, or recorded in the transaction that gives it.

Whatever lets a VM into a group calls refuse() and record(); only Walls.clear() forgets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from svirtd.book import registry, walls
from svirtd.book.store import Database
from svirtd.book.walls import Cleared
from svirtd.core.model import VM, Caller
from svirtd.core.names import shown
from svirtd.core.walls import Conflict, Held, Wall, Who, as_subject, judge, records
from svirtd.engine.authorize import About, Action
from svirtd.engine.calendar import now_us
from svirtd.engine.doors import Doors
from svirtd.errors import Failed, InvalidArgs, NoSuchVM, WallConflict
from svirtd.host.journal import MessageId, Priority

# Of each wall in one answer, the newest.
ROWS_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class View:
    """A wall as it is told. One without classes is not in the configuration any more.

    `rows` are in the book, the newest of which are in `history`.
    """

    wall: Wall
    configured: bool
    rows: int
    history: Sequence[Held]
    cleared: Sequence[Cleared]


def refuse(db: Database, doors: Doors, vm: VM, joining: Iterable[str] = ()) -> None:
    """Raise WallConflict if a VM may not be in its groups of this run and those that it joins."""
    groups = sorted({*vm.groups, *joining})
    if doors.config.walls and groups:
        conflict = _conflict(db, doors.config.walls, vm, groups)
        if conflict is not None:
            raise WallConflict(conflict.text)


def record(db: Database, now: Sequence[Wall], vm: VM) -> None:
    """Record that a VM has the categories of its groups of this run.

    To be called in the transaction that gives them, after refuse(). It stays recorded if the start
    fails: the label may have been there for a moment, and nobody can say what was read in it.
    """
    if now:
        who = Who.of(vm)
        history = walls.history_of(db, who.subjects())
        walls.remember(db, records(now, who, history, vm.groups, now_us()))


def record_running(db: Database, now: Sequence[Wall]) -> list[str]:
    """Record what all VMs hold at this moment: a wall may be newer than they, or the book older.

    Returns which of them are on two sides at once, to be told: they run, and nothing is undone.
    """
    told = []
    for vm in walls.vms_in_groups(db) if now else ():
        conflict = _conflict(db, now, vm, vm.groups)
        if conflict is not None:
            told.append(f"VM {vm.name} is where it may not be: {conflict.text}")
        record(db, now, vm)
    return told


def _conflict(db: Database, now: Sequence[Wall], vm: VM, groups: Iterable[str]) -> Conflict | None:
    who = Who.of(vm)
    return judge(now, who, walls.history_of(db, who.subjects()), groups)


class Walls:
    """What administrators may ask about walls. Every method raises SvirtError."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    async def views(self, caller: Caller) -> list[View]:
        """Return every wall, of the configuration and of the history, by name."""
        doors = self._doors
        await doors.authority.authorize(caller, Action.VERIFY)

        def look(db: Database) -> list[View]:
            counts = walls.counts(db)
            known = {wall.name: wall for wall in doors.config.walls}
            gone = {name: Wall(name, ()) for name in counts if name not in known}
            return [
                View(
                    wall,
                    name in known,
                    counts.get(name, 0),
                    walls.newest(db, name, ROWS_MAX),
                    walls.cleared(db, name, ROWS_MAX),
                )
                for name, wall in sorted((known | gone).items())
            ]

        return await doors.store.read(look)

    async def clear(self, caller: Caller, wall: str, text: str) -> int:
        """Forget what a VM (its name, Id or UUID) or an owner (uid:NUMBER) has held behind a wall.

        Returns how many rows that was. Raises InvalidArgs, NoSuchVM, and Failed if there is nothing
        to forget or something is held now.
        """
        doors = self._doors
        # Whoever says yes says it to what is there now, not to the next VM of that name.
        subjects = await doors.store.read(lambda db: _subjects(db, text))
        about = About(vm=text, wall=wall)
        await doors.authority.authorize(caller, Action.CLEAR_WALLS, about=about)
        if not subjects:
            raise await doors.store.read(lambda db: _unknown(db, text))
        count = await doors.store.write(
            lambda db: _clear(db, doors.config.walls, caller.uid, wall, text, subjects)
        )
        doors.journal.record(
            MessageId.WALL_CLEARED,
            f"wall {wall}: what {', '.join(subjects)} has held is forgotten, {count} rows, by uid "
            f"{caller.uid}",
            priority=Priority.NOTICE,
            SVIRT_WALL=wall,
            SVIRT_SUBJECT=text,
            SVIRT_CALLER_UID=caller.uid,
            SVIRT_OPERATION="clear-wall",
        )
        return count


def _subjects(db: Database, text: str) -> tuple[str, ...]:
    """Return what is meant; nothing if no VM is called so.

    A VM's Id and its UUID go together, whichever was given: what one of them keeps would come back
    to the other at the next start.
    """
    found: list[str]
    subject = as_subject(text)
    if subject is None:
        named = registry.vm_by_name(db, text)
        vms, found = ([] if named is None else [named]), []
    else:
        vms, found = walls.vms_of(db, subject), [subject]
    return tuple(dict.fromkeys([*found, *(one for vm in vms for one in Who.of(vm).own())]))


def _unknown(db: Database, text: str) -> NoSuchVM:
    earlier = walls.subjects_named(db, text)
    hint = (
        f"earlier ones of that name are in the history as {', '.join(earlier)}: name one of these"
        if earlier
        else "name a VM of svirtctl list, or a subject of svirtctl wall history"
    )
    return NoSuchVM(f"no VM is named {shown(text)}; {hint}")


def _clear(
    db: Database, now: Sequence[Wall], uid: int, name: str, text: str, subjects: Sequence[str]
) -> int:
    wall = next((one for one in now if one.name == name), None)
    if wall is None and name not in walls.counts(db):
        raise InvalidArgs(f"no wall is named {shown(name)}; see svirtctl wall list")
    for vm in walls.vms_in_groups(db) if wall is not None else ():
        inside = [group for group in vm.groups if wall is not None and wall.side(group) is not None]
        if inside and set(subjects) & set(Who.of(vm).subjects()):
            raise Failed(
                f"VM {vm.name!r} is in group '{inside[0]}' now, behind wall '{name}': what is held "
                "cannot be forgotten; release the VM first"
            )
    count = walls.clear(db, name, subjects, uid, now_us())
    if not count:
        raise Failed(
            f"{shown(text)} has held nothing behind wall '{name}': nothing was cleared; see "
            "svirtctl wall history"
        )
    return count
