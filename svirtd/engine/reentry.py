# SPDX-License-Identifier: LGPL-2.1-or-later
"""At start: a VM that runs and that the book does not know becomes a VM of the book again.

That is so after the book was lost, and after an older one took its place. What a unit says of
itself is enough: its name, the context it runs under, its command. Its files are those that carry
its set; what they carried before is not known, and is said to be unknown.
"""

import functools
import secrets
import time
from collections.abc import Mapping

from svirtd.book import registry
from svirtd.core import goals, levels
from svirtd.core.findings import Finding, FindingKind
from svirtd.core.goals import Goal
from svirtd.core.mcs import format_categories
from svirtd.core.model import VM, Access, Contexts, Hold, Lifetime, State
from svirtd.core.running import Claim, access_of, claim_of, id_of, named_paths, vm_of_unit
from svirtd.core.unit_state import UnitDetails
from svirtd.engine import entries
from svirtd.engine.doors import Doors
from svirtd.engine.entries import Conflict
from svirtd.engine.events import Cause, Entry, Events
from svirtd.engine.operations import Operations
from svirtd.engine.units import Units
from svirtd.errors import InvalidArgs
from svirtd.host import running, runtime
from svirtd.host.journal import MessageId, Priority

_CAUSE = Cause("re-entry", 0)


