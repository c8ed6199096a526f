# SPDX-License-Identifier: LGPL-2.1-or-later
"""Services of the administrator's under a VM's label: enrolled once, labelled at each start.

The service is systemd's and its unit file the administrator's. Its drop-in gives it the label of a
persistent VM, has us label what the VM holds before the start, and tells us of the end. What runs
is looked at all the same: a process without the label is ended.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from svirtd.book import enrolments, pool, registry
from svirtd.book.enrolments import Enrolment
from svirtd.book.store import Database
from svirtd.core import enrolment
from svirtd.core.findings import Finding, FindingKind
from svirtd.core.goals import Goal
from svirtd.core.model import VM, Caller, Labeller, Request, State
from svirtd.core.names import shown
from svirtd.core.unit_state import UnitState
from svirtd.engine import entries, goals, levels
from svirtd.engine.authorize import About, Action, sees
from svirtd.engine.calendar import now_us
from svirtd.engine.decide import OtherSets, decide
from svirtd.engine.doors import Doors
from svirtd.engine.entries import Enrolling
from svirtd.engine.events import Cause, Entry, Events
from svirtd.engine.foreign import Foreign
from svirtd.engine.operations import Operations
from svirtd.engine.requests import Requests
from svirtd.engine.units import Units
from svirtd.errors import (
    AccessDenied,
    Failed,
    InvalidArgs,
    LabelRefused,
    LimitsExceeded,
    NoSuchVM,
    SvirtError,
    VMExists,
)
from svirtd.host import runtime

# A main process is told of when it was forked, and has its label once it has executed the command.
_EXECUTED_S: Final = 5.0
_LOOK_S: Final = 0.05
# Files that an administrator is shown of what somebody else wants enrolled.
_SHOWN: Final = 8
_ROOT: Final = Caller("", 0)


@dataclass(frozen=True, slots=True)
class EnrolledUnit:
    """An enrolled unit: its VM, the drop-in that it should have, or why it would not start."""

    enrolment: Enrolment
    vm: VM
    context: str
    drop_in: str
    problem: str


class Enrolled:
    """Enrols units, and does what their starts and ends take. Raises SvirtError."""

    def __init__(
        self,
        doors: Doors,
        events: Events,
        units: Units,
        operations: Operations,
        requests: Requests,
        foreign: Foreign,
    ) -> None:
        self._doors = doors
        self._events = events
        self._units = units
        self._operations = operations
        self._requests = requests
        self._foreign = foreign
        units.on_run = self._runs

    async def enroll(
        self, caller: Caller, unit: str, request: Request, resources: str, options: str
    ) -> VM:
        """Enter what a unit is to get at each start, as the persistent VM of the request's name.

        The VM is root's, as units are. `resources` and `options` are the request as it was made.
        """
        await self._may_enroll(caller, unit, request.name, [one.named for one in request.resources])
        limit = self._doors.config.limits.resources
        if len(request.resources) > limit:
            raise LimitsExceeded(f"{len(request.resources)} resources; [limits] allows {limit}")
        chosen = levels.chosen(self._doors, request)
        if chosen:
            about = About(request.name, level=chosen, unit=unit)
            await self._doors.authority.authorize(caller, Action.SET_LEVEL, about=about)
        goal = self._doors.goals.named(request.goal)
        goals.refuse_to_acquire(goal, request)
        others = await self._foreign.sets()
        row = Enrolment(0, unit, request.name, resources, options)
        async with self._operations.names.hold(request.name):
            before, vm = await self._doors.store.write(
                lambda db: _enroll(db, self._doors, request, row, others, goal)
            )
            cause = Cause("enroll", caller.uid)
            if before is None:
                self._events.added(Entry(vm, ()), cause)
            else:
                self._events.changed(Entry(before, ()), Entry(vm, ()), cause)
        return vm

    async def unenroll(self, caller: Caller, unit: str, *, keep: bool) -> None:
        """Take a unit that does not run out of the book, and its VM, unless that is to be kept."""
        await self._may_enroll(caller, unit)
        row = await self._row(unit)
        async with self._operations.names.hold(row.vm_name):
            before, vm = await self._doors.store.write(lambda db: _unenroll(db, unit, keep=keep))
            cause = Cause("unenroll", caller.uid)
            if keep:
                self._events.changed(Entry(before, ()), Entry(vm, ()), cause)
            else:
                self._events.removed(Entry(vm, ()), cause)

    async def stored(self, caller: Caller, unit: str) -> Enrolment:
        """Return how a unit is enrolled, for its start. Raises AccessDenied, NoSuchVM."""
        _refuse_others(caller)
        return await self._row(unit)

    async def start(self, caller: Caller, row: Enrolment, request: Request) -> VM:
        """Label what an enrolled unit holds; systemd is about to start it and waits for this."""
        _refuse_others(caller)
        doors = self._doors
        details = await doors.systemd.details(row.unit)
        if details is None or details.state.active != "activating" or details.state.main_pid:
            raise Failed(
                f"{row.unit} is not about to start, and systemd calls this when it is: "
                f"systemctl start {row.unit}"
            )
        enrolling = Enrolling(
            row.unit,
            f"{doors.config.runtime_directory}/vm",
            row,
            details.state.context,
            await doors.in_file_thread(_account, details.user),
        )
        self._units.expect(row.unit)
        try:
            return await self._requests.acquire(caller, request, enrolling)
        except SvirtError:
            self._units.forget_unit(row.unit)
            raise

    async def end(self, caller: Caller, unit: str) -> None:
        """Give the labels of an enrolled unit back; systemd calls this when it has ended."""
        _refuse_others(caller)
        row = await self._row(unit)
        async with self._operations.names.hold(row.vm_name):
            vm = await self._doors.store.read(lambda db: registry.vm_by_rank(db, row.rank))
            if vm is None or vm.unit != unit:
                return  # it was not labelled, or somebody has released it
            self._doors.authority.at_once(caller, Action.RELEASE, vm=vm)
            state = await self._doors.systemd.state(unit)
            if state is not None and state.main_pid:
                raise Failed(f"{unit} runs; systemctl stop {unit} ends it and calls this")
            await self._operations.release(vm, Cause("end", caller.uid))

    async def rows(self, caller: Caller) -> list[tuple[Enrolment, VM]]:
        """Return the enrolled units that the caller may know of, with their VMs."""
        await self._doors.authority.authorize(caller, Action.READ)

        def look(db: Database) -> list[tuple[Enrolment, VM]]:
            found = [(row, registry.vm_by_rank(db, row.rank)) for row in enrolments.everything(db)]
            return [(row, vm) for row, vm in found if vm is not None]

        found = await self._doors.store.read(look)
        return [(row, vm) for row, vm in found if sees(caller, vm)]

    async def listed(self, row: Enrolment, vm: VM, request: Request) -> EnrolledUnit:
        """Return what an enrolled unit's drop-in should say now, or why it could not start."""
        doors = self._doors
        folder = f"{doors.config.runtime_directory}/vm/{vm.id}"
        try:
            context = vm.process_context
            if vm.state is State.RESERVED:
                goal = doors.goals.named(request.goal)
                others = await self._foreign.sets()
                bare = replace(request, resources=())
                would, _ = await doors.store.read(
                    lambda db: entries.dry_run(
                        db, doors, _ROOT, bare, [], others, goal, by_unit=True
                    )
                )
                context = would.process_context
        except SvirtError as error:
            return EnrolledUnit(row, vm, "", "", error.text)
        return EnrolledUnit(row, vm, context, enrolment.drop_in(context, folder), "")

    # -- its parts --------------------------------------------------------------------------

    async def _may_enroll(
        self, caller: Caller, unit: str, vm_name: str = "", files: Sequence[str] = ()
    ) -> None:
        if caller.uid and len(files) > _SHOWN:
            # It is root's VM that uses them: whoever allows that must have seen each.
            raise InvalidArgs(
                f"{len(files)} files; an administrator is asked about {_SHOWN} at once: enroll the "
                "unit as root"
            )
        about = About(vm_name, files, unit=unit)
        await self._doors.authority.authorize(caller, Action.ENROLL, about=about)

    async def _row(self, unit: str) -> Enrolment:
        row = await self._doors.store.read(lambda db: enrolments.by_unit(db, unit))
        if row is None:
            raise NoSuchVM(
                f"unit {shown(unit)} is not enrolled: svirtctl enroll enters it, svirtctl unenroll "
                "takes what is left of it away"
            )
        return row

    async def _runs(self, vm: VM, state: UnitState) -> None:
        """The unit has a main process: enter it, or end it if it has not the VM's label."""
        problem = await self._wrong_label(vm, state)
        async with self._operations.names.hold(vm.name):
            now = await self._doors.store.read(lambda db: registry.current(db, vm))
            if now is None or now.unit != vm.unit or now.main_pid == state.main_pid:
                return
            still = await self._doors.systemd.state(vm.unit)
            if now.state not in (State.LABELLED, State.RUNNING) or still is None:
                return
            if still.main_pid != state.main_pid:
                return  # it has ended, or another one is to be told of
            if problem:
                await self._end_unlabelled(now, problem)
                return
            after = replace(now, state=State.RUNNING, reason="", main_pid=state.main_pid)
            await self._doors.store.write(lambda db: registry.update_vm(db, after), durable=False)
            holds = tuple(await self._doors.store.read(lambda db: registry.holds_of(db, now)))
            self._events.changed(Entry(now, holds), Entry(after, holds), Cause("start", 0))
            await self._units.register(after, state.main_pid)

    async def _wrong_label(self, vm: VM, state: UnitState) -> str:
        """Say what is wrong with a main process's label; empty if nothing, or if it is gone."""
        deadline = asyncio.get_running_loop().time() + _EXECUTED_S
        while True:
            try:
                await self._units.check_label(vm, state)
            except LabelRefused as error:
                now = await self._doors.systemd.state(vm.unit)
                if now is None or now.main_pid != state.main_pid:
                    return ""
                if asyncio.get_running_loop().time() > deadline:
                    return error.text
            else:
                return ""
            await asyncio.sleep(_LOOK_S)

    async def _end_unlabelled(self, vm: VM, problem: str) -> None:
        finding = Finding(
            FindingKind.CONFLICT,
            vm.name,
            vm.unit,
            vm.process_context,
            "",
            problem,
            "ended it",
            True,
        )
        self._events.drift([finding])
        await self._doors.systemd.kill(vm.unit)
        await self._operations.release(vm, Cause("end", 0))


