# SPDX-License-Identifier: LGPL-2.1-or-later
"""What callers may ask about: who is there, who holds what. Nothing is changed."""

import os

from svirtd.book import groups, pool, registry
from svirtd.book.store import Database
from svirtd.core.goals import Goal
from svirtd.core.mcs import parse_categories, parse_context
from svirtd.core.model import VM, Caller, Counts, Hold
from svirtd.core.names import check_uuid, shown
from svirtd.engine.authorize import Action, sees
from svirtd.engine.doors import Doors
from svirtd.engine.events import Entry
from svirtd.engine.openings import Openings
from svirtd.errors import InvalidArgs, LimitsExceeded, NoSuchVM

# Private sets that one set of categories may contain before FindOwners gives up.
_SETS_MAX = 1024


class Queries:
    """Reads the book for callers. Every method raises SvirtError for what it refuses."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._openings = Openings(doors)

    async def vm(self, caller: Caller, name: str) -> Entry:
        """Return the VM of this name with what it holds."""
        await self._doors.authority.authorize(caller, Action.READ)

        def look(db: Database) -> Entry | None:
            vm = registry.vm_by_name(db, name)
            return None if vm is None else Entry(vm, tuple(registry.holds_of(db, vm)))

        entry = await self._doors.store.read(look)
        if entry is None:
            raise NoSuchVM(f"no VM is named {shown(name)}; see svirtctl list")
        # The policy may keep VMs of one domain from whoever may read of others.
        await self._doors.authority.authorize(caller, Action.READ, vm=entry.vm)
        return entry

    async def vm_of_pid(self, caller: Caller, pid: int) -> VM:
        """Return the VM that a process belongs to: by unit, or by the label it runs under."""
        await self._doors.authority.authorize(caller, Action.READ)
        doors = self._doors
        if not pid:  # 0 means "none" in the book, and "whoever asks" to systemd
            raise NoSuchVM("there is no process 0")
        vm = await doors.store.read(lambda db: registry.vm_by_pid(db, pid))
        if vm is None:
            unit = await doors.systemd.unit_of_pid(pid)
            vm = await doors.store.read(lambda db: registry.vm_by_unit(db, unit)) if unit else None
        if vm is None:
            vm = await self._vm_by_label(pid)
        if vm is None:
            raise NoSuchVM(f"process {pid} belongs to no VM")
        return vm

    async def vm_of_uuid(self, caller: Caller, uuid: str) -> VM:
        """Return the VM that was given this UUID, the one that came first if there are several."""
        await self._doors.authority.authorize(caller, Action.READ)
        wanted = check_uuid(uuid)
        vm = await self._doors.store.read(lambda db: registry.vm_by_uuid(db, wanted))
        if vm is None or not sees(caller, vm):
            raise NoSuchVM(f"no VM has the UUID {wanted}; see svirtctl list")
        return vm

    async def vms(self, caller: Caller) -> list[VM]:
        """Return every VM, by name."""
        await self._doors.authority.authorize(caller, Action.READ)
        limit = self._doors.config.limits.listed_vms
        found = await self._doors.store.read(lambda db: registry.all_vms(db, limit))
        if found is None:
            raise LimitsExceeded(
                f"the book has more than [limits] listed-vms = {limit} VMs; ask for one with GetVM"
            )
        return found

    async def entries(self, caller: Caller) -> list[Entry]:
        """Return every VM with what it holds."""
        found = await self.vms(caller)

        def look(db: Database) -> list[Entry]:
            return [Entry(vm, tuple(registry.holds_of(db, vm))) for vm in found]

        return await self._doors.store.read(look)

    async def owners(self, caller: Caller, what: str) -> list[tuple[VM, Hold | None]]:
        """Return who holds a path, a set of categories or a context.

        Of a group's category: its members, and what they hold by it. Not all of it is for every
        caller to see: authorize.sees().
        """
        await self._doors.authority.authorize(caller, Action.READ)
        if what.startswith("/"):
            return await self._owners_of_path(caller, what)
        try:
            categories = (
                parse_context(what).categories if what.count(":") > 1 else parse_categories(what)
            )
            ranks = self._doors.shape.ranks_within(categories, _SETS_MAX)
        except ValueError as error:
            raise InvalidArgs(
                f"{what[:64]!r} is not an absolute path, a category set such as c17,c402, or a "
                f"context ({error})"
            ) from None

        def look(db: Database) -> list[tuple[VM, Hold | None]]:
            found: list[tuple[VM, Hold | None]] = [
                (vm, None) for vm in registry.vms_by_ranks(db, ranks)
            ]
            # Beside a VM's own set the categories of its groups tell nothing more.
            return found or _of_groups(db, categories & self._doors.config.group_categories)

        return await self._doors.store.read(look)

    async def goals(self, caller: Caller) -> list[tuple[Goal, str]]:
        """Return every goal, and why the loaded policy cannot keep it, if so."""
        await self._doors.authority.authorize(caller, Action.READ)
        found = self._doors.goals
        return [(goal, found.problem(goal)) for goal in found.known.values()]

    async def counts(self, caller: Caller) -> Counts:
        """Return the live figures of the book."""
        await self._doors.authority.authorize(caller, Action.READ)
        return await self._doors.store.read(pool.counts)

    async def _vm_by_label(self, pid: int) -> VM | None:
        doors = self._doors
        if not doors.kernel.enabled():
            return None
        try:
            context = parse_context(await doors.in_file_thread(doors.kernel.process_label, pid))
            # Beside its own set it has the categories of its groups.
            rank = doors.shape.rank_of(context.categories - doors.config.group_categories)
        except (OSError, ValueError):
            return None  # no such process, or its label is not a VM's: it belongs to none
        if doors.goals.of_process(str(context)) is None:
            return None
        return await doors.store.read(lambda db: registry.vm_by_rank(db, rank))

    async def _owners_of_path(self, caller: Caller, path: str) -> list[tuple[VM, Hold | None]]:
        identity = await self._openings.identity(caller, path)

        def look(db: Database) -> list[tuple[VM, Hold]]:
            if identity is not None:
                return registry.holders_of(db, identity)
            # A file that is gone can still be asked for by the name it had, by whoever may know
            # that name: a stranger must not learn what is in folders that he cannot read.
            named = registry.holders_at(db, os.path.normpath(path))
            return [(vm, hold) for vm, hold in named if sees(caller, vm)]

        return [(vm, hold) for vm, hold in await self._doors.store.read(look)]


def _of_groups(db: Database, categories: frozenset[int]) -> list[tuple[VM, Hold | None]]:
    """Return the members of the groups that have these categories, once for each of their holds."""
    found: list[tuple[VM, Hold | None]] = []
    for category in sorted(categories):
        group = groups.by_category(db, category)
        if group is None:
            continue
        holds = groups.holds_of(db, group.name)
        for vm in groups.members(db, group.name):
            found += [(vm, hold) for hold in holds if hold.vm_id == vm.id] or [(vm, None)]
    return found
