# SPDX-License-Identifier: LGPL-2.1-or-later
"""After a reboot: find the file systems of the book under the numbers that they have now.

The first pass of recovery; without it every object would look as if another had taken its place. A
file system that is mounted later is looked for again until it is found. What is proof, and what is
refused, is decided in core/devices.py.
"""

from svirtd.book import boots
from svirtd.book.store import Database
from svirtd.core.devices import Found, Renumbering, is_parked, renumber
from svirtd.core.mcs import parse_context
from svirtd.engine.doors import Doors
from svirtd.host import files
from svirtd.host.boot import boot_id, is_device_node
from svirtd.host.journal import MessageId, Priority


async def has_rebooted(doors: Doors) -> bool:
    """Say whether the book was last used in another boot than this.

    So it stays until `remember_boot`: what is cut off before is done again, and finds what it has
    done. Raises StartError.
    """
    return await doors.in_file_thread(boot_id) != await doors.store.read(boots.last_boot)


async def knows_earlier_boot(doors: Doors) -> bool:
    """Say whether the book was surely last used in an earlier boot: a new one does not know."""
    return await has_rebooted(doors) and await doors.store.read(boots.last_boot) != ""


async def remember_boot(doors: Doors) -> None:
    """Record that recovery is through with what an earlier boot had left."""
    if await has_rebooted(doors):
        now = await doors.in_file_thread(boot_id)
        await doors.store.write(lambda db: boots.remember(db, now))


async def find_devices(doors: Doors, *, rebooted: bool) -> None:
    """Give the devices of the book the numbers that they have now.

    After a reboot all of them, otherwise those that were not found so far.
    """
    if not rebooted and not await doors.store.read(boots.any_parked):
        return
    objects = await doors.store.read(boots.objects)
    paths = {one.path for one in objects if rebooted or is_parked(one.identity.dev)}
    found = await doors.in_file_thread(_look, doors, paths)

    def decide(db: Database) -> Renumbering:
        # By what the book says now: meanwhile a file may have got a holder under its new number.
        now = boots.objects(db)
        known = [one for one in now if rebooted or is_parked(one.identity.dev)]
        settled = [one.identity for one in now if not (rebooted or is_parked(one.identity.dev))]
        result = renumber(known, found, settled)
        boots.renumber(db, result.moves)
        return result

    _tell(doors, await doors.store.write(decide))


def _look(doors: Doors, paths: set[str]) -> dict[str, Found]:
    looked = {path: files.found_at(doors.kernel, path) for path in paths}
    return {
        path: there
        for path, there in looked.items()
        if there is not None and (_has_categories(there) or not is_device_node(path))
    }


def _has_categories(found: Found) -> bool:
    """A node of devtmpfs is made anew at each boot, and what is behind it may be another device
    than before: the label that any such node has proves nothing. With a VM's categories it is of
    this boot."""
    try:
        return bool(parse_context(found.label or "").categories)
    except ValueError:
        return False


def _tell(doors: Doors, result: Renumbering) -> None:
    for old, new in sorted(result.moves.items()):
        what = "is not found" if is_parked(new) else f"is device {new:#x} in this boot"
        doors.journal.record(
            MessageId.RECOVERED,
            f"device {old:#x} of the book {what}",
            priority=Priority.WARNING if is_parked(new) else Priority.NOTICE,
        )
    for reason in result.refused:
        doors.journal.record(
            MessageId.RECOVERED,
            f"{reason}: its files are left alone, and their category sets stay in quarantine once "
            "they are released; put the file systems back where they were mounted, and restart",
            priority=Priority.ERROR,
        )
