# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases: grants and holds whose end has come. Looked for from time to time, by the wall clock.

A VM that is stopped loses what was leased; one that runs is reported once, and loses it or is
released where the lease says so: a running VM is not cut off from its disk by a date without
anybody having asked.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Final

from svirtd.book import groups, registry
from svirtd.book.store import Database
from svirtd.core.findings import Finding, FindingKind
from svirtd.core.groups import AtEnd, Grant, GroupView, moment
from svirtd.core.model import VM, Hold, Identity, Labeller, State
from svirtd.engine import followed
from svirtd.engine.attached import with_parts
from svirtd.engine.calendar import now_us
from svirtd.engine.doors import Doors
from svirtd.engine.events import Cause, Entry, Events, Listener
from svirtd.engine.holdings import Holdings
from svirtd.engine.operations import Operations
from svirtd.engine.units import Units
from svirtd.errors import SvirtError
from svirtd.host import processes
from svirtd.host.journal import MessageId, Priority

_LOOK_S: Final = 10.0
_AT_LEAST_S: Final = 0.5
_CAUSE: Final = Cause("lease", 0)
_STAYS: Final = "nothing: detach it, release the VM, or grant it again"


class Leases(Listener):
    """Ends what is over; listens for new leases, whose end may be near."""

    def __init__(
        self,
        doors: Doors,
        events: Events,
        operations: Operations,
        holdings: Holdings,
        units: Units,
    ) -> None:
        self._doors = doors
        self._holdings = holdings
        self._events = events
        self._operations = operations
        self._units = units
        # What a running VM still holds and was reported; a restart reports it once more.
        self._told: set[tuple[str, Identity]] = set()
        self._given = asyncio.Event()

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            self._given.clear()
            await self.look()
            next_us = await self._doors.store.read(lambda db: groups.next_end(db, now_us()))
            # Never for long: the clock may be set, and another lease be given meanwhile.
            wait_s = _LOOK_S if next_us is None else (next_us - now_us()) / 1_000_000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(wait_s, _AT_LEAST_S), _LOOK_S)):
                    await self._given.wait()

    def added(self, entry: Entry, _cause: Cause) -> None:
        """A VM has come that may hold something for a time."""
        if any(hold.until_us for hold in entry.holds):
            self._given.set()

    def changed(self, _before: Entry, after: Entry, cause: Cause) -> None:
        """A VM has got other holds."""
        self.added(after, cause)

    def group_changed(self, _before: GroupView, after: GroupView, _cause: Cause) -> None:
        """A group has other grants."""
        if any(grant.until_us for grant in after.grants):
            self._given.set()

    async def look(self) -> None:
        """End each lease whose end has come. One that cannot be ended is tried at the next look."""
        store = self._doors.store
        grants, holds = await store.read(
            lambda db: (groups.ended_grants(db, now_us()), registry.ended_holds(db, now_us()))
        )
        for grant in grants:
            await self._try(f"VM {grant.vm_name} in group {grant.group}", self._grant(grant))
        for name in dict.fromkeys(hold.vm_name for hold in holds):
            await self._try(f"VM {name}", self._holds(name))

    async def _try(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (SvirtError, OSError, TimeoutError) as error:
            self._doors.journal.record(
                MessageId.WARNING,
                f"the end of a lease, {what}: {error}",
                priority=Priority.WARNING,
            )

    async def _grant(self, grant: Grant) -> None:
        async with self._operations.names.hold(grant.vm_name):
            lost = await self._doors.store.write(lambda db: _lose(db, grant))
            if lost is not None:
                before, after, holds = lost
                self._events.changed(Entry(before, holds), Entry(after, holds), _CAUSE)
                if grant.group in after.groups:
                    await self._still_in(after, grant)
            await self._doors.store.write(lambda db: groups.tell_grant(db, grant), durable=False)

    async def _still_in(self, vm: VM, grant: Grant) -> None:
        # One that is failed waits for somebody, and is not tried again and again.
        if grant.at_end is AtEnd.STOP and _is_up(vm) and not await self._elsewhere(vm):
            await self._operations.release(vm, _CAUSE)
            return
        reason = f"it is in group {grant.group!r}, granted until {moment(grant.until_us)}"
        self._report(vm, f"group:{grant.group}", reason)

    async def _holds(self, name: str) -> None:
        async with self._operations.names.hold(name):
            # Again, now that nobody else changes it: what was over may have been given anew.
            vm, over = await self._doors.store.read(lambda db: _ended(db, name))
            if vm is None or not over or not _is_up(vm):
                return
            runs = await self._runs(vm)
            stop = any(one.at_end is AtEnd.STOP for one in over)
            if stop and runs and not await self._elsewhere(vm):
                await self._operations.release(vm, _CAUSE)
                return
            for hold in over:
                if not runs or hold.at_end is AtEnd.DETACH:
                    await self._detach(vm, hold)
                elif (vm.id, hold.identity) not in self._told:
                    self._told.add((vm.id, hold.identity))
                    reason = f"it holds this, leased until {moment(hold.until_us)}"
                    self._report(vm, hold.path, reason)

    async def _detach(self, vm: VM, hold: Hold) -> None:
        """Take one resource from a VM, or release a stopped one of which nothing is left."""
        holds = await self._doors.store.read(lambda db: registry.holds_of(db, vm))
        if hold not in holds:
            return  # it went with what lies over it
        leaving = with_parts(holds, hold)
        if len(leaving) == len(holds) and not await self._runs(vm):
            await self._operations.release(vm, _CAUSE)
            return
        await self._holdings.detach(vm, leaving, _CAUSE)

    async def _elsewhere(self, vm: VM) -> bool:
        """Say whether a VM runs that is libvirt's to end."""
        return vm.labeller is Labeller.LIBVIRT and await followed.alive(self._doors, vm)

    async def _runs(self, vm: VM) -> bool:
        """Say whether a process of the VM is there; of one that somebody else starts, by label."""
        if await self._elsewhere(vm):
            return True
        if vm.unit:
            return await self._units.running(vm) is not None
        doors = self._doors
        if not doors.kernel.enabled():
            return False  # nothing has a label by which it would be known
        return bool(await doors.in_file_thread(processes.under, doors.kernel, vm.process_context))

    def _report(self, vm: VM, what: str, reason: str) -> None:
        finding = Finding(FindingKind.EXPIRED, vm.name, what, "", "", f"{reason}, and runs", _STAYS)
        self._events.drift([finding])


def _lose(db: Database, grant: Grant) -> tuple[VM, VM, tuple[Hold, ...]] | None:
    """Have a VM not be in a group from its next start on; None if it is not there.

    Returns the VM as it was and as it is, and what it holds.
    """
    before = registry.vm_by_name(db, grant.vm_name)
    if before is None or before.owner_uid != grant.owner_uid:
        return None
    if groups.grant_of(db, grant.group, grant.vm_name) != grant:
        return None  # granted anew meanwhile
    groups.leave(db, before, grant.group)
    after = registry.vm_by_rank(db, before.rank)
    return None if after is None else (before, after, tuple(registry.holds_of(db, after)))


def _ended(db: Database, name: str) -> tuple[VM | None, list[Hold]]:
    vm = registry.vm_by_name(db, name)
    if vm is None:
        return None, []
    now = now_us()
    return vm, [hold for hold in registry.holds_of(db, vm) if 0 < hold.until_us <= now]


def _is_up(vm: VM) -> bool:
    return vm.state in (State.LABELLED, State.RUNNING)