def _refuse_others(caller: Caller) -> None:
    # As root's own, whatever polkit would say: systemd calls these, with what root has enrolled.
    if caller.uid:
        raise AccessDenied(
            f"uid {caller.uid} may not tell svirtd of a unit's start or end; systemd does, as root"
        )


def _account(user: str) -> runtime.Account:
    """Whom the unit runs as; its runtime folder is root's where that cannot be told beforehand."""
    try:
        return runtime.account(user, 0)
    except InvalidArgs:
        return runtime.account("", 0)


def _enroll(
    db: Database, doors: Doors, request: Request, row: Enrolment, others: OtherSets, goal: Goal
) -> tuple[VM | None, VM]:
    """Enter unit and VM; returns the VM as it was, if it was there, and as it is."""
    there = enrolments.by_unit(db, row.unit)
    if there is not None and there.vm_name != request.name:
        raise VMExists(
            f"{row.unit} is enrolled as VM {there.vm_name!r}; svirtctl unenroll {row.unit} first"
        )
    known = registry.vm_by_name(db, request.name)
    if known is not None:
        _refuse_to_take(known, row.unit)
    bare = replace(request, resources=())
    known, vm, _ = decide(db, doors, _ROOT, bare, [], others, goal, pool.draw_rank)
    vm = entries.reserved(replace(vm, enrolled=row.unit))
    if known is None:
        registry.add_vm(db, vm)
    else:
        registry.update_vm(db, vm)
    enrolments.put(db, replace(row, rank=vm.rank, since_us=now_us()))
    return known, vm


