# SPDX-License-Identifier: LGPL-2.1-or-later
"""At start: finish or undo what was cut off, and bring the book in line with units and callers.

Everything here may be cut off again and is then done again: each part looks at what is, not at
what it did. Runs before the daemon owns its name, so no request meets a half-finished VM.
"""

import functools
from dataclasses import replace

from svirtd.book import ledger, registry
from svirtd.core.model import VM, Labeller, Operation, OperationKind, State
from svirtd.core.names import UNIT_PREFIX
from svirtd.engine import apply, digests, entries, followed
from svirtd.engine.apply import Fate
from svirtd.engine.departures import Departures
from svirtd.engine.doors import Doors
from svirtd.engine.events import Cause, Entry
from svirtd.engine.holdings import Holdings
from svirtd.engine.operations import Operations
from svirtd.engine.quarantine import Quarantine
from svirtd.engine.reentry import Reentry
from svirtd.engine.renumber import find_devices, has_rebooted, knows_earlier_boot, remember_boot
from svirtd.engine.units import Units
from svirtd.errors import NoAnswer, SvirtError
from svirtd.failpoints import Point, reach
from svirtd.host.journal import MessageId, Priority

_CAUSE = Cause("recovery", 0)


class Recovery:
    """The passes, in the order in which run() makes them.

    Without an answer from systemd there is nothing to go by, for any VM: the start fails then.
    """

    def __init__(
        self,
        doors: Doors,
        operations_: Operations,
        holdings: Holdings,
        units: Units,
        departures: Departures,
        quarantine: Quarantine,
        reentry: Reentry,
    ) -> None:
        self._doors = doors
        self._quarantine = quarantine
        self._operations = operations_
        self._holdings = holdings
        self._units = units
        self._departures = departures
        self._reentry = reentry
        self._rebooted = False

    async def run(self) -> None:
        """Make every pass. A VM that cannot be brought in line is `failed` and recorded as such."""
        reach(Point.RECOVER_BEFORE)
        self._rebooted = await has_rebooted(self._doors)
        await find_devices(self._doors, rebooted=self._rebooted)
        if await self._doors.store.read(registry.any_nameless):
            await self._doors.store.write(registry.name_holds)
        for operation in await self._doors.store.read(ledger.unfinished):
            reach(Point.SETTLE_BEFORE)
            await self._settle(operation)
            reach(Point.SETTLE_AFTER)
        reach(Point.UNITS_BEFORE)
        await self._reconcile_units()
        await self._reconcile_followed()
        await self._enter_again()
        reach(Point.CALLERS_BEFORE)
        await self._reconcile_callers()
        reach(Point.QUARANTINE_BEFORE)
        if await knows_earlier_boot(self._doors):
            await self._quarantine.forget_nodes()
        await self._quarantine.recheck(restore=True)
        await remember_boot(self._doors)
        reach(Point.RECOVER_AFTER)

    async def settle_again(self) -> None:
        """Try again what is open while requests are served: failed, or cut off by a defect."""
        for operation in await self._doors.store.read(ledger.unfinished):
            async with self._operations.names.hold(operation.vm.name):
                # In the writers' queue: behind closing entries that nobody waited for.
                still = await self._doors.store.write(
                    functools.partial(ledger.if_open, operation=operation), durable=False
                )
                if still is None:
                    continue
                holds = await self._doors.store.read(
                    functools.partial(registry.holds_of, vm=still.vm)
                )
                objects = {step.identity for step in still.steps} | {h.identity for h in holds}
                async with self._operations.objects.hold_all(objects):
                    await self._try_settle(still)

    async def release_ended(self, vm: VM) -> bool:
        """Release a VM whose unit, or process, has ended unnoticed; False if it had not, or could
        not be."""
        try:
            async with self._operations.names.hold(vm.name):
                now = await self._doors.store.read(lambda db: registry.current(db, vm))
                if now is None or now.unit != vm.unit or await self._units.running(now):
                    return False
                if now.main_pid != vm.main_pid or await followed.alive(self._doors, now):
                    return False
                await self._operations.release(now, _CAUSE)
        except SvirtError as error:
            self._failed(vm.name, "release", error)
            return False
        return True

    async def _settle(self, operation: Operation) -> None:
        """Finish an operation that can be finished, undo it otherwise."""
        async with self._operations.names.hold(operation.vm.name):
            await self._try_settle(operation)

    async def _try_settle(self, operation: Operation) -> None:
        vm = operation.vm
        try:
            what = await self._finish_or_undo(operation)
        except NoAnswer:
            raise
        except SvirtError as error:
            self._failed(vm.name, operation.kind.value, error)
            return
        self._doors.journal.record(
            MessageId.RECOVERED,
            f"VM {vm.name}: {operation.kind.value} that was cut off is {what}",
            priority=Priority.NOTICE,
            SVIRT_VM=vm.name,
            SVIRT_OPERATION=operation.kind.value,
        )

    async def _finish_or_undo(self, operation: Operation) -> str:
        if operation.kind is OperationKind.RELEASE:
            await self._finish_release(operation)
            return "finished"
        if operation.kind in (OperationKind.ATTACH, OperationKind.DETACH):
            return await self._holdings.settle(operation, _CAUSE, rebooted=self._rebooted)
        # Nobody was told of a VM whose digests were still to be taken: it is undone, also where all
        # labels stand, since nothing would prove that its files stayed as they were.
        holds = await self._doors.store.read(lambda db: registry.holds_of(db, operation.vm))
        # Of a tree nobody was told before it was closed.
        trees = any(step.recursive for step in operation.steps)
        whole = not trees and not digests.lacking(self._doors.goals.known, operation.vm, holds)
        if whole and await self._finish_acquire(operation):
            return "finished"
        if whole and self._rebooted:
            # The caller may have had the reply: that an operation is closed reaches the disk with
            # the next entry only, and so may the labels. What was promised then is kept: the
            # labels of an acquisition, and a persistent VM's set of categories.
            if await self._label_again(operation):
                return "finished"
            if operation.vm.persistent:
                operation = replace(operation, created=False)
        # The launch may have been about to fail because somebody else's unit has the name.
        if await self._units.is_ours(operation.vm):
            await self._units.stop(operation.vm)
        await self._operations.take_back(operation)
        return "undone"

    async def _finish_acquire(self, operation: Operation) -> bool:
        """Close an acquisition that had come to its end; False if it had not."""
        doors, vm = self._doors, operation.vm
        if vm.state is State.FAILED:
            return False  # its caller was told so, whatever systemd has started since
        holds = await doors.store.read(lambda db: registry.holds_of(db, vm))
        if not await doors.in_file_thread(apply.all_stand, doors.kernel, operation.steps):
            return False
        if operation.kind is OperationKind.ACQUIRE:
            self._operations.finish_acquire(operation)
            return True
        state = await self._units.running(vm)
        # A process that has not executed its command yet may never do so: nobody was told of it.
        if state is None or state.active == "activating":
            return False
        # Watched by _reconcile_unit, as every unit that was started before.
        entry = Entry(vm, tuple(holds))
        await self._operations.finish_launch(operation, entry, state.main_pid)
        return True

    async def _label_again(self, operation: Operation) -> bool:
        """Set the labels of an acquisition that a power cut took, and close it; False if not all
        can be set."""
        if operation.kind is not OperationKind.ACQUIRE or operation.vm.state is State.FAILED:
            return False
        doors = self._doors

        def work() -> bool:
            outcomes = apply.take_found(doors.kernel, operation.steps, durable=True)
            return all(one.fate is Fate.DONE for one in outcomes)

        if not await doors.in_file_thread(work):
            return False
        self._operations.finish_acquire(operation)
        return True

    async def _finish_release(self, operation: Operation) -> None:
        vm = operation.vm
        if vm.unit:
            await self._units.stop(vm)
        holds = await self._doors.store.read(lambda db: registry.holds_of(db, vm))
        steps = await self._doors.store.read(lambda db: entries.steps_back(db, operation))
        entry = Entry(vm, tuple(holds))
        await self._operations.finish_release(replace(operation, steps=steps), entry, _CAUSE)

    async def _reconcile_units(self) -> None:
        for vm in await self._doors.store.read(registry.active_vms):
            if not vm.unit:
                continue
            # Before the look, so that no end falls between the two.
            self._units.adopt(vm)
            if vm.state is State.FAILED:
                continue  # its open operation was just tried again, in vain
            try:
                async with self._operations.names.hold(vm.name):
                    await self._reconcile_unit(vm)
            except NoAnswer:
                raise
            except SvirtError as error:
                self._failed(vm.name, "release", error)

    async def _enter_again(self) -> None:
        """Enter what runs and is not in the book: it was lost, or is one from before."""
        for unit in await self._doors.systemd.units(f"{UNIT_PREFIX}*.service"):
            await self._reentry.enter(unit)

    async def _reconcile_unit(self, vm: VM) -> None:
        if await self._units.running(vm) is None:
            await self._operations.release(vm, _CAUSE)

    async def _reconcile_followed(self) -> None:
        """Release what libvirt has ended meanwhile. One that it is about to start goes on."""
        for vm in await self._doors.store.read(registry.active_vms):
            if vm.labeller is not Labeller.LIBVIRT or vm.state is State.FAILED:
                continue
            if not self._rebooted and (
                vm.state is State.LABELLED or await followed.alive(self._doors, vm)
            ):
                continue
            try:
                async with self._operations.names.hold(vm.name):
                    await self._operations.release(vm, _CAUSE)
            except SvirtError as error:
                self._failed(vm.name, "release", error)

    async def _reconcile_callers(self) -> None:
        for vm in await self._doors.store.read(registry.caller_vms):
            try:
                if vm.state is not State.FAILED and not await self._departures.watch(vm.caller):
                    async with self._operations.names.hold(vm.name):
                        await self._operations.release(vm, _CAUSE)
            except SvirtError as error:
                self._failed(vm.name, "release", error)

    def _failed(self, vm_name: str, operation: str, error: SvirtError) -> None:
        self._doors.journal.record(
            MessageId.RECOVERED,
            f"VM {vm_name}: {operation} could not be settled: {error}",
            priority=Priority.ERROR,
            SVIRT_VM=vm_name,
            SVIRT_OPERATION=operation,
        )
