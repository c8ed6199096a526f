# SPDX-License-Identifier: LGPL-2.1-or-later
"""What requests, leases and recovery share about single resources: get one, lose one, finish.

Callers hold the VM's name. Nothing here ends a VM: what cannot be given back stays the VM's, and a
later detach or the release tries again.
"""

from collections.abc import Collection, Sequence

from svirtd.book import registry
from svirtd.book.pool import Suspect
from svirtd.core.model import VM, Hold, Operation, OperationKind, Step
from svirtd.engine import apply, attached, digests, entries, unknown
from svirtd.engine.apply import Fate, Outcome, Undone
from svirtd.engine.attached import Changing
from svirtd.engine.devices import Devices
from svirtd.engine.doors import Doors
from svirtd.engine.events import Cause, Entry, Events
from svirtd.engine.operations import Operations
from svirtd.errors import Drift
from svirtd.failpoints import Point, reach
from svirtd.host.bus import BusLost
from svirtd.host.opening import Opened


class Holdings:
    """The parts that attaching and detaching are made of."""

    def __init__(self, doors: Doors, events: Events, operations: Operations) -> None:
        self._doors = doors
        self._events = events
        self._operations = operations
        self._devices = Devices(doors)

    # -- getting ----------------------------------------------------------------------------

    async def attach(self, changing: Changing, opened: Sequence[Opened], cause: Cause) -> None:
        """Do what begin() of engine/attaching has entered, or undo all of it and raise why."""
        doors, operation = self._doors, changing.operation
        to_get, to_lose = await self._parted(operation)
        try:
            await doors.in_file_thread(apply.label, doors.kernel, to_get, opened)
            goal = doors.goals.named(operation.vm.goal)
            there = {one.seen.identity for one in opened}
            gained = tuple(
                # What only lies elsewhere now has the digest of when the VM got it.
                one
                for one in await self._holds(operation.vm, operation.gained)
                if one.identity in there and not one.digest
            )
            await self._operations.take_digests(goal, Entry(operation.vm, gained), opened)
            await self._finish(operation, to_lose, cause)
        except Undone as undone:
            await self._abandon(operation, undone.outcomes, cause)
            raise undone.error from undone
        except BusLost:
            raise  # what became of the unit is not known: the next start looks and settles it
        except Exception:
            await self.undo(operation, cause)
            raise

    async def undo(self, operation: Operation, cause: Cause) -> None:
        """Take back an attachment whose labels may stand, in whole or in part.

        Raises Drift if a label cannot be given back.
        """
        own = await self._doors.store.read(lambda db: entries.own_steps(db, operation))
        outcomes = await self._operations.take([step.undone() for step in reversed(own)])
        holds = await self._holds(operation.vm)
        gained = [one for one in holds if one.number in operation.gained]
        await self._devices.back(operation.vm, gained, [h for h in holds if h not in gained])
        await self._abandon(operation, outcomes, cause)

    async def _abandon(
        self, operation: Operation, outcomes: Sequence[Outcome], cause: Cause
    ) -> None:
        vm = operation.vm
        stuck = [one for one in outcomes if one.fate is Fate.FAILED]
        identities = {one.step.identity for one in stuck}
        holds = await self._holds(vm)
        before = Entry(vm, tuple(h for h in holds if h.number not in operation.gained))
        # What the VM holds on, whatever it carries, is no object that it has left a label on.
        held = {one.identity for one in before.holds} | identities
        left = [one for one in outcomes if one.step.identity not in held]
        suspects = apply.suspects(vm, self._operations.sets(vm), left, holds)
        reach(Point.CLOSE_BEFORE)
        # Durable: after a power cut an attachment that is open may have been promised, and is
        # finished; the caller of this one is about to hear that it failed.
        after = await self._doors.store.write(
            lambda db: attached.abandon(db, operation, identities, suspects)
        )
        reach(Point.CLOSE_AFTER)
        self._events.drift(apply.findings(vm, outcomes))
        self._events.changed(before, after, cause)
        if stuck:
            raise Drift(
                f"VM {vm.name!r}: a label could not be given back ({stuck[0].step.path}: "
                f"{stuck[0].reason}); mend that, then detach it"
            )

    # -- losing -----------------------------------------------------------------------------

    async def detach(self, vm: VM, holds: Sequence[Hold], cause: Cause) -> None:
        """Give back what a VM holds, with what is there for its sake alone.

        Raises Drift if a label cannot be given back: then the VM has all of it as before.
        """
        doors = self._doors
        await self._operations.close_left(vm)
        guesses = await unknown.guesses(doors, holds)
        # Who is the last holder of a public object is decided and acted on under its lock.
        async with self._operations.objects.hold_all(hold.identity for hold in holds):
            numbers = {hold.number for hold in holds}
            reach(Point.BEGIN_BEFORE)
            changing = await doors.store.write(
                lambda db: attached.begin_detach(db, vm, numbers, cause.caller_uid, guesses)
            )
            reach(Point.BEGIN_AFTER)
            try:
                await self._finish(changing.operation, changing.operation.steps, cause)
            except BusLost:
                raise
            except Exception:
                await self.undo(changing.operation, cause)
                raise

    async def _finish(self, operation: Operation, to_lose: Sequence[Step], cause: Cause) -> None:
        """Give back what leaves the VM, and close the operation. Raises Drift, SvirtError.

        What was attached stands already.
        """
        doors, vm = self._doors, operation.vm
        before = Entry(vm, tuple(await self._holds(vm, without=operation.gained)))
        leaving = [one for one in before.holds if one.number in operation.left]
        gained = await self._holds(vm, operation.gained)
        there = {one.identity: one.digest for one in gained}
        gone = [one for one in leaving if one.identity not in there]
        # While the label still keeps others out: afterwards it would prove nothing.
        proven = [one for one in leaving if there.get(one.identity, "") != one.digest]
        altered = await doors.digests.compare(vm, proven)
        await self._devices.set(vm, gained, gained)
        outcomes = await self._operations.take(to_lose)
        stuck = [one for one in outcomes if one.fate is Fate.FAILED]
        if stuck:
            raise Drift(
                f"VM {vm.name!r}: a label could not be given back ({stuck[0].step.path}: "
                f"{stuck[0].reason}); nothing has changed: mend that, then try again"
            )
        stay = [one for one in await self._holds(vm) if one not in leaving]
        await self._devices.set(vm, gone, stay)
        reach(Point.DEVICES_SET)
        ending = await doors.store.read(lambda db: entries.ending(db, vm, gone))
        suspects = self._suspects(vm, outcomes, ending, operation.steps)
        reach(Point.CLOSE_BEFORE)
        # It may follow with the next commit: recovery would only find all as it should be.
        after = await doors.store.write(
            lambda db: attached.finish(db, operation, suspects), durable=False
        )
        reach(Point.CLOSE_AFTER)
        self._events.drift(altered)
        self._events.drift(apply.findings(vm, outcomes))
        self._events.drift(unknown.findings(vm, ending, operation.steps))
        self._events.changed(before, after, cause)

    # -- recovery ---------------------------------------------------------------------------

    async def settle(self, operation: Operation, cause: Cause, *, rebooted: bool) -> str:
        """Finish what was cut off, or undo it; returns which. Raises Drift, NoAnswer."""
        to_get, to_lose = await self._parted(operation)
        if operation.kind is OperationKind.ATTACH and not await self._stands(
            operation, to_get, rebooted=rebooted
        ):
            await self.undo(operation, cause)
            return "undone"
        try:
            await self._finish(operation, to_lose, cause)
        except Drift:
            await self.undo(operation, cause)
            return "undone"
        return "finished"

    async def _stands(self, operation: Operation, steps: Sequence[Step], *, rebooted: bool) -> bool:
        """Say whether what was attached is as it was promised, or can be made so."""
        doors = self._doors
        gained = await self._holds(operation.vm, operation.gained)
        if digests.lacking(doors.goals.known, operation.vm, gained):
            return False
        if await doors.in_file_thread(apply.all_stand, doors.kernel, steps):
            return True
        if not rebooted:
            return False
        # The caller may have had the reply; neither that nor the labels need have reached the disk.
        outcomes = await self._operations.take(steps)
        return all(one.fate is Fate.DONE for one in outcomes)

    # -- parts ------------------------------------------------------------------------------

    async def _holds(
        self, vm: VM, numbers: Collection[int] | None = None, *, without: Collection[int] = ()
    ) -> list[Hold]:
        holds = await self._doors.store.read(lambda db: registry.holds_of(db, vm))
        return [
            one
            for one in holds
            if (numbers is None or one.number in numbers) and one.number not in without
        ]

    async def _parted(self, operation: Operation) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
        """Return the steps for what the VM gets, and those for what it loses."""
        gained = {one.identity for one in await self._holds(operation.vm, operation.gained)}
        own = await self._doors.store.read(lambda db: entries.own_steps(db, operation))
        to_get = tuple(step for step in own if step.identity in gained)
        return to_get, tuple(step for step in own if step.identity not in gained)

    def _suspects(
        self,
        vm: VM,
        outcomes: Sequence[Outcome],
        ending: Sequence[Hold],
        steps: Sequence[Step],
    ) -> list[Suspect]:
        sets = self._operations.sets(vm)
        return apply.suspects(vm, sets, outcomes, ending) + unknown.suspects(
            vm, sets, ending, steps
        )