class Reentry:
    """Enters one unit after the other. A unit that cannot be entered is left alone, and runs on."""

    def __init__(self, doors: Doors, events: Events, operations_: Operations, units: Units) -> None:
        self._doors = doors
        self._events = events
        self._operations = operations_
        self._units = units

    async def enter(self, unit: str) -> None:
        """Enter a running unit as the VM that it is, or say why not.

        Nothing is done for the unit of a VM of the book. Raises Failed.
        """
        details = await self._doors.systemd.details(unit)
        if details is None or details.state.ended or not details.state.main_pid:
            return  # it has ended meanwhile
        known = await self._doors.store.read(lambda db: registry.vm_by_unit(db, unit))
        if known is not None and known.process_context == details.state.context:
            return
        name = vm_of_unit(unit)
        if name is None and not details.state.context:
            return  # svirt-vm@NAME stands for a VM, and is none
        doors = self._doors
        group_pool = doors.config.group_categories
        contexts = self._contexts(details)
        claim = claim_of(details.state.context, contexts, doors.shape, group_pool)
        if name is None or claim is None:
            self._leave(unit, "it runs under no set of categories that svirtd gives")
            return
        async with self._operations.names.hold(name):
            await self._enter(name, claim, details)

    async def _enter(self, name: str, claim: Claim, details: UnitDetails) -> None:
        doors, unit = self._doors, details.state.name
        groups = await doors.store.write(
            functools.partial(entries.groups_again, categories=claim.groups)
        )
        vm = await doors.in_file_thread(self._vm, name, claim, details, tuple(groups.values()))
        # Before the look, so that no end falls between the two.
        self._units.adopt(vm)
        if await self._units.running(vm) is None:
            self._units.forget(vm)
            self._leave(unit, f"the kernel does not have it under {claim.context}")
            return
        holds, complete = await doors.in_file_thread(self._holds, vm, groups, details)
        try:
            entry, left = await doors.store.write(
                functools.partial(entries.reenter, doors=doors, vm=vm, holds=holds)
            )
        except Conflict as error:
            self._units.forget(vm)
            self._events.drift([_conflict(name, unit, str(claim.context), str(error))])
            return
        self._events.added(entry, _CAUSE)
        self._events.drift(
            _conflict(name, hold.path, hold.label, "another VM holds it in the book; left to it")
            for hold in left
        )
        self._tell(entry, complete=complete)

    def _vm(self, name: str, claim: Claim, details: UnitDetails, groups: tuple[str, ...]) -> VM:
        doors = self._doors
        pair = doors.shape.categories_of(claim.rank)
        folders = f"{doors.config.runtime_directory}/vm"
        id_ = id_of(details.environment, folders)
        image = goals.resource_context(self._contexts(details), Access.EXCLUSIVE, pair)
        return VM(
            id=id_ or secrets.token_hex(8),
            name=name,
            owner_uid=_owner(details.user),
            state=State.RUNNING,
            reason="",
            goal=self._goal(details).name,
            uuid="",
            rank=claim.rank,
            categories=format_categories(pair),
            process_context=details.state.context,
            image_context=str(levels.beside(image, claim.context)),
            unit=details.state.name,
            main_pid=details.state.main_pid,
            runtime_dir=f"{folders}/{id_}" if id_ else "",
            persistent=False,
            lifetime=Lifetime.RELEASE,
            caller="",
            created_us=details.started_us or time.time_ns() // 1000,
            groups=groups,
        )

    def _goal(self, details: UnitDetails) -> Goal:
        """The goal that the type of the unit's processes tells; of several that have it, the first.

        What a goal says beyond types is about a launch, and done.
        """
        return self._doors.goals.of_process(details.state.context) or goals.ISOLATED

    def _contexts(self, details: UnitDetails) -> Contexts:
        return self._goal(details).contexts(self._doors.contexts)

    def _holds(
        self, vm: VM, groups: Mapping[int, str], details: UnitDetails
    ) -> tuple[list[Hold], bool]:
        """Return what the VM holds, and whether its open files could be looked at."""
        doors = self._doors
        opened = running.open_files(vm.main_pid)
        pair = doors.shape.categories_of(vm.rank)
        holds = []
        for one in running.labelled(doors.kernel, [*named_paths(details.argv), *(opened or ())]):
            held = access_of(one.label, self._contexts(details), pair, frozenset(groups))
            # What it has made in its own folder goes with the folder.
            if held is None or (vm.runtime_dir and f"{one.path}/".startswith(f"{vm.runtime_dir}/")):
                continue
            access, category = held
            # A folder with the VM's own label is a tree of its; any folder may have the public one.
            if one.is_folder and access is Access.PUBLIC:
                continue
            holds.append(
                Hold(
                    vm.id,
                    vm.name,
                    one.identity,
                    one.path,
                    access,
                    one.label,
                    original=None,
                    original_known=False,
                    group="" if category is None else groups[category],
                    recursive=one.is_folder,
                    device=one.device,
                )
            )
        trees = tuple(f"{hold.path}/" for hold in holds if hold.recursive)
        return [hold for hold in holds if not hold.path.startswith(trees)], opened is not None

    def _leave(self, unit: str, why: str) -> None:
        self._doors.journal.record(
            MessageId.WARNING,
            f"{unit} runs and belongs to no VM of the book; it was left alone: {why}",
            priority=Priority.WARNING,
            SVIRT_UNIT=unit,
        )

    def _tell(self, entry: Entry, *, complete: bool) -> None:
        vm, count = entry.vm, len(entry.holds)
        self._doors.journal.record(
            MessageId.RECOVERED,
            f"VM {vm.name}: {vm.unit} runs and was not in the book; it was entered again, with the "
            f"{count} files of its set that were found by its command"
            + (" and by what it has open" if complete else "")
            + "; what they carried before svirtd is not known",
            priority=Priority.WARNING,
            SVIRT_VM=vm.name,
            SVIRT_VM_ID=vm.id,
            SVIRT_UNIT=vm.unit,
            SVIRT_OPERATION=_CAUSE.operation,
        )


def _owner(user: str) -> int:
    try:
        return runtime.account(user, 0).uid
    except InvalidArgs:
        return 0  # nobody has that name any more: root's to look after


def _conflict(name: str, what: str, found: str, reason: str) -> Finding:
    return Finding(
        FindingKind.CONFLICT,
        name,
        what,
        "",
        found,
        reason,
        repair="nothing: end what should not be, the unit or the VM of the book",
    )