def _refuse_to_take(vm: VM, unit: str) -> None:
    if vm.enrolled not in ("", unit):
        raise VMExists(f"VM {vm.name!r} is enrolled for {vm.enrolled}; take another name")
    if vm.owner_uid or not vm.persistent or vm.labeller is not Labeller.SVIRTD:
        raise VMExists(
            f"VM {vm.name!r} is not a persistent one of root's own, and cannot be given to a unit; "
            "take another name"
        )
    if vm.state is not State.RESERVED:
        do = f"systemctl stop {unit}" if vm.unit == unit else "release it"
        raise VMExists(f"VM {vm.name!r} is {vm.state.value}; {do}, then enroll again")


def _unenroll(db: Database, unit: str, *, keep: bool) -> tuple[VM, VM]:
    row = enrolments.by_unit(db, unit)
    vm = None if row is None else registry.vm_by_rank(db, row.rank)
    if row is None or vm is None:
        raise NoSuchVM(f"unit {shown(unit)} is not enrolled any more")
    if vm.state is not State.RESERVED:
        raise Failed(
            f"{unit} has VM {vm.name!r}, which is {vm.state.value}; systemctl stop {unit} first"
        )
    enrolments.remove(db, row.rank)
    after = replace(vm, enrolled="")
    registry.update_vm(db, after)
    if not keep:
        entries.remove_reserved(db, after)
    return vm, after
